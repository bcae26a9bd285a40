"""Submits jobs: reads lines of task, job id and number of steps, and echoes each."""

from __future__ import annotations

import sys

import killed_app

from semantik_realtime.worker.submit import submit

for line in sys.stdin:
    name, id, steps = line.split()
    submit(getattr(killed_app, name), int(steps), owner="7", job_id=id)
    print(id, flush=True)
