"""One authentication and one authorization for every route."""

from __future__ import annotations

import logging
import math
import time
from datetime import datetime
from typing import Any

import pluggy
from starlette.requests import HTTPConnection

from semantik_realtime.config import Settings
from semantik_realtime.core.topic import plain_id, split_topic
from semantik_realtime.core.topic_token import PREFIX, Viewer, read_token
from semantik_realtime.errors import AccessError, BackendUnavailable, ConfigError, InvalidInput
from semantik_realtime.hookspecs import NO_OPINION, Credentials, Identity
from semantik_realtime.web.host_hooks import ask_host
from semantik_realtime.web.origins import Origins
from semantik_realtime.web.tokens import CheckedIdentity, TokenRule

logger = logging.getLogger(__name__)

ANY_USER = "development"
"""The user id of every connection while authentication is switched off."""


class Access:
    """The rules of one application.

    A host with an ``authenticate`` hook decides who the user is; without one,
    or where every plugin returns `NO_OPINION`, a signed JWT names the user.
    ``authorize`` comes first too; where it returns None, only the owner of a
    topic may watch it.

    Making one checks nothing: a worker imports the web application too, and has
    none of its settings. `check` does, when the application starts; without it
    the first request does, so nobody gets in by wrong settings.
    """

    def __init__(self, settings: Settings, plugins: pluggy.PluginManager) -> None:
        self._settings = settings
        self._plugins = plugins
        self._origins = Origins(settings.allowed_origins, allows_local=settings.is_development)
        self._named_origins = Origins(
            [origin for origin in settings.allowed_origins if origin != "*"],
            allows_local=settings.is_development,
        )
        self._tokens = TokenRule(settings)
        # Of tokens for one topic; read by `check`.
        self._topic_secrets: list[str] = []
        # Set by `check` when nothing is wrong; plugins are only added.
        self._is_checked = False
        # Types that `authenticate` returned and that name no user, as logged.
        self._wrong_types: set[str] = set()

    def check(self) -> None:
        """Check that the settings can tell who may watch what.

        Raises:
            ConfigError: authentication is switched off outside development,
                nothing is configured that could check a credential, an allowed
                origin is none, or as `TokenRule.check`.
        """
        if self._is_checked:
            return
        settings = self._settings
        self._origins.check()
        self._topic_secrets = settings.topic_secret_list
        if settings.disable_auth:
            if not settings.is_development:
                raise ConfigError(
                    "DISABLE_AUTH is set, but the environment is "
                    f"{settings.environment!r}: set ENVIRONMENT=development, or unset DISABLE_AUTH"
                )
        elif self._tokens.is_configured:
            self._tokens.check()
        elif not self._topic_secrets and not self._plugins.hook.authenticate.get_hookimpls():
            raise ConfigError(
                "nothing can check a credential: set SEMANTIK_REALTIME_JWT_SECRET or "
                "SEMANTIK_REALTIME_JWT_JWKS_URL, or give an authenticate hook; "
                "SEMANTIK_REALTIME_TOPIC_SECRETS alone allows tokens for one topic"
            )
        self._is_checked = True

    def allows_origin(self, connection: HTTPConnection) -> bool:
        """Return True if the page may connect: `Origins.allows`."""
        return self._origins.allows(connection)

    def allows_command(self, connection: HTTPConnection) -> bool:
        """Return True if the page may send a request that changes something.

        As `allows_origin`, but a star does not allow a page to use the user's cookies: browsers
        send them with a POST of any page. A header of its own only an allowed page can send.
        """
        if "authorization" in connection.headers:
            return self.allows_origin(connection)
        return self._named_origins.allows(connection)

    async def authenticate(self, credentials: Credentials) -> CheckedIdentity:
        """Return the user of ``credentials``: the id as a text, the expiry in seconds.

        The holder of a token for one topic is a `Viewer`, whatever the host would say.

        Raises:
            AccessError: with the code ``unauthenticated`` or ``expired``, or the host's own.
            BackendUnavailable: the host or the server with the keys cannot be asked now.
            ConfigError: as `check`.
        """
        self.check()
        if self._settings.disable_auth:
            return CheckedIdentity(ANY_USER)
        if self._topic_secrets and credentials.token and credentials.token.startswith(PREFIX):
            # Not the host's: its own users have none of these.
            viewer, expires_at = read_token(credentials.token, self._topic_secrets, time.time())
            return CheckedIdentity(viewer.user, expires_at)
        answer = await ask_host(self._plugins, "authenticate", credentials=credentials)
        if answer is None:
            raise AccessError("the credential was not accepted", "unauthenticated")
        if answer is not NO_OPINION:
            return self._identity(answer)
        if not credentials.token:
            raise AccessError("no credential", "unauthenticated")
        return await self._tokens.identify(credentials.token)

    async def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        """Return True if ``user`` may watch ``topic``: the host decides, else the ownership.

        A feed ``user:<id>`` belongs to that user, and every other topic to
        ``owner``; None: no user owns it. A `Viewer` may watch the topic of its token.

        Raises:
            BackendUnavailable: the host does not answer now.
            ConfigError: as `check`.
        """
        self.check()
        if self._settings.disable_auth:
            return True
        if (viewer := Viewer.of(user)) is not None:
            return viewer.may_watch(topic, owner, self._topic_secrets)
        try:
            allowed = await ask_host(
                self._plugins, "authorize", user=user, topic=topic, owner=owner
            )
        except AccessError:
            return False
        if allowed is not None and allowed is not NO_OPINION:
            return bool(allowed)
        kind, ident = split_topic(topic)
        if kind == "user":
            return ident == user
        return owner is not None and owner == user

    async def may(self, hook: str, user: str, topic: str, owner: str | None) -> bool:
        """Return True if ``user`` may do something to a job: the host decides, else its owner may.

        ``hook`` is ``may_cancel`` or ``may_retry``. A `Viewer` only watches.

        Raises:
            BackendUnavailable: the host does not answer now.
        """
        if self._settings.disable_auth:
            return True
        if Viewer.of(user) is not None:
            return False
        try:
            allowed = await ask_host(self._plugins, hook, user=user, topic=topic, owner=owner)
        except AccessError:
            return False
        if allowed is not None and allowed is not NO_OPINION:
            return bool(allowed)
        return owner is not None and owner == user

    def _identity(self, answer: Any) -> CheckedIdentity:
        """Return what a host's ``authenticate`` has returned, as the server keeps it.

        Raises:
            AccessError: it has expired.
            BackendUnavailable: it names no user. The host is wrong, not the client.
        """
        given = answer if isinstance(answer, Identity) else Identity(answer)
        try:
            identity = CheckedIdentity(plain_id(given.user), _seconds(given.expires_at))
        except InvalidInput as error:
            if type(answer).__name__ not in self._wrong_types:
                self._wrong_types.add(type(answer).__name__)
                logger.error(
                    "access: authenticate returned no user: type=%s reason=%s, return the id as "
                    "a str, an int, a UUID or an Identity (logged once)",
                    type(answer).__name__,
                    error,
                )
            raise BackendUnavailable("the host's authenticate returned no user") from None
        if identity.has_expired:
            raise AccessError("the credential has expired", "expired")
        return identity


def _seconds(expires_at: object) -> float | None:
    """Return the expiry of an `Identity` in seconds since 1970.

    Raises:
        InvalidInput: it is no time, or one without its zone.
    """
    if expires_at is None:
        return None
    if isinstance(expires_at, datetime) and expires_at.tzinfo is not None:
        return expires_at.timestamp()
    # Not `isinstance`: a boolean is an integer.
    if type(expires_at) is int or (type(expires_at) is float and math.isfinite(expires_at)):
        return float(expires_at)
    raise InvalidInput("expires_at is in seconds since 1970, or a datetime with its zone")
