"""Start what is mirrored of a task beside its life."""

from __future__ import annotations

from typing import Any

from semantik_realtime.worker.job import Job
from semantik_realtime.worker.mirrors import Mirrors
from semantik_realtime.worker.task_logs import capture_logs
from semantik_realtime.worker.tqdm_bars import capture_tqdm
from semantik_realtime.worker.updates import mirror_updates


def start_mirrors(job: Job, task: Any, mirrors: Mirrors) -> None:
    """Report what ``mirrors`` names of ``task``, which runs as ``job`` from now on."""
    job.mirrors = mirrors
    mirror_updates(task)
    if mirrors.log_level is not None:
        capture_logs()
    if mirrors.tqdm:
        capture_tqdm()
