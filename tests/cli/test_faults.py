"""What the demo's page may do to its programs, and the ports that the demo keeps."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semantik_realtime.cli import faults as faults_module
from semantik_realtime.cli.faults import VARIABLE, Faults, children_of
from semantik_realtime.cli.ports import listen, port_of, reserve_port
from semantik_realtime.cli.program import DemoFailed, Program
from semantik_realtime.demo import faults as demo_faults
from semantik_realtime.demo.faults import FAULTS, Supervisor

PARENT = """
import subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in "ab"]
time.sleep(60)
"""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[dict[str, Program]]:
    made = {
        name: Program(name, [sys.executable, "-c", PARENT], {}, tmp_path / f"{name}.log")
        for name in ("valkey", "worker", "web")
    }
    for program in made.values():
        until(lambda program=program: len(children_of(program.pid)) == 2)
    yield made
    for program in made.values():
        program.kill()


@pytest.fixture
def faults(
    programs: dict[str, Program], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Faults, Callable[[str], str]]]:
    """The supervisor's side, and a call of the other side that it answers."""
    made = Faults(programs.__getitem__, "valkey")
    monkeypatch.setenv(VARIABLE, str(os.dup(made.inherited.fileno())))
    supervisor = demo_faults.find_supervisor()
    assert supervisor is not None

    def cause(fault: str) -> str:
        # Sent first: the buffer of the pair holds it until it is served.
        original = supervisor._socket.recv
        sentences: list[str] = []

        class Answering:
            send = staticmethod(supervisor._socket.send)

            @staticmethod
            def recv(size: int) -> bytes:
                sentences.extend(made.serve(5))
                return original(size)

        whole = supervisor._socket
        supervisor._socket = Answering()  # type: ignore[assignment]
        try:
            answer = supervisor.cause(fault)
        finally:
            supervisor._socket = whole
        assert sentences == [answer]
        return answer

    yield made, cause
    supervisor._socket.close()
    made.close()


def test_the_page_and_the_supervisor_know_the_same_faults(programs: dict[str, Program]) -> None:
    made = Faults(programs.__getitem__, "valkey")
    assert set(made._by_name) == set(FAULTS)
    made.close()


def test_only_the_children_of_the_worker_are_killed(
    faults: tuple[Faults, Callable[[str], str]], programs: dict[str, Program]
) -> None:
    _, cause = faults
    children, others = children_of(programs["worker"].pid), children_of(programs["web"].pid)
    sentence = cause("kill-children")
    assert all(str(child) in sentence for child in children)
    # Killed and listed: their parent has not waited for them.
    until(lambda: {state_of(child) for child in children} == {"Z"})
    assert programs["worker"].is_running
    assert "Z" not in {state_of(other) for other in others}


def test_a_killed_worker_is_started_again_as_often_as_it_is_killed(
    faults: tuple[Faults, Callable[[str], str]], programs: dict[str, Program]
) -> None:
    _, cause = faults
    worker = programs["worker"]
    for _ in range(5):
        pid = worker.pid
        assert str(pid) in cause("kill-worker")
        assert not worker.is_running
        assert "away already" in cause("kill-worker")
        sentence = worker.restart_if_ended()
        assert sentence is not None
        assert f"process {pid}) was killed by SIGKILL" in sentence


def test_a_stopped_engine_is_back_after_its_time_only(
    faults: tuple[Faults, Callable[[str], str]],
    programs: dict[str, Program],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, cause = faults
    monkeypatch.setattr(faults_module, "AWAY_SECONDS", 3600.0)
    engine = programs["valkey"]
    assert cause("stop-engine") == "The broker (Valkey) was stopped. It is back in 3600 s."
    assert not engine.is_running
    assert engine.restart_if_ended() is None
    assert cause("stop-engine") == "The broker (Valkey) is away already."
    engine._away_until = time.monotonic()
    assert "started again" in str(engine.restart_if_ended())


def test_a_restarted_web_server_has_answered_before(
    faults: tuple[Faults, Callable[[str], str]], programs: dict[str, Program]
) -> None:
    _, cause = faults
    assert cause("restart-web") == "The web server restarts."
    assert not programs["web"].is_running


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"number":1}',
        b'{"number":1,"fault":"rm"}',
        b'{"number":1,"fault":["kill-worker"]}',
        b'{"fault":"kill-worker"}',
    ],
)
def test_a_request_that_names_no_fault_does_nothing(
    programs: dict[str, Program], request_: bytes
) -> None:
    made = Faults(programs.__getitem__, "valkey")
    made.inherited.send(request_)
    assert made.serve(5) == []
    assert all(program.is_running for program in programs.values())
    made.close()


@pytest.mark.parametrize("value", [None, "", "x", "-1", "99999", "file"])
def test_without_the_supervisors_socket_there_is_none(
    value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with (tmp_path / "file").open("w") as file:
        if value is not None:
            monkeypatch.setenv(VARIABLE, str(file.fileno()) if value == "file" else value)
        assert demo_faults.find_supervisor() is None


def test_a_supervisor_that_does_not_answer_is_an_error_after_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_faults, "ANSWER_SECONDS", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    supervisor = Supervisor(theirs.detach())
    with pytest.raises(TimeoutError):
        supervisor.cause("kill-worker")
    supervisor._socket.close()
    ours.close()


def test_two_demos_that_start_at_once_never_choose_the_same_port() -> None:
    with reserve_port() as taken:
        preferred = port_of(taken)
    with listen(None, preferred) as first, listen(None, preferred) as second:
        assert port_of(first) == preferred
        assert port_of(second) != preferred
    keepers = [reserve_port() for _ in range(50)]
    assert len({port_of(keeper) for keeper in keepers}) == 50
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port_of(keepers[0])))
        server.listen()
    for keeper in keepers:
        keeper.close()


def test_a_given_port_that_is_taken_is_refused_with_a_sentence() -> None:
    with listen(None, 0) as first, pytest.raises(DemoFailed, match="choose another --port"):
        listen(port_of(first), 0)
