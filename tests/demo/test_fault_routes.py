"""Who may press the buttons that break something: a user of the demo's own page, nobody else."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from installation import LogIn

from semantik_realtime.demo.faults import Supervisor
from semantik_realtime.demo.settings import DemoSettings


@pytest.fixture
def requests(client: TestClient) -> Iterator[list[str]]:
    """The faults that the supervisor was asked for; it answers with a sentence."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.app.state.supervisor = Supervisor(theirs.detach())  # type: ignore[attr-defined]
    asked: list[str] = []

    def answer() -> None:
        while request := ours.recv(1000):
            content = json.loads(request)
            asked.append(content["fault"])
            # An answer that nobody waits for any more comes first.
            for number in ("old", content["number"]):
                ours.send(json.dumps({"number": number, "sentence": f"{number} done"}).encode())

    thread = threading.Thread(target=answer)
    thread.start()
    yield asked
    client.app.state.supervisor._socket.send(b"")  # type: ignore[attr-defined]
    thread.join(10)
    client.app.state.supervisor._socket.close()  # type: ignore[attr-defined]
    ours.close()


def test_without_the_demos_supervisor_there_is_no_route(client: TestClient) -> None:
    assert client.get("/api/faults").status_code == 404
    assert client.post("/api/faults/kill-worker").status_code == 404


def test_a_user_causes_a_fault_and_reads_what_was_done(
    client: TestClient, requests: list[str]
) -> None:
    assert "kill-worker" in client.get("/api/faults").json()["faults"]
    answer = client.post("/api/faults/kill-worker", headers={"origin": "http://testserver"})
    assert answer.status_code == 202
    assert answer.json()["sentence"].endswith(".1 done")
    assert requests == ["kill-worker"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://testserver.evil.example"},
        {"origin": "http://testserver:81"},
    ],
)
def test_another_site_causes_no_fault_whatever_else_it_sends(
    client: TestClient, requests: list[str], headers: dict[str, str]
) -> None:
    assert client.post("/api/faults/kill-worker", headers=headers).status_code == 403
    assert requests == []


def test_a_form_of_another_site_causes_no_fault(client: TestClient, requests: list[str]) -> None:
    del client.headers["x-requested-with"]
    assert client.post("/api/faults/kill-worker").status_code == 403
    assert client.get("/api/faults/kill-worker").status_code == 405
    assert requests == []


def test_nobody_causes_a_fault_without_a_login(client: TestClient, requests: list[str]) -> None:
    client.cookies.clear()
    assert client.get("/api/faults").status_code == 401
    assert client.post("/api/faults/kill-worker").status_code == 401
    assert requests == []


def test_an_unknown_fault_is_refused(client: TestClient, requests: list[str]) -> None:
    assert client.post("/api/faults/rm").status_code == 404
    assert requests == []


def test_the_demo_has_no_faults_by_default(log_in: LogIn, settings: DemoSettings) -> None:
    assert log_in(settings.user).app.state.supervisor is None  # type: ignore[attr-defined]
