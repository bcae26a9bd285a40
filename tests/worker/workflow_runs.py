"""Workflows of real workers: sent from this process, and read when they have ended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from celery_workers import Worker
from topic_log import Log, wait_until

import semantik_realtime.worker.tracker as tracker_module
from semantik_realtime.config import Settings
from semantik_realtime.core.lifecycle import is_finished
from semantik_realtime.core.summary import Summary, summarize
from semantik_realtime.core.topic import job_topic
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.submit import Submitted, submit
from semantik_realtime.worker.tracker import TaskTracker

Task = Callable[..., Any]


class Ended(NamedTuple):
    """A workflow whose topic is finished."""

    id: str
    states: dict[str, Any]
    summary: Summary
    log: Log

    @property
    def state(self) -> Any:
        return self.states[self.id]

    def names(self) -> list[str]:
        """The name and the place of each member that has a key, in the order of their places."""
        members = [state for state in self.states.values() if "member" in state]
        members.sort(key=lambda state: (state["member"].get("of", ""), state["member"]["n"]))
        return [
            " ".join([state["name"].rpartition(".")[2], state["member"].get("at", "")]).strip()
            for state in members
        ]


@contextlib.contextmanager
def submitting(worker: Worker) -> Iterator[Callable[..., Submitted]]:
    """Submit canvases from this process, whose tasks the worker gets."""
    with tracking(worker.settings):
        yield lambda task, *args, **options: submit(task, *args, owner="7", **options)


@contextlib.contextmanager
def tracking(settings: Settings) -> Iterator[Runtime]:
    """Install the tracker in this process, as in one that publishes tasks."""
    runtime = Runtime(settings)
    tracker = tracker_module.install()
    before = tracker._runtime
    tracker.use(runtime)
    tracker.connect()
    try:
        yield runtime
    finally:
        _restore(tracker, before)
        runtime.close()


def _restore(tracker: TaskTracker, before: Runtime | None) -> None:
    if before is None:
        tracker.disconnect()
        tracker_module._tracker = None
    else:
        tracker.use(before)


def finish(worker: Worker, sent: Submitted, seconds: float = 40) -> Ended:
    """Wait until a workflow has ended with all of its members."""
    return finish_job(worker, sent.id, seconds)


def finish_job(worker: Worker, job: str, seconds: float = 40) -> Ended:
    """The same, by the workflow's id."""
    topic = job_topic(job)
    log = worker.log(topic)

    def is_over() -> bool:
        return is_finished(topic, states_of(log))

    try:
        wait_until(is_over, seconds)
    except AssertionError:
        raise AssertionError(f"{states_of(log)}\n{worker.output[-3000:]}") from None
    states = states_of(log)
    return Ended(job, states, summarize(states, job, 0), log)


def states_of(log: Log) -> dict[str, Any]:
    events = {key: json.loads(event) for key, event in log.snapshot().states.items()}
    return {key: event["state"] for key, event in events.items()}


def completed(log: Log) -> int:
    return [state.get("status") for state in states_of(log).values()].count("completed")


def tasks_of(worker: Worker) -> Callable[..., Any]:
    """Return what makes a signature of a task of the worker's application."""
    import mirrored_app

    return lambda name, *args: getattr(mirrored_app, name).s(*args).set(queue=worker.queue)
