"""The URL of the backend: one server, the sentinels of a master, or some nodes of a cluster."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from semantik_realtime.backends.redis.nodes import Node
from semantik_realtime.errors import ConfigError

SENTINEL, CLUSTER = "sentinel", "cluster"
REDIS_PORT, SENTINEL_PORT = 6379, 26379
_FORM = "redis+sentinel://sentinel-1:26379,sentinel-2:26379/NAME/0"
_PLAIN = ("redis", "rediss", "valkey", "valkeys")
_OWN = "sentinel_"
_OWN_OPTIONS = {SENTINEL: ("sentinel_username", "sentinel_password"), CLUSTER: ()}
_KOMBU = re.compile(r"sentinels?://", re.IGNORECASE)


class Address(NamedTuple):
    """Where to look for the server."""

    kind: str
    """`SENTINEL`, `CLUSTER`, or "" for the URL of one server, which may be a node of a cluster."""
    url: str
    """The URL of the first node, as redis-py reads it, with the options for every node. For
    `SENTINEL` its host and port are those of a sentinel, and not used."""
    places: tuple[Node, ...] = ()
    """The sentinels, or the nodes of a cluster that are asked first; empty for one server."""
    master: str = ""
    """The name that the sentinels know the master by."""
    sentinel_url: str = ""
    """The URL of the first sentinel, with its credentials and the options of TLS."""


def read_address(url: str) -> Address:
    """Read a URL of the backend.

    Raises:
        ConfigError: it is one for sentinels or a cluster, and wrong. Shows no part of it that may
            be secret.

    >>> address = read_address("redis+sentinel://:secret@a,b:26380/main/2?sentinel_password=more")
    >>> address.places, address.master
    ((Node(host='a', port=26379), Node(host='b', port=26380)), 'main')
    >>> address.url, address.sentinel_url
    ('redis://:secret@a:26379/2', 'redis://:more@a:26379')
    >>> read_address("rediss+cluster://a,b:7000?ssl_ca_certs=/ca.pem").url
    'rediss://a:6379?ssl_ca_certs=/ca.pem'
    """
    if _KOMBU.match(url):
        raise ConfigError(
            f"wrong URL of the redis backend: write sentinels as {_FORM} (NAME is what Celery has "
            "as master_name)"
        )
    scheme, _, rest = url.partition("://")
    plain, plus, kind = scheme.lower().partition("+")
    if not plus or kind not in (SENTINEL, CLUSTER) or plain not in _PLAIN:
        return Address("", url)
    authority, path, query = _split(rest)
    user, at_sign, hosts = authority.rpartition("@")
    port = SENTINEL_PORT if kind == SENTINEL else REDIS_PORT
    places = tuple(_place(host, port) for host in hosts.split(","))
    options = [part for part in query.split("&") if part and not part.startswith(_OWN)]
    own = dict(parse_qsl(query, keep_blank_values=True))
    own = {name: value for name, value in own.items() if name.startswith(_OWN)}
    database, master, sentinel_url = path, "", ""
    if kind == SENTINEL:
        quoted, _, database = path.partition("/")
        master = unquote(quoted)
        if not master:
            raise ConfigError(f"wrong URL of the redis backend: the form is {_FORM}")
        sentinel_url = _url(plain, _user(own), places[0], "", _tls(options))
    if set(own) - set(_OWN_OPTIONS[kind]):
        raise ConfigError(
            "wrong URL of the redis backend: of the options for sentinels there are "
            "sentinel_username and sentinel_password, in a URL of sentinels"
        )
    node_url = _url(plain, user + at_sign, places[0], database, options)
    return Address(kind, node_url, places, master, sentinel_url)


def _split(rest: str) -> tuple[str, str, str]:
    """Return what stands before the path, the path without its first slash, and the query."""
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    if "@" in path or "@" in query or "#" in rest:
        raise ConfigError(
            'wrong URL of the redis backend: a "/", "?", "#" or "@" in a user, a password or an '
            "option must be percent-encoded"
        )
    return authority, path.strip("/"), query


def _place(text: str, port: int) -> Node:
    found = re.fullmatch(r"\s*(?:\[([0-9a-fA-F:.]+)\]|([^\s\[\]:]+))(?::(\d{1,5}))?\s*", text)
    if found is None or int(found[3] or port) > 65535:
        # The text is not shown: it may be a part of a password.
        raise ConfigError(
            "wrong URL of the redis backend: after the password stand hosts, each with its port "
            "and a comma between them"
        )
    return Node(found[1] or found[2], int(found[3] or port))


def _user(own: dict[str, str]) -> str:
    if not own:
        return ""
    user, password = own.get("sentinel_username", ""), own.get("sentinel_password", "")
    return f"{quote(user, safe='')}:{quote(password, safe='')}@"


def _tls(options: list[str]) -> list[str]:
    return [option for option in options if option.startswith("ssl_")]


def _url(plain: str, user: str, place: Node, database: str, options: list[str]) -> str:
    path = f"/{database}" if database else ""
    query = f"?{'&'.join(options)}" if options else ""
    return f"{plain}://{user}{place}{path}{query}"
