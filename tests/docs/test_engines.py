"""The claims of docs/choosing-an-engine.md about Redis and Valkey, on a real Valkey server.

The claims about NATS are tested in its plugin, those about SQLite beside the example.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.resume import Reason
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Snapshot, Status
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    free_port,
    running,
    valkey_program,
)

TOPIC = "job:1"
EVENTS = 200
DEADLINE_SECONDS = 20

EACH_SECOND = ("--appendfsync", "everysec")
NOTHING = ("--appendonly", "no")


@pytest.fixture
def start() -> Iterator[Callable[..., RedisServer]]:
    """Start a server with the given options."""
    with ExitStack() as stack:

        def start_one(*options: str) -> RedisServer:
            try:
                program = valkey_program()
            except ServerMissing as error:
                pytest.skip(str(error))
            return stack.enter_context(running(RedisServer(program, options=options)))

        yield start_one


def publish(server: RedisServer, count: int = EVENTS) -> list[Cursor]:
    """Append ``count`` events one by one, and return their cursors."""
    backend: Any = load_backend(load_settings(url=server.url))
    author = Author()
    try:
        drafts = [author.draft(TOPIC, state={"n": n, "by": author.name}) for n in range(count)]
        return [backend.publish([draft])[0].cursor for draft in drafts]
    finally:
        backend.close_writer()


async def look(server: RedisServer, after: Cursor | None) -> Snapshot:
    backend: Any = load_backend(load_settings(url=server.url))
    await backend.open()
    try:
        snapshot: Snapshot = await backend.snapshot(TOPIC, after, 1000)
        return snapshot
    finally:
        await backend.close()


async def test_with_an_append_only_file_a_kill_loses_no_acknowledged_event(
    start: Callable[..., RedisServer],
) -> None:
    server = start(*EACH_SECOND)
    cursors = publish(server)
    server.kill()
    server.start()
    snapshot = await look(server, cursors[0])
    assert snapshot.reason is None
    assert snapshot.cursor == cursors[-1]
    assert len(snapshot.events) == EVENTS - 1


async def test_without_persistence_a_kill_loses_all_events_and_the_cursor_reveals_it(
    start: Callable[..., RedisServer],
) -> None:
    server = start(*NOTHING)
    cursors = publish(server)
    server.kill()
    server.start()
    assert (await look(server, cursors[-1])).cursor is None
    publish(server, 1)
    assert (await look(server, cursors[-1])).reason is Reason.EPOCH


async def test_the_cursor_reveals_the_promotion_of_a_replica_that_was_behind(
    start: Callable[..., RedisServer],
) -> None:
    first = start(*EACH_SECOND, "--repl-diskless-sync-delay", "0")
    second = start(*EACH_SECOND)
    master, replica = redis.Redis.from_url(first.url), redis.Redis.from_url(second.url)
    replica.replicaof("127.0.0.1", first.port)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while replica.info("replication")["master_link_status"] != "up":
            await asyncio.sleep(0.05)
    shared = publish(first, 5)
    assert master.wait(1, 1000 * DEADLINE_SECONDS) == 1
    # Cut it off: no server listens on the port of its new master.
    replica.replicaof("127.0.0.1", free_port())
    lost = publish(first, 5)
    first.kill()
    replica.replicaof("NO", "ONE")
    master.close()
    replica.close()
    assert (await look(second, lost[-1])).reason is Reason.AHEAD
    publish(second, 10)
    assert (await look(second, lost[-1])).reason is Reason.DIVERGED
    # A client that had received none of the lost events resumes with a replay.
    snapshot = await look(second, shared[-1])
    assert snapshot.reason is None
    assert len(snapshot.events) == 10


def test_a_server_that_requires_a_replica_refuses_writes_without_one(
    start: Callable[..., RedisServer],
) -> None:
    server = start("--min-replicas-to-write", "1")
    with pytest.raises(BackendUnavailable, match="NOREPLICAS"):
        publish(server, 1)


async def test_a_full_server_refuses_writes_and_answers_reads(
    start: Callable[..., RedisServer],
) -> None:
    server = start("--maxmemory-policy", "noeviction")
    cursors = publish(server, 3)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", 1)
    with pytest.raises(BackendUnavailable):
        publish(server, 1)
    assert len((await look(server, cursors[0])).events) == 2


async def test_with_an_eviction_policy_topics_are_lost_and_the_status_warns(
    start: Callable[..., RedisServer],
) -> None:
    server = start("--maxmemory", "6mb", "--maxmemory-policy", "volatile-lru")
    backend: Any = load_backend(load_settings(url=server.url))
    author = Author()
    topics = [f"job:{n}" for n in range(2500)]
    for place in range(0, len(topics), 100):
        backend.publish([author.draft(name) for name in topics[place : place + 100]])
    backend.close_writer()
    await backend.open()
    known = await backend.tops(topics)
    status: Status = await backend.status()
    await backend.close()
    assert 0 < len(known) < len(topics)
    assert any("volatile-lru" in warning for warning in status.warnings)
