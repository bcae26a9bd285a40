"""The exceptions of this package, split by what a caller can do about them.

::

    RealtimeError
    ├── ConfigError            a setting is wrong: change it and restart
    ├── InvalidInput           a value is wrong: the same call fails again
    │   ├── TopicError
    │   ├── EventError
    │   └── EventTooBig
    ├── AccessError            the user is not known, or not allowed
    └── BackendError
        ├── BackendUnavailable nothing was written: make the same call later
        ├── AppendUncertain    it may have been written: send the same drafts again
        └── BackendRefused     rights, memory or version: an operator must act first
            └── TopicRefused   the same, for one topic; the backend answers for others

Each error has a ``code`` that is stable over releases and used on the wire.
"""

from __future__ import annotations


class RealtimeError(Exception):
    """The base class of this package's exceptions."""

    code: str = "error"


class ConfigError(RealtimeError):
    """A setting is missing or wrong; the message names it and what to set."""

    code = "bad_config"


class InvalidInput(RealtimeError, ValueError):
    """A value breaks a rule of the protocol. The call had no effect."""

    code = "bad_input"


class TopicError(InvalidInput):
    """A topic's name is outside the grammar."""

    code = "bad_topic"


class EventError(InvalidInput):
    """An event's type or key is outside the grammar, or its state or data cannot be encoded."""

    code = "bad_event"


class EventTooBig(InvalidInput):
    """An encoded event is over the size limit."""

    code = "event_too_big"


class AccessError(RealtimeError):
    """The credential is missing, wrong or outdated, or the user may not watch the topic.

    A host's ``authenticate`` and ``authorize`` raise it to refuse for good.

    Args:
        message: the sentence for the client.
        code: what the client can do about it. ``unauthenticated``: log in (on
            the wires 401 or 4401); ``expired``: bring a fresh credential (401
            or 4402); ``forbidden``: nothing (403 or 4403).
    """

    def __init__(self, message: str, code: str = "forbidden") -> None:
        super().__init__(message)
        self.code = code


class BackendError(RealtimeError):
    """A call to the backend failed."""

    code = "backend_error"


class BackendUnavailable(BackendError):
    """The backend cannot be reached, or cannot write now. Nothing was written."""

    code = "backend_unavailable"


class AppendUncertain(BackendError):
    """Some drafts may have been appended. Send all of them again; the fence makes that safe."""

    code = "append_uncertain"


class BackendRefused(BackendError):
    """The server refused the call: wrong password, missing rights, or an old version."""

    code = "backend_refused"


class TopicRefused(BackendRefused):
    """The server refuses what concerns one topic, and answers for others: this is no outage.

    Args:
        topic: the topic.
        reason: what the server says.
    """

    code = "topic_refused"

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"topic {topic} is refused: {reason}")
        self.topic = topic
        self.reason = reason
