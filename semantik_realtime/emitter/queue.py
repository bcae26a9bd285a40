"""What waits in this process, from the moment it is emitted until the backend has answered."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable

from semantik_realtime.core.event import Draft
from semantik_realtime.core.spool import Spool

MAX_NUMBERED_TOPICS = 10_000


class Queue:
    """An inbox that costs next to nothing, and behind it the spool, which knows what to drop.

    Whoever emits appends to ``inbox`` and adds to ``inbox_bytes``; while the
    inbox is half full or more (``many_drafts``, ``many_bytes``) only what
    `admits` lets in. All else is for the emitter's threads.

    Args:
        drop: called, in any thread, with each draft for which there is no room.
    """

    def __init__(self, max_drafts: int, max_bytes: int, drop: Callable[[Draft], object]) -> None:
        self.inbox: deque[Draft | threading.Event] = deque()
        """Drafts, and barriers between them: set when all before them has been answered."""
        self.inbox_bytes = 0
        self.many_drafts = (max_drafts + 1) // 2
        self.many_bytes = (max_bytes + 1) // 2
        self.producer = secrets.token_hex(6)
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._drop = drop
        # Guards all below. Not for tasks' threads: a time limit may interrupt those anywhere.
        self._lock = threading.Lock()
        self._spool = Spool(max_drafts, max_bytes)
        self._numbers: dict[str, int] = {}
        self._barriers: deque[tuple[int, threading.Event]] = deque()
        # Up to this running number of the spool, what waits was given by `fresh`.
        self._kept = 0
        self._relief: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self.inbox) + len(self._spool)

    @property
    def bytes(self) -> int:
        """Of the bodies, nearly."""
        return self.inbox_bytes + self._spool.bytes

    def admits(self, draft: Draft, *, is_stuck: bool) -> bool:
        """Whether the inbox, half full or more, takes ``draft``.

        If it is full, or nobody comes to empty it (``is_stuck``), another thread does.
        """
        if is_stuck or self._is_full():
            self._relieve()
        return draft.terminal or not self._is_full()

    def drain(self) -> None:
        """Move what is in the inbox now to the spool."""
        with self._lock:
            size = 0
            for _ in range(len(self.inbox)):
                item = self.inbox.popleft()
                if isinstance(item, threading.Event):
                    self._barriers.append((self._spool.added, item))
                    continue
                size += len(item.body)
                self._number(item)
                for lost in self._spool.add(item):
                    self._drop(lost)
            # Whoever puts something in counts without a lock: nothing is what can be relied on.
            self.inbox_bytes = self.inbox_bytes - size if self.inbox else 0

    def take(self, max_drafts: int) -> list[Draft]:
        """What goes to the backend next; the same again until `land`."""
        with self._lock:
            return self._spool.take(max_drafts)

    def land(self) -> None:
        """What was taken has been answered."""
        with self._lock:
            self._spool.land()

    def open_barriers(self) -> None:
        """Set the barriers before which nothing is here any more."""
        if not self._barriers:
            return
        with self._lock:
            while self._barriers and self._barriers[0][0] <= self._spool.oldest:
                self._barriers.popleft()[1].set()

    def fresh(self) -> list[Draft]:
        """What waits and was not given by an earlier call, in order."""
        with self._lock:
            fresh = self._spool.since(self._kept)
            self._kept = self._spool.added
            return fresh

    def all(self) -> list[Draft]:
        """What waits behind the inbox, in order."""
        with self._lock:
            return self._spool.since(0)

    def has_kept(self) -> bool:
        """Whether something still waits that `fresh` gave."""
        with self._lock:
            return self._spool.oldest < self._kept

    def _is_full(self) -> bool:
        return len(self.inbox) >= self._max_drafts or self.inbox_bytes >= self._max_bytes

    def _relieve(self) -> None:
        if self._relief is not None and self._relief.is_alive():
            return

        def relieve() -> None:
            while len(self.inbox) >= self.many_drafts or self.inbox_bytes >= self.many_bytes:
                self.drain()

        self._relief = threading.Thread(
            target=relieve, name="semantik-realtime-relief", daemon=True
        )
        # No more threads, or the interpreter ends.
        with contextlib.suppress(RuntimeError):
            self._relief.start()

    def _number(self, draft: Draft) -> None:
        number = self._numbers.get(draft.topic, 0) + 1
        if number == 1 and len(self._numbers) >= MAX_NUMBERED_TOPICS:
            # Begin a new series rather than hand out a number twice.
            self.producer = secrets.token_hex(6)
            self._numbers.clear()
        self._numbers[draft.topic] = number
        draft.producer = self.producer
        draft.number = number
