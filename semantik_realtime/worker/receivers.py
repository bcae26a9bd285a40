"""Receivers of Celery's signals: none raises, and none keeps a time limit from its task."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT

logger = logging.getLogger(__name__)

RUN_BY_TASK = frozenset({"prerun", "before_publish", "after_publish"})
"""Receivers that Celery calls before or while a task's own code runs."""
AGAIN_SECONDS = 0.01
"""After how long a soft time limit that a receiver got is raised again, in the task."""


def guarded(receiver: Callable[..., None], failures: Counter[str]) -> Callable[..., None]:
    """Return ``receiver`` without its exceptions: each kind is counted, and logged once."""
    name = receiver.__name__.strip("_")
    in_task = name in RUN_BY_TASK

    @functools.wraps(receiver)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            receiver(*args, **kwargs)
        except SoftTimeLimitExceeded:
            # Celery logs and ignores what a receiver raises, also this, which is the task's.
            if in_task and SIG_SOFT_TIMEOUT is not None:
                threading.Timer(AGAIN_SECONDS, _raise_soft_time_limit).start()
        except Exception as error:
            kind = f"{name}: {type(error).__name__}"
            failures[kind] += 1
            if failures[kind] == 1:
                logger.exception("tracker: receiver failed kind=%s (logged once)", kind)

    return guarded


def _raise_soft_time_limit() -> None:
    # As Celery's main process does when the limit is over.
    os.kill(os.getpid(), SIG_SOFT_TIMEOUT)
