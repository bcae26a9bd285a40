"""A worker process: jobs that report their progress, attempt after attempt, until SIGTERM.

Four jobs run at a time. The worker writes an end to the record before it emits
it. After SIGTERM it flushes, and prints a line of JSON with what it has emitted:
for each job and attempt the number of its ``step`` events.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from record import CLOCK, OWNER, Record

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.topic import job_topic
from semantik_realtime.errors import BackendError
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta

AT_ONCE = 4
CLOCK_SECONDS = 0.025
FLUSH_SECONDS = 30.0
ENDS = ("job_completed", "job_completed", "job_failed", "job_cancelled")


class Worker:
    def __init__(self, record: Record, rng: random.Random) -> None:
        self.runtime = Runtime()
        self.record = record
        self.rng = rng
        self.steps: dict[str, Counter[int]] = {}
        self.attempts: Counter[str] = Counter()
        self.running: list[Job] = []

    def begin(self, id: str) -> None:
        """Start the next attempt of a job, as a task does."""
        self.attempts[id] += 1
        attempt = self.attempts[id]
        if not self.runtime.backend.fails_writes:
            with contextlib.suppress(BackendError):
                token = secrets.token_hex(8)
                attempt = self.runtime.backend.claim(job_topic(id), id, token, OWNER)
        job = Job(self.runtime, JobMeta(id, owner=OWNER), attempt)
        self.record.write(id, {"status": "running", "attempt": attempt})
        job.begin()
        self.steps.setdefault(id, Counter())[self.attempts[id]] = 0
        self.running.append(job)

    def advance(self, job: Job) -> None:
        """Let a job report progress, emit steps, retry or end, at random."""
        chance = self.rng.random()
        run = self.attempts[job.id]
        if chance < 0.02:
            self.end(job, self.rng.choice(ENDS))
        elif chance < 0.03:
            self.end_attempt(job, "job_retrying")
            self.begin(job.id)
        elif chance < 0.3:
            job.progress(self.steps[job.id][run], 100)
        else:
            for _ in range(self.rng.choice((1, 1, 1, 2, 8))):
                job.emit("step", run=run, i=self.steps[job.id][run])
                self.steps[job.id][run] += 1

    def end(self, job: Job, type: str) -> None:
        status = type.removeprefix("job_")
        self.record.write(job.id, {"status": status, "attempt": job.attempt})
        self.end_attempt(job, type)

    def end_attempt(self, job: Job, type: str) -> None:
        """Emit the end of an attempt, and flush unless writes are known to fail."""
        job.end(type)
        self.running.remove(job)
        if not self.runtime.backend.fails_writes:
            self.runtime.emitter.flush(self.runtime.settings.flush_seconds)

    def emit_time(self) -> None:
        [draft] = make_drafts(
            {CLOCK: OWNER}, "tick", now_text(), "0", data={"at": time.monotonic()}
        )
        self.runtime.emitter.emit(draft)


def main(folder: str, seed: str) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    record = Record(Path(folder))
    worker = Worker(record, random.Random(int(seed)))
    waiting = [id for id, (state, _) in record.rows().items() if state["status"] == "queued"]
    next_tick = 0.0
    while not stopping:
        while waiting and len(worker.running) < AT_ONCE:
            worker.begin(waiting.pop(0))
        if worker.running:
            worker.advance(worker.rng.choice(worker.running))
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + CLOCK_SECONDS
            worker.emit_time()
        time.sleep(worker.rng.uniform(0, 0.01))
    for job in list(worker.running):
        worker.end(job, "job_completed")
    flushed = worker.runtime.emitter.flush(FLUSH_SECONDS)
    stats = worker.runtime.emitter.stats
    report = {
        "flushed": flushed,
        "steps": {job_topic(id): list(runs.values()) for id, runs in worker.steps.items()},
        "appended": stats.appended,
        "dropped": stats.dropped,
        "refused": stats.stale + stats.closed + stats.foreign_owner + stats.rejected,
        "failures": stats.failures,
    }
    print(json.dumps(report), flush=True)
    worker.runtime.close()
    record.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
