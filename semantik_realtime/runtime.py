"""The composition root: settings, plugins, backend and emitter, put together."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.loader import build_plugins, check_backend, load_backend, wrapped
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.core.event import (
    ENDS,
    Draft,
    Outcome,
    Receipt,
    StateChange,
    encode_body,
)
from semantik_realtime.core.topic import check_topic, job_topic, split_topic, user_topic
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.hookspecs import Top


def now_text() -> str:
    """The time, as events have it."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second_text(seconds)}.{milliseconds:03d}Z"


@functools.lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    # Every event has a time, and this is the slow part of writing it.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Runtime:
    """One configured instance: what a worker or a web process uses.

    Making one opens no connection and starts no thread. Web applications use
    `semantik_realtime.Realtime`, which adds routes.

    Args:
        settings: read from the environment if not given.
        plugins: objects with hooks of `semantik_realtime.hookspecs.HostSpec`.
        backend: an object with the hooks of a backend, instead of the configured one.

    Raises:
        ConfigError: a setting is wrong, or the backend is not to be had.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        plugins: Iterable[object] = (),
        backend: object | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        primary = backend if backend is not None else load_backend(self.settings)
        check_backend(primary)
        # Of what waits only the states are shown, and the emitter has the events.
        memory = load_backend(self.settings.model_copy(update={"retention_events": 1}), "memory")
        self.backend = GuardedBackend(primary, memory, self.settings.timeout_seconds)
        self.plugins = build_plugins(self.backend, plugins)
        self.emitter = Emitter(
            self.write_hook("publish"),
            max_drafts=self.settings.spool_drafts,
            max_bytes=self.settings.spool_bytes,
            directory=self.settings.spool_path,
            after_fork=self.write_hook("close_writer"),
        )
        self._looking = 0
        """How many look into the backend that was opened for nothing else."""

    def write_hook(self, name: str) -> Callable[..., Any]:
        """The backend's ``name``, called directly unless another plugin takes part in it.

        A call through pluggy costs microseconds, and this is the hot path.
        """
        if not wrapped(self.plugins, name):
            return getattr(self.backend, name)  # type: ignore[no-any-return]
        hook = getattr(self.plugins.hook, name)
        arguments = next(iter(hook.get_hookimpls())).argnames

        @functools.wraps(getattr(self.backend, name))
        def call(*values: object) -> object:
            return hook(**dict(zip(arguments, values, strict=True)))

        return call

    def drafts(
        self,
        topics: Sequence[str],
        type: str,
        *,
        key: str,
        state: Mapping[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
        data: Mapping[str, Any] | None = None,
        job: str | None = None,
        attempt: int | None = None,
        owner: str | None = None,
        terminal: bool = False,
        time: str | None = None,
    ) -> list[Draft]:
        """One event as drafts for several topics; the body is encoded once.

        Raises:
            InvalidInput: a name is outside its grammar, or the event cannot be
                encoded or is too big. Nothing was sent.
        """
        body = encode_body(
            type,
            time or now_text(),
            key,
            state=state,
            data=data,
            terminal=terminal,
            max_bytes=self.settings.max_event_bytes,
        )
        if state is msgspec.UNSET:
            change = StateChange.KEEP
        else:
            change = StateChange.DROP if state is None else StateChange.SET
        return [
            Draft(
                topic=check_topic(topic),
                type=type,
                key=key,
                body=body,
                change=change,
                terminal=terminal,
                job=job,
                attempt=attempt,
                owner=owner,
            )
            for topic in topics
        ]

    async def publish(
        self,
        topic: str,
        type: str,
        *,
        data: Mapping[str, Any] | None = None,
        key: str | None = None,
        state: Mapping[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
        owner: str | None = None,
        also: Sequence[str] = (),
        timeout_seconds: float | None = None,
    ) -> Receipt:
        """Append an event from the web side and wait for the answer.

        On a job's topic it counts as the job's newest attempt, so after the
        end it is refused (`Outcome.CLOSED`); a type that ends a job ends it.
        ``also`` names further topics for the same event. While the backend is
        away, and without an answer in time (default: the backend's timeout),
        the outcome is `Outcome.WAITING`.

        Raises:
            InvalidInput: nothing was sent.
            BackendUnavailable: too much waits already; it was dropped.
        """
        kind, ident = split_topic(topic)
        drafts = self.drafts(
            [topic, *also],
            type,
            key=key or ident,
            state=state,
            data=data,
            job=ident if kind == "job" else None,
            owner=owner,
            terminal=kind == "job" and type in ENDS,
        )
        answer = self.emitter.emit_and_confirm(drafts[0])
        for draft in drafts[1:]:
            self.emitter.emit(draft)
        if answer.done():
            return answer.result()
        if self.emitter.is_failing or self.backend.is_away:
            return Receipt(Outcome.WAITING)
        timeout = self.settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout)
        except TimeoutError:
            return Receipt(Outcome.WAITING)

    async def delete(self, job_id: str, *, owner: str | None = None) -> bool:
        """Forget a job at once; was it known?

        Its watchers are told ``gone``; the owner's feed gets ``job_deleted``.
        The owner is looked up if not given.

        Raises:
            BackendError: it may still be there.
        """
        topic = job_topic(job_id)
        if owner is None:
            top = await self._top(topic)
            owner = top.owner if top else None
        # What this process still has on the way would be refused after the deletion.
        await asyncio.to_thread(self.emitter.flush, self.settings.flush_seconds)
        known: bool = await asyncio.to_thread(self.write_hook("delete"), topic)
        if owner is not None:
            feed = user_topic(owner)
            # As an attempt of its own: a job that has ended takes no other word, and what a
            # task that still runs says afterwards is outdated.
            attempt = await asyncio.to_thread(
                self.write_hook("claim"), feed, job_id, secrets.token_hex(6)
            )
            for draft in self.drafts(
                [feed],
                "job_deleted",
                key=job_id,
                state=None,
                job=job_id,
                attempt=attempt,
                terminal=True,
                owner=owner,
            ):
                self.emitter.emit(draft)
        return known

    async def _top(self, topic: str) -> Top | None:
        """Where a topic ends, from any loop. What had to be opened for it is closed again.

        Raises:
            BackendError: it cannot be asked now.
        """
        if self.backend.is_open and not self._looking:
            return (await self.backend.tops([topic])).get(topic)
        self._looking += 1
        try:
            await self.backend.open()
            return (await self.backend.tops([topic])).get(topic)
        finally:
            self._looking -= 1
            if not self._looking:
                await self.backend.close()

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Flush and end the writer; False: something still waits."""
        done = self.emitter.close(
            self.settings.flush_seconds if timeout_seconds is None else timeout_seconds
        )
        self.write_hook("close_writer")()
        return done
