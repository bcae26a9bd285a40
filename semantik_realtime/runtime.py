"""The composition root: settings, plugins, backend and emitter, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.loader import (
    bind_hooks,
    bind_sinks,
    build_plugins,
    is_substituted,
    load_backend,
    log_unknown_settings,
)
from semantik_realtime.clock import now_text
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.core.drafts import feed_owner, make_drafts, owners_of
from semantik_realtime.core.event import Outcome, Receipt
from semantik_realtime.core.lifecycle import END_TYPES
from semantik_realtime.core.shape import (
    check_attempt,
    check_job_state,
    check_mapping,
    complete_state,
    near_misses,
    number_state,
)
from semantik_realtime.core.topic import (
    job_topic,
    name_topic,
    plain_id,
    split_topic,
    user_topic,
)
from semantik_realtime.core.topic_token import DEFAULT_SECONDS, make_token
from semantik_realtime.core.words import Words
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.errors import BackendError, ConfigError, EventError, InvalidInput
from semantik_realtime.hookspecs import Backend, Top
from semantik_realtime.sinks.host import SinkHost

logger = logging.getLogger(__name__)

MAX_NEAR_MISSES = 100
"""How many members of states that may be misspelt a process logs."""
REPLACE_SECONDS = 10.0
"""How long `Runtime.replace_backend` waits for the backend before, if that answers."""

_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def configured_runtimes() -> list[Runtime]:
    """Return the runtimes of this process whose backend follows from the settings."""
    return list(_runtimes)


class Runtime(SinkHost):
    """One configured instance: what a worker or a web process uses.

    Making one opens no connection and starts no thread. Web applications use
    `semantik_realtime.Realtime`, which adds routes.

    Args:
        settings: read from the environment by default.
        plugins: objects with hooks of `semantik_realtime.hookspecs.HostSpec`, or
            with wrappers of the backend's hooks.
        backend: used instead of the configured backend.

    Raises:
        ConfigError: a setting is wrong, or the backend cannot be loaded.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        plugins: Iterable[object] = (),
        backend: Backend | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        log_unknown_settings()
        self._is_configured_backend = backend is None
        self._given_plugins = tuple(plugins)
        self.unguarded: Backend = load_backend(self.settings) if backend is None else backend
        """The backend itself: without plugins, deadlines and circuit breakers."""
        self.plugins = build_plugins(self.unguarded, self._given_plugins)
        self.words = Words(self.settings.host_words)
        """The application's own words, which `publish` accepts."""
        self.backend = GuardedBackend(bind_hooks(self.plugins), self.settings.timeout_seconds)
        self.backend.make_reader = self.second_backend
        self.emitter = self._make_emitter()
        self.sink_backend = bind_sinks(self.plugins)
        self._have_sinks(self.settings.sink_events, lambda: self.backend.is_away)
        if self._is_configured_backend:
            _runtimes.add(self)
        # Members of states that may be misspelt, as logged. At most `MAX_NEAR_MISSES`.
        self._near_misses: set[str] = set()
        # How many calls of `_top` use the backend that they opened.
        self._readers = 0

    def _make_emitter(self) -> Emitter:
        return Emitter(
            self.backend,
            max_drafts=self.settings.spool_drafts,
            max_bytes=self.settings.spool_bytes,
            # The drafts on disk belong to the configured backend.
            directory=None if is_substituted() else self.settings.spool_path,
            lease_seconds=self.settings.lease_seconds,
        )

    def replace_backend(self, backend: Backend) -> Callable[[], None]:
        """Use ``backend`` from now on, in the web side too. Return what undoes that. For tests.

        Drafts that wait go on waiting for the backend before, and none is sent meanwhile.
        """
        unguarded, emitter, sink_backend = self.unguarded, self.emitter, self.sink_backend
        emitter.close(REPLACE_SECONDS, while_failing=False)
        plugins = build_plugins(backend, self._given_plugins)
        guarded = self.backend.replace(bind_hooks(plugins))
        self.unguarded, self.emitter = backend, self._make_emitter()
        self.sink_backend = bind_sinks(plugins)

        def undo() -> None:
            self.emitter.close(REPLACE_SECONDS, while_failing=False)
            self.unguarded, self.emitter = unguarded, emitter
            self.sink_backend = sink_backend
            self.backend.replace(guarded)

        return undo

    def second_backend(self) -> Backend | None:
        """Make another instance of the configured backend, with the same plugins.

        For a reader on a loop of its own. None if the backend was given as an
        object, which cannot be made again.
        """
        if not self._is_configured_backend:
            return None
        return bind_hooks(build_plugins(load_backend(self.settings), self._given_plugins))

    async def publish(
        self,
        topic: str,
        type: str,
        *,
        data: Mapping[str, Any] | None = None,
        key: str | None = None,
        state: Mapping[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
        owner: str | None = None,
        attempt: int | None = None,
        also: Sequence[str] = (),
        timeout_seconds: float | None = None,
    ) -> Receipt:
        """Append an event from the web side and wait for the receipt.

        ``topic`` is the name of a topic, or its kind and a plain id: ``job:import:42``.
        On a job's topic the event belongs to the job's newest attempt, or to
        ``attempt``, which becomes the newest one if it is higher. It is refused
        after the end of its attempt (`Outcome.CLOSED`), and when a newer
        attempt has begun (`Outcome.STALE`); `begin_attempt` begins the next one.
        A type that ends a job ends
        it, unless ``key`` is another one, a child's. There the status of the
        state follows from a type of a job's life, ``job_failed`` for example;
        without ``state`` it is the whole state. Types and statuses may be the
        application's own (the setting ``host_words``). What changes the state of
        the job itself goes to its owner's feed too. ``also`` names further
        topics for the same event; these do not become the property of
        ``owner``. With an ``owner`` who is not the topic's nothing is appended
        to it (`Outcome.FOREIGN_OWNER`); a topic that has events and no owner
        begins again with its first one, who must not see them. The outcome is
        `Outcome.WAITING` while the backend is away, and when there is no answer
        within ``timeout_seconds`` (default: the backend's timeout): the event
        is appended later.

        Raises:
            InvalidInput: a name is outside its grammar, the topic is a feed and ``owner``
                another user, or ``data`` or ``state`` has a
                shape that readers cannot read (`semantik_realtime.core.shape`); the message
                names the member. Nothing was sent.
            BackendUnavailable: the event was dropped, because too many wait already.
        """
        topic = name_topic(topic)
        owner = None if owner is None else plain_id(owner)
        kind, ident = split_topic(topic)
        if owner is not None and feed_owner(topic) not in (None, owner):
            raise InvalidInput(f"{topic} is the feed of user {ident!r}, not of owner {owner!r}")
        is_jobs_own = kind == "job" and (key or ident) == ident
        if data is not None:
            check_mapping("data", data)
        type = self.words.type_of(type)
        if state is not None and not isinstance(state, msgspec.UnsetType):
            check_mapping("state", state)
            state = self.words.translate(state)
        if attempt is not None:
            if kind != "job":
                raise EventError(f"attempt is of a job's topic, not of {topic!r}")
            check_attempt(attempt)
        if kind == "job":
            if type == "job_deleted":
                raise EventError("job_deleted is an event of delete(): call that")
            state = complete_state(type, state)
            if is_jobs_own and attempt is not None:
                state = number_state(state, attempt)
            if is_jobs_own and isinstance(state, Mapping):
                check_job_state(state)
                self._note_near_misses(topic, near_misses(state))
        others = [name_topic(other) for other in also]
        if is_jobs_own and isinstance(state, Mapping):
            others += await self._feed_of(topic, owner)
        drafts = make_drafts(
            owners_of(topic, others, owner),
            type,
            now_text(),
            key or ident,
            state=state,
            data=data,
            job=ident if kind == "job" else None,
            attempt=attempt,
            terminal=is_jobs_own and type in END_TYPES,
            max_bytes=self.settings.max_event_bytes,
        )
        receipt = self.emitter.emit_and_confirm(drafts[0])
        for draft in drafts[1:]:
            self.emitter.emit(draft)
        if receipt.done():
            return receipt.result()
        if self.backend.is_away:
            return Receipt(Outcome.WAITING)
        timeout = self.settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.wrap_future(receipt)
        except TimeoutError:
            return Receipt(Outcome.WAITING)

    async def _feed_of(self, topic: str, owner: str | None) -> list[str]:
        """Return the feed of a job's owner; empty without one.

        ``owner`` is the one that the caller names. It may be another one than
        the job's, and then it is nobody's feed.
        """
        known = None
        if not self.backend.is_away:
            with contextlib.suppress(BackendError):
                top = await self._top(topic)
                known = None if top is None else top.owner
        if owner not in (None, known) and known is not None:
            return []
        found = owner or known
        return [] if found is None else [user_topic(found)]

    async def begin_attempt(self, job_id: str) -> int:
        """Begin the next attempt of a job, and return its number, to pass to `publish`.

        From then on events of earlier attempts are refused as stale. The job's
        state changes with the first event of the attempt, ``job_started`` for
        example. Return 0 if the job was deleted and accepts no event.

        Raises:
            TopicError: it is no id of a job.
            BackendError: nothing has begun, or it is not known whether it has.
        """
        job_id = plain_id(job_id)
        topic = job_topic(job_id)
        # A draft that waits here names no attempt, and would become the new one's.
        await asyncio.to_thread(self.emitter.flush, self.settings.flush_seconds)
        token = secrets.token_hex(6)
        return await asyncio.to_thread(self.backend.claim, topic, job_id, token, None)

    async def delete(self, job_id: str, *, owner: str | None = None) -> bool:
        """Delete a job at once. Return True if the backend knew it.

        The job's watchers get ``gone``; the owner's feed gets ``job_deleted``.
        The owner is looked up if not given.

        Raises:
            TopicError: it is no id of a job.
            BackendError: the job may still exist.
        """
        job_id = plain_id(job_id)
        topic = job_topic(job_id)
        if owner is None:
            top = await self._top(topic)
            owner = top.owner if top else None
        # Drafts that this process has not sent yet would be refused after the deletion.
        await asyncio.to_thread(self.emitter.flush, self.settings.flush_seconds)
        known = await asyncio.to_thread(self.backend.delete, topic)
        if owner is not None:
            feed = user_topic(owner)
            # As an attempt of its own: a job that has ended accepts no other event, and later
            # events of a task that still runs become stale.
            attempt = await asyncio.to_thread(
                self.backend.claim, feed, job_id, secrets.token_hex(6), owner
            )
            for draft in make_drafts(
                {feed: owner},
                "job_deleted",
                now_text(),
                job_id,
                state=None,
                job=job_id,
                attempt=attempt,
                terminal=True,
                max_bytes=self.settings.max_event_bytes,
            ):
                self.emitter.emit(draft)
        return known

    def _note_near_misses(self, topic: str, missed: Mapping[str, str]) -> None:
        for member, meant in missed.items():
            if len(self._near_misses) < MAX_NEAR_MISSES and member not in self._near_misses:
                self._near_misses.add(member)
                logger.warning(
                    "publish: unknown member of a state topic=%s %s, nearest is %s (logged once)",
                    topic,
                    member[:80],
                    meant,
                )

    async def _top(self, topic: str) -> Top | None:
        """Return where a topic ends, from any loop. Closes again what it had to open.

        Raises:
            BackendError: the backend cannot answer now.
        """
        if self.backend.is_open and not self._readers:
            return (await self.backend.tops([topic])).get(topic)
        self._readers += 1
        try:
            await self.backend.open()
            return (await self.backend.tops([topic])).get(topic)
        finally:
            self._readers -= 1
            if not self._readers:
                await self.backend.close()

    def token_for(
        self, topic: str, *, seconds: float = DEFAULT_SECONDS, owner: str | int | UUID | None = None
    ) -> str:
        """Return a token that allows whoever has it to watch ``topic``, and to do nothing else.

        It is for pages without a login, links that are shared, and programs; every transport
        takes it as it takes a user's. Nothing is asked or stored: give it to those only who may
        watch. A connection ends with its token, unless the client has sent a fresh one.

        Args:
            topic: its name, such as ``job:42``; it need not exist yet.
            seconds: how long it is valid, 1 to 86,400.
            owner: the topic's owner: then the token ends when the topic gets another one.

        Raises:
            ConfigError: SEMANTIK_REALTIME_TOPIC_SECRETS is unset, or a secret is too short.
            TopicError, InvalidInput: an argument is outside its range.
        """
        keys = self.settings.topic_secret_list
        if not keys:
            raise ConfigError(
                "nothing can sign a token for a topic: set SEMANTIK_REALTIME_TOPIC_SECRETS to a "
                "random text of 32 bytes or more, the same here and in the web servers"
            )
        return make_token(topic, keys[0], time.time(), owner=owner, seconds=seconds)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Flush and end the emitter. Return False if drafts still wait."""
        done = self.emitter.close(
            self.settings.flush_seconds if timeout_seconds is None else timeout_seconds
        )
        self.backend.close_writer()
        return done
