"""A client that sends more than it may is slowed and then closed; nobody else notices it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from clients import CompatClient, NativeClient
from configuration import make_settings, token
from failing_backend import FailingBackend
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, ServerProcess, serve_realtime, server_processes
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.protocol import State
from websockets.uri import parse_uri

from semantik_realtime.core.limits import AUTH_UNITS, MAX_READING_JOINS
from semantik_realtime.core.session import SessionLimits
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.web.endpoints import inbox
from semantik_realtime.web.hub.connection import Connection

LIMITS = SessionLimits()
TOPICS = {f"job:{number}": None for number in range(LIMITS.topics)}
SUBSCRIBE = json.dumps({"op": "subscribe", "topics": TOPICS, "history": 1000})
UNSUBSCRIBE = json.dumps({"op": "unsubscribe", "topics": list(TOPICS)})
FLOODS = {
    "subscribe": [SUBSCRIBE],
    "subscribe and unsubscribe": [SUBSCRIBE, UNSUBSCRIBE],
    "auth": [json.dumps({"op": "auth", "token": token()})],
    "ping": ['{"op":"ping"}'],
    "unknown op": ['{"op":"dance"}'],
    "compatibility wire": ["ping"],
}


def deflated(protocol: ClientProtocol, frames: Sequence[str], count: int) -> bytes:
    """Return ``count`` frames as a client with compression sends them: repeated ones are tiny."""
    sent = bytearray()
    for number in range(count):
        protocol.send_text(frames[number % len(frames)].encode())
        sent += b"".join(protocol.data_to_send())
    return bytes(sent)


@contextlib.asynccontextmanager
async def flooding(url: str, frames: Sequence[str], count: int) -> AsyncIterator[None]:
    """Send ``count`` frames as fast as the server reads them, and read what it answers."""
    uri = parse_uri(url)
    deflate = ClientPerMessageDeflateFactory(compress_settings={"memLevel": 9})
    protocol = ClientProtocol(uri, extensions=[deflate])
    reader, writer = await asyncio.open_connection("127.0.0.1", uri.port)
    protocol.send_request(protocol.connect())
    writer.write(b"".join(protocol.data_to_send()))
    while protocol.state is State.CONNECTING:
        protocol.receive_data(await reader.read(2**16))
    flood = await asyncio.to_thread(deflated, protocol, frames, count)

    async def discard() -> None:
        with contextlib.suppress(OSError):
            while await reader.read(2**16):
                pass

    reading = asyncio.create_task(discard())
    writer.write(flood)
    try:
        yield
    finally:
        reading.cancel()
        writer.transport.abort()


def memory_bytes(process: ServerProcess) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
async def test_no_flood_of_frames_occupies_the_server() -> None:
    """Before there was an allowance, 4000 frames of the first kind took 9 s and 400 MB."""
    # Everybody may watch everything, so that each topic is read too.
    settings = make_settings(
        "", backend="memory", max_connections=50, disable_auth=True, environment="test"
    )
    async with (
        server_processes(1, settings) as [server],
        NativeClient(server, user="by") as other,
    ):
        await other.wait_for("welcome")
        before = memory_bytes(server)
        for name, frames in FLOODS.items():
            compat = name == "compatibility wire"
            url = f"{server.compat_url('1')}" if compat else server.native_url
            async with flooding(f"{url}?token={token()}", frames, 30_000):
                for _ in range(20):
                    pongs, asked_at = len(other.ops("pong")), time.monotonic()
                    await other.send({"op": "ping"})
                    await other.wait_for("pong", pongs + 1, seconds=30)
                    assert time.monotonic() - asked_at < 10, name
                    assert memory_bytes(server) - before < 150 * 2**20, name
                    await asyncio.sleep(0.05)


@pytest.fixture
def quick_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "FLOOD_SECONDS", 0.5)


@pytest.mark.usefixtures("quick_to_close")
async def test_a_client_that_goes_on_sending_too_much_is_closed_with_4420(
    web_server: InProcessServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        with contextlib.suppress(ConnectionClosed):
            for _ in range(10_000):
                await client.send({"op": "ping"})
        await until(lambda: client.closed, 30)
        assert client.closed == 4420
        # It was served at its rate until then, and the rest was not read.
        assert LIMITS.burst <= len(client.ops("pong")) < 5_000
    assert web_server.rt.web.hub.stats.closed["flood"] == 1
    [line] = [r for r in caplog.records if "sends too many frames" in r.getMessage()]
    assert line.levelno == logging.WARNING
    assert token() not in line.getMessage()


@pytest.mark.usefixtures("quick_to_close")
async def test_a_flood_before_the_credential_ends_too(web_server: InProcessServer) -> None:
    async with NativeClient(web_server, query="") as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(10_000):
                await client.send({"op": "ping"})
        await until(lambda: client.closed, 30)
        assert client.closed == 4420
        assert all(frame["code"] == "unauthenticated" for frame in client.frames)


@pytest.mark.usefixtures("quick_to_close")
async def test_a_flood_on_the_compatibility_wire_is_closed_for_good(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1")) as client:
        await client.wait_for("current_state")
        with contextlib.suppress(ConnectionClosed):
            for _ in range(10_000):
                await client.send("ping")
        assert await client.wait_closed() == 1008


async def test_the_welcome_states_what_a_client_may_send(web_server: InProcessServer) -> None:
    async with NativeClient(web_server) as client:
        limits = (await client.wait_for("welcome"))["limits"]
        assert (limits["burst"], limits["per_second"]) == (LIMITS.burst, LIMITS.per_second)


async def test_a_client_that_was_too_fast_for_a_moment_gets_every_answer(
    web_server: InProcessServer,
) -> None:
    count = LIMITS.burst + LIMITS.per_second
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        for _ in range(count):
            await client.send({"op": "ping"})
        await client.wait_for("pong", count, seconds=30)
        assert client.closed is None


def tasks_of(name: str) -> int:
    return sum(task.get_name() == f"semantik-realtime-{name}" for task in asyncio.all_tasks())


@contextlib.asynccontextmanager
async def gated_server(
    topics: Sequence[str],
) -> AsyncIterator[tuple[InProcessServer, FailingBackend]]:
    """Run a server that knows ``topics``, and whose backend holds readings back at its gate."""
    settings = make_settings("", backend="memory")
    backend = FailingBackend(settings)
    async with serve_realtime(settings, backend=backend) as server:
        publisher = Publisher(settings, server.rt)
        for topic in topics:
            await publisher.publish(topic, 3)
        backend.gate.clear()
        yield server, backend
        backend.gate.set()


async def test_a_topic_that_is_being_joined_gets_no_second_task() -> None:
    async with gated_server(["job:1"]) as (server, backend), NativeClient(server) as client:
        await client.wait_for("welcome")
        for history in range(40):
            await client.send({"op": "subscribe", "topics": {"job:1": None}, "history": history})
        await client.send({"op": "ping"})
        await client.wait_for("pong")
        assert tasks_of("join") == 1
        backend.gate.set()
        await client.wait_for("sync")
        # The answer is the one to the last question.
        await until(lambda: tasks_of("join") == 0)
        assert [len(sync["events"]) for sync in client.syncs] == [3]


async def test_a_connection_reads_few_topics_at_once_and_all_in_the_end() -> None:
    topics = [f"job:{number}" for number in range(3 * MAX_READING_JOINS)]
    async with gated_server(topics) as (server, backend), NativeClient(server, *topics) as client:
        await until(lambda: tasks_of("snapshot") == MAX_READING_JOINS)
        await client.send({"op": "ping"})
        await client.wait_for("pong")
        assert tasks_of("snapshot") == MAX_READING_JOINS
        backend.gate.set()
        await client.wait_synced()


async def test_a_client_that_does_not_read_is_sent_no_further_answers(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    for _ in range(40):
        await web_server.rt.publish("job:1", "log", key="1", data={"text": "x" * 60_000})
    client = NativeClient(web_server, "job:1", compression=None)
    await client.open()
    await client.wait_synced()
    [connection] = web_server.rt.web.hub.connections
    assert isinstance(connection, Connection)
    assert client.socket is not None
    client.socket.transport.pause_reading()
    for history in range(1000, 900, -1):
        await client.send({"op": "subscribe", "topics": {"job:1": None}, "history": history})
        # So that each is joined by itself.
        await until(lambda: connection.topics == {"job:1"})
        await asyncio.sleep(0.005)
    # Each answer has 2.4 MB.
    assert connection.outbox_bytes < 16 * 2**20
    assert connection.ended is None
    client.socket.transport.resume_reading()
    await until(lambda: not connection.outbox_bytes, 20)
    await client.close()


async def test_a_repeated_credential_reaches_the_host_a_few_times_and_one_at_a_time() -> None:
    calls, running, most = 0, 0, 0

    async def authenticate(credentials: Credentials) -> str:
        nonlocal calls, running, most
        calls, running = calls + 1, running + 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return "7"

    settings = make_settings("", backend="memory")
    plugin = host_with(authenticate)
    async with (
        serve_realtime(settings, plugins=[plugin]) as server,
        NativeClient(server) as client,
    ):
        await client.wait_for("welcome")
        began = time.monotonic()
        for _ in range(200):
            await client.send({"op": "auth", "token": token()})
        await until(lambda: calls > LIMITS.burst // AUTH_UNITS)
        await asyncio.sleep(1)
        seconds = time.monotonic() - began
        # And the handshake, and the last one, which may exceed what is left.
        assert calls <= 2 + (LIMITS.burst + LIMITS.per_second * seconds) / AUTH_UNITS
        assert most == 1
        # Without a close frame, which would wait behind the rest of the flood.
        await client.abort()


def host_with(authenticate: Callable[..., object]) -> object:
    class Host:
        @hookimpl
        async def authenticate(self, credentials: Credentials) -> object:
            return await authenticate(credentials)  # type: ignore[misc]

    return Host()


@pytest.mark.every_backend
async def test_topics_that_are_left_while_they_are_joined_are_no_outage(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:last", 1)
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        for number in range(20):
            topics = [f"job:{number}-{index}" for index in range(5)]
            await publisher_knows(publisher, topics)
            await client.send({"op": "subscribe", "topics": dict.fromkeys(topics)})
            await client.send({"op": "unsubscribe", "topics": topics})
        await client.subscribe("job:last")
        await client.wait_synced("job:last")
        assert not client.ops("degraded")
    assert web_server.rt.web.outage.since is None


async def publisher_knows(publisher: Publisher, topics: Sequence[str]) -> None:
    for topic in topics:
        publisher.emit(topic)
    await publisher.flush()
