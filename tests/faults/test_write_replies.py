"""The possible responses to a write: after each one nothing is lost or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
import redis

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Cursor, Outcome, Receipt
from semantik_realtime.errors import AppendUncertain, BackendRefused, BackendUnavailable
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import RedisServer, free_port
from semantik_realtime.testing.tcp_proxy import TcpProxy

pytestmark = pytest.mark.valkey
TOPIC = "job:1"


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(server.url)
    yield client
    client.close()


@pytest.fixture
def backend(server: RedisServer) -> Iterator[RedisBackend]:
    made = RedisBackend(load_settings(url=server.url, timeout_seconds=1.0))
    yield made
    made.close_writer()


def test_forgotten_scripts_are_loaded_again(backend: RedisBackend, admin: redis.Redis) -> None:
    author = Author()
    backend.publish([author.draft(TOPIC)])
    admin.script_flush()
    [receipt] = backend.publish([author.draft(TOPIC)])
    assert receipt.outcome is Outcome.APPENDED
    assert receipt.cursor is not None
    assert receipt.cursor.offset == 2


async def test_a_write_whose_response_is_lost_is_uncertain_and_sending_it_again_is_safe(
    server: RedisServer, backend: RedisBackend
) -> None:
    author = Author()
    async with TcpProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        remote = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
        # Connect and load the scripts first, so that the next response is that to the drafts.
        await asyncio.to_thread(remote.publish, [author.draft(TOPIC)])
        drafts = [author.draft(TOPIC, data={"n": n}) for n in range(3)]
        proxy.drops_responses = True
        with pytest.raises(AppendUncertain):
            await asyncio.to_thread(remote.publish, drafts)
        proxy.drops_responses = False
        # Another producer appends in between.
        backend.publish([Author().draft(TOPIC)])
        again = await asyncio.to_thread(remote.publish, drafts)
        remote.close_writer()
    await backend.open()
    log = await backend.snapshot(TOPIC, None, 100)
    await backend.close()
    assert log.cursor is not None
    assert [event.offset for event in log.events] == [1, 2, 3, 4, 5]
    assert [event.head().data for event in log.events[1:4]] == [
        msgspec.Raw(b'{"n":%d}' % n) for n in range(3)
    ]
    assert again == [
        Receipt(Outcome.DUPLICATE, Cursor(log.cursor.epoch, event.offset, event.chain))
        for event in log.events[1:4]
    ]


def test_a_full_server_is_unavailable_until_there_is_room(
    backend: RedisBackend, admin: redis.Redis
) -> None:
    author = Author()
    backend.publish([author.draft(TOPIC)])
    admin.config_set("maxmemory", "1mb")
    draft = author.draft(TOPIC)
    with pytest.raises(BackendUnavailable, match=r"cannot write now"):
        backend.publish([draft])
    admin.config_set("maxmemory", "0")
    assert backend.publish([draft])[0].outcome is Outcome.APPENDED


def test_a_replica_is_unavailable_until_it_is_promoted(
    backend: RedisBackend, admin: redis.Redis
) -> None:
    author = Author()
    backend.publish([author.draft(TOPIC)])
    admin.replicaof("127.0.0.1", free_port())  # type: ignore[no-untyped-call]
    draft = author.draft(TOPIC)
    with pytest.raises(BackendUnavailable):
        backend.publish([draft])
    admin.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
    assert backend.publish([draft])[0].outcome is Outcome.APPENDED


def test_missing_rights_are_refused_with_a_readable_message(
    server: RedisServer, admin: redis.Redis
) -> None:
    admin.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@read")
    url = server.url.replace("redis://", "redis://reader:secret@")
    backend = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
    with pytest.raises(BackendRefused, match="rights"):
        backend.publish([Author().draft(TOPIC)])
    backend.close_writer()


def test_a_wrong_password_is_refused_with_a_readable_message(server: RedisServer) -> None:
    url = server.url.replace("redis://", "redis://nobody:wrong@")
    backend = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
    with pytest.raises(BackendRefused, match="rights"):
        backend.publish([Author().draft(TOPIC)])
    backend.close_writer()
