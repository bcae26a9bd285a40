"""Whole test suites of hosts, each run by a pytest of its own in an empty folder."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]

HEAVY = ("celery", "fastapi", "redis", "pydantic", "msgspec", "semantik_realtime.runtime")
APPLICATION = """
from celery import Celery
from fastapi import FastAPI
from semantik_realtime import Realtime, job

queue = Celery("host", broker="memory://", backend="cache+memory://")
app = FastAPI()
rt = Realtime()
app.include_router(rt.router(authenticate=lambda credentials: "7"))

@queue.task(name="work")
def work():
    job.emit("worked")
"""


@pytest.fixture
def production(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The server of the environment. No test may connect to it."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        monkeypatch.setenv("SEMANTIK_REALTIME_URL", url)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.usefixtures("production")
def test_a_host_without_the_fixture_pays_nothing_and_keeps_its_own_of_that_name(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        f"""
        import sys
        import pytest

        order = []

        @pytest.fixture
        def first():
            order.append("first")

        @pytest.fixture
        def realtime():
            order.append("ours")
            return "ours"

        def test_a_fixture_of_the_host_wins_in_its_place(first, realtime):
            assert order == ["first", "ours"]

        def test_nothing_heavy_is_imported():
            assert "semantik_realtime.pytest_plugin" in sys.modules
            assert not [name for name in {HEAVY!r} if name in sys.modules]
        """
    )
    pytester.runpytest_subprocess("-n", "0").assert_outcomes(passed=2)


@pytest.mark.usefixtures("production")
def test_what_is_started_once_for_a_session_is_in_memory_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(application=APPLICATION)
    pytester.makeconftest(
        """
        import pytest
        from application import app, queue
        from fastapi.testclient import TestClient

        pytest_plugins = ["celery.contrib.pytest"]

        @pytest.fixture(scope="session", autouse=True)
        def no_server(realtime_session): ...

        @pytest.fixture(scope="session")
        def client():
            with TestClient(app) as client:
                yield client

        @pytest.fixture(scope="session")
        def celery_session_app(): return queue

        @pytest.fixture(scope="session")
        def celery_worker_pool(): return "threads"
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from application import rt, work
        from celery.contrib.testing.tasks import ping

        def test_the_application_runs_before(client, celery_session_worker):
            work.apply_async(headers={"realtime_owner": "7"}).get(timeout=20)
            assert client.get("/realtime/health").status_code == 200

        @pytest.mark.parametrize("number", [1, 2])
        def test_each_has_its_own_memory(client, celery_session_worker, realtime, number):
            with client.websocket_connect("/realtime/ws") as page:
                page.receive_json()
                sent = work.apply_async(task_id="same", headers={"realtime_owner": "7"})
                realtime.assert_events(
                    sent, ["job_queued", "job_started", "worked", "job_completed"]
                )
                page.send_json({"op": "subscribe", "topics": {"job:same": None}})
                assert page.receive_json()["states"]["same"]["attempt"] == 1
            assert realtime.jobs == ["same"]

        def test_and_after(client, celery_session_worker):
            work.delay().get(timeout=20)
            assert client.get("/realtime/health").status_code == 200
        """
    )
    pytester.runpytest_subprocess("-n", "0").assert_outcomes(passed=4)


@pytest.mark.usefixtures("production")
def test_the_order_of_fixtures_does_not_matter_and_a_failure_is_short(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(application=APPLICATION)
    pytester.makepyfile(
        """
        import pytest
        from application import app, queue, rt, work
        from fastapi.testclient import TestClient

        @pytest.fixture
        def client():
            with TestClient(app) as client:
                yield client

        async def test_a_coroutine(realtime):
            await rt.publish("job:1", "job_started")
            assert (await realtime.wait_for_async("1", "running"))["offset"] == 1

        def test_the_client_is_named_first(client, realtime):
            realtime.publish("job:1", "job_completed", owner="7")
            with client.stream("GET", "/realtime/jobs/1/events") as stream:
                assert any('"completed"' in line for line in stream.iter_lines())

        def test_a_failure(realtime):
            queue.conf.task_always_eager = True
            realtime.assert_events(work.delay(), ["job_started", "job_completed"])
        """
    )
    done = pytester.runpytest_subprocess("-n", "0", "-o", "asyncio_mode=auto")
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(
        ["E*AssertionError: job:* has other events*", "E   *+ worked", "E*the events of job:*"]
    )
    assert "pytest_plugin/fixture.py" not in done.stdout.str()
