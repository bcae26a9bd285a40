"""SIGTERM and Ctrl-C end each command within 3 s, also when its server hangs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import COMMAND, obey_signals

from semantik_realtime.testing.servers import RedisServer, free_port, running, valkey_program

PROMISE_SECONDS = 3.0
SPARE_SECONDS = 4.0
"""What a busy machine may need more."""

pytestmark = pytest.mark.valkey


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=obey_signals,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def wait_ended(process: subprocess.Popen[str], began: float) -> None:
    left = began + PROMISE_SECONDS + SPARE_SECONDS - time.monotonic()
    process.wait(max(0.0, left))
    print(f"{process.args[3]}: {time.monotonic() - began:.2f} s")  # type: ignore[index]


@pytest.fixture
def hanging_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for a server that accepts connections and answers nothing."""
    (tmp_path / "shop.py").write_text(
        "import os\nfrom celery import Celery\napp = Celery('shop', broker=os.environ['REDIS_URL'])"
    )
    with running(RedisServer(valkey_program())) as server:
        server.pause()
        yield {
            "REDIS_URL": server.url,
            "SEMANTIK_REALTIME_JWT_SECRET": "a secret of at least thirty-two bytes",
            "PYTHONPATH": str(tmp_path),
            # As long as a test runs, so that it is under way when the signal comes.
            "SEMANTIK_REALTIME_TIMEOUT_SECONDS": "60",
        }
        server.resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_whose_server_hangs_stops(
    hanging_environment: dict[str, str], number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        commands = {
            "serve": ("-A", "shop", "--port", str(free_port())),
            "watch": ("1", "--url", url, "--token", "a.b.c"),
            "verify": (url, "--seconds", "5"),
            "doctor": (),
            "publish": ("job:1", "note"),
        }
        processes = {
            name: start(name, *arguments, **hanging_environment)
            for name, arguments in commands.items()
        }
        try:
            assert "http://" in processes["serve"].stdout.readline()  # type: ignore[union-attr]
            time.sleep(2)
            assert all(process.poll() is None for process in processes.values())
            began = time.monotonic()
            for process in processes.values():
                process.send_signal(number)
            for process in processes.values():
                wait_ended(process, began)
        finally:
            for process in processes.values():
                process.kill()
                process.communicate()


@pytest.mark.parametrize("signals", [1, 2])
def test_the_demo_ends_all_of_its_programs_though_its_engine_hangs(
    tmp_path: Path, signals: int
) -> None:
    (tmp_path / "one.txt").write_text("a text")
    demo = start("demo", str(tmp_path), "--port", str(free_port()))
    programs: dict[str, int] = {}
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "processes:" in line:
                programs = {name: int(pid) for name, pid in re.findall(r"(\w+) (\d+)", line)}
                break
        os.kill(programs["valkey"], signal.SIGSTOP)
        began = time.monotonic()
        demo.send_signal(signal.SIGTERM)
        if signals > 1:
            while "stopping" not in demo.stdout.readline():
                assert demo.poll() is None
            demo.send_signal(signal.SIGTERM)
        wait_ended(demo, began)
        assert [name for name, pid in programs.items() if Path(f"/proc/{pid}").exists()] == []
    finally:
        demo.kill()
        demo.communicate()
        for pid in programs.values():
            # Nothing else may have the number of a process that the demo has waited for.
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
