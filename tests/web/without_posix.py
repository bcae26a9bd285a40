"""Runs a module in a process that lacks what Windows lacks, as far as Linux can show that.

``python without_posix.py MODULE ARGUMENTS…`` is ``python -m MODULE ARGUMENTS…``.
"""

from __future__ import annotations

import asyncio

# They choose the system's calls when they are imported, by the name of the system.
import concurrent.futures.process
import errno
import fcntl
import functools
import multiprocessing.util
import os
import pathlib
import runpy
import signal
import socket
import sys
import tempfile
import threading
import types
from typing import Any

import billiard.compat
import billiard.pool
import celery.platforms

MODULES = (
    *("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "crypt", "readline"),
    "uvloop",
)
FUNCTIONS = (
    *("fork", "forkpty", "register_at_fork", "killpg", "getpgid", "getpgrp", "setpgid", "setsid"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid", "getpriority"),
    *("pread", "pwrite", "preadv", "pwritev", "chown", "fchown", "lchown", "fchmod", "mkfifo"),
    *("uname", "nice", "statvfs", "fstatvfs", "getloadavg", "sync", "sendfile", "posix_spawn"),
    *("sched_getaffinity", "pipe2", "posix_fadvise", "posix_fallocate", "ttyname", "waitid"),
    *("O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_SYNC", "O_DSYNC", "O_NOCTTY"),
)
SIGNALS = (
    *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT", "SIGQUIT", "SIGCHLD"),
    *("SIGPIPE", "SIGALRM", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGXCPU"),
    *("alarm", "setitimer", "getitimer", "pause", "sigwait", "pthread_sigmask", "pthread_kill"),
    *("siginterrupt", "sigtimedwait"),
)
SOCKETS = ("AF_UNIX", "SO_REUSEPORT", "MSG_DONTWAIT", "sendmsg_afalg", "send_fds", "recv_fds")
KNOWN = (
    billiard.compat,
    concurrent.futures.process,
    multiprocessing.util,
    pathlib,
    tempfile,
    threading,
)


def remove() -> None:
    """Remove it all, for this process."""
    lock, pair = fcntl.flock, functools.partial(socket.socketpair, socket.AF_UNIX)
    # It goes by the name of the system too.
    celery.platforms.os = types.SimpleNamespace(**vars(os))
    for name in MODULES:
        # The next import raises ModuleNotFoundError.
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, FUNCTIONS), (signal, SIGNALS), (socket, SOCKETS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    _refuse_to_remove_open_files()
    sys.modules["msvcrt"] = _msvcrt(lock)
    socket.socketpair = pair  # type: ignore[assignment]
    asyncio.set_event_loop_policy(_Policy())
    asyncio.SelectorEventLoop = _Loop  # type: ignore[misc]


def _msvcrt(lock: Any) -> types.ModuleType:
    module: Any = types.ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (module.LK_NBLCK, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 2**30, "the data would be locked"
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module.locking = locking
    return module


def _refuse_to_remove_open_files() -> None:
    unlink, kill = os.unlink, os.kill

    def refusing(path: Any, *, dir_fd: int | None = None) -> None:
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                is_open = os.readlink(f"/proc/self/fd/{descriptor}") == os.path.realpath(path)
            except OSError:
                continue
            if is_open:
                raise PermissionError(errno.EACCES, "it is open", path)
        unlink(path, dir_fd=dir_fd)

    def ending(pid: int, number: int) -> None:
        assert number != 0, "on Windows this ends the process"
        kill(pid, number)

    os.unlink = os.remove = refusing  # type: ignore[assignment]
    os.kill = ending


class _Loop(asyncio.SelectorEventLoop):
    """Without what Windows' own loop lacks."""

    def add_signal_handler(self, *_: Any) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, *_: Any) -> bool:
        raise NotImplementedError

    def add_reader(self, *_: Any) -> None:
        raise NotImplementedError

    def add_writer(self, *_: Any) -> None:
        raise NotImplementedError


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _Loop


if __name__ == "__main__":
    remove()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
