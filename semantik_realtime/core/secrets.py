"""Secrets that sign tokens, and how long they have to be."""

from __future__ import annotations

from collections.abc import Sequence

from semantik_realtime.errors import ConfigError

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The shortest key of each symmetric algorithm, by RFC 7518, section 3.2."""


def secret_fault(secret: str, algorithms: Sequence[str]) -> str:
    """Return a sentence about a secret that can be guessed from one token; empty: it cannot be.

    >>> secret_fault("short", ["RS256"])
    ''
    """
    length = len(secret.encode())
    short = [name for name in algorithms if length < SECRET_BYTES.get(name, 0)]
    if not short:
        return ""
    name = max(short, key=SECRET_BYTES.__getitem__)
    return (
        f"SEMANTIK_REALTIME_JWT_SECRET is shorter than the {SECRET_BYTES[name]} bytes that "
        f"{name} needs (RFC 7518)"
    )


def read_secrets(text: str) -> list[str]:
    """Return the secrets of tokens for one topic, separated by commas; the first one signs.

    Raises:
        ConfigError: one is too short.
    """
    secrets = [secret.strip() for secret in text.split(",") if secret.strip()]
    if any(len(secret.encode()) < SECRET_BYTES["HS256"] for secret in secrets):
        raise ConfigError(
            f"SEMANTIK_REALTIME_TOPIC_SECRETS: each secret has {SECRET_BYTES['HS256']} bytes or "
            "more; who has one token can guess a shorter one, and make others"
        )
    return secrets
