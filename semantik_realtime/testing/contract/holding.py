"""Worker processes hold their jobs, and the jobs of one that died are given to one caller.

Tests share a server, and `overdue` gives whatever is overdue there. So each
test has a prefix of its own, or else a backend whose storage is its own.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from semantik_realtime.core.holding import Holding
from semantik_realtime.core.limits import (
    MAX_GIVEN_HOLDERS,
    MAX_GIVEN_JOBS,
    MAX_HELD_JOBS_A_CALL,
    MAX_HELD_RECORD_BYTES,
    MAX_HOLDER_CHARACTERS,
)
from semantik_realtime.testing.contract.fixtures import Fixtures
from semantik_realtime.testing.contract.waiting import until

LONG = 60.0
"""Seconds that no test waits for."""
SHORT = 0.15
"""Seconds after which a test waits for a deadline to be over."""


class Holders(Fixtures):
    """Worker processes hold their jobs, and the jobs of one that died are given to one caller."""

    @pytest.fixture
    def fleet(self, make_backend: Callable[..., Any]) -> Any:
        """Processes that nobody else's `overdue` sees; ``fleet()`` is one of them."""
        prefix = f"semantik.{secrets.token_hex(4)}"
        made: list[Any] = []

        def make() -> Any:
            made.append(make_backend(prefix=prefix))
            return made[-1]

        yield make
        for backend in made:
            backend.close_writer()

    async def test_the_jobs_of_a_process_that_died_are_given_with_their_records(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        jobs = {"1": b"a\x00\xff\n", "job 2:\u00fc": b"", "3": b"{}"}
        assert backend.hold("w1", jobs, [], SHORT) is False
        [given] = await wait_for_overdue(backend)
        assert given.worker == "w1"
        assert given.jobs == jobs

    async def test_nothing_is_given_before_the_deadline(self, fleet: Callable[[], Any]) -> None:
        backend = fleet()
        assert list(backend.overdue(LONG)) == []
        backend.hold("w1", {"1": b"one"}, [], LONG)
        assert list(backend.overdue(LONG)) == []

    async def test_each_call_sets_a_new_deadline_for_all_jobs(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        backend.hold("longer", {"1": b"one"}, [], 0.05)
        assert backend.hold("longer", {"2": b"two"}, [], LONG) is True
        backend.hold("renewed", {"1": b"one"}, [], 0.05)
        assert backend.hold("renewed", {}, [], LONG) is True
        backend.hold("shorter", {"1": b"one"}, [], LONG)
        assert backend.hold("shorter", {"2": b"two"}, [], SHORT) is True
        [given] = await wait_for_overdue(backend)
        assert (given.worker, given.jobs) == ("shorter", {"1": b"one", "2": b"two"})

    async def test_a_call_may_be_repeated(self, fleet: Callable[[], Any]) -> None:
        backend = fleet()
        backend.hold("w1", {"0": b"zero", "1": b"old"}, [], LONG)
        for _ in range(3):
            assert backend.hold("w1", {"1": b"new", "2": b"two"}, ["0", "never held"], SHORT)
        [given] = await wait_for_overdue(backend)
        assert given.jobs == {"1": b"new", "2": b"two"}

    async def test_a_job_that_ends_and_begins_in_one_call_is_held(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        backend.hold("w1", {"1": b"first attempt"}, [], LONG)
        assert backend.hold("w1", {"1": b"second attempt"}, ["1"], SHORT)
        [given] = await wait_for_overdue(backend)
        assert given.jobs == {"1": b"second attempt"}

    async def test_a_holder_whose_jobs_have_all_ended_is_forgotten(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        backend.hold("idle", {"1": b"one", "2": b"two"}, [], 0.05)
        assert backend.hold("idle", {}, ["1", "2"], 0.05) is True
        assert backend.hold("idle", {}, [], 0.05) is False
        assert backend.hold("never", {}, ["1"], 0.05) is False
        backend.hold("busy", {"1": b"one"}, [], SHORT)
        [given] = await wait_for_overdue(backend)
        assert given.worker == "busy"
        assert list(backend.overdue(LONG)) == []

    async def test_a_process_that_comes_back_learns_that_its_jobs_were_given_away(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        backend.hold("w1", {"1": b"one"}, [], SHORT)
        await wait_for_overdue(backend)
        assert backend.hold("w1", {}, [], LONG) is False
        assert backend.hold("w1", {"2": b"two"}, [], LONG) is False
        assert backend.hold("w1", {"1": b"one"}, [], LONG) is True

    async def test_what_a_process_holds_anew_is_not_removed_with_what_was_given(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        backend.hold("w1", {"1": b"before"}, [], SHORT)
        [given] = await wait_for_overdue(backend)
        assert backend.hold("w1", {"1": b"after"}, [], SHORT) is False
        assert backend.hold(given.holder, {}, list(given.jobs), LONG) is True
        [again] = await wait_for_overdue(backend)
        assert (again.worker, again.jobs) == ("w1", {"1": b"after"})
        assert again.holder != given.holder

    async def test_given_jobs_are_given_again_until_they_are_removed(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        backend.hold("w1", {"1": b"one", "2": b"two"}, [], SHORT)
        [first] = await wait_for_overdue(backend, SHORT)
        [second] = await wait_for_overdue(backend, SHORT)
        assert second == first
        assert backend.hold(first.holder, {}, ["1"], SHORT) is True
        [third] = await wait_for_overdue(backend, SHORT)
        assert (third.worker, third.jobs) == ("w1", {"2": b"two"})
        assert backend.hold(third.holder, {}, ["2"], SHORT) is True
        assert backend.hold(third.holder, {}, ["2"], SHORT) is False
        await asyncio.sleep(2 * SHORT)
        assert list(backend.overdue(LONG)) == []

    async def test_whoever_was_given_jobs_may_take_longer(self, fleet: Callable[[], Any]) -> None:
        backend = fleet()
        backend.hold("w1", {"1": b"one"}, [], SHORT)
        [given] = await wait_for_overdue(backend, 0.3)
        given_at = time.monotonic()
        extended = backend.hold(given.holder, {}, [], LONG)
        assert extended is True or time.monotonic() - given_at > 0.3
        await asyncio.sleep(0.4)
        assert list(backend.overdue(LONG)) == []

    async def test_the_oldest_are_given_first_and_a_call_has_bounds(
        self, fleet: Callable[[], Any]
    ) -> None:
        backend = fleet()
        names = [f"w{number:02}" for number in range(MAX_GIVEN_HOLDERS + 2)]
        for name in names:
            backend.hold(name, {"1": b"one"}, [], SHORT)
        await asyncio.sleep(2 * SHORT)
        assert [given.worker for given in backend.overdue(LONG)] == names[:-2]
        assert [given.worker for given in backend.overdue(LONG)] == names[-2:]
        for name in ("many", "more"):
            backend.hold(name, {str(job): b"" for job in range(MAX_GIVEN_JOBS)}, [], SHORT)
        await asyncio.sleep(2 * SHORT)
        assert [given.worker for given in backend.overdue(LONG)] == ["many"]
        assert [given.worker for given in backend.overdue(LONG)] == ["more"]

    async def test_one_holder_may_have_ten_thousand_jobs(self, fleet: Callable[[], Any]) -> None:
        backend = fleet()
        jobs = {f"{number:032x}": b'{"task":"app.index"}' * 4 for number in range(10_000)}
        assert len(jobs) == MAX_HELD_JOBS_A_CALL
        backend.hold("w1", jobs, [], LONG)
        for number in range(3):
            assert backend.hold("w1", {f"late {number}": b"late"}, [], LONG)
        ended = list(jobs)[:5000]
        assert backend.hold("w1", {}, ended, SHORT)
        [given] = await wait_for_overdue(backend)
        assert len(given.jobs) == 5003
        assert given.jobs.keys().isdisjoint(ended)
        assert given.jobs[f"{9999:032x}"] == jobs[f"{9999:032x}"]
        assert backend.hold(given.holder, {}, list(given.jobs), LONG) is True
        assert backend.hold(given.holder, {}, [], LONG) is False

    async def test_what_exceeds_the_bounds_is_refused(self, fleet: Callable[[], Any]) -> None:
        backend = fleet()
        largest = {"1": b"x" * MAX_HELD_RECORD_BYTES}
        backend.hold("w" * MAX_HOLDER_CHARACTERS, largest, [], SHORT)
        many = [str(number) for number in range(MAX_HELD_JOBS_A_CALL + 1)]
        calls: list[tuple[str, Mapping[str, bytes], Sequence[str]]] = [
            ("w1", {"1": b"x" * (MAX_HELD_RECORD_BYTES + 1)}, []),
            ("w" * (MAX_HOLDER_CHARACTERS + 1), {"1": b"one"}, []),
            ("", {"1": b"one"}, []),
            ("w1", dict.fromkeys(many, b""), []),
            ("w1", {}, many),
        ]
        for holder, jobs, ended in calls:
            with pytest.raises(ValueError, match=r"\d"):
                backend.hold(holder, jobs, ended, SHORT)
        [given] = await wait_for_overdue(backend)
        assert given.jobs == largest

    async def test_the_processes_of_a_fleet_see_the_same_holders(
        self, fleet: Callable[[], Any]
    ) -> None:
        if not self.shares_storage:
            return
        worker, other, web = fleet(), fleet(), fleet()
        worker.hold("w1", {"1": b"one"}, [], LONG)
        assert other.hold("w1", {"2": b"two"}, [], SHORT) is True
        [given] = await wait_for_overdue(web)
        assert given.jobs == {"1": b"one", "2": b"two"}
        assert list(worker.overdue(LONG)) == []
        assert other.hold(given.holder, {}, ["1", "2"], LONG) is True
        assert web.hold(given.holder, {}, [], LONG) is False

    async def test_holders_of_another_prefix_are_not_seen(
        self, fleet: Callable[[], Any], make_backend: Callable[..., Any]
    ) -> None:
        if not self.uses_prefix:
            return
        backend, other = fleet(), make_backend(prefix=f"semantik.{secrets.token_hex(4)}")
        try:
            other.hold("w1", {"1": b"theirs"}, [], 0.01)
            backend.hold("w1", {"2": b"ours"}, [], SHORT)
            [given] = await wait_for_overdue(backend)
            assert given.jobs == {"2": b"ours"}
            [theirs] = await wait_for_overdue(other)
            assert theirs.jobs == {"1": b"theirs"}
        finally:
            other.close_writer()

    async def test_of_many_callers_one_gets_each_holder(self, fleet: Callable[[], Any]) -> None:
        backends = [fleet() for _ in range(3)] if self.shares_storage else [fleet()]
        names = [f"w{number}" for number in range(40)]
        for name in names:
            backends[0].hold(name, {"1": name.encode()}, [], SHORT)
        await asyncio.sleep(2 * SHORT)

        def collect(caller: int) -> list[Holding]:
            found: list[Holding] = []
            misses = 0
            while misses < 3:
                given = backends[caller % len(backends)].overdue(LONG)
                found += given
                misses = 0 if given else misses + 1
            return found

        with ThreadPoolExecutor(6) as callers:
            found = [given for part in callers.map(collect, range(6)) for given in part]
        assert Counter(given.worker for given in found) == Counter(names)
        assert all(given.jobs == {"1": given.worker.encode()} for given in found)

    async def test_concurrent_calls_for_one_holder_lose_nothing(
        self, fleet: Callable[[], Any]
    ) -> None:
        backends = [fleet() for _ in range(2)] if self.shares_storage else [fleet()]

        def add(caller: int) -> None:
            backend = backends[caller % len(backends)]
            for number in range(10):
                backend.hold("w1", {f"{caller}-{number}": b""}, [f"{caller}-{number - 2}"], LONG)

        with ThreadPoolExecutor(4) as callers:
            list(callers.map(add, range(4)))
        backends[0].hold("w1", {}, [], SHORT)
        [given] = await wait_for_overdue(backends[0])
        assert set(given.jobs) == {f"{caller}-{number}" for caller in range(4) for number in (8, 9)}


async def wait_for_overdue(backend: Any, seconds: float = LONG) -> list[Holding]:
    """Wait until something is overdue, and return it."""
    found: list[Holding] = []

    def is_over() -> bool:
        found.extend(backend.overdue(seconds))
        return bool(found)

    await until(is_over, "a deadline to be over")
    return found
