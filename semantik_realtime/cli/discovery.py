"""The tasks that the workers of a Celery application receive, from Celery's own events."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any

from semantik_realtime.backoff import Backoff
from semantik_realtime.urls import mask_urls
from semantik_realtime.worker.announcements import EVENT, JOB, TASK
from semantik_realtime.worker.headers import is_job

logger = logging.getLogger(__name__)

MAX_TASKS = 50
"""Tasks that are kept, the newest. A page may watch 100 topics on one connection."""
MAX_MEMBERS = 100_000
"""Members of workflows that are remembered, so that they are not listed as tasks."""
WORKFLOW = "workflow"
"""The name of a workflow in the list; its state has a longer one."""
LOOK_SECONDS = 3.0
"""Between two requests to the workers to send events: one may have been started since."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
"""Pauses before the broker is called again after a failure."""


class ReceivedTasks:
    """The newest tasks of an application; a daemon thread keeps the list until `stop`.

    It asks the workers to send events, as ``celery control enable_events``
    does. They go on when the thread has ended, for another monitor may need them.

    Args:
        app: the Celery application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        # Names by id, the newest last. Written by the thread, under the lock.
        self._names: OrderedDict[str, str] = OrderedDict()
        # Tasks that are members of workflows, oldest first; under the lock, too.
        self._members: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        # Address of the broker, without a password; for the log and for `error`.
        self._broker = "its address"
        self.error = ""
        """Why the broker cannot be read; empty while it can. Written by the thread."""

    def start(self) -> None:
        """Start the thread, once."""
        threading.Thread(target=self._run, name="semantik-realtime-tasks", daemon=True).start()

    def stop(self) -> None:
        """End the thread soon."""
        self._stopped.set()

    def newest(self) -> list[dict[str, str]]:
        """Return id and name of each task, the newest first. From any thread."""
        with self._lock:
            return [{"id": id, "name": name} for id, name in reversed(self._names.items())]

    def add(self, event: dict[str, Any]) -> None:
        """Add the task of an event of Celery, unless it is one of Celery's own."""
        id, name = str(event.get("uuid")), str(event.get("name", ""))
        if name and not is_job(name):
            return
        with self._lock:
            if id in self._members:
                return
            # A retry is received again: it stays where it is.
            self._names.setdefault(id, name)
            if name:
                self._names[id] = name
            self._forget()

    def add_member(self, event: dict[str, Any]) -> None:
        """List a workflow in place of a task that is a member of it, by an event of ours."""
        task, job = str(event.get(TASK)), str(event.get(JOB))
        with self._lock:
            self._members[task] = None
            while len(self._members) > MAX_MEMBERS:
                self._members.popitem(last=False)
            # Its last task may have its id, and be listed already as one that was sent.
            if task != job:
                self._names.pop(task, None)
            # One that is listed stays where it is.
            self._names[job] = WORKFLOW
            self._forget()

    def _forget(self) -> None:
        while len(self._names) > MAX_TASKS:
            self._names.popitem(last=False)

    def _run(self) -> None:
        backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while not self._stopped.is_set():
            try:
                self._read(backoff)
            except Exception as error:
                # Of whatever broker it is, and the thread must go on.
                if not self.error:
                    logger.warning(
                        "serve: broker not read url=%s error=%s",
                        self._broker,
                        type(error).__name__,
                    )
                self.error = f"the broker does not answer at {self._broker}: {type(error).__name__}"
                self._stopped.wait(backoff.next_seconds())

    def _read(self, backoff: Backoff) -> None:
        with self._app.connection_for_read() as connection:
            self._broker = mask_urls(connection.as_uri())
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            kinds = ("task-sent", "task-received", "task-started")
            receiver = self._app.events.Receiver(
                connection, handlers={**dict.fromkeys(kinds, self.add), EVENT: self.add_member}
            )
            asking = threading.Thread(target=self._ask, args=(receiver,), daemon=True)
            asking.start()
            self.error = ""
            backoff.reset()
            # Reconnects by itself; ends when `_ask` says so.
            receiver.capture(limit=None, timeout=None, wakeup=False)
            asking.join()

    def _ask(self, receiver: Any) -> None:
        """Ask the workers for events again and again, until `stop` or an error."""
        try:
            while True:
                self._app.control.enable_events()
                if self._stopped.wait(LOOK_SECONDS):
                    return
        except Exception as error:
            logger.warning("serve: workers not asked for events error=%s", type(error).__name__)
        finally:
            receiver.should_stop = True
