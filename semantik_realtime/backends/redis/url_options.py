"""What becomes of each option in the query of a URL. It goes to redis-py, which has many.

The URL is often one that other libraries read too (``REDIS_URL``). So an option
that means something to them, and would break this backend, is left out, which
the log says; one that cannot mean anything in a URL is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Any
from urllib.parse import parse_qs, unquote

import redis
import redis.asyncio
from redis.exceptions import RedisError

from semantik_realtime.errors import ConfigError
from semantik_realtime.urls import find_fault, mask_text


class Rule(Enum):
    """What becomes of an option."""

    ALLOWED = "allowed"
    """redis-py gets it."""
    LEFT_OUT = "left out"
    """This backend decides it itself."""
    REFUSED = "refused"
    """It is no text, or no connection for reading knows it."""


OPTIONS: dict[str, Rule] = {
    # Who, and which database.
    "username": Rule.ALLOWED,
    "password": Rule.ALLOWED,
    "db": Rule.ALLOWED,
    "client_name": Rule.ALLOWED,
    "socket_keepalive": Rule.ALLOWED,
    "socket_read_size": Rule.ALLOWED,
    # TLS.
    "ssl_keyfile": Rule.ALLOWED,
    "ssl_certfile": Rule.ALLOWED,
    "ssl_password": Rule.ALLOWED,
    "ssl_cert_reqs": Rule.ALLOWED,
    "ssl_ca_certs": Rule.ALLOWED,
    "ssl_ca_path": Rule.ALLOWED,
    "ssl_ca_data": Rule.ALLOWED,
    "ssl_check_hostname": Rule.ALLOWED,
    "ssl_min_version": Rule.ALLOWED,
    "ssl_ciphers": Rule.ALLOWED,
    "ssl_include_verify_flags": Rule.ALLOWED,
    "ssl_exclude_verify_flags": Rule.ALLOWED,
    # The replies are read as RESP2, in bytes.
    "protocol": Rule.LEFT_OUT,
    "legacy_responses": Rule.LEFT_OUT,
    "decode_responses": Rule.LEFT_OUT,
    "encoding": Rule.LEFT_OUT,
    "encoding_errors": Rule.LEFT_OUT,
    # Deadlines are SEMANTIK_REALTIME_TIMEOUT_SECONDS; retries, pools and checks are our own.
    "socket_timeout": Rule.LEFT_OUT,
    "socket_connect_timeout": Rule.LEFT_OUT,
    "timeout": Rule.LEFT_OUT,
    "retry_on_timeout": Rule.LEFT_OUT,
    "retry_on_error": Rule.LEFT_OUT,
    "max_connections": Rule.LEFT_OUT,
    "health_check_interval": Rule.LEFT_OUT,
    # redis-py is about to remove them.
    "lib_name": Rule.LEFT_OUT,
    "lib_version": Rule.LEFT_OUT,
    # They stand before the query.
    "host": Rule.REFUSED,
    "port": Rule.REFUSED,
    "path": Rule.REFUSED,
    # Objects of Python, which a text cannot be.
    **dict.fromkeys(
        (
            "cache",
            "cache_config",
            "cache_factory",
            "command_packer",
            "connection_class",
            "connection_pool",
            "credential_provider",
            "driver_info",
            "encoder_class",
            "event_dispatcher",
            "himport_registry",
            "maint_notifications_config",
            "maint_notifications_pool_handler",
            "maintenance_notification_hash",
            "maintenance_state",
            "orig_host_address",
            "orig_socket_connect_timeout",
            "orig_socket_timeout",
            "oss_cluster_maint_notifications_handler",
            "parser",
            "parser_class",
            "queue_class",
            "redis_connect_func",
            "retry",
            "socket_keepalive_options",
            "socket_type",
            "ssl_ocsp_context",
        ),
        Rule.REFUSED,
    ),
    # redis-py's connections for asyncio do not know them.
    "ssl_ocsp_expected_cert": Rule.REFUSED,
    "ssl_validate_ocsp": Rule.REFUSED,
    "ssl_validate_ocsp_stapled": Rule.REFUSED,
}
"""Of every option that a release of redis-py from 5.2 on knows."""

_WRONG = "wrong URL of the redis backend"


def read_options(url: str) -> tuple[str, list[str]]:
    """Return a URL as redis-py may have it, and the names of the options that were left out.

    Raises:
        ConfigError: an option is refused. Shows no part of the URL but the option's name.

    >>> read_options("redis://host/0?protocol=3&client_name=web")
    ('redis://host/0?client_name=web', ['protocol'])
    """
    address, hash_sign, fragment = url.partition("#")
    address, question_mark, query = address.partition("?")
    kept, left_out = [], []
    for part in query.split("&") if query else ():
        name = unquote(part.partition("=")[0])
        rule = OPTIONS.get(name)
        if rule is Rule.ALLOWED:
            kept.append(part)
        elif rule is Rule.LEFT_OUT:
            left_out.append(name)
        elif rule is Rule.REFUSED:
            raise ConfigError(
                f"{_WRONG}: the option {name!r} cannot be set in a URL here; leave it out"
            )
        elif name:
            # Without a value it may be the rest of a password.
            shown = repr(name[:50]) if "=" in part else "without a value"
            raise ConfigError(f"{_WRONG}: redis-py knows no option {shown} for it")
    return _canonical(
        address + (question_mark if kept else "") + "&".join(kept) + hash_sign + fragment
    ), left_out


def check_url(url: str) -> None:
    """Check a URL as redis-py does at the first connection. Opens none.

    Raises:
        ConfigError: redis-py cannot make a connection, a blocking or an asyncio one, of it, or
            might take a part of its password for something else.
    """
    if fault := find_fault(url):
        raise ConfigError(f"{_WRONG}: {fault}")
    try:
        for kind in (redis.ConnectionPool, redis.asyncio.ConnectionPool):
            pool: Any = kind.from_url(url)
            pool.connection_class(**pool.connection_kwargs)
    except (RedisError, ValueError, TypeError, AttributeError) as error:
        reason = str(error)
        if isinstance(error, TypeError):
            # redis-py passes an unknown option on as an argument that nothing accepts.
            reason = f"redis-py knows no option {reason.rpartition(' ')[2]} for it"
        # Not chained: the frames of redis-py's error have the password.
        raise ConfigError(f"{_WRONG}: {mask_text(reason)}") from None


def without_effect(names: Iterable[str]) -> str:
    """Return a sentence for an operator about the options that were left out."""
    return (
        f"options of the URL without effect: {', '.join(sorted(set(names)))} (the backend decides "
        "them itself; see docs/deployment.md)"
    )


def _canonical(url: str) -> str:
    # In Celery's configuration the values have the names of Python's ssl module.
    url = re.sub(
        r"(?<=[?&]ssl_cert_reqs=)CERT_(REQUIRED|OPTIONAL|NONE)\b", lambda it: it[1].lower(), url
    )
    # redis-py does not know the schemes of Valkey.
    for valkey, known in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
        if url.startswith(valkey):
            url = known + url.removeprefix(valkey)
    if not url.startswith("rediss://"):
        return url
    # redis-py before 6 accepts a certificate of any host, and knows no "none" with a host name.
    address, hash_sign, fragment = url.partition("#")
    options = parse_qs(address.partition("?")[2])
    if "ssl_check_hostname" not in options and options.get("ssl_cert_reqs", [""])[0] != "none":
        address += ("&" if "?" in address else "?") + "ssl_check_hostname=true"
    return address + hash_sign + fragment
