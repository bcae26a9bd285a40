"""Sinks in a web server: what handlers get, and what follows when they fail."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import msgspec
import pytest
from sink_hosting import realtime, started, status
from waiting import until

from semantik_realtime import Realtime, RejectEvent
from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.sinks import worker
from semantik_realtime.sinks.registry import SinkEvent

__all__ = ["realtime"]


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
    assert realtime.sink_runner.outcomes == {"handled": 0, "retried": 2, "dead": 1}
    lines = [record.getMessage() for record in caplog.records if "sinks: " in record.message]
    assert sum("handler failed" in line for line in lines) == 1
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


async def test_a_plugin_can_wrap_what_a_sink_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decrypting:
        @hookimpl(wrapper=True)
        def sink_take(self, name: str) -> Any:
            taken = yield
            return taken and [
                msgspec.structs.replace(one, json=one.json.replace(b"secret", b"plain"))
                for one in taken
            ]

    secret = "a secret of at least thirty-two bytes"
    settings = Settings(backend="memory", jwt_secret=secret)
    realtime = Realtime(settings, plugins=[Decrypting()])
    found: list[Any] = []
    realtime.sink(name="wrapped")(lambda event: found.append(event.data["text"]))
    async with started(realtime):
        await realtime.publish("job:1", "note", data={"text": "secret"})
        await until(lambda: found == ["plain"], 10, "it is decrypted")


async def test_types_may_be_the_words_of_the_application() -> None:
    settings = Settings(
        backend="memory",
        jwt_secret="a secret of at least thirty-two bytes",
        host_words={"operation_completed": "job_completed"},
    )
    realtime = Realtime(settings)
    realtime.sink("operation_completed", name="ends")(lambda event: None)
    [sink] = realtime.sinks
    assert sink.filter.types == ("job_completed",)


async def test_many_failures_are_one_line_with_their_number(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "LOG_SECONDS", 0.5)

    @realtime.sink(name="failing", attempts=1)
    def fail(event: SinkEvent) -> None:
        raise ValueError("no room")

    async with started(realtime):
        for _ in range(20):
            await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "failing").dead == 20, 10, "all are dead letters")
        await asyncio.sleep(0.5)
        await realtime.publish("job:1", "note")
        await until(lambda: status(realtime, "failing").dead == 21, 10, "and the last one")
    lines = [line for line in caplog.messages if "dead letter" in line]
    counts = [int(line.split("more=")[1].split()[0]) for line in lines]
    assert len(lines) + sum(counts) == 21
    assert len(lines) < 10
