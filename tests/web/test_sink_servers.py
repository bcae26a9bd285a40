"""Sinks in a web server: registration, versions, failing backends, and stops."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from fastapi import FastAPI
from sink_hosting import realtime, sink_filter, started, status
from waiting import until

from semantik_realtime import Realtime
from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings
from semantik_realtime.core import sinks as rules
from semantik_realtime.errors import BackendRefused, BackendUnavailable, ConfigError
from semantik_realtime.sink_hooks import SinkStatus
from semantik_realtime.sinks import runner, worker
from semantik_realtime.sinks.registry import SinkEvent
from semantik_realtime.testing.shared_memory import SharedMemory

__all__ = ["realtime"]


async def test_a_stop_waits_for_handlers_and_gives_back_what_it_cancels(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 1.0)
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
    assert time.monotonic() - began < 20
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
    assert time.monotonic() - began < 20
    release.set()


async def test_another_version_that_starts_later_takes_over_until_it_is_silent(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "TAKEOVER_SECONDS", 0.5)
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
        # Nobody takes any more: it comes back, and buries what is not for it.
        await until(lambda: events == ["note"], 10, "it handles its own")
        await until(lambda: status(realtime, "versions").queued == 0, 10, "the queue is empty")
        await realtime.publish("job:1", "later")
        await until(lambda: events == ["note", "later"], 10, "its filter is recorded")
        [letter] = realtime.sink_backend.sink_dead("versions", "", 10)
        assert (letter.error, letter.entry.topic) == (
            "RejectEvent: not of this version's filter",
            "job:1",
        )
        assert b'"newer"' in letter.entry.json
        assert status(realtime, "versions").handled == 2
    assert realtime.sink_runner.outcomes == {"handled": 2, "retried": 0, "dead": 1}


async def test_a_version_whose_places_are_all_busy_is_not_taken_over(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.05, raising=False)
    release = asyncio.Event()
    running: list[int] = []

    @realtime.sink(name="busy", at_once=1)
    async def handle(event: SinkEvent) -> None:
        running.append(event.offset)
        await release.wait()

    async with started(realtime):
        for _ in range(2):
            await realtime.publish("job:1", "note")
        await until(lambda: running, 10, "its only place is busy")
        seen = [status(realtime, "busy").taken_seconds]

        def has_taken_again() -> bool:
            seen.append(status(realtime, "busy").taken_seconds)
            return seen[-1] < seen[-2]

        await until(has_taken_again, 10, "it takes nothing, and says so")
        assert running == [1]
        assert status(realtime, "busy").held == 1
        release.set()
        await until(lambda: status(realtime, "busy").handled == 2, 10, "it goes on")


async def test_a_sink_that_the_backend_has_forgotten_is_recorded_again_with_a_warning(
    realtime: Realtime, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []

    @realtime.sink(name="kept")
    async def handle(event: SinkEvent) -> None:
        events.append(event.type)

    async with started(realtime):
        realtime.sink_backend.sink_forget("kept")
        await until(lambda: realtime.sink_backend.sink_status(), 10, "it is recorded again")
        await realtime.publish("job:1", "note")
        await until(lambda: events == ["note"], 10, "it gets events")
    lines = [line for line in caplog.messages if "had forgotten this sink" in line]
    assert len(lines) == 1
    assert "sink=kept" in lines[0]


async def test_while_the_backend_is_away_a_sink_looks_as_often_as_ever(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    pause = worker.SinkWorker._pause

    async def note_pause(self: worker.SinkWorker, seconds: float) -> None:
        pauses.append(seconds)
        await pause(self, min(seconds, 0.01))

    monkeypatch.setattr(worker.SinkWorker, "_pause", note_pause)
    realtime.sink(name="waiting")(lambda event: None)
    away = BackendUnavailable("away")
    async with started(realtime):
        failing = FailingTwice(realtime.sink_backend, "sink_take", away, 20)
        realtime.sink_backend = failing
        await until(lambda: failing.times == 0, 10, "it has looked")
    assert max(pauses) <= worker.POLL_SECONDS * 1.2
    assert "had forgotten" not in caplog.text


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


FAILURES = [(hook, BackendUnavailable("away")) for hook in ("sink_open", "sink_take")]
FAILURES += [(hook, BackendUnavailable("away")) for hook in ("sink_settle", "sink_status")]


@pytest.mark.parametrize(
    ("hook", "error"),
    [*FAILURES, *((hook, RuntimeError("a fault")) for hook in ("sink_open", "sink_take"))],
)
async def test_a_backend_that_fails_for_a_moment_stops_no_sink(
    realtime: Realtime, hook: str, error: Exception
) -> None:
    events: list[str] = []

    @realtime.sink(name="steady")
    async def handle(event: SinkEvent) -> None:
        events.append(event.type)

    real = realtime.sink_backend
    realtime.sink_backend = FailingTwice(real, hook, error)
    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: real.sink_status()[0].handled == 1, 10, "it is handled")
    assert set(events) == {"note"}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BackendUnavailable("away"), ""),
        (BackendRefused("WRONGTYPE"), "sinks: no status error=WRONGTYPE"),
        (RuntimeError("a fault"), "sinks: failed, no status"),
        (None, "sinks: unreadable queue sink=seen error=WRONGTYPE"),
    ],
)
async def test_a_status_that_cannot_be_read_leaves_the_last_one_and_is_logged_once(
    realtime: Realtime, caplog: pytest.LogCaptureFixture, error: Exception | None, line: str
) -> None:
    realtime.sink(name="seen")(lambda event: None)
    runner = realtime.sink_runner
    async with started(realtime):
        await realtime.publish("job:1", "note")
        is_seen = lambda: "seen" in runner.statuses and runner.statuses["seen"].handled == 1  # noqa: E731
        await until(is_seen, 10, "it is shown")
        real, calls = realtime.sink_backend, []

        class Spoiled:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def sink_status(self) -> Any:
                calls.append(1)
                if error is not None:
                    raise error
                return [SinkStatus.unreadable("seen", b"{}", "WRONGTYPE")]

        realtime.sink_backend = Spoiled()
        await until(lambda: len(calls) >= 4, 10, "it has looked again and again")
        assert is_seen()
    lines = [one for one in caplog.messages if "no status" in one or "unreadable" in one]
    assert [one.removesuffix(" (logged once)") for one in lines] == [line] * bool(line)


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
    assert "sink_hosting.sink_filter" in {sink.name for sink in realtime.sinks}


async def test_a_sink_that_is_registered_too_late_is_refused(realtime: Realtime) -> None:
    realtime.sink(name="early")(lambda event: None)
    async with started(realtime):
        with pytest.raises(ConfigError, match="before the application starts"):
            realtime.sink(name="late")(lambda event: None)


async def test_two_stops_at_once_are_one(
    realtime: Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.2)
    calls: list[int] = []

    @realtime.sink(name="slow")
    async def sleep(event: SinkEvent) -> None:
        calls.append(event.attempt)
        await asyncio.sleep(60)

    async with started(realtime):
        await realtime.publish("job:1", "note")
        await until(lambda: calls, 10, "it runs")
        await asyncio.gather(realtime.sink_runner.stop(), realtime.sink_runner.stop())
        # It was given back, in time.
        [again] = realtime.sink_backend.sink_take("slow", sink_filter(realtime, "slow"), 1, 1.0)
    assert again.attempt == 1


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
