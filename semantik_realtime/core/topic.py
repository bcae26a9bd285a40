"""The grammar of the names of topics, event types and keys (docs/protocol.md)."""

from __future__ import annotations

import re

from semantik_realtime.errors import EventError, TopicError

_TOPIC = re.compile(r"([a-z][a-z0-9_]{0,31}):([A-Za-z0-9_][A-Za-z0-9_.@=+~-]{0,199})")
_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_KEY = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")


def check_topic(name: object) -> str:
    """Return ``name`` if it is a topic's name.

    >>> check_topic("job:42")
    'job:42'
    >>> check_topic("../x")
    Traceback (most recent call last):
    semantik_realtime.errors.TopicError: not a topic name: '../x' (expected kind:id)

    Raises:
        TopicError: it is not; the message has its first 80 characters.
    """
    if isinstance(name, str) and _TOPIC.fullmatch(name):
        return name
    raise TopicError(f"not a topic name: {str(name)[:80]!r} (expected kind:id)")


def job_topic(job_id: str) -> str:
    """Return the topic of a job.

    >>> job_topic("42")
    'job:42'

    Raises:
        TopicError: the id is not allowed in a topic's name.
    """
    return check_topic(f"job:{job_id}")


def user_topic(user_id: str) -> str:
    """Return the topic of a user's feed.

    >>> user_topic("7")
    'user:7'

    Raises:
        TopicError: the id is not allowed in a topic's name.
    """
    return check_topic(f"user:{user_id}")


def split_topic(name: str) -> tuple[str, str]:
    """Return the kind and the id of a topic.

    >>> split_topic("job:42")
    ('job', '42')

    Raises:
        TopicError: it is not a topic's name.
    """
    kind, _, ident = check_topic(name).partition(":")
    return kind, ident


def check_type(name: object) -> str:
    """Return ``name`` if it is an event type.

    >>> check_type("job_progress")
    'job_progress'

    Raises:
        EventError: it is not; the message has its first 80 characters.
    """
    if isinstance(name, str) and _TYPE.fullmatch(name):
        return name
    raise EventError(f"not an event type: {str(name)[:80]!r}")


def check_key(key: object) -> str:
    """Return ``key`` if it is a key: 1 to 200 characters, no control characters or surrogates.

    Surrogates cannot be encoded.

    >>> check_key("page 3/7")
    'page 3/7'

    Raises:
        EventError: it is not; the message has its first 80 characters.
    """
    if isinstance(key, str) and _KEY.fullmatch(key):
        return key
    raise EventError(f"not a key: {str(key)[:80]!r}")
