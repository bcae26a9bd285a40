"""The subscriber's connection breaks: in which order sinks are called, and how often it retries."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from semantik_realtime.backends.redis import subscriber
from semantik_realtime.backends.redis.canary import Canary
from semantik_realtime.backends.redis.subscriber import Subscriber
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.testing.contract import until

EVENT = b'e 5 41 0000002a\n{"offset":6}'


class Connection:
    """A connection to a server that publishes an event right after each confirmation."""

    def __init__(self, *, publishes: bool = True, is_refused: bool = False) -> None:
        self.publishes = publishes
        self.is_refused = is_refused
        self.replies: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.is_broken = asyncio.Event()

    async def connect(self) -> None:
        if self.is_refused:
            raise ConnectionRefusedError("refused")

    async def send_command(self, name: str, *channels: bytes, check_health: bool) -> None:
        for channel in channels:
            if name == "SUBSCRIBE":
                self.replies.put_nowait([b"subscribe", channel, 1])
                if self.publishes and b"canary" not in channel:
                    self.replies.put_nowait([b"message", channel, EVENT])

    async def read_response(self) -> list[Any]:
        reply = asyncio.ensure_future(self.replies.get())
        broken = asyncio.ensure_future(self.is_broken.wait())
        await asyncio.wait([reply, broken], return_when=asyncio.FIRST_COMPLETED)
        broken.cancel()
        if reply.done():
            return reply.result()
        reply.cancel()
        raise ConnectionResetError("broken")

    async def disconnect(self, nowait: bool) -> None:
        pass


class Calls:
    """A sink that records the names of its calls."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.received: list[Event] = []

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        assert prev == Cursor("e", 5, 41)
        self.names.append("events")
        self.received += events

    def interrupted(self, topic: str) -> None:
        self.names.append("interrupted")

    def gone(self, topic: str) -> None:
        self.names.append("gone")


class Server:
    """Hands out connections, the given ones first."""

    def __init__(self, *connections: Connection) -> None:
        self.waiting = list(connections)
        self.made: list[Connection] = []

    def connect(self) -> Connection:
        self.made.append(self.waiting.pop(0) if self.waiting else Connection())
        return self.made[-1]


@pytest.fixture
async def subscribers() -> AsyncIterator[list[Subscriber]]:
    made: list[Subscriber] = []
    yield made
    for one in made:
        await one.close()


def canary(
    newest: Callable[[], Connection], before: Callable[[], Awaitable[None]] | None = None
) -> Canary:
    """Return a canary that comes back at once; ``before`` runs first."""

    async def publish(channel: str, text: str) -> None:
        if before is not None:
            await before()
        newest().replies.put_nowait([b"message", channel.encode(), text.encode()])

    return Canary(None, publish, lambda: "canary", 5.0)


async def open_on(server: Server, subscribers: list[Subscriber]) -> Subscriber:
    flying = canary(lambda: server.made[-1])
    made = Subscriber(server.connect, flying, lambda topic: topic, timeout_seconds=5.0)
    subscribers.append(made)
    await made.open()
    return made


async def test_after_a_break_a_sink_is_interrupted_before_it_receives_a_new_event(
    subscribers: list[Subscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "FIRST_RETRY_SECONDS", 0.01)
    server = Server()
    one = await open_on(server, subscribers)
    sinks = {topic: Calls() for topic in ("job:1", "job:2", "job:3")}
    for topic, sink in sinks.items():
        await one.subscribe(topic, sink)
        await until(lambda sink=sink: sink.names == ["events"], "the first event")
    server.made[-1].is_broken.set()
    for sink in sinks.values():
        await until(lambda sink=sink: len(sink.names) >= 3, "the event after the break")
        assert sink.names == ["events", "interrupted", "events"]
        assert sink.received == [Event(6, 42, b'{"offset":6}')] * 2


async def test_a_topic_that_is_subscribed_on_a_working_connection_is_not_interrupted(
    subscribers: list[Subscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "FIRST_RETRY_SECONDS", 0.01)
    server = Server()
    one = await open_on(server, subscribers)
    await one.subscribe("job:1", before := Calls())
    server.made[-1].is_broken.set()
    await until(lambda: "interrupted" in before.names, "the interruption")
    await one.subscribe("job:2", after := Calls())
    await until(lambda: after.names, "an event")
    assert after.names == ["events"]
    # Also where the topic of the broken connection was subscribed anew.
    await one.unsubscribe("job:1")
    await one.subscribe("job:1", again := Calls())
    await until(lambda: again.names, "an event")
    assert again.names == ["events"]


async def test_a_server_that_refuses_connections_is_tried_with_growing_pauses(
    subscribers: list[Subscriber], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscriber, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(subscriber, "LAST_RETRY_SECONDS", 0.04)
    server = Server(Connection(), *(Connection(is_refused=True) for _ in range(6)))
    one = await open_on(server, subscribers)
    await one.subscribe("job:1", sink := Calls())
    caplog.set_level("INFO", subscriber.__name__)
    loop = asyncio.get_running_loop()
    began = loop.time()
    server.made[-1].is_broken.set()
    await until(lambda: "interrupted" in sink.names, "the interruption")
    # Pauses of 0.01, 0.02 and five of 0.04 s, each shortened by half at most.
    assert loop.time() - began >= 0.5 * 0.23
    await until(lambda: "resubscribed" in caplog.text, "the log line")
    assert caplog.text.count("subscriber: connection lost") == 1
    assert caplog.text.count("subscriber: resubscribed topics=1") == 1


async def swallow(is_reached: asyncio.Event) -> None:
    """Wait, and return when cancelled, as `asyncio.wait_for` can until Python 3.12."""
    is_reached.set()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(20)


@pytest.mark.parametrize("place", ["command", "canary"])
def test_a_loop_ends_although_a_library_swallows_the_only_cancellation(place: str) -> None:
    async def leave() -> None:
        # As the loop of a single request: its end cancels the tasks that are left, once.
        is_reached = asyncio.Event()

        class Swallowing(Connection):
            async def send_command(self, name: str, *channels: bytes, check_health: bool) -> None:
                await super().send_command(name, *channels, check_health=check_health)
                if place == "command":
                    await swallow(is_reached)

        connection = Swallowing()
        flying = canary(lambda: connection, lambda: swallow(is_reached))
        made = Subscriber(lambda: connection, flying, lambda topic: topic, timeout_seconds=30.0)
        await made.open()
        await is_reached.wait()

    began = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - began < 10
