"""The drafts that wait in a process, stored on disk too, so that they outlive the process.

Each process writes a file of its own, only while its backend fails: a line with
the version, then one draft a line, as JSON after its checksum. The lock on the file shows whether
its process lives; the system releases it when the process ends, however it
ends. Another process that gets the lock sends the drafts with the producer
and the numbers they have, and removes the file. The fence drops a draft that is
sent twice, so a line that is torn or damaged is skipped, and a file may hold
drafts that were acknowledged since.

The file outlives the process, not the machine: nothing is synced to the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from zlib import crc32

import msgspec

from semantik_realtime.core.event import Claim, Draft, Event
from semantik_realtime.core.readable import find_body_fault
from semantik_realtime.core.topic import check_topic
from semantik_realtime.emitter.file_lock import REMOVES_OPEN_FILES, try_lock

logger = logging.getLogger(__name__)

SUFFIX = ".drafts"
HEADER = b'{"semantik_realtime_drafts":2}'
"""The first line of a file, with the version of all that follows."""
HEADER_WITHOUT_CHECKSUMS = b'{"semantik_realtime_drafts":1}'
"""That of earlier releases, whose lines are read too."""
RETRY_SECONDS = 5.0
"""Pause after a fault of the disk."""
DIRECTORY_SPOOLS = 16
"""How many full spools the files of all processes may take together."""
SPARE_BYTES = 2**20
MAX_LINE_BYTES = 2**24
CHUNK_BYTES = 2**18
CHUNK_DRAFTS = 500
BINARY = getattr(os, "O_BINARY", 0)
"""Only Windows has this flag, and lacks the next."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)

_ANY_HEADER = re.compile(rb'\{"semantik_realtime_drafts":[0-9]+\}')
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Draft).decode


class SpoolFile:
    """The file of this process. No method raises for a fault of the disk: it is logged once.

    For one thread. The directory is made if it is missing; only their owner may
    read it and the file. A file that has grown to twice its first size is
    rewritten, and none is begun while the files of all processes take
    `DIRECTORY_SPOOLS` times ``spool_bytes``, the bound of one spool.
    """

    def __init__(self, directory: Path, spool_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = DIRECTORY_SPOOLS * spool_bytes
        # The file and its descriptor, which holds the lock; None and -1 while there is none.
        self._path: Path | None = None
        self._descriptor = -1
        self._bytes = 0
        # The file is rewritten when it exceeds this.
        self._rewrite_bytes = 0
        # Whether all drafts that wait are in the file, so that new ones can be appended.
        self._is_complete = False
        # After a fault: when the next write may be tried.
        self._retry_at = 0.0
        # Whether the present fault was logged; cleared when the file is removed.
        self._is_reported = False

    @property
    def exists(self) -> bool:
        """Whether drafts are stored."""
        return self._path is not None

    def store(self, newest: Sequence[Draft], waiting: Callable[[], Sequence[Draft]]) -> None:
        """Store ``newest``, the drafts that came since the last call; ``waiting`` returns all."""
        if not newest and self._is_complete:
            return
        if not self._is_complete and time.monotonic() < self._retry_at:
            return
        try:
            lines = b"".join(map(_line, newest))
            if self._is_complete and self._bytes + len(lines) <= self._rewrite_bytes:
                self._append(lines)
            else:
                self._rewrite(waiting())
        except OSError as error:
            # The file may end in a torn line, so it is not appended to again.
            self._is_complete = False
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._is_reported:
                self._is_reported = True
                logger.error(
                    "spool file: drafts wait in memory only directory=%s error=%s (logged once)",
                    self._directory,
                    error,
                )

    def remove(self) -> None:
        """Remove the file: no draft waits any more."""
        path, descriptor = self._path, self._descriptor
        if path is not None:
            self._descriptor = -1
            _remove(path, descriptor)
        self.release()
        self._is_reported = False

    def release(self) -> None:
        """Unlock the file for other processes. After a fork it stays the parent's, and locked."""
        descriptor, self._descriptor = self._descriptor, -1
        self._path, self._is_complete = None, False
        self._retry_at = 0.0
        # Not unlocked: that would unlock it for the parent too.
        if descriptor >= 0:
            os.close(descriptor)

    def _rewrite(self, drafts: Sequence[Draft]) -> None:
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
            _remove(path, descriptor)
            raise
        if older is not None:
            _remove(older, older_descriptor)
        self._is_complete = True
        self._rewrite_bytes = 2 * self._bytes + SPARE_BYTES

    def _create(self) -> tuple[Path, int]:
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self._directory) as entries:
            taken = sum(_size(entry) for entry in entries)
        if taken > self._max_bytes:
            raise OSError(errno.EDQUOT, f"{taken} bytes are there, the limit is {self._max_bytes}")
        while True:
            path = self._directory / (secrets.token_hex(8) + SUFFIX)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | BINARY
            descriptor = os.open(path, flags, 0o600)
            try:
                # Another process may find the empty file before it is locked, and remove it.
                if _lock(descriptor):
                    return path, descriptor
            except OSError:
                _remove(path, descriptor)
                raise
            os.close(descriptor)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            self._bytes += written
            rest = rest[written:]


class Orphan:
    """The file of a process that has ended, locked by this process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.drafts = 0
        """How many drafts were read so far."""
        self.unreadable = 0
        """How many lines were skipped so far."""
        # The claims of attempts that had no number yet, by token.
        self._claims: dict[str, Claim] = {}
        self._descriptor = descriptor
        self._lines = _lines(descriptor)
        header = next(self._lines, b"")
        self._read = _read_old if header == HEADER_WITHOUT_CHECKSUMS else _read
        self.is_known = header in (HEADER, HEADER_WITHOUT_CHECKSUMS)
        """Whether its lines can be read. A damaged header, which may be two lines, is known by a
        line after it."""
        if not self.is_known and not _ANY_HEADER.fullmatch(header):
            lines = list(islice(self._lines, 2))
            self.is_known = any(map(_is_whole, lines))
            self._lines = chain((header, *lines), self._lines)

    def next_batch(self, max_drafts: int, max_bytes: int = 2**20) -> list[Draft]:
        """Return the next drafts, at least one; an empty list at the end of the file.

        Raises:
            OSError: the file cannot be read.
        """
        batch: list[Draft] = []
        size = 0
        for line in self._lines:
            try:
                draft = self._read(line)
                if draft.claim is not None:
                    draft.claim = self._shared(draft.claim, draft)
                batch.append(draft)
            except (msgspec.MsgspecError, ValueError):
                self.unreadable += 1
                continue
            size += len(line)
            if len(batch) >= max_drafts or size >= max_bytes:
                break
        self.drafts += len(batch)
        return batch

    def _shared(self, claim: Claim, draft: Draft) -> Claim:
        """Return the one claim of an attempt, which its drafts had in their process too.

        Another attempt may have begun since that process ended, and have the expected number.
        Then this one gets the next number, or if it began before the other one, none.
        """
        shared = self._claims.setdefault(claim.token, claim)
        shared.started_at = shared.started_at or Event(0, 0, draft.body).head().time
        return shared

    def remove(self) -> None:
        """Remove the file: all of its drafts were acknowledged.

        Raises:
            OSError: the file still exists.
        """
        if not REMOVES_OPEN_FILES:
            self.release()
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Unlock the file for other processes. Also after a fork."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_orphan(directory: Path, skipped: set[str]) -> Orphan | None:
    """Open and lock the oldest file in ``directory`` whose process has ended, if there is one.

    A file of another version is left as it is and logged, and its name is added
    to ``skipped``, the names that are not opened.
    """
    try:
        with os.scandir(directory) as entries:
            names = sorted(
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if entry.name.endswith(SUFFIX) and entry.name not in skipped
            )
    except OSError:
        # Not made yet, or gone between two looks.
        return None
    for _, name in names:
        orphan = _open(directory / name)
        if orphan is None:
            continue
        if orphan.is_known:
            return orphan
        logger.error("spool file: skipped, it has another version path=%s", orphan.path)
        skipped.add(name)
        orphan.release()
    return None


def _open(path: Path) -> Orphan | None:
    try:
        descriptor = os.open(path, os.O_RDWR | BINARY | NO_FOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        # Where there are no user ids, only the directory's rights keep others out.
        is_ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
        if stat.S_ISREG(found.st_mode) and is_ours and _lock(descriptor):
            if os.fstat(descriptor).st_size:
                return Orphan(path, descriptor)
            # Its process ended before it wrote anything.
            _remove(path, descriptor)
            return None
    except OSError:
        pass
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Lock a file. Return False if another process has the lock, or has removed the file."""
    return try_lock(descriptor) and os.fstat(descriptor).st_nlink > 0


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield the lines of a file, the last one perhaps torn, and one that is too long in parts."""
    place, rest = 0, b""
    while True:
        # The lock has moved the position.
        os.lseek(descriptor, place, os.SEEK_SET)
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            break
        place += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def _line(draft: Draft) -> bytes:
    encoded = _encode(draft)
    return b"%08x %b\n" % (crc32(encoded), encoded)


def _is_whole(line: bytes) -> bool:
    """Return True if a line has its checksum in front of it."""
    return line[:9] == b"%08x " % crc32(line[9:])


def _read(line: bytes) -> Draft:
    """Return the draft of a line.

    Raises:
        MsgspecError, ValueError: it is torn or damaged, or no log could append the draft.
    """
    if not _is_whole(line):
        raise ValueError("the checksum is another one")
    return _check(_decode(line[9:]))


def _read_old(line: bytes) -> Draft:
    """Return the draft of a line without a checksum; the same."""
    draft = _check(_decode(line))
    head = Event(0, 0, draft.body).head()
    found = (head.type, head.key, head.change, head.terminal)
    if found != (draft.type, draft.key, draft.change, draft.terminal):
        raise ValueError("the body is not the draft's")
    return draft


def _check(draft: Draft) -> Draft:
    # Set again for the first draft of an attempt that has no number yet.
    draft.begins = False
    check_topic(draft.topic)
    # What no reader can read must not reach a log.
    if fault := find_body_fault(draft.body):
        raise ValueError(fault)
    if not draft.producer or draft.number < 1:
        raise ValueError("the draft has no number")
    return draft


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path, descriptor: int) -> None:
    """Remove a locked file and close it, in this order where the system can.

    In the other order another process may lock the file in between; it sends
    the drafts again, and removes the file.
    """
    if not REMOVES_OPEN_FILES:
        os.close(descriptor)
    _unlink(path)
    if REMOVES_OPEN_FILES:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # Another process sends the drafts again: the fence drops them.
        logger.warning("spool file: not removed path=%s error=%s", path, error)
