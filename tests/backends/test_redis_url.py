"""A URL is checked when the backend is made, not at the first connection."""

from __future__ import annotations

import ssl
import traceback

import pytest
import redis
import redis.asyncio

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError

pytestmark = pytest.mark.valkey


def connection_options(url: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return the options of the connections for writing and for reading."""
    backend = load_backend(load_settings(backend="redis", url=url))
    reading = redis.asyncio.ConnectionPool.from_url(backend._url)
    return backend._topology.connection_options, reading.connection_kwargs


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize(
    ("spelling", "meant"),
    [
        ("CERT_REQUIRED", "required"),
        ("CERT_OPTIONAL", "optional"),
        ("CERT_NONE", "none"),
        ("none", "none"),
    ],
)
def test_celerys_spelling_of_ssl_cert_reqs_is_accepted(
    scheme: str, spelling: str, meant: str
) -> None:
    url = f"{scheme}://:CERT_NONE@host:6380/1?ssl_cert_reqs={spelling}&ssl_ca_certs=/ca.pem"
    for options in connection_options(url):
        assert options["ssl_cert_reqs"] == meant
        assert options["ssl_ca_certs"] == "/ca.pem"
        assert options["password"] == "CERT_NONE"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:hunter2@host?foo=bar", "no option 'foo'"),
        ("redis://:hunter2@host?ssl_cert_reqs=none", "no option 'ssl_cert_reqs'"),
        ("rediss://:hunter2@host?ssl_cert_reqs=CERT_SOME", "CERT_SOME"),
        ("redis://:hunter2@host?retry=3", "option 'retry'"),
        ("redis://:hunter2@host?db=first", "'db'"),
        ("http://:hunter2@host", "scheme"),
        ("redis://:not#hunter2@host", "percent-encoded"),
        ("redis://:not?hunter2@host", "percent-encoded"),
        ("redis://:not/hunter2@host/0", "percent-encoded"),
        ("redis://:12/hunter2@host/0", "percent-encoded"),
        ("rediss://host?password=not@hunter2", "percent-encoded"),
        ("sentinel://:hunter2@a:26379;sentinel://b:26379", r"redis\+sentinel://.*master_name"),
        ("redis+sentinel://:hunter2@a,b", r"the form is redis\+sentinel://.*/NAME/0"),
        ("redis+sentinel://:hunter2@a,,b/name", "hosts, each with its port"),
        ("redis+sentinel://:hunter2@a:port/name", "hosts, each with its port"),
        ("redis+sentinel://:not/hunter2@a/name", "percent-encoded"),
        ("redis+sentinel://a/name?sentinel_pasword=hunter2", "sentinel_password"),
        ("redis+cluster://a?sentinel_password=hunter2", "in a URL of sentinels"),
        ("redis+cluster://:hunter2@a:99999", "hosts, each with its port"),
        ("redis+cluster://:hunter2@a?foo=bar", "no option 'foo'"),
        ("redis://host:hunter2", "port"),
        ("redis://:hunter2", "port"),
        ("redis://:[hunter2]@host", "percent-encoded"),
        ("redis://:hunter2℀@host", "percent-encoded"),
    ],
)
def test_a_url_that_cannot_make_a_connection_is_a_config_error(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"wrong URL of the redis backend: .*({reason})") as wrong:
        load_backend(load_settings(backend="redis", url=url))
    assert "hunter2" not in "".join(traceback.format_exception(wrong.value))


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize(
    ("query", "checks"),
    [
        ("", True),
        ("?ssl_ca_certs=/ca.pem", True),
        ("?ssl_cert_reqs=CERT_OPTIONAL", True),
        ("?ssl_check_hostname=true&ssl_cert_reqs=required", True),
        ("?ssl_check_hostname=false", False),
        ("?ssl_check_hostname=0&ssl_cert_reqs=required", False),
        ("?ssl_cert_reqs=none", False),
        ("?db=1&ssl_cert_reqs=CERT_NONE", False),
        ("#ssl_check_hostname=false", True),
    ],
)
def test_the_host_name_is_checked_unless_the_url_says_otherwise(
    scheme: str, query: str, checks: bool
) -> None:
    url = load_backend(load_settings(backend="redis", url=f"{scheme}://host:6380/1{query}"))._url
    for pool in (redis.ConnectionPool.from_url(url), redis.asyncio.ConnectionPool.from_url(url)):
        connection = pool.connection_class(**pool.connection_kwargs)
        assert connection.host == "host"
        is_unchecked = getattr(connection, "cert_reqs", None) == ssl.CERT_NONE
        assert (connection.check_hostname and not is_unchecked) == checks
