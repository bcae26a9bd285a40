"""The settings of this backend, and the file's path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from semantik_realtime.errors import ConfigError

PREFIX = "SEMANTIK_REALTIME_SQLITE_"
SCHEME = "sqlite:///"


class SqliteSettings(BaseSettings):
    """What only this backend needs, each read from ``SEMANTIK_REALTIME_SQLITE_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    poll_seconds: float = Field(
        0.02,
        ge=0.001,
        le=10,
        description="How often a reader polls the file for new events: their longest latency.",
    )
    synchronous: Literal["normal", "full"] = Field(
        "normal",
        description="full: an event is on the disk before it is acknowledged. normal: a power "
        "failure may lose the newest events; a crash of a process loses none.",
    )


def load_sqlite_settings() -> SqliteSettings:
    """Read the settings from the environment.

    Raises:
        ConfigError: the message names every wrong variable.
    """
    try:
        return SqliteSettings()
    except ValidationError as error:
        faults = "; ".join(
            f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()
        )
        # Not chained: pydantic's error shows the values.
        raise ConfigError(f"wrong settings: {faults}") from None


def path_of(url: str | None) -> Path:
    """Return the path in a URL such as ``sqlite:////var/lib/app/realtime.db``.

    Raises:
        ConfigError: it is no such URL. The message does not repeat the URL, which may be that
            of Redis (from REDIS_URL) with its password.
    """
    path = Path((url or "").removeprefix(SCHEME))
    if not (url or "").startswith(SCHEME) or not path.is_absolute():
        raise ConfigError(
            "the sqlite backend needs the absolute path of its file: set SEMANTIK_REALTIME_URL "
            "to something like sqlite:////var/lib/app/realtime.db (unset, REDIS_URL is read)"
        )
    return path
