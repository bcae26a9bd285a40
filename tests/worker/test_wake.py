"""Starts and ends of jobs share calls in a busy process; what cannot wait does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import pytest

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.emitter.wake import BURST_CALLS, LINGER_SECONDS, Wake
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job, JobMeta


class Recording(MemoryBackend):
    """Records which types of events each call has."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.calls: list[list[str]] = []
        self.held: list[tuple[list[str], list[str]]] = []

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self.calls.append([draft.type for draft in drafts])
        return super().publish(drafts)

    @hookimpl
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        self.held.append((list(jobs), list(ended)))
        return super().hold(holder, jobs, ended, seconds)


@pytest.fixture
def backend() -> Recording:
    return Recording(Settings(backend="memory"))


@pytest.fixture
def runtime(backend: Recording) -> Iterator[Runtime]:
    runtime = Runtime(Settings(backend="memory"), backend=backend)
    yield runtime
    runtime.close()


def run_job(runtime: Runtime, number: int) -> None:
    job = Job(runtime, JobMeta(f"short-{number}", owner="7"), 1, is_new=True)
    job.begin()
    job.end("job_completed")


def test_a_process_that_runs_many_short_tasks_makes_few_calls(
    runtime: Runtime, backend: Recording
) -> None:
    started = time.monotonic()
    for number in range(300):
        run_job(runtime, number)
        time.sleep(0.001)
    elapsed = time.monotonic() - started
    assert runtime.emitter.flush(10)
    # The job's own topic, and then the feed, which needs the attempt's number.
    calls = len(backend.calls) / 2
    assert calls <= BURST_CALLS + elapsed / LINGER_SECONDS + 2
    assert runtime.emitter.stats.appended == 1200


def test_a_process_that_runs_a_task_now_and_then_sends_at_once(
    runtime: Runtime, backend: Recording
) -> None:
    for number in range(BURST_CALLS // 2):
        Job(runtime, JobMeta(f"{number}"), 0).queue()
        deadline = time.monotonic() + 10
        while len(backend.calls) <= number and time.monotonic() < deadline:
            time.sleep(0.0005)
    assert backend.calls == [["job_queued"]] * (BURST_CALLS // 2)


def test_only_a_job_that_outlives_the_call_of_its_start_is_held(
    runtime: Runtime, backend: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.emitter.throttle("start", 1.0, lambda: None)
    assert runtime.emitter.flush(10)
    with monkeypatch.context() as patch:
        # Nothing is sent while all are emitted.
        patch.setattr(runtime.emitter._wake, "set", lambda can_wait=False: None)
        run_job(runtime, 1)
        long = Job(runtime, JobMeta("long"), 1, is_new=True)
        long.begin()
        again = Job(runtime, JobMeta("again"), 1, is_new=True)
        again.begin()
        again.end("job_retrying")
        Job(runtime, JobMeta("again"), 2, is_new=True).begin()
    assert runtime.emitter.flush(10)
    assert backend.held == [(["long", "again"], [])]
    long.end("job_completed")
    runtime.close()
    assert backend.held[-1] == ([], ["long"])


def lingering(wake: Wake) -> tuple[threading.Thread, list[float]]:
    """Let a thread linger for an hour, or until `Wake.set`; return it, and how long it did."""
    took: list[float] = []

    def wait() -> None:
        started = time.monotonic()
        wake.wait()
        took.append(time.monotonic() - started)

    for _ in range(BURST_CALLS):
        wake.called()
    thread = threading.Thread(target=wait, daemon=True)
    wake.set(can_wait=True)
    thread.start()
    return thread, took


def test_what_can_wait_does_and_what_cannot_ends_the_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("semantik_realtime.emitter.wake.LINGER_SECONDS", 3600.0)
    wake = Wake()
    thread, took = lingering(wake)
    wake.set(can_wait=True)
    thread.join(0.2)
    assert thread.is_alive()
    wake.set()
    thread.join(10)
    assert took
    wake.clear()
    # It also ends the pause if it came before the pause began.
    wake.set()
    thread, took = lingering(wake)
    thread.join(10)
    assert took


def test_an_event_of_a_task_takes_the_waiting_ones_along(
    runtime: Runtime, backend: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacer = runtime.emitter._wake._pacer
    monkeypatch.setattr(pacer, "wait_seconds", lambda now: 3600.0)
    # The thread runs, and waits.
    runtime.emitter.throttle("start", 1.0, lambda: None)
    assert runtime.emitter.flush(10)
    job = Job(runtime, JobMeta("1"), 1, is_new=True)
    job.begin()
    job.emit("file_completed")
    deadline = time.monotonic() + 10
    while sum(map(len, backend.calls)) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert list(chain(*backend.calls)) == ["job_started", "file_completed"]
