"""Find the credential in a request."""

from __future__ import annotations

import re

import msgspec
from starlette.requests import HTTPConnection

from semantik_realtime.core.session import SUBPROTOCOL
from semantik_realtime.hookspecs import Credentials

TOKEN_SUBPROTOCOL = "access_token."  # noqa: S105 - the prefix, not a token
# Some applications keep the whole Authorization header in the cookie; JavaScript encodes the blank.
# Only at the beginning: looked for everywhere, 64 KiB of blanks would occupy the loop for seconds.
_SCHEME = re.compile(r"\A\s*bearer(?:\s|%20)+", re.IGNORECASE)


def credentials_of(connection: HTTPConnection, cookie: str) -> Credentials:
    """Return the token and the headers of a request.

    The token comes from the subprotocol, the Authorization header, the query
    or the cookie named ``cookie``, in this order.
    """
    headers = {name.lower(): value for name, value in connection.headers.items()}
    offered = _token_subprotocol(connection)
    token = offered.removeprefix(TOKEN_SUBPROTOCOL) if offered else None
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if token is None and scheme.lower() == "bearer":
        token = value.strip()
    if token is None:
        token = connection.query_params.get("token") or connection.cookies.get(cookie) or ""
    return with_token(Credentials(None, headers), token)


def with_token(credentials: Credentials, token: str) -> Credentials:
    """Return ``credentials`` with another token, without the word Bearer in front of it.

    >>> with_token(Credentials(None), "Bearer abc").token
    'abc'
    """
    return msgspec.structs.replace(credentials, token=_SCHEME.sub("", token, count=1) or None)


def accepted_subprotocol(connection: HTTPConnection) -> str | None:
    """Return the subprotocol to echo: `SUBPROTOCOL` if offered, else the one with the token."""
    offered: list[str] = connection.scope.get("subprotocols", [])
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return _token_subprotocol(connection)


def _token_subprotocol(connection: HTTPConnection) -> str | None:
    offered: list[str] = connection.scope.get("subprotocols", [])
    return next((name for name in offered if name.startswith(TOKEN_SUBPROTOCOL)), None)
