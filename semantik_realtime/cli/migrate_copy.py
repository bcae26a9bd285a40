"""Copying topics from one server to another, and comparing them, while others write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from semantik_realtime.core.copying import (
    DELETED,
    UNKNOWN,
    Mark,
    TopicCopy,
    continues,
    find_takeover,
    keep_sound_events,
    offset_of_place,
)
from semantik_realtime.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    RealtimeError,
)
from semantik_realtime.transfer import CopiedHolder, TopicHead, Transfer

CALL_SECONDS = 15.0
"""Deadline of one call to a server, of a topic as large as the settings allow too."""
AT_ONCE = 16
"""Topics that are copied, or compared, at a time, and so are in memory."""
MOST_NAMED = 20
"""Topics that a report names."""
OVER_SECONDS = 1.0
"""For how long jobs are held of a process that had not renewed in time before the close."""

Result = TypeVar("Result")


class MigrationFailed(RealtimeError):
    """The migration cannot go on; the message says what the servers are left in."""

    code = "migration_failed"


class Side:
    """One of the two servers; every call has a deadline.

    Args:
        name: for messages, ``FROM`` or ``TO``.
        transfer: of its engine.
    """

    def __init__(self, name: str, transfer: Transfer) -> None:
        self.name = name
        self.transfer = transfer

    @property
    def address(self) -> str:
        """Without passwords."""
        return self.transfer.address

    async def ask(self, call: Awaitable[Result]) -> Result:
        """Await a call of the transfer.

        Raises:
            BackendUnavailable: no answer in time; call again later.
            BackendRefused: an operator must act first.
        """
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await call
        except TimeoutError:
            raise BackendUnavailable(f"{self.name}: no answer in {CALL_SECONDS:g} s") from None
        except BackendError as error:
            kind = BackendRefused if isinstance(error, BackendRefused) else BackendUnavailable
            raise kind(f"{self.name}: {error}") from error

    async def topics(self) -> AsyncIterator[Sequence[str]]:
        """Yield the topics in parts; one may come twice."""
        parts = self.transfer.topics()
        while (part := await self.ask(anext(parts, None))) is not None:
            yield part

    async def has_topics(self) -> bool:
        """Return True if there is a topic that was not deleted."""
        async for part in self.topics():
            heads = await self.ask(self.transfer.heads(part))
            if any(head.place != DELETED for head in heads.values()):
                return True
        return False

    async def read(self, topic: str, after: int) -> TopicCopy | None:
        """Read a topic; its events lead to its cursor without a hole."""
        copy = await self.ask(self.transfer.read(topic, after))
        if copy is not None:
            keep_sound_events(copy)
        return copy

    async def read_mark(self) -> Mark | None:
        """Return the mark of the server."""
        return await self.ask(self.transfer.read_mark())

    async def set_mark(
        self,
        mark: Mark | None,
        *,
        is_closing_needed: bool = True,
        instead_of: Mark | UnsetType | None = UNSET,
    ) -> bool:
        """Set the mark of the server; return False if it has another one than ``instead_of``."""
        call = self.transfer.set_mark(
            mark, is_closing_needed=is_closing_needed, instead_of=instead_of
        )
        if await self.ask(call):
            return True
        # Perhaps a call whose answer was lost has set it.
        return await self.read_mark() == mark


class Known(msgspec.Struct, frozen=True, gc=False):
    """What was copied of a topic."""

    version: str
    """Of its head in the source, before it was read."""
    place: str
    """Where it is in the target."""
    digest: bytes
    is_verified: bool = False
    """Whether the target was read since, and has it."""


class Counts(msgspec.Struct):
    """What a copier has done since it was made."""

    topics: int = 0
    """Topics whose copy is in the target."""
    copies: int = 0
    """Topics that were stored, each time they had changed."""
    events: int = 0
    """Events that were stored."""
    left_out: int = 0
    """Events of histories that were damaged or had holes, and are not in the target."""


class Comparison(msgspec.Struct):
    """How the topics of two servers agree."""

    equal: int = 0
    changing: int = 0
    """Topics that got events since they were copied."""
    different: list[str] = []
    """Names of topics that differ; at most `MOST_NAMED`."""
    differences: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether the target has what was copied."""
        return not self.differences


class Copier:
    """Copies topics in rounds, each what has changed since the one before.

    Args:
        source: is only read.
        target: written only on condition that nobody else has written.
        report: called after each topic, with how many of the round were looked at.
        run: that of the target's mark, while which alone something is written; None: whatever the
            mark is.
    """

    def __init__(
        self,
        source: Side,
        target: Side,
        report: Callable[[int], object] = lambda _: None,
        run: str | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._run = run
        self._known: dict[str, Known] = {}
        self.counts = Counts()

    async def copy_round(self, *, thorough: bool = False) -> int:
        """Copy every topic that has changed; return how many were stored.

        Args:
            thorough: read also those whose head is the same: a claim of an attempt changes the
                fence alone. For the last round, when nobody writes any more.

        Raises:
            MigrationFailed: another process has written to the target, or another run of the
                command fills it, or has opened it.
            BackendError: a server does not answer, or refuses. Call again.
        """
        try:
            return await self._copy_round(thorough=thorough)
        except BackendError:
            # What a call had begun may be there, or not: the next round compares with the target.
            self._known.clear()
            raise

    async def check_target(self) -> None:
        """Check that no other run of the command has the target.

        Raises:
            MigrationFailed: one has.
            BackendError: the target does not answer, or refuses.
        """
        if self._run is not None:
            if takeover := find_takeover(await self._target.read_mark(), self._run):
                raise MigrationFailed(takeover)

    async def _copy_round(self, *, thorough: bool) -> int:
        await self.check_target()
        stored = looked = 0
        seen: set[str] = set()
        async for part in self._source.topics():
            topics = [topic for topic in dict.fromkeys(part) if topic not in seen]
            seen.update(topics)
            heads = await self._source.ask(self._source.transfer.heads(topics))
            changed = {
                topic: head
                for topic, head in heads.items()
                if thorough or self._version(topic) != head.version
            }
            new = [topic for topic in changed if topic not in self._known]
            places = await self._places(new)
            looked += len(topics) - len(changed)
            self._report(looked)
            stored += await self._copy_all(changed, places, looked)
            looked += len(changed)
        # The server has forgotten the others, and the target will at the same time.
        self._known = {topic: known for topic, known in self._known.items() if topic in seen}
        self.counts.topics = len(self._known)
        return stored

    async def _copy_all(
        self, changed: Mapping[str, TopicHead], places: Mapping[str, str], looked: int
    ) -> int:
        """Copy topics; return how many were stored. ``looked`` topics came before them."""

        async def copy(topic: str) -> bool:
            nonlocal looked
            is_stored = await self._copy(topic, changed[topic], places.get(topic))
            looked += 1
            self._report(looked)
            return is_stored

        return sum(await self._run_all(copy, list(changed)))

    def _version(self, topic: str) -> str | None:
        known = self._known.get(topic)
        return None if known is None else known.version

    async def _places(self, topics: Sequence[str]) -> dict[str, str]:
        """Return where topics are in the target, of a migration that was interrupted."""
        if not topics:
            return {}
        heads = await self._target.ask(self._target.transfer.heads(topics))
        return {topic: head.place for topic, head in heads.items()}

    async def _copy(self, topic: str, head: TopicHead, place: str | None) -> bool:
        """Copy a topic; return True if something was stored."""
        known = self._known.get(topic)
        at = known.place if known is not None else place or UNKNOWN
        copy = await self._source.ask(self._source.transfer.read(topic, offset_of_place(at)))
        if copy is None:
            # It has expired, or another program has written it.
            return False
        left_out = keep_sound_events(copy)
        digest = copy.digest()
        if known is None and place:
            there = await self._target.read(topic, offset_of_place(place))
            if there is not None and there.digest() == digest:
                self._known[topic] = Known(head.version, place, digest, is_verified=True)
                return False
        if known is not None and known.digest == digest:
            self._known[topic] = msgspec.structs.replace(known, version=head.version)
            return False
        whole = known is None or not continues(copy, at)
        if whole and offset_of_place(at):
            copy = await self._source.ask(self._source.transfer.read(topic, 0))
            if copy is None:
                return False
            left_out, digest = keep_sound_events(copy), copy.digest()
        await self._put(copy, at, digest, whole=whole)
        self._known[topic] = Known(head.version, copy.place, digest)
        self.counts.copies += 1
        self.counts.events += len(copy.events)
        self.counts.left_out += left_out
        return True

    async def _put(self, copy: TopicCopy, place: str, digest: bytes, *, whole: bool) -> None:
        put = self._target.transfer.put(copy, place, whole=whole, run=self._run)
        if await self._target.ask(put):
            return
        await self.check_target()
        # Perhaps a call whose answer was lost has stored it; or it has expired there.
        there = await self._target.read(copy.topic, copy.cursor.offset)
        if there is not None and there.digest() == digest:
            return
        if there is None and whole:
            put = self._target.transfer.put(copy, UNKNOWN, whole=True, run=self._run)
            if await self._target.ask(put):
                return
            await self.check_target()
        if there is None:
            raise BackendUnavailable(f"TO: {copy.topic} has expired there meanwhile")
        raise MigrationFailed(
            f"another process has written {copy.topic} to TO, {self._target.address}: stop what "
            "uses TO already, empty it, and begin again"
        )

    async def compare(self) -> Comparison:
        """Read from the target what was copied since the last comparison, and compare it.

        A topic that differs is copied again in the next round.

        What was copied is equal to what was read of the source; `Comparison.changing` counts what
        the source has got since.
        """
        found = Comparison(different=[])
        looked = 0

        async def verify(topic: str) -> None:
            nonlocal looked
            if not await self._verify(topic):
                del self._known[topic]
                found.differences += 1
                if len(found.different) < MOST_NAMED:
                    found.different.append(topic)
            looked += 1
            self._report(looked)

        topics = [topic for topic, known in self._known.items() if not known.is_verified]
        await self._run_all(verify, topics)
        async for part in self._source.topics():
            heads = await self._source.ask(self._source.transfer.heads(part))
            for topic, head in heads.items():
                known = self._known.get(topic)
                found.changing += known is not None and known.version != head.version
        found.equal = len(self._known)
        return found

    async def _verify(self, topic: str) -> bool:
        """Return True if the target has the copy of a topic, or the source has it no more."""
        known = self._known[topic]
        there = await self._target.read(topic, offset_of_place(known.place))
        if there is not None and there.digest() == known.digest:
            self._known[topic] = msgspec.structs.replace(known, is_verified=True)
            return True
        if there is not None:
            return False
        # It may have expired, on both.
        return topic not in await self._source.ask(self._source.transfer.heads([topic]))

    async def _run_all(
        self, call: Callable[[str], Coroutine[Any, Any, Result]], topics: Sequence[str]
    ) -> list[Result]:
        """Call for each topic, `AT_ONCE` at a time; if one fails, end the others and raise that."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def run(topic: str) -> Result:
            async with slots:
                return await call(topic)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(topic)) for topic in topics]
        except BaseExceptionGroup as group_error:
            error: BaseException = group_error
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        return [task.result() for task in tasks]

    async def copy_holders(self, seconds: float) -> int:
        """Hold in the target what worker processes hold in the source; return how many jobs.

        ``seconds`` is for how long, at least: a process may take that long to be restarted.
        """
        await self.check_target()
        jobs = 0
        holders = self._source.transfer.holders()
        while (one := await self._source.ask(anext(holders, None))) is not None:
            lives = max(one.seconds, seconds) if one.seconds > 0 else OVER_SECONDS
            holder = CopiedHolder(one.holder, lives, one.jobs)
            await self._target.ask(self._target.transfer.put_holder(holder))
            jobs += len(one.jobs)
        return jobs
