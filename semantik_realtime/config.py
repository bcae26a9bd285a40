"""Settings, from the environment or by hand. Every field names its unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from semantik_realtime.core.limits import (
    MAX_EVENT_BYTES,
    MAX_KEYS,
    MAX_TOPICS,
    RETENTION_EVENTS,
    SPOOL_BYTES,
    SPOOL_DRAFTS,
)
from semantik_realtime.errors import ConfigError

PREFIX = "SEMANTIK_REALTIME_"
DEVELOPMENT = frozenset({"dev", "development", "local", "test", "testing"})


def split_list(value: object) -> object:
    """Items of a setting that may be written with commas.

    >>> split_list("HS256, RS256")
    ['HS256', 'RS256']
    """
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


UnsetIfEmpty = BeforeValidator(lambda value: value or None)
"""Compose files pass variables on that are set to nothing."""
Names = Annotated[list[str], NoDecode, BeforeValidator(split_list)]


class Settings(BaseSettings):
    """All settings.

    Each is read from ``SEMANTIK_REALTIME_<NAME>`` unless its description names
    further variables, and may be given by keyword.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, populate_by_name=True
    )

    backend: str = Field("redis", description="Name of the backend's entry point.")
    url: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "URL", "REDIS_URL"),
        repr=False,
        description="URL of the backend's server; also read from REDIS_URL.",
    )
    prefix: str = Field(
        "semantik", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Prefix of every key."
    )
    retention_events: int = Field(
        RETENTION_EVENTS, ge=1, le=1_000_000, description="Events that a topic keeps."
    )
    retention_seconds: float = Field(
        86_400, gt=0, description="How long a topic is kept after its last append."
    )
    grace_seconds: float = Field(
        3600, gt=0, description="How long a job's topic is kept after its end."
    )
    max_keys: int = Field(
        MAX_KEYS, ge=1, description="States that a topic keeps; those of ended jobs go first."
    )
    max_event_bytes: int = Field(
        MAX_EVENT_BYTES, ge=256, description="Size limit of an encoded event."
    )
    timeout_seconds: float = Field(5.0, gt=0, description="Deadline of one call to the backend.")

    mirror: bool = Field(True, description="Whether every Celery task is mirrored.")
    progress_seconds: float = Field(
        0.1, ge=0, description="Minimum interval between two progress events."
    )
    feed_seconds: float = Field(
        0.5, ge=0, description="The same for the progress of a job in its owner's feed."
    )
    flush_seconds: float = Field(
        2.0, ge=0, description="How long an ending task waits at most for its last event."
    )
    spool_drafts: int = Field(SPOOL_DRAFTS, ge=1, description="Drafts in the spool of a process.")
    spool_bytes: int = Field(SPOOL_BYTES, ge=2**16, description="Bytes in the spool of a process.")
    spool_directory: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        description="Directory that also keeps the spool, until it is sent; unset: memory only.",
    )
    worker_metrics: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        pattern=r"^\S+:\d{1,5}$",
        description="Address, host:port, at which a worker serves its metrics without a token; "
        "unset: it serves none.",
    )

    path: str = Field("/realtime", pattern=r"^/", description="Path of the routes.")
    compat_path: str = Field(
        "/ws/jobs/{job_id}",
        pattern=r"^(/.*)?$",
        description="Path template of the compatibility wire for a job, with one parameter of any "
        "name; empty: not served.",
    )
    compat_feed_path: str = Field(
        "",
        pattern=r"^(/.*)?$",
        description="Path of the compatibility wire for a user's own feed; empty: not served.",
    )
    jwt_secret: Annotated[SecretStr | None, UnsetIfEmpty] = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "JWT_SECRET", "JWT_SECRET_KEY"),
        description="Key of HMAC-signed tokens; also read from JWT_SECRET_KEY.",
    )
    jwt_jwks_url: Annotated[str | None, UnsetIfEmpty] = Field(
        None, description="URL of the public keys of tokens."
    )
    jwt_algorithms: Names = Field(
        ["HS256"], description="Accepted algorithms, separated by commas."
    )
    jwt_audience: str | None = Field(None, description="Expected aud; unset: not checked.")
    jwt_issuer: str | None = Field(None, description="Expected iss; unset: not checked.")
    jwt_user_claim: str = Field("sub", description="The claim with the user's id.")
    allowed_origins: Names = Field(
        [],
        description="Further origins whose pages may connect, separated by commas; * allows all.",
    )
    disable_auth: bool = Field(
        False,
        validation_alias=AliasChoices(PREFIX + "DISABLE_AUTH", "DISABLE_AUTH"),
        description="Let everyone watch everything, in development only; also read from "
        "DISABLE_AUTH.",
    )
    environment: str = Field(
        "production",
        validation_alias=AliasChoices(PREFIX + "ENVIRONMENT", "ENVIRONMENT"),
        description="development, test or production; also read from ENVIRONMENT.",
    )
    max_connections: int = Field(
        10, ge=1, description="Connections of a user at the same time, over all servers."
    )
    max_topics: int = Field(MAX_TOPICS, ge=1, description="Topics that a connection may watch.")
    heartbeat_seconds: float = Field(20.0, gt=0, description="Interval between two heartbeats.")
    tops_seconds: float = Field(
        10.0, gt=0, description="Interval between two checks for missed last events."
    )
    start_tries: int = Field(
        4,
        ge=1,
        description="Attempts to reach the backend, with pauses of 1, 2, 4… s, before a web server "
        "starts without it.",
    )
    recall_seconds: float = Field(
        20.0,
        gt=0,
        description="Interval between two calls of `recall` while the backend is away, varied by "
        "15 %.",
    )
    degraded_is_ready: bool = Field(
        True, description="Whether the health route is ready while the backend is away."
    )
    metrics_token: Annotated[SecretStr | None, UnsetIfEmpty] = Field(
        None, description="Token that a scrape of the metrics must send; unset: not served."
    )

    @property
    def spool_path(self) -> Path | None:
        """Where the processes of this backend and prefix keep what waits."""
        if self.spool_directory is None:
            return None
        return Path(self.spool_directory, f"{self.backend}-{self.prefix}")

    @property
    def is_development(self) -> bool:
        """Whether the environment says that this is nobody's real data."""
        return self.environment.lower() in DEVELOPMENT


def load_settings(**given: object) -> Settings:
    """Settings from the environment, ``given`` first.

    Raises:
        ConfigError: naming every wrong variable and what is wrong with it.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = "; ".join(
            f"{_variable(str(fault['loc'][0]))}: {fault['msg']}" for fault in error.errors()
        )
        # Not from the error: it shows the values, and one of them may be a secret.
        raise ConfigError(f"wrong settings: {faults}") from None


def _variable(place: str) -> str:
    # A field with further variables is reported by the first of them, others by their name.
    return place if place.startswith(PREFIX) else PREFIX + place.upper()
