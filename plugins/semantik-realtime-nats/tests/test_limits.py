"""What happens at the limits that a server or an account has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from semantik_realtime.errors import BackendError, BackendRefused
from semantik_realtime.testing.contract import Author, Recorder
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats.backend import NatsBackend

Start = Callable[..., NatsServer]
Make = Callable[..., NatsBackend]


def account(limits: str) -> str:
    """Return a configuration with one account, and its limits of JetStream."""
    users = "users: [{user: u, password: p}]"
    return f"accounts {{ A {{ {users}, jetstream: {{ max_file: 1G, {limits} }} }} }}"


async def test_a_subscription_too_many_is_refused_and_the_others_go_on(
    start_server: Start, make_backend: Make
) -> None:
    server = start_server(config="max_subscriptions: 4")
    backend, author = make_backend(server.url), Author()
    await backend.open()
    sinks = [Recorder() for _ in range(3)]
    for number, sink in enumerate(sinks):
        await backend.subscribe(f"job:{number}", sink)
    for _ in range(2):
        with pytest.raises(BackendRefused, match=r"no more subscriptions .* max_subscriptions"):
            await backend.subscribe("job:9", Recorder())
    await backend.unsubscribe("job:0")
    await backend.subscribe("job:9", sinks[0])
    backend.publish([author.draft(f"job:{number}") for number in (1, 2, 9)])
    for sink in sinks:
        await sink.wait_for_events(1)
        assert sink.interruptions == 0


async def test_a_server_without_room_for_a_connection_says_which_limit_it_may_be(
    start_server: Start, make_backend: Make
) -> None:
    server = start_server(config="max_connections: 1")
    backend = make_backend(server.url)
    await backend.open()
    with pytest.raises(BackendError, match=r"max(imum |_)connections"):
        backend.publish([Author().draft("job:1")])


async def test_an_account_that_has_its_streams_says_so(
    start_server: Start, make_backend: Make
) -> None:
    url = start_server(config=account("max_streams: 1")).url.replace("://", "://u:p@")
    make_backend(url).publish([Author().draft("job:1")])
    with pytest.raises(BackendRefused, match="maximum number of streams reached"):
        make_backend(url, prefix="other").publish([Author().draft("job:1")])


async def test_limits_of_consumers_do_not_matter(start_server: Start, make_backend: Make) -> None:
    config = account("max_consumers: 1, max_ack_pending: 1")
    backend = make_backend(start_server(config=config).url.replace("://", "://u:p@"))
    await backend.open()
    sinks = {f"job:{number}": Recorder() for number in range(5)}
    for topic, sink in sinks.items():
        await backend.subscribe(topic, sink)
    backend.publish([Author().draft(topic) for topic in sinks])
    for sink in sinks.values():
        await sink.wait_for_events(1)
