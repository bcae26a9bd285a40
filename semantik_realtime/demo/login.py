"""Passwords, session tokens, and a limit on failed logins."""

import base64
import hashlib
import hmac
import os
import threading
import time
from collections import OrderedDict

import jwt

from semantik_realtime.demo.records import MAX_ID

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
        user_id = int(claims["sub"])
        left_seconds = claims["exp"] - time.time()
    except (jwt.InvalidTokenError, ValueError, OverflowError):
        return None
    return (user_id, left_seconds) if 0 < user_id <= MAX_ID else None


class LoginAttempts:
    """Limits the failed logins per source, a pair of user name and address, in this process.

    An attempt is counted before its password is checked, so that a burst of
    requests gets no more guesses; a successful login clears the count. For use
    from any thread. All times are seconds of one clock, passed by the caller.
    """

    def __init__(self, limit: int = 5, window_seconds: float = 60.0, max_sources: int = 10_000):
        self._limit = limit
        self._window_seconds = window_seconds
        self._max_sources = max_sources
        self._lock = threading.Lock()
        self._admitted_at: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        """Times of at most ``limit`` attempts by source, the source that tried last at the end.
        Removed by a successful login, and at the start when there are too many sources."""

    def admit(self, source: tuple[str, str], now: float) -> float:
        """Count an attempt and return 0; or return the seconds until one is allowed."""
        with self._lock:
            admitted_at = self._admitted_at.pop(source, [])
            recent = [at for at in admitted_at if now - at < self._window_seconds]
            wait_seconds = 0.0
            if len(recent) < self._limit:
                recent.append(now)
            else:
                wait_seconds = recent[0] + self._window_seconds - now
            self._admitted_at[source] = recent
            if len(self._admitted_at) > self._max_sources:
                self._admitted_at.popitem(last=False)
            return wait_seconds

    def clear(self, source: tuple[str, str]) -> None:
        with self._lock:
            self._admitted_at.pop(source, None)
