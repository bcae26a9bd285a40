"""The one writer of a process.

Tasks and request handlers put drafts on a queue and go on; a thread, started
at the first draft, carries them to the backend in batches. What waits together
goes together, what is alone goes at once. A retry sends the same drafts with
the same numbers, so it is harmless.

A draft waits in the `Queue`, the `Sender` takes it to the backend, and
`Outcomes` has what became of it. `ThrottledSources` make drafts when their turn comes,
an `SpoolRecovery` reads those of ended processes. All is moved by the one thread,
a step at a time.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path

from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.emitter.outcomes import EmitterStats, Outcomes
from semantik_realtime.emitter.queue import Queue
from semantik_realtime.emitter.sender import Answer, Publish, Sender
from semantik_realtime.emitter.spool_file import SpoolFile
from semantik_realtime.emitter.spool_recovery import SpoolRecovery
from semantik_realtime.emitter.throttle import Source, ThrottledSources
from semantik_realtime.errors import BackendError

__all__ = ["Emitter", "EmitterStats", "Publish", "Source", "emitters"]

logger = logging.getLogger(__name__)

MAX_BATCH = 500
PATIENCE_SECONDS = 1.0
"""A call that is not answered for so long counts as failing."""
SLOW_SECONDS = 0.1
"""During a call that takes longer the inbox has to be emptied by another thread."""
NOTICE_SECONDS = 0.02
"""In which a waiting task notices that the backend fails."""
FAULT_SECONDS = 0.1
"""Pause of the thread after a fault of ours."""


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
            the same directory sends: at its start, or within 5 s (`LOOK_SECONDS`)
            of its backend's return. What was emitted during the first call that
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
        self._directory = directory
        self._after_fork = after_fork
        self._begin()
        _emitters.add(self)

    def _begin(self) -> None:
        self.stats = EmitterStats()
        self._outcomes = Outcomes(self.stats)
        self._queue = Queue(self._max_drafts, self._max_bytes, self._outcomes.drop)
        self._throttled = ThrottledSources(self.stats)
        self._wake = threading.Event()
        self._sender = Sender(self._publish, self.stats, self._wake)
        self._file: SpoolFile | None = None
        self._recovery: SpoolRecovery | None = None
        if self._directory is not None:
            self._file = SpoolFile(self._directory, self._max_bytes)
            self._recovery = SpoolRecovery(self._directory)
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = False

    @property
    def producer(self) -> str:
        """The name under which this process numbers its drafts."""
        return self._queue.producer

    @property
    def waiting(self) -> int:
        """Drafts that are not yet with the backend."""
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their bodies, nearly."""
        return self._queue.bytes

    @property
    def is_failing(self) -> bool:
        """Whether the last call to the backend failed, or the present one hangs."""
        return self._sender.is_away or self._sender.has_called_for(PATIENCE_SECONDS)

    def emit(self, draft: Draft) -> None:
        """Send ``draft`` soon. Costs less than a microsecond.

        If too much waits, what does not end an attempt is dropped and counted.
        """
        # Written out here, not a method of the queue: a call more would add a quarter to the price.
        queue = self._queue
        inbox = queue.inbox
        if len(inbox) >= queue.many_drafts or queue.inbox_bytes >= queue.many_bytes:
            if not queue.admits(draft, is_stuck=self._sender.has_called_for(SLOW_SECONDS)):
                self._outcomes.drop(draft)
                return
        inbox.append(draft)
        queue.inbox_bytes += len(draft.body)
        if self._thread is None or not self._wake.is_set():
            self._rouse()

    def emit_and_confirm(self, draft: Draft) -> Future[Receipt]:
        """Send ``draft`` soon; the future has the backend's answer.

        It fails with `BackendUnavailable` if the draft had to be dropped. No
        answer does not mean that it will not be appended later.
        """
        answer = self._outcomes.promise(draft)
        self.emit(draft)
        return answer

    def pace(self, key: Hashable, interval_seconds: float, source: Source) -> None:
        """Call ``source`` in the emitter's thread, at most once an interval for ``key``.

        The first call comes at once, the last is never left out. A key that
        is already due keeps its place.
        """
        self._throttled.add(key, interval_seconds, source)
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
        self._queue.inbox.append(barrier)
        self._rouse()
        if while_failing:
            return barrier.wait(timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        while not barrier.wait(min(NOTICE_SECONDS, max(0.0, deadline - time.monotonic()))):
            if self.is_failing or time.monotonic() >= deadline:
                return False
        return True

    def retry_now(self) -> None:
        """Try now, not when the back-off is over: the backend may be back."""
        self._sender.retry_now()
        if self._recovery is not None:
            self._recovery.retry_now()
        self._wake.set()

    def adopt(self) -> None:
        """From now on send what ended processes left on disk, even if nothing is emitted here."""
        if self._recovery is not None:
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
                pause = FAULT_SECONDS
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
            if self._queue.inbox:
                self._thread = threading.current_thread()
                return False
            self._leave_files()
            return True

    def _step(self) -> float | None:
        """Do what is due; returns the seconds until something is, None for not before a wake."""
        paced_seconds = self._throttled.run()
        self._queue.drain()
        tried = self._sender.tried()
        if tried is not None:
            self._settle(self._queue.take(MAX_BATCH), tried)
        elif self._sender.is_away:
            self._keep()
        if self._recovery is not None and not self._sender.is_away:
            if self._recovery.wait_seconds() == 0:
                self._adopt(self._recovery)
        if self._sender.wait_seconds() == 0:
            self._send()
        self._queue.open_barriers()
        pause = self._pause_seconds()
        if pause is None or paced_seconds is None:
            return paced_seconds if pause is None else pause
        return min(pause, paced_seconds)

    def _pause_seconds(self) -> float | None:
        """Until something other than a source is due; None: not before a wake."""
        if self._sender.is_away:
            return self._sender.wait_seconds()
        if len(self._queue):
            return 0.0
        return None if self._recovery is None else self._recovery.wait_seconds()

    def _send(self) -> None:
        flight = self._queue.take(MAX_BATCH)
        answer = self._sender.carry(flight) if flight else None
        if answer is not None:
            self._settle(flight, answer)

    def _settle(self, flight: Sequence[Draft], answer: Answer) -> None:
        """Act on the answer to the flight."""
        if isinstance(answer, BackendError):
            # Also when it was refused: rights and memory are given back, and the fence
            # makes any repetition safe.
            if self._sender.failed():
                logger.warning("emitter: backend fails waiting=%d error=%s", self.waiting, answer)
            self._keep()
            return
        if self._sender.answered():
            logger.info("emitter: backend is back waiting=%d", self.waiting)
            if self._recovery is not None:
                self._recovery.retry_now()
        self._outcomes.settle(flight, answer)
        self._queue.land()
        if self._file is not None and self._file.is_there and not self._queue.has_kept():
            self._file.remove()

    def _keep(self) -> None:
        """Show and store what has to wait, as far as that is not done."""
        fresh = self._queue.fresh()
        if fresh and self.shelter is not None:
            try:
                self.shelter(fresh)
            except Exception:
                logger.exception("emitter: shelter failed")
                self.stats.failures += 1
        if self._file is not None:
            self._file.keep(fresh, self._queue.all)

    def _adopt(self, adoption: SpoolRecovery) -> None:
        """Send the next part of what an ended process left; afterwards its file is removed."""
        drafts = adoption.take(MAX_BATCH)
        if not drafts:
            return
        answer = self._sender.call(drafts)
        if isinstance(answer, BackendError):
            adoption.leave()
        else:
            self._outcomes.settle(drafts, answer)

    def _leave_files(self) -> None:
        if self._recovery is not None:
            self._recovery.leave()
        if self._file is not None:
            self._file.leave()

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
    for emitter in emitters():
        emitter._restart_in_child()


def _close_all() -> None:
    for emitter in emitters():
        emitter.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
