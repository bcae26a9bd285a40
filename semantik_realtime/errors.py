"""Everything that can go wrong, split by what a caller can do about it.

::

    RealtimeError
    ├── ConfigError            a setting is wrong: change it, restart
    ├── InvalidInput           the caller's value is wrong: sending it again is useless
    │   ├── TopicError
    │   ├── EventError
    │   └── EventTooBig
    ├── AccessError            who asks may not
    └── BackendError
        ├── BackendUnavailable nothing was written: send it again later
        ├── AppendUncertain    it may have been written: send the same draft again
        └── BackendRefused     the server said no for good: rights, memory, version

Each class has a ``code``, stable over releases and used on the wire, and
``retry_is_safe``: whether the same call can be made again as it was.
"""

from __future__ import annotations

from typing import ClassVar


class RealtimeError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "error"
    retry_is_safe: ClassVar[bool] = False


class ConfigError(RealtimeError):
    """A setting is missing or wrong; the message names it and says what to set."""

    code = "bad_config"


class InvalidInput(RealtimeError, ValueError):
    """A value breaks a rule of the protocol. Nothing was done."""

    code = "bad_input"


class TopicError(InvalidInput):
    """A topic name is outside the grammar."""

    code = "bad_topic"


class EventError(InvalidInput):
    """An event's type, key, state or data cannot be encoded."""

    code = "bad_event"


class EventTooBig(InvalidInput):
    """An encoded event is over the size limit."""

    code = "event_too_big"


class AccessError(RealtimeError):
    """The credential is missing, wrong or outdated, or the topic is not for this user."""

    code = "forbidden"

    def __init__(self, message: str, code: str = "forbidden") -> None:
        super().__init__(message)
        self.reason = code


class BackendError(RealtimeError):
    """The backend did not do what was asked."""

    code = "backend_error"


class BackendUnavailable(BackendError):
    """The backend could not be reached. Nothing was written."""

    code = "backend_unavailable"
    retry_is_safe = True


class AppendUncertain(BackendError):
    """The drafts may have been appended. Send the same ones again: their fence makes that safe."""

    code = "append_uncertain"
    retry_is_safe = True


class BackendRefused(BackendError):
    """The backend answered and said no: wrong password, missing rights, too old a version."""

    code = "backend_refused"
