"""What the server may answer to a write: each is survived, and nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendRefused, BackendUnavailable
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import RedisServer, free_port

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


def test_missing_rights_are_refused_in_a_sentence(server: RedisServer, admin: redis.Redis) -> None:
    admin.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@read")
    url = server.url.replace("redis://", "redis://reader:secret@")
    backend = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
    with pytest.raises(BackendRefused, match="rights"):
        backend.publish([Author().draft(TOPIC)])
    backend.close_writer()


def test_a_wrong_password_is_refused_in_a_sentence(server: RedisServer) -> None:
    url = server.url.replace("redis://", "redis://nobody:wrong@")
    backend = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
    with pytest.raises(BackendRefused, match="rights"):
        backend.publish([Author().draft(TOPIC)])
    backend.close_writer()
