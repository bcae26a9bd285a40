"""What a topic, an event and a connection cost in memory, measured where you are.

::

    pip install 'semantik-realtime[demo]' && python docs/examples/sizing.py

Starts a Valkey server and a web server of its own and ends them. The figures
are differences of what the server says its keys use (MEMORY USAGE) and of the
web process's resident memory, divided by what was added in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import redis
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect

from semantik_realtime import Realtime
from semantik_realtime.config import load_settings
from semantik_realtime.core.session import SUBPROTOCOL
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import RedisServer, free_port, running, valkey_program
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta

TOPICS = 2000
EVENTS = 900
OWNERS = 100
CONNECTIONS = 500
QUICK = 20
"""With --quick, so many times less of everything: to see that it works, not to measure."""
DEADLINE_SECONDS = 60.0


def make_app() -> FastAPI:
    """The web server that is measured; configured by its environment."""
    app = FastAPI()
    Realtime().install(app)
    return app


def run_job(runtime: Runtime, job_id: str, owner: int, events: int) -> None:
    """A job that tells of so many files, in its own topic and in its owner's feed."""
    job = Job(runtime, JobMeta(job_id, owner=str(owner)), attempt=1)
    job.progress(17, 40, unit="files")
    job.set(failed=0)
    job.begin()
    for number in range(events):
        job.emit("file_completed", file="report.pdf", n=number)


def measure_storage(url: str, scale: int) -> tuple[float, float]:
    """Bytes of server memory for a job that has begun, and for each further event."""
    server = redis.Redis.from_url(url)

    def used() -> int:
        # Key by key: what the whole server uses has buffers and Lua's garbage in it.
        keys = server.scan_iter(count=1000)
        return sum(server.memory_usage(key, samples=0) or 0 for key in keys)

    runtime = Runtime(load_settings(url=url))
    try:
        for owner in range(OWNERS):
            run_job(runtime, f"first-{owner}", owner, 0)
        runtime.emitter.flush(DEADLINE_SECONDS)
        start = used()
        for number in range(TOPICS // scale):
            run_job(runtime, f"job-{number}", number % OWNERS, 0)
        runtime.emitter.flush(DEADLINE_SECONDS)
        a_topic = (used() - start) / (TOPICS // scale)
        start = used()
        run_job(runtime, "long", 0, EVENTS // scale)
        runtime.emitter.flush(DEADLINE_SECONDS)
        an_event = (used() - start - a_topic) / (EVENTS // scale)
    finally:
        runtime.close()
        server.close()
    return a_topic, an_event


def resident_bytes(pid: int) -> int:
    """The memory of a process that is not paged out. Linux only."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def web_server(url: str, *options: str) -> Iterator[tuple[int, int]]:
    """A web server in a process of its own: its port and its process id."""
    port = free_port()
    environment = os.environ | {
        "SEMANTIK_REALTIME_URL": url,
        "SEMANTIK_REALTIME_MAX_CONNECTIONS": "100000",
        "ENVIRONMENT": "development",
        "DISABLE_AUTH": "1",
    }
    command = [sys.executable, "-m", "uvicorn", "sizing:make_app", "--factory"]
    command += ["--app-dir", str(Path(__file__).parent), "--port", str(port)]
    command += ["--http", "h11", "--ws-max-size", "65536", "--ws-max-queue", "4"]
    process = subprocess.Popen(  # noqa: S603
        [*command, "--log-level", "warning", "--timeout-graceful-shutdown", "5", *options],
        env=environment,
    )
    try:
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


async def join(port: int, topic: str) -> ClientConnection:
    """A connection that watches one topic, as soon as the server is there."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            connection = await connect(
                f"ws://127.0.0.1:{port}/realtime/ws", subprotocols=[SUBPROTOCOL]
            )
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    await connection.send(json.dumps({"op": "subscribe", "topics": {topic: None}}))
    async for frame in connection:
        if '"op":"sync"' in str(frame):
            return connection
    raise RuntimeError("the server closed the connection")


@contextlib.asynccontextmanager
async def joined(port: int, topics: list[str]) -> AsyncIterator[None]:
    """A connection for each of ``topics``."""
    async with contextlib.AsyncExitStack() as stack:
        for topic in topics:
            connection = await join(port, topic)
            stack.push_async_callback(connection.close)
        yield


async def measure_connections(port: int, pid: int, scale: int) -> float:
    """Bytes of the web process for a connection that watches a job of its own."""
    count = CONNECTIONS // scale
    async with joined(port, [f"job:job-{number}" for number in range(10)]):
        start = resident_bytes(pid)
        async with joined(port, [f"job:job-{10 + number}" for number in range(count)]):
            return (resident_bytes(pid) - start) / count


def main() -> None:
    """Measure and print."""
    scale = QUICK if "--quick" in sys.argv[1:] else 1
    with running(RedisServer(valkey_program())) as valkey:
        a_topic, an_event = measure_storage(valkey.url, scale)
        sys.stdout.write(f"server memory, a job that has begun     {a_topic:9,.0f} bytes\n")
        sys.stdout.write(f"server memory, each further event       {an_event:9,.0f} bytes\n")
        for options, name in (((), "compressed"), (("--ws-per-message-deflate", "false"), "plain")):
            with web_server(valkey.url, *options) as (port, pid):
                size = asyncio.run(measure_connections(port, pid, scale))
            sys.stdout.write(f"web process, a connection, {name:<12} {size:9,.0f} bytes\n")


if __name__ == "__main__":
    main()
