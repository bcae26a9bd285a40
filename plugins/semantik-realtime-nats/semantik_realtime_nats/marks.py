"""The mark of a migration, in the configuration of the stream. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from semantik_realtime.core.copying import Mark, Role
from semantik_realtime.errors import BackendRefused

MARK = "semantik_realtime_migration"
"""The member of the stream's metadata that has the mark."""
MAX_BYTES = "semantik_realtime_max_bytes"
"""That which has the stream's own ``max_bytes`` while it is closed."""
CLOSED_BYTES = 1
"""``max_bytes`` of a stream that is closed: with ``discard: new`` no message is small enough."""


def read_mark(config: Mapping[str, Any]) -> Mark | None:
    """Return the mark in a stream's configuration.

    Raises:
        BackendRefused: it is none.
    """
    text = (config.get("metadata") or {}).get(MARK)
    try:
        return msgspec.json.decode(text, type=Mark) if text else None
    except msgspec.MsgspecError as error:
        raise BackendRefused(f"the stream's metadata {MARK} is no mark of a migration") from error


def with_mark(config: Mapping[str, Any], mark: Mark | None) -> dict[str, Any]:
    """Return the configuration with another mark.

    The server refuses every message for a source. A target gets those of the migration, so
    processes find its mark when they connect.

    >>> config = {"max_bytes": 500, "metadata": {"team": "a"}}
    >>> closed = with_mark(config, Mark(Role.SOURCE, "m", "redis://other", ""))
    >>> closed["max_bytes"], read_mark(closed).migration
    (1, 'm')
    >>> with_mark(closed, None) == config
    True
    """
    metadata = dict(config.get("metadata") or {})
    own = int(metadata.pop(MAX_BYTES, config.get("max_bytes", -1)))
    metadata.pop(MARK, None)
    changed = {**config, "max_bytes": own, "metadata": metadata}
    if mark is not None:
        metadata[MARK] = msgspec.json.encode(mark).decode()
        if mark.role is Role.SOURCE:
            metadata[MAX_BYTES] = str(own)
            changed["max_bytes"] = CLOSED_BYTES
    return changed
