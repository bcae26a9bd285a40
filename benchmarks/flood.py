"""What one client that sends without end costs the other clients and the server's memory.

::

    python -m benchmarks.flood --frames 30000 --json flood.json

A client sends frames as fast as the server reads them, compressed to some bytes each, while
another one measures how long the server takes to answer a ping. Each kind of frame has a server
process of its own, with the memory backend, where everybody may watch everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import uvicorn
from fastapi import FastAPI
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.protocol import State
from websockets.uri import parse_uri

from benchmarks import options
from benchmarks.harness import START_SECONDS, process
from benchmarks.machine import describe_machine
from benchmarks.output import RunProgress, encode_json, machine_text, make_console
from benchmarks.process_time import memory_bytes
from semantik_realtime.config import Settings
from semantik_realtime.core.limits import MAX_FRAME_BYTES, MAX_HISTORY, MAX_TOPICS
from semantik_realtime.testing.servers import free_port
from semantik_realtime.web.realtime import Realtime

TABLE_COLUMNS = 120
PING_SECONDS = 0.02
"""Between two pings of the client that measures."""
TARGET_MEGABYTES = 50.0
TARGET_RATIO = 2.0
LEAST_MILLISECONDS = 50.0
"""A 99th percentile below this meets the target, whatever it was before: it is noise."""
TOPICS = dict.fromkeys(f"job:{number}" for number in range(MAX_TOPICS))
SUBSCRIBE = json.dumps({"op": "subscribe", "topics": TOPICS, "history": MAX_HISTORY})
UNSUBSCRIBE = json.dumps({"op": "unsubscribe", "topics": list(TOPICS)})
FLOODS: dict[str, Sequence[str]] = {
    "subscribe": [SUBSCRIBE],
    "subscribe, unsubscribe": [SUBSCRIBE, UNSUBSCRIBE],
    "auth": ['{"op":"auth","token":"t"}'],
    "ping": ['{"op":"ping"}'],
    "unknown op": ['{"op":"dance"}'],
    "compatibility wire": ["ping"],
}


class Row(msgspec.Struct, frozen=True):
    """What one flood cost."""

    flood: str
    frames: int
    bytes_per_frame: float
    quiet_p99_milliseconds: float
    flooded_p99_milliseconds: float
    flooded_max_milliseconds: float
    grown_megabytes: float | None
    """None without a /proc."""

    @property
    def is_met(self) -> bool:
        """Whether the others waited little longer, and the memory is bounded."""
        most = max(LEAST_MILLISECONDS, TARGET_RATIO * self.quiet_p99_milliseconds)
        is_quick = self.flooded_p99_milliseconds <= most
        return is_quick and (self.grown_megabytes or 0) <= TARGET_MEGABYTES


def serve(port: int) -> None:
    """Run the server until the process is terminated."""
    settings = Settings(
        backend="memory", url=None, disable_auth=True, environment="test", max_connections=100
    )
    app = FastAPI()
    Realtime(settings).install(app)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", ws_max_size=MAX_FRAME_BYTES)


def encode_flood(protocol: ClientProtocol, frames: Sequence[str], count: int) -> bytes:
    """Return ``count`` frames, those of ``frames`` in turn, as a client compresses them."""
    flood = bytearray()
    for number in range(count):
        protocol.send_text(frames[number % len(frames)].encode())
        flood += b"".join(protocol.data_to_send())
    return bytes(flood)


@contextlib.asynccontextmanager
async def flooding(url: str, frames: Sequence[str], count: int) -> AsyncIterator[int]:
    """Send a flood inside the block and discard the answers; yields how many bytes it has."""
    uri = parse_uri(url)
    deflate = ClientPerMessageDeflateFactory(compress_settings={"memLevel": 9})
    protocol = ClientProtocol(uri, extensions=[deflate])
    reader, writer = await asyncio.open_connection(uri.host, uri.port)
    protocol.send_request(protocol.connect())
    writer.write(b"".join(protocol.data_to_send()))
    while protocol.state is State.CONNECTING:
        protocol.receive_data(await reader.read(2**16))

    async def discard() -> None:
        with contextlib.suppress(OSError):
            while await reader.read(2**16):
                pass

    flood = await asyncio.to_thread(encode_flood, protocol, frames, count)
    discarding = asyncio.create_task(discard())
    writer.write(flood)
    try:
        yield len(flood)
    finally:
        discarding.cancel()
        writer.transport.abort()


async def ping(socket: ClientConnection, seconds: float) -> list[float]:
    """Return how many milliseconds each of the pings of so many seconds took."""
    took = []
    ends_at = time.perf_counter() + seconds
    while (sent_at := time.perf_counter()) < ends_at:
        await socket.send('{"op":"ping"}')
        while json.loads(await socket.recv())["op"] != "pong":
            pass
        took.append((time.perf_counter() - sent_at) * 1000)
        await asyncio.sleep(PING_SECONDS)
    return took


def p99(took: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return round(sorted(took)[int(len(took) * 0.99)], 1)


async def most_memory(pid: int) -> int:
    """Return the most memory that a process has had until the task is cancelled."""
    most = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            most = max(most, memory_bytes(pid) or 0)
            await asyncio.sleep(PING_SECONDS)
    return most


async def measure(flood: str, port: int, pid: int, count: int, seconds: float) -> Row:
    """Ping a quiet server for ``seconds``, and as long while it is flooded."""
    native = f"ws://127.0.0.1:{port}/realtime/ws"
    url = f"ws://127.0.0.1:{port}/ws/jobs/1" if flood == "compatibility wire" else native
    async with asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                socket = await connect(native)
                break
            await asyncio.sleep(PING_SECONDS)
    async with socket:
        # What is made once, at the first frames, is not what is measured.
        await ping(socket, seconds / 4)
        quiet = await ping(socket, seconds)
        before = memory_bytes(pid)
        watching = asyncio.create_task(most_memory(pid))
        async with flooding(url, FLOODS[flood], count) as size:
            flooded = await ping(socket, seconds)
        watching.cancel()
        grown = None if before is None else (await watching - before) / 2**20
    return Row(
        flood=flood,
        frames=count,
        bytes_per_frame=round(size / count, 1),
        quiet_p99_milliseconds=p99(quiet),
        flooded_p99_milliseconds=p99(flooded),
        flooded_max_milliseconds=round(max(flooded), 1),
        grown_megabytes=None if grown is None else round(grown, 1),
    )


def show(rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Print a line for each flood, and the machine."""
    table = Table(title="flood: one client sends without end, another one pings")
    table.add_column("frames of")
    for heading in ("frames", "bytes each", "p99 ms before", "p99 ms", "max ms", "MB more", "met"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.flood,
            f"{row.frames:,}",
            f"{row.bytes_per_frame:g}",
            f"{row.quiet_p99_milliseconds:g}",
            f"{row.flooded_p99_milliseconds:g}",
            f"{row.flooded_max_milliseconds:g}",
            "" if row.grown_megabytes is None else f"{row.grown_megabytes:g}",
            "yes" if row.is_met else "[bold red]no[/]",
        )
    console = make_console(TABLE_COLUMNS)
    console.print(table)
    console.print(machine_text(machine), highlight=False)


@click.command()
@options.number("frames", 30_000, 1, "Of each flood.")
@options.seconds(10.0, "Of pings, before and in each flood.")
@options.quick
@options.json_file
def main(frames: int, seconds: float, quick: bool, json_file: Path | None) -> None:
    """Flood a server with frames of each kind.

    Fails if the others' 99th percentile more than doubles, or the memory grows by over 50 MB.
    """
    if quick:
        frames, seconds = min(frames, 2_000), min(seconds, 1.0)
    machine = describe_machine()
    rows = []
    with RunProgress(len(FLOODS)) as progress:
        for flood in FLOODS:
            port = free_port()
            with progress.step(flood), process(serve, port) as server:
                rows.append(asyncio.run(measure(flood, port, server.pid, frames, seconds)))
    show(rows, machine)
    if json_file is not None:
        members = [{**msgspec.to_builtins(row), "is_met": row.is_met} for row in rows]
        json_file.write_bytes(
            encode_json({"scenario": "flood", "machine": machine, "rows": members})
        )
    sys.exit(0 if quick or all(row.is_met for row in rows) else 1)


if __name__ == "__main__":
    main()
