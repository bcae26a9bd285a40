"""What waits in a process, on disk too, so that its death does not take it along.

Each process writes a file of its own, only while its backend fails: a line
that says the version, then a draft a line, as JSON. The lock on the file
(flock) tells whether its owner lives; the system gives it up with the
process, however that ends. Whoever then gets the lock sends the drafts under
the producer and numbers they have, and removes the file. What is sent twice
the fence refuses, so nothing here need be exact: a line that is torn is left
out, and a file may hold more than what still waits.

It outlives the process, not the machine: nothing is forced to the medium.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from semantik_realtime.core.event import Draft, Event
from semantik_realtime.core.topic import check_topic

logger = logging.getLogger(__name__)

SUFFIX = ".drafts"
HEADER = b'{"semantik_realtime_drafts":1}'
"""The first line of a file, with the version of all that follows."""
RETRY_SECONDS = 5.0
"""After a fault of the disk."""
DIRECTORY_SPOOLS = 16
"""How many full spools the files of all processes may take."""
SPARE_BYTES = 2**20
MAX_LINE_BYTES = 2**24
CHUNK_BYTES = 2**18
CHUNK_DRAFTS = 500

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Draft).decode


class SpoolFile:
    """The file of this process. No method raises for a fault of the disk: it is logged once.

    Used by one thread. The directory is made if it is missing; it and the file
    are for their owner alone. A file that has become twice as big as it began
    is written anew, and none is begun while those of all processes take
    `DIRECTORY_SPOOLS` times ``spool_bytes``, the bound of one spool.
    """

    def __init__(self, directory: Path, spool_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = DIRECTORY_SPOOLS * spool_bytes
        self._path: Path | None = None
        self._descriptor = -1
        self._bytes = 0
        self._enough_bytes = 0
        self._is_complete = False
        self._retry_at = 0.0
        self._is_reported = False

    @property
    def is_there(self) -> bool:
        """Whether something is stored."""
        return self._path is not None

    def keep(self, fresh: Sequence[Draft], waiting: Callable[[], Sequence[Draft]]) -> None:
        """Store ``fresh``, the newest of what waits; ``waiting`` gives all of it."""
        if not fresh and self._is_complete:
            return
        if not self._is_complete and time.monotonic() < self._retry_at:
            return
        try:
            lines = b"".join(map(_line, fresh))
            if self._is_complete and self._bytes + len(lines) <= self._enough_bytes:
                self._append(lines)
            else:
                self._write_anew(waiting())
        except OSError as error:
            # The file has what it had, perhaps with a torn end: it is not appended to again.
            self._is_complete = False
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._is_reported:
                self._is_reported = True
                logger.error(
                    "spool file: what waits is in memory only directory=%s error=%s (logged once)",
                    self._directory,
                    error,
                )

    def remove(self) -> None:
        """Nothing waits any more."""
        if self._path is not None:
            _unlink(self._path)
        self.leave()
        self._is_reported = False

    def leave(self) -> None:
        """Leave the file as it is to whoever looks next. Also after a fork: it is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        self._path, self._is_complete = None, False
        self._retry_at = 0.0
        # Not unlocked: that would unlock it for the parent too.
        if descriptor >= 0:
            os.close(descriptor)

    def _write_anew(self, drafts: Sequence[Draft]) -> None:
        path, descriptor = self._create()
        self._descriptor, older_descriptor = descriptor, self._descriptor
        self._path, older = path, self._path
        try:
            self._bytes = 0
            self._append(HEADER + b"\n")
            for start in range(0, len(drafts), CHUNK_DRAFTS):
                self._append(b"".join(map(_line, drafts[start : start + CHUNK_DRAFTS])))
        except OSError:
            self._descriptor, self._path = older_descriptor, older
            _unlink(path)
            os.close(descriptor)
            raise
        if older is not None:
            _unlink(older)
            os.close(older_descriptor)
        self._is_complete = True
        self._enough_bytes = 2 * self._bytes + SPARE_BYTES

    def _create(self) -> tuple[Path, int]:
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self._directory) as entries:
            taken = sum(_size(entry) for entry in entries)
        if taken > self._max_bytes:
            raise OSError(errno.EDQUOT, f"{taken} bytes are there, the limit is {self._max_bytes}")
        while True:
            path = self._directory / (secrets.token_hex(8) + SUFFIX)
            descriptor = os.open(
                path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                # Someone may look at the file before it is locked, and remove it: it is empty.
                if _lock(descriptor):
                    return path, descriptor
            except OSError:
                _unlink(path)
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            self._bytes += written
            rest = rest[written:]


class Orphan:
    """The file of a process that has ended; nobody else's as long as it is open here."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.drafts = 0
        """Read so far."""
        self.unreadable = 0
        """Lines left out so far."""
        self._descriptor = descriptor
        self._lines = _lines(descriptor)
        self.header = next(self._lines, b"")

    def take(self, max_drafts: int, max_bytes: int = 2**20) -> list[Draft]:
        """The next drafts, at least one; none at the end.

        Raises:
            OSError: the file cannot be read.
        """
        batch: list[Draft] = []
        size = 0
        for line in self._lines:
            try:
                batch.append(_read(line))
            except (msgspec.MsgspecError, ValueError):
                self.unreadable += 1
                continue
            size += len(line)
            if len(batch) >= max_drafts or size >= max_bytes:
                break
        self.drafts += len(batch)
        return batch

    def remove(self) -> None:
        """All of it has been sent.

        Raises:
            OSError: it is still there, and still ours.
        """
        self.path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Leave it to whoever looks next. Also after a fork."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def adopt(directory: Path, passed_over: set[str]) -> Orphan | None:
    """The oldest file in ``directory`` whose owner is gone; None: there is none.

    What is not of the version that is known here is left alone and logged; its
    name is added to ``passed_over``, the names that are not looked at.
    """
    try:
        with os.scandir(directory) as entries:
            names = sorted(
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if entry.name.endswith(SUFFIX) and entry.name not in passed_over
            )
    except OSError:
        # Not made yet, or gone between two looks.
        return None
    for _, name in names:
        orphan = _open(directory / name)
        if orphan is None:
            continue
        if orphan.header == HEADER:
            return orphan
        logger.error("spool file: left alone, not of this version path=%s", orphan.path)
        passed_over.add(name)
        orphan.leave()
    return None


def _open(path: Path) -> Orphan | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if is_ours and _lock(descriptor):
            if os.fstat(descriptor).st_size:
                return Orphan(path, descriptor)
            # Its owner died before it wrote anything.
            _unlink(path)
    except OSError:
        pass
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Whether the lock on a file is ours now, and the file still there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def _lines(descriptor: int) -> Iterator[bytes]:
    """The lines of a file, the last perhaps torn. One that is too long comes in pieces."""
    place, rest = 0, b""
    # Not a file object: after a fork both processes would move the same place.
    while chunk := os.pread(descriptor, CHUNK_BYTES, place):
        place += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def _line(draft: Draft) -> bytes:
    return _encode(draft) + b"\n"


def _read(line: bytes) -> Draft:
    draft = _decode(line)
    check_topic(draft.topic)
    # What a log could not take must not come again and again.
    Event(0, 0, draft.body).head()
    if not draft.producer or draft.number < 1:
        raise ValueError("the draft has no number")
    return draft


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # Sent again by whoever finds it: harmless, and noticed.
        logger.warning("spool file: not removed path=%s error=%s", path, error)
