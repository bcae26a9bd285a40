"""Which workflow a received task belongs to, for monitors that listen to Celery's events.

Celery's own events name no workflow. A page that finds tasks by them (``semantik-realtime serve``)
would watch each member under the id of its task, where nothing happens.
"""

from __future__ import annotations

from typing import Any

EVENT = "worker-realtime"
"""The event's type. Of the group of events of workers: Celery's own monitors take an unknown event
of a task for a new state of it."""
TASK, JOB = "realtime_task", "realtime_job"
"""Its fields: the id of the task, and that of the workflow."""


def announce_member(consumer: Any, task_id: str, workflow: str) -> None:
    """Send that a received task is a member of a workflow, if somebody has asked for events.

    Args:
        consumer: of the worker, the sender of Celery's signal.
        task_id: Celery's id of the task.
        workflow: the workflow's id.
    """
    dispatcher = getattr(consumer, "event_dispatcher", None)
    if dispatcher is None or not dispatcher.enabled:
        return
    if dispatcher.groups and "task" not in dispatcher.groups:
        # As for Celery's own events of tasks: the worker was not asked for them.
        return
    dispatcher.send(EVENT, **{TASK: task_id, JOB: workflow})
