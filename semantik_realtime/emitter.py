"""The one writer of a process.

Tasks and request handlers put drafts on a queue and go on; a thread, started
at the first draft, carries them to the backend in batches. What waits together
goes together, what is alone goes at once. A retry sends the same drafts with
the same numbers, so it is harmless.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future

import msgspec

from semantik_realtime.core.event import Draft, Outcome, Receipt
from semantik_realtime.core.pacing import Pacer
from semantik_realtime.core.spool import Spool
from semantik_realtime.errors import BackendError, BackendUnavailable

logger = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_NUMBERED_TOPICS = 10_000
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0

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
    """Queue, thread and retries.

    All methods may be called from any thread and from signal receivers; none
    but `flush` waits, and none raises for an outage. After a fork the child
    begins with an empty queue and a producer name of its own: what waited
    belongs to the parent.
    """

    def __init__(
        self,
        publish: Publish,
        *,
        max_drafts: int = 10_000,
        max_bytes: int = 16 * 2**20,
        after_fork: Callable[[], object] | None = None,
    ) -> None:
        self._publish = publish
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._after_fork = after_fork
        self._begin()
        _emitters.add(self)

    def _begin(self) -> None:
        self.producer = secrets.token_hex(6)
        self.stats = EmitterStats()
        self._inbox: deque[Draft | threading.Event] = deque()
        self._answers: dict[int, Future[Receipt]] = {}
        self._paced: OrderedDict[Hashable, tuple[float, Source]] = OrderedDict()
        self._paced_lock = threading.Lock()
        self._pacer = Pacer()
        self._spool = Spool(self._max_drafts, self._max_bytes)
        self._flight: list[Draft] = []
        self._barriers: deque[tuple[int, threading.Event]] = deque()
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = False
        self._retry_seconds = 0.0
        self._retry_at = 0.0

    @property
    def waiting(self) -> int:
        """Drafts that are not yet with the backend."""
        return len(self._inbox) + len(self._spool) + len(self._flight)

    @property
    def is_failing(self) -> bool:
        """Whether the last call to the backend failed."""
        return self._retry_seconds > 0

    def emit(self, draft: Draft) -> None:
        """Send ``draft`` soon. Costs about a microsecond.

        If too much waits, what does not end an attempt is dropped and counted.
        """
        if len(self._inbox) >= self._max_drafts and not draft.terminal:
            self.stats.dropped += 1
            return
        self._inbox.append(draft)
        self._rouse()

    def emit_and_confirm(self, draft: Draft) -> Future[Receipt]:
        """Send ``draft`` soon; the future has the backend's answer.

        It fails with `BackendUnavailable` if the draft had to be dropped. No
        answer does not mean that it will not be appended later.
        """
        answer: Future[Receipt] = Future()
        self._answers[id(draft)] = answer
        self._inbox.append(draft)
        self._rouse()
        return answer

    def pace(self, key: Hashable, interval_seconds: float, source: Source) -> None:
        """Call ``source`` in the emitter's thread, at most once an interval for ``key``.

        The first call comes at once, the last is never left out. A key that
        is already due keeps its place.
        """
        with self._paced_lock:
            self._paced.setdefault(key, (interval_seconds, source))
        self._rouse()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that was emitted before has been answered; False: not in time."""
        if self._thread is None and not self.waiting:
            return True
        barrier = threading.Event()
        self._inbox.append(barrier)
        self._rouse()
        return barrier.wait(timeout_seconds)

    def close(self, timeout_seconds: float = 2.0) -> bool:
        """Flush, then end the thread. A later `emit` starts it again."""
        done = self.flush(timeout_seconds)
        thread = self._thread
        self._closing = True
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)
        return done

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
            if not self._inbox:
                return True
            self._thread = threading.current_thread()
            return False

    def _step(self) -> float | None:
        """Do what is due; returns the seconds until something is, None for not before a wake."""
        now = time.monotonic()
        next_paced = self._run_paced(now)
        self._drain()
        if self._flight or len(self._spool):
            if now < self._retry_at:
                return self._retry_at - now
            self._send()
        self._open_barriers()
        if self._retry_seconds:
            return max(0.0, self._retry_at - time.monotonic())
        if len(self._spool) or self._inbox:
            return 0.0
        return next_paced

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
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, threading.Event):
                self._barriers.append((self._spool.added, item))
                continue
            for lost in self._spool.add(item):
                self.stats.dropped += 1
                self._answer(lost, None)

    def _send(self) -> None:
        if not self._flight:
            self._flight = self._spool.take(MAX_BATCH)
            for draft in self._flight:
                self._number(draft)
        try:
            receipts = self._publish(self._flight)
        except BackendError as error:
            self.stats.failures += 1
            # Also when it was refused: rights and memory are given back, and the fence
            # makes any repetition safe.
            self._back_off(error)
            return
        except Exception:
            logger.exception("emitter: drafts lost count=%d", len(self._flight))
            self.stats.failures += 1
            receipts = []
        if self._retry_seconds:
            logger.info("emitter: backend is back waiting=%d", self.waiting)
            self._retry_seconds = 0.0
        for draft, receipt in zip(self._flight, receipts, strict=False):
            self._count(draft, receipt)
            self._answer(draft, receipt)
        for draft in self._flight[len(receipts) :]:
            self._answer(draft, None)
        self._flight = []

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

    def _back_off(self, error: BackendError) -> None:
        if not self._retry_seconds:
            logger.warning("emitter: backend fails waiting=%d error=%s", self.waiting, error)
        self._retry_seconds = min(
            max(FIRST_RETRY_SECONDS, self._retry_seconds * 2), LAST_RETRY_SECONDS
        )
        self._retry_at = time.monotonic() + self._retry_seconds

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
        if self._flight:
            return
        while self._barriers and self._barriers[0][0] <= self._spool.oldest:
            self._barriers.popleft()[1].set()

    def _restart_in_child(self) -> None:
        self._begin()
        if self._after_fork is not None:
            self._after_fork()


_emitters: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for emitter in list(_emitters):
        emitter._restart_in_child()


def _close_all() -> None:
    for emitter in list(_emitters):
        emitter.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
