"""The one writer of a process.

Tasks and request handlers put drafts on a queue and go on; a thread, started
at the first draft, carries them to the backend in batches. What waits together
goes together, what is alone goes at once. A retry sends the same drafts with
the same numbers, so it is harmless.

While the backend fails a second thread tries again, about once a second: the
first must not hang with it, for what comes meanwhile is shown and stored at
once.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import secrets
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from semantik_realtime import spoolfile
from semantik_realtime.core.event import Draft, Outcome, Receipt
from semantik_realtime.core.pacing import Pacer
from semantik_realtime.core.spool import Spool
from semantik_realtime.errors import BackendError, BackendUnavailable

logger = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_NUMBERED_TOPICS = 10_000
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0
RETRY_JITTER = 0.2
"""A wait is up to so much of it shorter or longer: many processes fail at the same moment."""
PATIENCE_SECONDS = 1.0
"""A call that is not answered for so long counts as failing."""
SLOW_SECONDS = 0.1
"""During a call that takes longer the inbox has to be emptied by another thread."""
NOTICE_SECONDS = 0.02
"""In which a waiting task notices that the backend fails."""
LOOK_SECONDS = 5.0
"""Between two looks for what ended processes left on disk."""

Publish = Callable[[Sequence[Draft]], Sequence[Receipt]]
Source = Callable[[], None]
"""Called in the emitter's thread when its key is due: emits the newest value, if it is news."""


class EmitterStats(msgspec.Struct):
    """Counts since the process began."""

    appended: int = 0
    duplicate: int = 0
    refused: int = 0
    """Stale or closed: an outdated attempt, or a job that has ended."""
    rejected: int = 0
    """Too big, or too many keys."""
    dropped: int = 0
    """Left out because too much waited; superseded drafts included."""
    failures: int = 0
    """Calls to the backend that failed; they are made again."""


class Emitter:
    """Queue, threads and retries.

    All methods may be called from any thread and from signal receivers; none
    but `flush` and `close` waits, and none raises for an outage. What waits is
    bounded in drafts and bytes, and the ends of attempts go last (`Spool`).
    After a fork the child begins with an empty queue and a producer name of
    its own: what waited belongs to the parent.

    Args:
        directory: where what waits is kept on disk too while the backend
            fails. What a process leaves there when it ends, another one with
            the same directory sends: at its start, or within `LOOK_SECONDS` of
            its backend's return. What was emitted during the first call that
            failed is not there before that call is over. None: memory only.
        after_fork: called in the child.
    """

    def __init__(
        self,
        publish: Publish,
        *,
        max_drafts: int = 10_000,
        max_bytes: int = 16 * 2**20,
        directory: Path | None = None,
        after_fork: Callable[[], object] | None = None,
    ) -> None:
        self.shelter: Callable[[Sequence[Draft]], object] | None = None
        """Called in the emitter's thread with the drafts that have to wait because the backend
        fails: with each once, in order, as soon as that is known."""
        self._publish = publish
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._many_drafts = (max_drafts + 1) // 2
        self._many_bytes = (max_bytes + 1) // 2
        self._directory = directory
        self._after_fork = after_fork
        self._begin()
        _emitters.add(self)

    def _begin(self) -> None:
        self.producer = secrets.token_hex(6)
        self.stats = EmitterStats()
        self._inbox: deque[Draft | threading.Event] = deque()
        self._inbox_bytes = 0
        self._answers: dict[int, Future[Receipt]] = {}
        self._paced: OrderedDict[Hashable, tuple[float, Source]] = OrderedDict()
        self._paced_lock = threading.Lock()
        self._pacer = Pacer()
        # Guards the spool, the numbers and the barriers. Not for tasks' threads: a time limit
        # may interrupt those anywhere.
        self._spool_lock = threading.Lock()
        self._spool = Spool(self._max_drafts, self._max_bytes)
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._barriers: deque[tuple[int, threading.Event]] = deque()
        self._flight: list[Draft] = []
        self._flight_bytes = 0
        # Up to this running number of the spool, what waits was shown and stored.
        self._kept = 0
        self._is_flight_kept = False
        self._file: spoolfile.SpoolFile | None = None
        if self._directory is not None:
            self._file = spoolfile.SpoolFile(self._directory, self._max_bytes)
        self._orphan: spoolfile.Orphan | None = None
        self._passed_over: set[str] = set()
        self._look_at = 0.0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._relief: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = False
        self._called_at = 0.0
        self._retry_seconds = 0.0
        self._retry_at = 0.0
        self._is_trying = False
        self._tried: Sequence[Receipt] | BackendError | None = None

    @property
    def waiting(self) -> int:
        """Drafts that are not yet with the backend."""
        return len(self._inbox) + len(self._spool) + len(self._flight)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their bodies, nearly."""
        return self._inbox_bytes + self._spool.bytes + self._flight_bytes

    @property
    def is_failing(self) -> bool:
        """Whether the last call to the backend failed, or the present one hangs."""
        return self._retry_seconds > 0 or self._has_called_for(PATIENCE_SECONDS)

    def emit(self, draft: Draft) -> None:
        """Send ``draft`` soon. Costs less than a microsecond.

        If too much waits, what does not end an attempt is dropped and counted.
        """
        inbox = self._inbox
        if len(inbox) >= self._many_drafts or self._inbox_bytes >= self._many_bytes:
            if not self._admits(draft):
                self._drop(draft)
                return
        inbox.append(draft)
        self._inbox_bytes += len(draft.body)
        if self._thread is None or not self._wake.is_set():
            self._rouse()

    def emit_and_confirm(self, draft: Draft) -> Future[Receipt]:
        """Send ``draft`` soon; the future has the backend's answer.

        It fails with `BackendUnavailable` if the draft had to be dropped. No
        answer does not mean that it will not be appended later.
        """
        answer: Future[Receipt] = Future()
        self._answers[id(draft)] = answer
        self.emit(draft)
        return answer

    def pace(self, key: Hashable, interval_seconds: float, source: Source) -> None:
        """Call ``source`` in the emitter's thread, at most once an interval for ``key``.

        The first call comes at once, the last is never left out. A key that
        is already due keeps its place.
        """
        with self._paced_lock:
            self._paced.setdefault(key, (interval_seconds, source))
        self._rouse()

    def flush(self, timeout_seconds: float, *, while_failing: bool = True) -> bool:
        """Wait until all that was emitted before has been answered; False: not in time.

        Without ``while_failing`` it also gives up when the backend is found to fail.
        """
        if self._thread is None and not self.waiting:
            return True
        if not while_failing and self.is_failing:
            return False
        barrier = threading.Event()
        self._inbox.append(barrier)
        self._rouse()
        if while_failing:
            return barrier.wait(timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        while not barrier.wait(min(NOTICE_SECONDS, max(0.0, deadline - time.monotonic()))):
            if self.is_failing or time.monotonic() >= deadline:
                return False
        return True

    def hurry(self) -> None:
        """Try now, not when the back-off is over: the backend may be back."""
        self._retry_at = 0.0
        self._look_at = 0.0
        self._wake.set()

    def adopt(self) -> None:
        """From now on send what ended processes left on disk, even if nothing is emitted here."""
        if self._file is not None:
            self._rouse()

    def close(self, timeout_seconds: float = 2.0) -> bool:
        """Flush, then end the thread. A later `emit` starts it again."""
        done = self.flush(timeout_seconds)
        thread = self._thread
        self._closing = True
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)
        return done

    def _admits(self, draft: Draft) -> bool:
        """Whether the inbox, half full or more, takes another draft."""
        if self._is_full() or self._has_called_for(SLOW_SECONDS):
            self._relieve()
        return draft.terminal or not self._is_full()

    def _is_full(self) -> bool:
        return len(self._inbox) >= self._max_drafts or self._inbox_bytes >= self._max_bytes

    def _relieve(self) -> None:
        """Let another thread move what is in the inbox to the spool, which knows what to drop."""
        if self._relief is not None and self._relief.is_alive():
            return

        def relieve() -> None:
            while len(self._inbox) >= self._many_drafts or self._inbox_bytes >= self._many_bytes:
                self._drain()

        self._relief = threading.Thread(
            target=relieve, name="semantik-realtime-relief", daemon=True
        )
        with contextlib.suppress(RuntimeError):
            self._relief.start()

    def _has_called_for(self, seconds: float) -> bool:
        """Whether the backend owes an answer for so long."""
        called_at = self._called_at
        return called_at > 0 and time.monotonic() - called_at > seconds

    def _rouse(self) -> None:
        if self._thread is None:
            self._start()
        if not self._wake.is_set():
            self._wake.set()

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is not None:
                return
            self._closing = False
            self._thread = threading.Thread(
                target=self._run, name="semantik-realtime-emitter", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:
                # No more threads, or the interpreter ends. The next draft tries again.
                self._thread = None
                self.stats.failures += 1
                logger.error("emitter: thread not started error=%s", error)

    def _run(self) -> None:
        while not (self._closing and self._is_over()):
            try:
                pause = self._step()
            except Exception:
                # The thread must outlive any fault of ours: a task's last event needs it.
                logger.exception("emitter: step failed")
                self.stats.failures += 1
                pause = FIRST_RETRY_SECONDS
            if pause is None or pause > 0:
                self._wake.wait(pause)
            self._wake.clear()

    def _is_over(self) -> bool:
        """Whether the closing thread may end: not if something came meanwhile."""
        with self._start_lock:
            self._closing = False
            # Whoever adds a draft looks for the thread after that, so in this order
            # one of the two sees the other.
            self._thread = None
            if self._inbox:
                self._thread = threading.current_thread()
                return False
            self._leave_files()
            return True

    def _step(self) -> float | None:
        """Do what is due; returns the seconds until something is, None for not before a wake."""
        paced_seconds = self._run_paced(time.monotonic())
        self._drain()
        if self._tried is not None:
            tried, self._tried = self._tried, None
            self._is_trying = False
            self._settle(tried)
        elif self._retry_seconds:
            self._keep()
        if not self._retry_seconds and self._directory and time.monotonic() >= self._look_at:
            self._adopt(self._directory)
        if (self._flight or len(self._spool)) and not self._is_trying:
            if time.monotonic() >= self._retry_at:
                self._send()
        self._open_barriers()
        return self._pause_seconds(paced_seconds)

    def _pause_seconds(self, paced_seconds: float | None) -> float | None:
        due = [] if paced_seconds is None else [paced_seconds]
        now = time.monotonic()
        if self._retry_seconds:
            if not self._is_trying:
                due.append(self._retry_at - now)
        elif len(self._spool) or self._inbox:
            return 0.0
        elif self._directory:
            due.append(self._look_at - now)
        return max(0.0, min(due)) if due else None

    def _run_paced(self, now: float) -> float | None:
        wait: float | None = None
        if not self._paced:
            return None
        with self._paced_lock:
            due = []
            for key, (interval, source) in self._paced.items():
                seconds = self._pacer.wait_seconds(key, now)
                if seconds > 0:
                    wait = seconds if wait is None else min(wait, seconds)
                else:
                    due.append((key, interval, source))
            for key, _, _ in due:
                del self._paced[key]
        for key, interval, source in due:
            self._pacer.sent(key, now, interval)
            try:
                source()
            except Exception:
                # The other keys that are due must not pay for it.
                logger.exception("emitter: source failed key=%r", key)
                self.stats.failures += 1
        return wait

    def _drain(self) -> None:
        """Move what is in the inbox now to the spool."""
        with self._spool_lock:
            size = 0
            for _ in range(len(self._inbox)):
                item = self._inbox.popleft()
                if isinstance(item, threading.Event):
                    self._barriers.append((self._spool.added, item))
                    continue
                size += len(item.body)
                self._number(item)
                for lost in self._spool.add(item):
                    self._drop(lost)
            # Whoever puts something in counts without a lock: nothing is what can be relied on.
            self._inbox_bytes = self._inbox_bytes - size if self._inbox else 0

    def _number(self, draft: Draft) -> None:
        number = self._numbers.pop(draft.topic, 0) + 1
        self._numbers[draft.topic] = number
        draft.producer = self.producer
        draft.number = number
        if len(self._numbers) > MAX_NUMBERED_TOPICS:
            # Begin a new series rather than hand out a number twice.
            self.producer = secrets.token_hex(6)
            self._numbers.clear()
            self._number(draft)

    def _send(self) -> None:
        if not self._flight:
            self._take_off()
        if not self._retry_seconds:
            self._settle(self._call(self._flight))
            return
        self._is_trying = True
        trying = threading.Thread(
            target=self._try, args=(self._flight,), name="semantik-realtime-try", daemon=True
        )
        try:
            trying.start()
        except RuntimeError:
            # No more threads, or the interpreter ends.
            self._try(self._flight)

    def _take_off(self) -> None:
        with self._spool_lock:
            # A flight is kept as a whole or not at all.
            self._is_flight_kept = self._spool.oldest < self._kept
            before = self._kept if self._is_flight_kept else None
            self._flight = self._spool.take(MAX_BATCH, before=before)
        self._flight_bytes = sum(len(draft.body) for draft in self._flight)

    def _try(self, flight: Sequence[Draft]) -> None:
        self._tried = self._call(flight)
        self._wake.set()

    def _call(self, drafts: Sequence[Draft]) -> Sequence[Receipt] | BackendError:
        """The backend's answer, or why there is none. No receipts: these drafts are lost."""
        self._called_at = time.monotonic()
        try:
            return self._publish(drafts)
        except BackendError as error:
            self.stats.failures += 1
            return error
        except Exception:
            logger.exception("emitter: drafts lost count=%d", len(drafts))
            self.stats.failures += 1
            return []
        finally:
            self._called_at = 0.0

    def _settle(self, answer: Sequence[Receipt] | BackendError) -> None:
        """Act on the answer to the flight."""
        if isinstance(answer, BackendError):
            # Also when it was refused: rights and memory are given back, and the fence
            # makes any repetition safe.
            self._back_off(answer)
            self._keep()
            return
        if self._retry_seconds:
            logger.info("emitter: backend is back waiting=%d", self.waiting)
            self._retry_seconds = 0.0
            self._look_at = 0.0
        for draft, receipt in zip(self._flight, answer, strict=False):
            self._count(draft, receipt)
            self._answer(draft, receipt)
        for draft in self._flight[len(answer) :]:
            self._answer(draft, None)
        self._flight, self._flight_bytes = [], 0
        if self._file is not None and self._file.is_there:
            with self._spool_lock:
                is_sent = self._spool.oldest >= self._kept
            if is_sent:
                self._file.remove()

    def _back_off(self, error: BackendError) -> None:
        if not self._retry_seconds:
            logger.warning("emitter: backend fails waiting=%d error=%s", self.waiting, error)
        self._retry_seconds = min(
            max(FIRST_RETRY_SECONDS, self._retry_seconds * 2), LAST_RETRY_SECONDS
        )
        share = random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)  # noqa: S311
        self._retry_at = time.monotonic() + self._retry_seconds * share

    def _keep(self) -> None:
        """Show and store what has to wait, as far as that is not done."""
        with self._spool_lock:
            fresh = self._spool.since(self._kept)
            self._kept = self._spool.added
        if not self._is_flight_kept:
            fresh = self._flight + fresh
            self._is_flight_kept = True
        if fresh and self.shelter is not None:
            try:
                self.shelter(fresh)
            except Exception:
                logger.exception("emitter: shelter failed")
                self.stats.failures += 1
        if self._file is not None:
            self._file.keep(fresh, self._all_waiting)

    def _all_waiting(self) -> list[Draft]:
        with self._spool_lock:
            return self._flight + self._spool.since(0)

    def _adopt(self, directory: Path) -> None:
        """Send the next part of what an ended process left; afterwards its file is removed."""
        if self._orphan is None:
            self._orphan = spoolfile.adopt(directory, self._passed_over)
        orphan = self._orphan
        if orphan is None:
            self._look_at = time.monotonic() + LOOK_SECONDS
            return
        try:
            drafts = orphan.take(MAX_BATCH)
            if not drafts:
                orphan.remove()
                self._orphan = None
                logger.info(
                    "emitter: adopted path=%s drafts=%d unreadable=%d",
                    orphan.path,
                    orphan.drafts,
                    orphan.unreadable,
                )
                return
        except OSError as error:
            logger.error("emitter: file passed over path=%s error=%s", orphan.path, error)
            self._passed_over.add(orphan.path.name)
            self._give_up_orphan()
            return
        answer = self._call(drafts)
        if isinstance(answer, BackendError):
            self._give_up_orphan()
            return
        for draft, receipt in zip(drafts, answer, strict=False):
            self._count(draft, receipt)

    def _give_up_orphan(self) -> None:
        if self._orphan is not None:
            self._orphan.leave()
            self._orphan = None
        self._look_at = time.monotonic() + LOOK_SECONDS

    def _leave_files(self) -> None:
        self._give_up_orphan()
        if self._file is not None:
            self._file.leave()

    def _count(self, draft: Draft, receipt: Receipt) -> None:
        match receipt.outcome:
            case Outcome.APPENDED:
                self.stats.appended += 1
            case Outcome.DUPLICATE:
                self.stats.duplicate += 1
            case Outcome.STALE | Outcome.CLOSED:
                self.stats.refused += 1
            case _:
                self.stats.rejected += 1
                logger.warning(
                    "emitter: draft rejected topic=%s type=%s outcome=%s",
                    draft.topic,
                    draft.type,
                    receipt.outcome.value,
                )

    def _drop(self, draft: Draft) -> None:
        self.stats.dropped += 1
        self._answer(draft, None)

    def _answer(self, draft: Draft, receipt: Receipt | None) -> None:
        if not self._answers:
            return
        future = self._answers.pop(id(draft), None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if receipt is None:
            future.set_exception(BackendUnavailable("dropped: too much waits for the backend"))
        else:
            future.set_result(receipt)

    def _open_barriers(self) -> None:
        if self._flight or not self._barriers:
            return
        with self._spool_lock:
            while self._barriers and self._barriers[0][0] <= self._spool.oldest:
                self._barriers.popleft()[1].set()

    def _restart_in_child(self) -> None:
        # Closed here, they are still locked by the parent.
        self._leave_files()
        self._begin()
        if self._after_fork is not None:
            self._after_fork()


_emitters: weakref.WeakSet[Emitter] = weakref.WeakSet()


def emitters() -> list[Emitter]:
    """Those of this process."""
    return list(_emitters)


def _after_fork_in_child() -> None:
    for emitter in list(_emitters):
        emitter._restart_in_child()


def _close_all() -> None:
    for emitter in list(_emitters):
        emitter.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
