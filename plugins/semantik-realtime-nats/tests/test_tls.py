"""TLS that is asked for is used, or nothing is sent: whatever a server offers or pretends."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from semantik_realtime.errors import BackendError, BackendRefused, ConfigError
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.settings import NatsSettings, plan_connect

Start = Callable[..., NatsServer]
Make = Callable[..., NatsBackend]
PASSWORD = "topsecret"  # noqa: S105
USER = f'authorization {{ users: [ {{ user: u, password: "{PASSWORD}" }} ] }}\n'
PLAIN_INFO = {
    "server_id": "A",
    "version": "2.12.0",
    "max_payload": 1_000_000,
    "headers": True,
    "auth_required": True,
}


class Wiretap:
    """A listening socket that records what clients send.

    It passes the bytes on to a real server, or, without one, is a server itself: it sends an
    INFO, and answers whatever comes with PONG.
    """

    def __init__(self) -> None:
        self.received = b""
        """What all clients have sent."""
        self.upstream_port: int | None = None
        self.info: dict[str, Any] = {}
        """What INFO says; used without a server behind."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, scheme: str) -> str:
        return f"{scheme}://u:{PASSWORD}@127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        for link in (self._listener, *self._links):
            # Wakes the thread that reads it.
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for link in (self._listener, *self._links):
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._links.append(client)
            if self.upstream_port is None:
                client.sendall(b"INFO " + json.dumps(self.info).encode() + b"\r\n")
                self._start(self._record, client, client, lambda _: b"PONG\r\n")
            else:
                server = socket.create_connection(("127.0.0.1", self.upstream_port))
                self._links.append(server)
                self._start(self._record, client, server, lambda data: data)
                self._start(self._pass_on, server, client)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _record(
        self, client: socket.socket, to: socket.socket, reply: Callable[[bytes], bytes]
    ) -> None:
        try:
            while data := client.recv(65536):
                self.received += data
                to.sendall(reply(data))
            to.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _pass_on(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


@pytest.fixture
def wiretap() -> Iterator[Wiretap]:
    tap = Wiretap()
    yield tap
    tap.close()


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that writes and trusts a certificate; returns a server's configuration with it."""

    def trust(address: str) -> str:
        certificate, key = write_certificate(tmp_path, address)
        monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CA", str(certificate))
        return f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n'

    return trust


async def check_refused(backend: NatsBackend, reason: str) -> None:
    """Check that a writer and a reader are refused."""
    with pytest.raises(BackendError, match=reason):
        backend.publish([Author().draft("job:1")])
    with pytest.raises(BackendError, match=reason):
        await backend.open()


def check_sent(wiretap: Wiretap, something: bool) -> None:
    """Check that a client has sent something, or nothing, and the password in no case."""
    assert bool(wiretap.received) == something
    assert PASSWORD.encode() not in wiretap.received


def test_the_wiretap_sees_a_password_that_is_sent_in_clear_text(
    wiretap: Wiretap, start_server: Start, make_backend: Make
) -> None:
    wiretap.upstream_port = start_server(config=USER).port
    assert make_backend(wiretap.url("nats")).publish([Author().draft("job:1")])
    assert PASSWORD.encode() in wiretap.received


@pytest.mark.parametrize(("scheme", "has_ca"), [("tls", False), ("tls", True), ("nats", True)])
async def test_a_server_without_tls_is_refused_and_gets_nothing(
    wiretap: Wiretap,
    start_server: Start,
    make_backend: Make,
    trust: Callable[[str], str],
    scheme: str,
    has_ca: bool,
) -> None:
    if has_ca:
        trust("127.0.0.1")
    wiretap.upstream_port = start_server(config=USER).port
    backend = make_backend(wiretap.url(scheme))
    with pytest.raises(BackendRefused, match="offers no TLS"):
        backend.publish([Author().draft("job:1")])
    await check_refused(backend, "offers no TLS")
    check_sent(wiretap, False)


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@pytest.mark.parametrize("entry", ["tls_required", "tls_available"])
async def test_a_server_that_only_pretends_to_have_tls_gets_no_password(
    wiretap: Wiretap, make_backend: Make, trust: Callable[[str], str], entry: str, scheme: str
) -> None:
    trust("127.0.0.1")
    wiretap.info = PLAIN_INFO | {entry: True}
    await check_refused(make_backend(wiretap.url(scheme)), "SSL|TLS")
    check_sent(wiretap, True)


@pytest.mark.parametrize("required", [True, False])
async def test_a_server_that_has_tls_is_used_with_it_even_if_it_does_not_require_it(
    wiretap: Wiretap,
    start_server: Start,
    make_backend: Make,
    trust: Callable[[str], str],
    required: bool,
) -> None:
    optional = "" if required else "allow_non_tls: true\n"
    wiretap.upstream_port = start_server(config=USER + optional + trust("127.0.0.1")).port
    for scheme in ("tls", "nats"):
        backend = make_backend(wiretap.url(scheme))
        assert backend.publish([Author().draft("job:1")])
        await backend.open()
        assert await backend.tops(["job:1"])
        check_sent(wiretap, True)


@pytest.mark.parametrize(
    ("address", "trusted", "reason"),
    [("127.0.0.2", True, "certificate is not valid for"), ("127.0.0.1", False, "certificate")],
    ids=["name", "chain"],
)
async def test_a_certificate_for_another_name_or_of_an_unknown_authority_gets_no_password(
    wiretap: Wiretap,
    start_server: Start,
    make_backend: Make,
    trust: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    trusted: bool,
    reason: str,
) -> None:
    wiretap.upstream_port = start_server(config=USER + trust(address)).port
    if not trusted:
        monkeypatch.delenv("SEMANTIK_REALTIME_NATS_TLS_CA")
    await check_refused(make_backend(wiretap.url("tls")), reason)
    check_sent(wiretap, True)


def test_a_websocket_without_tls_and_a_ca_contradict_each_other(tmp_path: Path) -> None:
    certificate, _ = write_certificate(tmp_path)
    with pytest.raises(ConfigError, match="use wss://"):
        plan_connect("ws://u:p@host:80", NatsSettings(tls_ca=str(certificate)))
    assert plan_connect("wss://u:p@host:443", NatsSettings(tls_ca=str(certificate)))
