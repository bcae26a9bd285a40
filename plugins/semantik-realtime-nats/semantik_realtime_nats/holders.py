"""The jobs that worker processes hold: one subject for each process, appended on condition.

Few jobs are one message, which each call replaces. Of many, each call appends
what it changes, and after `COMPACT_MESSAGES` of them all jobs are stored again.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec
from semantik_realtime.core.holding import (
    HELD_KEEP_SECONDS,
    Holding,
    given_name,
    worker_of,
)
from semantik_realtime.core.limits import MAX_GIVEN_HOLDERS, MAX_GIVEN_JOBS
from semantik_realtime.errors import AppendUncertain

from semantik_realtime_nats.conflicts import retry_conflicts
from semantik_realtime_nats.errors import NoReply, SequenceConflict
from semantik_realtime_nats.held import Change, HeldJobs, Message, fold, split_change
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects

REPLACE_BYTES = 16 * 1024
"""Jobs of so many bytes, or fewer, are one message."""
COMPACT_MESSAGES = 64
"""Messages after which all jobs are stored again."""
MAX_WORKERS = 64
"""Worker processes whose jobs a writer remembers; an emitter has one."""
SUBJECTS_AT_ONCE = 100
HEADER_BYTES = 8192
"""Room in a message for everything but the jobs."""


class Known(msgspec.Struct):
    """What a writer knows of a subject."""

    seq: int
    """The sequence of the last message; 0: there is none."""
    held: HeldJobs
    messages: int
    """How many there are."""


class Holders:
    """Holds and gives jobs. Lives on the writer's loop; one call at a time."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self._lock = asyncio.Lock()
        self._known: OrderedDict[str, Known] = OrderedDict()
        """By subject; the one that was used longest ago comes first. Never one without jobs."""

    def forget(self) -> None:
        """Read again what the stream has. After a new connection."""
        self._known.clear()

    async def hold(
        self,
        stream: Stream,
        holder: str,
        jobs: Mapping[str, bytes],
        ended: Sequence[str],
        seconds: float,
    ) -> bool:
        """See `semantik_realtime.hookspecs.Backend.hold`."""
        subject = self._subjects.held(worker_of(holder))
        max_bytes = stream.connection.max_payload_bytes - HEADER_BYTES

        @retry_conflicts
        async def hold() -> bool:
            known = self._known.get(subject)
            if known is None or holder not in known.held.holders:
                # If nothing is stored now, no conflict shows that what we know is outdated.
                known = await self._read(stream, subject)
            was_held = holder in known.held.holders
            if was_held or jobs:
                ends_at = await stream.now() + seconds
                changes = list(split_change(holder, ends_at, jobs, ended, max_bytes))
                await self._store(stream, subject, known, changes, seconds)
            return was_held

        async with self._lock:
            try:
                return await hold()
            except NoReply as error:
                raise AppendUncertain(str(error)) from error

    async def overdue(self, stream: Stream, seconds: float) -> list[Holding]:
        """See `semantik_realtime.hookspecs.Backend.overdue`."""
        given: list[Holding] = []
        token = secrets.token_hex(4)
        for subject in await self._due_subjects(stream):
            room = MAX_GIVEN_HOLDERS - len(given)
            if room <= 0 or sum(len(one.jobs) for one in given) >= MAX_GIVEN_JOBS:
                break
            async with self._lock:
                known = await self._read(stream, subject)
                now = await stream.now()
                names = known.held.overdue(now)[:room]
                changes, holdings = [], []
                for name in names:
                    given_as = given_name(name, token)
                    held = known.held.holders[name]
                    changes.append(Change(name, now + seconds, given_as=given_as))
                    holdings.append(Holding(given_as, worker_of(name), dict(held.jobs)))
                try:
                    if changes:
                        await self._store(stream, subject, known, changes, seconds)
                        given += holdings
                except SequenceConflict:
                    continue
                except NoReply as error:
                    raise AppendUncertain(str(error)) from error
        return given

    async def _due_subjects(self, stream: Stream) -> list[str]:
        """Return the subjects with a deadline that is over, the oldest first."""
        due: list[tuple[float, str]] = []
        offset = 0
        while True:
            info = await stream.read_info(subjects_filter=self._subjects.held("*"), offset=offset)
            subjects = list(info["state"].get("subjects") or ())
            for start in range(0, len(subjects), SUBJECTS_AT_ONCE):
                found = await stream.read_last(subjects[start : start + SUBJECTS_AT_ONCE])
                for subject, stored in found.items():
                    due_at = Message.decode(stored.data).due_at
                    if due_at is not None and await stream.is_past(due_at):
                        due.append((due_at, subject))
            offset += len(subjects)
            if not subjects or offset >= info.get("total", 0):
                return [subject for _, subject in sorted(due)]

    async def _read(self, stream: Stream, subject: str) -> Known:
        messages = await stream.read_from(subject, 1)
        seq = messages[-1].seq if messages else 0
        return Known(seq, fold(message.data for message in messages), len(messages))

    async def _store(
        self, stream: Stream, subject: str, known: Known, changes: list[Change], seconds: float
    ) -> None:
        """Store changes after what is known, and remember it.

        Raises:
            SequenceConflict: something else was stored; it has to be read.
            NoReply: some of the changes may have been stored.
        """
        self._known.pop(subject, None)
        now_known = Known(known.seq, known.held.copy(), known.messages)
        held = now_known.held
        max_bytes = stream.connection.max_payload_bytes - HEADER_BYTES
        after = held.copy()
        for change in changes:
            after.apply(change)
        if after.size <= REPLACE_BYTES:
            message = Message(after.due_at, after.all_changes(max_bytes))
            await self._append(stream, subject, now_known, message, seconds, rollup=True)
        else:
            for change in changes:
                held.apply(change)
                message = Message(held.due_at, [change])
                await self._append(stream, subject, now_known, message, seconds)
        now_known.held = after
        if after.holders:
            self._known[subject] = now_known
            if len(self._known) > MAX_WORKERS:
                self._known.popitem(last=False)
        if now_known.messages > COMPACT_MESSAGES:
            await self._compact(stream, subject, now_known, seconds)

    async def _compact(self, stream: Stream, subject: str, known: Known, seconds: float) -> None:
        """Store all jobs again, and then remove the older messages.

        Each of these messages repeats what the older ones amount to, so it does no harm if some
        are missing.
        """
        first_seq = 0
        before = known.messages
        for change in known.held.all_changes(stream.connection.max_payload_bytes - HEADER_BYTES):
            message = Message(known.held.due_at, [change])
            try:
                await self._append(stream, subject, known, message, seconds)
            except SequenceConflict:
                self._known.pop(subject, None)
                return
            first_seq = first_seq or known.seq
        await stream.purge(subject, first_seq)
        known.messages -= before

    @staticmethod
    async def _append(
        stream: Stream,
        subject: str,
        known: Known,
        message: Message,
        seconds: float,
        *,
        rollup: bool = False,
    ) -> None:
        # Without jobs it is only there to replace those before it.
        keep = seconds + HELD_KEEP_SECONDS if message.due_at is not None else 1
        known.seq = await stream.publish(
            subject, message.encode(), known.seq, rollup=rollup, ttl_seconds=math.ceil(keep)
        )
        known.messages = 1 if rollup else known.messages + 1
