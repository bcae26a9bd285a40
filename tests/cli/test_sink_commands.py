"""``semantik-realtime sinks``: what an operator sees and does."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from commandline import COMMAND, obey_signals, run

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.sinks import Fate, Settlement, SinkFilter
from semantik_realtime.testing.contract import Author

APP = """
import pathlib
import time
from semantik_realtime import Realtime

realtime = Realtime()

@realtime.sink(name="files")
def write(event):
    folder = pathlib.Path(__file__).parent
    (folder / event.key).write_text(event.identity)
    if event.key == "hang":
        time.sleep(60)

empty = Realtime()
"""


@pytest.fixture
def variables(server_url: Callable[[str], str]) -> dict[str, str]:
    prefix = f"t{secrets.token_hex(5)}"
    return {"REDIS_URL": server_url("valkey"), "SEMANTIK_REALTIME_PREFIX": prefix}


@pytest.fixture
def backend(variables: dict[str, str]) -> Iterator[Any]:
    prefix = variables["SEMANTIK_REALTIME_PREFIX"]
    made: Any = load_backend(load_settings(url=variables["REDIS_URL"], prefix=prefix))
    yield made
    for status in made.sink_status():
        made.sink_forget(status.name)
    made.close_writer()


def bury(backend: Any, count: int, limit: int = 100) -> None:
    """Record the sink ``ends`` and give it dead letters."""
    wanted = SinkFilter.of("job_failed", "job:*").encode()
    backend.sink_open("ends", wanted, limit, 0.0)
    author = Author()
    backend.publish([author.draft("job:1", "job_failed") for _ in range(count)])
    taken = backend.sink_take("ends", wanted, count, 60.0)
    backend.sink_settle(
        "ends",
        [Settlement(one.id, one.attempt, Fate.DEAD, error="bad\x1b[2J") for one in taken],
    )


def test_the_sinks_are_listed_with_their_queues(backend: Any, variables: dict[str, str]) -> None:
    nothing = run("sinks", "list", **variables)
    assert nothing.returncode == 0, nothing.stderr
    assert "no sink is recorded" in nothing.stdout
    bury(backend, 2)
    listed = run("sinks", "list", **variables)
    assert listed.returncode == 0
    assert "ends  queued=0 held=0" in listed.stdout
    assert "dead=2 handled=0 lost=0" in listed.stdout
    assert "(job_failed of job:*)" in listed.stdout
    backend.sink_open("ends", SinkFilter.of("job_failed", "job:*").encode(), 1, 0.0)
    backend.publish([Author().draft("job:1", "job_failed") for _ in range(1)])
    backend.publish([Author().draft("job:1", "job_failed") for _ in range(1)])
    lossy = run("sinks", "list", "--json", **variables)
    assert lossy.returncode == 1
    [status] = [json.loads(line) for line in lossy.stdout.splitlines()]
    assert (status["queued"], status["lost"]) == (1, 1)
    assert status["filter"] == {"types": ["job_failed"], "topics": ["job:*"]}


def test_a_spoiled_sink_is_listed_and_can_be_forgotten(
    backend: Any, variables: dict[str, str]
) -> None:
    bury(backend, 1)
    with redis.Redis.from_url(variables["REDIS_URL"]) as admin:
        admin.set(f"{backend._sinks_key}:ends:queue", "text")
        admin.hset(backend._sinks_key, "odd", b"\xff{")
    listed = run("sinks", "list", **variables)
    assert listed.returncode == 1
    assert "ends  unreadable: WRONGTYPE" in listed.stdout
    assert "odd  queued=0" in listed.stdout
    lines = run("sinks", "list", "--json", **variables).stdout.splitlines()
    ends, odd = [json.loads(line) for line in lines]
    assert "WRONGTYPE" in ends["error"]
    assert odd["error"] == ""
    for name in ("ends", "odd"):
        assert run("sinks", "forget", name, **variables).returncode == 0
    assert backend.sink_status() == []


def test_dead_letters_are_shown_replayed_and_discarded(
    backend: Any, variables: dict[str, str]
) -> None:
    bury(backend, 3)
    shown = run("sinks", "dead", "ends", **variables)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) == 3
    assert all("job:1/" in line and "\\x1b[2J" in line for line in lines)
    assert "\x1b" not in shown.stdout
    [letter] = [
        json.loads(line)
        for line in run(
            "sinks", "dead", "ends", "--json", "--limit", "1", **variables
        ).stdout.splitlines()
    ]
    assert json.loads(letter["event"])["type"] == "job_failed"
    first = letter["id"]
    assert lines[0].startswith(first)
    assert (
        "1 dead letters of ends removed"
        in run("sinks", "discard", "ends", first, **variables).stdout
    )
    assert run("sinks", "discard", "ends", **variables).returncode == 2
    assert (
        "2 dead letters are in the queue of ends again"
        in run("sinks", "replay", "ends", **variables).stdout
    )
    [status] = backend.sink_status()
    assert (status.queued, status.dead) == (2, 0)


def test_an_unknown_sink_is_named_with_those_there_are(
    backend: Any, variables: dict[str, str]
) -> None:
    bury(backend, 1)
    for command in ("dead", "replay", "forget"):
        refused = run("sinks", command, "end", **variables)
        assert refused.returncode == 1
        assert "there is no sink end; recorded: ends" in refused.stderr
    assert run("sinks", "forget", "ends", **variables).returncode == 0
    assert backend.sink_status() == []


def test_what_is_no_application_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    wrong = run("sinks", "run", "nothing:here")
    assert "no application nothing:here" in wrong.stderr
    assert "name it as module:name" in run("sinks", "run", "app").stderr


@pytest.fixture
def process(
    backend: Any, variables: dict[str, str], tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "app.py").write_text(APP)
    running = subprocess.Popen(
        [*COMMAND, "sinks", "run", "app:realtime"],
        cwd=tmp_path,
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_signals,
    )
    yield running
    running.kill()
    running.communicate()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "not within 60 s"
        time.sleep(0.02)


def test_sinks_run_in_a_process_of_their_own_and_stop_before_a_handler_that_hangs(
    process: subprocess.Popen[str], backend: Any, tmp_path: Path
) -> None:
    wait_for(backend.sink_status)
    author = Author()
    backend.publish([author.draft("job:1", key="done"), author.draft("job:1", key="hang")])
    wait_for(lambda: (tmp_path / "done").exists() and (tmp_path / "hang").exists())
    wait_for(lambda: backend.sink_status()[0].queued == 1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert time.monotonic() - began < 20
    assert (tmp_path / "done").read_text() == f"job:1/{author.name}.1"
    wanted = SinkFilter.of(None, "job:*").encode()
    [again] = backend.sink_take("files", wanted, 10, 1.0)
    assert (again.identity, again.attempt) == (f"job:1/{author.name}.2", 1)


def test_an_application_without_sinks_is_a_sentence(
    variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = subprocess.run(
        [*COMMAND, "sinks", "run", "app:empty"],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "app:empty has registered no sink" in done.stderr
