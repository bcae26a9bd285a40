"""Child processes that are stopped together with everything that they start."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STOP_SECONDS = 5.0
"""For a program that is stopped while the others go on."""
LOOK_SECONDS = 0.02
"""How often `stop_all` looks whether its programs have ended."""
LOG_TAIL_CHARACTERS = 2000
MAX_STARTS = 3
START_WINDOW_SECONDS = 10.0
"""A program that is started MAX_STARTS times in this time and has ended again is not restarted."""


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
        inherits: Sequence[int] = (),
    ) -> None:
        self.name = name
        """For messages."""
        self._command = command
        self._environment = environment
        self._log = log
        self._stop_signal = stop_signal
        self._inherits = inherits
        """The file descriptors that the process gets, beside the standard ones."""
        self._away_until = 0.0
        """It is not started again before this, monotonic seconds. Set by `interrupt`."""
        self._started_at: list[float] = []
        """When the last MAX_STARTS processes were started, monotonic seconds."""
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._started_at = [*self._started_at[1 - MAX_STARTS :], time.monotonic()]
        private = functools.partial(os.open, mode=0o600)
        with open(self._log, "ab", opener=private) as output:
            return subprocess.Popen(  # noqa: S603 - commands of this module's callers
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                pass_fds=self._inherits,
            )

    @property
    def pid(self) -> int:
        """The id of the process, and of its group with its children."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def restart_if_ended(self) -> str | None:
        """Start the process again if it has ended; return a sentence about it, else None.

        Children that it has left are killed first.

        Raises:
            DemoFailed: It has ended MAX_STARTS times within START_WINDOW_SECONDS.
        """
        code = self._process.poll()
        if code is None or time.monotonic() < self._away_until:
            return None
        recent = len(self._started_at) == MAX_STARTS
        if recent and time.monotonic() - self._started_at[0] < START_WINDOW_SECONDS:
            self.check()
        ended = self.pid
        self.kill()
        self._process = self._start()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"{self.name} (process {ended}) {how}; started again as process {self.pid}"

    def interrupt(self, seconds: float, *, kill: bool = False) -> None:
        """Stop or kill it on purpose; `restart_if_ended` starts it again after ``seconds``."""
        self._away_until = time.monotonic() + seconds
        # This end is no failure.
        self._started_at.clear()
        if kill:
            self.kill()
        else:
            self.stop()

    def check(self) -> None:
        """Raise DemoFailed if the process has ended."""
        if self._process.poll() is not None:
            raise DemoFailed(
                f"{self.name} ended with code {self._process.returncode}\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self._log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]

    def ask_to_stop(self) -> None:
        """Send the stop signal; return at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self._stop_signal)

    def stop(self) -> None:
        """Send the stop signal; after STOP_SECONDS kill the process and its children."""
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children; does nothing if they have ended."""
        # The process leads its process group, so the rest of the group is its children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def stop_all(
    programs: Sequence[Program], seconds: float, is_hurried: Callable[[], bool] = lambda: False
) -> None:
    """Send the stop signal to all; after ``seconds``, or if hurried, kill what still runs."""
    deadline = time.monotonic() + seconds
    for program in programs:
        program.ask_to_stop()
    while any(program.is_running for program in programs):
        if is_hurried() or time.monotonic() >= deadline:
            break
        time.sleep(LOOK_SECONDS)
    for program in programs:
        program.kill()
