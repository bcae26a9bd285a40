"""The protocol state of one native connection: the table `TRANSITIONS`.

Frames in, actions out; the shell carries them out and tells the session what
came of them. Nothing here waits or looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from enum import Enum, IntEnum, StrEnum, auto
from typing import Any

import msgspec

from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import (
    MAX_BAD_FRAMES,
    MAX_FRAME_BYTES,
    MAX_HISTORY,
    MAX_TOPICS,
)
from semantik_realtime.core.topic import check_topic
from semantik_realtime.errors import InvalidInput

SUBPROTOCOL = "semantik.realtime.v1"


class CloseCode(IntEnum):
    """Why the server ends a connection (docs/protocol.md)."""

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
    TOO_MANY_CONNECTIONS = 4429


class SessionLimits(msgspec.Struct, frozen=True):
    """What one connection may do."""

    topics: int = MAX_TOPICS
    frame_bytes: int = MAX_FRAME_BYTES
    auth_seconds: float = 10.0
    heartbeat_seconds: float = 20.0


class Send(msgspec.Struct, frozen=True):
    """Send this frame."""

    frame: str


class Authenticate(msgspec.Struct, frozen=True):
    """Check this token, then call `Session.authenticated` or `Session.rejected`."""

    token: str


class Subscribe(msgspec.Struct, frozen=True):
    """Authorize and sync these topics; a topic already open is synced anew."""

    topics: dict[str, Cursor | None]
    history: int


class Unsubscribe(msgspec.Struct, frozen=True):
    """Stop these topics."""

    topics: list[str]


class Close(msgspec.Struct, frozen=True):
    """End the connection."""

    code: CloseCode
    reason: str


Action = Send | Authenticate | Subscribe | Unsubscribe | Close


class Phase(StrEnum):
    """Where a session stands."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSED = "closed"


class Happening(Enum):
    """What a session takes in beside the ops of the client.

    No text, so that no client can send one as its op.
    """

    ACCEPTED = auto()
    """A credential is good."""
    REFUSED = auto()
    EXPIRED = auto()
    NO_AUTH = auto()
    """The time in which auth must come is over."""
    BAD_FRAME = auto()
    TOO_MANY_BAD_FRAMES = auto()
    TOO_BIG_FRAME = auto()


class Session:
    """State machine of one connection.

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
        self.phase = Phase.WAITING
        self.topics: set[str] = set()
        self._limits = limits
        self._auth_deadline = now + limits.auth_seconds
        self._bad_frames = 0

    def receive(self, text: str | bytes) -> list[Action]:
        """What to do about a client's frame. Never raises."""
        data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        if len(data) > self._limits.frame_bytes:
            reason = f"frame over {self._limits.frame_bytes} bytes"
            return self._take(Happening.TOO_BIG_FRAME, reason)
        frame = frames.decode(data)
        if frame is not None:
            return self._take(frame["op"], frame)
        self._bad_frames += 1
        if self._bad_frames < MAX_BAD_FRAMES:
            return self._take(Happening.BAD_FRAME)
        return self._take(Happening.TOO_MANY_BAD_FRAMES, "too many bad frames")

    def authenticated(self) -> list[Action]:
        """A credential was accepted: the first one opens the session, later ones refresh it."""
        return self._take(Happening.ACCEPTED)

    def rejected(self, expired: bool, reason: str) -> list[Action]:
        """A credential was refused."""
        return self._take(Happening.EXPIRED if expired else Happening.REFUSED, reason)

    def retain(self, topics: Set[str]) -> None:
        """Forget all other topics: they were denied or deleted."""
        self.topics &= topics

    def auth_seconds_left(self, now: float) -> float:
        """How long the client may still take to authenticate."""
        return max(0.0, self._auth_deadline - now)

    def tick(self, now: float) -> list[Action]:
        """What time alone brings about."""
        if now < self._auth_deadline:
            return []
        return self._take(Happening.NO_AUTH, "no auth frame in time")

    @staticmethod
    def error(code: str, message: str) -> Send:
        """An ``error`` frame: the client's last frame was wrong and had no effect."""
        return Send(frames.encode({"op": "error", "code": code, "message": message}))

    def _take(self, what: str | Happening, given: Any = None) -> list[Action]:
        """Go through `TRANSITIONS`; ``given`` is the frame of an op, the reason of an end."""
        transition = TRANSITIONS.get((self.phase, what))
        if transition is None:
            return self._no_transition(what)
        self.phase, answer = transition
        return [Close(answer, given)] if isinstance(answer, CloseCode) else answer(self, given)

    def _no_transition(self, what: str | Happening) -> list[Action]:
        if self.phase is Phase.CLOSED or isinstance(what, Happening):
            return []
        if self.phase is Phase.WAITING:
            return [self.error("unauthenticated", "send auth first")]
        return [self.error("unknown_op", f"unknown op {what[:40]!r}")]

    def _welcome(self, _: None) -> list[Action]:
        welcome = {
            "op": "welcome",
            "session": self.id,
            "heartbeat_seconds": self._limits.heartbeat_seconds,
            "limits": {"topics": self._limits.topics, "frame_bytes": self._limits.frame_bytes},
        }
        return [Send(frames.encode(welcome))]

    def _bad_frame(self, _: None) -> list[Action]:
        return [self.error("bad_frame", "expected a JSON object with an op")]

    def _pong(self, _: dict[str, Any]) -> list[Action]:
        return [Send('{"op":"pong"}')]

    def _auth(self, frame: dict[str, Any]) -> list[Action]:
        token = frame.get("token")
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
        plan: dict[str, Cursor | None] = {}
        try:
            for topic, cursor in asked.items():
                if cursor is not None and not isinstance(cursor, str):
                    return [self.error("bad_frame", "a cursor is a string or null")]
                plan[check_topic(topic)] = None if cursor is None else Cursor.parse(cursor)
        except InvalidInput as error:
            return [self.error(error.code, str(error))]
        if len(self.topics | plan.keys()) > self._limits.topics:
            return [self.error("too_many_topics", f"at most {self._limits.topics} topics")]
        self.topics |= plan.keys()
        return [Subscribe(plan, history)]

    def _unsubscribe(self, frame: dict[str, Any]) -> list[Action]:
        asked = frame.get("topics")
        if not isinstance(asked, list):
            return [self.error("bad_frame", "unsubscribe needs topics: a list")]
        known = [topic for topic in asked if isinstance(topic, str) and topic in self.topics]
        self.topics.difference_update(known)
        return [Unsubscribe(known)] if known else []


Answer = CloseCode | Callable[[Session, Any], list[Action]]
TRANSITIONS: Mapping[tuple[Phase, str | Happening], tuple[Phase, Answer]] = {
    (Phase.WAITING, "auth"): (Phase.WAITING, Session._auth),
    (Phase.WAITING, Happening.ACCEPTED): (Phase.OPEN, Session._welcome),
    (Phase.WAITING, Happening.REFUSED): (Phase.CLOSED, CloseCode.UNAUTHENTICATED),
    (Phase.WAITING, Happening.EXPIRED): (Phase.CLOSED, CloseCode.EXPIRED),
    (Phase.WAITING, Happening.NO_AUTH): (Phase.CLOSED, CloseCode.AUTH_TIMEOUT),
    (Phase.WAITING, Happening.BAD_FRAME): (Phase.WAITING, Session._bad_frame),
    (Phase.WAITING, Happening.TOO_MANY_BAD_FRAMES): (Phase.CLOSED, CloseCode.BAD_FRAME),
    (Phase.WAITING, Happening.TOO_BIG_FRAME): (Phase.CLOSED, CloseCode.TOO_BIG),
    (Phase.OPEN, "auth"): (Phase.OPEN, Session._auth),
    (Phase.OPEN, "subscribe"): (Phase.OPEN, Session._subscribe),
    (Phase.OPEN, "unsubscribe"): (Phase.OPEN, Session._unsubscribe),
    (Phase.OPEN, "ping"): (Phase.OPEN, Session._pong),
    (Phase.OPEN, Happening.REFUSED): (Phase.CLOSED, CloseCode.UNAUTHENTICATED),
    (Phase.OPEN, Happening.EXPIRED): (Phase.CLOSED, CloseCode.EXPIRED),
    (Phase.OPEN, Happening.BAD_FRAME): (Phase.OPEN, Session._bad_frame),
    (Phase.OPEN, Happening.TOO_MANY_BAD_FRAMES): (Phase.CLOSED, CloseCode.BAD_FRAME),
    (Phase.OPEN, Happening.TOO_BIG_FRAME): (Phase.CLOSED, CloseCode.TOO_BIG),
}
"""What a session does, by its phase and by the op or the happening it takes in.

What is not here leaves the phase as it is: a happening has no answer (a
refresh was accepted, the time for auth is over but auth was there), an op has
an ``error``: ``unauthenticated`` while waiting, ``unknown_op`` when open.
Nothing leads out of CLOSED, and nothing is answered there.
"""
