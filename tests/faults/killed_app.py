"""A Celery application whose tasks write down what really happened to them.

Broker and record come from the environment. A line of the record is ``begin`` or
``end``, the job, the process, its parent, and the time on the monotonic clock.
"""

from __future__ import annotations

import os
import signal
import time

from celery import Celery, Task

from semantik_realtime import job, track

BROKER = os.environ["TEST_BROKER"]
RECORD = os.environ["TEST_RECORD"]
VISIBLE_SECONDS = int(os.environ.get("TEST_VISIBLE_SECONDS", "8"))

app = Celery("killed_app", broker=BROKER, backend=os.environ.get("TEST_RESULTS", BROKER))
app.conf.update(
    task_default_queue=os.environ["TEST_QUEUE"],
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    result_expires=600,
)
if BROKER.startswith("redis"):
    app.conf.broker_transport_options = {
        "visibility_timeout": VISIBLE_SECONDS,
        # Otherwise Celery looks every 100 s for messages to deliver again, and not for five minutes
        # after a worker was killed that looked.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    }


def note(what: str, id: str) -> None:
    """Append one line, which survives a kill of this process."""
    line = f"{what} {id} {os.getpid()} {os.getppid()} {time.monotonic()}\n".encode()
    descriptor = os.open(RECORD, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.close(descriptor)


def work(id: str, steps: int) -> None:
    note("begin", id)
    for step in track(range(steps), "Working"):
        job.emit("step", i=step)
        time.sleep(0.02)
    note("end", id)


@app.task(bind=True)
def early(self: Task, steps: int) -> None:
    """Is acknowledged before it runs: a kill ends it."""
    work(self.request.id, steps)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def late(self: Task, steps: int) -> None:
    """Is delivered again after a kill."""
    work(self.request.id, steps)


@app.task(bind=True)
def failing(self: Task, steps: int) -> None:
    work(self.request.id, steps)
    raise ValueError("on purpose")


@app.task(bind=True, max_retries=2)
def retrying(self: Task, steps: int) -> None:
    work(self.request.id, steps)
    if self.request.retries < 2:
        raise self.retry(countdown=0.1, exc=ValueError("not yet"))


@app.task(bind=True)
def suicidal(self: Task, steps: int) -> None:
    work(self.request.id, steps)
    os.kill(os.getpid(), signal.SIGKILL)
