"""A URL is checked when the backend is made, not at the first connection."""

from __future__ import annotations

import pytest
import redis.asyncio

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError

pytestmark = pytest.mark.valkey


def connection_options(url: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return the options of the connections for writing and for reading."""
    backend = load_backend(load_settings(backend="redis", url=url))
    reading = redis.asyncio.ConnectionPool.from_url(backend._url)
    return backend._writer._pool.connection_kwargs, reading.connection_kwargs


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
        ("redis://:secret@host?foo=bar", "no option 'foo'"),
        ("redis://:secret@host?ssl_cert_reqs=none", "no option 'ssl_cert_reqs'"),
        ("rediss://:secret@host?ssl_cert_reqs=CERT_SOME", "CERT_SOME"),
        ("redis://:secret@host?protocol=9", "protocol"),
        ("redis://:secret@host?retry=3", "retry|update_supported_errors"),
        ("redis://:secret@host?db=first", "'db'"),
        ("http://:secret@host", "scheme"),
    ],
)
def test_a_url_that_cannot_make_a_connection_is_a_config_error(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"wrong URL of the redis backend: .*({reason})") as wrong:
        load_backend(load_settings(backend="redis", url=url))
    assert "secret" not in str(wrong.value)
