"""What task authors use: the job that runs here.

::

    from semantik_realtime import job

    job.progress(3, 10)
    job.emit("file_completed", file="report.pdf", chunks=12)
    job.set(failed_files=0)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar

from semantik_realtime.forks import on_fork
from semantik_realtime.worker.bars import Bar
from semantik_realtime.worker.job import Job

P = ParamSpec("P")
R = TypeVar("R")

_current: ContextVar[Job | None] = ContextVar("semantik_realtime_job", default=None)

running_jobs: dict[str, Job] = {}
"""The jobs whose tasks run in this process, by task id: from prerun to postrun."""


class CurrentJob:
    """The job that runs in this context; outside a job every method does nothing.

    A thread that a task starts has a context of its own: give it a function that
    `wrap` has returned, or pass it `current_job`, whose methods are the same.
    """

    __slots__ = ()

    @property
    def id(self) -> str | None:
        """The job's id."""
        running = _current.get()
        return None if running is None else running.id

    @property
    def attempt(self) -> int | None:
        """Which execution of the job this is, from 1."""
        running = _current.get()
        return None if running is None else running.attempt

    @property
    def is_cancelled(self) -> bool:
        """See `Job.is_cancelled`; outside a job False."""
        running = _current.get()
        return running is not None and running.is_cancelled

    def raise_if_cancelled(self) -> None:
        """See `Job.raise_if_cancelled`."""
        running = _current.get()
        if running is not None:
            running.raise_if_cancelled()

    def progress(
        self,
        current: float,
        total: float | None = None,
        message: str | None = None,
        unit: str | None = None,
    ) -> None:
        """See `Job.progress`, whose lines these are: a loop calls it for each step, and a call
        more is a quarter of what it costs.
        """
        running = _current.get()
        if running is not None:
            if message is not None:
                running._message = message
            running._progress = (current, total, unit)
            if not running._is_due:
                running._schedule()

    def bar(self, total: float | None = None, message: str = "", *, unit: str = "") -> Bar:
        """Return a new progress bar of the job, for ``with``; outside a job it only counts."""
        return Bar(_current.get(), total, message, unit)

    def wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return ``function`` for other threads of the task: there the job is this one.

        It runs with all context variables of this moment; what it sets is not
        seen outside. Threads may call it at the same time. Other processes cannot
        have it.
        """
        if _current.get() is None:
            return function
        context = copy_context()

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            # A copy for each call: a context cannot be entered twice at the same time.
            return context.copy().run(function, *args, **kwargs)

        return wrapped

    def message(self, text: str) -> None:
        """See `Job.message`."""
        running = _current.get()
        if running is not None:
            running.message(text)

    def set(self, /, **fields: Any) -> None:
        """See `Job.set`."""
        running = _current.get()
        if running is not None:
            running.set(**fields)

    def emit(self, type: Any, /, **data: Any) -> None:
        """See `Job.emit`."""
        running = _current.get()
        if running is not None:
            running.emit(type, **data)


job = CurrentJob()


def current_job() -> Job | None:
    """Return the job that runs in this context."""
    return _current.get()


def push_job(running: Job) -> None:
    """Make ``running`` the current job of this context, until `pop_job`."""
    running.nest_in(_current.get())
    _current.set(running)


def pop_job(running: Job) -> None:
    """Make the job before ``running`` current again; nothing happens if another one is current."""
    if _current.get() is running:
        _current.set(running.outer)


def _restart_in_child() -> None:
    running = _current.get()
    while running is not None:
        running.restart_in_child()
        running = running.outer


on_fork(after_in_child=_restart_in_child)
