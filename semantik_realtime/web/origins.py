"""The pages that may connect: those of the server's own origin, and the listed ones."""

from __future__ import annotations

import logging
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from semantik_realtime.errors import ConfigError
from semantik_realtime.urls import is_loopback

logger = logging.getLogger(__name__)

MAX_LOGGED = 100
"""How many refused origins a process logs."""
_PORTS = {"http": 80, "https": 443}
_SECURE = frozenset({"https", "wss"})


class Origins:
    """The rule for the header Origin, which browsers send and a page cannot choose.

    Args:
        allowed: the listed origins; a star allows all.
        allows_local: whether a server that is addressed as this machine serves
            the pages of every port of this machine. No page of another machine
            has such an origin, whatever its name resolves to.
    """

    def __init__(self, allowed: Collection[str], *, allows_local: bool = False) -> None:
        self._allows_local = allows_local
        self._allows_all = "*" in allowed
        self._listed = [entry for entry in allowed if entry != "*"]
        # The listed ones that can be understood; `check` refuses the others.
        self._allowed = {_parse(entry) for entry in self._listed} - {None}
        # Refused origins that were logged. At most `MAX_LOGGED`.
        self._logged: set[tuple[str, str]] = set()

    def check(self) -> None:
        """Check that each entry can be an origin.

        Raises:
            ConfigError: one cannot, and would never match.
        """
        for entry in self._listed:
            if _parse(entry) is None or urlsplit(entry).path.strip("/"):
                raise ConfigError(
                    f"SEMANTIK_REALTIME_ALLOWED_ORIGINS: {entry!r} is no origin: write it like "
                    "https://app.example.org, with the port if it is not the default"
                )

    def allows(self, connection: HTTPConnection) -> bool:
        """Return True if the page's origin is the server's own, listed, or absent (no browser).

        A refused origin is logged once.
        """
        origin = connection.headers.get("origin")
        if origin is None or self._allows_all:
            return True
        page = _parse(origin)
        if page is not None and (page in self._allowed or page == _own(connection, page[0])):
            return True
        if page is not None and self._allows_local and is_loopback(page[1]):
            own = _parse(f"http://{connection.headers.get('host', '')}")
            if own is not None and is_loopback(own[1]):
                return True
        host = connection.headers.get("host", "")
        if len(self._logged) < MAX_LOGGED and (origin, host) not in self._logged:
            self._logged.add((origin, host))
            logger.warning(
                "access: origin refused origin=%r host=%r secure=%s, "
                "SEMANTIK_REALTIME_ALLOWED_ORIGINS can allow it (logged once)",
                origin[:200],
                host[:200],
                _is_secure(connection),
            )
        return False


def _parse(origin: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port; None: it is no origin of a page."""
    try:
        parts = urlsplit(origin)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        return None
    if scheme not in _PORTS or not host:
        return None
    return scheme, host, _PORTS[scheme] if port is None else port


def _own(connection: HTTPConnection, scheme: str) -> tuple[str, str, int] | None:
    """Return the server's own origin, for a page with ``scheme``; None: it has none with that.

    Over TLS it is https: whoever can change pages on the way could put one at
    the http address. A server that does not know of TLS may stand behind a
    proxy that does, and has both.
    """
    if scheme == "http" and _is_secure(connection):
        return None
    return _parse(f"{scheme}://{connection.headers.get('host', '')}")


def _is_secure(connection: HTTPConnection) -> bool:
    """Return True if the client came over TLS: to this server, or to a proxy that says so.

    A header that the server does not trust can only make the rule stricter.
    """
    forwarded = connection.headers.get("x-forwarded-proto", "").partition(",")[0]
    return connection.scope.get("scheme") in _SECURE or forwarded.strip().lower() in _SECURE
