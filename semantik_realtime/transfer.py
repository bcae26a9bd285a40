"""What an engine offers so that topics can be moved from it, and to it. Optional for a backend.

A backend whose topics can be moved has an entry point of the group
`TRANSFERS`, with the backend's name: a callable that takes `Settings` and
returns a `Transfer`. Only ``semantik-realtime migrate`` uses it, so the hooks
of `semantik_realtime.hookspecs.Backend` know nothing of it, but for one rule:
while a server has a `Mark` that closes it, every hook that writes raises
``BackendUnavailable``, and nothing is written (docs/adr/0044).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from semantik_realtime.core.copying import Mark, TopicCopy

TRANSFERS = "semantik_realtime.transfers"
"""The entry-point group; the names are those of backends."""


class TopicHead(msgspec.Struct, frozen=True, gc=False):
    """What is cheap to find out about a topic."""

    version: str
    """Differs after every append."""
    place: str
    """See `TopicCopy.place`."""


class CopiedHolder(msgspec.Struct, frozen=True):
    """The jobs that a worker process holds (`semantik_realtime.hookspecs.Backend.hold`)."""

    holder: str
    seconds: float
    """Until its deadline; negative after it."""
    jobs: Mapping[str, bytes]


class Transfer(Protocol):
    """Reads and stores whole topics. For one loop. Each call may be repeated.

    Every method but `close` raises ``BackendError`` if the server does not
    answer or refuses. The caller sets deadlines, and a cancelled call leaves
    the object usable.
    """

    schemes: Sequence[str]
    """Of the URLs that lead to such an engine."""

    @property
    def address(self) -> str:
        """Where the server is, without passwords."""

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Close the connections."""

    def topics(self) -> AsyncIterator[Sequence[str]]:
        """Yield the names of all topics in parts of at most a few hundred, deleted ones too.

        A topic that is there all the time comes at least once. What is no name of a topic, because
        another program has written it, is left out.
        """

    async def heads(self, topics: Sequence[str]) -> Mapping[str, TopicHead]:
        """Return the heads of topics; an unknown one is absent."""

    async def read(self, topic: str, after: int) -> TopicCopy | None:
        """Read a topic as of one moment, with its events after the offset ``after``.

        None: it is unknown, or another program has written what cannot be read as a topic.
        """

    async def put(
        self, copy: TopicCopy, place: str, *, whole: bool, run: str | None = None
    ) -> bool:
        """Store a copy, if the topic is at ``place``; return False if it is not, and store nothing.

        With ``run``, it also returns False unless the server's mark is a target's, of that run:
        checked in the step that stores, or just before it where the engine has no such step.

        With ``whole`` it replaces what is there, else its events follow it. Subscribers are not
        called: nobody has subscribed yet. If the call fails, the topic may be stored in part; then
        it is put again as a whole.
        """

    def holders(self) -> AsyncIterator[CopiedHolder]:
        """Yield what worker processes hold."""

    async def put_holder(self, holder: CopiedHolder) -> None:
        """Store it."""

    async def read_mark(self) -> Mark | None:
        """Return the mark of the server."""

    async def set_mark(
        self,
        mark: Mark | None,
        *,
        is_closing_needed: bool = True,
        instead_of: Mark | UnsetType | None = UNSET,
    ) -> bool:
        """Set or remove the mark. Afterwards nothing is written that began before.

        With ``instead_of``, return False and change nothing if the server has another mark than
        that: checked in the step that sets it, or just before it where there is no such step.

        Raises:
            BackendRefused: the mark closes the server, which cannot be done in one atomic step;
                without ``is_closing_needed`` it is set all the same.
        """
