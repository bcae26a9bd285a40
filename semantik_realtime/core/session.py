"""The protocol state of one native connection: a state machine with the table `TRANSITIONS`.

A frame comes in and actions go out. The caller performs them and reports their
results to the session. Nothing here waits or reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from enum import Enum, IntEnum, StrEnum, auto
from typing import Any

import msgspec

from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import (
    AUTH_UNITS,
    BURST_PER_TOPIC,
    MAX_BAD_FRAMES,
    MAX_FRAME_BYTES,
    MAX_HISTORY,
    MAX_TOPICS,
    UNITS_PER_TOPIC_SECOND,
)
from semantik_realtime.core.topic import check_topic
from semantik_realtime.errors import InvalidInput

SUBPROTOCOL = "semantik.realtime.v1"


class CloseCode(IntEnum):
    """Why the server ends a connection (docs/protocol.md)."""

    FINISHED = 1000
    GOING_AWAY = 1001
    POLICY = 1008
    TOO_BIG = 1009
    SERVER_ERROR = 1011
    DRAIN = 1012
    BAD_FRAME = 4400
    UNAUTHENTICATED = 4401
    EXPIRED = 4402
    FORBIDDEN = 4403
    AUTH_TIMEOUT = 4408
    EVICTED = 4413
    FLOOD = 4420
    TOO_MANY_CONNECTIONS = 4429


TRANSIENT_CODES = frozenset({CloseCode.DRAIN, CloseCode.EVICTED, CloseCode.TOO_MANY_CONNECTIONS})
"""Codes after which the same client may get in a moment later, without any change of its own."""

MAX_REASON_BYTES = 123
"""Largest reason of a close frame (RFC 6455, section 5.5): 125 bytes with its code."""


def close_reason(text: str) -> str:
    """Return the longest beginning of a text that a close frame can have, in whole characters.

    >>> len(close_reason("ä" * 100))
    61
    """
    return text.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")


class SessionLimits(msgspec.Struct, frozen=True):
    """The limits of one connection; its ``welcome`` states all but ``auth_seconds``."""

    topics: int = MAX_TOPICS
    """Most topics at once."""
    frame_bytes: int = MAX_FRAME_BYTES
    """Largest frame of the client."""
    auth_seconds: float = 10.0
    """How long after the handshake ``auth`` may come."""
    heartbeat_seconds: float = 20.0
    """Time between two heartbeats of the server."""

    @property
    def burst(self) -> int:
        """Units that the client may send at once; see `units_of`."""
        return BURST_PER_TOPIC * max(self.topics, MAX_TOPICS)

    @property
    def per_second(self) -> int:
        """Units that the client may send in a second when it has sent the burst."""
        return int(UNITS_PER_TOPIC_SECOND * max(self.topics, MAX_TOPICS))


class Send(msgspec.Struct, frozen=True):
    """Send this frame."""

    frame: str


class Authenticate(msgspec.Struct, frozen=True):
    """Check this token, then call `Session.authenticated` or `Session.rejected`."""

    token: str


class Subscribe(msgspec.Struct, frozen=True):
    """Authorize and sync each topic from its cursor; a topic that is open is synced again."""

    topics: dict[str, Cursor | None]
    history: int


class Unsubscribe(msgspec.Struct, frozen=True):
    """Stop sending these topics."""

    topics: list[str]


class Close(msgspec.Struct, frozen=True):
    """Close the connection."""

    code: CloseCode
    reason: str


Action = Send | Authenticate | Subscribe | Unsubscribe | Close


def units_of(frame: str | bytes, actions: Sequence[Action] = ()) -> int:
    """Return what a frame costs: 1, its KiB, and what the server does because of it.

    >>> units_of("x" * 30, [Subscribe({"job:1": None, "job:2": None}, history=0)])
    3
    """
    units = 1 + min(len(frame), MAX_FRAME_BYTES) // 1024
    for action in actions:
        if isinstance(action, Subscribe):
            units += len(action.topics)
        elif isinstance(action, Authenticate):
            units += AUTH_UNITS
    return units


class Phase(StrEnum):
    """The states of the state machine."""

    WAITING = "waiting"
    """No credential was accepted yet."""
    OPEN = "open"
    CLOSED = "closed"


class Trigger(Enum):
    """What causes a transition beside the ops of the client.

    The values are not strings, so that no client can send one as its op.
    """

    ACCEPTED = auto()
    """A credential was accepted."""
    REFUSED = auto()
    """A credential was refused."""
    EXPIRED = auto()
    """A credential has expired."""
    NO_AUTH = auto()
    """No credential came in time."""
    BAD_FRAME = auto()
    """A frame is not a JSON object with an op."""
    TOO_MANY_BAD_FRAMES = auto()
    TOO_BIG_FRAME = auto()


class Session:
    """The state machine of one connection. ``now`` is in seconds, on a clock that does not go back.

    >>> session = Session("s1", SessionLimits(), now=0.0)
    >>> session.receive('{"op":"ping"}')
    [Send(frame='{"op":"error","code":"unauthenticated","message":"send auth first"}')]
    >>> session.receive('{"op":"auth","token":"t"}')
    [Authenticate(token='t')]
    >>> session.authenticated()[0].frame[:15]
    '{"op":"welcome"'
    >>> session.receive('{"op":"ping"}')
    [Send(frame='{"op":"pong"}')]
    """

    def __init__(self, session_id: str, limits: SessionLimits, now: float) -> None:
        self.id = session_id
        """Sent to the client in ``welcome``; appears in logs."""
        self.phase = Phase.WAITING
        self.topics: set[str] = set()
        """The topics that the client has subscribed to; changed by its frames and by `retain`."""
        self._limits = limits
        self._auth_deadline = now + limits.auth_seconds
        # Unreadable frames since the beginning.
        self._bad_frames = 0

    def receive(self, text: str | bytes) -> list[Action]:
        """Return what to do about a client's frame. Never raises."""
        data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        if len(data) > self._limits.frame_bytes:
            reason = f"frame over {self._limits.frame_bytes} bytes"
            return self._fire(Trigger.TOO_BIG_FRAME, reason)
        frame = frames.decode(data)
        if frame is not None:
            return self._fire(frame["op"], frame)
        self._bad_frames += 1
        if self._bad_frames < MAX_BAD_FRAMES:
            return self._fire(Trigger.BAD_FRAME)
        return self._fire(Trigger.TOO_MANY_BAD_FRAMES, "too many bad frames")

    def authenticated(self) -> list[Action]:
        """Report that a credential was accepted: the first opens the session, others refresh it."""
        return self._fire(Trigger.ACCEPTED)

    def rejected(self, expired: bool, reason: str) -> list[Action]:
        """Report that a credential was refused; ``reason`` goes into the close frame."""
        return self._fire(Trigger.EXPIRED if expired else Trigger.REFUSED, reason)

    def retain(self, topics: Set[str]) -> None:
        """Forget all topics but these: the others were denied or deleted."""
        self.topics &= topics

    def auth_seconds_left(self, now: float) -> float:
        """Return the seconds in which the client must authenticate; 0 if they are over."""
        return max(0.0, self._auth_deadline - now)

    def tick(self, now: float) -> list[Action]:
        """Return what to do because of the time."""
        if now < self._auth_deadline:
            return []
        return self._fire(Trigger.NO_AUTH, "no auth frame in time")

    @staticmethod
    def error(code: str, message: str) -> Send:
        """Return an ``error`` frame: the client's last frame was wrong and had no effect."""
        return Send(frames.encode({"op": "error", "code": code, "message": message}))

    def _fire(self, trigger: str | Trigger, argument: Any = None) -> list[Action]:
        """Make a transition; ``argument`` is the frame of an op, or the reason of a close."""
        transition = TRANSITIONS.get((self.phase, trigger))
        if transition is None:
            return self._no_transition(trigger)
        self.phase, effect = transition
        return (
            [Close(effect, argument)] if isinstance(effect, CloseCode) else effect(self, argument)
        )

    def _no_transition(self, trigger: str | Trigger) -> list[Action]:
        if self.phase is Phase.CLOSED or isinstance(trigger, Trigger):
            return []
        if self.phase is Phase.WAITING:
            return [self.error("unauthenticated", "send auth first")]
        return [self.error("unknown_op", f"unknown op {trigger[:40]!r}")]

    def _welcome(self, _: None) -> list[Action]:
        welcome = {
            "op": "welcome",
            "session": self.id,
            "heartbeat_seconds": self._limits.heartbeat_seconds,
            "limits": {
                "topics": self._limits.topics,
                "frame_bytes": self._limits.frame_bytes,
                "burst": self._limits.burst,
                "per_second": self._limits.per_second,
            },
        }
        return [Send(frames.encode(welcome))]

    def _bad_frame(self, _: None) -> list[Action]:
        return [self.error("bad_frame", "expected a JSON object with an op")]

    def _pong(self, _: dict[str, Any]) -> list[Action]:
        return [Send('{"op":"pong"}')]

    def _auth(self, frame: dict[str, Any]) -> list[Action]:
        token = frame.get("token", "")
        if token is None:
            # The client has none. It need not wait for the deadline to learn that one is needed.
            is_open = self.phase is Phase.OPEN
            return [] if is_open else self._fire(Trigger.REFUSED, "no credential")
        if not isinstance(token, str) or not token:
            return [self.error("bad_frame", "auth needs a token")]
        return [Authenticate(token)]

    def _subscribe(self, frame: dict[str, Any]) -> list[Action]:
        asked = frame.get("topics")
        history = frame.get("history", 0)
        if not isinstance(asked, dict) or not asked:
            return [self.error("bad_frame", "subscribe needs topics: an object, not empty")]
        if type(history) is not int or not 0 <= history <= MAX_HISTORY:
            return [self.error("bad_frame", f"history is an integer from 0 to {MAX_HISTORY}")]
        if len(asked) > self._limits.topics:
            # Before the names are checked, which takes longer.
            return [self._too_many_topics()]
        plan: dict[str, Cursor | None] = {}
        try:
            for topic, cursor in asked.items():
                if cursor is not None and not isinstance(cursor, str):
                    return [self.error("bad_frame", "a cursor is a string or null")]
                plan[check_topic(topic)] = None if cursor is None else Cursor.parse(cursor)
        except InvalidInput as error:
            return [self.error(error.code, str(error))]
        if len(self.topics | plan.keys()) > self._limits.topics:
            return [self._too_many_topics()]
        self.topics |= plan.keys()
        return [Subscribe(plan, history)]

    def _too_many_topics(self) -> Send:
        return self.error("too_many_topics", f"at most {self._limits.topics} topics")

    def _unsubscribe(self, frame: dict[str, Any]) -> list[Action]:
        asked = frame.get("topics")
        if not isinstance(asked, list):
            return [self.error("bad_frame", "unsubscribe needs topics: a list")]
        known = [topic for topic in asked if isinstance(topic, str) and topic in self.topics]
        self.topics.difference_update(known)
        return [Unsubscribe(known)] if known else []


Effect = CloseCode | Callable[[Session, Any], list[Action]]
"""What a transition does: it closes with a code, or the method returns its actions."""
TRANSITIONS: Mapping[tuple[Phase, str | Trigger], tuple[Phase, Effect]] = {
    (Phase.WAITING, "auth"): (Phase.WAITING, Session._auth),
    (Phase.WAITING, Trigger.ACCEPTED): (Phase.OPEN, Session._welcome),
    (Phase.WAITING, Trigger.REFUSED): (Phase.CLOSED, CloseCode.UNAUTHENTICATED),
    (Phase.WAITING, Trigger.EXPIRED): (Phase.CLOSED, CloseCode.EXPIRED),
    (Phase.WAITING, Trigger.NO_AUTH): (Phase.CLOSED, CloseCode.AUTH_TIMEOUT),
    (Phase.WAITING, Trigger.BAD_FRAME): (Phase.WAITING, Session._bad_frame),
    (Phase.WAITING, Trigger.TOO_MANY_BAD_FRAMES): (Phase.CLOSED, CloseCode.BAD_FRAME),
    (Phase.WAITING, Trigger.TOO_BIG_FRAME): (Phase.CLOSED, CloseCode.TOO_BIG),
    (Phase.OPEN, "auth"): (Phase.OPEN, Session._auth),
    (Phase.OPEN, "subscribe"): (Phase.OPEN, Session._subscribe),
    (Phase.OPEN, "unsubscribe"): (Phase.OPEN, Session._unsubscribe),
    (Phase.OPEN, "ping"): (Phase.OPEN, Session._pong),
    (Phase.OPEN, Trigger.REFUSED): (Phase.CLOSED, CloseCode.UNAUTHENTICATED),
    (Phase.OPEN, Trigger.EXPIRED): (Phase.CLOSED, CloseCode.EXPIRED),
    (Phase.OPEN, Trigger.BAD_FRAME): (Phase.OPEN, Session._bad_frame),
    (Phase.OPEN, Trigger.TOO_MANY_BAD_FRAMES): (Phase.CLOSED, CloseCode.BAD_FRAME),
    (Phase.OPEN, Trigger.TOO_BIG_FRAME): (Phase.CLOSED, CloseCode.TOO_BIG),
}
"""The next phase and the effect, by the phase and the client's op or another trigger.

A pair that is absent leaves the phase as it is. For a `Trigger` it has no
effect: a refreshed credential was accepted, or the time for auth is over after
auth came. For an op it sends an ``error``: ``unauthenticated`` in WAITING,
``unknown_op`` in OPEN. In CLOSED nothing has an effect.
"""
