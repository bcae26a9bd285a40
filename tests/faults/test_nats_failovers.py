"""A JetStream cluster that loses servers while events flow: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise

import pytest
from clocked import Arrivals, Load, check
from configuration import make_settings
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.testing.nats_cluster import REPLICAS, NatsCluster
from semantik_realtime.testing.servers import NatsServer, ServerMissing, nats_program

pytestmark = [getattr(pytest.mark, "nats-r3"), pytest.mark.timeout(180)]
TOPICS = ["job:1", "job:2"]
LIVE_SECONDS = 60.0
"""Until events flow again. An election takes up to 9 s; the writer pauses for up to 5 s."""
WHOLE_SECONDS = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    pytest.importorskip("semantik_realtime_nats", reason="pip install the nats plugin")
    try:
        made = NatsCluster(nats_program())
    except ServerMissing as error:
        pytest.skip(str(error))
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def settings(cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for variable, value in REPLICAS.items():
        monkeypatch.setenv(variable, value)
    return make_settings(
        cluster.url, backend="nats", timeout_seconds=2.0, tops_seconds=2.0, retention_events=5000
    )


@pytest.fixture
async def web_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings) as made:
        yield made


async def leader(cluster: NatsCluster, settings: Settings) -> NatsServer:
    found = await asyncio.to_thread(cluster.leader_of, settings.prefix)
    assert found is not None
    return found


async def wait_whole(cluster: NatsCluster, settings: Settings) -> None:
    async with asyncio.timeout(WHOLE_SECONDS):
        while not await asyncio.to_thread(cluster.is_whole, settings.prefix):
            await asyncio.sleep(0.2)


async def flows(client: Arrivals) -> None:
    before = len(client.arrivals.get("job:2", []))
    await until(lambda: len(client.arrivals.get("job:2", [])) > before + 10, LIVE_SECONDS)


async def live_again(load: Load, client: Arrivals, after: float) -> float:
    """Like `Load.live_again`, with the deadline of an election on a busy machine."""

    def is_live(topic: str) -> bool:
        newest = client.arrivals.get(topic, [])[-1:]
        return any(load.emitted_at[i] > after for _, i in newest)

    await until(lambda: all(map(is_live, TOPICS)), LIVE_SECONDS, lambda: client)
    return await load.live_again(client, after)


def longest_pause(client: Arrivals, since: float) -> float:
    """Return the longest time without an event of a topic after ``since``, in seconds."""
    pauses = [0.0]
    for found in client.arrivals.values():
        times = [since, *(at for at, _ in found if at > since)]
        pauses += [after - before for before, after in pairwise(times)]
    return max(pauses)


def read_by(web_server: InProcessServer, cluster: NatsCluster) -> NatsServer:
    """Return the server that the web server reads from."""
    stream = web_server.rt.unguarded._subscriber.stream
    return cluster.nodes[stream.connection.server_info["server_name"]]


Victim = Callable[[InProcessServer, NatsCluster, NatsServer], NatsServer]
VICTIMS: dict[str, Victim] = {
    "leader": lambda web_server, cluster, leader: leader,
    "follower": lambda web_server, cluster, leader: next(
        node for node in cluster.nodes.values() if node is not leader
    ),
    "the_one_that_is_read": lambda web_server, cluster, leader: read_by(web_server, cluster),
}


@pytest.mark.parametrize(
    ("victim", "hangs"),
    [("leader", False), ("leader", True), ("follower", False), ("the_one_that_is_read", True)],
    ids=lambda given: given if isinstance(given, str) else "cut_off" if given else "killed",
)
async def test_events_flow_on_when_a_server_is_lost_and_when_it_returns(
    cluster: NatsCluster,
    settings: Settings,
    web_server: InProcessServer,
    client: Arrivals,
    load: Load,
    victim: str,
    hangs: bool,
) -> None:
    """A stopped process is a partition: its connections live, and it believes what it knew."""
    async with load.flowing():
        await flows(client)
        await wait_whole(cluster, settings)
        lost = VICTIMS[victim](web_server, cluster, await leader(cluster, settings))
        began = time.monotonic()
        try:
            await asyncio.to_thread(lost.pause if hangs else lost.kill)
            live = await live_again(load, client, began)
        finally:
            # The cluster is the next test's too.
            await asyncio.to_thread(lost.resume if hangs else lost.start)
        returned = time.monotonic()
        await wait_whole(cluster, settings)
        back = await live_again(load, client, returned)
    print(f"{victim} {'cut off' if hangs else 'killed'}: live {live:.1f} s, back {back:.1f} s")
    assert live < LIVE_SECONDS
    await check(load, client)


async def test_events_flow_on_while_all_servers_are_restarted_one_after_another(
    cluster: NatsCluster,
    settings: Settings,
    web_server: InProcessServer,
    client: Arrivals,
    load: Load,
) -> None:
    figures = []
    async with load.flowing():
        await flows(client)
        for node in cluster.nodes.values():
            await wait_whole(cluster, settings)
            began = time.monotonic()
            await asyncio.to_thread(node.stop)
            await asyncio.to_thread(node.start)
            await live_again(load, client, time.monotonic())
            figures.append(longest_pause(client, began))
        await wait_whole(cluster, settings)
    print("restarted one after another: pauses", [f"{seconds:.1f} s" for seconds in figures])
    assert max(figures) < LIVE_SECONDS
    await check(load, client)


async def test_without_a_majority_clients_are_told_and_nothing_is_lost(
    cluster: NatsCluster,
    settings: Settings,
    web_server: InProcessServer,
    client: Arrivals,
    load: Load,
) -> None:
    """The one server that is left answers reads, and knows nothing of what it does not get."""
    async with load.flowing():
        await flows(client)
        await wait_whole(cluster, settings)
        left = read_by(web_server, cluster)
        lost = [node for node in cluster.nodes.values() if node is not left]
        try:
            for node in lost:
                await asyncio.to_thread(node.pause)
            await client.wait_for("degraded", 1, LIVE_SECONDS)
        finally:
            for node in lost:
                node.resume()
        returned = time.monotonic()
        await client.wait_for("restored", 1, 2 * LIVE_SECONDS)
        back = await live_again(load, client, returned)
        print(f"without a majority: back {back:.1f} s")
    await check(load, client)
