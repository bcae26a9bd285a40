"""The promises of the degraded mode while the broker is away, one a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import pytest
from clients import CompatClient, NativeClient
from publisher import Publisher
from record import Record
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import AccessError
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.servers import Server

SHOWN_SECONDS = 5.0
BACK_SECONDS = 15.0
"""Emitter and subscription pause for up to 5 s each between two tries."""


pytestmark = pytest.mark.usefixtures("quick_recalls")


async def test_the_record_is_read_repeatedly_and_once_for_all_clients(
    server: Server, web_server: InProcessServer, record: Record, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        NativeClient(web_server, "job:1") as one,
        NativeClient(web_server, "job:1") as other,
        CompatClient(web_server.compat_url("1")) as browser,
    ):
        await one.wait_synced()
        await other.wait_synced()
        await browser.wait_for("step")
        server.kill()
        await one.wait_for("degraded")
        for current in (10, 20, 30):
            progress = {"current": current, "total": 40}
            record.write("1", {"status": "running", "progress": progress})
            await until(
                lambda progress=progress, current=current: (
                    one.views["job:1"].states["1"].get("progress") == progress
                    and other.views["job:1"].states["1"].get("progress") == progress
                    and browser.messages[-1]["data"].get("current") == current
                ),
                SHOWN_SECONDS,
                lambda: (one, other, browser.messages[-1]),
            )
        assert browser.messages[-1]["provisional"]
        # Both clients got the result of each reading.
        recalls = record.recalls["job:1"]
        assert abs(len(one.ops("provisional")) - recalls) <= 1
        assert abs(len(other.ops("provisional")) - recalls) <= 1
        server.start()
        await one.wait_for("restored", 1, BACK_SECONDS)
        await browser.wait_for("restored", 1, BACK_SECONDS)
        # The state of the log stands, also where the record was further ahead.
        await publisher.publish("job:1", 39)
        await one.wait_for_offset("job:1", 40)
        await browser.wait_for("step", 40)
        assert one.views["job:1"].states["1"]["progress"]["current"] == 40
        assert browser.messages[-1]["data"]["current"] == 40


async def test_a_feed_on_the_compat_wire_gets_the_outage_for_each_job(
    server: Server, settings: Settings, record: Record, publisher: Publisher
) -> None:
    def emit_progress(job: str, current: int, type: str = "job_progress") -> None:
        state = {"status": "running", "attempt": 1, "progress": {"current": current, "total": 4}}
        ends = type == "job_completed"
        if ends:
            state["status"] = "completed"
        publisher.emit("user:7", key=job, type=type, state=state, job=job, terminal=ends)

    def provisional(job: str) -> list[dict[str, object]]:
        states = [m["data"] for m in browser.messages if m.get("provisional")]
        return [data for data in states if data["job_id"] == job]

    for job in "12":
        record.write(job, {"status": "running", "attempt": 1, "progress": {"current": 0}})
    settings = settings.model_copy(update={"compat_feed_path": ["/ws/operations"]})
    emit_progress("1", 1)
    emit_progress("2", 1)
    await publisher.flush()
    async with (
        serve_realtime(settings, plugins=[record]) as web_server,
        CompatClient(web_server.compat_url("", "/ws/operations")) as browser,
    ):
        await browser.wait_for("job_progress", 2)
        server.kill()
        await browser.wait_for("degraded", 2)
        assert {message["data"]["job_id"] for message in browser.of_type("degraded")} == {"1", "2"}
        assert {message["data"]["status"] for message in browser.of_type("degraded")} == {"running"}
        record.write("2", {"status": "running", "attempt": 1, "progress": {"current": 3}})
        await until(lambda: provisional("2"), SHOWN_SECONDS)
        record.write("2", {"status": "completed", "attempt": 1})
        await until(lambda: provisional("2")[-1]["status"] == "completed", SHOWN_SECONDS)
        # The record of job 1 is behind the log, so nothing provisional is shown of it.
        assert not provisional("1")
        emit_progress("1", 2)
        emit_progress("2", 2)
        emit_progress("2", 4, "job_completed")
        server.start()
        await browser.wait_for("restored", 2, BACK_SECONDS)
        await until(
            lambda: [m for m in browser.messages if m["id"] and m["id"].split(".")[1] == "5"],
            BACK_SECONDS,
        )
        # The provisional state has shown the end already, and it is shown once.
        of_two = [
            m["data"]["status"]
            for m in browser.messages
            if m["data"].get("job_id") == "2" and "status" in m["data"]
        ]
        assert of_two == ["running"] * (len(of_two) - 1) + ["completed"]
        assert browser.closed is None


@pytest.mark.parametrize("error", [AccessError("no session"), asyncio.CancelledError()], ids=type)
async def test_a_record_that_fails_during_an_outage_is_read_again(
    server: Server, settings: Settings, publisher: Publisher, error: BaseException
) -> None:
    class FailingRecord:
        @hookimpl
        def recall(self, topic: str) -> dict[str, dict[str, str]]:
            nonlocal recalls
            recalls += 1
            if recalls <= 3:
                raise error
            return {"1": {"status": "running", "message": "by the record"}}

    recalls = 0
    await publisher.publish("job:1", 1)
    async with (
        serve_realtime(settings, plugins=[FailingRecord()]) as web_server,
        NativeClient(web_server, "job:1") as client,
    ):
        await client.wait_synced()
        server.kill()
        await client.wait_for("provisional", 1, SHOWN_SECONDS)
        assert client.views["job:1"].states["1"]["message"] == "by the record"
        assert client.connections == 1


@pytest.mark.parametrize("ready", [True, False])
async def test_health_reports_since_when_it_is_degraded_and_how_many_drafts_wait(
    server: Server, settings: Settings, ready: bool
) -> None:
    settings = settings.model_copy(update={"degraded_is_ready": ready})
    async with serve_realtime(settings) as web_server, web_server.http_client() as http:
        before = await http.get("/realtime/health")
        assert (before.status_code, before.json()["degraded_since"]) == (200, None)
        server.kill()
        await until(lambda: web_server.rt.web.outage.since, SHOWN_SECONDS)
        for _ in range(3):
            await web_server.rt.publish("job:1", "step", data={"n": 1})
        during = await http.get("/realtime/health")
        body = during.json()
        assert during.status_code == (200 if ready else 503)
        assert (body["live"], body["ready"]) == (True, ready)
        assert body["degraded_since"] is not None
        assert body["spool"]["drafts"] == 3
        assert body["spool"]["bytes"] > 100
        server.start()
        await until(lambda: not web_server.rt.web.outage.since, BACK_SECONDS)
        after = await http.get("/realtime/health")
        assert after.status_code == 200
        assert after.json()["spool"] == {"drafts": 0, "bytes": 0}


@pytest.mark.every_backend
async def test_a_broker_that_hangs_delays_no_request(
    server: Server, settings: Settings, record: Record, publisher: Publisher
) -> None:
    settings = settings.model_copy(update={"timeout_seconds": 3.0, "max_connections": 1000})
    await publisher.publish("job:1", 1)
    slowest: dict[str, float] = {}

    async def measure(name: str, work: Awaitable[object]) -> object:
        began = time.monotonic()
        answer = await work
        slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - began)
        return answer

    async def connect() -> None:
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_for("degraded")
            await client.wait_for("provisional")

    async def browse() -> None:
        async with CompatClient(web_server.compat_url("1")) as browser:
            await browser.wait_for("current_state")

    async with (
        serve_realtime(settings, plugins=[record]) as web_server,
        web_server.http_client() as http,
        NativeClient(web_server, "job:1") as client,
    ):
        await client.wait_synced()
        server.pause()
        try:
            await client.wait_for("degraded", 1, 10)
            deadline = time.monotonic() + 6
            while time.monotonic() < deadline:
                state = {"status": "running", "attempt": 1}
                health, job, receipt, *_ = await asyncio.gather(
                    measure("health", http.get("/realtime/health")),
                    measure("job", http.get("/realtime/jobs/1")),
                    measure("publish", web_server.rt.publish("job:1", "step", state=state)),
                    measure("history", http.get("/realtime/jobs/1/history")),
                    measure("connect", connect()),
                    measure("browse", browse()),
                )
                assert health.json()["degraded_since"]
                assert job.json()["provisional"]
                assert receipt.outcome is Outcome.WAITING
        finally:
            server.resume()
        await client.wait_for("restored", 1, BACK_SECONDS)
    # Half of one deadline.
    assert max(slowest.values()) < 1.5, slowest


@pytest.mark.every_backend
async def test_a_server_that_started_without_a_broker_catches_up_when_it_starts(
    server: Server, settings: Settings, record: Record
) -> None:
    server.kill()
    async with (
        serve_realtime(settings, plugins=[record]) as web_server,
        web_server.http_client() as http,
        NativeClient(web_server, "job:1") as client,
        CompatClient(web_server.compat_url("1")) as browser,
    ):
        await client.wait_for("degraded")
        await client.wait_for("provisional")
        await browser.wait_for("current_state")
        assert (await http.get("/realtime/jobs/1")).json()["provisional"]
        state = {"status": "completed", "attempt": 1}
        receipt = await web_server.rt.publish("job:1", "job_completed", state=state)
        assert receipt.outcome is Outcome.WAITING
        await until(lambda: client.views["job:1"].states["1"] == state, SHOWN_SECONDS)
        await asyncio.to_thread(server.start)
        await client.wait_for("restored", 1, BACK_SECONDS)
        await until(lambda: client.views["job:1"].folded.get("1") == state, BACK_SECONDS)
        await browser.wait_for("restored", 1, BACK_SECONDS)
        await until(lambda: browser.messages[-1]["id"], BACK_SECONDS, lambda: browser.messages)
        assert client.connections == 1
        assert browser.closed is None
        ends = [m for m in browser.messages if m["data"].get("status") == "completed"]
        assert [m["provisional"] for m in ends] == [True], "the end is reported once"
        body = (await http.get("/realtime/jobs/1")).json()
        assert body["states"]["1"] == state
        assert "provisional" not in body
