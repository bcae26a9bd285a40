"""Checks of the values that tasks pass, so that each fits into an event.

The functions that check raise one of `BAD_VALUE`. Their callers count that with
`note_misuse` and leave the value out, because a bad value must not fail a task.
"""

from __future__ import annotations

import logging
import math
import numbers
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from semantik_realtime.errors import InvalidInput

logger = logging.getLogger(__name__)

MAX_TEXT_CHARACTERS = 1000
"""What is kept of a message and of an error's message."""
MAX_TYPE_CHARACTERS = 200
"""What is kept of the name of an exception's class."""
MAX_NUMBER = 2**53
"""A browser cannot represent every integer above this one."""
BAD_VALUE = (
    *(InvalidInput, TypeError, ValueError, OverflowError, RecursionError),
    # Only newer releases of msgspec raise ValueErrors.
    msgspec.MsgspecError,
)
"""What a bad value raises, and nothing else: Celery raises its time limits in
the middle of any call, and those must pass through."""

MAX_DUE_SECONDS = 10 * 365 * 86_400.0
"""A job that waits for longer is treated as one that waits so long."""

misuse: Counter[str] = Counter()
"""How many values could not be sent, by kind, since the process began."""

_encode = msgspec.json.Encoder().encode


def due_time(when: Any) -> float | None:
    """Return the time that Celery gives to a task, in seconds since 1970; None if it is none.

    Args:
        when: an ETA as messages have it (ISO 8601, UTC if it has no zone), or a countdown in
            seconds.
    """
    if when is None:
        return None
    now = time.time()
    try:
        if isinstance(when, str):
            moment = datetime.fromisoformat(when)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        elif isinstance(when, int | float):
            seconds = now + float(when)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return min(seconds, now + MAX_DUE_SECONDS) if seconds > now else None


def seconds_until(when: object) -> float | None:
    """Return the seconds from now to the time of a retry, a countdown or a time; None: it is none.

    A time without a zone is one of UTC, as for Celery's workers.

    >>> seconds_until(3), seconds_until("soon")
    (3, None)
    """
    if isinstance(when, datetime):
        moment = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - time.time())
    return when if isinstance(when, int | float) else None


def delay_until(eta: Any) -> dict[str, float]:
    """Return the data of a ``job_retrying`` for the ETA of the message that follows; none without
    one.

    >>> delay_until(None)
    {}
    """
    due_at = due_time(eta)
    return {} if due_at is None else {"delay_seconds": round(max(0.0, due_at - time.time()), 3)}


def note_misuse(kind: str, job_id: str, what: str) -> None:
    """Count a value that could not be sent; log the first of each kind."""
    misuse[kind] += 1
    if misuse[kind] == 1:
        logger.warning(
            "job: %s job=%s what=%s (logged once)",
            kind,
            clean_line(job_id)[:200],
            clean_line(what)[:200],
        )


def clean_text(text: str) -> str:
    """Return ``text`` with each lone surrogate replaced: file names have them, JSON cannot.

    >>> clean_text("caf\\udce9.txt")
    'caf?.txt'
    """
    return text.encode("utf-8", "replace").decode()


def clean_line(text: Any) -> str:
    """Return ``text`` as one line of at most `MAX_TEXT_CHARACTERS`.

    Raises:
        TypeError: it is not text.

    >>> clean_line("first\\n  second")
    'first second'
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text, got {type(text).__name__}")
    return " ".join(clean_text(text[: 2 * MAX_TEXT_CHARACTERS]).split())[:MAX_TEXT_CHARACTERS]


def clean_number(value: Any) -> int | float:
    """Return ``value`` as a number of Python's own; it may be of another library, as numpy.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not finite, or above `MAX_NUMBER`.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not math.isfinite(number) or abs(number) > MAX_NUMBER:
        raise ValueError("expected a finite number below 2^53")
    return number


def encode_fields(fields: Mapping[str, Any], job_id: str) -> dict[str, bytes]:
    """Return each of ``fields`` as JSON. One that cannot be encoded is noted and left out."""
    encoded: dict[str, bytes] = {}
    for name, value in fields.items():
        try:
            _encode(name)
            encoded[name] = _encode(value)
        except BAD_VALUE as error:
            note_misuse("field cannot be encoded", job_id, f"{name[:80]!r}: {error}")
    return encoded


def describe_error(error: object) -> dict[str, str]:
    """Return type and message of an exception: no traceback, no arguments."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:
        message = ""
    if name == "UnpickleableExceptionWrapper":
        # Celery's substitute for an exception that cannot be pickled; it has the first one's name.
        name = str(getattr(error, "exc_cls_name", name))
    return make_error(name, message)


def make_error(type: str, message: str) -> dict[str, str]:
    """Return the ``error`` of a state."""
    return {
        "type": clean_text(type)[:MAX_TYPE_CHARACTERS],
        "message": clean_text(message)[:MAX_TEXT_CHARACTERS],
    }
