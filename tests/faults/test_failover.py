"""The address moves from a demoted primary to its replica while every connection stays open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from clients import NativeClient
from configuration import make_settings
from failover import Pair, serve_pair
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.backends.redis import read_pool as read_pool_module
from semantik_realtime.backends.redis import subscriber as subscriber_module
from semantik_realtime.backends.redis import writer as writer_module
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.testing.contract import Author, Recorder

TOPIC = "job:1"
MOVE_SECONDS = 15.0


@pytest.fixture
def program() -> str:
    return "valkey"


@pytest.fixture
async def pair(program: str) -> AsyncIterator[Pair]:
    async with serve_pair(program) as made:
        yield made


@pytest.fixture
def settings(pair: Pair) -> Settings:
    return make_settings(pair.url, backend="redis", timeout_seconds=1.0, tops_seconds=1.0)


@pytest.fixture
async def backend(pair: Pair) -> AsyncIterator[RedisBackend]:
    made = RedisBackend(load_settings(url=pair.url, timeout_seconds=1.0))
    yield made
    await made.close()
    made.close_writer()


async def publish(backend: RedisBackend, author: Author, topic: str = TOPIC) -> Any:
    [receipt] = await asyncio.to_thread(backend.publish, [author.draft(topic, state={"n": 1})])
    return receipt


def offset_on(pair: Pair, place: int, prefix: str, topic: str = TOPIC) -> int:
    """Return the offset of a topic on one of the servers."""
    return int(pair.admins[place].hget(f"{prefix}:{{{topic}}}:meta", "offset") or 0)


async def answered(call: Callable[[], Any]) -> Any:
    """Return the first answer of ``call`` that is not None."""
    deadline = asyncio.get_running_loop().time() + MOVE_SECONDS
    while (answer := await call()) is None:
        assert asyncio.get_running_loop().time() < deadline, "no answer"
        await asyncio.sleep(0.05)
    return answer


@pytest.mark.valkey
async def test_a_writer_leaves_a_demoted_primary_with_its_first_refusal(
    pair: Pair, backend: RedisBackend
) -> None:
    author = Author()
    await publish(backend, author)
    pair.promote()
    pair.demote()
    pair.move()
    with pytest.raises(BackendUnavailable, match=r"it is a replica.*READONLY"):
        await publish(backend, author)
    await publish(backend, Author())
    assert offset_on(pair, 1, "semantik") == 2


@pytest.mark.valkey
async def test_an_emitter_sends_what_waits_to_the_new_primary(
    pair: Pair, settings: Settings
) -> None:
    publisher = Publisher(settings)
    await publisher.publish(TOPIC, 3)
    pair.promote()
    pair.demote()
    for _ in range(50):
        publisher.emit(TOPIC)
    pair.move()
    await publisher.flush(MOVE_SECONDS)
    assert publisher.rt.emitter.waiting == 0
    assert offset_on(pair, 1, settings.prefix) == 53
    publisher.close()


@pytest.fixture
async def web_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InProcessServer]:
    monkeypatch.setattr(subscriber_module, "CANARY_SECONDS", 1.0)
    async with serve_realtime(settings) as made:
        yield made


@pytest.mark.parametrize(
    ("program", "old"),
    [
        pytest.param("valkey", "isolated", marks=pytest.mark.valkey),
        pytest.param("redis", "isolated", marks=pytest.mark.redis),
        pytest.param("valkey", "demoted", marks=pytest.mark.valkey),
        pytest.param("valkey", "hanging", marks=pytest.mark.valkey),
    ],
)
async def test_pages_follow_the_writer_to_the_new_primary(
    pair: Pair, settings: Settings, web_server: InProcessServer, old: str
) -> None:
    publisher = Publisher(settings)
    await publisher.publish(TOPIC, 3)
    async with NativeClient(web_server, TOPIC) as client, web_server.http_client() as http:
        await client.wait_synced()
        pair.promote()
        pair.move()
        if old == "isolated":
            pair.isolate()
        elif old == "demoted":
            pair.demote()
        else:
            pair.first.pause()
        await publisher.publish(TOPIC, 13)
        assert offset_on(pair, 1, settings.prefix) == 16
        # The web server's own writes find the new one, and then its reads and events do.
        await client.wait_for_offset(TOPIC, 16, MOVE_SECONDS)
        await publisher.publish(TOPIC, 1)
        await client.wait_for_offset(TOPIC, 17, MOVE_SECONDS)

        async def current() -> object:
            answer = await http.get("/realtime/jobs/1")
            if answer.status_code == 503:
                return None
            return answer.json()["states"]["1"]["progress"]["current"]

        # The server may notice late that its own writer is refused, and be degraded for a moment.
        assert await answered(current) == 17
        await until(lambda: web_server.rt.web.outage.since is None, MOVE_SECONDS, "no outage")
        assert client.bad_batches == []
    publisher.close()


@pytest.mark.valkey
async def test_an_address_that_moves_while_the_old_primary_accepts_writes_is_followed(
    pair: Pair,
    settings: Settings,
    web_server: InProcessServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing is refused and nothing breaks: only the age of the connections ends them.
    for module in (writer_module, read_pool_module):
        monkeypatch.setattr(module, "CONNECTION_SECONDS", 0.5)
    publisher = Publisher(settings)
    await publisher.publish(TOPIC, 3)
    async with NativeClient(web_server, TOPIC) as client:
        await client.wait_synced()
        pair.promote()
        pair.move()

        async def moved() -> object:
            await publisher.publish(TOPIC, 1)
            return True if offset_on(pair, 1, settings.prefix) > 3 else None

        await answered(moved)

        def shown() -> object:
            return client.views[TOPIC].states["1"]["progress"]["current"]

        await until(lambda: shown() == publisher.count[TOPIC], MOVE_SECONDS, "the newest state")
    publisher.close()


@pytest.mark.valkey
async def test_reads_from_a_server_that_does_not_get_the_writes_are_an_outage(
    pair: Pair, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The writer keeps its connection to the first server, as a proxy may do that splits reads
    # from writes; new connections lead to a replica that nobody writes to any more.
    monkeypatch.setattr(subscriber_module, "CANARY_SECONDS", 0.2)
    author = Author()
    await backend.open()
    await publish(backend, author)
    await backend.subscribe(TOPIC, Recorder())
    pair.admins[1].replicaof("127.0.0.1", pair.proxy.port + 1)
    pair.move()
    reader: Any = backend._reader
    reader.renew(backend._topology.home)
    with pytest.raises(BackendUnavailable, match=r"does not have what this process has written"):
        await succeeds_not(lambda: backend.tops([TOPIC]))


async def succeeds_not(call: Callable[[], Any]) -> None:
    """Call until it raises; fail after a while."""
    deadline = asyncio.get_running_loop().time() + MOVE_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        await call()
        await asyncio.sleep(0.05)
