"""What waits for a connection is counted in bytes, and nothing is produced ahead of the client."""

from __future__ import annotations

import asyncio

import pytest
from clients import NativeClient
from configuration import token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer
from websockets.asyncio.client import connect

from semantik_realtime.core import limits
from semantik_realtime.core.limits import EVICT_ABOVE_BYTES, MAX_POSTED, MAX_POSTED_BYTES
from semantik_realtime.web.endpoints.sse import PIECE_BYTES, _pieces
from semantik_realtime.web.hub.outbox import YIELD_FRAMES, Outbox


async def has_room(outbox: Outbox) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await outbox.wait_for_room()
    except TimeoutError:
        return False
    return True


async def test_a_frame_is_forgotten_when_it_is_sent_and_not_with_the_last_one() -> None:
    outbox = Outbox()
    big = "x" * EVICT_ABOVE_BYTES
    outbox.add([big, "y" * 10])
    assert not await has_room(outbox)
    assert outbox.collect()[0] is big
    assert outbox.is_empty
    assert outbox.bytes == EVICT_ABOVE_BYTES + 10
    assert not await has_room(outbox)
    await outbox.sent()
    assert outbox.bytes == 10
    assert await has_room(outbox)
    await outbox.sent()
    assert outbox.bytes == 0


async def test_others_get_a_turn_while_many_frames_are_sent() -> None:
    outbox, turns = Outbox(), 0

    async def other() -> None:
        nonlocal turns
        while outbox.sending:
            turns += 1
            await asyncio.sleep(0)

    outbox.add(["x"] * MAX_POSTED)
    outbox.collect()
    task = asyncio.create_task(other())
    while outbox.sending:
        await outbox.sent()
    assert turns >= MAX_POSTED // YIELD_FRAMES - 1
    await task


async def test_a_client_that_vanishes_before_its_history_leaves_no_lines_in_the_log(
    web_server: InProcessServer, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish("job:1", 100)
    url = f"{web_server.compat_url('1')}?token={token()}"
    for _ in range(10):
        async with connect(url) as socket:
            await socket.recv()
            # Unread bytes make the kernel refuse those that follow.
            socket.transport.abort()
    await until(lambda: not web_server.rt.web.hub.connections)
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_too_many_frames_or_bytes_are_refused() -> None:
    outbox = Outbox()
    assert all(outbox.add(["x"]) for _ in range(MAX_POSTED))
    assert not outbox.add(["x"])
    outbox = Outbox()
    # The last one may exceed the limit.
    assert outbox.add(["x" * (MAX_POSTED_BYTES + 1)])
    assert not outbox.add(["x"])


@pytest.mark.parametrize("length", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 300_000])
def test_the_pieces_of_a_frame_are_small_and_together_are_the_event(length: int) -> None:
    frame = ("{\n é\r}" * length)[:length]
    pieces = list(_pieces("id: 7\ndata: ", frame))
    assert max(map(len, pieces)) <= 2 * PIECE_BYTES + 20
    line = frame.replace("\n", " ").replace("\r", " ")
    assert b"".join(pieces).decode() == f"id: 7\ndata: {line}\n\n"
    assert len(pieces) == max(1, -(-length // PIECE_BYTES))


async def test_many_topics_are_collected_in_parts_and_each_event_arrives(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COLLECT_BYTES", 1000)
    topics = [f"job:{number}" for number in range(20)]
    for topic in topics:
        await publisher.publish(topic, 1)
    async with NativeClient(web_server, *topics) as client:
        await client.wait_synced()
        [made] = web_server.rt.web.hub.connections
        before = len(client.ops("events"))
        # All topics have events before the connection's task runs.
        for _ in range(5):
            for topic in topics:
                publisher.emit(topic)
        await publisher.flush()
        for topic in topics:
            await client.wait_for_offset(topic, 6)
            assert client.numbers(topic) == [1, 2, 3, 4, 5]
        assert client.bad_batches == []
        assert client.resubscribed == 0
        assert len(client.ops("events")) - before > 1
        await until(lambda: made.outbox_bytes == 0)
