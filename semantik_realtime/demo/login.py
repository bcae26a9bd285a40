"""Who is asking: passwords, session tokens, a brake on guessing."""

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
    """Return ``salt$digest`` by scrypt; takes some 50 ms and 16 MiB, on purpose."""
    salt = os.urandom(16)
    return f"{_text(salt)}${_text(_derive(password, salt))}"


def is_password(password: str, hashed: str | None) -> bool:
    """Compare; without a hash (no such user) it takes as long and is false."""
    salt, _, digest = (hashed or f"{_text(bytes(16))}$").partition("$")
    derived = _text(_derive(password, base64.b64decode(salt)))
    return hmac.compare_digest(derived, digest)


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_SCRYPT_COST, r=8, p=1, dklen=32)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def issue_token(user_id: int, secret: str, lifetime_seconds: int) -> str:
    now = int(time.time())
    claims = {"sub": str(user_id), "iat": now, "exp": now + lifetime_seconds}
    return jwt.encode(claims, secret, algorithm="HS256")


def read_token(token: str, secret: str) -> tuple[int, float] | None:
    """Return the user's id and the seconds the token still has, or None if it is not valid."""
    try:
        claims = jwt.decode(
            token, secret, algorithms=["HS256"], options={"require": ["sub", "exp"]}
        )
        return int(claims["sub"]), claims["exp"] - time.time()
    except (jwt.InvalidTokenError, ValueError):
        return None


class Throttle:
    """Counts the failed logins of a name from an address, in this process."""

    def __init__(self, tries: int = 5, window_seconds: float = 60.0, max_entries: int = 10_000):
        self._tries = tries
        self._window_seconds = window_seconds
        self._max_entries = max_entries
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def wait_seconds(self, who: tuple[str, str], now: float) -> float:
        """Return how long to wait before the next try; 0 if it may be made now."""
        recent = [at for at in self._failures.get(who, ()) if now - at < self._window_seconds]
        if len(recent) < self._tries:
            return 0.0
        return recent[-self._tries] + self._window_seconds - now

    def fail(self, who: tuple[str, str], now: float) -> None:
        failures = self._failures.pop(who, [])
        self._failures[who] = [*failures[-self._tries :], now]
        if len(self._failures) > self._max_entries:
            self._failures.popitem(last=False)

    def forget(self, who: tuple[str, str]) -> None:
        self._failures.pop(who, None)
