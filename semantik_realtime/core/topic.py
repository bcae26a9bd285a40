"""The grammar of the names of topics, event types and keys (docs/protocol.md)."""

from __future__ import annotations

import re
from uuid import UUID

from semantik_realtime.errors import EventError, TopicError

MAX_ID_CHARACTERS = 200
"""Of an id, plain and encoded."""
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=+~-]{0,199}")
_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_KEY = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
_ESCAPED = re.compile(r"^[^A-Za-z0-9]|[^A-Za-z0-9_.@=+-]")
_ESCAPE = re.compile(r"(?:~[0-9A-F]{2})+")


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
    if isinstance(name, str):
        kind, colon, ident = name.partition(":")
        if colon and _KIND.fullmatch(kind) and _ID.fullmatch(ident):
            return name
    raise TopicError(f"not a topic name: {str(name)[:80]!r} (expected kind:id)")


def name_topic(name: object) -> str:
    """Return the topic that a caller means by ``name``: its name, or its kind and a plain id.

    >>> name_topic("job:42"), name_topic("job:import:42"), name_topic("job:import~3A42")
    ('job:42', 'job:import~3A42', 'job:import~3A42')

    Raises:
        TopicError: it is neither.
    """
    if isinstance(name, str):
        kind, colon, ident = name.partition(":")
        if colon and _KIND.fullmatch(kind) and not _ID.fullmatch(ident):
            return f"{kind}:{encode_id(ident)}"
    return check_topic(name)


def job_topic(job_id: object) -> str:
    """Return the topic of a job.

    >>> job_topic("42"), job_topic("a/b c")
    ('job:42', 'job:a~2Fb~20c')

    Raises:
        TopicError: no topic can have that id (`encode_id`).
    """
    return f"job:{encode_id(job_id)}"


def user_topic(user_id: object) -> str:
    """Return the topic of a user's feed.

    >>> user_topic("7"), user_topic("auth0|5f7c")
    ('user:7', 'user:auth0~7C5f7c')

    Raises:
        TopicError: no topic can have that id (`encode_id`).
    """
    return f"user:{encode_id(user_id)}"


def split_topic(name: str) -> tuple[str, str]:
    """Return the kind and the plain id of a topic: the inverse of `job_topic` and `user_topic`.

    >>> split_topic("job:42"), split_topic("job:a~2Fb~20c")
    (('job', '42'), ('job', 'a/b c'))

    Raises:
        TopicError: it is not a topic's name.
    """
    kind, _, ident = check_topic(name).partition(":")
    return kind, _decode_id(ident)


def plain_id(value: object) -> str:
    """Return an id as text: a text itself, an integer or a UUID.

    >>> plain_id(7)
    '7'

    Raises:
        TopicError: it is of another type, or no key: empty, too long or with control characters.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        raise TopicError(f"an id is a text, an integer or a UUID, not {type(value).__name__}")
    text = str(value)
    if not _KEY.fullmatch(text):
        raise TopicError("an id has 1 to 200 characters and no control characters")
    return text


def encode_id(value: object) -> str:
    """Return an id as the name of a topic has it.

    An id in the alphabet of topics stays as it is. In any other one, each
    character outside the alphabet is written as ``~XX`` for each byte of its
    UTF-8, and so are ``~`` and a first character that is no letter or digit;
    then ``_`` is put in front of a first ``~``, which no name may begin with.

    >>> encode_id("ada@example.org"), encode_id("org:7"), encode_id(".x")
    ('ada@example.org', 'org~3A7', '_~2Ex')

    Raises:
        TopicError: it is no id (`plain_id`), or too long when it is encoded.
    """
    if isinstance(value, str) and "~" not in value and _ID.fullmatch(value):
        return value
    text = plain_id(value)
    # An id that looks like an encoded one is encoded too, so that decoding gives it back.
    if _ID.fullmatch(text) and _decode_id(text) == text:
        return text
    encoded = _escape(text)
    if len(encoded) > MAX_ID_CHARACTERS:
        raise TopicError(f"an id has at most {MAX_ID_CHARACTERS} characters when it is encoded")
    return encoded


def _escape(text: str) -> str:
    escaped = _ESCAPED.sub(
        lambda found: "".join(f"~{byte:02X}" for byte in found[0].encode()), text
    )
    return f"_{escaped}" if escaped.startswith("~") else escaped


def _decode_id(encoded: str) -> str:
    if "~" not in encoded:
        return encoded
    text = encoded[1:] if encoded.startswith("_~") else encoded
    try:
        text = _ESCAPE.sub(lambda found: bytes.fromhex(found[0].replace("~", "")).decode(), text)
    except UnicodeError:
        return encoded
    # Only what `_escape` writes is an encoded id. Everything else is an id that looks like one.
    return text if _KEY.fullmatch(text) and _escape(text) == encoded else encoded


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
