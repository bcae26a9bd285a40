"""Whether the backend answers: deadlines, and one circuit breaker for each direction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_backend import Clock, FakeBackend

from semantik_realtime.backends import guard
from semantik_realtime.backends.guard import (
    HANG_SECONDS,
    RETRY_SECONDS,
    GuardedBackend,
    log_warnings,
)
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.errors import (
    AppendUncertain,
    BackendError,
    BackendRefused,
    BackendUnavailable,
)
from semantik_realtime.hookspecs import BACKEND_HOOKS
from semantik_realtime.testing.contract import until

TIMEOUT_SECONDS = 0.05
READS: dict[str, Callable[[GuardedBackend], Any]] = {
    "snapshot": lambda backend: backend.snapshot("job:1", None, 0),
    "page": lambda backend: backend.page("job:1", 0, 10),
    "tops": lambda backend: backend.tops(["job:1"]),
    "subscribe": lambda backend: backend.subscribe("job:1", guard._NullSink()),
}
WRITES: dict[str, Callable[[GuardedBackend], Any]] = {
    "publish": lambda backend: backend.publish([]),
    "claim": lambda backend: backend.claim("job:1", "1", "token", None),
    "delete": lambda backend: backend.delete("job:1"),
    "lease": lambda backend: backend.lease("name", "holder", 1, 1.0),
    "release": lambda backend: backend.release("name", "holder"),
    "hold": lambda backend: backend.hold("holder", {"1": b""}, [], 1.0),
    "overdue": lambda backend: backend.overdue(1.0),
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(guard, "time", clock)
    return clock


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    fake = FakeBackend()
    yield fake
    fake.release_publish.set()


@pytest.fixture
async def backend(fake: FakeBackend, clock: Clock) -> GuardedBackend:
    made = GuardedBackend(fake, TIMEOUT_SECONDS)  # type: ignore[arg-type]
    await made.open()
    return made


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except BackendError:
        return True
    return False


async def fails_reading(backend: GuardedBackend, name: str) -> bool:
    try:
        await READS[name](backend)
    except BackendError:
        return True
    return False


async def fails_probing(backend: GuardedBackend, *, thorough: bool) -> bool:
    try:
        await backend.probe(thorough=thorough)
    except BackendError:
        return True
    return False


BIG_READS = ("snapshot", "page")


def break_reads(fake: FakeBackend, name: str, error: BackendError) -> None:
    """Make a read fail, and with a big one the small read that is tried after it."""
    fake.errors[name] = fake.errors["tops" if name in BIG_READS else name] = error


@pytest.mark.parametrize("name", ["snapshot", "page", "tops"])
async def test_a_read_without_an_answer_ends_at_the_deadline_and_counts_as_failing(
    name: str, backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.hanging |= {name, "tops"}
    async with asyncio.timeout(5):
        with pytest.raises(BackendUnavailable, match=r"no answer in 0\.05 s"):
            await READS[name](backend)
    assert backend.is_away


@pytest.mark.parametrize("name", BIG_READS)
async def test_a_big_read_that_fails_while_the_backend_answers_is_no_outage(
    name: str, backend: GuardedBackend, fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[object] = []
    backend.listen(failures.append)
    fake.hanging.add(name)
    async with asyncio.timeout(5):
        assert await fails_reading(backend, name)
    fake.hanging.clear()
    fake.errors[name] = BackendUnavailable("connection lost")
    assert await fails_reading(backend, name)
    assert not backend.is_away
    assert failures == []
    assert backend.failed_reads == 2
    # Logged once, for a crowd may read the same.
    assert caplog.text.count("guard: read failed, but the backend answers topic=job:1") == 1
    for read in READS:
        assert await fails_reading(backend, read) is (read == name)


@pytest.mark.parametrize("name", BIG_READS)
async def test_a_big_read_that_the_server_refuses_counts_as_failing(
    name: str, backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.errors[name] = BackendRefused("no right to EVALSHA")
    assert await fails_reading(backend, name)
    assert backend.is_away


async def test_a_status_without_an_answer_is_not_reachable_and_changes_no_breaker(
    backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.hanging.add("status")
    async with asyncio.timeout(5):
        status = await backend.status()
    assert (status.reachable, status.server) == (False, "no answer in 0.05 s from the backend")
    assert not backend.is_away
    assert not await log_warnings(backend)


async def test_the_warnings_of_a_reachable_backend_are_logged(
    backend: GuardedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    assert await log_warnings(backend)
    assert "backend: set appendonly yes" in caplog.text


async def test_a_backend_can_be_read_only_on_the_loop_that_opened_it(
    backend: GuardedBackend, fake: FakeBackend
) -> None:
    async def is_open() -> bool:
        return backend.is_open

    assert await is_open()
    assert not await asyncio.to_thread(lambda: asyncio.run(is_open()))
    await backend.close()
    with pytest.raises(BackendUnavailable, match="not open"):
        await READS["snapshot"](backend)
    # It was not asked, so this is no failure of the backend.
    assert not backend.is_away
    assert fake.count("snapshot") == 0


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("error", [BackendUnavailable(), AppendUncertain(), BackendRefused()])
async def test_a_failing_write_stops_writes_and_no_reads(
    name: str, error: BackendError, backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.errors[name] = error
    with pytest.raises(type(error)):
        WRITES[name](backend)
    assert backend.fails_writes
    assert backend.is_away
    fake.errors.clear()
    fake.calls.clear()
    assert fails(lambda: WRITES["delete"](backend))
    assert fake.calls == []
    for read in READS:
        assert not await fails_reading(backend, read)
    assert backend.fails_writes


@pytest.mark.parametrize("name", READS)
async def test_a_failing_read_stops_reads_and_no_writes(
    name: str, backend: GuardedBackend, fake: FakeBackend
) -> None:
    break_reads(fake, name, BackendUnavailable())
    assert await fails_reading(backend, name)
    assert backend.is_away
    assert not backend.fails_writes
    fake.errors.clear()
    fake.calls.clear()
    assert await fails_reading(backend, "snapshot")
    assert fake.calls == []
    for write in WRITES.values():
        write(backend)
    assert backend.is_away
    assert not backend.fails_writes


async def test_without_a_prober_one_call_in_five_seconds_is_let_through(
    backend: GuardedBackend, fake: FakeBackend, clock: Clock
) -> None:
    fake.errors["lease"] = BackendUnavailable()
    break_reads(fake, "snapshot", BackendUnavailable())
    assert RETRY_SECONDS == 5
    for _ in range(3):
        for _ in range(10):
            assert fails(lambda: WRITES["lease"](backend))
            assert await fails_reading(backend, "snapshot")
        clock.seconds += RETRY_SECONDS
    assert (fake.count("lease"), fake.count("snapshot")) == (3, 3)
    fake.errors.clear()
    for _ in range(2):
        WRITES["lease"](backend)
        assert not await fails_reading(backend, "snapshot")
    assert not backend.is_away


@pytest.mark.parametrize("name", ["publish", "claim", "hold"])
async def test_without_a_prober_the_calls_of_the_emitter_are_always_let_through(
    name: str, backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.errors[name] = BackendUnavailable()
    for _ in range(3):
        assert fails(lambda: WRITES[name](backend))
    assert fake.count(name) == 3
    fake.errors.clear()
    WRITES[name](backend)
    assert not backend.fails_writes


async def test_opening_is_let_through_and_closes_the_breaker_of_reads(
    backend: GuardedBackend, fake: FakeBackend
) -> None:
    break_reads(fake, "snapshot", BackendUnavailable())
    assert await fails_reading(backend, "snapshot")
    await backend.open()
    assert not backend.is_away


@pytest.mark.parametrize("name", ["tops", "lease", "subscribe"])
async def test_while_probed_only_a_thorough_probe_calls_through_and_closes_both_breakers(
    name: str, backend: GuardedBackend, fake: FakeBackend, clock: Clock
) -> None:
    fake.errors[name] = BackendUnavailable()
    assert await fails_probing(backend, thorough=True)
    assert backend.is_away
    # Without an answer to a read, no write is tried either.
    assert backend.fails_writes == (name in ("tops", "lease"))
    clock.seconds += 10 * RETRY_SECONDS
    fake.calls.clear()
    blocked = list(WRITES) if name != "subscribe" else ["publish"]
    for write in blocked:
        assert fails(lambda write=write: WRITES[write](backend))
    if name != "lease":
        for read in READS:
            assert await fails_reading(backend, read)
    assert fake.calls == []

    fake.errors.clear()
    await backend.probe(thorough=False)
    assert backend.fails_writes == (name != "subscribe")
    await backend.probe(thorough=True)
    assert not backend.is_away
    for write in WRITES:
        WRITES[write](backend)
    for read in READS:
        assert not await fails_reading(backend, read)


async def test_a_probe_has_the_deadline_of_a_read(
    backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.hanging.add("tops")
    async with asyncio.timeout(5):
        assert await fails_probing(backend, thorough=False)
    assert backend.fails_writes


@pytest.mark.parametrize("fails", [False, True])
async def test_a_thorough_probe_leaves_no_subscription(
    fails: bool, backend: GuardedBackend, fake: FakeBackend
) -> None:
    if fails:
        fake.errors["subscribe"] = BackendUnavailable()
    assert await fails_probing(backend, thorough=True) is fails
    assert [call for call in fake.calls if "subscribe" in call] == ["subscribe", "unsubscribe"]
    assert backend.is_away is fails


async def test_a_listener_is_called_once_an_opening_in_the_thread_of_the_failing_call(
    backend: GuardedBackend, fake: FakeBackend, clock: Clock
) -> None:
    failures: list[tuple[object, int]] = []
    backend.listen(lambda error: failures.append((error, threading.get_ident())))
    backend.listen(lambda error: failures.append((error, 0)))
    error = fake.errors["publish"] = AppendUncertain("half")
    here, ids = threading.get_ident(), []

    def publish() -> None:
        ids.append(threading.get_ident())
        assert fails(lambda: WRITES["publish"](backend))

    for _ in range(3):
        await asyncio.to_thread(publish)
    assert here not in ids
    assert failures == [(error, ids[0]), (error, 0)]

    lost = BackendUnavailable("lost")
    break_reads(fake, "snapshot", lost)
    for _ in range(3):
        assert await fails_reading(backend, "snapshot")
        clock.seconds += RETRY_SECONDS
    assert failures[2:] == [(lost, here), (lost, 0)]

    fake.errors.clear()
    WRITES["publish"](backend)
    assert len(failures) == 4
    fake.errors["publish"] = error
    publish()
    assert failures[4:] == [(error, here), (error, 0)]


async def test_a_listener_that_raises_changes_neither_the_call_nor_the_other_listeners(
    backend: GuardedBackend, fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[object] = []
    backend.listen(lambda error: 1 / 0)
    backend.listen(failures.append)
    error = fake.errors["publish"] = AppendUncertain("half")
    with pytest.raises(AppendUncertain):
        WRITES["publish"](backend)
    assert failures == [error]
    assert "guard: listener failed" in caplog.text


async def test_a_publish_that_hangs_counts_as_failing_after_a_second_until_it_returns(
    backend: GuardedBackend, fake: FakeBackend, clock: Clock
) -> None:
    fake.hanging.add("publish")
    first = asyncio.ensure_future(asyncio.to_thread(WRITES["publish"], backend))
    await until(lambda: backend._emitting, "the publish to begin")
    clock.seconds += HANG_SECONDS
    assert not backend.fails_writes
    # Its time counts, not that of a later one.
    second = asyncio.ensure_future(asyncio.to_thread(WRITES["publish"], backend))
    await until(lambda: len(backend._emitting) == 2, "the second publish to begin")
    clock.seconds += 0.01
    assert backend.fails_writes
    assert backend.is_away
    fake.release_publish.set()
    await asyncio.gather(first, second)
    assert not backend.fails_writes
    assert HANG_SECONDS == 1


async def test_closing_the_writer_forgets_everything_as_a_forked_child_must(
    backend: GuardedBackend, fake: FakeBackend, clock: Clock
) -> None:
    fake.errors["lease"] = fake.errors["tops"] = BackendUnavailable()
    assert fails(lambda: WRITES["lease"](backend))
    assert await fails_probing(backend, thorough=False)
    fake.hanging.add("publish")
    backend._emitting[object()] = clock.seconds
    clock.seconds += 2 * HANG_SECONDS
    assert backend.fails_writes
    fake.calls.clear()
    backend.close_writer()
    assert fake.count("close_writer") == 1
    assert not backend.is_away
    # No prober runs in the child, so a failing call is tried again there.
    for _ in range(2):
        assert fails(lambda: WRITES["lease"](backend))
        clock.seconds += RETRY_SECONDS
    assert fake.count("lease") == 2


async def test_a_publish_that_a_fork_interrupts_ends_without_an_error(
    backend: GuardedBackend, fake: FakeBackend
) -> None:
    fake.hanging.add("publish")
    publishing = asyncio.ensure_future(asyncio.to_thread(WRITES["publish"], backend))
    await until(lambda: backend._emitting, "the publish to begin")
    backend.close_writer()
    fake.release_publish.set()
    assert await publishing == []


def test_the_fake_has_every_hook_of_a_backend() -> None:
    assert all(callable(getattr(FakeBackend(), name)) for name in BACKEND_HOOKS)


def test_the_start_of_the_newest_attempt_is_read_on_connections_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Apart(MemoryBackend):
        """The same storage, as another instance of a backend with a server would read it."""

        opened = 0
        fails = False

        async def open(self) -> None:
            self.opened += 1
            if self.fails:
                raise BackendUnavailable("gone")

        async def close(self) -> None:
            self.opened -= 1

    backend = Apart(Settings(backend="memory"))
    made = GuardedBackend(backend, 1.0)
    assert made.read_start("job:1", "1") == ""
    made.make_reader = lambda: backend
    assert made.read_start("job:1", "1") == ""
    state = {"started_at": "2026-01-31T09:30:00.000Z", "attempt": 2}
    end = {"ended_at": "2026-01-31T09:40:00.000Z", "attempt": 1}
    for job, given in (("1", state), ("2", {"started_at": 7}), ("3", end), ("4", state | end)):
        draft = make_drafts({f"job:{job}": None}, "job_started", "", job, state=given)[0]
        draft.producer, draft.number = "p", 1
        backend.publish([draft])
    assert made.read_start("job:1", "1") == state["started_at"]
    assert made.read_start("job:2", "2") == ""
    assert made.read_start("job:3", "3") == end["ended_at"]
    assert made.read_start("job:4", "4") == state["started_at"]
    backend.fails = True
    assert made.read_start("job:1", "1") == ""
    assert caplog.text.count("guard: start not read") == 2
    assert backend.opened == 0
