"""Child processes that are stopped together with everything that they start."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
from pathlib import Path

STOP_SECONDS = 5.0
LOG_TAIL_CHARACTERS = 2000


class DemoFailed(Exception):
    """The demo cannot start or cannot go on; the message is for the terminal."""


class Program:
    """A child process in a session of its own, so that Ctrl-C does not reach it directly."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        log: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        """For messages."""
        self._log = log
        self._stop_signal = stop_signal
        private = functools.partial(os.open, mode=0o600)
        with open(log, "ab", opener=private) as output:
            self._process = subprocess.Popen(  # noqa: S603 - commands of this module's callers
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )

    def check(self) -> None:
        """Raise DemoFailed if the process has ended."""
        if self._process.poll() is not None:
            raise DemoFailed(
                f"{self.name} ended with code {self._process.returncode}\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self._log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]

    def stop(self) -> None:
        """Send the stop signal; after STOP_SECONDS kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self._stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children; does nothing if they have ended."""
        # The process leads its process group, so the rest of the group is its children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
