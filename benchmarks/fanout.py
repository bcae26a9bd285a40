"""How many events one web process hands to many sockets, beside one frame an event.

::

    python -m benchmarks.fanout --backend valkey --sockets 500 --json fanout.json

Every socket watches the same topic. The yardstick is the same server with a
wire that encodes and sends each event by itself (`benchmarks.served`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.broker import BACKENDS, server_url
from benchmarks.burst import make_burst, run_publisher
from benchmarks.clients import run_clients
from benchmarks.report import Measurement, Report, make_row
from benchmarks.served import serve
from semantik_realtime.testing.servers import free_port

MAX_WINDOW = 200
"""Events on the way: some 55 kB, below the 64 KiB at which a server conflates."""
START_SECONDS = 20.0
END_SECONDS = 10.0

spawn = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def process(target: Any, *arguments: Any) -> Iterator[Any]:
    """A process for as long as the block lasts; afterwards it is told to end, then made to."""
    child = spawn.Process(target=target, args=arguments, daemon=True)
    child.start()
    try:
        yield child
    finally:
        child.terminate()
        child.join(END_SECONDS)
        if child.is_alive():
            child.kill()
            child.join()


def wait_for_port(port: int, server: Any) -> None:
    """Return when somebody listens."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.is_alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError("the web server did not start")


def measure(
    url: str | None,
    sockets: int,
    events: int,
    seconds: float,
    window: int,
    lose: int,
    *,
    one_frame_an_event: bool,
) -> Measurement:
    """One burst through a fresh web server to fresh clients."""
    port = free_port()
    burst = make_burst(spawn, secrets.token_hex(4), events, seconds, window, lose)
    near, far = spawn.Pipe()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process(serve, url, port, one_frame_an_event, burst))
        if url is not None:
            stack.enter_context(process(run_publisher, url, burst))
        wait_for_port(port, server)
        if not burst.ready.wait(START_SECONDS):
            raise RuntimeError("the publisher did not start")
        clients = stack.enter_context(process(run_clients, port, sockets, burst, far))
        while not near.poll(0.1):
            if not clients.is_alive():
                raise RuntimeError("the clients ended early")
        measurement: Measurement = near.recv()
        return measurement


@click.command()
@click.option(
    "--backend",
    "backends",
    type=click.Choice(BACKENDS),
    multiple=True,
    default=("memory", "valkey"),
    show_default=True,
)
@click.option("--sockets", type=click.IntRange(1), default=500, show_default=True)
@click.option("--events", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--seconds",
    type=float,
    default=48.0,
    show_default=True,
    help="Of publishing, over all rows; starting and ending servers comes on top.",
)
@click.option(
    "--window",
    type=click.IntRange(1, MAX_WINDOW),
    default=MAX_WINDOW,
    show_default=True,
    help="Events that may be on the way to the slowest client.",
)
@click.option("--quick", is_flag=True, help="One small round: does it work, not how fast it is.")
@click.option(
    "--lose",
    type=click.IntRange(0),
    default=0,
    help="Leave out every so-manieth event: the run must fail.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    backends: Sequence[str],
    sockets: int,
    events: int,
    rounds: int,
    seconds: float,
    window: int,
    quick: bool,
    lose: int,
    json_file: Path | None,
) -> None:
    """Publish one topic to many sockets. Fails if an event goes astray."""
    if quick:
        sockets, events, rounds, seconds = min(sockets, 20), min(events, 400), 1, min(seconds, 8.0)
    each = seconds / (len(backends) * rounds * 2)
    with Report("fanout") as report:
        for backend in backends:
            alone: list[Measurement] = []
            together: list[Measurement] = []
            with server_url(backend) as url:
                for turn in range(1, rounds + 1):
                    for kept, one_frame_an_event in ((alone, True), (together, False)):
                        what = "one frame an event" if one_frame_an_event else "whatever waits"
                        report.says(f"{backend}, {what}, round {turn} of {rounds}")
                        kept.append(
                            measure(
                                url,
                                sockets,
                                events,
                                each,
                                window,
                                lose,
                                one_frame_an_event=one_frame_an_event,
                            )
                        )
            report.rows += [
                make_row(backend, "one frame an event", alone),
                make_row(backend, "all that waits in one", together, alone, target_ratio=5),
            ]
    sys.exit(report.finish(json_file))


if __name__ == "__main__":
    main()
