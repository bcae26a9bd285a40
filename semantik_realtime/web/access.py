"""One authentication and one authorization for every route."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec
import pluggy
from starlette.requests import HTTPConnection

from semantik_realtime.config import Settings
from semantik_realtime.core.session import SUBPROTOCOL
from semantik_realtime.core.topic import split_topic
from semantik_realtime.errors import AccessError, BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import Credentials
from semantik_realtime.urls import is_loopback, mask_text

TOKEN_SUBPROTOCOL = "access_token."  # noqa: S105 - the prefix, not a token
HOST_SECONDS = 5.0
"""Deadline of one call of a host's hook."""
ANY_USER = "development"
"""The user id of every connection while authentication is switched off."""


class Identity(msgspec.Struct, frozen=True):
    """An authenticated user, and when the credential expires."""

    user: str
    """The user id."""
    expires_at: float | None = None
    """In seconds since 1970; None: it does not expire."""


async def call_host(hook: pluggy.HookCaller, **arguments: Any) -> Any:
    """Call a hook of the host, which may be a coroutine function, with a deadline.

    Raises:
        AccessError: the host has refused.
        BackendUnavailable: the hook failed otherwise, or took longer than
            `HOST_SECONDS`. A database that is away must refuse no user for good.
    """
    try:
        async with asyncio.timeout(HOST_SECONDS):
            result = hook(**arguments)
            return await result if inspect.isawaitable(result) else result
    except AccessError:
        raise
    except Exception as error:
        raise BackendUnavailable(f"the host's {hook.name} failed: {error!r}") from error


def credentials_of(connection: HTTPConnection) -> Credentials:
    """Return the token and the headers of a request.

    The token comes from the subprotocol, the Authorization header, the query
    or the cookie, in this order.
    """
    headers = {name.lower(): value for name, value in connection.headers.items()}
    offered = _token_subprotocol(connection)
    token = offered.removeprefix(TOKEN_SUBPROTOCOL) if offered else None
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if token is None and scheme.lower() == "bearer":
        token = value.strip()
    if token is None:
        token = connection.query_params.get("token") or connection.cookies.get("access_token")
    return Credentials(token or None, headers)


def accepted_subprotocol(connection: HTTPConnection) -> str | None:
    """Return the subprotocol to echo: `SUBPROTOCOL` if offered, else the one with the token."""
    offered: list[str] = connection.scope.get("subprotocols", [])
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return _token_subprotocol(connection)


def _token_subprotocol(connection: HTTPConnection) -> str | None:
    offered: list[str] = connection.scope.get("subprotocols", [])
    return next((name for name in offered if name.startswith(TOKEN_SUBPROTOCOL)), None)


class Access:
    """The rules of one application.

    The host's hooks come first. Where they return None, a signed JWT names the
    user, and only the owner of a topic may watch it.

    Making one checks nothing: a worker imports the web application too, and has
    none of its settings. `check` does, when the application starts; without it
    the first request does, so nobody gets in by wrong settings.
    """

    def __init__(self, settings: Settings, plugins: pluggy.PluginManager) -> None:
        self._settings = settings
        self._plugins = plugins
        # Fetches and caches the public keys at the first token. None: there is no URL of any, and
        # tokens are checked with the secret or by hooks.
        self._keys: jwt.PyJWKClient | None = None
        if settings.jwt_jwks_url:
            self._keys = jwt.PyJWKClient(settings.jwt_jwks_url, timeout=5)

    def check(self) -> None:
        """Check that the settings can tell who may watch what.

        Raises:
            ConfigError: authentication is switched off outside development,
                nothing is configured that could check a credential, or a
                public key would be accepted as a secret.
        """
        settings = self._settings
        if settings.disable_auth:
            if not settings.is_development:
                raise ConfigError(
                    "DISABLE_AUTH is set, but the environment is "
                    f"{settings.environment!r}: set ENVIRONMENT=development, or unset DISABLE_AUTH"
                )
        elif settings.jwt_jwks_url:
            symmetric = [name for name in settings.jwt_algorithms if name.startswith("HS")]
            if symmetric:
                raise ConfigError(
                    f"with SEMANTIK_REALTIME_JWT_JWKS_URL, {symmetric[0]} would accept a public "
                    "key as a secret: set SEMANTIK_REALTIME_JWT_ALGORITHMS=RS256"
                )
        elif settings.jwt_secret is None:
            if not self._plugins.hook.authenticate.get_hookimpls():
                raise ConfigError(
                    "nothing can check a credential: set SEMANTIK_REALTIME_JWT_SECRET or "
                    "SEMANTIK_REALTIME_JWT_JWKS_URL, or give an authenticate hook"
                )

    def allows_origin(self, connection: HTTPConnection) -> bool:
        """Return True if the page's origin is the same host, listed, or absent (not a browser).

        In development a server on this machine also serves the pages of every
        other port of this machine.
        """
        if self._settings.is_development and _is_local(connection):
            return True
        origin = connection.headers.get("origin")
        allowed = self._settings.allowed_origins
        if origin is None or "*" in allowed or origin in allowed:
            return True
        try:
            page = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return page == connection.headers.get("host", "").lower() != ""

    async def authenticate(self, credentials: Credentials) -> Identity:
        """Return the user of ``credentials``.

        Raises:
            AccessError: with the code ``unauthenticated`` or ``expired``, or the host's own.
            BackendUnavailable: the host or the server with the keys cannot be asked now.
            ConfigError: as `check`.
        """
        self.check()
        if self._settings.disable_auth:
            return Identity(ANY_USER)
        user = await call_host(self._plugins.hook.authenticate, credentials=credentials)
        if user is not None:
            return Identity(str(user))
        if not credentials.token:
            raise AccessError("no credential", "unauthenticated")
        return await self._check_token(credentials.token)

    async def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        """Return True if ``user`` may watch ``topic``: the host decides, else the ownership.

        A feed ``user:<id>`` belongs to that user, and every other topic to
        ``owner``; None: no user owns it.

        Raises:
            BackendUnavailable: the host does not answer now.
            ConfigError: as `check`.
        """
        self.check()
        if self._settings.disable_auth:
            return True
        try:
            allowed = await call_host(
                self._plugins.hook.authorize, user=user, topic=topic, owner=owner
            )
        except AccessError:
            return False
        if allowed is not None:
            return bool(allowed)
        kind, ident = split_topic(topic)
        if kind == "user":
            return ident == user
        return owner is not None and owner == user

    async def _check_token(self, token: str) -> Identity:
        settings = self._settings
        try:
            key: Any
            if self._keys is not None:
                found = await asyncio.to_thread(self._keys.get_signing_key_from_jwt, token)
                key = found.key
            elif settings.jwt_secret is not None:
                key = settings.jwt_secret.get_secret_value()
            else:
                raise AccessError("the token was not accepted", "unauthenticated")
            claims = jwt.decode(
                token,
                key,
                algorithms=settings.jwt_algorithms,
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                # Hosts put numbers into sub, which PyJWT would refuse.
                options={
                    "require": ["exp", settings.jwt_user_claim],
                    "verify_sub": False,
                    # The issuer's clock may be a little ahead, which is no reason to refuse.
                    "verify_iat": False,
                    "verify_aud": settings.jwt_audience is not None,
                },
            )
        except jwt.PyJWKClientConnectionError as error:
            raise BackendUnavailable(
                f"no keys to check tokens with: {mask_text(str(error))}"
            ) from error
        except jwt.ExpiredSignatureError:
            raise AccessError("the token has expired", "expired") from None
        except jwt.PyJWTError:
            raise AccessError("the token was not accepted", "unauthenticated") from None
        user = claims[settings.jwt_user_claim]
        if type(user) not in (str, int) or user == "":
            raise AccessError("the token names no user", "unauthenticated")
        return Identity(str(user), float(claims["exp"]))


def _is_local(connection: HTTPConnection) -> bool:
    """Return True if both the page and the server, as the browser or a proxy names it, are local.

    Neither header can be chosen by a page of another machine: its origin is
    that machine's, whatever its name resolves to.
    """
    try:
        page = urlsplit(connection.headers.get("origin", "")).hostname
        host = urlsplit(f"//{connection.headers.get('host', '')}").hostname
    except ValueError:
        return False
    return is_loopback(page or "") and is_loopback(host or "")


def has_expired(identity: Identity) -> bool:
    """Return True if the credential has expired since it was checked."""
    return identity.expires_at is not None and identity.expires_at <= time.time()
