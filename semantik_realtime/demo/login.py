"""Passwords, session tokens, and a limit on failed logins."""

import base64
import hashlib
import hmac
import os
import time
from collections import OrderedDict

import jwt

COOKIE = "access_token"

_SCRYPT_COST = 2**14


def hash_password(password: str) -> str:
    """Return ``salt$digest`` by scrypt; takes about 50 ms and 16 MiB, to slow down guessing."""
    salt = os.urandom(16)
    return f"{_text(salt)}${_text(_derive(password, salt))}"


def is_password(password: str, hashed: str | None) -> bool:
    """Return True if the password is right; None (unknown user) takes as long, and is False."""
    salt, _, digest = (hashed or f"{_text(bytes(16))}$").partition("$")
    derived = _text(_derive(password, base64.b64decode(salt)))
    return hmac.compare_digest(derived, digest)


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_SCRYPT_COST, r=8, p=1, dklen=32)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def issue_token(user_id: int, secret: str, lifetime_seconds: int) -> str:
    """Return a session token: a JWT signed with HS256."""
    now = int(time.time())
    claims = {"sub": str(user_id), "iat": now, "exp": now + lifetime_seconds}
    return jwt.encode(claims, secret, algorithm="HS256")


def read_token(token: str, secret: str) -> tuple[int, float] | None:
    """Return the user's id and the remaining lifetime in seconds, or None if not valid."""
    try:
        claims = jwt.decode(
            token, secret, algorithms=["HS256"], options={"require": ["sub", "exp"]}
        )
        return int(claims["sub"]), claims["exp"] - time.time()
    except (jwt.InvalidTokenError, ValueError):
        return None


class FailedLogins:
    """Limits the failed logins per source, a pair of user name and address, in this process.

    All times are seconds of one clock, passed by the caller.
    """

    def __init__(self, limit: int = 5, window_seconds: float = 60.0, max_sources: int = 10_000):
        self._limit = limit
        self._window_seconds = window_seconds
        self._max_sources = max_sources
        self._failed_at: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        """Times of the last ``limit`` failures, or one more, by source; the oldest source first."""

    def wait_seconds(self, source: tuple[str, str], now: float) -> float:
        """Return the time until the next login is allowed; 0 if it is allowed now."""
        recent = [at for at in self._failed_at.get(source, ()) if now - at < self._window_seconds]
        if len(recent) < self._limit:
            return 0.0
        return recent[-self._limit] + self._window_seconds - now

    def add(self, source: tuple[str, str], now: float) -> None:
        failed_at = self._failed_at.pop(source, [])
        self._failed_at[source] = [*failed_at[-self._limit :], now]
        if len(self._failed_at) > self._max_sources:
            self._failed_at.popitem(last=False)

    def clear(self, source: tuple[str, str]) -> None:
        self._failed_at.pop(source, None)
