"""The WebSockets of a process that have sent no credential yet: few at once, for a short time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Iterator

logger = logging.getLogger(__name__)

GRACE_SECONDS = 1.0
"""A socket that waits for less is not ended: a client sends ``auth`` at once."""
BURST = 10
"""How many times the limit may be without an accepted credential; further handshakes are
refused."""


class Waiting:
    """One WebSocket that waits for its credential."""

    def __init__(self, address: str, deadline: asyncio.Timeout) -> None:
        self.address = address
        self.since = time.monotonic()
        self.is_crowded_out = False
        """Whether it was ended because too many wait."""
        self._deadline = deadline

    def end(self) -> None:
        """Let its deadline pass now."""
        self.is_crowded_out = True
        # It may be passing already.
        with contextlib.suppress(RuntimeError):
            self._deadline.reschedule(asyncio.get_running_loop().time())


class UnauthenticatedLimiter:
    """At most ``limit`` sockets wait for longer than a second.

    Beyond that the oldest one ends of the address that has most. So an address
    with many silent sockets shuts out no client of another one, and no client
    that authenticates in time, whatever address a proxy gives them all.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # In the order in which they began to wait.
        self._waiting: dict[Waiting, None] = {}
        # How many have a credential that is being checked, which has a deadline of its own.
        self._checking = 0
        # Whether the log has the present crowd.
        self._is_logged = False

    @property
    def count(self) -> int:
        """How many wait for their credential, or for the answer whether it is accepted."""
        return len(self._waiting) + self._checking

    @property
    def is_full(self) -> bool:
        """Whether a further handshake is refused."""
        return self.count >= BURST * self._limit

    @contextlib.contextmanager
    def waiting(self, address: str, deadline: asyncio.Timeout) -> Iterator[Waiting]:
        """Count a socket that waits inside the block; ``deadline`` is made to pass to end it."""
        waiting = Waiting(address, deadline)
        self._waiting[waiting] = None
        self.end_crowd()
        try:
            yield waiting
        finally:
            self._waiting.pop(waiting, None)

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """Count a socket whose credential is checked inside the block."""
        self._checking += 1
        try:
            yield
        finally:
            self._checking -= 1

    def end_crowd(self) -> None:
        """End sockets until no more than the limit wait, except those that have just come."""
        if len(self._waiting) <= self._limit:
            self._is_logged = False
            return
        by_address: dict[str, list[Waiting]] = defaultdict(list)
        for waiting in self._waiting:
            by_address[waiting.address].append(waiting)
        before = time.monotonic() - GRACE_SECONDS
        while len(self._waiting) > self._limit:
            crowd = max(by_address.values(), key=len)
            if not crowd or crowd[0].since > before:
                break
            waiting = crowd.pop(0)
            del self._waiting[waiting]
            waiting.end()
            if not self._is_logged:
                self._is_logged = True
                logger.warning(
                    "websocket: too many wait for a credential limit=%d address=%s "
                    "(SEMANTIK_REALTIME_MAX_UNAUTHENTICATED)",
                    self._limit,
                    waiting.address,
                )
