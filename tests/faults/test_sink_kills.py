"""Every event reaches its sinks while the servers that handle them, and the broker, are killed.

A few kills by default; more with a report of the counts::

    KILLS=100 SEED=7 pytest tests/faults/test_sink_kills.py -s
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from configuration import make_settings
from waiting import until
from web_servers import ServerProcess

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.core.event import Draft
from semantik_realtime.errors import BackendError
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import ROWS, Server

FOLDER = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", "7"))
SERVERS = 3 if KILLS > 10 else 2
ROUND = 60
"""Events that are appended around each kill."""


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_after_kills_of_servers_each_event_was_handled_by_each_sink(
    server: Server, row: str, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    settings = make_settings(server.url, backend=ROWS[row].backend)
    database = tmp_path / "calls.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table calls (sink, identity, phase, pid, attempt)")
    variables = {
        "TEST_SINK_DATABASE": str(database),
        "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
    }

    def start() -> ServerProcess:
        return ServerProcess(settings, app="sink_host:app", **variables)

    backend: Any = load_backend(settings)
    appended: list[tuple[str, str, str]] = []
    author = Author()
    servers = [start() for _ in range(SERVERS)]
    killed: set[int] = set()
    began = time.monotonic()
    try:
        for one in servers:
            await one.wait_started()
        await until(lambda: len(backend.sink_status()) == 2, 20, "both sinks are recorded")
        for number in range(KILLS):
            await asyncio.to_thread(_append, backend, author, rng, appended)
            await asyncio.sleep(rng.uniform(0.0, 0.08))
            if number % 3 == 1:
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            place = rng.randrange(SERVERS)
            killed.add(servers[place].process.pid)
            servers[place].kill()
            servers[place] = start()
        await asyncio.to_thread(_append, backend, author, rng, appended)

        def are_empty() -> bool:
            return all(status.queued == 0 for status in backend.sink_status())

        await until(are_empty, 60, lambda: backend.sink_status())
        statuses = {status.name: status for status in backend.sink_status()}
    finally:
        for one in servers:
            one.kill()
        backend.close_writer()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        calls = connection.execute("select sink, identity, phase, pid from calls").fetchall()

    wanted = {
        "coroutine": {name for name, topic, type in appended if (topic[:4], type) == JOBS},
        "thread": {name for name, topic, type in appended if topic.startswith("job:")},
    }
    report: dict[str, object] = {
        "row": row,
        "seed": SEED,
        "kills": len(killed),
        "seconds": round(time.monotonic() - began, 1),
        "appended": len(appended),
    }
    for sink, identities in wanted.items():
        done = Counter(name for of, name, phase, _ in calls if (of, phase) == (sink, "done"))
        assert set(done) == identities
        assert {name for of, name, _, _ in calls if of == sink} == identities
        status = statuses[sink]
        assert (status.dead, status.lost, status.handled) == (0, 0, len(identities))
        cut = Counter(
            (phase, name) for of, name, phase, pid in calls if of == sink and pid in killed
        )
        report[sink] = {
            "handled": len(identities),
            "handled twice or more": sum(count > 1 for count in done.values()),
            "cut off by a kill": sum(cut["begun", name] > cut["done", name] for name in identities),
        }
    print(json.dumps(report))


JOBS = ("job:", "matching")


def _append(
    backend: Any, author: Author, rng: random.Random, appended: list[tuple[str, str, str]]
) -> None:
    """Append events as workers do, some of them in one call, and some of the calls twice."""
    for _ in range(ROUND // 4):
        drafts: list[Draft] = []
        for _ in range(4):
            topic = f"{rng.choice(('job', 'job', 'user'))}:{rng.randrange(10)}"
            draft = author.draft(topic, rng.choice(("matching", "other")))
            drafts.append(draft)
            appended.append((f"{topic}/{author.name}.{draft.number}", topic, draft.type))
        left = rng.choice((1, 1, 2))
        while left:
            try:
                backend.publish(drafts)
            except BackendError:
                # The broker starts again; as the emitter does.
                time.sleep(0.05)
            else:
                left -= 1
