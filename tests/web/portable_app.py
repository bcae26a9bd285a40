"""A Celery application for workers on any system."""

import os
import time

from celery import Celery

from semantik_realtime import job, track

app = Celery("portable_app", broker=os.environ["REDIS_URL"])
app.conf.task_default_queue = os.environ["TEST_QUEUE"]
app.conf.broker_connection_retry_on_startup = True


@app.task
def count(steps: int) -> int:
    for step in track(range(steps), "Counting", unit="steps"):
        time.sleep(0.02)
        job.emit("step", number=step)
    return steps
