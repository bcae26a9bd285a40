"""Every job ends right, whatever is killed while it runs: its process, its worker, the backend.

By default a few processes of the pool are killed. By hand more, and workers and the backend
too, with a report of the counts::

    KILLS=200 SEED=7 pytest tests/faults/test_worker_kills.py -s -k valkey

A job that is still open then may be Celery's own loss: over Redis a message is gone if its worker
is killed between taking it and noting it. The report says where to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from configuration import environment, make_settings
from web_servers import server_processes

from semantik_realtime.config import Settings
from semantik_realtime.core.lifecycle import END_STATUSES, END_TYPES
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import ROWS, RedisServer, Server, running, valkey_program

FOLDER = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", "5"))
SEED = int(os.environ.get("SEED", "7"))
JOBS_A_KILL = 6
WORKERS = 2
LEASE_SECONDS = 4.0
TASKS = {"early": 4, "late": 4, "failing": 1, "retrying": 1, "suicidal": 1}
"""How often each is submitted, relatively."""
PLACES = {"process": 10, "worker": 6, "backend": 3} if "KILLS" in os.environ else {"process": 1}
"""How often each is killed, relatively: a process of the pool, a whole worker, the backend."""
ENDS_SECONDS = 60.0
"""After the last kill: the broker delivers again after 8 s and looks every 10 s, the lease and its
look, and the work that is left."""
STATUSES = {
    "early": {"completed", "failed", "lost"},
    "late": {"completed"},
    "failing": {"failed", "lost"},
    "retrying": {"completed", "failed", "lost"},
    "suicidal": {"failed", "lost"},
}
"""How each task may end. That of the first and the fourth is compared with the record too."""


class Fleet:
    """The workers, and the processes that were killed."""

    def __init__(self, settings: Settings, variables: dict[str, str], directory: Path) -> None:
        self._environment = {**os.environ, **environment(settings), **variables}
        self._directory = directory
        self._started = 0
        self.killed: set[int] = set()
        self.workers = [self._start() for _ in range(WORKERS)]

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

    def kill_process(self, rng: random.Random) -> bool:
        """Kill a process of a pool. Return False if there is none now."""
        children = [child for worker in self.workers for child in children_of(worker.pid)]
        if not children:
            return False
        self._kill(rng.choice(children))
        return True

    def kill_worker(self, rng: random.Random) -> None:
        """Kill the main process of a worker, and start another worker.

        The kernel kills the processes of its pool with it, as Celery has asked for.
        """
        number = rng.randrange(WORKERS)
        worker = self.workers[number]
        self.killed.update(children_of(worker.pid))
        self._kill(worker.pid)
        worker.wait()
        self.workers[number] = self._start()

    def revive(self) -> None:
        """Start another worker for each that has ended by itself, as a supervisor does.

        Celery's main process gives up if its pool is killed while it starts.
        """
        for number, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[number] = self._start()

    def _kill(self, pid: int) -> None:
        self.killed.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()

    @property
    def output(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self._directory.glob("*.log"))


def children_of(pid: int) -> list[int]:
    """Return the child processes of ``pid``."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.mark.every_backend(shares_storage=True)
@pytest.mark.timeout(120 + 6 * KILLS)
async def test_every_job_ends_right_whatever_is_killed(
    server: Server, row: str, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    record = tmp_path / "record"
    record.touch()
    settings = make_settings(
        server.url,
        backend=ROWS[row].backend,
        lease_seconds=LEASE_SECONDS,
        timeout_seconds=2.0,
        spool_directory=str(tmp_path / "spool"),
    )
    jobs: dict[str, str] = {}
    began = time.monotonic()
    with running(RedisServer(valkey_program())) as broker:
        variables = {
            "TEST_BROKER": broker.url,
            "TEST_RECORD": str(record),
            "TEST_QUEUE": settings.prefix,
            "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
        }
        async with server_processes(2, settings):
            fleet = Fleet(settings, variables, tmp_path)
            try:
                with submitting(settings, variables) as submitter:
                    kills = await _kill(server, fleet, rng, submitter, jobs)
                    assert submitter.stdin is not None
                    submitter.stdin.close()
                    await asyncio.to_thread(submitter.wait, 60)
                last_kill = time.monotonic()
                runtime = Runtime(settings)
                await runtime.backend.open()
                try:
                    open_jobs = dict(jobs)

                    async def all_ended() -> bool:
                        for job in list(open_jobs):
                            states = (await runtime.backend.snapshot(f"job:{job}", None, 0)).states
                            state = json.loads(states[job])["state"] if job in states else {}
                            if state.get("status") in END_STATUSES:
                                del open_jobs[job]
                        return not open_jobs

                    while not await all_ended():
                        if time.monotonic() - last_kill > ENDS_SECONDS:
                            for job in open_jobs:
                                print(job, await _events(runtime, job), fleet.killed)
                            print(record.read_text(), fleet.output[-3000:])
                            raise AssertionError(f"still open: {list(open_jobs)}")
                        fleet.revive()
                        await asyncio.sleep(0.2)
                    right_seconds = time.monotonic() - last_kill
                    # What could still be said twice would be said by now.
                    await asyncio.sleep(2 * LEASE_SECONDS)
                    logs = {job: await _events(runtime, job) for job in jobs}
                finally:
                    await runtime.backend.close()
                    runtime.close()
            finally:
                await asyncio.to_thread(fleet.stop)
    runs: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for line in record.read_text().splitlines():
        what, job, pid = line.split()
        runs[job].append((what, int(pid)))
    endings = Counter[str]()
    faults = []
    for job, task in jobs.items():
        endings[f"{task} {logs[job][-1]['state']['status']}"] += 1
        faults += [
            (job, task, fault, logs[job], runs[job])
            for fault in _faults(task, logs[job], runs[job], fleet.killed)
        ]
    report = {
        "row": row,
        "seed": SEED,
        "kills": dict(kills),
        "jobs": len(jobs),
        "endings": dict(sorted(endings.items())),
        "attempts": sum(what == "begin" for one in runs.values() for what, _ in one),
        "seconds": round(time.monotonic() - began, 1),
        "seconds from the last kill until all had ended": round(right_seconds, 1),
        "faults": len(faults),
    }
    print(json.dumps(report, indent=1))
    assert not faults, faults[:3]
    assert "receiver failed" not in fleet.output
    assert "step failed" not in fleet.output


def _faults(
    task: str, events: Sequence[dict[str, Any]], runs: Sequence[tuple[str, int]], killed: set[int]
) -> Iterator[str]:
    """Yield what is wrong with the log of a job."""
    ended: set[int] = set()
    attempts = [event["state"]["attempt"] for event in events if "state" in event]
    if attempts != sorted(attempts):
        yield "an older attempt after a newer one"
    for event in events:
        attempt = event["state"]["attempt"]
        if attempt in ended:
            yield f"{event['type']} after the end of attempt {attempt}"
        if event["type"] in END_TYPES:
            ended.add(attempt)
    status = events[-1]["state"]["status"]
    if status not in STATUSES[task]:
        yield f"{task} is {status}"
    was_killed = task == "suicidal" or any(pid in killed for _, pid in runs)
    has_finished = any(what == "end" for what, _ in runs)
    if status == "completed" and not has_finished:
        yield "completed without its work"
    if status in ("lost", "failed") and task in ("early", "retrying") and not was_killed:
        # A worker that was killed may not yet have begun it.
        if runs:
            yield f"{status} although nothing of it was killed"
    if status == "lost" and runs and not was_killed:
        yield "lost although its process lived"


async def _kill(
    server: Server,
    fleet: Fleet,
    rng: random.Random,
    submitter: subprocess.Popen[str],
    jobs: dict[str, str],
) -> Counter[str]:
    """Submit jobs and kill something, again and again; return what was killed how often."""
    kills = Counter[str]()
    assert submitter.stdin is not None
    while kills.total() < KILLS:
        for _ in range(rng.randrange(2 * JOBS_A_KILL)):
            [task] = rng.choices(list(TASKS), TASKS.values())
            id = f"{task}-{len(jobs)}"
            jobs[id] = task
            submitter.stdin.write(f"{task} {id} {rng.randrange(40)}\n")
            submitter.stdin.flush()
            await asyncio.sleep(rng.uniform(0, 0.1))
        await asyncio.sleep(rng.uniform(0, 1.0))
        fleet.revive()
        [place] = rng.choices(list(PLACES), PLACES.values())
        if place == "backend":
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(rng.choice((0.0, 0.5, 2.0)))
            await asyncio.to_thread(server.start)
        elif place == "process":
            if not fleet.kill_process(rng):
                continue
        else:
            await asyncio.to_thread(fleet.kill_worker, rng)
        kills[place] += 1
    return kills


@contextlib.contextmanager
def submitting(settings: Settings, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    submitter = subprocess.Popen(
        [sys.executable, FOLDER / "submitter.py"],
        env={**os.environ, **environment(settings), **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with submitter:
        try:
            yield submitter
        finally:
            if submitter.poll() is None:
                submitter.kill()


async def _events(runtime: Runtime, job: str) -> list[dict[str, Any]]:
    snapshot = await runtime.backend.snapshot(f"job:{job}", None, 1000)
    return [json.loads(event.json) for event in snapshot.events]
