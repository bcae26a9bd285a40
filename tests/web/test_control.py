"""Cancel a job, and start one again, over HTTP: who may, what is told, and what watchers see."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from clients import CompatClient, NativeClient
from configuration import make_settings, token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.core.cancelling import CONTROL_TOPIC
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.servers import free_port
from semantik_realtime.web import control


class Runner:
    """Runs jobs: notes what it is told, and answers as the test sets it."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.told: list[dict[str, Any]] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    @hookimpl
    async def cancel(
        self, job: str, name: str | None, is_running: bool, terminate: str | None
    ) -> Any:
        self.told.append({"job": job, "running": is_running, "terminate": terminate})
        if self.before_answer is not None:
            await self.before_answer()
        return await self._answer()

    @hookimpl
    async def retry(self, job: str, user: str) -> Any:
        self.told.append({"job": job, "user": user})
        return await self._answer()

    async def _answer(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, runner: object, *rules: object
) -> AsyncIterator[tuple[InProcessServer, httpx.AsyncClient]]:
    async with (
        serve_realtime(settings, plugins=[runner, *rules]) as web_server,
        web_server.http_client() as http,
    ):
        yield web_server, http


async def begin(publisher: Publisher, job: str, status: str = "running", attempt: int = 1) -> None:
    type = {"queued": "job_queued", "running": "job_started", "retrying": "job_retrying"}[status]
    state = {"status": status, "attempt": attempt, "progress": {"current": 3, "total": 9}}
    publisher.emit(f"job:{job}", type=type, state=state, job=job, attempt=attempt)
    await publisher.flush()


async def shows(client: NativeClient, topic: str, state: dict[str, Any]) -> None:
    """Wait until the client shows the job with these members."""
    view = client.views[topic]
    await until(lambda: view.states.get("1", {}).items() >= state.items(), 10, f"{topic} {state}")


async def history(http: httpx.AsyncClient, job: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/realtime/jobs/{job}/history", params={"limit": 1000})
    return answer.json()["events"]


async def test_a_workflow_that_is_shown_as_queued_does_not_end_while_a_task_of_it_runs(
    settings: Settings, publisher: Publisher
) -> None:
    whole = {"status": "queued", "attempt": 0, "workflow": {"total": 2, "ends": "all"}}
    publisher.emit("job:1", type="job_queued", state=whole, job="1", attempt=0)
    # The worker has not yet said that the whole runs.
    member = {"status": "running", "attempt": 1, "member": {"n": 0}}
    publisher.emit("job:1", type="job_started", key="a", state=member, job="a", attempt=1)
    await publisher.flush()
    async with serving(settings, Runner()) as (_, http):
        answer = await http.post("/realtime/jobs/1/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        [*_, last] = await history(http, "1")
    assert (last["type"], last["state"]["status"]) == ("job_cancelling", "cancelling")


@pytest.mark.every_backend(shares_storage=True)
@pytest.mark.parametrize(("status", "attempt"), [("queued", 0), ("retrying", 2)])
async def test_a_job_that_waits_ends_at_once_with_its_whole_state(
    settings: Settings, publisher: Publisher, status: str, attempt: int
) -> None:
    await begin(publisher, "1", status, attempt)
    runner = Runner()
    async with serving(settings, runner) as (web_server, http):
        async with NativeClient(web_server, "job:1", "user:7") as client:
            await client.wait_synced()
            answer = await http.post("/realtime/jobs/1/cancel")
            assert answer.status_code == 200
            assert answer.json() == {"topic": "job:1", "status": "cancelled"}
            state = {"status": "cancelled", "attempt": attempt}
            for topic in ("job:1", "user:7"):
                await shows(client, topic, state)
        [*_, last] = await history(http, "1")
        assert (last["type"], last["terminal"]) == ("job_cancelled", True)
        assert last["state"]["progress"] == {"current": 3, "total": 9}
        assert last["state"]["ended_at"]
        assert runner.told == [{"job": "1", "running": False, "terminate": None}]
        # Again: the answer of the first request may have been lost.
        assert (await http.post("/realtime/jobs/1/cancel")).status_code == 200
        assert len(await history(http, "1")) == 2


@pytest.mark.every_backend(shares_storage=True)
async def test_a_job_that_runs_is_cancelling_until_its_worker_sends_the_end(
    settings: Settings, publisher: Publisher
) -> None:
    await begin(publisher, "1")
    settings = Settings(**{**settings.model_dump(), "cancel_signal": "SIGINT"})
    runner = Runner()
    async with serving(settings, runner) as (web_server, http):
        for _ in range(2):
            answer = await http.post("/realtime/jobs/1/cancel")
            assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        assert [told["terminate"] for told in runner.told] == ["SIGINT", "SIGINT"]
        events = await history(http, "1")
        assert [event["type"] for event in events] == ["job_started", "job_cancelling"]
        assert events[-1]["state"]["progress"] == {"current": 3, "total": 9}
        assert "terminal" not in events[-1]
        # The workers' processes read this topic.
        asked = await web_server.rt.web.hub.page(CONTROL_TOPIC, 0, 10)
        assert [event.head().key for event in asked.events] == ["1"]
        # It was too late.
        await publisher.end("job:1")
        answer = await http.post("/realtime/jobs/1/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "ended")


async def test_a_page_of_the_compatibility_wire_is_shown_both(
    settings: Settings, publisher: Publisher
) -> None:
    await begin(publisher, "1")
    async with serving(settings, Runner()) as (web_server, http):
        async with CompatClient(web_server.compat_url("1")) as browser:
            await browser.wait_for("current_state")
            await http.post("/realtime/jobs/1/cancel")
            message = await browser.wait_for("job_cancelling")
            assert (message["data"]["status"], message["data"]["current"]) == ("cancelling", 3)
            await publisher.end("job:1", "job_cancelled")
            message = await browser.wait_for("job_cancelled")
            assert message["data"]["status"] == "cancelled"
        # A page that is loaded meanwhile.
        await begin(publisher, "1", "running", 2)
        await http.post("/realtime/jobs/1/cancel")
        async with CompatClient(web_server.compat_url("1")) as browser:
            assert (await browser.wait_for("current_state"))["data"]["status"] == "cancelling"


async def test_a_job_that_starts_meanwhile_is_cancelling_and_not_cancelled(
    settings: Settings, publisher: Publisher
) -> None:
    await begin(publisher, "1", "queued", 0)
    runner = Runner()
    runner.before_answer = lambda: begin(publisher, "1", "running", 1)
    async with serving(settings, runner) as (_, http):
        answer = await http.post("/realtime/jobs/1/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        types = [event["type"] for event in await history(http, "1")]
        assert types == ["job_queued", "job_started", "job_cancelling"]
        assert len(runner.told) == 1


@pytest.mark.parametrize("command", ["cancel", "retry"])
async def test_a_foreign_job_and_an_unknown_one_get_the_same_404(
    settings: Settings, publisher: Publisher, command: str
) -> None:
    await publisher.publish("job:foreign", 1, owner="8")
    runner = Runner()
    async with serving(settings, runner) as (_, http):
        answers = [
            await http.post(f"/realtime/jobs/{job}/{command}")
            for job in ("foreign", "unknown", "no%01id")
        ]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.text for answer in answers}) == 1
        unauthenticated = await http.post(
            f"/realtime/jobs/foreign/{command}", headers={"Authorization": ""}
        )
        assert unauthenticated.status_code == 401
    assert runner.told == []


class Rules:
    """Everyone may watch; only the user 9 may cancel or start again."""

    @hookimpl
    def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        return True

    @hookimpl
    def may_cancel(self, user: str, topic: str, owner: str | None) -> bool | None:
        return True if user == "9" else None

    @hookimpl
    async def may_retry(self, user: str, topic: str, owner: str | None) -> bool:
        return user == "9"


async def test_who_may_watch_may_not_therefore_cancel(
    settings: Settings, publisher: Publisher
) -> None:
    await begin(publisher, "1")
    runner = Runner("1")
    async with serving(settings, runner, Rules()) as (_, http):

        async def post(command: str, user: str) -> int:
            headers = {"Authorization": f"Bearer {token(user)}"}
            path = f"/realtime/jobs/1/{command}"
            return (await http.post(path, headers=headers)).status_code

        # None leaves it to the owner rule; False does not.
        assert [await post("cancel", user) for user in ("8", "7", "9")] == [403, 202, 202]
        await publisher.end("job:1", "job_cancelled")
        assert [await post("retry", user) for user in ("8", "7", "9")] == [403, 403, 202]


@pytest.mark.parametrize("allowed", [[], ["*"]])
async def test_a_page_of_another_origin_cannot_cancel_with_the_users_cookie(
    settings: Settings, publisher: Publisher, allowed: list[str]
) -> None:
    await begin(publisher, "1")
    settings = Settings(**{**settings.model_dump(), "allowed_origins": allowed})
    runner = Runner()
    async with serving(settings, runner) as (web_server, http):
        del http.headers["Authorization"]
        http.cookies.set("access_token", token("7"))
        path = "/realtime/jobs/1/cancel"
        answer = await http.post(path, headers={"Origin": "https://attacker.example"})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin")
        assert runner.told == []
        own = await http.post(path, headers={"Origin": web_server.http_url})
        assert own.status_code == 202


async def test_a_broker_that_fails_or_hangs_is_503_and_shows_nothing_as_cancelled(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(publisher, "1", "queued", 0)
    runner = Runner(OSError("refused"))
    async with serving(settings, runner) as (_, http):
        answer = await http.post("/realtime/jobs/1/cancel")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "refused" not in answer.text
        monkeypatch.setattr("semantik_realtime.web.host_hooks.HOST_SECONDS", 0.2)
        runner.before_answer = asyncio.Event().wait
        begun = time.monotonic()
        assert (await http.post("/realtime/jobs/1/cancel")).status_code == 503
        assert time.monotonic() - begun < 5
        assert [event["type"] for event in await history(http, "1")] == ["job_queued"]


def test_the_hooks_for_celery_need_no_celery() -> None:
    program = (
        "import sys; sys.modules['celery'] = None\n"
        "from semantik_realtime.worker.celery_hooks import celery_hooks\n"
        "assert celery_hooks.cancel('1', None, True, None) is None"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("command", ["cancel", "retry"])
async def test_without_a_runner_the_answer_is_501_and_a_line_names_the_hook(
    settings: Settings,
    publisher: Publisher,
    command: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a web server that sends no task.
    monkeypatch.delitem(sys.modules, "celery", raising=False)
    await begin(publisher, "1")
    if command == "retry":
        await publisher.end("job:1", "job_failed")
    async with serving(settings, object()) as (_, http):
        for _ in range(2):
            answer = await http.post(f"/realtime/jobs/1/{command}")
            assert answer.status_code == 501
            assert answer.json()["message"] == f"this server cannot {command} jobs"
    lines = [line.getMessage() for line in caplog.records if "no plugin can" in line.getMessage()]
    assert len(lines) == 1
    assert f"`{command}`" in lines[0]


async def test_a_job_that_the_runner_refuses_is_409(
    settings: Settings, publisher: Publisher
) -> None:
    await begin(publisher, "1")
    async with serving(settings, Runner(False)) as (_, http):
        answer = await http.post("/realtime/jobs/1/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "cannot_cancel")
        answer = await http.post("/realtime/jobs/1/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_ended")


async def test_a_retry_names_the_job_to_watch_and_the_page_goes_on(
    settings: Settings, publisher: Publisher
) -> None:
    await begin(publisher, "1")
    await publisher.end("job:1", "job_failed")
    runner = Runner("import:2")
    async with serving(settings, runner) as (web_server, http):
        answer = await http.post("/realtime/jobs/1/retry")
        assert answer.status_code == 202
        assert answer.json() == {"job": "import:2", "topic": "job:import~3A2"}
        assert runner.told == [{"job": "1", "user": "7"}]
        # The same id: the next attempt.
        runner.answer = "1"
        assert (await http.post("/realtime/jobs/1/retry")).json()["topic"] == "job:1"
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
            await begin(publisher, "1", "running", 2)
            await shows(client, "job:1", {"status": "running", "attempt": 2})
        await publisher.end("job:1", "job_failed")
        for runner.answer in ({"not": "an id"}, True, ""):
            assert (await http.post("/realtime/jobs/1/retry")).status_code == 503


async def test_one_user_who_sends_too_many_requests_is_refused_and_others_are_not(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BURST", 3.0)
    monkeypatch.setattr(control, "PER_SECOND", 0.01)
    await begin(publisher, "1")
    async with serving(settings, Runner(), Rules()) as (_, http):
        codes = [(await http.post("/realtime/jobs/1/cancel")).status_code for _ in range(4)]
        assert codes == [202, 202, 202, 429]
        other = {"Authorization": f"Bearer {token('9')}"}
        assert (await http.post("/realtime/jobs/1/cancel", headers=other)).status_code == 202


async def test_while_the_backend_is_away_the_answer_is_503() -> None:
    settings = make_settings(f"redis://127.0.0.1:{free_port()}", timeout_seconds=0.5)
    async with serving(settings, Runner()) as (_, http):
        assert (await http.post("/realtime/jobs/1/cancel")).status_code == 503


async def test_celery_with_a_broker_that_refuses_or_hangs_answers_503_in_time(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    celery = pytest.importorskip("celery")
    from semantik_realtime.worker import celery_control

    monkeypatch.setattr(celery_control, "BROKER_SECONDS", 1.0)
    caplog.set_level(logging.CRITICAL, "kombu")
    await begin(publisher, "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"refuses": free_port(), "hangs": silent.getsockname()[1]}
        async with serving(settings, object()) as (_, http):
            for port in ports.values():
                app = celery.Celery("broken", broker=f"redis://127.0.0.1:{port}")
                monkeypatch.setattr(celery_control, "find_app", lambda app=app: app)
                begun = time.monotonic()
                answer = await http.post("/realtime/jobs/1/cancel")
                assert answer.status_code == 503
                assert time.monotonic() - begun < 4
                assert (await http.get("/realtime/health")).status_code == 200
