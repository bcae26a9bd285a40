"""Where forked processes leave the drafts that they could not send before they ended."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from semantik_realtime.core.event import Draft
from semantik_realtime.emitter.spool_file import SUFFIX, SpoolFile

NOTICE_SECONDS = 0.02
"""How often `Handover.collect` looks."""
WAIT_SECONDS = 0.2
"""How long a process that ends waits for the backend before it leaves its drafts here."""


class Handover:
    """A directory that a process makes for its children, readable by their user only.

    A child that ends stores its drafts in a file; the parent finds the file as
    it finds those of ended processes (`SpoolRecovery`). So a child need not
    wait for a backend that does not answer.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def make(cls) -> Handover:
        """Make a directory among the temporary ones; `remove` removes it.

        Raises:
            OSError: it cannot be made.
        """
        return cls(Path(tempfile.mkdtemp(prefix="semantik-realtime-")))

    def is_empty(self) -> bool:
        """Return True if nothing waits here that the parent could not send yet."""
        try:
            return not any(path.suffix == SUFFIX for path in self.directory.iterdir())
        except OSError:
            return True

    @property
    def wait_seconds(self) -> float:
        """How long a child should wait for the backend: not at all if another one did in vain."""
        return WAIT_SECONDS if self.is_empty() else 0.0

    def leave(self, drafts: Sequence[Draft], max_bytes: int) -> None:
        """Store ``drafts`` for the parent. A fault of the disk is logged, and they are lost."""
        file = SpoolFile(self.directory, max_bytes)
        file.store([], lambda: drafts)
        file.release()

    def collect(self, retry_now: Callable[[], object], timeout_seconds: float) -> bool:
        """Wait until all is sent that children have left. Return False if it is not in time."""
        deadline = time.monotonic() + timeout_seconds
        while not self.is_empty() and time.monotonic() < deadline:
            retry_now()
            time.sleep(NOTICE_SECONDS)
        return self.is_empty()

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)
