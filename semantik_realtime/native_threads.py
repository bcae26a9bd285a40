"""Threads of the operating system, and what they share with the rest of the process.

gevent and eventlet replace `threading`, `time` and `socket`: a thread becomes a
greenlet, and all greenlets stop while one of them computes. The threads of this
module go on. In a process that is not patched everything here is what
`threading` has. Whether it is patched is looked up when an object is made: it
may happen after this module was imported.

In a patched process

- a lock of `make_lock` or `make_rlock` is held for a few microseconds, and never while a greenlet
  could switch to another one;
- a greenlet that waits for an `Event` or a `Thread` lets the other greenlets run;
- the log records of a `Thread` are written by a greenlet, because a handler's lock is one for
  greenlets: with eventlet a thread that waits for it, or the greenlet that does, waits for ever;
- a socket belongs to the thread that opened it (`socket_owner`, `at_thread_end`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from _thread import RLock
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

GREENLET_PAUSE_SECONDS = 0.005
"""How often a greenlet looks whether what it waits for has happened."""
LOG_PAUSE_SECONDS = 0.2
"""How often the log records of threads are written."""
PACKAGE = __name__.partition(".")[0]
LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)

logger = logging.getLogger(__name__)

make_rlock = RLock
"""Make a reentrant lock. The greenlets of a thread are one owner: they never wait for each other.
Neither gevent nor eventlet replaces this class of `_thread`."""

_MAX_RECORDS = 1000
# Log records of native threads, until a greenlet writes them; the oldest are dropped.
_records: deque[logging.LogRecord] = deque(maxlen=_MAX_RECORDS)


class Event(Protocol):
    """What of `threading.Event` is used here."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Thread(Protocol):
    """What of `threading.Thread` is used here."""

    @property
    def ident(self) -> int | None: ...
    def start(self) -> None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


def is_patched() -> bool:
    """Return True if gevent or eventlet has replaced the threads of this process."""
    return _originals() is not None


def make_thread(target: Callable[[], object], name: str) -> Thread:
    """Make a daemon thread; `start` raises RuntimeError if there can be no more threads."""
    originals = _originals()
    if originals is None:
        return threading.Thread(target=target, name=name, daemon=True)
    return _NativeThread(target, name, originals)


def make_event() -> Event:
    """Make an event that threads and greenlets may set and wait for."""
    originals = _originals()
    return threading.Event() if originals is None else _NativeEvent(originals)


def make_lock() -> AbstractContextManager[Any]:
    """Make a lock that threads and greenlets may take; see the module for how long."""
    originals = _originals()
    lock: AbstractContextManager[Any] = (
        threading.Lock() if originals is None else originals.allocate_lock()
    )
    return lock


def get_ident() -> int:
    """Return the identifier of this thread, the same in all of its greenlets. See `Thread.ident`"""
    originals = _originals()
    return threading.get_ident() if originals is None else originals.get_ident()


def socket_owner() -> int:
    """Return a number that is the same wherever a socket that is opened here may be used: 0 in a
    process that is not patched, where that is everywhere.
    """
    originals = _originals()
    return 0 if originals is None else originals.get_ident()


def at_thread_end(call: Callable[[], object]) -> None:
    """Call ``call`` when this thread ends, once, if it is a `Thread` of a patched process."""
    originals = _originals()
    ends = None if originals is None else getattr(originals.local, "ends", None)
    if ends is not None and call not in ends:
        ends.append(call)


class _Originals:
    """What of `_thread` and `time` the patches have replaced."""

    def __init__(self, find: Callable[[str, str], Any]) -> None:
        self.allocate_lock: Callable[[], Any] = find("_thread", "allocate_lock")
        self.start_new_thread: Callable[..., int] = find("_thread", "start_new_thread")
        self.get_ident: Callable[[], int] = find("_thread", "get_ident")
        # Has ``ends`` in a `_NativeThread`: what to call at its end. It has nothing elsewhere, also
        # after a fork.
        self.local: Any = find("_thread", "_local")()

    @property
    def in_native_thread(self) -> bool:
        return hasattr(self.local, "ends")


# Made when a patch is seen first; a patch stays.
_found: _Originals | None = None


def _originals() -> _Originals | None:
    global _found
    if _found is None:
        find = _find_gevent() or _find_eventlet()
        if find is not None:
            _found = _Originals(find)
    return _found


def _find_gevent() -> Callable[[str, str], Any] | None:
    gevent = sys.modules.get("gevent.monkey")
    if gevent is None or not gevent.is_module_patched("threading"):
        return None
    find: Callable[[str, str], Any] = gevent.get_original
    return find


def _find_eventlet() -> Callable[[str, str], Any] | None:
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is None or not eventlet.is_monkey_patched("thread"):
        return None
    original = eventlet.original
    return lambda module, name: getattr(original(module), name)


class _NativeEvent:
    """An event between threads of the operating system and greenlets."""

    def __init__(self, originals: _Originals) -> None:
        self._originals = originals
        self._is_set = False
        # Guards `_waiting`.
        self._lock = originals.allocate_lock()
        # A taken lock for each thread that waits, released by `set`.
        self._waiting: list[Any] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            waiting, self._waiting = self._waiting, []
        for lock in waiting:
            lock.release()

    def clear(self) -> None:
        with self._lock:
            self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._originals.in_native_thread:
            return self._wait_in_greenlet(timeout)
        lock = self._originals.allocate_lock()
        lock.acquire()
        with self._lock:
            if self._is_set:
                return True
            self._waiting.append(lock)
        lock.acquire(True, -1 if timeout is None else max(0.0, timeout))
        with self._lock:
            if lock in self._waiting:
                self._waiting.remove(lock)
        return self._is_set

    def _wait_in_greenlet(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_set and (deadline is None or time.monotonic() < deadline):
            # Replaced by the patch: other greenlets run meanwhile.
            time.sleep(GREENLET_PAUSE_SECONDS)
        return self._is_set


class _NativeThread:
    """A daemon thread of the operating system in a patched process."""

    def __init__(self, target: Callable[[], object], name: str, originals: _Originals) -> None:
        self.ident: int | None = None
        self._target = target
        self._name = name
        self._originals = originals
        self._ended = _NativeEvent(originals)
        self._is_started = False

    def start(self) -> None:
        _write_records_of_threads()
        self._originals.start_new_thread(self._run, ())
        self._is_started = True

    def is_alive(self) -> bool:
        return self._is_started and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def _run(self) -> None:
        self.ident = self._originals.get_ident()
        ends: list[Callable[[], object]] = []
        self._originals.local.ends = ends
        try:
            self._target()
        except Exception:
            logger.exception("thread: failed name=%s", self._name)
        finally:
            for end in [*ends, _destroy_hub]:
                with suppress(Exception):
                    end()
            self._ended.set()


def _destroy_hub() -> None:
    """Close what gevent or eventlet has opened for the sockets of this thread."""
    gevent = sys.modules.get("gevent._hub_local")
    hub = None if gevent is None else gevent.get_hub_if_exists()
    if hub is not None:
        hub.destroy(destroy_loop=True)
    eventlet = sys.modules.get("eventlet.hubs")
    hub = None if eventlet is None else getattr(eventlet._threadlocal, "hub", None)
    if hub is not None:
        hub.abort(wait=True)
        # Its greenlet may outlive the thread, and with it the file descriptor.
        if hasattr(hub, "poll"):
            hub.poll.close()


class _FromThreads(logging.Filter):
    """Keeps the records of native threads back, for a greenlet to write."""

    def filter(self, record: logging.LogRecord) -> bool:
        originals = _originals()
        if originals is None or not originals.in_native_thread:
            return True
        _records.append(record)
        return False


_from_threads = _FromThreads()
# The greenlet that writes the records; None before the first thread, and in a process not patched.
_writing: threading.Thread | None = None


def _write_records_of_threads() -> None:
    """Let a greenlet write what native threads log. Idempotent."""
    global _writing
    originals = _originals()
    if originals is None or originals.in_native_thread:
        return
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == PACKAGE:
            package_logger = logging.getLogger(name)
            package_logger.addFilter(_from_threads)
            for level in LEVELS:
                # Remembered from here on: it takes a lock for greenlets.
                package_logger.isEnabledFor(level)
    if _writing is None or not _writing.is_alive():
        _writing = threading.Thread(target=_write_records, daemon=True)
        _writing.start()


def _write_records() -> None:
    while True:
        time.sleep(LOG_PAUSE_SECONDS)
        write_records()


def write_records() -> None:
    """Write what native threads have logged so far. Called in a greenlet."""
    while _records:
        record = _records.popleft()
        logging.getLogger(record.name).handle(record)
