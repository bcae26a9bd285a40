"""The drafts that ended processes left on disk, read to be sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from semantik_realtime.core.event import Draft
from semantik_realtime.core.left_running import LeftRunning
from semantik_realtime.emitter import spool_file
from semantik_realtime.emitter.outcomes import EmitterStats, Outcomes
from semantik_realtime.emitter.sender import Reply
from semantik_realtime.errors import BackendError

logger = logging.getLogger(__name__)

Left = Mapping[str, Mapping[str, bytes]]

LOOK_SECONDS = 5.0
"""Most seconds between two looks for files of ended processes."""


class SpoolRecovery:
    """Reads what ended processes left in ``directory``, a batch at a time.

    It looks every ``look_seconds``, at most `LOOK_SECONDS`: before a server may
    take the jobs of a process for lost that has left their ends here.

    For one thread, except `look_now`. No method raises for a fault of the
    disk: a file that cannot be read is logged and skipped.
    """

    def __init__(
        self,
        directory: Path,
        look_seconds: float = LOOK_SECONDS,
        stats: EmitterStats | None = None,
    ) -> None:
        self._directory = directory
        self._stats = stats or EmitterStats()
        self._look_seconds = min(look_seconds, LOOK_SECONDS)
        # The file being read, locked by this process; None between two files.
        self._orphan: spool_file.Orphan | None = None
        # Names of files that cannot be read, or are of another version.
        self._skipped: set[str] = set()
        # When the next look is due, on the monotonic clock.
        self._look_at = 0.0
        # What the drafts of the present file begin and end.
        self._left = LeftRunning()
        self._warn_of_earlier_versions()

    def _warn_of_earlier_versions(self) -> None:
        """Name files that an earlier version has left, whose directory had the engine's name too.

        They are not taken: the directory may be that of a deployment with such a prefix.
        """
        for engine in ("redis", "nats"):
            before = self._directory.with_name(f"{engine}-{self._directory.name}")
            if any(before.glob(f"*{spool_file.SUFFIX}")):
                logger.warning(
                    "emitter: spool files of an earlier version wait path=%s (if no process uses "
                    "that directory any more, move them to %s)",
                    before,
                    self._directory,
                )

    @property
    def left_running(self) -> Left:
        """The attempts that the file begins and, so far, does not end: by the name of the process
        that ran them, the record of each job. That process has ended, and with it the attempts.
        """
        return self._left.records()

    def wait_seconds(self) -> float:
        """Return the seconds until the next look is due."""
        return max(0.0, self._look_at - time.monotonic())

    def look_now(self) -> None:
        """Make the next look due now. From any thread."""
        self._look_at = 0.0

    def send_batch(
        self, max_drafts: int, call: Callable[[Sequence[Draft], Left], Reply], outcomes: Outcomes
    ) -> None:
        """Send the next batch by ``call`` (`Sender.call`); the file is removed after the last."""
        drafts = self.next_batch(max_drafts)
        if not drafts:
            return
        reply = call(drafts, self.left_running)
        if isinstance(reply, BackendError):
            self.release()
        else:
            outcomes.settle(drafts, reply)

    def next_batch(self, max_drafts: int) -> list[Draft]:
        """Return the next drafts of a file; an empty list if there are none now.

        Calling it again acknowledges the previous batch. A file is removed when
        its last batch was acknowledged.
        """
        if self._orphan is None:
            self._orphan = spool_file.open_orphan(self._directory, self._skipped)
            self._left = LeftRunning()
        orphan = self._orphan
        if orphan is None:
            self.release()
            return []
        try:
            drafts = orphan.next_batch(max_drafts)
            if not drafts:
                orphan.remove()
                self._orphan = None
                self._note_damage(orphan)
                logger.info(
                    "emitter: recovered path=%s drafts=%d unreadable=%d",
                    orphan.path,
                    orphan.drafts,
                    orphan.unreadable,
                )
            self._left.add(drafts)
            return drafts
        except OSError as error:
            logger.error("emitter: spool file skipped path=%s error=%s", orphan.path, error)
            self._skipped.add(orphan.path.name)
            self.release()
            return []

    def _note_damage(self, orphan: spool_file.Orphan) -> None:
        if orphan.unreadable:
            self._stats.unreadable += orphan.unreadable
            logger.warning(
                "emitter: spool file damaged, lines skipped path=%s lines=%d drafts=%d",
                orphan.path,
                orphan.unreadable,
                orphan.drafts,
            )

    def release(self) -> None:
        """Unlock the file, so that any process may send the rest, this one at its next look.

        Also after a fork.
        """
        if self._orphan is not None:
            self._orphan.release()
            self._orphan = None
        self._look_at = time.monotonic() + self._look_seconds
