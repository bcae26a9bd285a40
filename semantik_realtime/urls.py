"""URLs as people may see them: without credentials and options, and never half a password."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

HIDDEN = "***"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,15}(?=://)", re.IGNORECASE)
_PLACE = re.compile(
    r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])?(?::[0-9]{1,5})?(?:/[a-z0-9._~/-]*)?", re.IGNORECASE
)
"""A host, a port and a path without a character that needs quoting; each may be missing."""
_HOST = r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
_PLACES = re.compile(rf"{_HOST}(?:,{_HOST})*(?:/[a-z0-9._~/-]*)?", re.IGNORECASE)
"""Several hosts with commas between them, as in the URL of sentinels or of a cluster."""
_SEVERAL = ("+sentinel", "+cluster")
"""The ends of schemes whose URLs have several hosts."""
_EMBEDDED = re.compile(r"(?<![a-z0-9+.-])([0-9+.-]*)([a-z][a-z0-9+.-]*://\S+)", re.IGNORECASE)
"""What stands before a URL without a gap, and the URL. A match begins only where such characters
begin: tried at each of them, a long text without a URL would take seconds."""
_LISTED_SCHEMES = "nats|tls|wss?"
"""Schemes that one list may mix."""


def mask_urls(urls: str) -> str:
    """Return a URL, or several with commas between them, without anything that may be secret.

    Credentials and options become ``***``. A text that can be read in more than one way, because
    a password has a character that should be percent-encoded, loses every part that belongs to
    the password in one of the readings. If one URL cannot be read, none is shown. Never raises.

    >>> mask_urls("redis://:secret@cache:6379/0?password=secret")
    'redis://***@cache:6379/0?***'
    >>> mask_urls("nats://u:one@a:4222,tls://u:two@b:4222")
    'nats://***@a:4222,tls://***@b:4222'
    >>> mask_urls("redis+sentinel://:secret@a:26379,b:26379/main/0?sentinel_password=secret")
    'redis+sentinel://***@a:26379,b:26379/main/0?***'
    >>> mask_urls("redis://:SEC#RET@host")
    'redis://***'
    >>> mask_urls("redis://user:p@ss@host")
    'redis://***@host'
    >>> mask_urls("user:secret@host")
    '***'
    """
    found = _SCHEME.match(urls)
    if found is None:
        return HIDDEN
    scheme = found[0]
    address, option_sign, options = _split_options(urls)
    if "@" in options:
        # Either a password has the sign, or an option has the "@".
        return f"{scheme}://{HIDDEN}"
    items = re.split(rf",\s*(?=(?:{re.escape(scheme)}|{_LISTED_SCHEMES})://)", address)
    last_with_user = max((place for place, item in enumerate(items) if "@" in item), default=-1)
    shown = [_mask(item, place < last_with_user) for place, item in enumerate(items)]
    if None in shown:
        return f"{scheme}://{HIDDEN}"
    return ",".join(map(str, shown)) + (option_sign + HIDDEN if option_sign else "")


def mask_text(text: str) -> str:
    """Return a text, such as that of an exception, with every URL in it as `mask_urls` shows it.

    A URL ends at white space, so a password with white space is not hidden.

    >>> mask_text("no answer from redis://:secret@cache:6379/0 in 5 s")
    'no answer from redis://***@cache:6379/0 in 5 s'
    """
    return _EMBEDDED.sub(lambda found: found[1] + mask_urls(found[2]), text)


def is_loopback(host: str) -> bool:
    """Return True if a host, without its port, is this machine itself.

    >>> [is_loopback(host) for host in ("localhost", "app.localhost", "127.0.0.2", "::1", "::")]
    [True, True, True, True, False]
    """
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_fault(url: str) -> str | None:
    """Return why libraries may misread the URL of one server, or None. Shows nothing of the URL.

    A password with ``/``, ``?`` or ``#`` ends the host too early: then a library takes a part of
    the password for a host or a port, and its error messages have that part.

    >>> find_fault("redis://:secret@host:6379/0?db=1")
    >>> find_fault("redis://:SEC/RET@host")
    'a "/", "?", "#" or "@" in a user, a password or an option must be percent-encoded'
    >>> find_fault("redis://host:secret")
    'what stands for the port is no number from 0 to 65535'
    """
    _, *rest = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)
    if any("@" in part for part in rest):
        return 'a "/", "?", "#" or "@" in a user, a password or an option must be percent-encoded'
    try:
        parts = urlsplit(url)
    except ValueError:
        # Its message has the host, or the whole address with the password.
        return "a character in it must be percent-encoded"
    try:
        parts.port  # noqa: B018, a property that checks
    except ValueError:
        return "what stands for the port is no number from 0 to 65535"
    return None


def _split_options(urls: str) -> tuple[str, str, str]:
    """Return what stands before the first ``?`` or ``#``, that sign, and the rest."""
    found = re.search(r"[?#]", urls)
    if found is None:
        return urls, "", ""
    return urls[: found.start()], found[0], urls[found.end() :]


def _mask(url: str, is_before_user: bool) -> str | None:
    """Return one URL without options as `mask_urls` shows it, or None if it cannot be read.

    Args:
        url: of one server.
        is_before_user: whether a later URL has a user. Then a URL without one may be the beginning
            of a password with a comma.
    """
    scheme, _, rest = url.partition("://")
    _, at_sign, place = rest.rpartition("@")
    form = _PLACES if scheme.lower().endswith(_SEVERAL) else _PLACE
    if form.fullmatch(place) is None:
        return None
    if is_before_user and not at_sign:
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{HIDDEN}@{place}" if at_sign else url
