"""The Lua scripts, and how long a connection runs them."""

from __future__ import annotations

import hashlib
from importlib.resources import files

CONNECTION_SECONDS = 60.0
"""Age, varied by 15 %, after which a connection is closed instead of used again. The next one
resolves the address of the server again, which may have moved while the old server answers on."""


class Script:
    """A Lua script, of one or more files, and the hash by which a server calls it."""

    def __init__(self, *names: str) -> None:
        self.source = b"".join((files(__package__) / f"{name}.lua").read_bytes() for name in names)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


APPEND = Script("fence", "sink_offer", "append")
READ = Script("entries", "read")
PAGE = Script("entries", "page")
TOPS = Script("tops")
CLAIM = Script("fence", "claim")
DELETE = Script("delete")
LEASE = Script("lease")
HOLD = Script("hold")
OVERDUE = Script("overdue")
GIVE = Script("give")
CANARY = Script("canary")
SINKS = Script("sinks")
WRITES = (APPEND, CLAIM, DELETE, LEASE, HOLD, OVERDUE, GIVE, CANARY, SINKS)


def milliseconds(seconds: float) -> int:
    """Return a duration as the scripts need it: whole, and not 0."""
    return max(1, round(seconds * 1000))
