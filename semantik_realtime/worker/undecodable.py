"""Messages whose task cannot be read: Celery drops them, and sends no signal that names the task.

Celery passes such a message to methods of its consumer, which are wrapped here
before the consumer starts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import bootsteps

from semantik_realtime.worker.values import describe_error, make_error

logger = logging.getLogger(__name__)

End = Callable[..., object]
"""`semantik_realtime.worker.tracker.TaskTracker._end`."""


def end_undecodable(app: Any, end: End) -> None:
    """Call ``end`` for each message of a worker of ``app`` that cannot be read.

    To be called before the worker makes its consumer (``worker_init``).
    """

    class Undecodable(bootsteps.Step):  # type: ignore[misc]
        """Wraps the consumer's methods. Made with the consumer, before its other steps start."""

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            parent.on_decode_error = _before(
                parent.on_decode_error, lambda message, exc: _end(end, message, exc)
            )
            parent.on_invalid_task = _before(
                parent.on_invalid_task, lambda body, message, exc: _end(end, message, exc)
            )

    app.steps["consumer"].add(Undecodable)


def _before(method: Callable[..., Any], first: Callable[..., object]) -> Callable[..., Any]:
    @functools.wraps(method)
    def both(*args: Any, **kwargs: Any) -> Any:
        try:
            first(*args, **kwargs)
        except Exception:
            # The method acknowledges the message. Without that it would come again, for ever.
            logger.exception("tracker: undecodable message not reported")
        return method(*args, **kwargs)

    return both


def _end(end: End, message: Any, error: object) -> None:
    headers = message.headers
    if not isinstance(headers, Mapping) or headers.get("id") is None:
        return
    reason = make_error("Undecodable", describe_error(error)["message"])
    name = str(headers.get("task"))
    end(str(headers["id"]), "job_failed", headers, name, reason, has_run=False)
