"""The drafts that wait in this process, from `emit` to the backend's receipt."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence

from semantik_realtime.core.event import Draft
from semantik_realtime.core.spool import Spool
from semantik_realtime.native_threads import Event, Thread, make_lock, make_thread

logger = logging.getLogger(__name__)

MAX_NUMBERED_TOPICS = 10_000

MakeDrafts = Callable[[], Sequence[Draft]]
"""Makes drafts when it is their turn; called once, with the queue's lock held."""


class Queue:
    """A cheap inbox, and behind it the spool, which decides what to drop.

    `Emitter.emit` appends to ``inbox`` and adds to ``inbox_bytes`` itself, in
    the thread of its caller; when the inbox is half full or more
    (``many_drafts``, ``many_bytes``) it asks `admits` first. Everything else is
    for the emitter's threads.

    Args:
        max_drafts: most drafts of the inbox, and most of the spool.
        max_bytes: most bytes of their bodies, likewise.
        drop: called, in any thread and with the lock held, with each draft that the spool drops.
    """

    def __init__(self, max_drafts: int, max_bytes: int, drop: Callable[[Draft], object]) -> None:
        self.inbox: deque[Draft | MakeDrafts | Event] = deque()
        """Drafts, what makes some, and barriers: events that are set when all drafts before them
        have a receipt."""
        self.inbox_bytes = 0
        """About the bytes in the inbox: `emit` adds without the lock."""
        self.many_drafts = (max_drafts + 1) // 2
        self.many_bytes = (max_bytes + 1) // 2
        self.producer = secrets.token_hex(6)
        """Names this series of numbers; replaced when too many topics were numbered."""
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._drop = drop
        # Guards everything below. Never taken in a task's thread: a time limit may interrupt it
        # there and leave the lock taken.
        self._lock = make_lock()
        self._spool = Spool(max_drafts, max_bytes)
        # The last number given to a draft of each topic.
        self._numbers: dict[str, int] = {}
        # Barriers that left the inbox, with the count of drafts before them.
        self._barriers: deque[tuple[int, Event]] = deque()
        # Drafts before this running number of the spool were returned by `newly_delayed`.
        self._delayed = 0
        # Empties the inbox while the emitter's thread is busy.
        self._relief: Thread | None = None

    def __len__(self) -> int:
        return len(self.inbox) + len(self._spool)

    @property
    def bytes(self) -> int:
        """About how many bytes the bodies have."""
        return self.inbox_bytes + self._spool.bytes

    @property
    def is_batch_left(self) -> bool:
        """Whether drafts wait behind the inbox. Those in the inbox have woken the thread."""
        return len(self._spool) > 0

    @property
    def is_crowded(self) -> bool:
        """Whether half of what may wait does, or more."""
        spool = self._spool
        return (
            len(self.inbox) + len(spool) >= self.many_drafts
            or self.inbox_bytes + spool.bytes >= self.many_bytes
        )

    def admits(self, draft: Draft, *, is_stuck: bool) -> bool:
        """Return True if ``draft`` may be added to the inbox, which is half full or more.

        If it is full, or the emitter's thread is busy (``is_stuck``), another thread empties it.
        """
        if is_stuck or self._is_full():
            self._start_relief()
        return draft.terminal or not self._is_full()

    def drain(self) -> None:
        """Move the drafts that are in the inbox now to the spool."""
        with self._lock:
            size = 0
            for _ in range(len(self.inbox)):
                item = self.inbox.popleft()
                if isinstance(item, Draft):
                    size += len(item.body)
                    self._add(item)
                elif callable(item):
                    for draft in _made(item):
                        self._add(draft)
                else:
                    self._barriers.append((self._spool.added, item))
            # `emit` counts without the lock and may drift; reset when the inbox is empty.
            self.inbox_bytes = self.inbox_bytes - size if self.inbox else 0

    def next_batch(self, max_drafts: int) -> list[Draft]:
        """Return the next drafts to send; the same ones until `ack`."""
        with self._lock:
            return self._spool.next_batch(max_drafts)

    def ack(self) -> None:
        """Forget the drafts that `next_batch` returned: they have a receipt."""
        with self._lock:
            self._spool.ack()

    def open_barriers(self) -> None:
        """Set the barriers before which no draft waits any more."""
        if not self._barriers:
            return
        with self._lock:
            while self._barriers and self._barriers[0][0] <= self._spool.oldest:
                self._barriers.popleft()[1].set()

    def newly_delayed(self) -> list[Draft]:
        """Return the drafts that wait and were not returned by an earlier call, in order."""
        with self._lock:
            drafts = self._spool.since(self._delayed)
            self._delayed = self._spool.added
            return drafts

    def all(self) -> list[Draft]:
        """Return the drafts that wait behind the inbox, in order."""
        with self._lock:
            return self._spool.since(0)

    def has_delayed(self) -> bool:
        """Return True if a draft still waits that `newly_delayed` has returned."""
        with self._lock:
            return self._spool.oldest < self._delayed

    def _is_full(self) -> bool:
        return len(self.inbox) >= self._max_drafts or self.inbox_bytes >= self._max_bytes

    def _start_relief(self) -> None:
        if self._relief is not None and self._relief.is_alive():
            return

        def relieve() -> None:
            while len(self.inbox) >= self.many_drafts or self.inbox_bytes >= self.many_bytes:
                self.drain()

        self._relief = make_thread(relieve, "semantik-realtime-relief")
        # No more threads, or the interpreter ends.
        with contextlib.suppress(RuntimeError):
            self._relief.start()

    def _add(self, draft: Draft) -> None:
        self._number(draft)
        for lost in self._spool.add(draft):
            self._drop(lost)

    def _number(self, draft: Draft) -> None:
        number = self._numbers.get(draft.topic, 0) + 1
        if number == 1 and len(self._numbers) >= MAX_NUMBERED_TOPICS:
            # Begin a new series instead of giving a number twice.
            self.producer = secrets.token_hex(6)
            self._numbers.clear()
        self._numbers[draft.topic] = number
        draft.producer = self.producer
        draft.number = number


def _made(make: MakeDrafts) -> Sequence[Draft]:
    try:
        return make()
    except Exception:
        # The drafts behind it in the inbox must still be sent.
        logger.exception("emitter: drafts not made")
        return ()
