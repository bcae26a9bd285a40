"""What ended processes left on disk, read to be sent."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from semantik_realtime.core.event import Draft
from semantik_realtime.emitter import spool_file

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks for what ended processes left on disk."""


class SpoolRecovery:
    """Reads what ended processes left in ``directory``, a part at a time.

    Used by one thread, but for `retry_now`. No method raises for a fault of the
    disk: a file that cannot be read is logged and passed over.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._orphan: spool_file.Orphan | None = None
        self._passed_over: set[str] = set()
        self._look_at = 0.0

    def wait_seconds(self) -> float:
        """Until the next `take`."""
        return max(0.0, self._look_at - time.monotonic())

    def retry_now(self) -> None:
        """The next look may be made now."""
        self._look_at = 0.0

    def take(self, max_drafts: int) -> list[Draft]:
        """The next part of a file, perhaps none. It is removed after its last part.

        Whoever takes again says that the part before was sent.
        """
        if self._orphan is None:
            self._orphan = spool_file.adopt(self._directory, self._passed_over)
        orphan = self._orphan
        if orphan is None:
            self.leave()
            return []
        try:
            drafts = orphan.take(max_drafts)
            if not drafts:
                orphan.remove()
                self._orphan = None
                logger.info(
                    "emitter: adopted path=%s drafts=%d unreadable=%d",
                    orphan.path,
                    orphan.drafts,
                    orphan.unreadable,
                )
            return drafts
        except OSError as error:
            logger.error("emitter: file passed over path=%s error=%s", orphan.path, error)
            self._passed_over.add(orphan.path.name)
            self.leave()
            return []

    def leave(self) -> None:
        """Leave what is not sent to whoever looks next, which may be us in `LOOK_SECONDS`.

        Also after a fork.
        """
        if self._orphan is not None:
            self._orphan.leave()
            self._orphan = None
        self._look_at = time.monotonic() + LOOK_SECONDS
