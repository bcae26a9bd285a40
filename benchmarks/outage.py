"""What an outage costs a job and those who watch it: the demo, with its broker killed halfway.

::

    python -m benchmarks.outage --backend valkey --seconds 30 --json outage.json

The same job runs without an outage, with one, and without once more, each in
an installation of its own and followed over a WebSocket. On Redis and Valkey
the server is also Celery's broker; with NATS Celery has a Valkey of its own,
which stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import options
from benchmarks.census import take_census
from benchmarks.machine import describe_machine
from benchmarks.report import count_text, machine_text
from benchmarks.stage import Failed
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
END_SECONDS = 60.0
"""Until a job that is done is known to be done."""
PREFIX = "semantik-realtime-outage-"
PASSWORD = "only for this benchmark"


class Run(msgspec.Struct):
    """One job, as its database row and its watcher tell of it."""

    backend: str
    outage_seconds: float
    job_seconds: float
    """From its start to its end, by the database."""
    told_after_seconds: float | None = None
    """From the kill to ``degraded`` at the watcher."""
    live_after_seconds: float | None = None
    """From the moment at which the server answers again to ``restored`` at the watcher."""
    shown_meanwhile: int = 0
    """Different progresses that the watcher saw while it was degraded."""
    went_back: int = 0
    """Times at which what was shown moved back."""
    ends: int = 0
    """Of the job, in its log."""
    events: int = 0
    """In its log."""
    merged: int = 0
    """Of them, those in whose place the watcher got a later one: what comes back all at once is
    more than a connection is sent whole (R5 in docs/protocol.md)."""
    lost: int = 0
    """At the end of the log, not brought to the watcher."""
    doubled: int = 0
    disordered: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether the watcher saw all of it once and in order, and one end."""
        astray = self.lost or self.doubled or self.disordered or self.went_back
        in_time = not self.outage_seconds or self.live_after_seconds is not None
        is_whole = not self.merged or bool(self.outage_seconds)
        return not astray and self.ends == 1 and in_time and is_whole


class Webui:
    """The demo's worker and web server, over ``store`` and a broker for Celery."""

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
        self.programs = [
            Program(name, [sys.executable, "-m", *command], environment, folder / f"{name}.log")
            for name, command in (
                ("worker", worker),
                ("web", (*web, "--port", str(port), "--log-level", "warning")),
            )
        ]
        self.realtime = f"ws://127.0.0.1:{port}/realtime/ws"
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"x-requested-with": "benchmark"},
            timeout=30,
        )
        self.token = ""

    def log_in(self) -> None:
        login = {"username": "demo", "password": PASSWORD}
        wait_for(lambda: self.client.post("/api/login", json=login).is_success, START_SECONDS)
        self.token = self.client.post("/api/login", json=login).json()["token"]

    def start_job(self) -> str:
        job: str = self.client.post("/api/jobs", json={"all": True}).json()["id"]
        return job

    def state(self, job: str) -> dict[str, Any]:
        """What the database knows."""
        state: dict[str, Any] = self.client.get(f"/api/jobs/{job}").json()["state"]
        return state

    def done(self, job: str) -> int:
        return int(self.state(job)["progress"]["current"])

    def log(self, job: str) -> list[dict[str, Any]]:
        """The newest events of its log, a thousand at most."""
        answer = self.client.get(f"/realtime/jobs/{job}/history", params={"limit": 1000})
        events: list[dict[str, Any]] = answer.json()["events"]
        return events

    def stop(self) -> None:
        self.client.close()
        for program in reversed(self.programs):
            program.stop()


class Watching:
    """What one watcher of a job was told, and when."""

    def __init__(self) -> None:
        self.degraded_at: float | None = None
        self.restored_at: float | None = None
        self.shown: list[int] = []
        self.meanwhile: set[int] = set()
        self.offsets: list[int] = []
        self.place = 0
        """Up to this offset it has everything, or what stands for it."""
        self.merged = 0

    async def follow(self, webui: Webui, job: str) -> None:
        """Note everything until the job has ended."""
        updates = watch(webui.realtime, f"job:{job}", token=webui.token, history=1000)
        async with aclosing(updates):
            async for update in updates:
                self._note(update, job)
                if update.view.folded.get(job, {}).get("status") in END_STATUSES:
                    if update.connection == "live":
                        return

    def _note(self, update: Update, job: str) -> None:
        if update.connection == "degraded" and self.degraded_at is None:
            self.degraded_at = time.monotonic()
        if update.connection == "live" and self.degraded_at and self.restored_at is None:
            self.restored_at = time.monotonic()
        state = update.view.states.get(job, {})
        current = state.get("progress", {}).get("current", 0)
        self.shown.append(current)
        if update.connection == "degraded":
            self.meanwhile.add(current)
        self.merged += max(0, update.view.offset - self.place - len(update.events))
        self.place = max(self.place, update.view.offset)
        self.offsets += [event["offset"] for event in update.events]


async def run_job(
    webui: Webui, backend: str, documents: int, server: Server | None, seconds: float
) -> Run:
    """One job; with ``server``, that is killed for ``seconds`` when a quarter is done."""
    job = await asyncio.to_thread(webui.start_job)
    watching = Watching()
    following = asyncio.create_task(watching.follow(webui, job))
    killed_at = back_at = 0.0
    try:
        if server is not None:
            await _until(lambda: webui.done(job) >= documents // 4)
            await asyncio.to_thread(server.kill)
            killed_at = time.monotonic()
            await asyncio.sleep(seconds)
            await asyncio.to_thread(server.start)
            back_at = time.monotonic()
        await _until(lambda: webui.state(job)["status"] in END_STATUSES)
        async with asyncio.timeout(END_SECONDS):
            await following
    finally:
        following.cancel()
    state = webui.state(job)
    if state["status"] != "completed":
        raise Failed(f"the job {state['status']}")
    log = await asyncio.to_thread(webui.log, job)
    events = log[-1]["offset"]
    census = take_census([offset - 1 for offset in watching.offsets])
    degraded_at, restored_at = watching.degraded_at, watching.restored_at
    return Run(
        backend=backend,
        outage_seconds=seconds if server else 0.0,
        job_seconds=round(_seconds(state["started_at"], state["ended_at"]), 2),
        told_after_seconds=round(degraded_at - killed_at, 2) if degraded_at else None,
        live_after_seconds=round(restored_at - back_at, 2) if restored_at else None,
        shown_meanwhile=len(watching.meanwhile),
        went_back=sum(later < before for before, later in pairwise(watching.shown)),
        ends=sum(bool(event.get("terminal")) for event in log),
        events=events,
        merged=watching.merged,
        lost=events - watching.place,
        doubled=census.doubled,
        disordered=census.disordered,
    )


@contextlib.contextmanager
def installed(backend: str, documents: Path) -> Iterator[tuple[Webui, Server]]:
    """The demo over a server of its own, and that server."""
    make_server = ROWS[backend].make_server
    assert make_server is not None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(make_server()))
        broker = server.url
        if ROWS[backend].backend != "redis":
            broker = stack.enter_context(running(RedisServer(valkey_program()))).url
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX))
        webui = Webui(Path(folder), documents, backend, server.url, broker)
        stack.callback(webui.stop)
        webui.log_in()
        yield webui, server


def write_documents(folder: Path, count: int, kilobytes: int) -> None:
    """Texts of made-up words, the same in every run."""
    rng = random.Random(7)
    words = ["".join(rng.choices("aeioulmnrst", k=rng.randint(3, 9))) for _ in range(4000)]
    folder.mkdir()
    for number in range(count):
        text = " ".join(rng.choices(words, k=kilobytes * 1000 // 7))
        (folder / f"text-{number:04}.txt").write_text(text)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until it holds; what cannot be asked yet does not.

    Raises:
        Failed: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.1)
    raise Failed(f"something did not happen in {seconds:g} s")


async def _until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_for, condition, 10 * END_SECONDS)


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def slowdown(runs: Sequence[Run]) -> float:
    """How many times the time without an outage the job took with one."""
    without = [run.job_seconds for run in runs if not run.outage_seconds]
    with_one = [run.job_seconds for run in runs if run.outage_seconds]
    return round(statistics.median(with_one) / statistics.median(without), 3)


def show(runs: Sequence[Run], machine: dict[str, Any]) -> None:
    """Print a line for each job, and what it was measured on."""
    table = Table(title="outage: one job of the demo, followed by one watcher")
    for heading in (
        *("backend", "away s", "job s", "told s", "live s", "shown", "back", "ends", "events"),
        *("merged", "lost", "doubled", "disordered"),
    ):
        table.add_column(heading, justify="left" if heading == "backend" else "right")
    for run in runs:
        told, live = run.told_after_seconds, run.live_after_seconds
        table.add_row(
            run.backend,
            f"{run.outage_seconds:g}",
            f"{run.job_seconds:.2f}",
            "" if told is None else f"{told:.2f}",
            "" if live is None else f"{live:.2f}",
            str(run.shown_meanwhile),
            count_text(run.went_back),
            str(run.ends),
            f"{run.events:,}",
            f"{run.merged:,}",
            *(count_text(number) for number in (run.lost, run.doubled, run.disordered)),
        )
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for backend in dict.fromkeys(run.backend for run in runs):
        ratio = slowdown([run for run in runs if run.backend == backend])
        console.print(f"{backend}: with the outage the job took {ratio:.3f} of the time without")
    console.print(machine_text(machine), highlight=False)


@click.command()
@click.option(
    "--backend",
    "--backends",
    "backends",
    type=options.Names([name for name, row in ROWS.items() if row.make_server]),
    default="valkey",
    show_default=True,
    help="Whose server is killed; several separated by commas.",
)
@click.option("--seconds", type=float, default=30.0, show_default=True, help="It is away.")
@options.number("documents", 500, 4, "Of a job.")
@options.number("kilobytes", 500, 1, "Of a document.")
@options.json_file
def main(
    backends: Sequence[str], seconds: float, documents: int, kilobytes: int, json_file: Path | None
) -> None:
    """Kill the broker in the middle of a job. Fails if anything went astray."""
    machine = describe_machine()
    runs: list[Run] = []
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("documents", total=3 * len(backends))
        with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
            texts = Path(directory) / "documents"
            write_documents(texts, documents, kilobytes)
            for backend, is_disturbed in product(backends, (False, True, False)):
                what = f"{seconds:g} s away" if is_disturbed else "undisturbed"
                progress.update(task, description=f"{backend}: {what}")
                with installed(backend, texts) as (webui, server):
                    victim = server if is_disturbed else None
                    runs.append(asyncio.run(run_job(webui, backend, documents, victim, seconds)))
                progress.advance(task)
    show(runs, machine)
    if json_file is not None:
        rows = [msgspec.to_builtins(run) for run in runs]
        report = {"scenario": "outage", "machine": machine, "rows": rows}
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    sys.exit(0 if all(run.is_clean for run in runs) else 1)


if __name__ == "__main__":
    main()
