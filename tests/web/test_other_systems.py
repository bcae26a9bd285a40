"""Everything but the demo works without what Windows lacks."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from semantik_realtime import metrics
from semantik_realtime.backends.loader import backend_names
from semantik_realtime.client import watch
from semantik_realtime.core.lifecycle import has_ended

HERE = Path(__file__).parent
RUNNER = (sys.executable, str(HERE / "without_posix.py"))
PACKAGES = {"nats": "semantik_realtime_nats", "sqlite": "semantik_realtime_sqlite"}
STEPS = 20


@pytest.fixture
def environment(server_url: Callable[[str], str], tmp_path: Path) -> dict[str, str]:
    prefix = f"t{secrets.token_hex(5)}"
    outer = {name: text for name, text in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    return {
        **outer,
        "PYTHONPATH": str(HERE),
        "REDIS_URL": server_url("valkey"),
        "TEST_QUEUE": prefix,
        "SEMANTIK_REALTIME_PREFIX": prefix,
        "SEMANTIK_REALTIME_SPOOL_DIRECTORY": str(tmp_path / "spool"),
        "SEMANTIK_REALTIME_DISABLE_AUTH": "true",
        "SEMANTIK_REALTIME_ENVIRONMENT": "test",
    }


@contextmanager
def running(log: Path, environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*RUNNER, *command], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")


def test_every_module_can_be_imported() -> None:
    packages = [package for name, package in PACKAGES.items() if name in backend_names()]
    done = subprocess.run(
        [*RUNNER, "every_module", "semantik_realtime", *packages],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["faults"] == {}
    assert answer["imported"] > 100


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_job_reaches_a_watcher_from_start_to_end(
    environment: dict[str, str], tmp_path: Path, pool: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    worker_log, web_log = tmp_path / "worker.log", tmp_path / "web.log"
    with ExitStack() as stack:
        worker = running(
            *(worker_log, environment, "celery", "-A", "portable_app", "worker"),
            *("--pool", pool, "--concurrency", "2", "--loglevel", "info", "-n", f"{pool}@here"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        )
        web = running(
            *(web_log, environment, "uvicorn", "webhost:app", "--port", str(port)),
            *("--loop", "asyncio", "--log-level", "info", "--timeout-graceful-shutdown", "3"),
        )
        processes = [stack.enter_context(program) for program in (worker, web)]
        deadline = time.monotonic() + 60
        while not (" ready." in worker_log.read_text() and answers(port)):
            logs = worker_log.read_text() + web_log.read_text()
            assert all(process.poll() is None for process in processes), logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.1)
        sent = subprocess.run(
            [sys.executable, "-c", f"import portable_app as a; print(a.count.delay({STEPS}).id)"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        events = asyncio.run(follow(port, sent.stdout.split()[-1]))
    assert events[-1]["type"] == "job_completed"
    numbers = [event["data"]["number"] for event in events if event["type"] == "step"]
    assert numbers == list(range(STEPS))


def answers(port: int) -> bool:
    try:
        health = httpx.get(f"http://127.0.0.1:{port}/realtime/health", trust_env=False).json()
    except httpx.TransportError:
        return False
    return bool(health["backend"]["reachable"])


async def follow(port: int, job_id: str) -> list[dict[str, Any]]:
    """Return the events of a job, up to its end."""
    events: list[dict[str, Any]] = []
    updates = watch(f"ws://127.0.0.1:{port}/realtime/ws", f"job:{job_id}", history=1000)
    async with aclosing(updates), asyncio.timeout(60):
        async for update in updates:
            events += update.events
            if has_ended(update.view.folded.get(job_id, {})):
                break
    return events


SPOOL = """
import sys
from pathlib import Path
from semantik_realtime.core.event import Draft, encode_body
from semantik_realtime.emitter.spool_file import SpoolFile, open_orphan
folder = Path(sys.argv[1])
def draft(number):
    body = encode_body("step", "2026-11-23T08:00:00.123Z", "1")
    return Draft(topic="job:1", type="step", key="1", body=body, producer="p", number=number)
"""


def spool(folder: Path, *, text: str) -> subprocess.Popen[str]:
    (folder.parent / f"part{len(text)}.py").write_text(SPOOL + text)
    return subprocess.Popen(
        [*RUNNER, f"part{len(text)}", str(folder)],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{folder.parent}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_drafts_of_an_ended_process_are_recovered_once(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    writing = spool(
        folder,
        text="""
file = SpoolFile(folder, 2**20)
file.store([draft(1)], lambda: [draft(1)])
file.store([draft(2)], lambda: [draft(1), draft(2)])
print("stored", open_orphan(folder, set()), flush=True)
sys.stdin.readline()
""",
    )
    assert writing.stdout is not None
    assert writing.stdout.readline() == "stored None\n"
    reading = """
orphan = open_orphan(folder, set())
print([one.number for one in orphan.next_batch(10)] if orphan else None, flush=True)
if orphan:
    orphan.remove()
print(len(list(folder.iterdir())))
"""
    while_running = spool(folder, text=reading).communicate(timeout=60)[0]
    assert while_running == "None\n1\n"
    writing.communicate("\n", timeout=60)
    assert spool(folder, text=reading).communicate(timeout=60)[0] == "[1, 2]\n0\n"


def test_the_file_goes_when_its_drafts_were_sent(tmp_path: Path) -> None:
    text = """
file = SpoolFile(folder, 2**20)
file.store([draft(1)], lambda: [draft(1)])
file.remove()
file.store([draft(2)], lambda: [draft(2)])
big = [draft(number) for number in range(3, 40_000)]
file.store(big, lambda: big)
print(len(list(folder.iterdir())))
file.remove()
print(len(list(folder.iterdir())))
"""
    assert spool(tmp_path / "spool", text=text).communicate(timeout=60)[0] == "1\n0\n"


def test_windows_is_not_asked_whether_a_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    # There, `os.kill` ends the process whatever the signal.
    monkeypatch.setattr(metrics.sys, "platform", "win32")
    monkeypatch.setattr(metrics.os, "kill", lambda *_: pytest.fail("it would be killed"))
    assert metrics._is_alive(1)
