"""How the leases of a process are kept in the stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from semantik_realtime.errors import BackendError
from semantik_realtime.testing.contract import until
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats import leases, places, sessions
from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.leases import Leases
from semantik_realtime_nats.places import Place
from semantik_realtime_nats.stream import Stream

Make = Callable[..., NatsBackend]

COUNT = 300


@contextmanager
def counting_publishes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the subjects of all messages that are stored within the block."""
    stored: list[str] = []
    publish = Stream.publish

    async def counted(self: Stream, subject: str, *given: Any, **more: Any) -> int:
        stored.append(subject)
        return await publish(self, subject, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "publish", counted)
        yield stored


def leases_of(backend: NatsBackend) -> Leases:
    writer = backend._writer.worker
    assert writer is not None
    return writer.leases


def age(backend: NatsBackend, seconds: float) -> None:
    """Make everything that the process knows of its leases older."""
    known = leases_of(backend)
    for session in known._sessions.values():
        session.renewed_at -= seconds
    for held in known._held.values():
        held.ends_at -= seconds


@pytest.fixture
def names() -> list[str]:
    token = secrets.token_hex(4)
    return [f"{token}:{number}" for number in range(COUNT)]


async def test_all_leases_of_a_process_are_renewed_with_one_message(
    url: str, make_backend: Make, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(url)
    for name in names:
        assert backend.lease(name, "a", 1, 60.0)
    age(backend, 20.0)
    with counting_publishes(monkeypatch) as stored:
        assert all(backend.lease(name, "a", 1, 60.0) for name in names)
    assert len(stored) == 1


async def test_a_lease_lives_as_long_as_it_is_renewed_though_its_message_is_not(
    url: str, make_backend: Make, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, other = make_backend(url), make_backend(url)
    monkeypatch.setattr(leases, "SESSION_SECONDS", 1.0)
    assert backend.lease(names[0], "a", 1, 1.5)
    assert backend.lease(names[1], "a", 1, 1.5)
    deadline = time.monotonic() + 3.5
    while time.monotonic() < deadline:
        assert backend.lease(names[0], "a", 1, 1.5)
        assert not other.lease(names[0], "b", 1, 60.0)
        await asyncio.sleep(0.05)
    # Its session goes on, but it was not renewed.
    await until(lambda: other.lease(names[1], "b", 1, 60.0), "the other one to end")
    # Nothing is renewed any more.
    await until(lambda: other.lease(names[0], "b", 1, 60.0), "the session to end")


async def test_released_places_are_free_soon_and_cost_a_message_for_each_lease(
    url: str, make_backend: Make, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, other = make_backend(url), make_backend(url)
    for holder in "abcdefgh":
        assert backend.lease(names[0], holder, 8, 60.0)
    assert not other.lease(names[0], "z", 8, 60.0)
    assert [backend.release(names[0], holder) for holder in "abcdefgh"] == [True] * 8
    assert backend.release(names[0], "a") is False
    await until(lambda: other.lease(names[0], "z", 1, 60.0), "the places to be free")


async def test_a_process_that_stops_frees_all_its_places_with_one_message(
    url: str, make_backend: Make, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, other = make_backend(url), make_backend(url)
    for name in names:
        assert backend.lease(name, "a", 1, 60.0)
    with counting_publishes(monkeypatch) as stored:
        backend.close_writer()
    assert len(stored) == 1
    assert all(other.lease(name, "b", 1, 60.0) for name in names[:10])


async def test_after_a_restart_of_the_server_the_leases_are_still_held(
    server: NatsServer, make_backend: Make, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, other = make_backend(server.url), make_backend(server.url)
    for name in names:
        assert backend.lease(name, "a", 1, 60.0)
    server.kill()
    server.start()
    age(backend, 20.0)
    with counting_publishes(monkeypatch) as stored:
        await until(lambda: _leased(backend, names[0]), "the server")
        assert all(backend.lease(name, "a", 1, 60.0) for name in names)
    # The session, and what was stored after it was renewed.
    assert len(stored) <= COUNT + 2
    assert not other.lease(names[7], "b", 1, 60.0)


async def test_a_server_that_has_lost_everything_gets_the_leases_again(
    server: NatsServer, make_backend: Make, names: list[str]
) -> None:
    backend, other = make_backend(server.url), make_backend(server.url)
    assert backend.lease(names[0], "a", 1, 60.0)
    server.kill()
    server.wipe()
    server.start()
    age(backend, 20.0)
    await until(lambda: _leased(backend, names[0]), "the server")
    assert not other.lease(names[0], "b", 1, 60.0)


async def test_a_process_that_could_not_renew_in_time_has_lost_its_places(
    url: str, make_backend: Make, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SESSION_SECONDS", 1.0)
    backend, other = make_backend(url), make_backend(url)
    assert backend.lease(names[0], "a", 1, 1.0)
    await until(lambda: other.lease(names[0], "b", 1, 60.0), "the session to end")
    assert not backend.lease(names[0], "a", 1, 1.0)


def _leased(backend: NatsBackend, name: str) -> bool:
    try:
        return backend.lease(name, "a", 1, 60.0)
    except BackendError:
        return False


def test_a_place_of_a_dead_session_does_not_count_when_room_is_needed() -> None:
    stored = {"a": Place(10.0, "dead"), "b": Place(10.0, "alive"), "c": Place(90.0)}
    stored |= {"d": Place(90.0, "ended"), "e": Place(90.0, "late"), "f": Place(10.0)}
    ends = {"alive": 60.0, "ended": places.ENDED, "late": 40.0}
    assert places.sessions_of(stored) == {"dead", "alive", "ended", "late"}
    assert set(places.alive(stored, 50.0, ends)) == {"b", "c", "e"}
    later = 90.0 + places.SESSION_PLACE_SECONDS
    assert set(places.alive(stored, later, {"alive": later + 60.0})) == set()


def test_a_session_is_renewed_when_a_quarter_of_its_time_is_over() -> None:
    session = sessions.Session("s", 60.0, renewed_at=100.0)
    assert session.is_fresh(114.0)
    assert not session.is_fresh(115.0)
