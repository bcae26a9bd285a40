"""The emitter, against a backend that fails in every way it can."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from topic_log import wait_until

from semantik_realtime.backends import guard
from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.backoff import Backoff
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Outcome, Receipt, StateChange, encode_body
from semantik_realtime.core.lifecycle import EVENTS_DROPPED
from semantik_realtime.core.spool import Spool
from semantik_realtime.emitter import dropped as dropped_module
from semantik_realtime.emitter import emitter as emitter_module
from semantik_realtime.emitter import queue, sender
from semantik_realtime.emitter.dropped import DroppedEvents
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.emitter.handover import Handover
from semantik_realtime.errors import AppendUncertain, BackendUnavailable

TIME = "2026-01-01T00:00:00.000Z"
TOPIC = "job:1"


def draft(number: int, *, topic: str = TOPIC, terminal: bool = False) -> Draft:
    body = encode_body("note", TIME, "1", state={"number": number}, terminal=terminal)
    return Draft(
        topic=topic,
        type="note",
        key="1",
        body=body,
        change=StateChange.SET,
        terminal=terminal,
        job="1",
    )


class Line:
    """The memory backend behind a line that can fail, hang and lose replies."""

    def __init__(self) -> None:
        self.guard = GuardedBackend(self, 5.0)
        self.backend = MemoryBackend(Settings(backend="memory"))
        self.batches: list[list[tuple[str, int]]] = []
        self.faults: list[Callable[[Sequence[Draft]], None]] = []
        self.is_away = False
        self.times: list[float] = []
        self.open = threading.Event()
        self.open.set()

    def close_writer(self) -> None:
        pass

    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self.batches.append([(one.producer, one.number) for one in drafts])
        self.times.append(time.monotonic())
        self.open.wait(30)
        if self.is_away:
            raise BackendUnavailable("the line is cut")
        if self.faults:
            self.faults.pop(0)(drafts)
        return self.backend.publish(drafts)

    def lose(self, drafts: Sequence[Draft]) -> None:
        """Fail before anything is appended."""
        raise BackendUnavailable("the line is cut")

    def swallow(self, drafts: Sequence[Draft]) -> None:
        """Append all drafts and lose the reply."""
        self.backend.publish(drafts)
        raise AppendUncertain("the reply is lost")

    def swallow_half(self, drafts: Sequence[Draft]) -> None:
        self.backend.publish(drafts[: len(drafts) // 2])
        raise AppendUncertain("the reply is lost")

    def break_down(self, drafts: Sequence[Draft]) -> None:
        raise ZeroDivisionError

    def bodies(self, topic: str = TOPIC) -> list[bytes]:
        log = self.backend._logs[topic]
        return [entry[0].json.split(b",", 1)[1] for entry in log.entries]


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def emitter(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emitter]:
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0.01)
    emitter = Emitter(line.guard)
    yield emitter
    line.is_away = False
    line.open.set()
    emitter.close(5)


def bodies_of(drafts: Sequence[Draft]) -> list[bytes]:
    return [one.body[1:] for one in drafts]


def test_drafts_are_appended_in_order(emitter: Emitter, line: Line) -> None:
    drafts = [draft(number) for number in range(1200)]
    for one in drafts:
        emitter.emit(one)
    assert emitter.flush(10)
    assert line.bodies() == bodies_of(drafts)[-1000:]
    assert emitter.stats.appended == 1200


def test_drafts_that_wait_together_are_sent_in_one_batch(emitter: Emitter, line: Line) -> None:
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: line.batches)
    for number in range(1, 101):
        emitter.emit(draft(number))
    line.open.set()
    assert emitter.flush(5)
    assert [len(batch) for batch in line.batches] == [1, 100]


@pytest.mark.parametrize("fault", ["lose", "swallow", "swallow_half"])
def test_a_batch_whose_reply_is_lost_is_appended_once(
    emitter: Emitter, line: Line, fault: str
) -> None:
    line.faults = [getattr(line, fault)] * 3
    drafts = [draft(number) for number in range(50)]
    line.open.clear()
    for one in drafts:
        emitter.emit(one)
    line.open.set()
    assert emitter.flush(10)
    assert line.bodies() == bodies_of(drafts)
    assert emitter.stats.failures == 3
    assert not line.guard.fails_writes


def test_a_batch_is_sent_again_with_the_same_numbers(emitter: Emitter, line: Line) -> None:
    line.faults = [line.swallow, line.lose]
    emitter.emit(draft(1))
    assert emitter.flush(5)
    assert len(line.batches) == 3
    assert line.batches[0] == line.batches[1] == line.batches[2]


def test_numbers_grow_by_one_in_each_topic(emitter: Emitter, line: Line) -> None:
    for number in range(3):
        emitter.emit(draft(number))
        emitter.emit(draft(number, topic="job:2"))
    assert emitter.flush(5)
    sent = [pair for batch in line.batches for pair in batch]
    assert sorted(number for _, number in sent) == [1, 1, 2, 2, 3, 3]
    assert len({producer for producer, _ in sent}) == 1


def test_no_number_is_used_twice_if_there_are_many_topics(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_NUMBERED_TOPICS", 3)
    for turn in range(4):
        for topic in range(5):
            emitter.emit(draft(turn, topic=f"job:{topic}"))
    assert emitter.flush(5)
    assert emitter.stats.appended == 20
    assert emitter.stats.duplicate == 0


def test_emit_returns_at_once_while_the_backend_hangs(emitter: Emitter, line: Line) -> None:
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: line.batches)
    begun = time.monotonic()
    for number in range(1000):
        emitter.emit(draft(number))
    emitter.throttle("key", 0.1, lambda: None)
    assert time.monotonic() - begun < 5
    assert emitter.waiting >= 1000


def test_emit_returns_at_once_while_a_hanging_emitter_is_closed(
    emitter: Emitter, line: Line
) -> None:
    line.open.clear()
    emitter.emit(draft(1))
    wait_until(lambda: line.batches)
    closing = threading.Thread(target=emitter.close, args=(0.1,))
    closing.start()
    wait_until(lambda: emitter.is_closing)
    begun = time.monotonic()
    emitter.emit(draft(2))
    assert time.monotonic() - begun < 5
    line.open.set()
    closing.join(5)
    # Nothing else is emitted that could start the thread again.
    wait_until(lambda: len(line.bodies()) == 2)


def test_flush_returns_at_its_deadline(emitter: Emitter, line: Line) -> None:
    line.open.clear()
    emitter.emit(draft(1))
    begun = time.monotonic()
    assert not emitter.flush(0.05)
    assert time.monotonic() - begun < 5


def test_flush_waits_for_the_receipts(emitter: Emitter, line: Line) -> None:
    line.faults = [line.lose, line.lose]
    emitter.emit(draft(1))
    assert emitter.flush(5)
    assert emitter.stats.appended == 1


def test_flush_does_not_wait_for_drafts_emitted_after_it(emitter: Emitter, line: Line) -> None:
    line.is_away = True
    barrier = threading.Event()
    # As `flush` does it, before the thread starts: it must find barrier and draft together.
    emitter._queue.inbox.append(barrier)
    emitter.emit(draft(0))
    wait_until(lambda: line.guard.fails_writes)
    assert barrier.wait(5)


def test_flush_without_while_failing_returns_as_soon_as_the_backend_fails(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter.emit(draft(0))
    assert emitter.flush(5, while_failing=False)
    line.is_away = True
    emitter.emit(draft(1))
    begun = time.monotonic()
    assert not emitter.flush(60, while_failing=False)
    monkeypatch.setattr(emitter_module, "NOTICE_SECONDS", 60.0)
    emitter.emit(draft(2))
    assert not emitter.flush(60, while_failing=False)
    assert time.monotonic() - begun < 20
    line.is_away = False
    assert emitter.flush(5)


def test_flush_without_while_failing_waits_for_a_backend_that_hangs_a_moment(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: line.batches)
    assert not emitter.flush(0.05, while_failing=False)
    assert not line.guard.fails_writes
    monkeypatch.setattr(guard, "HANG_SECONDS", 0.2)
    assert not emitter.flush(60, while_failing=False)
    assert line.guard.fails_writes


def test_flush_is_right_after_a_close_that_timed_out(emitter: Emitter, line: Line) -> None:
    line.faults = [line.lose] * 1000
    emitter.emit(draft(1))
    assert not emitter.close(0.05)
    wait_until(lambda: emitter._thread is None)
    assert not emitter.flush(0.05)
    line.faults.clear()
    assert emitter.flush(5)
    assert line.bodies() == bodies_of([draft(1)])


def test_an_emitter_can_be_used_after_it_was_closed(emitter: Emitter, line: Line) -> None:
    emitter.emit(draft(1))
    assert emitter.close(5)
    emitter.emit(draft(2))
    assert emitter.flush(5)
    assert len(line.bodies()) == 2


def test_a_fault_of_the_backend_loses_one_batch_and_the_emitter_goes_on(
    emitter: Emitter, line: Line
) -> None:
    line.faults = [line.break_down]
    answer = emitter.emit_and_confirm(draft(1))
    assert isinstance(answer.exception(5), BackendUnavailable)
    emitter.emit(draft(2))
    assert emitter.flush(5)
    assert line.bodies() == bodies_of([draft(2)])


def test_a_confirmed_draft_has_its_receipt(emitter: Emitter) -> None:
    receipt = emitter.emit_and_confirm(draft(1)).result(5)
    assert receipt.outcome is Outcome.APPENDED
    assert receipt.cursor is not None
    assert receipt.cursor.offset == 1


def test_a_loop_that_waits_for_room_loses_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter_module, "MAX_WAIT_SECONDS", 60.0)
    emitter = Emitter(line.guard, max_drafts=100)
    for number in range(5000):
        emitter.wait_for_room()
        emitter.emit(draft(number))
        # Twice: drafts that move from the inbox to the spool meanwhile are counted there too.
        assert emitter.waiting <= 2 * 51
    assert emitter.close(30)
    assert emitter.stats.appended == 5000
    assert emitter.stats.dropped == 0


def test_the_wait_for_room_ends_when_the_backend_hangs_or_fails(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(emitter_module, "MAX_WAIT_SECONDS", 60.0)
    emitter = Emitter(line.guard, max_drafts=10)
    line.open.clear()
    for number in range(10):
        emitter.emit(draft(number))
    begun = time.monotonic()
    emitter.wait_for_room()
    assert line.guard.fails_writes
    line.is_away = True
    line.open.set()
    wait_until(lambda: emitter.is_retrying)
    emitter.wait_for_room()
    assert time.monotonic() - begun < 30
    line.is_away = False
    assert emitter.flush(5)
    emitter.close(5)


def test_the_wait_for_room_is_bounded_while_the_backend_is_slow(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HANG_SECONDS", 60.0)
    monkeypatch.setattr(emitter_module, "MAX_WAIT_SECONDS", 0.05)
    emitter = Emitter(line.guard, max_drafts=10)
    line.open.clear()
    for number in range(10):
        emitter.emit(draft(number))
    begun = time.monotonic()
    emitter.wait_for_room()
    assert 0.05 <= time.monotonic() - begun < 30
    line.open.set()
    assert emitter.flush(5)
    emitter.close(5)


def test_a_time_limit_that_ends_the_wait_for_room_leaves_the_emitter_whole(line: Line) -> None:
    class TimeLimit(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise TimeLimit

    emitter = Emitter(line.guard, max_drafts=10)
    line.open.clear()
    for number in range(10):
        emitter.emit(draft(number))
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeLimit):
            emitter.wait_for_room()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    line.open.set()
    assert emitter.flush(5)
    emitter.close(5)
    assert emitter.stats.appended == 10


def reported(line: Line, topic: str = TOPIC) -> list[int]:
    """Return the counts that the reports of dropped events in a log have."""
    log = line.backend._logs.get(topic)
    events = [json.loads(entry[0].json) for entry in log.entries] if log else []
    return [event["data"]["count"] for event in events if event["type"] == EVENTS_DROPPED]


def test_how_many_events_were_dropped_is_an_event_after_the_return(line: Line) -> None:
    emitter = Emitter(line.guard, max_drafts=10)
    line.is_away = True
    for number in range(100):
        emitter.emit(draft(number))
    emitter.emit(draft(100, topic="job:2", terminal=True))
    wait_until(lambda: emitter.is_retrying and not emitter._queue.inbox)
    dropped = emitter.stats.dropped
    assert dropped > 0
    line.is_away = False
    wait_until(lambda: reported(line))
    assert emitter.flush(5)
    emitter.close(5)
    assert reported(line) == [dropped]
    assert reported(line, "job:2") == []
    assert emitter.stats.appended == 101 - dropped + 1


def test_dropped_events_are_reported_after_the_end_of_their_job(line: Line) -> None:
    emitter = Emitter(line.guard, max_drafts=10)
    line.is_away = True
    for number in range(100):
        emitter.emit(draft(number))
    emitter.emit(draft(100, terminal=True))
    line.is_away = False
    wait_until(lambda: reported(line))
    emitter.close(5)
    assert sum(reported(line)) == emitter.stats.dropped


def test_dropped_progress_is_not_reported_and_dropped_reports_are_counted_again() -> None:
    dropped = DroppedEvents()
    one = draft(1)
    one.owner = "7"
    dropped.add(one)
    dropped.add_unlocked(one)
    progress = draft(2)
    progress.type = "job_progress"
    dropped.add(progress)
    (report,) = dropped.reports(10)
    assert (report.topic, report.type, report.owner) == (TOPIC, EVENTS_DROPPED, "7")
    assert not dropped
    dropped.add(report)
    dropped.add(one)
    (report,) = dropped.reports(10)
    assert json.loads(report.body)["data"] == {"count": 3}


def test_the_topics_of_dropped_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped_module, "MAX_TOPICS", 3)
    dropped = DroppedEvents()
    for number in range(10):
        dropped.add(draft(number, topic=f"job:{number}"))
    assert [report.topic for report in dropped.reports(10)] == ["job:0", "job:1", "job:2"]


# Children that end.


def test_what_a_child_cannot_send_its_parent_sends(line: Line, tmp_path: Path) -> None:
    parent, child = Emitter(line.guard), Emitter(line.guard)
    handover = Handover(tmp_path)
    parent.accept_from_children(handover)
    child._handover = handover
    line.open.clear()
    for number in range(5):
        child.emit(draft(number))
    wait_until(lambda: line.batches)
    child.leave_to_parent(60)
    assert not handover.is_empty()
    # Another one that ends does not wait.
    assert handover.wait_seconds == 0
    assert not handover.collect(parent.retry_now, 0.05)
    line.open.set()
    assert handover.collect(parent.retry_now, 10)
    assert child.flush(10)
    for one in (parent, child):
        one.close(5)
    assert line.bodies() == bodies_of([draft(number) for number in range(5)])


def test_a_child_that_has_sent_everything_leaves_nothing(line: Line, tmp_path: Path) -> None:
    child = Emitter(line.guard)
    child._handover = Handover(tmp_path)
    child.emit(draft(1))
    child.leave_to_parent(60)
    child.close(5)
    assert line.bodies() == bodies_of([draft(1)])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_for_children_is_private_and_removed_with_its_files() -> None:
    handover = Handover.make()
    try:
        assert stat.S_IMODE(handover.directory.stat().st_mode) == 0o700
        one = draft(1)
        one.producer, one.number = "p", 1
        handover.leave([one], 2**20)
        assert not handover.is_empty()
    finally:
        handover.remove()
    assert not handover.directory.exists()
    assert handover.is_empty()


def test_ends_are_kept_in_a_full_queue(line: Line) -> None:
    emitter = Emitter(line.guard, max_drafts=10)
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: line.batches)
    for number in range(1, 100):
        emitter.emit(draft(number))
    emitter.emit(draft(100, terminal=True))
    line.open.set()
    assert emitter.flush(5)
    emitter.close(5)
    assert line.bodies()[-2] == draft(100, terminal=True).body[1:]
    assert reported(line) == [emitter.stats.dropped]
    assert emitter.stats.dropped == 102 - emitter.stats.appended > 0


@pytest.mark.parametrize("limits", [{"max_drafts": 100}, {"max_bytes": 2**16}])
def test_waiting_drafts_are_bounded_while_the_backend_hangs_and_every_end_is_kept(
    line: Line, limits: dict[str, int]
) -> None:
    emitter = Emitter(line.guard, **limits)
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: emitter._sender.has_called_for(emitter_module.SLOW_SECONDS))
    ends = []
    for number in range(1, 3001):
        is_end = number % 100 == 0
        one = draft(number, topic=f"job:{number}", terminal=is_end)
        if is_end:
            ends.append(one)
        emitter.emit(one)
        # One limit each for the inbox, the spool, and the drafts that move between them.
        assert emitter.waiting <= 3 * limits.get("max_drafts", 10_000)
        assert emitter.waiting_bytes <= 3 * limits.get("max_bytes", 2**24)
    assert emitter.stats.dropped > 1000
    line.open.set()
    assert emitter.close(30)
    assert all(one.topic in line.backend._logs for one in ends)
    reports = sum(len(reported(line, topic)) for topic in line.backend._logs)
    # A call that hung for the guard's 5 s, which a busy machine can take here, is repeated.
    stats = emitter.stats
    assert stats.dropped + stats.appended + stats.duplicate == 3001 + reports
    assert (emitter.waiting, emitter.waiting_bytes) == (0, 0)


def test_close_sends_all_reports_of_dropped_events(line: Line) -> None:
    emitter = Emitter(line.guard, max_drafts=10)
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: emitter._sender.has_called_for(emitter_module.SLOW_SECONDS))
    for number in range(5 * emitter_module.MAX_REPORTS):
        emitter.emit(draft(number, topic=f"job:{number}"))
    line.open.set()
    assert emitter.close(30)
    reports = sum(len(reported(line, topic)) for topic in line.backend._logs)
    assert reports > 4 * emitter_module.MAX_REPORTS


def test_even_ends_are_bounded_while_the_backend_hangs(line: Line) -> None:
    emitter = Emitter(line.guard, max_drafts=100)
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: emitter._sender.has_called_for(emitter_module.SLOW_SECONDS))
    for number in range(1, 3001):
        emitter.emit(draft(number, topic=f"job:{number}", terminal=True))
    wait_until(lambda: emitter.waiting <= 1 + 2 * 100)
    line.open.set()
    assert emitter.close(30)
    reports = sum(len(reported(line, topic)) for topic in line.backend._logs)
    # A call that hung for the guard's 5 s, which a busy machine can take here, is repeated.
    stats = emitter.stats
    assert stats.dropped + stats.appended + stats.duplicate == 3001 + reports
    assert "job:3000" in line.backend._logs


def test_a_full_inbox_admits_ends_and_nothing_else(line: Line) -> None:
    emitter = Emitter(line.guard, max_drafts=10)
    ends = [draft(number, topic="job:2", terminal=True) for number in range(5)]
    # No thread can empty the inbox while this one holds the lock.
    with emitter._queue._lock:
        for number in range(20):
            emitter.emit(draft(number))
        for end in ends:
            emitter.emit(end)
        answer = emitter.emit_and_confirm(draft(20))
        assert isinstance(answer.exception(5), BackendUnavailable)
        assert list(emitter._queue.inbox)[10:] == ends
    assert emitter.stats.dropped == 11
    assert emitter.flush(5)
    emitter.close(5)


def test_dropped_drafts_leave_gaps_in_the_numbers_and_no_duplicates(
    emitter: Emitter, line: Line
) -> None:
    emitter._queue._spool = Spool(10)
    line.is_away = True
    for number in range(100):
        emitter.emit(draft(number))
    wait_until(lambda: emitter.waiting <= 11)
    line.is_away = False
    wait_until(lambda: reported(line))
    assert line.bodies()[-2] == draft(99).body[1:]
    assert emitter.stats.duplicate == 0
    numbers = [number for _, number in line.batches[-2]]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 100 > len(numbers)


def test_calls_to_a_backend_that_is_away_are_bounded_in_rate(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter._sender._backoff = Backoff(0.01, 0.1, jitter=sender.RETRY_JITTER)
    line.is_away = True
    emitter.emit(draft(0))
    while len(line.times) < 16:
        # Emitting does not shorten the pauses.
        emitter.emit(draft(1))
        time.sleep(0.001)
    pauses = [later - earlier for earlier, later in pairwise(line.times)]
    assert min(pauses[4:]) >= 0.1 * (1 - sender.RETRY_JITTER)


def test_the_pauses_between_retries_grow_and_differ_between_processes(line: Line) -> None:
    emitter = Emitter(line.guard)
    waits = []
    for _ in range(100):
        begun = time.monotonic()
        emitter._sender.failed()
        waits.append(emitter._sender._retry_at - begun)
    assert waits[0] < 0.2
    last = waits[10:]
    assert 0.8 <= min(last) < 0.85
    assert 0.95 < max(last) <= 1.01
    assert 0.85 < sum(last) / len(last) < 0.95


def test_retry_now_retries_at_once(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter._sender._backoff = Backoff(60.0, 60.0)
    line.is_away = True
    emitter.emit(draft(0))
    wait_until(lambda: line.guard.fails_writes)
    emitter.retry_now()
    wait_until(lambda: len(line.batches) == 2 and not emitter._sender._is_in_retry)
    line.is_away = False
    emitter.retry_now()
    assert emitter.flush(5)
    assert not line.guard.fails_writes


def test_a_call_that_hangs_counts_as_failing_before_it_fails(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HANG_SECONDS", 0.05)
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: line.guard.fails_writes)
    line.open.set()
    assert emitter.flush(5)
    assert not line.guard.fails_writes
    assert emitter.stats.failures == 0


def test_progress_is_read_and_reported_as_delayed_while_a_retry_hangs(
    emitter: Emitter, line: Line
) -> None:
    delayed: list[Draft] = []
    emitter.on_delayed(delayed.extend)
    line.is_away = True
    emitter.emit(draft(0))
    wait_until(lambda: line.guard.fails_writes)
    line.open.clear()
    calls = len(line.batches)
    wait_until(lambda: len(line.batches) > calls)
    emitter.throttle("key", 0.0, lambda: emitter.emit(draft(1)))
    wait_until(lambda: len(delayed) == 2)
    emitter.emit(draft(2))
    wait_until(lambda: len(delayed) == 3)
    assert bodies_of(delayed) == bodies_of([draft(0), draft(1), draft(2)])
    assert not line.open.is_set()


def test_each_delayed_draft_is_reported_once_and_in_order(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter_module, "MAX_BATCH", 7)
    delayed: list[Draft] = []
    emitter.on_delayed(delayed.extend)
    drafts = [draft(number) for number in range(200)]
    emitter.emit(drafts[0])
    assert emitter.flush(5)
    assert delayed == []
    # The backend fails many times before everything is sent, each time with drafts in flight.
    line.faults = ([line.lose, line.swallow] + [lambda _: None] * 3) * 8
    for one in drafts[1:]:
        emitter.emit(one)
    assert emitter.flush(20)
    assert emitter.stats.failures > 10
    assert line.bodies() == bodies_of(drafts)
    places = [drafts.index(one) for one in delayed]
    assert places == sorted(set(places))
    assert len(places) > 100


def test_waiting_drafts_are_reported_as_delayed_with_the_batch_that_failed(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter._sender._backoff = Backoff(60.0, 60.0)
    delayed: list[Draft] = []
    emitter.on_delayed(delayed.extend)
    drafts = [draft(number) for number in range(3)]
    emitter.emit(drafts[0])
    assert emitter.flush(5)
    # From here on only an `emit` wakes the thread.
    wait_until(lambda: not emitter._wake.is_set())
    line.is_away = True
    emitter.emit(drafts[1])
    wait_until(lambda: delayed)
    emitter.emit(drafts[2])
    wait_until(lambda: len(delayed) == 2)
    assert delayed == drafts[1:]
    assert len(line.batches) == 2
    line.is_away = False
    emitter.retry_now()
    assert emitter.flush(5)
    emitter.emit(draft(3))
    assert emitter.flush(5)
    assert delayed == drafts[1:]


def test_drafts_emitted_between_two_outages_are_reported_in_the_second(
    emitter: Emitter, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter_module, "MAX_BATCH", 7)
    delayed: list[Draft] = []
    emitter.on_delayed(delayed.extend)
    drafts = [draft(number) for number in range(15)]

    def emit_more(_: Sequence[Draft]) -> None:
        for one in drafts[10:]:
            emitter.emit(one)

    line.is_away = True
    line.open.clear()
    emitter.emit(drafts[0])
    wait_until(lambda: line.batches)
    for one in drafts[1:10]:
        emitter.emit(one)
    line.open.set()
    wait_until(lambda: len(delayed) == 10)
    # One is sent, then seven, while five more are emitted. With two of the ten left it fails again.
    line.faults = [lambda _: None, emit_more, line.lose]
    line.is_away = False
    assert emitter.flush(5)
    wait_until(lambda: len(line.bodies()) == 15)
    assert delayed == drafts


def test_a_listener_of_delayed_drafts_that_raises_delays_nothing(
    emitter: Emitter, line: Line
) -> None:
    def fail(drafts: Sequence[Draft]) -> None:
        raise ZeroDivisionError

    emitter.on_delayed(fail)
    line.faults = [line.lose] * 3
    emitter.emit(draft(0))
    assert emitter.flush(5)
    assert line.bodies() == bodies_of([draft(0)])


def test_the_first_call_of_a_throttled_source_comes_at_once(emitter: Emitter) -> None:
    seen: list[int] = []
    emitter.throttle("key", 3600.0, lambda: seen.append(1))
    wait_until(lambda: seen)
    emitter.throttle("key", 3600.0, lambda: seen.append(2))
    emitter.throttle("other", 3600.0, lambda: seen.append(3))
    wait_until(lambda: len(seen) > 1)
    assert seen == [1, 3]


def test_a_throttled_source_is_called_at_most_once_an_interval_and_at_the_end(
    emitter: Emitter,
) -> None:
    value = 0
    seen: list[int] = []

    def source() -> None:
        seen.append(value)

    begun = time.monotonic()
    while time.monotonic() - begun < 0.35:
        value += 1
        emitter.throttle("key", 0.1, source)
    wait_until(lambda: seen[-1] == value)
    assert 2 <= len(seen) <= (time.monotonic() - begun) / 0.1 + 1
    assert seen == sorted(set(seen))


def test_a_source_that_raises_does_not_delay_the_others(emitter: Emitter) -> None:
    called: list[str] = []

    def raises() -> None:
        called.append("bad")
        raise ZeroDivisionError

    # Due in the same step.
    emitter._throttled.add("bad", 0.0, raises)
    emitter._throttled.add("good", 0.0, lambda: called.append("good"))
    emitter._wake_thread()
    wait_until(lambda: "good" in called)
    assert called == ["bad", "good"]


def test_a_forked_child_sends_its_own_drafts_and_none_of_its_parents(
    emitter: Emitter, line: Line
) -> None:
    line.open.clear()
    emitter.emit(draft(0))
    wait_until(lambda: line.batches)
    emitter.emit(draft(1))
    parents_producer = emitter.producer
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            line.batches.clear()
            line.open = threading.Event()
            line.open.set()
            line.backend = MemoryBackend(Settings(backend="memory"))
            emitter.emit(draft(2))
            done = emitter.flush(5)
            good = (
                done
                and line.bodies() == bodies_of([draft(2)])
                and [[number for _, number in batch] for batch in line.batches] == [[1]]
                and line.batches[0][0][0] != parents_producer
            )
            os.write(writing, b"y" if good else b"n")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == b"y"
    os.waitpid(child, 0)
    line.open.set()
    assert emitter.flush(5)
    assert line.bodies() == bodies_of([draft(0), draft(1)])
    assert emitter.producer == parents_producer
