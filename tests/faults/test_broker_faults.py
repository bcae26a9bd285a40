"""Each kind of outage of the broker is reported, bridged, and caught up with."""

from __future__ import annotations

import logging
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from broker_faults import (
    Emptied,
    Expelled,
    ExpelledByFile,
    Fault,
    Full,
    Hanging,
    Killed,
    Loading,
    Locked,
    Replica,
)
from clients import CompatClient, NativeClient
from configuration import make_settings
from publisher import Publisher
from record import Record
from waiting import until
from web_servers import serve_realtime

from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.servers import ROWS, Server

DEGRADED_SECONDS = 8.0
"""Until clients are degraded: the server looks once a second, with a deadline of a second."""
SHOWN_SECONDS = 4.0
"""Until a state of the outage is shown."""
BACK_SECONDS = 15.0
"""Until clients have caught up: emitter and subscription pause for up to 5 s each."""


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
async def test_an_outage_is_reported_bridged_and_caught_up_with(
    server: Server,
    row: str,
    kind: type[Fault],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A web server, a worker and three jobs: one runs on, one ends in the worker, one is
    cancelled by the web server. One client of each wire follows."""
    caplog.set_level(logging.INFO, "semantik_realtime")
    fault = kind(server)
    fault.prepare()
    settings = make_settings(
        fault.url,
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
        serve_realtime(settings, plugins=[record]) as web_server,
        web_server.http_client() as http,
        NativeClient(web_server, "job:1", "job:2", "job:3") as client,
        CompatClient(web_server.compat_url("3")) as browser,
    ):
        await client.wait_synced()
        await browser.wait_for("step", 3)
        await worker.publish("job:1", 3)
        await client.wait_for_offset("job:1", 6)
        caplog.clear()

        await fault.begin()
        began = time.monotonic()
        await client.wait_for("degraded", 1, DEGRADED_SECONDS)
        degraded_after = time.monotonic() - began
        await browser.wait_for("degraded", 1, DEGRADED_SECONDS)

        # An event of the web server itself is shown at once, and waits to be sent.
        cancelled = {"status": "cancelled", "fields": {"by": "me"}}
        receipt = await web_server.rt.publish("job:3", "job_cancelled", state=cancelled)
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
        # Events of a worker reach the web server only through the application's record.
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

        await fault.end()
        ended = time.monotonic()
        await client.wait_for("restored", 1, BACK_SECONDS)
        restored_after = time.monotonic() - ended
        await browser.wait_for("restored", 1, BACK_SECONDS)
        await worker.flush()
        after = {"1": ("running", 11), "2": ("completed", None), "3": ("cancelled", None)}
        await until(lambda: _shown(client) == after, BACK_SECONDS, lambda: client)
        print(
            f"{kind.__name__}-{row}: degraded after {degraded_after:.2f} s,"
            f" restored after {restored_after:.2f} s"
        )

        # Everything once and in order, or a whole snapshot with the reason.
        snapshots = [sync for sync in client.syncs if sync["mode"] == "snapshot"]
        if fault.forgets:
            for topic in client.views:
                syncs = [sync for sync in snapshots if sync["topic"] == topic]
                assert syncs[0]["reason"] == "new"
                for before, sync in pairwise(syncs):
                    # Without a log, and so without a cursor, the states are the record's. That
                    # may be read twice before the worker's drafts make a log again.
                    from_log = "epoch" if before["cursor"] else "new"
                    assert sync["reason"] == (from_log if sync["cursor"] else "recalled")
        else:
            assert [sync["reason"] for sync in snapshots] == ["new"] * 3
            assert client.numbers("job:1") == [3, 4, 5, 6, 7, 8, 9, 10]
            ends = [[event["type"] for event in client.applied[job]] for job in ("job:2", "job:3")]
            assert ends == [["job_completed"], ["job_cancelled"]]
        assert not any(view.overlay for view in client.views.values())
        assert (client.connections, client.closed, client.bad_batches) == (1, None, [])
        # `restored` repeats no end.
        data = [message["data"] for message in browser.messages]
        assert [each["status"] for each in data if "status" in each][-1] == "cancelled"
        assert len(browser.of_type("job_cancelled")) <= 1
        health = (await http.get("/realtime/health")).json()
        assert (health["degraded_since"], health["spool"]["drafts"]) == (None, 0)
    worker.close()
    record.close()
    logged = Counter(record.msg for record in caplog.records if record.levelno >= logging.WARNING)
    assert max(logged.values()) <= 2, logged
    outage = [record.msg.partition(",")[0] for record in caplog.records]
    assert outage.count("outage: degraded") == 1


def _shown(client: NativeClient) -> dict[str, tuple[str, int | None]]:
    """Return what a client shows of each job: its status, and how far it is."""
    jobs = {job: state for view in client.views.values() for job, state in view.states.items()}
    return {
        job: (state["status"], (state.get("progress") or {}).get("current"))
        for job, state in jobs.items()
    }
