"""What a copier knows of topics, and what it has counted."""

from __future__ import annotations

import msgspec


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
