"""A lock on an open file, which the system releases when the process ends, however it ends.

Libraries for this (portalocker, filelock) choose between the same two calls;
what they add, waiting and a second file, is not needed here.
"""

from __future__ import annotations

import os
from typing import Any

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:
    fcntl = None
    # Windows.
    import msvcrt

REMOVES_OPEN_FILES = fcntl is not None
"""Whether a file can be removed while it is open. Windows refuses that."""
LOCKED_BYTE = 2**31 - 2
"""Windows locks a part of a file, and then no other process can read that part: so a byte beyond
the data, the last one that its call can lock."""


def try_lock(descriptor: int) -> bool:
    """Lock a file until it is closed. Return False if another process has the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True
