"""The commands, as a person types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from semantik_realtime.cli import main; main()"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**kept, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def children_of(pid: int) -> set[int]:
    """Processes that ``pid`` started, by /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(stat.parent.name))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(25):
        text = f"Document {number}.\n\n" + "A paragraph about live updates. " * 60
        (documents / f"{number:02}.txt").write_text(text)
    return documents


@pytest.mark.valkey
def test_demo_once_indexes_a_folder_and_says_what_it_did(folder: Path) -> None:
    done = run("demo", "--once", str(folder))
    assert done.returncode == 0, done.stderr
    assert re.search(r"documents 25 +failed 0 +chunks [1-9]\d* +seconds \d+\.\d", done.stdout)


@pytest.mark.valkey
def test_demo_once_of_nothing_fails_with_the_reason(tmp_path: Path) -> None:
    done = run("demo", "--once", str(tmp_path))
    assert done.returncode == 1
    assert "no documents" in done.stderr


@pytest.mark.valkey
def test_demo_once_fails_when_its_worker_dies(folder: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "demo", "--once", str(folder), "--pause", "5"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (workers := {pid for pid in children_of(demo.pid) if is_busy_worker(pid)}):
            assert time.monotonic() < deadline, "no task ran"
            time.sleep(0.05)
        os.kill(workers.pop(), signal.SIGKILL)
        assert demo.wait(30) == 1
        assert demo.stderr is not None
        assert "worker ended with code -9" in demo.stderr.read()
    finally:
        demo.kill()
        demo.wait()
        demo.stderr.close()  # type: ignore[union-attr]


def is_busy_worker(pid: int) -> bool:
    """Whether ``pid`` is the worker's main process, with its pool running."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"celery" in command and len(children_of(pid)) >= 2


@pytest.mark.valkey
def test_demo_prints_its_address_and_ends_all_it_started_on_ctrl_c(folder: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "demo", str(folder)], stdout=subprocess.PIPE, text=True, cwd=folder
    )
    started: set[int] = set()
    try:
        assert demo.stdout is not None
        address = None
        while address is None:
            line = demo.stdout.readline()
            assert line, "the demo ended"
            found = re.search(r"http://[\d.:]+", line)
            address = found and found[0]
        with urllib.request.urlopen(address, timeout=5) as page:
            assert page.status == 200
        started = children_of(demo.pid)
        started |= {child for pid in started for child in children_of(pid)}
        assert len(started) >= 4
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + 5
    while alive := {pid for pid in started if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)


@pytest.mark.valkey
def test_an_event_published_by_hand_is_appended(server_url: Callable[[str], str]) -> None:
    done = run(
        "publish", "collection:cli", "note", "--data", '{"n": 1}', REDIS_URL=server_url("valkey")
    )
    assert done.stdout.startswith("appended "), done.stderr


def test_a_wrong_topic_is_refused_in_a_sentence() -> None:
    done = run("publish", "../x", "note", SEMANTIK_REALTIME_BACKEND="memory")
    assert done.returncode == 1
    assert "not a topic name: '../x'" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_is_no_object_is_refused() -> None:
    for data in ("[1]", "{"):
        done = run("publish", "a:b", "n", "--data", data, SEMANTIK_REALTIME_BACKEND="memory")
        assert done.returncode == 1
        assert "--data" in done.stderr


@pytest.mark.valkey
def test_doctor_is_content_with_a_good_server(server_url: Callable[[str], str]) -> None:
    done = run("doctor", REDIS_URL=server_url("valkey"), SEMANTIK_REALTIME_JWT_SECRET="s" * 32)
    assert done.returncode == 0, done.stdout
    for expected in ("valkey 9", "clock", "memory", "celery.commands"):
        assert expected in done.stdout
    assert "FAIL" not in done.stdout


def test_doctor_says_that_the_server_is_not_there() -> None:
    done = run("doctor", REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert re.search(r"FAIL +server +not reachable", done.stdout)


def test_doctor_says_what_is_wrong_with_the_settings() -> None:
    done = run("doctor", SEMANTIK_REALTIME_RETENTION_EVENTS="none")
    assert done.returncode == 1
    assert "RETENTION_EVENTS" in done.stdout.upper()


def test_doctor_fails_when_authentication_is_off_in_production() -> None:
    done = run("doctor", DISABLE_AUTH="1", SEMANTIK_REALTIME_BACKEND="memory")
    assert done.returncode == 1
    assert re.search(r"FAIL +access +authentication is off", done.stdout)


@pytest.mark.valkey
def test_doctor_warns_of_eviction_and_of_a_server_that_never_saves() -> None:
    from semantik_realtime.testing.servers import RedisServer, running, valkey_program

    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    with running(RedisServer(valkey_program(), options=options)) as server:
        done = run("doctor", REDIS_URL=server.url)
    assert "maxmemory-policy noeviction" in done.stdout
    assert "appendonly yes" in done.stdout


@pytest.mark.valkey
def test_watch_follows_a_job_to_its_end(tmp_path: Path, folder: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "demo", str(folder), "--pause", "0.05"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        assert demo.stdout is not None
        text = ""
        while "password" not in text:
            line = demo.stdout.readline()
            assert line, "the demo ended"
            text += line
        found = re.search(r"http://([\d.:]+)", text)
        password = re.search(r"password (\S+)", text)
        assert found
        assert password
        session = _post(f"{found[0]}/api/login", {"username": "demo", "password": password[1]})
        job = _post(f"{found[0]}/api/jobs", {"all": True}, session["token"])
        done = run(
            "watch",
            job["id"],
            "--json",
            "--url",
            f"ws://{found[1]}/realtime/ws",
            SEMANTIK_REALTIME_TOKEN=session["token"],
        )
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        offsets = [event["offset"] for event in events]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        assert events[-1]["type"] == "job_completed"
        refused = run("watch", job["id"], "--url", f"ws://{found[1]}/realtime/ws")
        assert refused.returncode == 1
        assert "4408" in refused.stderr or "4401" in refused.stderr
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(30)
        demo.stdout.close()  # type: ignore[union-attr]


def _post(url: str, body: dict[str, object], token: str | None = None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "X-Requested-With": "test"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)  # type: ignore[no-any-return]
