"""What a workflow of many members costs the backend, a web server and a browser.

Four processes report the members as workers do, without Celery between them; one follows the
workflow as a worker's main process does. A client watches it through a web server, and the real
JavaScript client reads the frames that it received once more, in node. The yardstick is the same
run in which every member keeps its key.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import redis
from fastapi import FastAPI
from rich.table import Table
from websockets.asyncio.client import connect

from benchmarks.machine import describe_machine
from benchmarks.options import number
from benchmarks.output import encode_json, make_console
from semantik_realtime import Realtime
from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.core import workflow as rules
from semantik_realtime.core.event import Event
from semantik_realtime.core.fold import View
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.session import SUBPROTOCOL
from semantik_realtime.core.summary import summarize
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import RedisServer, free_port, running, valkey_program
from semantik_realtime.worker.job import Job, JobMeta
from semantik_realtime.worker.members import Member, tallies
from semantik_realtime.worker.places import begin_workflow
from semantik_realtime.worker.workflow import _Followed, publish

WORKFLOW, TOPIC, OWNER = "benchmark", "job:benchmark", "7"
PROCESSES = 4
QUICK_MEMBERS = 400
FAILS_EVERY = 1000
"""One of so many members fails."""
FOLLOW_SECONDS = 0.5
DEADLINE_SECONDS = 300.0
CLIENT = Path(__file__).with_name("workflow_client.mjs")


class Row(msgspec.Struct):
    """One run."""

    name: str
    events: int
    """In the topic's log, since it began."""
    seconds: float
    """From the first member to the end of the whole, as the watcher sees it."""
    server_bytes: int
    """What the backend says that all its keys use, at the end."""
    most_server_keys: int
    """Keys of the topic with a state, the most in any reading."""
    web_bytes: int
    """By how much the resident memory of the web process has grown."""
    received_bytes: int
    """Of the frames that the watcher received."""
    most_keys: int
    """The most that the watcher had at once."""
    browser_keys: int | None
    """The same of the JavaScript client; None: node is missing."""
    browser_bytes: int | None
    """Of its heap, after a collection, with the last view."""
    errors: int
    """Members that the watcher's last summary, or the browser's, does not count as it should."""


def make_app() -> FastAPI:
    """Return the web server that is measured; configured by its environment."""
    app = FastAPI()
    Realtime().install(app)
    return app


def settings_of(url: str, keeps_keys: bool) -> Settings:
    """Return the settings of a run; with ``keeps_keys`` no member is ever counted by a tally."""
    if keeps_keys:
        rules.KEPT_MEMBERS = rules.KEPT_CHILDREN = 10**6
    return load_settings(url=url, max_keys=10**7 if keeps_keys else 1000)


def report_members(url: str, keeps_keys: bool, process: int, total: int) -> None:
    """Report every fourth member, in a process of its own."""
    runtime = Runtime(settings_of(url, keeps_keys))
    for n in range(process, total, PROCESSES):
        place = {"n": n, "total": total, "at": f"group {n + 1}/{total}"}
        meta = JobMeta(f"member-{n}", "app.index_page", OWNER, member=Member(WORKFLOW, place))
        job = Job(runtime, meta, 1)
        runtime.emitter.wait_for_room()
        job.begin()
        if n % FAILS_EVERY:
            job.end("job_completed")
        else:
            job.end("job_failed", error={"type": "ValueError", "message": "the page is empty"})
    tallies.send()
    if not runtime.close(DEADLINE_SECONDS):
        raise RuntimeError("drafts still wait")


class Watcher:
    """A client of the web server, in a thread: its view, and the frames that it received."""

    def __init__(self, port: int, frames: Path) -> None:
        self.view = View(TOPIC)
        self.most_keys = 0
        self.received_bytes = 0
        self.has_joined = threading.Event()
        self._port = port
        self._frames = frames
        self._thread = threading.Thread(target=lambda: asyncio.run(self._watch()), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the workflow has ended for the watcher."""
        self._thread.join(DEADLINE_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError("the watcher did not see the end")

    async def _watch(self) -> None:
        url = f"ws://127.0.0.1:{self._port}/realtime/ws"
        async with connect(url, subprotocols=[SUBPROTOCOL], max_size=None) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"op": "subscribe", "topics": {TOPIC: None}}))
            with self._frames.open("w") as file:
                async for text in socket:
                    file.write(f"{text!s}\n")
                    self.received_bytes += len(text)
                    self._apply(json.loads(text))
                    states = self.view.states
                    self.most_keys = max(self.most_keys, len(states))
                    if self._is_over(states):
                        return

    def _apply(self, frame: dict[str, Any]) -> None:
        if frame["op"] == "sync":
            self.view.sync(frame)
            self.has_joined.set()
        elif frame["op"] == "events" and self.view.batch(frame["topics"][TOPIC]) is None:
            raise RuntimeError("a gap")

    def _is_over(self, states: Any) -> bool:
        return has_ended(states.get(WORKFLOW)) and not any(
            state.get("status") == "running" for state in states.values()
        )


@contextmanager
def web_server(url: str, keeps_keys: bool) -> Iterator[tuple[int, int]]:
    """Run a web server in a process of its own; yield its port and its process id."""
    port = free_port()
    environment = os.environ | {
        "SEMANTIK_REALTIME_URL": url,
        "SEMANTIK_REALTIME_MAX_KEYS": str(10**7 if keeps_keys else 1000),
        "ENVIRONMENT": "development",
        "DISABLE_AUTH": "1",
    }
    command = [sys.executable, "-m", "uvicorn", "benchmarks.workflow:make_app", "--factory"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "warning", "--ws-max-size", "65536"],
        env=environment,
    )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                asyncio.run(_knock(port))
                break
            except OSError:
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(20)


async def _knock(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is not paged out. Linux only."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def follow(runtime: Runtime, workers: list[Any]) -> int:
    """Follow the workflow until its end is published. Return the most keys of a reading."""
    followed, most = _Followed(WORKFLOW, OWNER, []), 0
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not followed.has_ended and time.monotonic() < deadline:
        time.sleep(FOLLOW_SECONDS)
        states = asyncio.run(_states(runtime.settings))
        most = max(most, len(states))
        publish(runtime, followed, states)
        if any(worker.exitcode not in (None, 0) for worker in workers):
            raise RuntimeError("a process that reports members failed")
    if not followed.has_ended:
        raise RuntimeError("the workflow did not end")
    return most


async def _states(settings: Settings) -> dict[str, Any]:
    backend = load_backend(settings)
    await backend.open()
    try:
        snapshot = await backend.snapshot(TOPIC, None, 0)
    finally:
        await backend.close()
    heads = {key: Event(0, 0, event).head() for key, event in snapshot.states.items()}
    return {key: msgspec.json.decode(bytes(head.state)) for key, head in heads.items()}  # type: ignore[arg-type]


def read_in_node(frames: Path, total: int) -> dict[str, int] | None:
    """Let the JavaScript client read the frames; None: node is missing."""
    node = shutil.which("node")
    if node is None:
        return None
    done = subprocess.run(
        [node, "--expose-gc", str(CLIENT), str(frames), TOPIC, WORKFLOW, str(total)],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def wrong(counts: dict[str, Any], total: int) -> int:
    """Return how many members a summary does not count as it should."""
    failed = (total + FAILS_EVERY - 1) // FAILS_EVERY
    return int(abs(counts["failed"] - failed) + abs(counts["done"] - (total - failed)))


def measure(name: str, total: int, *, keeps_keys: bool) -> Row:
    """Run one workflow on a server of its own."""
    kept = rules.KEPT_MEMBERS, rules.KEPT_CHILDREN
    with running(RedisServer(valkey_program())) as valkey, tempfile.TemporaryDirectory() as folder:
        settings = settings_of(valkey.url, keeps_keys)
        runtime = Runtime(settings)
        frames = Path(folder) / "frames"
        try:
            with web_server(valkey.url, keeps_keys) as (port, pid):
                state = {"total": total, "ends": rules.ALL}
                begin_workflow(runtime, WORKFLOW, JobMeta(WORKFLOW, "group", OWNER), state)
                runtime.emitter.flush(DEADLINE_SECONDS)
                watcher = Watcher(port, frames)
                if not watcher.has_joined.wait(DEADLINE_SECONDS):
                    raise RuntimeError("the watcher did not join")
                resident = resident_bytes(pid)
                started = time.monotonic()
                spawning = multiprocessing.get_context("spawn")
                workers = [
                    spawning.Process(
                        target=report_members, args=(valkey.url, keeps_keys, process, total)
                    )
                    for process in range(PROCESSES)
                ]
                for worker in workers:
                    worker.start()
                most = follow(runtime, workers)
                watcher.join()
                seconds = time.monotonic() - started
                for worker in workers:
                    worker.join(DEADLINE_SECONDS)
                grown = resident_bytes(pid) - resident
        finally:
            runtime.close()
            tallies.clear()
            rules.KEPT_MEMBERS, rules.KEPT_CHILDREN = kept
        with redis.Redis.from_url(valkey.url) as server:
            keys = server.scan_iter(count=1000)
            server_bytes = sum(server.memory_usage(key, samples=0) or 0 for key in keys)
        browser = read_in_node(frames, total)
        summary = msgspec.to_builtins(summarize(watcher.view.states, WORKFLOW, 0))
        return Row(
            name=name,
            events=watcher.view.offset,
            seconds=round(seconds, 1),
            server_bytes=server_bytes,
            most_server_keys=most,
            web_bytes=grown,
            received_bytes=watcher.received_bytes,
            most_keys=watcher.most_keys,
            browser_keys=None if browser is None else browser["keys"],
            browser_bytes=None if browser is None else browser["bytes"],
            errors=wrong(summary, total) + (0 if browser is None else wrong(browser, total)),
        )


@click.command()
@number("members", 10_000, 300, "Members of the workflow.")
@click.option("--quick", is_flag=True, help=f"{QUICK_MEMBERS} members, to see that it works.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(members: int, quick: bool, file: Path | None) -> None:
    """Measure a workflow whose completed members are counted, and one that keeps all keys."""
    total = QUICK_MEMBERS if quick else members
    machine = describe_machine()
    rows = [
        measure("every member keeps its key", total, keeps_keys=True),
        measure("completed members are counted", total, keeps_keys=False),
    ]
    table = Table("", *(row.name for row in rows), "ratio", title=f"{total:,} members")
    for name in Row.__struct_fields__[1:]:
        values = [getattr(row, name) for row in rows]
        shown = ["-" if value is None else f"{value:,}" for value in values]
        ratio = f"{values[0] / values[1]:.1f}" if all(values) else ""
        table.add_row(name, *shown, ratio)
    make_console(100).print(table)
    if file is not None:
        file.write_bytes(encode_json({"machine": machine, "members": total, "rows": rows}))
    if any(row.errors for row in rows):
        raise click.ClickException("members were not counted as they should be")


if __name__ == "__main__":
    main()
