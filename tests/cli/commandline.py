"""Runs the commands as on a command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def obey_signals() -> None:
    """Undo what a shell does to a command in the background, where SIGINT or SIGHUP is ignored.

    For ``preexec_fn``: a child inherits from the tests that a signal is ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


COMMAND = [sys.executable, "-c", "from semantik_realtime.cli import main; main()"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**kept, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
