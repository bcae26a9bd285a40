"""Asking again whether a connection may watch what it watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from semantik_realtime.cancellation import cancel_until_done
from semantik_realtime.errors import BackendError
from semantik_realtime.web.hub.permission import Permissions
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.tokens import CheckedIdentity


class Rechecked(Protocol):
    """A connection, as its rechecks see it."""

    identity: CheckedIdentity
    """Who is connected."""

    @property
    def followed(self) -> Mapping[str, Subscription]:
        """Its subscriptions, by topic."""

    def allow(self, subscription: Subscription, owner: str | None) -> None:
        """What waits for ``subscription`` may be sent: the topic is ``owner``'s."""

    def hold(self, subscription: Subscription) -> None:
        """Send nothing of the topic until `allow`."""

    def refuse(self, topic: str) -> None:
        """End the subscription, and tell the client."""

    def fail(self) -> None:
        """End the connection: a fault of this server."""


class Rechecks:
    """The tasks that ask again: after a new credential, and where a topic's log begins again.

    Args:
        connection: whose subscriptions they are.
        permissions: what is asked.
        spawn: starts a task that ends with the hub.
        pause: waits for so many seconds, and until the backend is back.
    """

    def __init__(
        self,
        connection: Rechecked,
        permissions: Permissions,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._permissions = permissions
        self._spawn = spawn
        self._pause = pause
        # Authorizes the open topics again, and whether it has to begin anew when it is done.
        self._rechecking: asyncio.Task[None] | None = None
        self._again = False
        # Asks for a subscription whose log has begun again.
        self._renewing: dict[Subscription, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Authorize every open topic again, in one task."""
        self._again = True
        if self._rechecking is None or self._rechecking.done():
            self._rechecking = self._spawn(self._recheck_all(), "recheck")

    def renew(self, subscription: Subscription) -> None:
        """Authorize the user for the epoch of what waits for ``subscription``, in a task."""
        running = self._renewing.get(subscription)
        if running is None or running.done():
            self._connection.hold(subscription)
            self._renewing[subscription] = self._spawn(self._renew(subscription), "authorize")

    def forget(self, subscription: Subscription) -> None:
        """The connection has left ``subscription``."""
        renewing = self._renewing.pop(subscription, None)
        # A refusal must not cancel the very task that makes it.
        if renewing is not None and renewing is not asyncio.current_task():
            cancel_until_done(renewing)

    def close(self) -> None:
        """The connection has ended."""
        if self._rechecking is not None:
            cancel_until_done(self._rechecking)

    async def _recheck_all(self) -> None:
        while self._again:
            self._again = False
            await asyncio.gather(*map(self._recheck, list(self._connection.followed)))

    async def _recheck(self, topic: str) -> None:
        # While nobody can tell, the earlier answer stands; the token itself is valid.
        with contextlib.suppress(BackendError):
            permission = await self._permissions.ask(self._connection.identity.user, topic)
            if not permission.is_allowed and topic in self._connection.followed:
                self._connection.refuse(topic)

    async def _renew(self, subscription: Subscription) -> None:
        connection, topic = self._connection, subscription.channel.topic
        try:
            permission = await self._permissions.renew(
                connection.identity.user, subscription, self._pause
            )
        except Exception:
            connection.fail()
            raise
        if connection.followed.get(topic) is not subscription:
            return
        if permission.is_allowed:
            connection.allow(subscription, permission.owner)
        else:
            connection.refuse(topic)
