"""A promoted replica lost the last events and uses their offsets again: every reader finds out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from clients import NativeClient
from configuration import SECRET
from publisher import Publisher
from replica import TOPIC, Replica
from waiting import until
from web_servers import InProcessServer, serve_realtime, without_delivery

from semantik_realtime.config import Settings


@pytest.fixture
def backend() -> Replica:
    return Replica()


@pytest.fixture
async def web_server(backend: Replica) -> AsyncIterator[InProcessServer]:
    # Only what a test does makes the server look for lost events.
    settings = Settings(backend="memory", url=None, jwt_secret=SECRET, tops_seconds=3600)
    async with serve_realtime(settings, backend=backend) as made:
        yield made


@pytest.fixture
async def publisher(web_server: InProcessServer) -> Publisher:
    made = Publisher(web_server.rt.settings, web_server.rt)
    await made.publish(TOPIC, 1)
    return made


@pytest.fixture
async def client(web_server: InProcessServer, publisher: Publisher) -> AsyncIterator[NativeClient]:
    async with NativeClient(web_server, TOPIC) as made:
        yield made
        assert made.connections == 1
        assert not made.bad_batches


async def rewrite(
    backend: Replica, web_server: InProcessServer, publisher: Publisher, client: NativeClient
) -> None:
    """Show a client 12 events, lose two of them, and append two others that nobody receives."""
    await publisher.publish(TOPIC, 9)
    backend.remember()
    await publisher.publish(TOPIC, 2)
    await client.wait_for_offset(TOPIC, 12)
    async with without_delivery(web_server, TOPIC):
        backend.promote()
        publisher.rt.emitter._queue.producer = "after"
        publisher.count[TOPIC] = 100
        await publisher.publish(TOPIC, 2)
    assert client.views[TOPIC].offset == backend.end().offset == 12
    assert client.views[TOPIC].cursor != str(backend.end())


async def test_a_live_event_that_follows_by_its_offset_alone_is_not_applied(
    backend: Replica, web_server: InProcessServer, publisher: Publisher, client: NativeClient
) -> None:
    await rewrite(backend, web_server, publisher, client)
    await publisher.publish(TOPIC, 1)
    await until(lambda: client.views[TOPIC].offset == 13)
    assert client.syncs[-1]["reason"] == "diverged"
    assert client.views[TOPIC].cursor == str(backend.end())
    assert 102 not in client.numbers(TOPIC)
    assert web_server.rt.web.hub.stats.resyncs["diverged"] == 1


async def test_tops_at_the_same_offset_reveal_another_history(
    backend: Replica, web_server: InProcessServer, publisher: Publisher, client: NativeClient
) -> None:
    await rewrite(backend, web_server, publisher, client)
    await web_server.rt.web.hub.check_tops()
    await until(lambda: client.views[TOPIC].cursor == str(backend.end()))
    assert client.syncs[-1]["reason"] == "diverged"
    assert client.views[TOPIC].states["1"]["progress"]["current"] == 102


async def test_after_an_outage_every_topic_is_read_again_though_its_end_is_the_same(
    backend: Replica, web_server: InProcessServer, publisher: Publisher, client: NativeClient
) -> None:
    await publisher.publish(TOPIC, 1)
    await client.wait_for_offset(TOPIC, 2)
    outage, stats = web_server.rt.web.outage, web_server.rt.web.hub.stats
    backend.fail()
    await until(lambda: outage.since is not None)
    backend.recover()
    await client.wait_for("restored")
    assert stats.resyncs["outage"] == 1
    assert stats.resyncs["tail"] == 0
