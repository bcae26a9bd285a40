"""The settings, from environment variables and keywords. Every number names its unit."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from semantik_realtime.core.limits import (
    COMPAT_HISTORY,
    LEASE_SECONDS,
    MAX_EVENT_BYTES,
    MAX_HISTORY,
    MAX_KEYS,
    MAX_READ_BYTES,
    MAX_TOPICS,
    MAX_UNAUTHENTICATED,
    QUEUED_SECONDS,
    RETENTION_EVENTS,
    SINK_EVENTS,
    SPOOL_BYTES,
    SPOOL_DRAFTS,
)
from semantik_realtime.core.retention import Retention
from semantik_realtime.core.secrets import read_secrets, secret_fault
from semantik_realtime.core.variables import check_paths, check_words, split_list, split_pairs
from semantik_realtime.errors import ConfigError

PREFIX = "SEMANTIK_REALTIME_"
DEVELOPMENT = frozenset({"dev", "development", "local", "test", "testing"})
"""Values of ``environment``, in lower case, that allow ``disable_auth``."""

CLIENT_VARIABLES = frozenset({"WS", "TOKEN"})
"""Variables of the command line, without the prefix. They are no settings."""
UnsetIfEmpty = BeforeValidator(lambda value: value or None)
"""An empty variable counts as unset, because Compose files pass on variables that are not set."""
Names = Annotated[list[str], NoDecode, BeforeValidator(split_list)]
Paths = Annotated[Names, AfterValidator(check_paths)]
Pairs = Annotated[
    dict[str, str], NoDecode, BeforeValidator(split_pairs), AfterValidator(check_words)
]


class Settings(BaseSettings):
    """All settings. Frozen.

    Each is read from ``SEMANTIK_REALTIME_<NAME>`` and from the further
    variables that its description names; a keyword comes before them. No file
    is read: the command that starts the process loads a ``.env``.
    """

    model_config = SettingsConfigDict(
        # An unknown keyword is refused. (Variables of the environment are not checked by this.)
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
    )

    backend: str = Field("redis", description="Name of the backend's entry point.")
    url: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "URL", "REDIS_URL"),
        repr=False,
        description="URL of the backend's server; also read from REDIS_URL. Unset: the backend's "
        "own default, for Redis redis://localhost:6379/0. Sentinels: "
        "redis+sentinel://host,host/NAME/0; a cluster: the URL of any node, or "
        "redis+cluster://host,host.",
    )
    prefix: str = Field(
        "semantik",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="The first part of every key in the backend.",
    )
    retention_events: int = Field(
        RETENTION_EVENTS, ge=1, le=1_000_000, description="Events that a topic's log keeps."
    )
    retention_seconds: float = Field(
        86_400, gt=0, description="Seconds that a topic is kept after its last event."
    )
    open_seconds: float = Field(
        30 * 86_400,
        gt=0,
        description="Seconds that a job's topic is kept instead while the job has not ended, after "
        "its last event or after the time it waits for.",
    )
    grace_seconds: float = Field(
        3600, gt=0, description="Seconds that a job's topic is kept after the job has ended."
    )
    max_keys: int = Field(
        MAX_KEYS,
        ge=1,
        description="States that a topic keeps; those of ended jobs are dropped first.",
    )
    max_event_bytes: int = Field(
        MAX_EVENT_BYTES, ge=256, description="Largest encoded event, in bytes."
    )
    max_read_bytes: int = Field(
        MAX_READ_BYTES,
        ge=1024,
        description="Most bytes of the events that one answer has: a replay, the history beside a "
        "snapshot, or a page of the history.",
    )
    timeout_seconds: float = Field(
        5.0, gt=0, description="Deadline of one call to the backend, in seconds."
    )

    mirror: bool = Field(True, description="Whether events are emitted for every Celery task.")
    mirror_tasks: Names = Field(
        [],
        description="Patterns of the names of the tasks that are mirrored, separated by commas: "
        "`docs.*,!docs.clean`. With `!`: those that are not. Empty: all.",
    )
    mirror_updates: bool = Field(True, description="Whether `update_state` is mirrored.")
    mirror_tqdm: bool = Field(True, description="Whether the bars of tqdm are.")
    mirror_workflows: bool = Field(
        True,
        description="Whether a canvas (group, chain, chord) that a process publishes with "
        "Celery's own calls is one job. If not, each of its tasks is one.",
    )
    mirror_logs: str = Field(
        "off",
        pattern=r"^(?i:off|debug|info|warning|error|critical)$",
        description="The lowest level of a task's log records that are sent to the watchers of its "
        "job, for example `INFO`. Records may have arguments and secrets in them: off.",
    )
    beat_owner: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        description="Owner of the jobs that `celery beat` starts, unless their entry names one.",
    )
    progress_seconds: float = Field(
        0.1, ge=0, description="Shortest time between two progress events of a job, in seconds."
    )
    feed_seconds: float = Field(
        0.5, ge=0, description="The same in the feed of the job's owner, in seconds."
    )
    cancel_signal: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        pattern=r"^SIG[A-Z0-9]{2,10}$",
        description="Signal that ends the process of a running task when its job is cancelled, for "
        "example SIGTERM (prefork only). Unset: the task runs on until it asks.",
    )
    flush_seconds: float = Field(
        2.0, ge=0, description="How long a process that ends waits for its last events, in seconds."
    )
    spool_drafts: int = Field(
        SPOOL_DRAFTS, ge=1, description="Events that a process keeps while it cannot send them."
    )
    spool_bytes: int = Field(SPOOL_BYTES, ge=2**16, description="Most bytes of those events.")
    spool_directory: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        description="Directory where unsent events are stored too; unset: in memory only.",
    )
    lease_seconds: float = Field(
        LEASE_SECONDS,
        ge=1,
        description="Seconds after which a job is lost whose process was killed or does not run. "
        "The same for workers and web servers.",
    )
    queued_seconds: float = Field(
        QUEUED_SECONDS,
        gt=0,
        description="Seconds that a job may wait for a worker, from its ETA if it has one, before "
        "a server that shows it calls it lost.",
    )
    sink_events: int = Field(
        SINK_EVENTS, ge=1, description="Events in the queue of a sink; beyond, the oldest are lost."
    )
    run_sinks: bool = Field(True, description="Whether web servers run the application's sinks.")
    worker_metrics: Annotated[str | None, UnsetIfEmpty] = Field(
        None,
        pattern=r"^\S+:\d{1,5}$",
        description="host:port of a worker's metrics, without a credential; unset: it has none.",
    )

    path: str = Field("/realtime", pattern=r"^/", description="Path of the routes.")
    compat_path: Paths = Field(
        ["/ws/jobs/{job_id}"],
        description="Path templates of the compatibility wire for a job, separated by commas; the "
        "parameter may have any name. Empty: not served.",
    )
    compat_feed_path: Paths = Field(
        [],
        description="Paths of the compatibility wire for a user's own feed, separated by commas. "
        "Empty: not served.",
    )
    compat_history: int = Field(
        COMPAT_HISTORY,
        ge=0,
        le=MAX_HISTORY,
        description="Messages of history that a client of the compatibility wire gets after the "
        "states. 0: none, also after a reconnect.",
    )
    host_words: Pairs = Field(
        {},
        description="Your own names of a job's types and statuses, for example "
        "`operation_completed=job_completed,processing=running`: accepted from `publish` and "
        "`recall`, and shown by the compatibility wire.",
    )
    jwt_secret: Annotated[SecretStr | None, UnsetIfEmpty] = Field(
        None,
        validation_alias=AliasChoices(PREFIX + "JWT_SECRET", "JWT_SECRET_KEY"),
        description="Key of HMAC-signed tokens, of 32 bytes or more (48 for HS384, 64 for HS512); "
        "also read from JWT_SECRET_KEY.",
    )
    jwt_jwks_url: Annotated[str | None, UnsetIfEmpty] = Field(
        None, repr=False, description="URL of the public keys that verify tokens."
    )
    jwt_algorithms: Names = Field(
        ["HS256"], description="Accepted algorithms, separated by commas."
    )
    jwt_audience: str | None = Field(None, description="Expected claim aud; unset: not checked.")
    jwt_issuer: str | None = Field(None, description="Expected claim iss; unset: not checked.")
    jwt_user_claim: str = Field("sub", description="The claim that has the user's id.")
    topic_secrets: Annotated[SecretStr | None, UnsetIfEmpty] = Field(
        None,
        description="Secrets of tokens for one topic (`token_for`), of 32 bytes or more, separated "
        "by commas: the first one signs, all are accepted. Unset: there are no such tokens.",
    )
    token_cookie: str = Field(
        "access_token",
        pattern=r"^[^\s;,=\"]+$",
        description="The cookie that has the token, with or without `Bearer ` in front of it.",
    )
    allowed_origins: Names = Field(
        [],
        description="Origins of pages that may connect beside the server's own, separated by "
        "commas. * allows all.",
    )
    disable_auth: bool = Field(
        False,
        validation_alias=AliasChoices(PREFIX + "DISABLE_AUTH", "DISABLE_AUTH"),
        description="Everyone may watch everything, in development only; also read from "
        "DISABLE_AUTH.",
    )
    environment: str = Field(
        "production",
        validation_alias=AliasChoices(PREFIX + "ENVIRONMENT", "ENVIRONMENT"),
        description="development, test or production; also read from ENVIRONMENT.",
    )
    max_connections: int = Field(
        10, ge=1, description="Connections that a user may have at once, over all servers."
    )
    max_viewers: int = Field(
        100, ge=1, description="Those of all tokens for one topic (`token_for`)."
    )
    max_unauthenticated: int = Field(
        MAX_UNAUTHENTICATED,
        ge=1,
        description="WebSockets of a server process that may wait for their first frame `auth` for "
        "longer than a second; then the oldest end, of the address that has most.",
    )
    auth_frame: bool = Field(
        True,
        description="Whether a WebSocket may send its credential in its first frame. If not, a "
        "handshake without one is refused with HTTP 401.",
    )
    max_topics: int = Field(MAX_TOPICS, ge=1, description="Topics that a connection may watch.")
    heartbeat_seconds: float = Field(
        20.0, gt=0, description="Time between two heartbeats, in seconds."
    )
    tops_seconds: float = Field(
        10.0, gt=0, description="Time between two checks for missed events, in seconds."
    )
    recall_seconds: float = Field(
        20.0,
        gt=0,
        description="Time between two reads of the host's record while the backend is away, in "
        "seconds; varied by 15 %.",
    )
    degraded_is_ready: bool = Field(
        True, description="Whether the health route answers ready while the backend is away."
    )
    metrics_token: Annotated[SecretStr | None, UnsetIfEmpty] = Field(
        None, description="Bearer token that reads the metrics; unset: nobody can read them."
    )

    @model_validator(mode="before")
    @classmethod
    def _prefer_keywords(cls, values: dict[str, object]) -> dict[str, object]:
        # A keyword has the field's name, a variable may have an alias. pydantic-settings before
        # 2.12 passes on both, and the alias would be an unknown keyword.
        for name in values.keys() & cls.model_fields.keys():
            alias = cls.model_fields[name].validation_alias
            for choice in alias.choices if isinstance(alias, AliasChoices) else ():
                values.pop(str(choice), None)
        return values

    @property
    def spool_path(self) -> Path | None:
        """The directory of unsent events for this prefix; None: in memory only.

        Whatever the backend: when the topics were moved to another one, so that one gets them.
        """
        if self.spool_directory is None:
            return None
        # A process with the topics in its own memory must not take what others wait to send.
        own = f"memory-{self.prefix}" if self.backend == "memory" else self.prefix
        return Path(self.spool_directory, own)

    @property
    def retention(self) -> Retention:
        """How long a topic is kept; while its job has not ended, never for less than a feed."""
        open_seconds = max(self.open_seconds, self.retention_seconds)
        return Retention(self.retention_seconds, self.grace_seconds, open_seconds)

    @property
    def is_development(self) -> bool:
        """Whether ``environment`` is one of `DEVELOPMENT`."""
        return self.environment.lower() in DEVELOPMENT

    @property
    def topic_secret_list(self) -> list[str]:
        """Those of ``topic_secrets``. ConfigError: as `semantik_realtime.core.topic_token`."""
        return read_secrets(self.topic_secrets.get_secret_value()) if self.topic_secrets else []

    @property
    def secret_fault(self) -> str:
        """A sentence about a secret that can be guessed from one token; empty: it cannot be."""
        if self.jwt_secret is None or self.jwt_jwks_url:
            return ""
        return secret_fault(self.jwt_secret.get_secret_value(), self.jwt_algorithms)


def load_settings(**given: object) -> Settings:
    """Return the settings: keywords first, then environment variables, then defaults.

    Raises:
        ConfigError: the message names every wrong variable and its fault.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = "; ".join(
            f"{_variable(str(fault['loc'][0]))}: {fault['msg']}" for fault in error.errors()
        )
        # Not chained: pydantic's error shows the values, and one of them may be a secret.
        raise ConfigError(f"wrong settings: {faults}") from None


def unknown_variables(
    names: Iterable[str], plugins: Mapping[str, Collection[str] | None]
) -> dict[str, str]:
    """Return the names that begin like a setting's but are none, each with the nearest setting.

    ``plugins`` has the names of backends and plugins with the variables of
    their settings, or None for one that does not name them: all that begin
    with its name are allowed. If no setting resembles it the nearest one is empty.

    >>> unknown_variables(["SEMANTIK_REALTIME_RETENSION_SECONDS", "REDIS_URL"], {})
    {'SEMANTIK_REALTIME_RETENSION_SECONDS': 'SEMANTIK_REALTIME_RETENTION_SECONDS'}
    """
    known = {name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    allowed = []
    for plugin, variables in plugins.items():
        if variables is None:
            allowed.append(f"{plugin.upper().replace('-', '_')}_")
        else:
            known |= {variable.upper().removeprefix(PREFIX) for variable in variables}
    unknown = {}
    for variable in sorted(names):
        # Not case-sensitive, as the settings are.
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper() != name and name not in known and not name.startswith(tuple(allowed)):
            near = difflib.get_close_matches(name, sorted(known), 1)
            unknown[variable] = PREFIX + near[0] if near else ""
    return unknown


def variables_of(settings: type[BaseSettings]) -> set[str]:
    """Return the variables that a class of settings reads: those of its fields and aliases."""
    prefix = settings.model_config.get("env_prefix", "")
    variables = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or prefix + name]
        variables |= {choice for choice in choices if isinstance(choice, str)}
    return variables


def _variable(place: str) -> str:
    # pydantic reports a field with aliases by the first of them, and others by their name.
    return place if place.startswith(PREFIX) else PREFIX + place.upper()
