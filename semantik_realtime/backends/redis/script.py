"""The Lua scripts, and how long a connection runs them."""

from __future__ import annotations

import hashlib
from importlib.resources import files

CONNECTION_SECONDS = 60.0
"""Age, varied by 15 %, after which a connection is closed instead of used again. The next one
resolves the address of the server again, which may have moved while the old server answers on."""


class Script:
    """A Lua script, of one or more files, and the hash by which a server calls it.

    Args:
        names: of the files.
        keys: how many keys it has, if it writes what a server that is closed refuses. Then the key
            of the mark that closes it (`mark_key`) comes after them, unless it is a cluster.
    """

    def __init__(self, *names: str, keys: int | None = None) -> None:
        source = b"".join((files(__package__) / f"{name}.lua").read_bytes() for name in names)
        if keys is not None:
            check = (files(__package__) / "closed.lua").read_bytes()
            source = b"local mark = KEYS[%d]\n%b%b" % (keys + 1, check, source)
        self.is_refused_when_closed = keys is not None
        self.source = source
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


# Its sixth key is that of the sinks, where there is one.
APPEND = Script("fence", "sink_offer", "append", keys=6)
READ = Script("entries", "read")
PAGE = Script("entries", "page")
TOPS = Script("tops")
CLAIM = Script("fence", "claim", keys=5)
DELETE = Script("delete", keys=5)
LEASE = Script("lease", keys=1)
HOLD = Script("hold", keys=2)
OVERDUE = Script("overdue", keys=1)
GIVE = Script("give", keys=3)
CANARY = Script("canary")
# Not refused when closed: what is in the queues is still handled.
SINKS = Script("sinks")
EXPORT = Script("entries", "export")
IMPORT = Script("import")
SET_MARK = Script("set_mark")
WRITES = (APPEND, CLAIM, DELETE, LEASE, HOLD, OVERDUE, GIVE, CANARY, SINKS)


def mark_key(prefix: str) -> str:
    """Return the key of the mark of a migration. Its field ``closed`` closes the server."""
    return f"{prefix}:migration"


def milliseconds(seconds: float) -> int:
    """Return a duration as the scripts need it: whole, and not 0."""
    return max(1, round(seconds * 1000))
