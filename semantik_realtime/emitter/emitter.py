"""The emitter: the only part of a process that writes events to the backend.

Tasks and request handlers put drafts on a queue and go on; a thread, started
at the first draft, sends them to the backend in batches. A draft that is alone
is sent at once; others share a call (`Wake`). Retries repeat their numbers.

A draft waits in the `Queue`, the `Sender` sends it, and `Outcomes` records the
backend's answer. `ThrottledSources` make drafts when their turn comes, and
`SpoolRecovery` reads the drafts of ended processes. The one thread runs all of
this, a step at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path

from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.core.leases import LeaseTimes
from semantik_realtime.core.limits import LEASE_SECONDS, SPOOL_BYTES, SPOOL_DRAFTS
from semantik_realtime.emitter import registry
from semantik_realtime.emitter.attempts import Writer
from semantik_realtime.emitter.dropped import DroppedEvents
from semantik_realtime.emitter.handover import Handover
from semantik_realtime.emitter.holding import HeldJobs
from semantik_realtime.emitter.outcomes import EmitterStats, Outcomes
from semantik_realtime.emitter.queue import MakeDrafts, Queue
from semantik_realtime.emitter.sender import Reply, Sender
from semantik_realtime.emitter.spool_file import SpoolFile
from semantik_realtime.emitter.spool_recovery import SpoolRecovery
from semantik_realtime.emitter.throttle import Source, ThrottledSources
from semantik_realtime.emitter.wake import Wake
from semantik_realtime.errors import BackendError
from semantik_realtime.native_threads import Thread, get_ident, make_event, make_lock, make_thread

logger = logging.getLogger(__name__)

MAX_BATCH = 500
SLOW_SECONDS = 0.1
"""During a call that lasts longer another thread has to empty the inbox."""
MAX_WAIT_SECONDS = 1.0
"""Longest time that one call of `wait_for_room` waits."""
ROOM_SECONDS = 0.002
"""How often it looks whether there is room."""
MAX_REPORTS = 20
"""Reports of dropped events that are sent with one batch; of more, some could be dropped."""
NOTICE_SECONDS = 0.02
"""How often a waiting `flush` looks whether the backend fails."""
FAULT_SECONDS = 0.1
"""Pause of the thread after an error of this package."""


class Emitter:
    """Queue, threads and retries.

    All methods may be called from any thread and from signal receivers; only
    `wait_for_room`, `flush` and `close` wait, and none raises for an outage.
    The queue is bounded in drafts and bytes, and the ends of attempts are
    dropped last (`Spool`). How many events of a topic were dropped is reported
    in its log (`DroppedEvents`). After a fork the child begins with an empty queue and a producer
    name of its own: the drafts that waited belong to the parent.

    Args:
        writer: the backend.
        max_drafts: most drafts that wait.
        max_bytes: most bytes of their bodies.
        directory: where the drafts that wait are stored too while the backend
            fails. Another process with the same directory sends what an ended
            process left there: at its start, or within 5 s (`LOOK_SECONDS`) of
            the backend's return. Drafts emitted during the first call that
            fails are stored when that call is over. None: in memory only.
        lease_seconds: after how long a job is lost whose process has died.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        max_drafts: int = SPOOL_DRAFTS,
        max_bytes: int = SPOOL_BYTES,
        directory: Path | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._writer = writer
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._directory = directory
        self._times = LeaseTimes.of(lease_seconds)
        # Set by `on_delayed`; survives a fork.
        self._delayed: Callable[[Sequence[Draft]], object] | None = None
        # Where children leave their drafts, or this process, if it is the child.
        self._handover = None if directory is None else Handover(directory)
        self._begin()
        registry.add(self)

    def _begin(self) -> None:
        self.stats = EmitterStats()
        self._dropped = DroppedEvents()
        self._outcomes = Outcomes(self.stats, self._dropped.add_refused)
        self._queue = Queue(self._max_drafts, self._max_bytes, self._drop)
        self._throttled = ThrottledSources(self.stats)
        # Set to run the thread's next step; the thread clears it.
        self._wake = Wake()
        self.held = HeldJobs(self._times)
        self._sender = Sender(self._writer, self.stats, self._wake, self.held)
        self._file: SpoolFile | None = None
        self._recovery: SpoolRecovery | None = None
        if self._directory is not None:
            self._file = SpoolFile(self._directory, self._max_bytes)
            self._recovery = SpoolRecovery(self._directory, self._times.look, self.stats)
        # Runs `_run`; None before the first draft and after `close`.
        self._thread: Thread | None = None
        self._start_lock = make_lock()
        # Set by `close`, cleared by the thread that ends and by the next that starts.
        self.is_closing = False

    @property
    def producer(self) -> str:
        """The name under which this process numbers its drafts."""
        return self._queue.producer

    @property
    def waiting(self) -> int:
        """How many drafts the backend has not acknowledged yet."""
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes their bodies have."""
        return self._queue.bytes

    @property
    def is_retrying(self) -> bool:
        """Whether the last call to the backend failed and is to be made again."""
        return self._sender.is_retrying

    def on_delayed(self, delayed: Callable[[Sequence[Draft]], object]) -> None:
        """Call ``delayed`` in the emitter's thread with the drafts that an outage delays.

        It gets each draft once, in order, as soon as the outage is known.
        """
        self._delayed = delayed

    def emit(self, draft: Draft, *, can_wait: bool = False) -> None:
        """Send ``draft`` soon, or drop it (`Queue.admits`); about a microsecond.

        One that ``can_wait`` leaves with others (`Wake`).
        """
        queue = self._queue
        inbox = queue.inbox
        if len(inbox) >= queue.many_drafts or queue.inbox_bytes >= queue.many_bytes:
            if not queue.admits(draft, is_stuck=self._sender.has_called_for(SLOW_SECONDS)):
                self._outcomes.drop(draft)
                self._dropped.add_unlocked(draft)
                return
        inbox.append(draft)
        queue.inbox_bytes += len(draft.body)
        self._wake_thread(can_wait)

    def emit_later(self, make: MakeDrafts) -> None:
        """Send the drafts of ``make`` as those that can wait. The emitter's thread calls it: there
        many are made together, which costs less. If many wait already it is called here.
        """
        if self._queue.is_crowded:
            for draft in make():
                self.emit(draft, can_wait=True)
        else:
            self._queue.inbox.append(make)
            self._wake_thread(can_wait=True)

    def emit_and_confirm(self, draft: Draft) -> Future[Receipt]:
        """Send ``draft`` soon; the future gets the backend's receipt.

        The future fails with `BackendUnavailable` if the draft was dropped. A
        draft without a receipt may still be appended later.
        """
        receipt = self._outcomes.promise(draft)
        self.emit(draft)
        return receipt

    def wait_for_room(self) -> None:
        """Wait until less than half of what may wait does, at most `MAX_WAIT_SECONDS`.

        It does not wait while the backend fails. A loop that calls it before
        each `emit` is as fast as the backend, and loses nothing.
        """
        waited = 0.0
        while self._queue.is_crowded and self._thread is not None and waited < MAX_WAIT_SECONDS:
            if self.is_retrying or self._writer.fails_writes:
                return
            # A sleep and no lock: a time limit may interrupt a task's thread here.
            time.sleep(ROOM_SECONDS)
            waited += ROOM_SECONDS

    def throttle(self, key: Hashable, interval_seconds: float, source: Source) -> None:
        """Call ``source`` in the emitter's thread, at most once an interval for ``key``.

        The first call comes at once, the last one is never left out. A key that
        is already due keeps its place.
        """
        self._throttled.add(key, interval_seconds, source)
        self._wake_thread()

    def flush(self, timeout_seconds: float, *, while_failing: bool = True) -> bool:
        """Wait until the backend has acknowledged every draft emitted so far.

        Return False if it has not within ``timeout_seconds``; without
        ``while_failing`` also as soon as the backend fails.
        """
        if self._thread is None and not self.waiting:
            return True
        if not while_failing and self._writer.fails_writes:
            return False
        barrier = make_event()
        self._queue.inbox.append(barrier)
        self._wake_thread()
        if while_failing:
            return barrier.wait(timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        while not barrier.wait(min(NOTICE_SECONDS, max(0.0, deadline - time.monotonic()))):
            if self._writer.fails_writes or time.monotonic() >= deadline:
                return False
        return True

    def retry_now(self) -> None:
        """Retry now instead of after the back-off: the backend may be back."""
        self._sender.retry_now()
        if self._recovery is not None:
            self._recovery.look_now()
        self._wake.set()

    def recover(self) -> None:
        """From now on send what ended processes left on disk, even if nothing is emitted here."""
        if self._recovery is not None:
            self._wake_thread()

    def accept_from_children(self, handover: Handover) -> None:
        """Send what forked children leave in ``handover``. Once, before the first fork."""
        self._handover = handover
        self._recovery = SpoolRecovery(handover.directory, self._times.look, self.stats)
        self.recover()

    def leave_to_parent(self, timeout_seconds: float) -> None:
        """At a child's end: flush, and leave to its parent what is not acknowledged soon.

        Without a parent that accepts it, flush for ``timeout_seconds``.
        """
        handover = self._handover
        if handover is None:
            self._end(timeout_seconds)
        elif not self._end(handover.wait_seconds, while_failing=False):
            self._queue.drain()
            handover.leave(self._queue.all(), self._max_bytes)

    def _end(self, timeout_seconds: float, *, while_failing: bool = True) -> bool:
        """Flush, then give back the lease, so that no server must find out what it was for."""
        end_at = time.monotonic() + timeout_seconds
        if not self.flush(timeout_seconds, while_failing=while_failing):
            return False
        # Reports of dropped events follow, a few at a time.
        while self.waiting and self.flush(end_at - time.monotonic(), while_failing=while_failing):
            pass
        self.held.release()
        if self.held.wait_seconds() is not None:
            self.flush(max(0.0, end_at - time.monotonic()), while_failing=while_failing)
        return not self.waiting

    def close(self, timeout_seconds: float = 2.0, *, while_failing: bool = True) -> bool:
        """Flush, then end the thread, in that time. A later `emit` starts it again."""
        end_at = time.monotonic() + timeout_seconds
        done = self._end(timeout_seconds, while_failing=while_failing)
        thread, self.is_closing = self._thread, True
        self._wake.set()
        if thread is not None and thread.ident != get_ident():
            thread.join(max(registry.LEAST_SECONDS, done * (end_at - time.monotonic())))
        return done

    def _drop(self, draft: Draft) -> None:
        """Record that the spool has dropped a draft. The queue's lock is held."""
        self._outcomes.drop(draft)
        self._dropped.add(draft)

    def _wake_thread(self, can_wait: bool = False) -> None:
        if self._thread is None:
            self._start()
        self._wake.set(can_wait)

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is not None:
                return
            self.is_closing = False
            self._thread = make_thread(self._run, "semantik-realtime-emitter")
            try:
                self._thread.start()
            except RuntimeError as error:
                # No more threads, or the interpreter ends. The next draft tries again.
                self._thread = None
                self.stats.failures += 1
                logger.error("emitter: thread not started error=%s", error)

    def _run(self) -> None:
        while not (self.is_closing and self._is_finished()):
            try:
                pause = self._step()
            except Exception:
                # The thread must outlive any error of ours: a task's last event needs it.
                logger.exception("emitter: step failed")
                self.stats.failures += 1
                pause = FAULT_SECONDS
            if (pause is None or pause > 0) and not self.is_closing:
                self._wake.wait(pause)
            self._wake.clear()

    def _is_finished(self) -> bool:
        """Return True if the closing thread may end: not before what it can send is sent."""
        with self._start_lock:
            # `emit` adds its draft first, and then looks for the thread: one sees the other.
            thread, self._thread = self._thread, None
            if self._queue.inbox or (self._queue.is_batch_left and not self.is_retrying):
                self._thread = thread
                return False
            self.is_closing = False
            self._release_files()
            return True

    def _step(self) -> float | None:
        """Do what is due; return the seconds until the next step, None for not before a wake."""
        waits = [self._throttled.run()]
        self._queue.drain()
        if (reply := self._sender.retry_reply()) is not None:
            self._settle(self._sender.retried, reply)
        elif self.is_retrying:
            self._delay()
        recovery = self._recovery
        if recovery is not None and not self.is_retrying and recovery.wait_seconds() == 0:
            recovery.send_batch(MAX_BATCH, self._sender.call, self._outcomes)
        if self._sender.wait_seconds() == 0:
            self._send()
        self._queue.open_barriers()
        if self.is_retrying:
            waits.append(self._sender.wait_seconds())
        else:
            waits += [0.0 if self._queue.is_batch_left else None, self.held.pause_seconds()]
            waits.append(None if recovery is None else recovery.wait_seconds())
        return min((wait for wait in waits if wait is not None), default=None)

    def _send(self) -> None:
        batch = self._queue.next_batch(MAX_BATCH)
        if batch or self.held.wait_seconds() == 0:
            self._wake.called()
            if (reply := self._sender.send(batch)) is not None:
                self._settle(batch, reply)

    def _settle(self, batch: Sequence[Draft], reply: Reply) -> None:
        if isinstance(reply, BackendError):
            # Also when it was refused: rights and memory can be given back, and the fence
            # makes any repetition safe.
            if self._sender.failed():
                logger.warning("emitter: backend fails waiting=%d error=%s", self.waiting, reply)
            self._delay()
            return
        if self._sender.succeeded():
            logger.info("emitter: backend is back waiting=%d", self.waiting)
            if self._recovery is not None:
                self._recovery.look_now()
        self._outcomes.settle(batch, reply)
        self._queue.ack()
        if self._dropped and not self._queue.is_crowded:
            for report in self._dropped.reports(MAX_REPORTS):
                self.emit(report)
        if self._file is not None and self._file.exists and not self._queue.has_delayed():
            self._file.remove()

    def _delay(self) -> None:
        """Report and store the drafts that an outage delays, each once."""
        if (delayed := self._queue.newly_delayed()) and self._delayed is not None:
            try:
                self._delayed(delayed)
            except Exception:
                logger.exception("emitter: on_delayed failed")
                self.stats.failures += 1
        if self._file is not None:
            self._file.store(delayed, self._queue.all)

    def _release_files(self) -> None:
        if self._recovery is not None:
            self._recovery.release()
        if self._file is not None:
            self._file.release()

    def restart_in_child(self) -> None:
        """After a fork: begin with an empty queue."""
        # Closed here, the files stay locked by the parent.
        self._release_files()
        self._begin()
        self._writer.close_writer()
