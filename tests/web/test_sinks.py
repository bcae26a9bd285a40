"""Sinks in a web server: handlers, retries, deadlines, stops and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from waiting import until

from semantik_realtime import Realtime, RejectEvent
from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings
from semantik_realtime.core import sinks as rules
from semantik_realtime.errors import BackendRefused, BackendUnavailable, ConfigError
from semantik_realtime.sinks import runner
from semantik_realtime.sinks.registry import SinkEvent
from semantik_realtime.testing.shared_memory import SharedMemory


@pytest.fixture
def realtime(monkeypatch: pytest.MonkeyPatch) -> Realtime:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runner, "STATUS_SECONDS", 0.05)
    monkeypatch.setattr(rules, "FIRST_PAUSE_SECONDS", 0.02)
    return Realtime(Settings(backend="memory", jwt_secret="a secret of at least thirty-two bytes"))


@contextlib.asynccontextmanager
async def started(realtime: Realtime) -> AsyncIterator[None]:
    """The lifespan of an application, when its sinks are recorded."""
    app = FastAPI()
    realtime.install(app)
    async with app.router.lifespan_context(app):
        await until(lambda: is_recorded(realtime), 10, "the sinks are recorded")
        yield


def is_recorded(realtime: Realtime) -> bool:
    if realtime.sink_backend is None or not realtime.settings.run_sinks:
        return True
    try:
        found = {one.name for one in realtime.sink_backend.sink_status()}
    except BackendUnavailable:
        return False
    return {sink.name for sink in realtime.sinks} <= found


def status(realtime: Realtime, name: str) -> Any:
    return next(one for one in realtime.sink_backend.sink_status() if one.name == name)


async def test_a_handler_gets_each_matching_event_with_its_members(realtime: Realtime) -> None:
    events: list[SinkEvent] = []

    @realtime.sink(types=["job_started", "note"], name="all")
    async def handle(event: SinkEvent) -> None:
        events.append(event)

    async with started(realtime):
        await realtime.publish("job:a/b", "job_started", owner="ada", state={"status": "running"})
        await realtime.publish("job:a/b", "job_progress", state={"status": "running"})
        await realtime.publish("job:a/b", "note", data={"n": 1})
        await until(lambda: len(events) == 2, 10, "both events are handled")
        await until(lambda: status(realtime, "all").queued == 0, 10, "the queue is empty")
    started_event, note = sorted(events, key=lambda event: event.offset)
    assert started_event.topic == "job:a~2Fb"
    assert (started_event.job, started_event.key, started_event.owner) == ("a/b", "a/b", "ada")
    assert started_event.has_state
    assert started_event.state["status"] == "running"
    assert not started_event.terminal
    assert (note.has_state, note.state, note.data, note.attempt) == (False, None, {"n": 1}, 1)
    assert started_event.identity != note.identity
    assert started_event.epoch == note.epoch
    assert realtime.sink_runner.outcomes["handled"] == 2


async def test_a_plain_function_runs_in_a_thread_and_blocks_nobody(realtime: Realtime) -> None:
    threads: list[str] = []
    go_on = threading.Event()

    @realtime.sink(name="blocking")
    def handle(event: SinkEvent) -> None:
        threads.append(threading.current_thread().name)
        go_on.wait(10)

    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: threads, 10, "the handler runs")
        go_on.set()
        await until(lambda: status(realtime, "blocking").handled == 1, 10, "it is handled")
    assert threads == ["sink-blocking"]


async def test_a_failed_event_comes_again_and_is_a_dead_letter_after_the_last_attempt(
    realtime: Realtime, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[tuple[str, int]] = []

    @realtime.sink(name="failing", attempts=3)
    async def handle(event: SinkEvent) -> None:
        attempts.append((event.identity, event.attempt))
        raise ValueError("no room")

    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "failing").dead == 1, 10, "it is a dead letter")
        [letter] = realtime.sink_backend.sink_dead("failing", "", 10)
        await until(lambda: realtime.sink_runner.statuses["failing"].dead == 1, 10, "it is shown")
    assert len({identity for identity, _ in attempts}) == 1
    assert [attempt for _, attempt in attempts] == [1, 2, 3]
    assert letter.error == "ValueError: no room"
    assert realtime.sink_runner.outcomes == {"handled": 0, "retried": 2, "dead": 1, "skipped": 0}
    lines = [record.getMessage() for record in caplog.records if "sinks: " in record.message]
    assert sum("handler failed" in line for line in lines) == 2
    assert sum("dead letter sink=failing" in line for line in lines) == 1


async def test_a_rejected_event_is_a_dead_letter_at_once(realtime: Realtime) -> None:
    @realtime.sink(name="rejecting")
    def handle(event: SinkEvent) -> None:
        raise RejectEvent("no such user")

    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "rejecting").dead == 1, 10, "it is a dead letter")
    assert realtime.sink_runner.outcomes["retried"] == 0


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_a_handler_that_hangs_has_failed_after_its_deadline(
    realtime: Realtime, kind: str
) -> None:
    release = threading.Event()
    attempts: list[int] = []

    async def hang(event: SinkEvent) -> None:
        attempts.append(event.attempt)
        if event.attempt == 1:
            await asyncio.sleep(60)

    def hang_in_thread(event: SinkEvent) -> None:
        attempts.append(event.attempt)
        if event.attempt == 1:
            release.wait(60)

    realtime.sink(name="hanging", deadline_seconds=0.05)(
        hang if kind == "coroutine" else hang_in_thread
    )
    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "hanging").handled == 1, 10, "it is handled")
        release.set()
    assert attempts == [1, 2]


async def test_threads_that_hang_take_the_places_of_their_sink_alone(realtime: Realtime) -> None:
    release = threading.Event()
    calls: list[int] = []
    others: list[int] = []

    @realtime.sink(name="stuck", deadline_seconds=0.05, at_once=2)
    def stuck(event: SinkEvent) -> None:
        calls.append(event.offset)
        release.wait(60)

    @realtime.sink(name="other")
    async def other(event: SinkEvent) -> None:
        others.append(event.offset)

    async with started(realtime):
        for _ in range(6):
            await realtime.publish("job:1", "note")
        await until(lambda: len(others) == 6, 10, "the other sink has handled all")
        await until(lambda: realtime.sink_runner.outcomes["retried"] == 2, 10, "both failed")
        await asyncio.sleep(0.1)
        assert len(calls) == 2
        release.set()
        await until(lambda: status(realtime, "stuck").queued == 0, 10, "they go on")


@pytest.mark.parametrize(
    "raised", [SystemExit(1), asyncio.CancelledError(), StopIteration("x"), KeyError("x")]
)
@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_whatever_a_handler_raises_is_a_failure_of_this_event(
    realtime: Realtime, kind: str, raised: BaseException
) -> None:
    async def fail(event: SinkEvent) -> None:
        raise raised

    def fail_in_thread(event: SinkEvent) -> None:
        raise raised

    realtime.sink(name="odd", attempts=2)(fail if kind == "coroutine" else fail_in_thread)
    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "odd").dead == 1, 10, "it is a dead letter")


async def test_a_function_that_returns_a_coroutine_is_a_failure_and_no_silent_success(
    realtime: Realtime,
) -> None:
    async def inner(event: SinkEvent) -> None: ...

    realtime.sink(name="lambda", attempts=1)(lambda event: inner(event))
    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "lambda").dead == 1, 10, "it is a dead letter")
    [letter] = realtime.sink_backend.sink_dead("lambda", "", 10)
    assert "awaitable" in letter.error


async def test_a_stop_waits_for_handlers_and_gives_back_what_it_cancels(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.2)
    quick: list[int] = []
    slow: list[int] = []

    @realtime.sink(types="quick", name="quick")
    async def handle(event: SinkEvent) -> None:
        quick.append(0)
        await asyncio.sleep(0.05)
        quick.append(1)

    @realtime.sink(types="slow", name="slow")
    async def sleep(event: SinkEvent) -> None:
        slow.append(event.attempt)
        await asyncio.sleep(60)

    async with started(realtime):
        await realtime.publish("job:1", "slow")
        await realtime.publish("job:1", "quick")
        await until(lambda: quick and slow, 10, "both run")
        began = time.monotonic()
    assert time.monotonic() - began < 3.0
    assert quick == [0, 1]
    assert status(realtime, "quick").handled == 1
    [again] = realtime.sink_backend.sink_take("slow", sink_filter(realtime, "slow"), 1, 1.0)
    assert again.attempt == 1


async def test_a_stop_does_not_wait_for_a_thread_that_hangs(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.2)
    release = threading.Event()
    calls: list[int] = []

    @realtime.sink(name="hanging")
    def handle(event: SinkEvent) -> None:
        calls.append(event.attempt)
        release.wait(60)

    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: calls, 10, "it runs")
        began = time.monotonic()
    assert time.monotonic() - began < 3.0
    release.set()


def sink_filter(realtime: Realtime, name: str) -> bytes:
    return next(sink.filter for sink in realtime.sinks if sink.name == name).encode()


async def test_another_version_that_starts_later_takes_over_until_it_is_silent(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "TAKEOVER_SECONDS", 0.5)
    events: list[str] = []

    @realtime.sink(types=["note", "later"], name="versions")
    async def handle(event: SinkEvent) -> None:
        events.append(event.type)

    newer = rules.SinkFilter.of(["note", "newer"], "job:*").encode()
    async with started(realtime):
        assert realtime.sink_backend.sink_open("versions", newer, 10, 0.0)
        await realtime.publish("job:1", "newer")
        await realtime.publish("job:1", "note")
        await until(lambda: "another version" in caplog.text, 10, "it says that it waits")
        assert events == []
        # Nobody takes any more: it comes back, and skips what is not for it.
        await until(lambda: events == ["note"], 10, "it handles its own")
        await until(lambda: status(realtime, "versions").queued == 0, 10, "the queue is empty")
        await realtime.publish("job:1", "later")
        await until(lambda: events == ["note", "later"], 10, "its filter is recorded")
    assert realtime.sink_runner.outcomes["skipped"] == 1


async def test_a_sink_that_the_backend_has_forgotten_is_recorded_again(realtime: Realtime) -> None:
    events: list[str] = []

    @realtime.sink(name="kept")
    async def handle(event: SinkEvent) -> None:
        events.append(event.type)

    async with started(realtime):
        realtime.sink_backend.sink_forget("kept")
        await until(lambda: realtime.sink_backend.sink_status(), 10, "it is recorded again")
        await realtime.publish("job:1", "note")
        await until(lambda: events == ["note"], 10, "it gets events")


class FailingTwice:
    """Hooks that fail some calls of one kind and then work."""

    def __init__(self, target: Any, name: str, error: Exception, times: int = 2) -> None:
        self.target, self.name, self.error, self.times = target, name, error, times

    def __getattr__(self, name: str) -> Any:
        if name == self.name and self.times > 0:
            self.times -= 1

            def fail(*args: Any) -> Any:
                raise self.error

            return fail
        return getattr(self.target, name)


@pytest.mark.parametrize("hook", ["sink_open", "sink_take", "sink_settle", "sink_status"])
async def test_a_backend_that_fails_for_a_moment_stops_no_sink(
    realtime: Realtime, hook: str
) -> None:
    events: list[str] = []

    @realtime.sink(name="steady")
    async def handle(event: SinkEvent) -> None:
        events.append(event.type)

    real = realtime.sink_backend
    realtime.sink_backend = FailingTwice(real, hook, BackendUnavailable("away"))
    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: real.sink_status()[0].handled == 1, 10, "it is handled")
    assert set(events) == {"note"}


async def test_a_server_that_refuses_sinks_is_logged_once(
    realtime: Realtime, caplog: pytest.LogCaptureFixture
) -> None:
    realtime.sink(name="refused")(lambda event: None)
    refusing = FailingTwice(realtime.sink_backend, "sink_open", BackendRefused("a cluster"), 3)
    realtime.sink_backend = refusing
    async with started(realtime):
        pass
    lines = [record for record in caplog.records if "sinks: refused" in record.getMessage()]
    assert len(lines) == 1
    assert "a cluster" in lines[0].getMessage()


async def test_an_application_with_a_sink_does_not_start_on_a_backend_without_the_hooks(
    realtime: Realtime,
) -> None:
    realtime.sink_backend = None
    async with started(realtime):
        pass
    realtime.sink(name="ends")(lambda event: None)
    app = FastAPI()
    realtime.install(app)
    with pytest.raises(ConfigError, match=r"no hooks for sinks.*ends.*docs/sinks\.md"):
        async with app.router.lifespan_context(app):
            pass


async def test_web_servers_can_leave_the_sinks_to_other_processes() -> None:
    secret = "a secret of at least thirty-two bytes"
    realtime = Realtime(Settings(backend="memory", jwt_secret=secret, run_sinks=False))
    realtime.sink(name="elsewhere")(lambda event: None)
    async with started(realtime):
        assert realtime.sink_backend.sink_status() == []


async def test_an_application_without_sinks_makes_no_task_and_no_call(realtime: Realtime) -> None:
    class NoCalls:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    realtime.sink_backend = NoCalls()
    app = FastAPI()
    realtime.install(app)
    async with app.router.lifespan_context(app):
        names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if "sink" in name]


@pytest.mark.parametrize(
    "options",
    [
        {"types": "Not a type"},
        {"types": []},
        {"topics": []},
        {"topics": "no topic"},
        {"topics": "job:*x*"},
        {"name": "two words"},
        {"name": "x" * 101},
        {"attempts": 0},
        {"deadline_seconds": 0},
        {"at_once": 0},
    ],
)
def test_a_wrong_option_is_refused_when_the_sink_is_registered(
    realtime: Realtime, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        realtime.sink(**{"name": "ends", **options})(lambda event: None)


def test_a_name_is_one_sinks_and_the_same_in_every_process(realtime: Realtime) -> None:
    realtime.sink(name="ends")(lambda event: None)
    with pytest.raises(ConfigError, match="ends already"):
        realtime.sink(name="ends")(lambda event: None)
    with pytest.raises(ConfigError, match="needs a name="):
        realtime.sink()(lambda event: None)
    realtime.sink()(sink_filter)
    assert f"{__name__}.sink_filter" in {sink.name for sink in realtime.sinks}


async def test_a_sink_that_is_registered_too_late_is_refused(realtime: Realtime) -> None:
    realtime.sink(name="early")(lambda event: None)
    async with started(realtime):
        with pytest.raises(ConfigError, match="before the application starts"):
            realtime.sink(name="late")(lambda event: None)


async def test_a_damaged_event_is_a_dead_letter(
    realtime: Realtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls: list[int] = []
    realtime.sink(name="whole")(lambda event: calls.append(1))
    real = realtime.sink_backend

    class Damaging:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def sink_take(self, *args: Any) -> Any:
            taken = real.sink_take(*args)
            return taken and [msgspec.structs.replace(one, json=b"{") for one in taken]

    realtime.sink_backend = Damaging()
    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "whole").dead == 1, 10, "it is a dead letter")
    assert calls == []
    assert "cannot be read" in caplog.text


async def test_a_test_that_replaces_the_backend_of_a_running_application_gets_its_sinks(
    realtime: Realtime,
) -> None:
    events: list[str] = []

    @realtime.sink(name="kept")
    async def handle(event: SinkEvent) -> None:
        events.append(event.job or "")

    async with started(realtime):
        memory = SharedMemory(load_backend(realtime.settings))
        undo = await asyncio.to_thread(realtime.replace_backend, memory.client())
        await until(lambda: memory.store.sink_status(), 10, "the sink is recorded there")
        await realtime.publish("job:1", "note")
        await until(lambda: events == ["1"], 10, "it is handled")
        await asyncio.to_thread(undo)
        await realtime.publish("job:2", "note")
        await until(lambda: events == ["1", "2"], 10, "so it is in the backend before")
