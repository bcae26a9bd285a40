"""Start the programs of an example together, and end them by their process ids."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DEADLINE_SECONDS = 60
PROCESS_SECONDS = 15


@contextmanager
def running_programs(
    folder: Path, *programs: tuple[Mapping[str, str], Sequence[str]]
) -> Iterator[None]:
    """Run Python modules, each with its environment and arguments, while the block runs.

    A failing test shows the end of their output.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("wb") as log:
        try:
            for environment, command in programs:
                process = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    cwd=folder,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                processes.append(process)
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(PROCESS_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            sys.stdout.write((folder / "log").read_text(errors="replace")[-10_000:])


def wait_for(what: Callable[[], Any]) -> Any:
    """Return the first true result of ``what``. A server that does not answer counts as false."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            if answer := what():
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"not true within {DEADLINE_SECONDS} s"
        time.sleep(0.05)


def wait_until_healthy(address: str) -> None:
    """Return when the health route of ``address`` answers 200."""
    wait_for(lambda: httpx.get(f"http://{address}/realtime/health").status_code == 200)
