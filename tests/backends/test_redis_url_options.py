"""Every option that redis-py takes from a URL is allowed, left out or refused."""

from __future__ import annotations

import inspect
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio import connection as async_connection

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.backends.redis.url_options import OPTIONS, Rule
from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.testing.contract import Author, Recorder

pytestmark = pytest.mark.valkey
CLASSES = (
    "AbstractConnection",
    "Connection",
    "SSLConnection",
    "UnixDomainSocketConnection",
    "ConnectionPool",
    "BlockingConnectionPool",
)
VALUES = {
    "db": "3",
    "socket_keepalive": "true",
    "socket_read_size": "4096",
    "ssl_cert_reqs": "required",
    "ssl_check_hostname": "true",
    "ssl_min_version": str(int(ssl.TLSVersion.TLSv1_2)),
    "ssl_include_verify_flags": "VERIFY_X509_STRICT",
    "ssl_exclude_verify_flags": "VERIFY_X509_STRICT",
}
PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def known_names(module: ModuleType) -> Iterator[str]:
    """Yield every argument of redis-py's connections and pools, which a URL's query may set."""
    yield from module.URL_QUERY_ARGUMENT_PARSERS
    for found in filter(None, (getattr(module, name, None) for name in CLASSES)):
        for base in found.__mro__:
            if "__init__" in vars(base):
                for parameter in inspect.signature(base.__init__).parameters.values():
                    if parameter.kind is not parameter.VAR_KEYWORD:
                        yield parameter.name


MODULES = (redis.connection, async_connection)
KNOWN = sorted({name for module in MODULES for name in known_names(module)} - {"self", "args"})


def load(url: str) -> Any:
    return load_backend(load_settings(backend="redis", url=url))


def names(rule: Rule) -> list[str]:
    return [name for name in KNOWN if OPTIONS.get(name) is rule]


def test_the_table_has_every_option_of_this_release_of_redis_py() -> None:
    assert [name for name in KNOWN if name not in OPTIONS] == []
    assert len(KNOWN) > 40


@pytest.mark.parametrize("name", names(Rule.ALLOWED))
def test_an_allowed_option_reaches_both_kinds_of_connection(name: str) -> None:
    scheme = "rediss" if name.startswith("ssl_") else "redis"
    url = f"{scheme}://host/0?{name}={VALUES.get(name, 'text')}"
    if any(name not in known_names(module) for module in MODULES):
        # An older redis-py: only its blocking connections know the option.
        with pytest.raises(ConfigError, match=f"redis-py knows no option '{name}'"):
            load(url)
        return
    backend = load(url)
    reading = backend._topology.pool(backend._topology.home, redis.asyncio.ConnectionPool)
    for options in (backend._topology.connection_options, reading.connection_kwargs):
        assert options[name] not in (None, "")


@pytest.mark.parametrize("name", names(Rule.LEFT_OUT))
async def test_an_option_that_the_backend_decides_is_left_out_and_named(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, backend = (load(f"redis://127.0.0.1:1/0{query}") for query in ("", f"?{name}=7"))
    assert backend._topology.connection_options.keys() == plain._topology.connection_options.keys()
    for key in ("socket_timeout", "socket_connect_timeout", "protocol"):
        options = (one._topology.connection_options[key] for one in (plain, backend))
        assert len(set(options)) == 1
    assert caplog.messages == [f"redis: options of the URL without effect names={name}"]


@pytest.mark.parametrize("name", names(Rule.REFUSED))
def test_an_option_that_no_url_can_have_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the option '{name}' cannot be set") as wrong:
        load(f"redis://:hunter2@host/0?{name}=hunter2")
    assert "hunter2" not in str(wrong.value)


@pytest.fixture
def server(server_url: Callable[[str], str]) -> str:
    return server_url("valkey")


@pytest.fixture
async def backend(server: str) -> AsyncIterator[RedisBackend]:
    query = "&".join(f"{name}=1" for name in names(Rule.LEFT_OUT) if name != "decode_responses")
    made = load(f"{server}?{query}&decode_responses=True&protocol=3&client_name=web")
    await made.open()
    yield made
    await made.close()
    made.close_writer()


async def test_with_all_of_them_at_once_everything_works(
    backend: RedisBackend, server: str
) -> None:
    sink, author = Recorder(), Author()
    await backend.subscribe("job:options", sink)
    backend.publish([author.draft("job:options", state={"n": n}) for n in range(3)])
    await sink.wait_for_events(3)
    assert list((await backend.snapshot("job:options", None, 3)).events) == sink.received
    assert await backend.tops(["job:options"])
    assert backend.lease("options", "holder", 1, 1.0)
    status = await backend.status()
    [warning] = [text for text in status.warnings if "without effect" in text]
    assert "decode_responses" in warning
    with redis.Redis.from_url(server) as admin:
        assert "web" in {client["name"] for client in admin.client_list()}


def test_the_page_names_every_option() -> None:
    [section] = re.findall("^## The URL of Redis$(.*?)(?=^## |\\Z)", PAGE.read_text(), re.M | re.S)
    named = set(re.findall("`([a-z_]+)`", section))
    assert {name for name, rule in OPTIONS.items() if rule is not Rule.REFUSED} <= named
