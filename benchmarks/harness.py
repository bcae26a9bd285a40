"""Runs a contender: its web server, its publisher and the clients, each in its own process."""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from benchmarks.burst import READY_SECONDS, Burst, Pace, make_burst, publish_burst
from benchmarks.contender import Contender
from benchmarks.measurement import Measurement, MeasurementFailed
from benchmarks.polling import wait_until
from benchmarks.process_time import process_seconds
from semantik_realtime.testing.servers import free_port

START_SECONDS = 20.0
END_SECONDS = 10.0
"""How long a process may take to end after SIGTERM, before SIGKILL."""

# Each row needs three new processes: they are forked from one that has done the slow imports.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["benchmarks.harness", "benchmarks.client_processes", "benchmarks.contenders.ours"]
)


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run ``target`` in a process that ends with the block."""
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
    """Run the contender's application in uvicorn until the process is terminated.

    Without a ``url`` the backend ends at this process, so a thread of it publishes the burst.
    """
    app = contender.application(url)
    if url is None:
        publisher = contender.local_publisher(app, burst.job_ids)
        threading.Thread(target=publish_burst, args=(publisher, burst), daemon=True).start()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


def run_publisher(contender: Contender, url: str, burst: Burst) -> None:
    """Publish the burst from this process."""
    publisher = contender.publisher(url, burst.job_ids)
    publish_burst(publisher, burst)
    publisher.close()


def run_burst(
    contender: Contender,
    url: str | None,
    pace: Pace,
    clients: Callable[..., None],
    count: int,
    *,
    jobs: int = 1,
    broker_pid: int | None = None,
) -> Measurement:
    """Publish one burst through a new web server to ``count`` new clients.

    Args:
        contender: what is measured.
        url: of its broker; None for a backend without a server.
        pace: how much to publish, and when.
        clients: one of the functions in `benchmarks.client_processes`.
        count: how many clients connect, or what the function takes for it.
        jobs: how many publish the burst, in turn.
        broker_pid: the process of the broker, if the clients measure it.

    Raises:
        MeasurementFailed: a process did not start, or ended early.
    """
    port = free_port()
    name = secrets.token_hex(4)
    job_ids = [name] if jobs == 1 else [f"{name}-{place}" for place in range(jobs)]
    burst = make_burst(processes, job_ids, pace)
    if broker_pid is not None:
        burst.pids["broker"] = broker_pid
    receiver, sender = processes.Pipe()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process(serve, contender, url, port, burst))
        if url is not None:
            stack.enter_context(process(run_publisher, contender, url, burst))
        wait_until(
            lambda: _accepts_connections(port, server),
            START_SECONDS,
            "the web server accepts connections",
            poll_seconds=0.02,
            ignored=(OSError,),
        )
        if not burst.ready.wait(READY_SECONDS):
            raise MeasurementFailed("the publisher did not start")
        burst.pids["server"] = server.pid
        arguments = (port, contender.wire, count, burst, sender)
        client_process = stack.enter_context(process(clients, *arguments))
        # With the only other copy in the child, `recv` raises EOFError when the child ends.
        sender.close()
        while not burst.go.wait(0.1):
            if not client_process.is_alive():
                raise MeasurementFailed("the clients could not join")
        cpu = process_seconds(server.pid)
        try:
            measurement: Measurement = receiver.recv()
        except EOFError:
            raise MeasurementFailed("the clients ended early") from None
        if cpu is not None:
            used = (process_seconds(server.pid) or cpu) - cpu
            measurement.facts["server_cpu_share"] = round(used / measurement.seconds, 2)
        return measurement


def _accepts_connections(port: int, server: Any) -> bool:
    if not server.is_alive():
        raise MeasurementFailed("the web server did not start")
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True
