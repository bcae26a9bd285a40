"""The application of the web server processes whose sinks record their calls in SQLite."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time

from fastapi import FastAPI

from semantik_realtime import Realtime
from semantik_realtime.core import sinks as rules
from semantik_realtime.sinks import worker
from semantik_realtime.sinks.registry import SinkEvent

# A killed server's events come again after 0.8 s instead of 32 s.
worker.CLAIM_SPARE_SECONDS = 0.3
worker.POLL_SECONDS = 0.05
rules.FIRST_PAUSE_SECONDS = 0.05

app = FastAPI()
rt = Realtime().install(app)
rng = random.Random(os.getpid())
local = threading.local()


def note(sink: str, event: SinkEvent, phase: str) -> None:
    if not hasattr(local, "connection"):
        local.connection = sqlite3.connect(
            os.environ["TEST_SINK_DATABASE"], timeout=20, isolation_level=None
        )
    local.connection.execute(
        "insert into calls values (?, ?, ?, ?, ?)",
        (sink, event.identity, phase, os.getpid(), event.attempt),
    )


@rt.sink(types="matching", name="coroutine", deadline_seconds=0.5, attempts=1000)
async def handle(event: SinkEvent) -> None:
    note("coroutine", event, "begun")
    await asyncio.sleep(rng.uniform(0, 0.03))
    note("coroutine", event, "done")


@rt.sink(topics=["job:*"], name="thread", deadline_seconds=0.5, attempts=1000)
def handle_in_thread(event: SinkEvent) -> None:
    note("thread", event, "begun")
    time.sleep(rng.uniform(0, 0.03))
    if rng.random() < 0.05:
        raise RuntimeError("one in twenty")
    note("thread", event, "done")


@app.get("/alive")
async def alive() -> dict[str, bool]:
    return {"alive": True}
