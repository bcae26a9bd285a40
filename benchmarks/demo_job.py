"""One job of the demo, followed by one watcher, while its broker may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec

from benchmarks.measurement import MeasurementFailed, count_errors
from benchmarks.polling import wait_until
from benchmarks.traffic import job_topic
from semantik_realtime.cli.program import Program
from semantik_realtime.client import Update, watch
from semantik_realtime.core.lifecycle import END_STATUSES
from semantik_realtime.testing.servers import (
    ROWS,
    RedisServer,
    Server,
    free_port,
    running,
    valkey_program,
)

START_SECONDS = 30.0
"""How long the demo may take until it accepts a login."""
JOB_SECONDS = 600.0
"""How long a job may take."""
END_SECONDS = 60.0
"""How long the watcher may take to see the end of a job that has ended in the database."""
HISTORY_EVENTS = 1000
"""The newest events of a log that the watcher and the history endpoint ask for."""
PREFIX = "semantik-realtime-outage-"
PASSWORD = "only for this benchmark"
RETRIED = (httpx.TransportError,)
"""Errors of requests to a web server that does not answer yet, or is slow in an outage."""


class Run(msgspec.Struct):
    """One job, as the database and its watcher saw it."""

    backend: str
    outage_seconds: float
    job_seconds: float
    """From its start to its end, in the database."""
    degraded_after_seconds: float | None = None
    """From the kill until the watcher received ``degraded``."""
    live_after_seconds: float | None = None
    """From the moment at which the server answered again until the watcher was live."""
    shown_while_degraded: int = 0
    """How many different progress values the watcher saw while it was degraded."""
    went_back: int = 0
    """How often the progress that the watcher saw decreased."""
    ends: int = 0
    """Terminal events in the log."""
    events: int = 0
    """In the log."""
    merged: int = 0
    """Events in whose place the watcher received a later one. Events that are published all at
    once after an outage may exceed what a connection buffers (R5 in docs/protocol.md)."""
    lost: int = 0
    """Events at the end of the log that the watcher did not receive."""
    doubled: int = 0
    disordered: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether the watcher saw every event once and in order, and one end."""
        has_errors = self.lost or self.doubled or self.disordered or self.went_back
        is_live = not self.outage_seconds or self.live_after_seconds is not None
        is_whole = not self.merged or bool(self.outage_seconds)
        return not has_errors and self.ends == 1 and is_live and is_whole


class DemoInstallation:
    """The demo's worker and web server, over a ``store`` and a ``broker`` for Celery."""

    def __init__(
        self, folder: Path, documents: Path, backend: str, store: str, broker: str
    ) -> None:
        port = free_port()
        environment = {
            "REDIS_URL": broker,
            "SEMANTIK_REALTIME_BACKEND": ROWS[backend].backend,
            "SEMANTIK_REALTIME_URL": store,
            "SEMANTIK_REALTIME_JWT_SECRET": "only for this benchmark " * 2,
            "DEMO_DATA_DIR": str(folder / "data"),
            "DEMO_DOCUMENTS_DIR": str(documents),
            "DEMO_PASSWORD": PASSWORD,
        }
        worker = ("celery", "-A", "semantik_realtime.demo.tasks", "worker", "-c", "1")
        web = ("uvicorn", "--factory", "semantik_realtime.demo.app:create_app")
        self._programs = [
            Program(name, [sys.executable, "-m", *command], environment, folder / f"{name}.log")
            for name, command in (
                ("worker", worker),
                ("web", (*web, "--port", str(port), "--log-level", "warning")),
            )
        ]
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"x-requested-with": "benchmark"},
            timeout=30,
        )
        self.websocket_url = f"ws://127.0.0.1:{port}/realtime/ws"
        self.token = ""
        """Of the demo's user; set by `log_in`."""

    def log_in(self) -> None:
        """Log in as soon as the web server answers.

        Raises:
            MeasurementFailed: it did not within `START_SECONDS`.
        """
        wait_until(self._logged_in, START_SECONDS, "the demo accepts a login", ignored=RETRIED)

    def _logged_in(self) -> bool:
        login = {"username": "demo", "password": PASSWORD}
        response = self._client.post("/api/login", json=login)
        if response.is_success:
            self.token = response.json()["token"]
        return response.is_success

    def start_job(self) -> str:
        """Start a job over all documents, and return its id."""
        job: str = self._client.post("/api/jobs", json={"all": True}).json()["id"]
        return job

    def state(self, job: str) -> dict[str, Any]:
        """Return the job's state in the database."""
        state: dict[str, Any] = self._client.get(f"/api/jobs/{job}").json()["state"]
        return state

    def log(self, job: str) -> list[dict[str, Any]]:
        """Return the newest `HISTORY_EVENTS` events of the job's log."""
        params = {"limit": HISTORY_EVENTS}
        response = self._client.get(f"/realtime/jobs/{job}/history", params=params)
        events: list[dict[str, Any]] = response.json()["events"]
        return events

    def stop(self) -> None:
        """Stop both programs, the web server first."""
        self._client.close()
        for program in reversed(self._programs):
            program.stop()


class JobWatcher:
    """Records what one watcher of a job received, and when. Lives on one event loop."""

    def __init__(self) -> None:
        self.degraded_at: float | None = None
        """When it first was degraded, on the clock of `time.monotonic`."""
        self.restored_at: float | None = None
        """When it was live again after that."""
        self.shown: list[int] = []
        """The job's progress after each update."""
        self.shown_while_degraded: set[int] = set()
        self.offsets: list[int] = []
        """Of every event, in the order in which they arrived."""
        self.offset = 0
        """Of the newest event that the watcher's view includes."""
        self.merged = 0
        """How many events the view includes that did not arrive themselves."""

    async def follow(self, demo: DemoInstallation, job: str) -> None:
        """Record every update until the job has ended and the connection is live."""
        updates = watch(
            demo.websocket_url, job_topic(job), token=demo.token, history=HISTORY_EVENTS
        )
        async with aclosing(updates):
            async for update in updates:
                self.record(update, job)
                if update.view.folded.get(job, {}).get("status") in END_STATUSES:
                    if update.connection == "live":
                        return

    def record(self, update: Update, job: str) -> None:
        """Record one update."""
        if update.connection == "degraded" and self.degraded_at is None:
            self.degraded_at = time.monotonic()
        if update.connection == "live" and self.degraded_at and self.restored_at is None:
            self.restored_at = time.monotonic()
        state = update.view.states.get(job, {})
        current = state.get("progress", {}).get("current", 0)
        self.shown.append(current)
        if update.connection == "degraded":
            self.shown_while_degraded.add(current)
        self.merged += max(0, update.view.offset - self.offset - len(update.events))
        self.offset = max(self.offset, update.view.offset)
        self.offsets += [event["offset"] for event in update.events]


async def run_job(
    demo: DemoInstallation, backend: str, documents: int, server: Server | None, seconds: float
) -> Run:
    """Run one job and its watcher.

    Args:
        demo: what runs the job.
        backend: the name of its backend, for the result.
        documents: how many documents the job indexes.
        server: is killed for ``seconds`` when a quarter of them is done; None for no outage.
        seconds: how long the outage lasts.

    Raises:
        MeasurementFailed: the job did not complete.
        TimeoutError: the watcher did not see its end.
    """
    job = await asyncio.to_thread(demo.start_job)
    watcher = JobWatcher()
    following = asyncio.create_task(watcher.follow(demo, job))
    killed_at = back_at = 0.0
    try:
        if server is not None:
            await _until(
                lambda: demo.state(job)["progress"]["current"] >= documents // 4,
                "a quarter of the documents is done",
            )
            await asyncio.to_thread(server.kill)
            killed_at = time.monotonic()
            await asyncio.sleep(seconds)
            await asyncio.to_thread(server.start)
            back_at = time.monotonic()
        await _until(lambda: demo.state(job)["status"] in END_STATUSES, "the job ends")
        async with asyncio.timeout(END_SECONDS):
            await following
    finally:
        following.cancel()
    state = demo.state(job)
    if state["status"] != "completed":
        raise MeasurementFailed(f"the job has the status {state['status']!r}")
    log = await asyncio.to_thread(demo.log, job)
    events = log[-1]["offset"]
    errors = count_errors([offset - 1 for offset in watcher.offsets])
    degraded_at, restored_at = watcher.degraded_at, watcher.restored_at
    duration = datetime.fromisoformat(state["ended_at"]) - datetime.fromisoformat(
        state["started_at"]
    )
    return Run(
        backend=backend,
        outage_seconds=seconds if server else 0.0,
        job_seconds=round(duration.total_seconds(), 2),
        degraded_after_seconds=round(degraded_at - killed_at, 2) if degraded_at else None,
        live_after_seconds=round(restored_at - back_at, 2) if restored_at else None,
        shown_while_degraded=len(watcher.shown_while_degraded),
        went_back=sum(later < before for before, later in pairwise(watcher.shown)),
        ends=sum(bool(event.get("terminal")) for event in log),
        events=events,
        merged=watcher.merged,
        lost=events - watcher.offset,
        doubled=errors.doubled,
        disordered=errors.disordered,
    )


async def _until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, JOB_SECONDS, what, ignored=RETRIED)


@contextlib.contextmanager
def installed_demo(backend: str, documents: Path) -> Iterator[tuple[DemoInstallation, Server]]:
    """Run the demo over a new server; yields both.

    On Redis and Valkey that server is also Celery's broker. With NATS, Celery has a Valkey of
    its own, which stays up.
    """
    make_server = ROWS[backend].make_server
    assert make_server is not None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(make_server()))
        broker = server.url
        if ROWS[backend].backend != "redis":
            broker = stack.enter_context(running(RedisServer(valkey_program()))).url
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX))
        demo = DemoInstallation(Path(folder), documents, backend, server.url, broker)
        stack.callback(demo.stop)
        demo.log_in()
        yield demo, server


def write_documents(folder: Path, count: int, kilobytes: int) -> None:
    """Write ``count`` texts of made-up words, the same in every run."""
    rng = random.Random(7)
    words = ["".join(rng.choices("aeioulmnrst", k=rng.randint(3, 9))) for _ in range(4000)]
    folder.mkdir()
    for number in range(count):
        text = " ".join(rng.choices(words, k=kilobytes * 1000 // 7))
        (folder / f"text-{number:04}.txt").write_text(text)
