"""Processes around a contender: its web server, its publisher, and the clients."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.burst import READY_SECONDS, Burst, Pace, make_burst, publish_burst
from benchmarks.contender import Contender
from benchmarks.report import Measurement
from semantik_realtime.testing.servers import free_port

START_SECONDS = 20.0
END_SECONDS = 10.0

# Each row has three processes of its own: they are forked from one that has imported already.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["benchmarks.stage", "benchmarks.following", "benchmarks.contenders.ours"]
)


class Failed(Exception):
    """A process of a contender ended early or did not start."""


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process for as long as the block lasts; afterwards it is told to end, then made to."""
    child = processes.Process(target=target, args=arguments, daemon=True)
    child.start()
    try:
        yield child
    finally:
        child.terminate()
        child.join(END_SECONDS)
        if child.is_alive():
            child.kill()
            child.join()


def serve(contender: Contender, url: str | None, port: int, burst: Burst) -> None:
    """Run the contender's application in uvicorn until the process is told to end.

    Without a ``url`` the events are made in here too: that backend ends at the process.
    """
    app = contender.application(url)
    if url is None:
        publisher = contender.publisher_inside(app, burst.job_id)
        threading.Thread(target=publish_burst, args=(publisher, burst), daemon=True).start()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


def run_publisher(contender: Contender, url: str, burst: Burst) -> None:
    """`publish_burst` as a process."""
    publisher = contender.publisher(url, burst.job_id)
    publish_burst(publisher, burst)
    publisher.close()


def play(
    contender: Contender,
    url: str | None,
    pace: Pace,
    clients: Callable[..., None],
    count: int,
) -> Measurement:
    """One burst through a fresh web server to ``count`` fresh clients.

    Raises:
        Failed: there is no measurement.
    """
    port = free_port()
    burst = make_burst(processes, secrets.token_hex(4), pace)
    near, far = processes.Pipe()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process(serve, contender, url, port, burst))
        if url is not None:
            stack.enter_context(process(run_publisher, contender, url, burst))
        _wait_for_port(port, server)
        if not burst.ready.wait(READY_SECONDS):
            raise Failed("the publisher did not start")
        followers = stack.enter_context(process(clients, port, contender.wire, count, burst, far))
        # The other end is the child's alone: its death is heard here.
        far.close()
        while not burst.go.wait(0.1):
            if not followers.is_alive():
                raise Failed("the clients could not join")
        cpu = _cpu_seconds(server.pid)
        try:
            measurement: Measurement = near.recv()
        except EOFError:
            raise Failed("the clients ended early") from None
        if cpu is not None:
            spent = (_cpu_seconds(server.pid) or cpu) - cpu
            measurement.facts["server_cpu_share"] = round(spent / measurement.seconds, 2)
        return measurement


def _wait_for_port(port: int, server: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.is_alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise Failed("the web server did not start")


def _cpu_seconds(pid: int) -> float | None:
    """Processor time of a process so far; None where /proc is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
