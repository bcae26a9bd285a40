"""Whose the jobs are that ``celery beat`` starts.

Of the first that is there: the header ``realtime_owner`` of the entry's options, where None
means nobody; the setting ``beat_owner``; nobody.
"""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

from semantik_realtime.worker.headers import OWNER

BEAT_HEADER = "celery_beat_task"
"""Newer versions of Celery set it on what beat sends."""

_threads: set[int] = set()
"""The threads that run beat in this process. Older versions of Celery set no header."""


def note_beat(**_: Any) -> None:
    """Remember that this thread runs beat. The receiver of ``beat_init``."""
    _threads.add(threading.get_ident())


def is_from_beat(headers: dict[str, Any]) -> bool:
    """Return True if beat sends the message with these headers, in this thread."""
    return BEAT_HEADER in headers or threading.get_ident() in _threads


def complete_owner(headers: dict[str, Any], owner: str | None) -> None:
    """Make ``owner`` the owner of a message that beat sends, unless its entry names one.

    An owner that is a UUID becomes a text, because not every transport can encode one in a header.
    """
    named = OWNER in headers or OWNER in (headers.get("stamps") or {})
    if owner is not None and not named and is_from_beat(headers):
        headers[OWNER] = owner
    if isinstance(headers.get(OWNER), UUID):
        headers[OWNER] = str(headers[OWNER])
