"""What Celery's result backend knows of a job whose process is gone.

A plugin of every process; it answers where the application has configured a
Celery with a result backend. This module imports nothing of Celery, because a
web application may have none.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from semantik_realtime.hookspecs import hookimpl

MAX_QUESTIONS = 8
"""Questions that may be under way. While the result backend hangs no more are asked."""
_STATUS = {"SUCCESS": "completed", "FAILURE": "failed", "REVOKED": "cancelled"}
_DISABLED = "DisabledBackend"


class CeleryResults:
    """The hook `semantik_realtime.hookspecs.HostSpec.outcome`, for hosts with Celery.

    Each question has a thread of its own, because a result backend may hang; a
    thread that hangs is left alone.
    """

    def __init__(self) -> None:
        # The questions under way, as their threads. Those of a hanging result backend stay.
        self._asking: set[threading.Thread] = set()

    @hookimpl
    async def outcome(self, job: str) -> Mapping[str, Any] | None:
        """Return how the task of a job ended; None: it has not, or there is no result backend."""
        app = find_app()
        if app is None:
            return None
        self._asking = {thread for thread in self._asking if thread.is_alive()}
        if len(self._asking) >= MAX_QUESTIONS:
            return None
        answer: Future[Mapping[str, Any] | None] = Future()
        thread = threading.Thread(
            target=_answer, args=(app, job, answer), name="semantik-realtime-outcome", daemon=True
        )
        self._asking.add(thread)
        thread.start()
        return await asyncio.wrap_future(answer)


celery_results = CeleryResults()
"""The plugin. An entry point registers it."""


def find_app() -> Any:
    """Return the application's Celery in this process; None if it has none, or several.

    The current app of Celery is one of a thread: the one that has made it.
    """
    state = sys.modules.get("celery._state")
    if state is None:
        return None
    if state._tls.current_app is not None:
        return state._tls.current_app
    apps = [app for app in list(state._get_active_apps()) if app is not state.default_app]
    # Without any other the default app is the application's own, made by `set_default`.
    return apps[0] if len(apps) == 1 else (None if apps else state.default_app)


def _answer(app: Any, job: str, answer: Future[Mapping[str, Any] | None]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(_read(app, job))
    except BaseException as error:
        answer.set_exception(error)


def _read(app: Any, job: str) -> Mapping[str, Any] | None:
    backend = app.backend
    if type(backend).__name__ == _DISABLED or not backend.persistent:
        # Reading a result of the RPC backend would take it away from the one that waits for it.
        return None
    meta = backend.get_task_meta(job, cache=False)
    status = _STATUS.get(str(meta.get("status")))
    if status is None:
        # PENDING, STARTED, RETRY: the result backend does not know that it ended.
        return None
    found: dict[str, Any] = {"status": status}
    if status == "failed":
        error = meta.get("result")
        found["error"] = {"type": type(error).__name__[:200], "message": str(error)[:1000]}
    return found
