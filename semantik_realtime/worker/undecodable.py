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

logger = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any], BaseException | None], object]
"""Gets the headers of a message, and why it could not be read."""


def report_undecodable(app: Any, report: Report) -> None:
    """Call ``report`` for each message of a worker of ``app`` that cannot be read.

    To be called before the worker makes its consumer (``worker_init``). ``report``
    must not raise.
    """

    class Undecodable(bootsteps.Step):  # type: ignore[misc]
        """Wraps the consumer's methods. Made with the consumer, before its other steps start."""

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            parent.on_decode_error = _before(
                parent.on_decode_error, lambda message, exc: _report(report, message, exc)
            )
            parent.on_invalid_task = _before(
                parent.on_invalid_task, lambda body, message, exc: _report(report, message, exc)
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


def _report(report: Report, message: Any, error: BaseException | None) -> None:
    headers = message.headers
    if isinstance(headers, Mapping) and headers.get("id") is not None:
        report(headers, error)
