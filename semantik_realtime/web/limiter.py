"""How many connections a user may have, counted over the whole fleet."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Protocol

from semantik_realtime.cancellation import STOP_SECONDS, stop_tasks
from semantik_realtime.core.topic_token import Viewer
from semantik_realtime.errors import BackendError, TopicRefused

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
RENEW_SECONDS = 20.0
RETRY_SECONDS = 5.0
"""Until the next try after a renewal that has failed."""


class Leases(Protocol):
    """Where leases are kept: `semantik_realtime.backends.guard.GuardedBackend`."""

    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        """Take or renew a lease."""

    def release(self, name: str, holder: str) -> bool:
        """Release a lease."""


class ConnectionLimiter:
    """One lease for each connection of this process, renewed while it lives.

    The leases of a process that dies run out within a minute. While the backend
    is away, each process counts its own connections only.

    Args:
        leases: the backend.
        limit: connections of a user.
        viewers: connections of all viewers of a topic together
            (`semantik_realtime.core.topic_token`).
    """

    def __init__(self, leases: Leases, limit: int, viewers: int) -> None:
        self._leases = leases
        self._limit = limit
        self._viewers = viewers
        # The user of each connection, by the connection's id.
        self._users: dict[str, str] = {}
        # How many connections of this process have a place of each name.
        self._counts: Counter[str] = Counter()
        # Renews the leases; runs while there are connections.
        self._renewing: asyncio.Task[None] | None = None
        # Releases under way.
        self._releasing: set[asyncio.Task[None]] = set()
        # Whether a lease was refused while others are granted; logged once.
        self._is_refused = False

    async def admit(self, user: str, connection_id: str) -> bool:
        """Take a lease for a connection. Return False if the user has reached the limit."""
        try:
            granted = await asyncio.to_thread(self._lease, user, connection_id)
        except BackendError as error:
            name, limit = self._place(user)
            granted = self._counts[name] < limit
            logger.debug("limiter: counted in this process only error=%s", error)
            self._note_refusal(error)
        if granted:
            self._users[connection_id] = user
            self._counts[self._place(user)[0]] += 1
            self._renew_while_needed()
        return granted

    def release(self, user: str, connection_id: str) -> None:
        """Release a connection's lease, without waiting for the backend."""
        if self._users.pop(connection_id, None) is not None:
            name, _ = self._place(user)
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
            task = asyncio.get_running_loop().create_task(self._release(user, connection_id))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def close(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """Stop renewing, and wait for the releases under way, for ``timeout_seconds`` at most."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._releasing if task.get_loop() is loop]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_seconds)
        if self._renewing is not None and self._renewing.get_loop() is loop:
            tasks.append(self._renewing)
        await stop_tasks(tasks)

    def _renew_while_needed(self) -> None:
        # By need, not by lifespan: a mounted application has none. A task of a loop that was
        # closed (a test client's) never ends.
        loop, task = asyncio.get_running_loop(), self._renewing
        if task is None or task.done() or task.get_loop() is not loop:
            self._renewing = loop.create_task(self._renew())

    async def _renew(self) -> None:
        pause = RENEW_SECONDS
        while self._users:
            await asyncio.sleep(pause)
            pause = RENEW_SECONDS
            try:
                await asyncio.to_thread(self._renew_all, list(self._users.items()))
            except BackendError as error:
                # A backend may renew only at half of a lease's time: the next time is too late.
                pause = min(RETRY_SECONDS, RENEW_SECONDS)
                logger.debug("limiter: not renewed error=%s", error)

    def _renew_all(self, users: list[tuple[str, str]]) -> None:
        for connection_id, user in users:
            # It may have ended since, or while its lease is renewed: a lease that nobody releases
            # would count against its user for a minute.
            if connection_id in self._users:
                try:
                    self._lease(user, connection_id)
                    if connection_id not in self._users:
                        self._leases.release(self._place(user)[0], connection_id)
                except TopicRefused as error:
                    # Those of other users are renewed all the same.
                    self._note_refusal(error)

    def _note_refusal(self, error: BackendError) -> None:
        if isinstance(error, TopicRefused) and not self._is_refused:
            self._is_refused = True
            logger.warning(
                "limiter: lease refused, a user's connections are counted in each process alone "
                "error=%s (logged once)",
                error,
            )

    def _lease(self, user: str, connection_id: str) -> bool:
        name, limit = self._place(user)
        return self._leases.lease(name, connection_id, limit, LEASE_SECONDS)

    async def _release(self, user: str, connection_id: str) -> None:
        try:
            await asyncio.to_thread(self._leases.release, self._place(user)[0], connection_id)
        except BackendError as error:
            logger.debug("limiter: lease left to run out error=%s", error)

    def _place(self, user: str) -> tuple[str, int]:
        """Return the name that the leases of ``user`` have, and how many there may be."""
        viewer = Viewer.of(user)
        if viewer is None:
            return f"connections:{user}", self._limit
        return f"viewers:{viewer.topic}", self._viewers
