"""How many connections a user may have, counted over the whole fleet."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from semantik_realtime.errors import BackendError

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
RENEW_SECONDS = 20.0


class ConnectionLimiter:
    """Leases of this process's connections, renewed while they live.

    A process that dies gives its seats back within a minute. While the
    backend is away, each process counts its own.
    """

    def __init__(
        self,
        lease: Callable[[str, str, int, float], bool],
        release: Callable[[str, str], bool],
        limit: int,
    ) -> None:
        self._lease = lease
        self._release = release
        self._limit = limit
        self._taken: dict[str, str] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._returning: set[asyncio.Task[None]] = set()

    async def take(self, user: str, seat: str) -> bool:
        """Whether there was a seat left; take it."""
        try:
            granted = await asyncio.to_thread(self._ask, user, seat)
        except BackendError as error:
            granted = Counter(self._taken.values())[user] < self._limit
            logger.debug("seats: counted here only error=%s", error)
        if granted:
            self._taken[seat] = user
            self._renew_while_taken()
        return granted

    def give_back(self, user: str, seat: str) -> None:
        """Let somebody else sit; waits for nothing."""
        if self._taken.pop(seat, None) is not None:
            task = asyncio.get_running_loop().create_task(self._give_back(user, seat))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    async def close(self) -> None:
        """Wait for seats on their way back."""
        if self._renewing is not None:
            self._renewing.cancel()
        loop = asyncio.get_running_loop()
        returning = [task for task in self._returning if task.get_loop() is loop]
        await asyncio.gather(*returning, return_exceptions=True)

    def _renew_while_taken(self) -> None:
        # By need, not by lifespan: a mounted application has none. A task of a loop that is
        # closed (a test client's) never ends.
        loop, task = asyncio.get_running_loop(), self._renewing
        if task is None or task.done() or task.get_loop() is not loop:
            self._renewing = loop.create_task(self._renew())

    async def _renew(self) -> None:
        while self._taken:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await asyncio.to_thread(self._renew_all, list(self._taken.items()))
            except BackendError as error:
                logger.debug("seats: not renewed error=%s", error)

    def _renew_all(self, taken: list[tuple[str, str]]) -> None:
        for seat, user in taken:
            self._ask(user, seat)

    def _ask(self, user: str, seat: str) -> bool:
        return self._lease(_name(user), seat, self._limit, LEASE_SECONDS)

    async def _give_back(self, user: str, seat: str) -> None:
        try:
            await asyncio.to_thread(self._release, _name(user), seat)
        except BackendError as error:
            logger.debug("seats: left to run out error=%s", error)


def _name(user: str) -> str:
    return f"connections:{user}"
