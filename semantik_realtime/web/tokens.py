"""The built-in rule of authentication: a signed JWT names the user."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

import jwt

from semantik_realtime.config import Settings
from semantik_realtime.core.secrets import SECRET_BYTES
from semantik_realtime.core.topic import plain_id
from semantik_realtime.errors import AccessError, ConfigError, TopicError
from semantik_realtime.hookspecs import Identity
from semantik_realtime.urls import mask_urls
from semantik_realtime.web.public_keys import PublicKeys

logger = logging.getLogger(__name__)

LEEWAY_SECONDS = 5.0
"""How far the issuer's clock may be ahead of this one, for the claim nbf."""


class CheckedIdentity(Identity, frozen=True):
    """An identity as the server keeps it, of a token or from the host."""

    user: str
    expires_at: float | None = None

    @property
    def has_expired(self) -> bool:
        """Whether the credential has expired since it was checked."""
        return self.expires_at is not None and self.expires_at <= time.time()


class TokenRule:
    """Checks tokens with the secret or the public keys of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = PublicKeys(settings.jwt_jwks_url) if settings.jwt_jwks_url else None

    @property
    def is_configured(self) -> bool:
        """Whether there is a secret, or a URL of public keys."""
        return self._keys is not None or self._settings.jwt_secret is not None

    def check(self) -> None:
        """Check the settings; in development, log what production would refuse.

        Raises:
            ConfigError: an algorithm does not exist, the URL of the keys is none
                of HTTP, a public key would be accepted as a secret, or the
                secret is too short.
        """
        settings = self._settings
        known = set(jwt.PyJWS().get_algorithms()) - {"none"}
        wrong = [name for name in settings.jwt_algorithms if name not in known]
        if wrong or not settings.jwt_algorithms:
            raise ConfigError(
                f"SEMANTIK_REALTIME_JWT_ALGORITHMS: {', '.join(wrong) or 'nothing'} is no "
                f"algorithm that signs tokens; known are {', '.join(sorted(known))}"
            )
        if self._keys is not None:
            symmetric = [name for name in settings.jwt_algorithms if name in SECRET_BYTES]
            if symmetric:
                raise ConfigError(
                    f"with SEMANTIK_REALTIME_JWT_JWKS_URL, {symmetric[0]} would accept a public "
                    "key as a secret: set SEMANTIK_REALTIME_JWT_ALGORITHMS=RS256"
                )
            url = settings.jwt_jwks_url or ""
            if not url.lower().startswith(("http://", "https://")) or not urlsplit(url).netloc:
                raise ConfigError(
                    "SEMANTIK_REALTIME_JWT_JWKS_URL begins with https:// or http://, not as "
                    f"{mask_urls(url)}"
                )
        fault = settings.secret_fault
        if fault and not settings.is_development:
            raise ConfigError(
                f"{fault}: who has one token can guess it and make others. Sign and check tokens "
                "with that many random bytes or more; if the tokens are checked by an "
                "authenticate hook alone, set SEMANTIK_REALTIME_JWT_SECRET to an empty text"
            )
        if fault:
            logger.warning(
                "access: SEMANTIK_REALTIME_JWT_SECRET is shorter than RFC 7518 asks for, and would "
                "be refused in production: %s",
                fault,
            )

    async def identify(self, token: str) -> CheckedIdentity:
        """Return the user that ``token`` names.

        Raises:
            AccessError: with the code ``unauthenticated`` or ``expired``.
            BackendUnavailable: the public keys cannot be fetched now.
        """
        settings = self._settings
        refusal = AccessError("the token was not accepted", "unauthenticated")
        try:
            header = jwt.get_unverified_header(token)
            # Before the keys are fetched: anyone can send a token that is not worth a fetch.
            if header.get("alg") not in settings.jwt_algorithms:
                raise refusal from jwt.InvalidAlgorithmError()
            key: Any = None
            if self._keys is not None:
                key = await self._keys.find(header.get("kid"))
            elif settings.jwt_secret is not None:
                key = settings.jwt_secret.get_secret_value()
            if key is None:
                raise refusal from jwt.InvalidKeyError()
            claims = jwt.decode(
                token,
                key,
                algorithms=settings.jwt_algorithms,
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=LEEWAY_SECONDS,
                # Hosts put numbers into sub and jti, which PyJWT would refuse.
                options={
                    "require": ["exp", settings.jwt_user_claim],
                    "verify_sub": False,
                    "verify_jti": False,
                    # The issuer's clock may be a little ahead, which is no reason to refuse.
                    "verify_iat": False,
                    "verify_aud": settings.jwt_audience is not None,
                },
            )
            user = plain_id(claims[settings.jwt_user_claim])
            identity = CheckedIdentity(user, float(claims["exp"]))
        except jwt.ExpiredSignatureError:
            raise AccessError("the token has expired", "expired") from None
        except TopicError:
            raise AccessError("the token names no user", "unauthenticated") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            # PyJWT lets some of these through, from the text of a stranger.
            raise refusal from error
        if identity.has_expired:
            # Without the leeway: a client can bring a fresh token, so it needs none.
            raise AccessError("the token has expired", "expired")
        return identity
