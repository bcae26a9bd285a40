"""The lease of a process: what it tells the backend, and when."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import pytest

from semantik_realtime.core.event import Draft
from semantik_realtime.core.leases import LeaseTimes
from semantik_realtime.emitter import holding
from semantik_realtime.emitter.holding import HeldJobs
from semantik_realtime.errors import BackendRefused, BackendUnavailable

Call = tuple[dict[str, bytes], list[str]]


class Backend:
    """Holds jobs as a backend does, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.jobs: dict[str, bytes] = {}
        self.error: Exception | None = None

    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        if self.error is not None:
            raise self.error
        self.calls.append((dict(jobs), list(ended)))
        was_held = bool(self.jobs)
        for job in ended:
            self.jobs.pop(job, None)
        self.jobs |= jobs
        return was_held


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(holding.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def held(clock: list[float]) -> HeldJobs:
    return HeldJobs(LeaseTimes.of(30))


def end(job: str, type: str = "job_completed", topic: str | None = None) -> Draft:
    return Draft(topic=topic or f"job:{job}", type=type, key=job, body=b"{}", job=job)


def test_a_job_is_held_at_once_and_renewed_while_it_runs(
    held: HeldJobs, backend: Backend, clock: list[float]
) -> None:
    assert held.wait_seconds() is None
    held.add("1", "job:1", b"record")
    assert held.wait_seconds() == 0
    held.renew(backend)
    assert backend.jobs == {"1": b"record"}
    assert held.wait_seconds() == 6
    held.renew(backend)
    assert len(backend.calls) == 1
    clock[0] += 6
    held.renew(backend)
    assert backend.calls[1:] == [({}, [])]


def test_what_no_draft_ends_is_held_until_it_is_removed(
    held: HeldJobs, backend: Backend, clock: list[float]
) -> None:
    held.add("~1", "job:1", b"whole")
    held.add("~2", "job:2", b"whole")
    held.renew(backend)
    held.settle([end("1")])
    held.remove("~1")
    held.remove("~1")
    held.remove("~3")
    held.renew(backend)
    clock[0] += 6
    held.renew(backend)
    assert backend.jobs == {"~2": b"whole"}
    held.add("~4", "job:4", b"whole")
    held.remove("~4")
    held.remove("~2")
    held.renew(backend)
    held.release()
    held.renew(backend)
    assert backend.jobs == {}
    assert held.wait_seconds() is None


def test_the_end_of_a_job_leaves_with_the_next_call(
    held: HeldJobs, backend: Backend, clock: list[float]
) -> None:
    held.add("1", "job:1", b"a")
    held.renew(backend)
    held.settle([end("1", topic="user:7"), end("1", "job_progress")])
    assert held._jobs, "neither the end in a feed nor progress ends an attempt"
    held.settle([end("1")])
    held.add("2", "job:2", b"b")
    held.renew(backend)
    assert backend.calls[1:] == [({"2": b"b"}, ["1"])]
    held.settle([end("2")])
    held.release()
    assert held.wait_seconds() == 0
    held.renew(backend)
    assert backend.jobs == {}
    assert held.wait_seconds() is None


def test_a_retry_that_begins_before_the_end_is_acknowledged_stays_held(
    held: HeldJobs, backend: Backend
) -> None:
    held.add("1", "job:1", b"first")
    held.renew(backend)
    held.add("1", "job:1", b"second")
    held.renew(backend)
    held.settle([end("1", "job_retrying")])
    held.release()
    held.renew(backend)
    assert backend.jobs == {"1": b"second"}


def test_everything_is_held_anew_after_a_failure_and_after_a_loss(
    held: HeldJobs, backend: Backend, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for job in "12":
        held.add(job, f"job:{job}", b"")
    held.renew(backend)
    clock[0] += 6
    backend.error = BackendUnavailable("away")
    with pytest.raises(BackendUnavailable):
        held.renew(backend)
    assert held.wait_seconds() == 0
    backend.error = None
    held.renew(backend)
    assert set(backend.calls[-1][0]) == {"1", "2"}
    # Also right after a renewal, for an attempt that has just begun.
    backend.error = BackendUnavailable("away")
    held.add("3", "job:3", b"")
    with pytest.raises(BackendUnavailable):
        held.renew(backend)
    assert held.wait_seconds() == 0
    backend.error = None
    held.renew(backend)
    assert set(backend.jobs) == {"1", "2", "3"}
    held.settle([end("3")])
    # The engine has lost its memory: in time, so no job was ended.
    backend.jobs.clear()
    clock[0] += 6
    with caplog.at_level(logging.WARNING):
        held.renew(backend)
        assert set(backend.jobs) == {"1", "2"}
        assert not caplog.messages
        # A server has ended them.
        backend.jobs.clear()
        clock[0] += 40
        held.renew(backend)
    [line] = caplog.messages
    assert "lease was over late_seconds=22.0 jobs=2" in line
    assert "SEMANTIK_REALTIME_LEASE_SECONDS" in line


def test_a_backend_that_refuses_keeps_no_event_from_being_sent(
    held: HeldJobs, backend: Backend, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = BackendRefused("no right")
    held.add("1", "job:1", b"")
    with caplog.at_level(logging.WARNING):
        held.renew(backend)
        assert held.wait_seconds() == 6
        clock[0] += 6
        held.renew(backend)
    assert sum("lease refused" in line for line in caplog.messages) == 1
    backend.error = None
    clock[0] += 6
    held.renew(backend)
    assert set(backend.jobs) == {"1"}


def test_one_call_has_a_bounded_number_of_jobs(held: HeldJobs, backend: Backend) -> None:
    count = 2 * holding.MAX_JOBS_A_CALL + 1
    for number in range(count):
        held.add(str(number), f"job:{number}", b"")
    held.renew(backend)
    assert [len(added) for added, _ in backend.calls] == [1000, 1000, 1]
    assert len(backend.jobs) == count
