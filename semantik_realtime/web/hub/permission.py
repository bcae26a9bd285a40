"""Whether a user may watch a topic: asked for each lifetime of its log, and not answered too early.

The owner belongs to the epoch: where a log has begun again it may be another
user's. And a job may be asked for before its first event is in the log, so a
subscription is refused only after a while, the same one for a job of another
user and for a job that does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import msgspec

from semantik_realtime.backoff import Backoff
from semantik_realtime.core.topic_token import Viewer
from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Snapshot, Top
from semantik_realtime.web.hub.channel import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from semantik_realtime.web.hub.stats import HubStats
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.refusals import RefusalLog

logger = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
"""How long a subscription waits for an owner who may watch, before it is refused."""
FIRST_PAUSE_SECONDS = 0.1
"""Between the first two looks of such a subscription; each further pause is twice as long."""
MAX_WAITING = 10_000
"""Subscriptions of a process that may wait; a further one is refused at once."""
MAX_WAITING_OF_USER = 1000
"""The same of one user: ten connections with a hundred topics each."""
UNKNOWN = ""
"""The epoch of a topic that the backend does not know, or cannot be asked for now."""


class Permission(msgspec.Struct, frozen=True):
    """Whether a user may watch a topic for as long as its log is in ``epoch``."""

    is_allowed: bool
    epoch: str = UNKNOWN
    """The epoch whose owner counted."""
    owner: str | None = None
    """That owner; None: there is none, or it is not known now."""
    is_final: bool = True
    """Whether asking again soon makes no difference."""


class Authorizer(Protocol):
    """Who decides: `semantik_realtime.web.access.Access`."""

    async def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        """Return True if ``user`` may watch ``topic``, which belongs to ``owner``."""


class Permissions:
    """Asks the host, or else the owner rule, about a topic's present owner. For one loop.

    Args:
        access: the application's rules.
        top: where a topic ends, and whose it is (`semantik_realtime.web.hub.hub.Hub.top`).
        stats: counts what waits and what is refused.
        refusals: logs what is refused.
    """

    def __init__(
        self,
        access: Authorizer,
        top: Callable[[str], Awaitable[Top | None]],
        stats: HubStats,
        refusals: RefusalLog | None = None,
    ) -> None:
        self._access = access
        self._top = top
        self._stats = stats
        self._refusals = refusals
        # How many subscriptions of each user wait.
        self._waiting: Counter[str] = Counter()
        # Whether a subscription was refused for lack of room, which is logged once until there
        # is room for half of them again.
        self._is_full = False

    async def ask(self, user: str, topic: str) -> Permission:
        """Return whether ``user`` may watch ``topic``, by the owner that the backend has now.

        While the backend is away the owner is unknown. Then a refusal proves
        nothing, because it may come from the unknown owner.

        Raises:
            BackendError: the owner is needed, and the backend does not answer; or the host's
                hook does not.
        """
        try:
            top = await self._top(topic)
        except BackendError:
            if await self._access.authorize(user, topic, None):
                return Permission(True)
            raise
        epoch, owner = (UNKNOWN, None) if top is None else (top.cursor.epoch, top.owner)
        return Permission(await self._access.authorize(user, topic, owner), epoch, owner)

    async def wait(self, user: str, topic: str) -> Permission:
        """Return as `ask`, but before a refusal wait until it is allowed, for `WAIT_SECONDS`.

        Raises:
            BackendError: as `ask`.
        """
        permission = await self.ask(user, topic)
        if permission.is_allowed:
            return permission
        if (viewer := Viewer.of(user)) is not None and viewer.topic != topic:
            # It never will be. A token shows its topic, so the answer tells nothing.
            self._stats.count_denied("waited")
            self.note_denied(user, topic, permission)
            return permission
        with self._place(user) as has_place:
            deadline = time.monotonic() + (WAIT_SECONDS if has_place else 0.0)
            pause = FIRST_PAUSE_SECONDS
            while not permission.is_allowed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                await asyncio.sleep(min(pause, left))
                pause *= 2
                permission = await self.ask(user, topic)
        if not permission.is_allowed:
            self._stats.count_denied("waited" if has_place else "crowded")
            self.note_denied(user, topic, permission)
            return msgspec.structs.replace(permission, is_final=has_place)
        return permission

    def note_denied(self, user: str, topic: str, permission: Permission) -> None:
        """Log once that ``user`` may not watch ``topic``, and why, which no client learns."""
        if Viewer.of(user) is not None:
            reason = "the token is for another topic, or for its owner before"
        elif topic.startswith("user:"):
            reason = "it is the feed of another user"
        elif permission.epoch == UNKNOWN:
            reason = "the backend does not know it: the id is wrong, or the job has expired"
        elif permission.owner is None:
            reason = "it has no owner: send the task with the header realtime_owner"
        elif permission.owner != user:
            reason = "it has another owner"
        else:
            reason = "the host's authorize refuses it"
        if self._refusals is not None:
            self._refusals.note_denied(topic, reason)

    async def renew(
        self,
        user: str,
        subscription: Subscription,
        pause: Callable[[float], Awaitable[None]],
    ) -> Permission:
        """Return whether ``user`` may get what waits for ``subscription``, and permit it if so.

        While nobody can tell it pauses, with ``pause``, and asks again.
        """
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        while True:
            snapshot = subscription.pending
            try:
                permission = await self._ask_for(user, subscription.channel.topic, snapshot)
            except BackendError as error:
                logger.debug("permission: waits error=%s", error)
                await pause(backoff.next_seconds())
                continue
            if permission.epoch != subscription.epoch or subscription.pending is not snapshot:
                # The topic has changed again, and the channel has not read it yet.
                await pause(backoff.next_seconds())
            else:
                if permission.is_allowed:
                    subscription.permit(permission.epoch)
                return permission

    async def _ask_for(self, user: str, topic: str, snapshot: Snapshot | None) -> Permission:
        # A replay may be one of this process, which does not know the owner.
        if snapshot is None or snapshot.cursor is None or snapshot.reason is None:
            return await self.ask(user, topic)
        is_allowed = await self._access.authorize(user, topic, snapshot.owner)
        return Permission(is_allowed, snapshot.cursor.epoch, snapshot.owner)

    @contextlib.contextmanager
    def _place(self, user: str) -> Iterator[bool]:
        """Count a subscription that waits. Yields False if there are too many."""
        waiting = self._stats.waiting
        if waiting >= MAX_WAITING or self._waiting[user] >= MAX_WAITING_OF_USER:
            if not self._is_full:
                self._is_full = True
                logger.warning(
                    "permission: refused without waiting, too many wait waiting=%d", waiting
                )
            yield False
            return
        self._waiting[user] += 1
        self._stats.waiting += 1
        try:
            yield True
        finally:
            self._waiting[user] -= 1
            self._stats.waiting -= 1
            if not self._waiting[user]:
                del self._waiting[user]
            if self._stats.waiting < MAX_WAITING_OF_USER // 2:
                self._is_full = False
