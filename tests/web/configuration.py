"""Settings and credentials for the tests of the web side."""

from __future__ import annotations

import secrets
import time
from typing import Any

import jwt
from pydantic import SecretStr

from semantik_realtime.config import Settings

SECRET = "a secret of at least thirty-two bytes"


def token(user: object = "7", *, seconds: float = 600, **claims: Any) -> str:
    """Return a token of ``user`` that the settings of `make_settings` accept."""
    return jwt.encode({"sub": user, "exp": time.time() + seconds, **claims}, SECRET, "HS256")


def make_settings(url: str, **given: Any) -> Settings:
    """Return settings with a key prefix of their own; the rest is default, or ``given``."""
    given = {"jwt_secret": SECRET, "prefix": f"t{secrets.token_hex(5)}", **given}
    return Settings(url=url, **given)


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables of ``settings``, for another process."""
    values = settings.model_dump(exclude_defaults=True, mode="json")
    for name in values:
        if isinstance(value := getattr(settings, name), SecretStr):
            values[name] = value.get_secret_value()
    return {
        f"SEMANTIK_REALTIME_{name.upper()}": ",".join(value)
        if isinstance(value, list)
        else str(value)
        for name, value in values.items()
    }
