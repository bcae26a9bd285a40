"""Where the servers are, what we say to them, and what our things are called there."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

import msgspec
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from semantik_realtime.config import Settings, split_list
from semantik_realtime.errors import ConfigError

DEFAULT_URL = "nats://localhost:4222"
SCHEMES = ("nats", "tls", "ws", "wss")
MOST_KEYS = 10_000
"""What the fence knows of a topic must fit in one message: 60 bytes a job of a feed, 600 kB of
the 1 MB that a server takes by default."""


class NatsSettings(BaseSettings):
    """What only this backend needs, each read from ``SEMANTIK_REALTIME_NATS_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="SEMANTIK_REALTIME_NATS_", extra="ignore", frozen=True
    )

    stream: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Name of the stream; unset: made of the prefix.",
    )
    replicas: int = Field(1, ge=1, le=5, description="Replicas of the stream, if we create it.")
    credentials: str | None = Field(None, description="Path of a credentials file (.creds).")
    nkey_seed: str | None = Field(None, description="Path of a file with an nkey seed.")
    tls_ca: str | None = Field(None, description="Path of the authority's certificate.")
    tls_cert: str | None = Field(None, description="Path of our certificate.")
    tls_key: str | None = Field(None, description="Path of its key.")


class Access(msgspec.Struct, frozen=True):
    """How to get to the servers."""

    urls: list[str]
    options: dict[str, Any]
    """Keyword arguments of nats-py's ``connect``."""


def load_nats_settings() -> NatsSettings:
    """Settings from the environment.

    Raises:
        ConfigError: naming every wrong variable.
    """
    try:
        return NatsSettings()
    except ValidationError as error:
        faults = "; ".join(
            f"SEMANTIK_REALTIME_NATS_{str(fault['loc'][0]).upper()}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigError(f"wrong settings: {faults}") from error


def plan_access(url: str | None, own: NatsSettings) -> Access:
    """Several URLs are separated by commas.

    Raises:
        ConfigError: one is not NATS', or a file cannot be read.
    """
    urls = split_list(url or DEFAULT_URL)
    assert isinstance(urls, list)
    for one in urls:
        scheme, mark, _ = one.partition("://")
        if not mark or scheme not in SCHEMES:
            raise ConfigError(
                f"the nats backend needs a URL like {DEFAULT_URL}, got one that begins with "
                f"{scheme[:10]!r} (set SEMANTIK_REALTIME_URL; unset, REDIS_URL is read)"
            )
    options: dict[str, Any] = {}
    if own.credentials:
        options["user_credentials"] = own.credentials
    if own.nkey_seed:
        options["nkeys_seed"] = own.nkey_seed
    for path in (own.credentials, own.nkey_seed):
        if path is not None:
            _check_readable(path)
    if own.tls_ca or own.tls_cert:
        try:
            context = ssl.create_default_context(cafile=own.tls_ca)
            if own.tls_cert:
                context.load_cert_chain(own.tls_cert, own.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"SEMANTIK_REALTIME_NATS_TLS_CA, _TLS_CERT or _TLS_KEY cannot be read: {error}"
            ) from error
        options["tls"] = context
    return Access(urls, options)


def check_keys(max_keys: int) -> None:
    """
    Raises:
        ConfigError: a topic could not hold so many.
    """
    if max_keys > MOST_KEYS:
        raise ConfigError(
            f"SEMANTIK_REALTIME_MAX_KEYS: the nats backend keeps at most {MOST_KEYS} states a "
            f"topic, got {max_keys}"
        )


def _check_readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"the credentials cannot be read: {error}") from error


class Names:
    """Subjects and the stream's name."""

    def __init__(self, settings: Settings, own: NatsSettings) -> None:
        # A dot separates the tokens of a subject. None of our names has a slash.
        self._prefix = settings.prefix.replace(".", "/")
        self.stream = own.stream or settings.prefix.replace(".", "_")

    def config(self, replicas: int) -> dict[str, Any]:
        """The stream, as we create it."""
        return {
            "name": self.stream,
            "num_replicas": replicas,
            "storage": "file",
            **self.needed_config(),
        }

    def needed_config(self) -> dict[str, Any]:
        """What must be so in a stream that we find."""
        return {
            "subjects": [f"{self._prefix}.topic.>", f"{self._prefix}.lease.*"],
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "retention": "limits",
            # What we need is ours to remove. A stream that is full takes no more.
            "discard": "new",
            "max_age": 0,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "republish": {
                "src": self.log_of("*"),
                "dest": self.live_of("{{wildcard(1)}}"),
            },
        }

    def log(self, topic: str) -> str:
        return self.log_of(_token(topic))

    def log_of(self, token: str) -> str:
        """The log's subject of a topic's token, ``*``: of all."""
        return f"{self._prefix}.topic.{token}.log"

    def base(self, topic: str) -> str:
        return f"{self._prefix}.topic.{_token(topic)}.base"

    def state(self, topic: str, key: str) -> str:
        return f"{self._prefix}.topic.{_token(topic)}.state.{_digest(key)}"

    def all_of(self, topic: str) -> str:
        """Whatever belongs to a topic."""
        return f"{self._prefix}.topic.{_token(topic)}.>"

    def live(self, topic: str) -> str:
        return self.live_of(_token(topic))

    def live_of(self, token: str) -> str:
        """Where the log of a topic's token is republished, ``>``: of all."""
        return f"{self._prefix}.live.{token}"

    def lease(self, name: str) -> str:
        return f"{self._prefix}.lease.{_digest(name)}"


def _token(topic: str) -> str:
    return topic.replace(".", "/")


def _digest(name: str) -> str:
    # A key may be any text, a subject not.
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
