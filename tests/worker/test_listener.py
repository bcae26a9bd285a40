"""A process receives requests to cancel, also late ones, after a fork and after an outage."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from topic_log import wait_until

from semantik_realtime import JobCancelled, job
from semantik_realtime.backends import server_clock
from semantik_realtime.backends.redis import status
from semantik_realtime.clock import now_text, time_text
from semantik_realtime.config import Settings
from semantik_realtime.core.cancelling import CONTROL_TOPIC
from semantik_realtime.core.event import Cursor, Event, encode_body, with_offset
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import RedisServer, valkey_program
from semantik_realtime.testing.servers import running as serving
from semantik_realtime.worker import listener
from semantik_realtime.worker.current import pop_job, push_job
from semantik_realtime.worker.job import Job, JobMeta
from semantik_realtime.worker.stored_state import read_cancelled_jobs


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture
def runtime(settings: Settings) -> Iterator[Runtime]:
    runtime = Runtime(settings)
    yield runtime
    listener.close()
    runtime.close()


@pytest.fixture
def begin(runtime: Runtime) -> Iterator[Callable[[str], Job]]:
    begun: list[Job] = []

    def begin(id: str) -> Job:
        begun.append(Job(runtime, JobMeta(id, "index", "7"), 1, is_new=True))
        begun[-1].begin()
        push_job(begun[-1])
        return begun[-1]

    yield begin
    while begun:
        pop_job(begun.pop())


def request(runtime: Runtime, job_id: str) -> None:
    asyncio.run(runtime.publish(CONTROL_TOPIC, "job_cancelling", key=job_id))


def test_a_request_for_a_job_that_has_not_begun_here_is_known(
    runtime: Runtime, begin: Callable[[str], Job]
) -> None:
    assert not listener.is_requested("2")
    assert not begin("1").is_cancelled
    request(runtime, "2")
    wait_until(lambda: listener.is_requested("2"))
    assert not any(map(listener.is_requested, ("1", None, ["2"])))


def test_outside_a_job_nothing_is_cancelled() -> None:
    assert job.is_cancelled is False
    job.raise_if_cancelled()


@pytest.mark.every_backend(shares_storage=True)
def test_a_request_reaches_the_job_whether_it_comes_before_or_after_the_first_question(
    runtime: Runtime, begin: Callable[[str], Job]
) -> None:
    request(runtime, "early")
    early, late = begin("early"), begin("late")
    wait_until(lambda: early.is_cancelled)
    assert not late.is_cancelled
    request(runtime, "late")
    wait_until(lambda: late.is_cancelled)
    with pytest.raises(JobCancelled):
        job.raise_if_cancelled()


def test_the_first_question_does_not_wait_for_a_backend_that_is_away(settings: Settings) -> None:
    away = Runtime(settings.model_copy(update={"url": "redis://127.0.0.1:1"}))
    one = Job(away, JobMeta("1", "index", "7"), 1)
    begun = time.monotonic()
    assert not one.is_cancelled
    assert time.monotonic() - begun < 1
    listener.close()
    away.close(0)


def test_a_job_that_has_ended_is_not_cancelled_afterwards(
    runtime: Runtime, begin: Callable[[str], Job]
) -> None:
    one = begin("1")
    one.end("job_completed")
    one.request_cancel()
    assert not one.cancel_requested


def test_a_child_process_has_a_listener_of_its_own(
    runtime: Runtime, begin: Callable[[str], Job]
) -> None:
    one = begin("1")
    assert not one.is_cancelled
    pid = os.fork()
    if pid == 0:
        deadline = time.monotonic() + 20
        while not one.is_cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if one.cancel_requested else 1)
    request(runtime, "1")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_requests_arrive_again_after_an_outage(
    settings: Settings,
) -> None:
    with serving(RedisServer(valkey_program())) as server:
        runtime = Runtime(settings.model_copy(update={"url": server.url}))
        one = Job(runtime, JobMeta("1", "index", "7"), 1)
        two = Job(runtime, JobMeta("2", "index", "7"), 1)
        request(runtime, "1")
        wait_until(lambda: one.is_cancelled)
        assert not two.is_cancelled
        server.stop()
        server.start()
        request(runtime, "2")
        wait_until(lambda: two.is_cancelled, 20)
        listener.close()
        runtime.close()


def test_a_request_counts_for_three_hours() -> None:
    times = [now_text(), "2020-01-01T00:00:00.000Z", ""]
    events = [
        Event(n, 0, with_offset(encode_body("job_cancelling", at, str(n)), n))
        for n, at in enumerate(times)
    ]
    other = Event(9, 0, with_offset(encode_body("note", now_text(), "9"), 9))
    broken = Event(10, 0, b"no JSON")
    since = time_text(time.time() - listener.KEPT_SECONDS)
    assert listener.requested_jobs([*events, other, broken], since) == ["0"]


@pytest.mark.parametrize("hours", [-4, 4])
def test_the_server_s_clock_decides_whether_a_request_counts(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    request(runtime, "1")
    wrong = SimpleNamespace(**vars(time) | {"time": lambda: time.time() + hours * 3600})
    for module in (status, server_clock):
        monkeypatch.setattr(module, "time", wrong)
    assert "1" in read_cancelled_jobs(runtime)


def test_a_request_that_arrives_now_counts_whatever_its_host_s_clock_says(
    runtime: Runtime, begin: Callable[[str], Job]
) -> None:
    running = begin("1")
    # The first question starts the listener.
    assert not running.is_cancelled
    event = Event(
        1, 0, with_offset(encode_body("job_cancelling", "2020-01-01T00:00:00.000Z", "1"), 1)
    )
    assert listener._listener is not None
    listener._listener.events(CONTROL_TOPIC, Cursor("e", 0, 0), [event])
    assert running.is_cancelled
