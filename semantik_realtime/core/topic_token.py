"""Tokens that allow to watch one topic, and nothing else (docs/security.md)."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence

import jwt
import msgspec

from semantik_realtime.core.topic import check_topic, name_topic, plain_id
from semantik_realtime.errors import AccessError, InvalidInput, TopicError

PREFIX = "rt-topic."
"""What every token begins with; no JWT does."""
MAX_SECONDS = 86_400.0
DEFAULT_SECONDS = 900.0
_ALGORITHM = "HS256"
# So that no JWT of the host is one, whatever its claims and its secret.
_AUDIENCE = "semantik-realtime:topic"
# No user's id has a control character (`plain_id`).
_MARK = "\x1f"


class Viewer(msgspec.Struct, frozen=True):
    """Who has a token: anybody who may watch ``topic``.

    ``owner_digest`` is that of the topic's owner when the token was made; empty: any owner.
    """

    topic: str
    owner_digest: str = ""

    @property
    def user(self) -> str:
        """The viewer as the id of a user, which no user has.

        >>> Viewer.of(Viewer("job:1", "ab").user)
        Viewer(topic='job:1', owner_digest='ab')
        """
        return f"{_MARK}{self.topic}{_MARK}{self.owner_digest}"

    @classmethod
    def of(cls, user: str) -> Viewer | None:
        """Return the viewer whose id ``user`` is; None: it is a user's.

        >>> Viewer.of("7")
        """
        if not user.startswith(_MARK):
            return None
        _, topic, digest = user.split(_MARK)
        return cls(topic, digest)

    def may_watch(self, topic: str, owner: str | None, secrets: Sequence[str]) -> bool:
        """Return True if ``topic`` is the viewer's, and still of the owner that it was of."""
        if topic != self.topic:
            return False
        if not self.owner_digest:
            return True
        return owner is not None and any(
            hmac.compare_digest(self.owner_digest, digest_owner(topic, owner, secret))
            for secret in secrets
        )


def is_same_user(one: str, other: str) -> bool:
    """Return True if two ids are of one user, or of viewers of one topic.

    >>> is_same_user(Viewer("job:1", "ab").user, Viewer("job:1").user), is_same_user("1", "2")
    (True, False)
    """
    first, second = Viewer.of(one), Viewer.of(other)
    if first is None or second is None:
        return one == other
    return first.topic == second.topic


def digest_owner(topic: str, owner: str, secret: str) -> str:
    """Return a keyed digest of an owner. The id itself is never shown."""
    text = f"{topic}{_MARK}{owner}".encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()[:32]


def make_token(
    topic: object, secret: str, now: float, *, owner: object = None, seconds: float
) -> str:
    """Return a token that allows to watch ``topic`` until ``now`` + ``seconds``.

    Args:
        topic: its name, such as ``job:42``.
        secret: signs it; as `semantik_realtime.core.secrets.read_secrets` returns them.
        now: in seconds since 1970.
        owner: the id of the topic's owner; the token ends with the ownership. None: whoever
            owns the topic.
        seconds: 1 to `MAX_SECONDS`.

    Raises:
        TopicError: there is no such topic, or no such owner.
        InvalidInput: ``seconds`` is outside its range.
    """
    name = name_topic(topic)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidInput(f"seconds is a number, not {type(seconds).__name__}")
    if not 1 <= seconds <= MAX_SECONDS:
        raise InvalidInput(f"a token is valid for 1 to {MAX_SECONDS:.0f} seconds, not {seconds}")
    claims: dict[str, object] = {"topic": name, "exp": math.ceil(now + seconds), "aud": _AUDIENCE}
    if owner is not None:
        claims["owner"] = digest_owner(name, plain_id(owner), secret)
    return PREFIX + jwt.encode(claims, secret, _ALGORITHM)


def read_token(token: str, secrets: Sequence[str], now: float) -> tuple[Viewer, float]:
    """Return who a token's holder is, and when it expires, in seconds since 1970.

    Args:
        token: begins with `PREFIX`.
        secrets: one of them has signed it.
        now: in seconds since 1970.

    Raises:
        AccessError: ``unauthenticated``: none has, or it is no token; ``expired``.
    """
    for secret in secrets:
        try:
            claims = jwt.decode(
                token.removeprefix(PREFIX),
                secret,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={
                    # Compared with ``now`` below.
                    "verify_exp": False,
                    "require": ["exp", "topic", "aud"],
                },
            )
            viewer = Viewer(check_topic(claims["topic"]), str(claims.get("owner", "")))
            expires_at = float(claims["exp"])
        except (jwt.PyJWTError, TopicError, ValueError, TypeError, OverflowError, RecursionError):
            continue
        if expires_at <= now:
            raise AccessError("the token has expired", "expired")
        return viewer, expires_at
    raise AccessError("the token was not accepted", "unauthenticated")
