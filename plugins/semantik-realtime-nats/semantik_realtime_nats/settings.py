"""The settings of this backend, and nats-py's options that follow from them."""

from __future__ import annotations

import ssl
from typing import Any

import msgspec
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from semantik_realtime.core.variables import split_list
from semantik_realtime.errors import ConfigError
from semantik_realtime.urls import find_fault, mask_urls

DEFAULT_URL = "nats://localhost:4222"
SCHEMES = ("nats", "tls", "ws", "wss")
MAX_KEYS_LIMIT = 10_000
"""A checkpoint must fit in one message: about 60 bytes for each job of a feed, so 600 kB of the
1 MB that a server accepts by default."""


class NatsSettings(BaseSettings):
    """What only this backend needs, each read from ``SEMANTIK_REALTIME_NATS_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="SEMANTIK_REALTIME_NATS_", extra="ignore", frozen=True
    )

    stream: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Name of the stream; unset: the prefix, with _ for each dot.",
    )
    replicas: int = Field(
        1, ge=1, le=5, description="Replicas of the stream when this backend creates it."
    )
    credentials: str | None = Field(None, description="Path of a credentials file (.creds).")
    nkey_seed: str | None = Field(None, description="Path of a file with an nkey seed.")
    tls_ca: str | None = Field(
        None,
        description="Path of the CA certificate that the server's is checked with; set, it "
        "requires TLS.",
    )
    tls_cert: str | None = Field(
        None, description="Path of the client certificate; set, it requires TLS."
    )
    tls_key: str | None = Field(None, description="Path of the client certificate's key.")


class ConnectOptions(msgspec.Struct, frozen=True):
    """The servers, and how to connect to one of them."""

    urls: list[str]
    arguments: dict[str, Any]
    """Keyword arguments of nats-py's ``connect``: credentials and TLS."""

    def requires_tls(self, url: str) -> bool:
        """Return True if nats-py must not send a credential to ``url`` before it uses TLS.

        False for ``wss``, which is encrypted from the first byte.
        """
        return url.startswith("tls://") or ("tls" in self.arguments and url.startswith("nats://"))


def load_nats_settings() -> NatsSettings:
    """Read the settings from the environment.

    Raises:
        ConfigError: the message names every wrong variable.
    """
    try:
        return NatsSettings()
    except ValidationError as error:
        faults = "; ".join(
            f"SEMANTIK_REALTIME_NATS_{str(fault['loc'][0]).upper()}: {fault['msg']}"
            for fault in error.errors()
        )
        # Not chained: pydantic's error shows the values.
        raise ConfigError(f"wrong settings: {faults}") from None


def plan_connect(url: str | None, nats_settings: NatsSettings) -> ConnectOptions:
    """Return the options to connect with. Reads the files that the settings name.

    Args:
        url: one URL or several, separated by commas; None: `DEFAULT_URL`.
        nats_settings: the paths of credentials and certificates.

    Raises:
        ConfigError: a URL is not one of NATS, or a file cannot be read. The message has no
            password.
    """
    urls = split_list(url or DEFAULT_URL)
    assert isinstance(urls, list)
    for one in urls:
        scheme, separator, _ = one.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ConfigError(
                f"the nats backend needs a URL like {DEFAULT_URL}, or several with commas between "
                f"them and none in a password, got {mask_urls(str(url))} (set "
                "SEMANTIK_REALTIME_URL; unset, REDIS_URL is read)"
            )
        if fault := find_fault(one):
            raise ConfigError(f"SEMANTIK_REALTIME_URL, {mask_urls(str(url))}: {fault}")
    arguments: dict[str, Any] = {}
    if nats_settings.credentials:
        arguments["user_credentials"] = nats_settings.credentials
    if nats_settings.nkey_seed:
        arguments["nkeys_seed"] = nats_settings.nkey_seed
    for path in (nats_settings.credentials, nats_settings.nkey_seed):
        if path is not None:
            _check_readable(path)
    if nats_settings.tls_ca or nats_settings.tls_cert:
        try:
            context = ssl.create_default_context(cafile=nats_settings.tls_ca)
            if nats_settings.tls_cert:
                context.load_cert_chain(nats_settings.tls_cert, nats_settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"SEMANTIK_REALTIME_NATS_TLS_CA, _TLS_CERT or _TLS_KEY cannot be read: {error}"
            ) from error
        arguments["tls"] = context
        if any(one.startswith("ws://") for one in urls):
            raise ConfigError(
                "SEMANTIK_REALTIME_NATS_TLS_CA and _TLS_CERT require TLS, and ws:// has none: use "
                "wss:// in SEMANTIK_REALTIME_URL"
            )
    return ConnectOptions(urls, arguments)


def check_max_keys(max_keys: int) -> None:
    """Check the setting ``max_keys``.

    Raises:
        ConfigError: a topic with so many keys has a checkpoint that fits in no message.
    """
    if max_keys > MAX_KEYS_LIMIT:
        raise ConfigError(
            f"SEMANTIK_REALTIME_MAX_KEYS: the nats backend keeps at most {MAX_KEYS_LIMIT} states "
            f"a topic, got {max_keys}"
        )


def _check_readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(
            f"SEMANTIK_REALTIME_NATS_CREDENTIALS or _NKEY_SEED cannot be read: {error}"
        ) from error
