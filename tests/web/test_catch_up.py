"""What arrives at once reaches a client that reads: whole, and in pieces."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from clients import NativeClient
from publisher import Publisher
from scripted_channel import TOPIC, Client, Log, ScriptedIO
from web_servers import InProcessServer

from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Event, link, with_offset
from semantik_realtime.core.limits import EVICT_ABOVE_BYTES, PIECE_BYTES, SPARE_BYTES
from semantik_realtime.web.hub.drains import Drains
from semantik_realtime.web.wires.wire import Outgoing, in_pieces

SIZE = 50_000


def keep_busy(seconds: float) -> None:
    """Let nothing else run on the loop."""
    time.sleep(seconds)


def append_big(log: Log, count: int) -> Any:
    """Append events of `SIZE` bytes; return them as a live batch."""
    prev, batch = log.cursor, []
    log.is_known = True
    for _ in range(count):
        state = {"text": "x" * SIZE}
        [draft] = make_drafts({TOPIC: None}, "step", "", "a", state=state)
        offset, chain = log.cursor.offset + 1, link(log.cursor.chain, draft.digest)
        event = Event(offset, chain, with_offset(draft.body, offset))
        log.events.append(event)
        log.written[log.epoch, offset, chain] = json.loads(event.json)
        batch.append(event)
    return prev, batch


async def joined(log: Log) -> Client:
    io = ScriptedIO(log)
    client = Client(log, io.channel())
    joining = asyncio.create_task(client.join())
    while not joining.done():
        await asyncio.sleep(0)
        while io.readings:
            io.readings.pop().finish()
    client.collect()
    return client


async def test_a_client_that_reads_gets_more_than_a_mebibyte_that_arrives_at_once() -> None:
    log = Log()
    log.append(1)
    client = await joined(log)
    frames: list[int] = []
    encode = client.channel.outgoing

    def outgoing(*args: Any, **kwargs: Any) -> Outgoing | None:
        made = encode(*args, **kwargs)
        if made is not None:
            frames.append(len(made.frame))
        return made

    client.channel.outgoing = outgoing  # type: ignore[method-assign]
    count = 3 * EVICT_ABOVE_BYTES // SIZE
    for _ in range(count):
        client.channel.receive(*append_big(log, 1))
    for _ in range(count):
        client.collect()
    assert client.applied == count
    assert client.view.conflated == 0
    assert max(frames) < PIECE_BYTES + SIZE
    assert client.channel.buffer_bytes <= SPARE_BYTES


@pytest.mark.parametrize("is_slow", [True, False])
async def test_the_buffer_has_a_bound_for_each_kind_of_client(is_slow: bool) -> None:
    log = Log()
    log.append(1)
    client = await joined(log)
    client.is_slow = is_slow
    for _ in range(10):
        client.channel.receive(*append_big(log, 20))
    most = EVICT_ABOVE_BYTES if is_slow else SPARE_BYTES
    assert most - 21 * SIZE <= client.channel.buffer_bytes <= most
    assert client.subscription is not None
    # It reconnects, and resumes by its cursor.
    assert client.subscription.collect_events(is_slow=is_slow) is None


def test_the_events_of_many_topics_are_sent_in_frames_of_a_bounded_size() -> None:
    waiting = [
        (f"job:{number}", Outgoing(None, (), 0, b"x" * 30_000, "", None))  # type: ignore[arg-type]
        for number in range(7)
    ]
    parts = list(in_pieces(waiting))
    assert [outgoing for part in parts for outgoing in part] == waiting
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    assert list(in_pieces([])) == []


@pytest.mark.parametrize(
    ("waits", "frame_bytes", "is_slow"),
    [("for the client", 100, True), ("for the client", 2**20, False), ("for others", 100, False)],
)
async def test_a_client_is_slow_if_its_socket_takes_nothing_and_not_if_the_server_is_busy(
    waits: str, frame_bytes: int, is_slow: bool
) -> None:
    drains = Drains()

    async def send(frame: str) -> None:
        if waits == "for others":
            for _ in range(3):
                asyncio.get_running_loop().call_soon(keep_busy, 0.15)
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.45)

    assert await drains.send(drains, send, "x" * frame_bytes) is is_slow
    assert not drains.is_slow(drains, frame_bytes)


async def test_a_busy_server_leaves_out_no_events_of_a_client_that_reads(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        [connection] = web_server.rt.web.hub.connections
        send: Any = connection._send  # type: ignore[attr-defined]

        async def send_late(frame: str) -> None:
            # Something else keeps the loop busy while the frame is sent.
            keep_busy(0.1)
            await asyncio.sleep(0)
            keep_busy(0.2)
            await send(frame)

        connection._send = send_late  # type: ignore[attr-defined]
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        connection._send = send  # type: ignore[attr-defined]
        for number in range(400):
            publisher.emit("job:1", state={"status": "running", "n": number, "x": "y" * 400})
        await publisher.flush()
        await client.wait_for_offset("job:1", 402)
        assert client.conflated == 0
        assert client.numbers("job:1") == list(range(1, 402))
        assert max(len(json.dumps(frame)) for frame in client.ops("events")) < 2 * PIECE_BYTES
