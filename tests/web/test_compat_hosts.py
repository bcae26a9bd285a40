"""Hosts that move to this package with the paths, the words and the pages that they have."""

from __future__ import annotations

import pytest
from clients import CompatClient, NativeClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime, server_processes

from semantik_realtime.config import Settings, load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.web.hub import permission

WORDS = {
    "operation_started": "job_started",
    "operation_progress": "job_progress",
    "operation_completed": "job_completed",
    "operation_failed": "job_failed",
    "processing": "running",
    "success": "completed",
}


async def open_page(web_server: InProcessServer, path: str = "/ws/jobs/{}") -> CompatClient:
    """Connect as such a page does: again, as long as a connection ends without a close frame."""
    while True:
        page = CompatClient(web_server.compat_url("1", path))
        await page.__aenter__()
        await until(lambda page=page: page.messages or page.closed is not None)
        if page.closed != 1006:
            return page
        await page.__aexit__()


async def test_a_page_over_the_connection_limit_gets_in_when_a_place_is_free(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with serve_realtime(settings.model_copy(update={"max_connections": 1})) as web_server:
        first = CompatClient(web_server.compat_url("1"))
        await first.__aenter__()
        await first.wait_for("current_state")
        async with CompatClient(web_server.compat_url("1")) as second:
            assert await second.wait_closed() == 1006, "a close frame would end its retries"
            assert second.messages == []
        await first.__aexit__()
        page = await open_page(web_server)
        await page.wait_for("current_state")
        await page.__aexit__()


async def test_a_page_that_may_not_wait_for_its_job_retries(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permission, "MAX_WAITING", 0)
    async with CompatClient(web_server.compat_url("1")) as early:
        assert await early.wait_closed() == 1006
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1")) as page:
        await page.wait_for("current_state")


async def test_the_wire_is_served_at_several_paths(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    paths = load_settings(
        compat_path="/ws/operations/{operation_id}, /ws/jobs/{job_id}",
        compat_feed_path="/ws/operations,/ws/feed",
    )
    update = {
        "compat_path": paths.compat_path,
        "compat_feed_path": paths.compat_feed_path,
    }
    async with serve_realtime(settings.model_copy(update=update)) as web_server:
        for path in ("/ws/operations/{}", "/ws/jobs/{}"):
            async with CompatClient(web_server.compat_url("1", path)) as page:
                assert (await page.wait_for("current_state"))["topic"] == "job:1"
        for path in ("/ws/operations", "/ws/feed"):
            async with CompatClient(web_server.compat_url("", path)) as page:
                await page.send("ping")
                await page.wait_for("pong")


@pytest.mark.every_backend(shares_storage=True)
async def test_messages_have_the_applications_words_for_its_own_and_the_mirrors_events(
    settings: Settings, publisher: Publisher
) -> None:
    async with serve_realtime(settings.model_copy(update={"host_words": WORDS})) as web_server:
        rt = web_server.rt
        await rt.publish("job:1", "operation_started", owner="7", state={"status": "processing"})
        async with CompatClient(web_server.compat_url("1")) as page:
            assert (await page.wait_for("current_state"))["data"]["status"] == "processing"
            # As the mirror of Celery's tasks does, which knows no words.
            publisher.emit("job:1", type="job_progress", job="1")
            await publisher.end("job:1")
            progress = await page.wait_for("operation_progress")
            assert progress["data"]["status"] == "processing"
            end = await page.wait_for("operation_completed")
            assert end["data"]["status"] == "success"
        late = await rt.publish("job:1", "operation_failed")
        assert late.outcome is Outcome.CLOSED


async def test_the_record_of_the_host_may_have_its_words(settings: Settings) -> None:
    class Record:
        @hookimpl
        def recall(self, topic: str) -> dict[str, dict[str, str]]:
            return {"1": {"status": "success"}}

        @hookimpl
        def authorize(self) -> bool:
            return True

    worded = settings.model_copy(update={"host_words": WORDS})
    async with serve_realtime(worded, plugins=[Record()]) as web_server:
        async with CompatClient(web_server.compat_url("1")) as page:
            assert (await page.wait_for("current_state"))["data"]["status"] == "success"
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
            assert client.views["job:1"].states["1"] == {"status": "completed"}


@pytest.mark.every_backend
async def test_a_retried_operation_runs_again_and_ends_again(web_server: InProcessServer) -> None:
    rt = web_server.rt
    await rt.publish("job:1", "job_failed", owner="7", attempt=1)
    async with CompatClient(web_server.compat_url("1")) as page:
        await page.wait_for("current_state")
        attempt = await rt.begin_attempt("1")
        assert attempt == 2
        await rt.publish("job:1", "job_started", attempt=attempt)
        assert (await rt.publish("job:1", "job_failed", attempt=1)).outcome is Outcome.STALE
        await rt.publish("job:1", "job_failed", attempt=attempt)
        await page.wait_for("job_failed")
        shown = [(m["type"], m["data"]["status"], m["data"]["attempt"]) for m in page.messages]
    assert shown == [
        ("current_state", "failed", 1),
        ("job_started", "running", 2),
        ("job_failed", "failed", 2),
    ]


async def test_a_late_page_of_a_failed_job_reports_one_failure(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 40)
    await publisher.end("job:1", "job_failed")
    for query in ({}, {"last_id": "other.1.00000000"}):
        async with CompatClient(web_server.compat_url("1"), query=query) as page:
            await page.wait_for("current_state")
            await page.send("ping")
            await page.wait_for("pong")
            failures = [m for m in page.messages if m.get("data", {}).get("status") == "failed"]
            assert len(failures) == 1


@pytest.mark.every_backend(shares_storage=True)
async def test_the_history_of_the_wire_can_be_switched_off(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 40)
    async with serve_realtime(settings.model_copy(update={"compat_history": 0})) as web_server:
        async with CompatClient(web_server.compat_url("1")) as page:
            last_id = (await page.wait_for("current_state"))["id"]
        await publisher.publish("job:1", 3)
        query = {"last_id": last_id}
        async with CompatClient(web_server.compat_url("1"), query=query) as page:
            await page.wait_for("current_state")
            await publisher.publish("job:1", 1)
            await page.wait_for("step")
            kinds = [(m["type"], m["data"]["current"]) for m in page.messages]
    assert kinds == [("current_state", 43), ("step", 44)]


async def test_a_server_that_stops_waits_for_the_drain(
    settings: Settings, publisher: Publisher
) -> None:
    # Uvicorn before 0.29 closes the sockets a tenth of a second after the signal.
    await publisher.publish("job:1", 1)
    async with (
        server_processes(1, settings, TEST_DRAIN_SECONDS="0.5") as [server],
        CompatClient(server.compat_url("1")) as page,
    ):
        await page.wait_for("current_state")
        server.stop()
        assert await page.wait_closed() == 1006
