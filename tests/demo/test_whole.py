"""The whole demo: web server, Celery worker and Valkey, each in a process of its own."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from installation import DEADLINE_SECONDS, Demo, running, wait_for

from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.runtime import Runtime

FILES = 12


@pytest.fixture(scope="module")
def demo(
    server_url: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    documents = folder / "documents"
    documents.mkdir()
    for number in range(FILES):
        (documents / f"note{number:02}.txt").write_text(f"Note {number} about pelicans.")
    (documents / "broken.txt").write_bytes(b"\xff\x00")
    with running(folder, server_url("valkey")) as demo:
        yield demo


async def read_ended(
    demo: Demo, topic: str, job_id: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Wait for the end of a job in a topic's log; return its state and the events."""
    runtime = Runtime(Settings(url=demo.redis_url))
    deadline = time.monotonic() + DEADLINE_SECONDS
    await runtime.backend.open()
    try:
        while time.monotonic() < deadline:
            snapshot: Snapshot = await runtime.backend.snapshot(topic, None, 1000)
            state = json.loads(snapshot.states.get(job_id, b'{"state":{}}'))["state"]
            if "ended_at" in state:
                return state, [json.loads(event.json) for event in snapshot.events]
            await asyncio.sleep(0.05)
    finally:
        await runtime.backend.close()
        runtime.close()
    raise AssertionError(f"not ended in {DEADLINE_SECONDS} s: {state}")


async def test_a_job_runs_in_the_worker_and_has_an_event_for_each_file(demo: Demo) -> None:
    job = demo.client.post("/api/jobs", json={"all": True}).json()
    wait_for("completion", lambda: demo.state(job["id"])["status"] == "completed")
    stored = demo.state(job["id"])
    assert stored["fields"]["processed_files"] == FILES
    assert stored["fields"]["failed_files"] == 1
    found = demo.client.get("/api/search", params={"q": "pelican"}).json()["results"]
    assert len(found) == FILES

    live, events = await read_ended(demo, job["topic"], job["id"])
    assert live["status"] == "completed"
    assert live["fields"] == stored["fields"]
    assert live["progress"] == stored["progress"]
    types = [event["type"] for event in events]
    assert types.count("file_completed") == FILES
    assert types.count("file_failed") == 1
    assert types.index("job_started") < types.index("file_processing")
    assert types[-1] == "job_completed"
    fed, _ = await read_ended(demo, job["feed"], job["id"])
    assert fed == live


async def test_a_cancelled_job_stops_between_two_files_and_the_worker_goes_on(
    demo: Demo,
) -> None:
    job = demo.client.post("/api/jobs", json={"all": True, "pause_seconds": 10}).json()
    wait_for("start", lambda: demo.state(job["id"])["status"] == "running")
    cancelled_at = time.monotonic()
    assert demo.client.post(f"/api/jobs/{job['id']}/cancel").is_success
    wait_for("cancellation", lambda: demo.state(job["id"])["status"] == "cancelled")
    assert time.monotonic() - cancelled_at < 5
    after = demo.client.post("/api/jobs", json={"paths": ["note03.txt"]}).json()
    wait_for("the next job", lambda: demo.state(after["id"])["status"] == "completed")

    live, events = await read_ended(demo, job["topic"], job["id"])
    assert live["status"] == "cancelled"
    assert live["progress"] == demo.state(job["id"])["progress"]
    assert events[-1]["type"] == "job_cancelled"


async def test_a_running_job_that_is_deleted_stops_and_leaves_no_row(demo: Demo) -> None:
    job = demo.client.post("/api/jobs", json={"all": True, "pause_seconds": 10}).json()
    wait_for("start", lambda: demo.state(job["id"])["status"] == "running")
    assert demo.client.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert demo.client.get(f"/api/jobs/{job['id']}").status_code == 404
    after = demo.client.post("/api/jobs", json={"paths": ["note03.txt"]}).json()
    wait_for("the next job", lambda: demo.state(after["id"])["status"] == "completed")
    assert demo.client.get(f"/api/jobs/{job['id']}").status_code == 404


async def test_a_queued_job_that_is_cancelled_ends_live_while_the_worker_is_busy(
    demo: Demo,
) -> None:
    busy = demo.client.post("/api/jobs", json={"all": True, "pause_seconds": 10}).json()
    wait_for("start", lambda: demo.state(busy["id"])["status"] == "running")
    job = demo.client.post("/api/jobs", json={"paths": ["note03.txt"]}).json()
    answer = demo.client.post(f"/api/jobs/{job['id']}/cancel").json()
    assert answer["state"]["status"] == "cancelled"
    live, _ = await read_ended(demo, job["topic"], job["id"])
    fed, _ = await read_ended(demo, job["feed"], job["id"])
    assert live["status"] == fed["status"] == "cancelled"
    assert demo.state(busy["id"])["status"] == "running"
    demo.client.delete(f"/api/jobs/{busy['id']}")


def test_the_plugin_uses_the_users_and_jobs_of_the_host(demo: Demo) -> None:
    job = demo.client.post("/api/jobs", json={"paths": ["note03.txt"]}).json()
    path = f"/realtime/jobs/{job['id']}"

    def status() -> str:
        states: dict[str, Any] = demo.client.get(path).json()["states"]
        return str(states[job["id"]]["status"])

    wait_for("completion", lambda: status() == "completed")
    cookies = dict(demo.client.cookies)
    assert httpx.get(str(demo.client.base_url.join(path))).status_code == 401
    assert httpx.get(str(demo.client.base_url.join(path)), cookies=cookies).status_code == 200
    assert demo.client.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert demo.client.get(path).status_code == 404
