"""How many reads of logs run at once, and how many answers are being sent.

The answer to one read may have a megabyte of events and all states of a topic.
So a process makes few at a time, and of each user fewer: a user who asks for
many delays none but himself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator

from semantik_realtime.errors import RealtimeError

READS_AT_ONCE = 8
"""Reads that run at the same time in a process. Fewer than a backend's connections for reading."""
READS_OF_USER = 2
"""Reads that run at the same time for one user."""
REQUESTS_WAITING = 256
"""HTTP requests that may wait for their turn to read."""
REQUESTS_OF_USER = 16
"""HTTP requests of one user that may wait for their turn to read."""
REQUEST_SECONDS = 2.0
"""How long an HTTP request waits for its turn."""
ANSWER_BYTES = 128 * 2**20
"""Bytes of the big answers to HTTP requests that are being sent at the same time in a process."""
ANSWER_BYTES_OF_USER = 8 * 2**20
"""The same of one user. A single answer may be larger."""


class Busy(RealtimeError):
    """A request is refused, because too many others are being served. Try again soon."""

    code = "busy"

    def __init__(self, *, is_user: bool) -> None:
        super().__init__("too many requests of this user" if is_user else "the server is busy")
        self.by = "user" if is_user else "server"
        """Whose the others are: the same user's, or those of all."""


class ReadQueue:
    """Lets reads begin in turn. For one loop.

    At most ``at_once`` run, and ``of_user`` for one user; the users that wait
    take turns, and the reads of one user come in their order. None as the user
    is the process itself, which may use all turns.
    """

    def __init__(self, at_once: int = READS_AT_ONCE, of_user: int = READS_OF_USER) -> None:
        self._at_once = at_once
        self._of_user = of_user
        # How many reads run, by user.
        self._running: Counter[str | None] = Counter()
        # The reads that wait, by user. The user whose read began longest ago comes first.
        self._waiting: OrderedDict[str | None, deque[asyncio.Future[None]]] = OrderedDict()
        # How many HTTP requests wait or run, by user.
        self._requests: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """How many reads wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def turn(self, user: str | None) -> AsyncIterator[None]:
        """Run the block when it is the turn of ``user``, however long that takes."""
        if self._may_begin(user):
            self._running[user] += 1
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._ended(user)

    @contextlib.asynccontextmanager
    async def request_turn(self, user: str) -> AsyncIterator[None]:
        """The same for an HTTP request, which waits for a short time only.

        Raises:
            Busy: too many requests wait, or its turn did not come in time.
        """
        with _place(self._requests, user, REQUESTS_OF_USER, REQUESTS_WAITING):
            async with contextlib.AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(REQUEST_SECONDS):
                        await stack.enter_async_context(self.turn(user))
                except TimeoutError:
                    raise Busy(is_user=self._running[user] >= self._of_user) from None
                yield

    async def _wait(self, user: str | None) -> None:
        begins = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(begins)
        try:
            await begins
        except asyncio.CancelledError:
            if not begins.cancelled():
                # Its turn came in the same moment.
                self._ended(user)
            elif begins in self._waiting.get(user, ()):
                self._leave(user, begins)
            raise

    def _leave(self, user: str | None, begins: asyncio.Future[None]) -> None:
        queue = self._waiting[user]
        queue.remove(begins)
        if not queue:
            del self._waiting[user]

    def _may_begin(self, user: str | None) -> bool:
        if self._running.total() >= self._at_once:
            return False
        return user is None or self._running[user] < self._of_user

    def _ended(self, user: str | None) -> None:
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
        for other in list(self._waiting):
            # One whose task is being cancelled is cancelled already, and still waits here.
            while other in self._waiting and self._waiting[other][0].done():
                self._leave(other, self._waiting[other][0])
            if other in self._waiting and self._may_begin(other):
                self._running[other] += 1
                begins = self._waiting[other][0]
                self._leave(other, begins)
                if other in self._waiting:
                    self._waiting.move_to_end(other)
                begins.set_result(None)


class Answers:
    """The places of big answers to HTTP requests, from the first byte to the last."""

    def __init__(self) -> None:
        # How many bytes are being sent, by user.
        self._sending: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """How many bytes are being sent."""
        return self._sending.total()

    @contextlib.contextmanager
    def place(self, user: str, size: int) -> Iterator[None]:
        """Have a place for ``size`` bytes during the block.

        Raises:
            Busy: there is none. (The only answer has one, whatever its size.)
        """
        if self._sending[user] and self._sending[user] + size > ANSWER_BYTES_OF_USER:
            raise Busy(is_user=True)
        if self.bytes and self.bytes + size > ANSWER_BYTES:
            raise Busy(is_user=False)
        self._sending[user] += size
        try:
            yield
        finally:
            self._sending[user] -= size
            if not self._sending[user]:
                del self._sending[user]


@contextlib.contextmanager
def _place(taken: Counter[str], user: str, of_user: int, at_once: int) -> Iterator[None]:
    if taken[user] >= of_user:
        raise Busy(is_user=True)
    if taken.total() >= at_once:
        raise Busy(is_user=False)
    taken[user] += 1
    try:
        yield
    finally:
        taken[user] -= 1
        if not taken[user]:
            del taken[user]
