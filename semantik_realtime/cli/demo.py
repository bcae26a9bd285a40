"""``semantik-realtime demo``: a whole installation on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec
from rich.console import Console
from rich.text import Text

from semantik_realtime.cli.index_once import index_once
from semantik_realtime.cli.installation import END_SECONDS, USER, Installation, installed
from semantik_realtime.cli.program import DemoFailed
from semantik_realtime.cli.terminal import make_console, plain

CHECK_SECONDS = 0.5


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line; see ``semantik-realtime demo --help``."""

    folder: str
    once: bool
    port: int | None
    workers: int
    pause: float | None
    data: str | None
    backend: str


def run_demo(options: Options) -> int:
    """Run until Ctrl-C, or with ``once`` until the job ends; return the exit code."""
    console = make_console()
    error_console = make_console(stderr=True)
    is_hurried = _interrupt_on_signals()
    try:
        if not hasattr(os, "killpg"):
            raise DemoFailed(
                "it starts and stops groups of processes, which this system lacks: use Linux or "
                "macOS (on Windows, WSL)"
            )
        with _directory(options.data) as directory, contextlib.ExitStack() as stack:
            names = "Valkey, NATS" if options.backend == "nats" else "Valkey"
            with console.status(f"starting {names}, a worker and the web server"):
                installation = stack.enter_context(
                    installed(
                        Path(options.folder),
                        directory,
                        port=options.port,
                        workers=options.workers,
                        pause=0.0 if options.once and options.pause is None else options.pause,
                        backend=options.backend,
                    )
                )
            installation.is_hurried = is_hurried
            stack.callback(
                console.print,
                "stopping: waiting for the web server to close and for the worker to end its "
                f"tasks, at most {END_SECONDS:.1f} s; a second signal kills them",
                style="dim",
                highlight=False,
            )
            if options.backend == "nats":
                console.print(
                    "live updates go through NATS; Celery's broker is Valkey",
                    style="dim",
                    highlight=False,
                )
            if options.once:
                return asyncio.run(index_once(console, error_console, installation, options.folder))
            _print_address(console, installation)
            while True:
                for sentence in installation.watch(CHECK_SECONDS):
                    console.print(plain(sentence))
    except KeyboardInterrupt:
        return 130 if options.once else 0
    except DemoFailed as failure:
        # The tail of a log has the names of files.
        error_console.print(Text("demo:", "red"), plain(failure, keep="\n\t"))
        return 1


@contextlib.contextmanager
def _directory(data: str | None) -> Iterator[Path]:
    """Yield the directory ``data``, or a temporary one that is removed afterwards."""
    if data is None:
        prefix = "semantik-realtime-demo-"
        with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
            yield Path(name)
    else:
        path = Path(data).absolute()
        # With the users' uploads and logs in it; a directory that exists keeps its mode.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield path


def _print_address(console: Console, installation: Installation) -> None:
    console.print()
    console.print(f"  [bold]{installation.address}[/]", highlight=False)
    console.print(
        f"  user [bold]{USER}[/]   password [bold]{installation.password}[/]", highlight=False
    )
    processes = "   ".join(f"{name} {pid}" for name, pid in installation.process_ids.items())
    console.print(plain(f"  processes: {processes}"))
    console.print(
        "  Kill any of them, here or on the page: it is started again.  Ctrl-C stops all.",
        style="dim",
    )
    console.print()


def _interrupt_on_signals() -> Callable[[], bool]:
    """Let SIGTERM and SIGHUP stop the demo like Ctrl-C, and SIGINT too when started with ``&``.

    Return whether a second signal has come. That one raises nothing: an exception in the middle
    of the stop would leave programs that nobody ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: False
    count = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)
    return lambda: count > 1
