"""Replicas: a single server refuses them, a cluster of three has them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import pytest
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.errors import BackendError, BackendRefused
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import NatsServer, free_port

from semantik_realtime_nats.backend import NatsBackend

Start = Callable[..., NatsServer]
Make = Callable[..., NatsBackend]


@pytest.fixture
def topic() -> str:
    return f"job:{secrets.token_hex(6)}"


@pytest.fixture(autouse=True)
def three_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_REPLICAS", "3")


async def send(backend: NatsBackend, drafts: list[Draft]) -> list[Receipt]:
    """Publish, as the emitter does: retry until the cluster has a leader."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await asyncio.to_thread(backend.publish, drafts)
            except BackendError:
                await asyncio.sleep(0.1)


async def test_a_single_server_refuses_replicas_with_an_error_that_says_so(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url)
    with pytest.raises(BackendRefused, match="replicas > 1 not supported in non-clustered mode"):
        await backend.open()
    with pytest.raises(BackendRefused, match="replicas > 1"):
        backend.publish([Author().draft(topic)])


async def test_a_cluster_has_replicas_and_loses_nothing_when_its_leader_is_killed(
    start_server: Start, make_backend: Make, topic: str
) -> None:
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    servers = {
        f"s{port}": start_server(
            config=f"""server_name: s{port}
            cluster {{ name: three, listen: "127.0.0.1:{port}", routes: [{routes}] }}"""
        )
        for port in ports
    }
    backend = make_backend(",".join(server.url for server in servers.values()))
    author = Author()
    await send(backend, [author.draft(topic, state={"n": n}) for n in range(100)])
    await backend.open()
    status = await backend.status()
    assert status.reachable
    assert not status.warnings

    assert backend._subscriber is not None
    info = await (await backend._subscriber.current_stream()).read_info()
    assert info["config"]["num_replicas"] == 3
    servers[info["cluster"]["leader"]].kill()
    await send(backend, [author.draft(topic)])

    async def offsets() -> list[int]:
        try:
            return [event.offset for event in (await backend.snapshot(topic, None, 200)).events]
        except BackendError:
            return []

    async with asyncio.timeout(60):
        while await offsets() != [*range(1, 102)]:
            await asyncio.sleep(0.1)
