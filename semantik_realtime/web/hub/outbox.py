"""The frames that wait for one connection, beside the events of its channels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from semantik_realtime.core.limits import EVICT_ABOVE_BYTES, MAX_POSTED, MAX_POSTED_BYTES

YIELD_FRAMES = 4
"""Frames that are sent before other tasks get a turn, one of which may find the connection lost:
asyncio logs a line for each frame after the fifth that is sent into nothing."""


class Outbox:
    """Frames that wait to be sent, and those that are being sent. For one loop."""

    def __init__(self) -> None:
        # Frames that wait, and how many bytes they have.
        # Lists, of which an empty one has a tenth of the bytes of an empty deque: there are
        # thousands of connections.
        self._frames: list[str] = []
        self._waiting_bytes = 0
        # The frames that are being sent; filled after `collect`, emptied by `sent`.
        self._sending: list[str] = []
        # While more than EVICT_ABOVE_BYTES wait or are being sent: set when it is less.
        self._room: asyncio.Event | None = None

    @property
    def bytes(self) -> int:
        """How many bytes wait or are being sent."""
        return self._waiting_bytes + sum(map(len, self._sending))

    @property
    def frame_bytes(self) -> int:
        """How many bytes the frame has that is being sent; 0 if none is."""
        return len(self._sending[0]) if self._sending else 0

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits."""
        return not self._frames

    @property
    def sending(self) -> list[str]:
        """The frames that are being sent, the present one first."""
        return self._sending

    def add(self, frames: Sequence[str]) -> bool:
        """Add frames. Return False, and add none, if too many wait already."""
        if len(self._frames) >= MAX_POSTED or self._waiting_bytes > MAX_POSTED_BYTES:
            return False
        self._frames.extend(frames)
        self._waiting_bytes += sum(map(len, frames))
        if self._waiting_bytes > EVICT_ABOVE_BYTES and self._room is None:
            self._room = asyncio.Event()
        return True

    def collect(self) -> list[str]:
        """Begin to send all frames that wait; the caller may append to them."""
        self._sending = self._frames
        self._frames = []
        self._waiting_bytes = 0
        return self._sending

    async def sent(self) -> None:
        """The first of the frames that are being sent is sent."""
        del self._sending[0]
        if self._room is not None and self.bytes <= EVICT_ABOVE_BYTES:
            self._room.set()
            self._room = None
        if len(self._sending) % YIELD_FRAMES == YIELD_FRAMES - 1:
            # To send does not yield while the socket's buffer has room.
            await asyncio.sleep(0)

    async def wait_for_room(self) -> None:
        """Wait while answers that a client does not read pile up."""
        if self._room is not None:
            await self._room.wait()
