"""Each way in which the broker can be away: it is told, bridged, and made up for."""

from __future__ import annotations

import logging
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from fleet import Compat, Native, Publisher, make_settings, site_of, until
from record import Record
from troubles import (
    Emptied,
    Expelled,
    ExpelledByFile,
    Full,
    Hanging,
    Killed,
    Loading,
    Locked,
    Replica,
    Trouble,
)

from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.servers import ROWS, Server

TOLD_SECONDS = 8.0
"""Until everyone is told: a look a second, with a deadline of a second here."""
SHOWN_SECONDS = 4.0
"""Until what is said while the broker is away is shown."""
BACK_SECONDS = 15.0
"""Until all is made up for: the longest pauses of an emitter and of a feed are 5 s each."""


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        pytest.param(row, kind, marks=getattr(pytest.mark, row), id=f"{kind.__name__}-{row}")
        for row, kinds in {
            "valkey": (Killed, Emptied, Hanging, Full, Replica, Locked, Expelled, Loading),
            "redis": (Killed, Replica),
            "nats": (Killed, Emptied, Hanging, ExpelledByFile),
        }.items()
        for kind in kinds
    ],
    indirect=["row"],
)
async def test_it_is_told_and_bridged_and_made_up_for(
    server: Server,
    row: str,
    kind: type[Trouble],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The story of a web server, a worker and three jobs: one goes on, one ends in the worker,
    one is ended by the web server itself; and of somebody who watches them all."""
    caplog.set_level(logging.INFO, "semantik_realtime")
    trouble = kind(server)
    trouble.prepare()
    settings = make_settings(
        trouble.url,
        backend=ROWS[row].backend,
        timeout_seconds=1.0,
        tops_seconds=1.0,
        recall_seconds=0.5,
    )
    record, worker = Record(tmp_path), Publisher(settings)
    for job in ("1", "2", "3"):
        record.write(job, {"status": "running"})
        await worker.publish(f"job:{job}", 3)
    async with (
        site_of(settings, plugins=[record]) as site,
        site.client() as http,
        Native(site, "job:1", "job:2", "job:3") as client,
        Compat(site.compat("3")) as browser,
    ):
        await client.synced()
        await browser.wait_for("step", 3)
        await worker.publish("job:1", 3)
        await client.has("job:1", 6)
        caplog.clear()

        await trouble.begin()
        began = time.monotonic()
        await client.wait_for("degraded", 1, TOLD_SECONDS)
        told = time.monotonic() - began
        await browser.wait_for("degraded", 1, TOLD_SECONDS)

        # What the server itself says is shown, and waits.
        cancelled = {"status": "cancelled", "fields": {"by": "me"}}
        receipt = await site.rt.publish("job:3", "job_cancelled", state=cancelled)
        assert receipt.outcome is Outcome.WAITING
        await until(
            lambda: client.views["job:3"].states["3"] == cancelled, SHOWN_SECONDS, lambda: client
        )
        await until(
            lambda: browser.messages[-1]["data"]["status"] == "cancelled",
            SHOWN_SECONDS,
            lambda: browser.messages,
        )
        assert {op["source"] for op in client.ops("provisional")} == {"memory", "recall"}
        # What a worker says is not to be known, but for what the application has written down.
        for _ in range(5):
            worker.emit("job:1")
        end = {"type": "job_completed", "state": {"status": "completed"}, "terminal": True}
        worker.emit("job:2", job="2", **end)
        record.write("2", {"status": "completed"})
        await until(
            lambda: client.views["job:2"].states["2"]["status"] == "completed",
            SHOWN_SECONDS,
            lambda: client,
        )
        health = (await http.get("/realtime/health")).json()
        assert health["degraded_since"] == client.ops("degraded")[0]["since"]
        assert health["spool"]["drafts"] == 1

        await trouble.end()
        ended = time.monotonic()
        await client.wait_for("restored", 1, BACK_SECONDS)
        restored = time.monotonic() - ended
        await browser.wait_for("restored", 1, BACK_SECONDS)
        await worker.flush()
        after = {"1": ("running", 11), "2": ("completed", None), "3": ("cancelled", None)}
        await until(lambda: _shown(client) == after, BACK_SECONDS, lambda: client)
        print(f"{kind.__name__}-{row}: told {told:.2f} s, restored {restored:.2f} s")

        # Everything once and in order, or a whole snapshot with the reason.
        snapshots = [sync for sync in client.syncs if sync["mode"] == "snapshot"]
        if trouble.forgets:
            for topic in client.views:
                told = [sync for sync in snapshots if sync["topic"] == topic]
                assert told[0]["reason"] == "new"
                for before, sync in pairwise(told):
                    # Only who has no place in any log is told that the log is new.
                    expected = {"epoch", "recalled"} if before["cursor"] else {"new"}
                    assert sync["reason"] in expected
        else:
            assert [sync["reason"] for sync in snapshots] == ["new"] * 3
            assert client.numbers("job:1") == [3, 4, 5, 6, 7, 8, 9, 10]
            ends = [[event["type"] for event in client.seen[job]] for job in ("job:2", "job:3")]
            assert ends == [["job_completed"], ["job_cancelled"]]
        assert not any(view.overlay for view in client.views.values())
        assert (client.connections, client.closed, client.holes) == (1, None, [])
        assert browser.messages[-1]["data"]["status"] == "cancelled"
        assert len(browser.of("job_cancelled")) <= 1
        health = (await http.get("/realtime/health")).json()
        assert (health["degraded_since"], health["spool"]["drafts"]) == (None, 0)
    worker.close()
    record.close()
    said = Counter(record.msg for record in caplog.records if record.levelno >= logging.WARNING)
    assert max(said.values()) <= 2, said
    outage = [record.msg.partition(",")[0] for record in caplog.records]
    assert outage.count("outage: degraded") == 1


def _shown(client: Native) -> dict[str, tuple[str, int | None]]:
    """What a client shows of its jobs: status, and how far they are."""
    jobs = {job: state for view in client.views.values() for job, state in view.states.items()}
    return {
        job: (state["status"], (state.get("progress") or {}).get("current"))
        for job, state in jobs.items()
    }
