"""The messages that say which jobs a worker process holds, and their fold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

_JOB_BYTES = 16
"""About what a job needs in a message beside its id and its record."""


class Change(msgspec.Struct, array_like=True):
    """One call of `hold` or `overdue`, or a part of one."""

    holder: str
    ends_at: float
    """Its deadline from now on: the server's clock, in seconds since 1970."""
    jobs: dict[str, bytes] = {}
    """Added or replaced."""
    ended: list[str] = []
    """Removed, before ``jobs`` are added."""
    given_as: str | None = None
    """The other name under which the holder's jobs are held from now on."""


class Message(msgspec.Struct, array_like=True):
    """A message of a worker process's subject."""

    due_at: float | None
    """The first deadline after the message; None: nothing is held."""
    changes: list[Change] = []

    def encode(self) -> bytes:
        """Return it as it is stored."""
        return _encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Decode what `encode` returned."""
        return _decode(data)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Held(msgspec.Struct):
    """The jobs of one holder, never none, and its deadline."""

    ends_at: float
    jobs: dict[str, bytes]


class HeldJobs:
    """The fold of a worker process's messages: its jobs, and those that were given to others."""

    def __init__(self) -> None:
        self.holders: dict[str, Held] = {}

    @property
    def due_at(self) -> float | None:
        """The first deadline; None if nothing is held."""
        return min((held.ends_at for held in self.holders.values()), default=None)

    @property
    def size(self) -> int:
        """About how many bytes a message with all of it has."""
        return sum(map(size_of, (held.jobs for held in self.holders.values())))

    def apply(self, change: Change) -> None:
        """Apply one change. Repeating the changes of the last holders changes nothing."""
        held = self.holders.pop(change.holder, None) or Held(change.ends_at, {})
        held.ends_at = change.ends_at
        for job in change.ended:
            held.jobs.pop(job, None)
        held.jobs.update(change.jobs)
        if held.jobs:
            self.holders[change.given_as or change.holder] = held

    def overdue(self, now: float) -> list[str]:
        """Return the holders whose deadline is over, the oldest first."""
        over = ((held.ends_at, name) for name, held in self.holders.items() if held.ends_at <= now)
        return [name for _, name in sorted(over)]

    def copy(self) -> HeldJobs:
        """Return a copy that may be changed."""
        copied = HeldJobs()
        copied.holders = {
            name: Held(held.ends_at, dict(held.jobs)) for name, held in self.holders.items()
        }
        return copied

    def all_changes(self, max_bytes: int) -> list[Change]:
        """Return changes of about ``max_bytes`` at most that amount to this fold."""
        return [
            change
            for name, held in self.holders.items()
            for change in split_change(name, held.ends_at, held.jobs, [], max_bytes)
        ]


def fold(messages: Iterable[bytes]) -> HeldJobs:
    """Return the fold of messages as they are stored, the oldest first."""
    held = HeldJobs()
    for data in messages:
        for change in Message.decode(data).changes:
            held.apply(change)
    return held


def split_change(
    holder: str, ends_at: float, jobs: Mapping[str, bytes], ended: Sequence[str], max_bytes: int
) -> Iterator[Change]:
    """Yield a change in parts of about ``max_bytes`` at most; at least one part."""
    change = Change(holder, ends_at, {}, [])
    room = max_bytes
    for job, record in (*((job, None) for job in ended), *jobs.items()):
        cost = _JOB_BYTES + 4 * len(job) + len(record or b"")
        if cost > room and (change.jobs or change.ended):
            yield change
            change, room = Change(holder, ends_at, {}, []), max_bytes
        room -= cost
        if record is None:
            change.ended.append(job)
        else:
            change.jobs[job] = record
    yield change


def size_of(jobs: Mapping[str, bytes]) -> int:
    """Return about how many bytes jobs have in a message."""
    return sum(_JOB_BYTES + 4 * len(job) + len(record) for job, record in jobs.items())
