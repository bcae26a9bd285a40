"""What a process keeps of the task that runs as a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from semantik_realtime.worker.bars import Bar
from semantik_realtime.worker.mirrors import Mirrors

if TYPE_CHECKING:
    from semantik_realtime.worker.job import Job
    from semantik_realtime.worker.task_logs import JobLog


class TaskContext:
    """The part of `semantik_realtime.worker.job.Job` that its task and the mirrors use."""

    # The values at the beginning are the class's own: most stay, and cost a short task nothing.

    declared_end: tuple[str, dict[str, str] | None] | None = None
    """Type and error of the end that the task announced before it raised ``Ignore``.
    Set by `declare_end`."""
    outer: Job | None = None
    """The job whose task called this one's task in the same context. Set by `nest_in`."""
    replacements = 0
    """How many tasks with the job's own id run inside its task: eager ones that replace it. The
    job ends with the outermost. Changed by the tracker."""
    next_try: Mapping[str, Any] | None = None
    """Data of the ``job_retrying`` that ends the attempt, because the task has published its
    next one. Set by the tracker."""
    bars: list[Bar]
    """The open bars, in the order in which they were opened. Changed by `Bar`."""
    mirrors = Mirrors()
    """What of its task is reported beside its life. Set when the task begins."""
    handled: BaseException | None = None
    """The exception that was being handled when the task was called. Set by the tracker."""
    log: JobLog | None = None
    """Counts and sends its log records. Set by the first one."""

    def declare_end(self, type: str, error: dict[str, str]) -> None:
        """Note the end that the task announces. Nothing is sent before `Job.end`."""
        self.declared_end = type, error

    def actual_end(
        self, type: str, data: Mapping[str, Any] | None
    ) -> tuple[str, Mapping[str, Any] | None]:
        """Return type and data of the event that ends the attempt, instead of those given.

        However a task goes on after it has published its next attempt (``retry(throw=False)``, or
        a ``Retry`` that its own ``except`` swallows), Celery runs that one.
        """
        if self.next_try is not None and type in ("job_completed", "job_failed"):
            return "job_retrying", self.next_try
        return type, data

    def nest_in(self, outer: Job | None) -> None:
        """Note which job was current before this one."""
        self.outer = outer
