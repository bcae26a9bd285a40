"""Names of topics, types and keys."""

from __future__ import annotations

import re

from semantik_realtime.errors import EventError, TopicError

_TOPIC = re.compile(r"([a-z][a-z0-9_]{0,31}):([A-Za-z0-9_][A-Za-z0-9_.@=+~-]{0,199})")
_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_KEY = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")


def check_topic(name: object) -> str:
    """Return ``name`` if it is a topic name.

    >>> check_topic("job:42")
    'job:42'
    >>> check_topic("../x")
    Traceback (most recent call last):
    semantik_realtime.errors.TopicError: not a topic name: '../x' (expected kind:id)

    Raises:
        TopicError: with the name shortened to 80 characters.
    """
    if isinstance(name, str) and _TOPIC.fullmatch(name):
        return name
    raise TopicError(f"not a topic name: {str(name)[:80]!r} (expected kind:id)")


def job_topic(job_id: str) -> str:
    """The topic of a job.

    >>> job_topic("42")
    'job:42'
    """
    return check_topic(f"job:{job_id}")


def user_topic(user_id: str) -> str:
    """The feed of a user.

    >>> user_topic("7")
    'user:7'
    """
    return check_topic(f"user:{user_id}")


def split_topic(name: str) -> tuple[str, str]:
    """Kind and id.

    >>> split_topic("job:42")
    ('job', '42')
    """
    kind, _, ident = check_topic(name).partition(":")
    return kind, ident


def check_type(name: object) -> str:
    """Return ``name`` if it is an event type.

    Raises:
        EventError: otherwise.
    """
    if isinstance(name, str) and _TYPE.fullmatch(name):
        return name
    raise EventError(f"not an event type: {str(name)[:80]!r}")


def check_key(key: object) -> str:
    """Return ``key`` if it may carry a state: 1 to 200 characters, no control characters.

    Nor surrogates: they cannot be encoded.

    Raises:
        EventError: otherwise.
    """
    if isinstance(key, str) and _KEY.fullmatch(key):
        return key
    raise EventError(f"not a key: {str(key)[:80]!r}")
