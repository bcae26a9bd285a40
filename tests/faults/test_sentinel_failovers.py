"""Failovers by sentinels while events flow: writes, reads and live events follow the master."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from clocked import Arrivals, Load, check
from configuration import make_settings
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.errors import BackendRefused, BackendUnavailable
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.redis_nodes import MASTER, Trio, working
from semantik_realtime.testing.servers import free_port, valkey_program

pytestmark = pytest.mark.sentinel
TOPICS = ["job:1", "job:2"]


@pytest.fixture
def trio() -> Iterator[Trio]:
    with working(Trio(valkey_program())) as made:
        yield made


@pytest.fixture
def settings(trio: Trio) -> Settings:
    return make_settings(trio.url, backend="redis", timeout_seconds=1.0, tops_seconds=3600.0)


@pytest.fixture
async def web_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings) as made:
        yield made


def roles(backend: Any) -> tuple[set[int], set[int]]:
    """Return the ports of the subscribers and of the readers."""
    nodes = set(backend._subscriptions._subscribers)
    return {node.port for node in nodes}, {node.port for node in backend._reader._clients}


@pytest.mark.parametrize("how", ["killed", "asked", "hangs"])
async def test_writes_reads_and_live_events_move_to_the_new_master(
    trio: Trio, web_server: InProcessServer, client: Arrivals, load: Load, how: str
) -> None:
    old = trio.master
    async with load.flowing():
        await until(lambda: len(client.arrivals.get("job:2", [])) > 10, 10)
        began = time.monotonic()
        match how:
            case "killed":
                old.kill()
            case "asked":
                trio.fail_over()
            case "hangs":
                old.pause()
        await until(lambda: trio.master is not old, 20)
        promoted = time.monotonic() - began
        if how == "hangs":
            # For eight seconds it takes itself for the master, and the connections to it live.
            old.resume()
            with redis.Redis(port=old.port) as admin:
                assert admin.info("replication")["role"] == "master"
        live = await load.live_again(client, began + promoted)
        print(f"{how}: promoted after {promoted:.1f} s, live {live:.1f} s later")
        assert live < 5
        port = trio.master.port
        await until(lambda: roles(web_server.rt.unguarded) == ({port}, {port}), 5)
        await asyncio.sleep(0.3)
    await check(load, client)


def test_the_master_is_named_while_one_sentinel_answers_and_used_while_none_does(
    trio: Trio,
) -> None:
    backend, author = RedisBackend(load_settings(url=trio.url, timeout_seconds=1.0)), Author()
    for sentinel in trio.sentinels[:2]:
        sentinel.kill()
    backend.publish([author.draft("job:1")])
    trio.sentinels[2].kill()
    backend._topology.doubt(next(iter(backend._topology.layout.nodes)))
    backend.publish([author.draft("job:1")])
    backend.close_writer()
    # A process that starts now has nobody to ask.
    other = RedisBackend(load_settings(url=trio.url, timeout_seconds=1.0))
    with pytest.raises(BackendUnavailable, match="no sentinel of"):
        other.publish([author.draft("job:1")])


def test_an_unknown_name_is_refused_with_the_names_of_both(trio: Trio) -> None:
    url = trio.url.replace(f"/{MASTER}/", "/other/")
    with pytest.raises(BackendRefused, match='know no master "other"'):
        RedisBackend(load_settings(url=url)).publish([Author().draft("job:1")])
    sentinel = f"redis://127.0.0.1:{trio.sentinels[0].port}"
    with pytest.raises(BackendRefused, match=r"is a sentinel.*redis\+sentinel://"):
        RedisBackend(load_settings(url=sentinel)).publish([Author().draft("job:1")])


def test_sentinels_have_credentials_of_their_own(trio: Trio) -> None:
    author = Author()
    for sentinel in trio.sentinels:
        with redis.Redis(port=sentinel.port) as admin:
            rules = "on >sesame +sentinel|get-master-addr-by-name +sentinel|master"
            admin.execute_command("ACL", "SETUSER", "realtime", *rules.split())
            admin.execute_command("ACL", "SETUSER", "default", "off")
    wrong = RedisBackend(load_settings(url=trio.url, timeout_seconds=1.0))
    with pytest.raises(BackendRefused, match=r"no sentinel of .*rights"):
        wrong.publish([author.draft("job:1")])
    url = f"{trio.url}?sentinel_username=realtime&sentinel_password=sesame"
    backend = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
    assert len(backend.publish([author.draft("job:1")])) == 1
    backend.close_writer()


def test_a_port_on_which_no_sentinel_listens_is_passed_over(trio: Trio) -> None:
    url = trio.url.replace("://", f"://127.0.0.1:{free_port()},")
    backend = RedisBackend(load_settings(url=url, timeout_seconds=1.0))
    assert len(backend.publish([Author().draft("job:1")])) == 1
    backend.close_writer()
