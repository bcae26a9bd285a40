"""Every job ends right, whatever is killed while it runs: its process, its worker, the backend.

By default one of each kind is killed. By hand more, at random, with a table at the end::

    KILLS=200 SEED=7 pytest tests/faults/test_worker_kills.py -s -k valkey

With ``BROKER=rabbitmq`` Celery's broker is one that loses no message with its worker, so that a
task which is acknowledged late must complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from configuration import environment, make_settings
from end_watcher import EndWatcher
from fleet import Fleet, Kill
from job_oracle import (
    BEGUN_UNSEEN,
    NEVER_BEGUN,
    NOT_BEGUN_AGAIN,
    Story,
    faults_of,
    left_by_broker,
    read_record,
    surplus_runs,
)
from kill_report import table
from waiting import until
from web_servers import server_processes

from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import ROWS, RedisServer, Server, running, valkey_program

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "worker"))

from rabbitmq import RabbitServer  # noqa: E402

IS_LONG = "KILLS" in os.environ
KILLS = int(os.environ.get("KILLS", "5"))
SEED = int(os.environ.get("SEED", "7"))
BROKER = os.environ.get("BROKER", "valkey")
JOBS_A_KILL = 6
MAX_OPEN = 30
"""No more jobs are submitted while so many have not ended."""
WORKERS = 2
OWNER = "7"
TASKS = {"early": 4, "late": 4, "failing": 1, "retrying": 1, "suicidal": 1}
"""How often each is submitted, relatively."""
KINDS = {"task": 6, "process": 4, "main": 3, "worker": 4, "backend": 3}
"""How often each is killed, relatively: a process of a pool while it runs a task, any process of
one, a worker's main process, that and its pool, the backend."""
WORK_SECONDS = 60.0
"""How long at most a kill waits until some tasks have begun."""
TASK_SECONDS = 5.0
"""How long a kill waits for a task that runs."""
LEASE_SECONDS = 10.0 if IS_LONG else 5.0
VISIBLE_SECONDS = 8 if IS_LONG else 5
QUEUED_SECONDS = 90.0 if IS_LONG else 15.0
"""Longer than a message waits for a worker, or to be delivered again."""
ENDS_SECONDS = 90.0 + 2 * QUEUED_SECONDS
"""After the last kill: what waits runs, is delivered again, or is called lost."""


@(pytest.mark.every_row if IS_LONG else pytest.mark.every_backend)(shares_storage=True)
@pytest.mark.timeout(240 + 8 * KILLS)
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
        queued_seconds=QUEUED_SECONDS,
        timeout_seconds=2.0,
        spool_directory=str(tmp_path / "spool"),
    )
    jobs: dict[str, str] = {}
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(running(RedisServer(valkey_program()))).url
        broker = stack.enter_context(running(RabbitServer())).url if BROKER != "valkey" else results
        variables = {
            "TEST_BROKER": broker,
            "TEST_RESULTS": results,
            "TEST_RECORD": str(record),
            "TEST_QUEUE": settings.prefix,
            "TEST_VISIBLE_SECONDS": str(VISIBLE_SECONDS),
            "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
        }
        async with server_processes(2, settings) as web_servers, contextlib.AsyncExitStack() as all:
            # A server looks for jobs that wait for too long where a page shows them.
            watchers = [
                await all.enter_async_context(EndWatcher(each, f"user:{OWNER}"))
                for each in web_servers
            ]
            fleet = Fleet(WORKERS, {**os.environ, **environment(settings), **variables}, tmp_path)
            try:
                await until(fleet.is_ready, 60, lambda: fleet.output)
                with submitting(settings, variables) as submitter:
                    kills = await _kill(server, fleet, rng, submitter, jobs, record, watchers)
                    assert submitter.stdin is not None
                    submitter.stdin.close()
                    await asyncio.to_thread(submitter.wait, 60)
                last_kill = time.monotonic()

                def open_jobs() -> list[str]:
                    fleet.revive()
                    return _open(jobs, watchers)

                try:
                    await until_slowly(open_jobs, ENDS_SECONDS)
                    right_seconds = time.monotonic() - last_kill
                    # What could still be said twice would be said by now.
                    await asyncio.sleep(LEASE_SECONDS / (1 if IS_LONG else 2))
                    await until_slowly(open_jobs, ENDS_SECONDS)
                finally:
                    logs = await _read_logs(settings, jobs)
                waiting = _waiting_in_broker(broker, settings.prefix)
            finally:
                await asyncio.to_thread(fleet.stop)
    notes = read_record(record)
    parents = {
        one.pid: one.parent for each in notes.values() for one in each if one.what == "begin"
    }
    killed = fleet.killed_with(parents)
    stories = {
        job: Story(task, logs[job], notes[job], any(f'"id": "{job}"' in one for one in waiting))
        for job, task in jobs.items()
    }
    loses_messages = BROKER == "valkey"
    faults = [
        (job, fault, story.notes, logs[job])
        for job, story in stories.items()
        for fault in faults_of(story, killed, loses_messages=loses_messages)
    ]
    faults += [
        (job, "a page shows another end", story.notes, logs[job], each.last(job))
        for job, story in stories.items()
        for each in watchers
        if (shown := each.last(job)) is None or shown.status != story.events[-1]["state"]["status"]
    ]
    left = [left_by_broker(one, killed, loses_messages=True) for one in stories.values()]
    print()
    print(
        f"row {row}, broker {BROKER}, seed {SEED}: {len(kills)} kills, {len(jobs)} jobs, "
        f"{sum(len(one.begins) for one in stories.values())} attempts, "
        f"{time.monotonic() - began:.0f} s"
    )
    print(table(kills, stories, watchers, killed))
    surplus = sum(surplus_runs(one, killed) for one in stories.values())
    print(f"{surplus:6}  ran again although they had completed: Celery delivered them twice")
    gone = sum(one in (NEVER_BEGUN, NOT_BEGUN_AGAIN) for one in left)
    print(f"{gone:6}  whose message Celery lost")
    print(f"{left.count(BEGUN_UNSEEN):6}  whose process was killed before it could say anything")
    closings = sum((watcher.closings for watcher in watchers), Counter[int | None]())
    print(f"{closings.total():6}  connections of pages ended: {dict(closings)}")
    print(f"{right_seconds:6.1f}  seconds from the last kill until all had ended")
    print(f"{len(faults):6}  faults")
    for fault in faults[:20]:
        print(fault)
    assert not faults, faults[:3]
    for watcher in watchers:
        assert not watcher.faults
        assert not watcher.bad_batches
    assert "receiver failed" not in fleet.output
    assert "step failed" not in fleet.output


def _open(jobs: Iterable[str], watchers: Sequence[EndWatcher]) -> list[str]:
    """Return the jobs whose end is not shown by all watchers."""
    return [
        job
        for job in jobs
        if not all((last := each.last(job)) is not None and last.is_end for each in watchers)
    ]


async def until_slowly(open_jobs: Any, seconds: float) -> None:
    """Wait until no job is open, for at most ``seconds``; look twice a second."""
    deadline = time.monotonic() + seconds
    while found := open_jobs():
        if time.monotonic() > deadline:
            print(f"still open: {found}")
            return
        await asyncio.sleep(0.5)


async def _kill(
    server: Server,
    fleet: Fleet,
    rng: random.Random,
    submitter: subprocess.Popen[str],
    jobs: dict[str, str],
    record: Path,
    watchers: Sequence[EndWatcher],
) -> list[Kill]:
    """Submit jobs and kill something, again and again; return what was killed.

    Few jobs wait at a time, and after a kill some are begun before the next: on a slow machine the
    workers would otherwise never get to them.
    """
    begins = 0
    kills: list[Kill] = []
    kinds = rng.sample(list(KINDS), len(KINDS)) if not IS_LONG else []
    assert submitter.stdin is not None
    while len(kills) < KILLS:
        for _ in range(rng.randrange(0 if IS_LONG else 4, 2 * JOBS_A_KILL)):
            if len(_open(jobs, watchers)) >= MAX_OPEN:
                break
            [task] = rng.choices(list(TASKS), TASKS.values())
            id = f"{task}-{len(jobs)}"
            jobs[id] = task
            submitter.stdin.write(f"{task} {id} {rng.randrange(40)}\n")
            submitter.stdin.flush()
            await asyncio.sleep(rng.uniform(0, 0.1))
        await _work(fleet, record, begins + rng.randrange(JOBS_A_KILL), jobs, watchers)
        await asyncio.sleep(rng.uniform(0, 0.5))
        begins = _begins(record)
        [kind] = kinds[-1:] or rng.choices(list(KINDS), KINDS.values())
        kill: Kill | None
        if kind == "backend":
            at = time.monotonic()
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(rng.choice((0.0, 0.5, 2.0)))
            await asyncio.to_thread(server.start)
            kill = Kill("backend", at, frozenset(), time.monotonic())
        elif kind == "process":
            kill = fleet.kill_process(rng)
        else:
            # Of few kills, each hits a task.
            busy = await _busy(fleet, record) if kind == "task" or not IS_LONG else set()
            if kind == "task":
                kill = fleet.kill_process(rng, busy)
            else:
                kill = await asyncio.to_thread(
                    fleet.kill_worker, rng, with_pool=kind == "worker", among=busy
                )
        if kill is not None:
            kills.append(kill)
            del kinds[-1:]
    return kills


async def _work(
    fleet: Fleet, record: Path, begins: int, jobs: Iterable[str], watchers: Sequence[EndWatcher]
) -> None:
    """Wait until so many tasks have begun, or nothing is left to do."""

    def is_done() -> bool:
        fleet.revive()
        return _begins(record) >= begins or not _open(jobs, watchers)

    deadline = time.monotonic() + WORK_SECONDS
    while not is_done() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


async def _busy(fleet: Fleet, record: Path) -> set[int]:
    """Return the processes that run a task, as soon as there is one; none if it takes long."""
    deadline = time.monotonic() + TASK_SECONDS
    while not (busy := fleet.children() & _running(record)):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.02)
    return busy


def _begins(record: Path) -> int:
    return record.read_text().count("begin ")


def _running(record: Path) -> set[int]:
    """Return the processes that run a task now, by the record."""
    notes = [note for notes in read_record(record).values() for note in notes]
    last = {note.pid: note.what for note in sorted(notes, key=lambda note: note.at)}
    return {pid for pid, what in last.items() if what == "begin"}


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


async def _read_logs(settings: Settings, jobs: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    runtime = Runtime(settings)
    await runtime.backend.open()
    try:
        snapshots = {job: await runtime.backend.snapshot(f"job:{job}", None, 1000) for job in jobs}
    finally:
        await runtime.backend.close()
        runtime.close()
    return {job: [json.loads(e.json) for e in found.events] for job, found in snapshots.items()}


def _waiting_in_broker(broker: str, queue: str) -> list[str]:
    """Return the messages that Redis has as a broker; of another one, nothing is known."""
    if not broker.startswith("redis"):
        return []
    client = redis.Redis.from_url(broker)
    try:
        waiting = [*client.lrange(queue, 0, -1), *client.hvals("unacked")]
    finally:
        client.close()
    return [one.decode(errors="replace") for one in waiting]
