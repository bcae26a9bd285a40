"""The compatibility wire: the messages of browsers that were written for the earlier server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from clients import CompatClient, NativeClient
from publisher import Publisher, one_draft
from waiting import until
from web_servers import InProcessServer, serve_realtime, server_processes

from semantik_realtime.config import Settings, load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import ConfigError
from semantik_realtime.web.wires.compat import flatten


@pytest.mark.every_row
async def test_current_state_comes_first_with_the_state_flattened(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    state = {
        "status": "failed",
        "attempt": 2,
        "name": "index",
        "message": "report.pdf",
        "progress": {"current": 3, "total": 8, "unit": "files"},
        "fields": {"failed_files": 1, "status": "not this one"},
        "error": {"type": "ValueError", "message": "no such file"},
    }
    publisher.emit("job:1", state=state)
    await publisher.flush()
    async with CompatClient(web_server.compat_url("1")) as browser:
        first = await browser.wait_for("current_state")
    assert first["topic"] == "job:1"
    assert first["id"].split(".")[1] == "1"
    assert first["timestamp"].endswith("Z")
    assert first["data"] == {
        "status": "failed",
        "attempt": 2,
        "name": "index",
        "message": "report.pdf",
        "progress": 37.5,
        "current": 3,
        "total": 8,
        "failed_files": 1,
        "error": "no such file",
    }


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"status": None},
        {"status": "running", "progress": 50},
        {"status": "running", "progress": {"current": "a", "total": "b"}},
        {"status": "running", "progress": {"current": 1, "total": 0}},
        {"status": "running", "progress": {}},
        {"status": "failed", "error": "text", "fields": "text"},
        {"status": "failed", "error": {}, "fields": [1]},
    ],
)
async def test_a_state_of_any_shape_is_delivered(
    web_server: InProcessServer, publisher: Publisher, state: dict[str, object]
) -> None:
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1")) as browser:
        await browser.wait_for("current_state")
        publisher.emit("job:1", state=state)
        await publisher.flush()
        live = await browser.wait_for("step", 2)
        assert live["data"]["status"] == (state.get("status") or "unknown")
    async with CompatClient(web_server.compat_url("1")) as browser:
        assert (await browser.wait_for("current_state"))["data"] == flatten(state)


@pytest.mark.every_row
async def test_a_job_that_has_ended_is_its_state_without_history(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    publisher.emit("job:1", type="job_failed", terminal=True, state={"status": "failed"})
    publisher.emit("job:1", state={"status": "running", "progress": {"current": 1, "total": 4}})
    await publisher.end("job:1")
    async with CompatClient(web_server.compat_url("1")) as browser:
        await browser.wait_for("current_state")
        await browser.send("ping")
        await browser.wait_for("pong")
    first, *rest = browser.messages
    assert first["data"]["status"] == "completed"
    assert first["data"]["progress"] == 100.0
    assert [message["type"] for message in rest] == ["pong"]


@pytest.mark.every_row
async def test_every_live_message_has_the_status_and_the_terminal_one_comes_once(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1")) as browser:
        await browser.wait_for("step")
        emit = publisher.rt.emitter.emit
        emit(one_draft("job:1", "log", key="1", data={"text": "no state"}))
        emit(one_draft("job:1", "file_done", key="file-1", state={"status": "completed"}))
        await publisher.end("job:1")
        await browser.wait_for("job_completed")
        await browser.send("ping")
        await browser.wait_for("pong")
    live = [message for message in browser.messages if "id" in message][2:]
    assert [message["type"] for message in live] == ["log", "file_done", "job_completed"]
    assert [message["data"]["status"] for message in live] == ["running", "running", "completed"]
    places = [message["id"] for message in live]
    assert len(set(places)) == len(places)


@pytest.mark.every_row
async def test_last_id_resumes_after_the_last_message(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 30)
    async with CompatClient(web_server.compat_url("1")) as browser:
        last = (await browser.wait_for("step", 30))["id"]
    await publisher.publish("job:1", 300)
    async with CompatClient(web_server.compat_url("1"), query={"last_id": last}) as browser:
        await browser.wait_for("step", 300)
        await publisher.publish("job:1", 2)
        await browser.wait_for("step", 302)
        first, *rest = browser.messages
    assert first["type"] == "current_state"
    assert first["data"]["current"] == 330
    assert [message["data"]["i"] for message in rest] == list(range(30, 332))
    assert {message["data"]["status"] for message in rest} == {"running"}
    assert [bool(message.get("replayed")) for message in rest] == [True] * 300 + [False] * 2


@pytest.mark.every_row
@pytest.mark.parametrize("last_id", ["rubbish", "other.5.00000000", "{epoch}.5.00000001"])
async def test_a_last_id_outside_this_log_gets_the_usual_history(
    web_server: InProcessServer, publisher: Publisher, last_id: str
) -> None:
    await publisher.publish("job:1", 120)
    async with CompatClient(web_server.compat_url("1")) as browser:
        epoch = (await browser.wait_for("current_state"))["id"].split(".")[0]
    query = {"last_id": last_id.format(epoch=epoch)}
    async with CompatClient(web_server.compat_url("1"), query=query) as browser:
        await browser.wait_for("step", 100)
        await publisher.publish("job:1", 1)
        await browser.wait_for("step", 101)
    assert [message["data"]["i"] for message in browser.messages[1:]] == list(range(20, 121))


async def test_ping_is_answered_in_both_forms_and_bad_input_is_not_fatal(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1")) as browser:
        for number, text in enumerate(("ping", '{"type":"ping"}', b'{"type":"ping"}'), start=1):
            await browser.send(text)
            assert (await browser.wait_for("pong", number))["timestamp"].endswith("Z")
        await browser.send('{"type":"pong"}')
        bad: list[str | bytes] = ["rubbish", "{}", "[]", "7", '{"type":7}', b"\xff", ""]
        for number, text in enumerate(bad, start=1):
            await browser.send(text)
            assert "status" not in (await browser.wait_for("error", number))["data"]
        assert len(browser.of_type("error")) == len(bad)
        await publisher.publish("job:1", 1)
        await browser.wait_for("step", 2)
        assert browser.closed is None


async def test_the_server_sends_pings(settings: Settings, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with (
        server_processes(1, settings, TEST_COMPAT_PING_SECONDS="0.5") as [server],
        CompatClient(server.compat_url("1")) as browser,
    ):
        await browser.wait_for("ping", 2)
        await browser.send('{"type":"pong"}')
        assert browser.of_type("ping")[0] == {"type": "ping"}


async def test_a_denial_is_accepted_and_closed_with_1008(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1, owner="8")
    for job in ("1", "unknown"):
        async with CompatClient(web_server.compat_url(job)) as browser:
            assert await browser.wait_closed() == 1008
            assert browser.reason == "not yours, or not there"
            assert browser.messages == []


@pytest.mark.parametrize("path", ["/ws/operations/{job_id}", "/ws/operations/{id}"])
async def test_the_path_is_a_setting_and_an_empty_one_switches_the_wire_off(
    settings: Settings, publisher: Publisher, path: str
) -> None:
    await publisher.publish("job:1", 1)
    moved = settings.model_copy(update={"compat_path": [path]})
    async with (
        serve_realtime(moved) as web_server,
        CompatClient(web_server.compat_url("1", "/ws/operations/{}")) as browser,
    ):
        await browser.wait_for("current_state")
    async with serve_realtime(settings.model_copy(update={"compat_path": []})) as web_server:
        with pytest.raises(Exception, match="403"):
            async with CompatClient(web_server.compat_url("1")):
                pass
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()


@pytest.mark.every_row
async def test_a_burst_is_conflated_to_the_state_and_the_end(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1")) as browser:
        await browser.wait_for("step")
        for _ in range(300):
            publisher.emit("job:1", data={"i": 0, "filling": "x" * 500})
        await publisher.end("job:1")
        last = await browser.wait_for("job_completed")
        assert last["data"]["status"] == "completed"
        await until(lambda: browser.messages[-1] is last)
    offsets = [int(message["id"].split(".")[1]) for message in browser.messages]
    assert offsets[2:] == sorted(set(offsets[2:]))
    assert offsets[-1] == 302


# The user's own feed.

FEED = "/ws/operations"


@pytest.fixture
async def feed_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    paths = {"compat_path": ["/ws/operations/{id}"], "compat_feed_path": [FEED]}
    async with serve_realtime(settings.model_copy(update=paths)) as made:
        yield made


def emit_progress(publisher: Publisher, job: str, current: int, type: str = "job_progress") -> None:
    """Emit an event of ``job`` into the feed of user 7."""
    ends = type in ("job_completed", "job_failed")
    state = {
        "status": type.removeprefix("job_") if ends else "running",
        "progress": {"current": current, "total": 4},
        "fields": {"name": f"operation {job}"},
    }
    publisher.emit("user:7", key=job, type=type, state=state, job=job, terminal=ends)


@pytest.mark.every_backend(shares_storage=True)
async def test_a_feed_delivers_the_state_of_each_job_then_history_then_live_events(
    feed_server: InProcessServer, publisher: Publisher
) -> None:
    for current in (1, 2):
        emit_progress(publisher, "a", current)
        emit_progress(publisher, "b", current)
    emit_progress(publisher, "b", 4, "job_completed")
    await publisher.flush()
    async with (
        CompatClient(feed_server.compat_url("", FEED)) as browser,
        CompatClient(feed_server.compat_url("", FEED), user="8") as other,
    ):
        await browser.wait_for("job_progress", 2)
        # An empty feed has no first message to wait for.
        hub = feed_server.rt.web.hub
        await until(lambda: [one.subscriptions for one in hub.connections] == [1, 1])
        emit_progress(publisher, "a", 4, "job_failed")
        emit_progress(publisher, "c", 1)
        publisher.emit("user:8", key="d", data={"i": 0})
        await publisher.flush()
        await browser.wait_for("job_progress", 3)
        await other.wait_for("step")
    assert {message["topic"] for message in browser.messages} == {"user:7"}
    first, *replayed = browser.messages[:3]
    position, *live = browser.messages[3:]
    assert (position["type"], position["data"]) == ("position", {})
    assert position["id"].split(".")[1] == "5"
    # Job b ended before the page was loaded, which is no news.
    assert first["type"] == "current_state"
    assert first["data"] == {
        "name": "operation a",
        "status": "running",
        "progress": 50.0,
        "current": 2,
        "total": 4,
        "job_id": "a",
    }
    for message in replayed:
        # The page's view of a job does not move back.
        assert message["replayed"]
        for name in ("job_id", "status", "progress", "current", "total"):
            assert message["data"][name] == first["data"][name]
    order = [(message["type"], message["data"]["job_id"]) for message in live]
    assert order == [("job_failed", "a"), ("job_progress", "c")]
    assert [message["data"]["status"] for message in live] == ["failed", "running"]
    assert not any("replayed" in message for message in live)
    assert [message["id"].split(".")[1] for message in live] == ["6", "7"]
    assert [(m["type"], m["topic"], m["data"]["job_id"]) for m in other.messages] == [
        ("step", "user:8", "d")
    ]


async def test_a_feed_resumes_after_the_last_message_and_reports_jobs_deleted_since(
    feed_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:gone", 1)
    for job in ("gone", "a"):
        emit_progress(publisher, job, 1)
    await publisher.flush()
    async with CompatClient(feed_server.compat_url("", FEED)) as browser:
        last = (await browser.wait_for("job_progress", 2))["id"]
    assert await feed_server.rt.delete("gone")
    assert await asyncio.to_thread(feed_server.rt.emitter.flush, 10)
    emit_progress(publisher, "a", 2)
    publisher.emit("user:7", type="note", data={"text": "hello"}, state=msgspec.UNSET)
    await publisher.flush()
    async with CompatClient(feed_server.compat_url("", FEED), query={"last_id": last}) as browser:
        await browser.wait_for("note")
        await publisher.publish("job:a", 1)
        assert await feed_server.rt.delete("a")
        await browser.wait_for("job_deleted", 2)
        await browser.send("ping")
        await browser.wait_for("pong")
    [current, *later] = browser.messages[:-1]
    assert (current["type"], current["data"]["job_id"]) == ("current_state", "a")
    assert [(m["type"], m.get("replayed", False), m["data"].get("job_id")) for m in later] == [
        ("job_deleted", True, "gone"),
        ("job_progress", True, "a"),
        # An event of the application, about no job.
        ("note", True, None),
        ("job_deleted", False, "a"),
    ]
    assert [m["data"].get("status") for m in later] == ["deleted", "running", None, "deleted"]
    async with CompatClient(feed_server.compat_url("", FEED)) as browser:
        # A browser without last_id gets nothing of the deleted jobs.
        await browser.wait_for("note")
        assert [message["type"] for message in browser.messages] == ["note", "position"]


async def test_a_feed_of_many_jobs_is_delivered_whole(
    feed_server: InProcessServer, publisher: Publisher
) -> None:
    for number in range(1000):
        emit_progress(publisher, str(number), 1)
    await publisher.flush()
    async with CompatClient(feed_server.compat_url("", FEED)) as browser:
        await browser.wait_for("job_progress", 100)
        assert {m["data"]["job_id"] for m in browser.of_type("current_state")} == set(
            map(str, range(1000))
        )
        receipt = await feed_server.rt.publish(
            "user:7", "job_progress", key="7", state={"status": "running"}
        )
        assert receipt.outcome is Outcome.APPENDED
        await browser.wait_for("job_progress", 101)
        assert browser.closed is None


async def test_a_feed_is_for_its_own_user_and_counts_as_a_connection(settings: Settings) -> None:
    one = settings.model_copy(update={"compat_feed_path": [FEED], "max_connections": 1})
    async with serve_realtime(one) as web_server:
        url = web_server.compat_url("", FEED)
        async with CompatClient(url, user=None) as anonymous:
            assert await anonymous.wait_closed() == 1008
        async with CompatClient(url) as browser:
            for number, text in enumerate(("ping", '{"type":"ping"}'), start=1):
                await browser.send(text)
                await browser.wait_for("pong", number)
            async with CompatClient(url) as second:
                assert await second.wait_closed() == 1006
            # A user without jobs gets no message until the first job starts.
            assert {message["type"] for message in browser.messages} == {"pong"}
            await web_server.rt.publish(
                "user:7", "job_started", key="1", state={"status": "running"}
            )
            assert (await browser.wait_for("job_started"))["data"]["job_id"] == "1"
            # No close frame, because the browser reconnects only after that.
            await web_server.rt.web.hub.drain()
            assert await browser.wait_closed() == 1006
    async with serve_realtime(settings) as web_server:
        with pytest.raises(Exception, match="403"):
            async with CompatClient(web_server.compat_url("", FEED)):
                pass


def test_a_path_of_the_feed_begins_with_a_slash() -> None:
    with pytest.raises(ConfigError, match="COMPAT_FEED_PATH"):
        load_settings(compat_feed_path="ws/operations")
