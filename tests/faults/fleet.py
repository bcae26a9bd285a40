"""Workers of Celery that a test kills and starts again, and what it has killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

STOP_SECONDS = 20.0


class Kill(NamedTuple):
    """What was killed and when, on the monotonic clock."""

    kind: str
    at: float
    pids: frozenset[int]
    """Processes that run tasks; none for the backend."""
    returned_at: float
    """When the backend answered again; else the same as ``at``."""


class Fleet:
    """The workers.

    Args:
        count: how many run at a time.
        environment: of their processes; ``PYTHONPATH`` finds the application.
        directory: gets their logs.
    """

    def __init__(self, count: int, environment: dict[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory
        self._started = 0
        self.killed: set[int] = set()
        """Processes that are gone without having ended by themselves."""
        # The children of each main process, as they were seen last.
        self._children: dict[int, list[int]] = {}
        # The main processes that were killed, or have ended by themselves.
        self._ended: set[int] = set()
        self.workers = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        with (self._directory / f"worker-{self._started}.log").open("wb") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "killed_app", "worker"),
                    *("--concurrency", "2", "--loglevel", "warning"),
                    *("-n", f"w{self._started}@here"),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        """Return True if each worker has a pool."""
        return all(self._look(worker.pid) for worker in self.workers)

    def children(self) -> set[int]:
        """Return the processes of the pools."""
        return {pid for worker in self.workers for pid in self._look(worker.pid)}

    def _look(self, main: int) -> list[int]:
        found = children_of(main)
        if found:
            self._children[main] = found
        return found

    def kill_process(self, rng: random.Random, among: Collection[int] | None = None) -> Kill | None:
        """Kill a process of a pool: any, or one of ``among``. None: there is none now."""
        pids = [pid for worker in self.workers for pid in self._look(worker.pid)]
        pids = [pid for pid in pids if among is None or pid in among]
        if not pids:
            return None
        pid = rng.choice(pids)
        at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.killed.add(pid)
        return Kill("process" if among is None else "task", at, frozenset({pid}), at)

    def kill_worker(
        self, rng: random.Random, *, with_pool: bool, among: Collection[int] = ()
    ) -> Kill:
        """Kill the main process of a worker, with its pool or alone, and start another worker.

        Any worker, or if there is one, one of those with a process in ``among``.

        Of releases of Celery that ask the kernel for it, the processes of the pool die with the
        main process.
        """
        numbers = range(len(self.workers))
        busy = [one for one in numbers if set(self._look(self.workers[one].pid)) & set(among)]
        number = rng.choice(busy or numbers)
        worker = self.workers[number]
        pids = frozenset(self._look(worker.pid))
        at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            if with_pool:
                os.killpg(worker.pid, signal.SIGKILL)
            else:
                os.kill(worker.pid, signal.SIGKILL)
        self._ended.add(worker.pid)
        worker.wait()
        self.killed |= pids
        self.workers[number] = self._start()
        return Kill("worker" if with_pool else "main", at, pids, at)

    def revive(self) -> None:
        """Start another worker for each that has ended by itself, as a supervisor does.

        Celery's main process gives up if its pool is killed while it starts.
        """
        for number, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.killed.update(self._children.get(worker.pid, ()))
                self._ended.add(worker.pid)
                self.workers[number] = self._start()
            else:
                self._look(worker.pid)

    def killed_with(self, parents: Mapping[int, int]) -> set[int]:
        """Return the processes that are gone without having ended by themselves.

        ``parents`` has the main process of each that has run a task: one that was just being made
        when its main process was killed is not in ``killed``, but dies with it.
        """
        return self.killed | {pid for pid, main in parents.items() if main in self._ended}

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        # A process that was just being made does not die with its main process.
        for group in self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    @property
    def output(self) -> str:
        paths = sorted(self._directory.glob("worker-*.log"))
        return "".join(f"{path.name}\n{path.read_text(errors='replace')}" for path in paths)


def children_of(pid: int) -> list[int]:
    """Return the child processes of ``pid``."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
