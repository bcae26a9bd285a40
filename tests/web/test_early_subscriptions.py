"""A job may be asked for before its first event is in the log: a refusal comes after a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from clients import CompatClient, NativeClient, SseClient, refusal
from configuration import make_settings, token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.client import watch
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Top, hookimpl
from semantik_realtime.web.hub import permission
from semantik_realtime.web.hub.permission import Permissions
from semantik_realtime.web.hub.stats import HubStats
from semantik_realtime.web.hub.top_reader import TopReader


@pytest.fixture
def long_wait(short_waits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission, "WAIT_SECONDS", 30.0)


def waiting(web_server: InProcessServer) -> int:
    return web_server.rt.web.hub.stats.waiting


def denied(web_server: InProcessServer) -> dict[str, int]:
    return web_server.rt.web.hub.stats.denied


async def first_offset(web_server: InProcessServer, topic: str) -> int:
    """Return the offset that the Python client shows first, as the command ``watch`` does."""
    async with contextlib.aclosing(watch(web_server.native_url, topic, token=token())) as updates:
        async for update in updates:
            if update.view.synced:
                return update.view.offset
    return 0


@pytest.mark.usefixtures("long_wait")
@pytest.mark.every_backend
async def test_a_subscription_before_the_jobs_first_event_is_answered_when_that_has_come(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    async with (
        NativeClient(web_server, "job:1") as native,
        CompatClient(web_server.compat_url("1")) as compat,
    ):
        stream = SseClient(web_server, "job:1")
        opening = asyncio.create_task(stream.open())
        following = asyncio.create_task(first_offset(web_server, "job:1"))
        await until(lambda: waiting(web_server) == 4, 10, lambda: waiting(web_server))
        # A claim and an event without an owner do not answer it.
        await asyncio.to_thread(publisher.rt.backend.claim, "job:1", "1", "token", "7")
        await publisher.publish("job:1", 1)
        await native.wait_synced()
        await compat.wait_for("current_state")
        assert await following == 1
        await opening
        assert stream.status == 200
        await stream.wait_synced()
        await publisher.publish("job:1", 2)
        for client in (native, stream):
            await client.wait_for_offset("job:1", 3)
            assert not client.ops("denied")
        await stream.close()
    assert waiting(web_server) == 0


async def test_a_foreign_job_and_an_absent_one_get_the_same_answer_after_the_same_wait(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permission, "WAIT_SECONDS", 0.8)
    await publisher.publish("job:foreign", 1, owner="8")
    query = f"?token={token()}"
    for job in ("foreign", "absent"):
        began = time.monotonic()
        async with NativeClient(web_server, f"job:{job}") as client:
            frame = await client.wait_for("denied")
            assert frame.pop("topic") == f"job:{job}"
            assert set(frame) == {"op", "code", "message"}
        assert time.monotonic() - began >= 0.8
        began = time.monotonic()
        stream = SseClient(web_server, path=f"/realtime/jobs/{job}/events")
        await stream.open()
        assert stream.status == 404
        await stream.close()
        assert time.monotonic() - began >= 0.8
        began = time.monotonic()
        counted = denied(web_server)["waited"]
        closed = await refusal(web_server.compat_url(job) + query)
        assert closed == (1008, "not yours, or not there")
        assert time.monotonic() - began >= 0.8
        assert denied(web_server)["waited"] == counted + 1


async def test_an_answer_over_http_does_not_wait(
    web_server: InProcessServer, publisher: Publisher, long_wait: None
) -> None:
    await publisher.publish("job:foreign", 1, owner="8")
    async with web_server.http_client() as http:
        for job in ("foreign", "absent"):
            assert (await http.get(f"/realtime/jobs/{job}")).status_code == 404


async def test_a_host_that_does_not_know_the_job_yet_is_asked_again(
    settings: Settings, long_wait: None
) -> None:
    known: set[str] = set()

    class ByRecord:
        @hookimpl
        async def authorize(self, topic: str) -> bool:
            return topic in known

    async with (
        serve_realtime(settings, plugins=[ByRecord()]) as web_server,
        NativeClient(web_server, "job:1") as client,
    ):
        await until(lambda: waiting(web_server) == 1, 10)
        known.add("job:1")
        await client.wait_synced()


async def test_the_client_may_unsubscribe_or_leave_while_it_waits(
    web_server: InProcessServer, publisher: Publisher, long_wait: None
) -> None:
    await publisher.publish("job:mine", 1)
    async with NativeClient(web_server, "job:1", "job:2", "job:mine") as client:
        # Another topic of the connection does not wait for these.
        await client.wait_synced("job:mine")
        await until(lambda: waiting(web_server) == 2, 10)
        await client.send({"op": "unsubscribe", "topics": ["job:1"]})
        await until(lambda: waiting(web_server) == 1, 10)
        assert not client.ops("denied")
    await until(lambda: waiting(web_server) == 0, 10)


async def test_when_too_many_wait_a_further_subscription_is_refused_at_once_and_logged_once(
    web_server: InProcessServer,
    publisher: Publisher,
    long_wait: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(permission, "MAX_WAITING_OF_USER", 3)
    monkeypatch.setattr(permission, "MAX_WAITING", 5)
    async with (
        NativeClient(web_server, *(f"job:{n}" for n in range(5))) as client,
        NativeClient(web_server, *(f"job:{n}" for n in range(5)), user="8") as other,
    ):
        await until(lambda: len(client.ops("denied") + other.ops("denied")) == 5, 10)
        assert waiting(web_server) == 5
    assert denied(web_server) == {"waited": 0, "crowded": 5, "rechecked": 0}
    lines = [line for line in caplog.messages if line.startswith("permission: refused without")]
    assert len(lines) == 1
    await until(lambda: waiting(web_server) == 0, 10)


# The rule alone.


class Scripted:
    """Access by the owner rule, a clock that only a sleep moves, and a log of what is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.tops: dict[str, tuple[float, str | None]] = {}
        """For each topic when it begins, and its owner."""
        self.asked: list[tuple[float, str | None]] = []
        self.is_away_until = 0.0
        monkeypatch.setattr(permission.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(permission.asyncio, "sleep", self.sleep)
        monkeypatch.setattr(permission, "WAIT_SECONDS", 5.0)
        access = Realtime(make_settings("redis://127.0.0.1:1/0")).web.access
        self.authorize_by_rule = access.authorize
        self.stats = HubStats()
        self.permissions = Permissions(self, self.top, self.stats)  # type: ignore[arg-type]

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def top(self, topic: str) -> Top | None:
        if self.now < self.is_away_until:
            raise BackendUnavailable("away")
        begins_at, owner = self.tops.get(topic, (1e9, None))
        return Top(Cursor("e", 1, 0), owner) if self.now >= begins_at else None

    async def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        self.asked.append((self.now, owner))
        return await self.authorize_by_rule(user, topic, owner)


async def test_the_pauses_grow_and_are_the_same_for_a_foreign_and_an_absent_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = []
    for owner in ("8", None):
        script = Scripted(monkeypatch)
        script.tops["job:1"] = (0.0 if owner else 1e9, owner)
        assert not (await script.permissions.wait("7", "job:1")).is_allowed
        assert {it for _, it in script.asked} == {owner}
        times.append([at for at, _ in script.asked])
    assert times[0] == times[1] == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.0])


async def test_the_owner_is_found_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch)
    script.tops["job:1"] = (1.0, "7")
    found = await script.permissions.wait("7", "job:1")
    assert (found.is_allowed, found.epoch, found.owner) == (True, "e", "7")
    assert script.now == pytest.approx(1.5)
    assert script.stats.waiting == 0


async def test_a_backend_that_is_away_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch)
    script.is_away_until = 1.0
    with pytest.raises(BackendUnavailable):
        await script.permissions.wait("7", "job:1")
    assert (await script.permissions.ask("7", "user:7")).is_allowed
    assert script.stats.waiting == 0


# What asks at the same time shares a reading.


class Reads:
    def __init__(self) -> None:
        self.calls: list[set[str]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None
        self.reader = TopReader(self.read, lambda work, _: asyncio.ensure_future(work))

    async def read(self, topics: Sequence[str]) -> dict[str, Top]:
        self.calls.append(set(topics))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return {topic: Top(Cursor(topic, 1, 0)) for topic in topics if topic != "job:absent"}


async def test_what_is_asked_during_a_call_is_answered_by_one_later_call() -> None:
    reads = Reads()
    first = asyncio.gather(*(reads.reader.read(topic) for topic in ("job:1", "job:2", "job:1")))
    await asyncio.sleep(0.01)
    later = [asyncio.ensure_future(reads.reader.read(f"job:{n}")) for n in range(50)]
    absent = asyncio.ensure_future(reads.reader.read("job:absent"))
    await asyncio.sleep(0.01)
    later.pop(7).cancel()
    reads.may_answer.set()
    assert [top.cursor.epoch for top in await first if top] == ["job:1", "job:2", "job:1"]
    assert all(await asyncio.gather(*later))
    assert await absent is None
    assert Counter(map(len, reads.calls)) == {2: 1, 51: 1}


async def test_a_call_that_fails_fails_for_all_that_asked_and_the_next_one_is_made() -> None:
    reads = Reads()
    reads.may_answer.set()
    reads.error = BackendUnavailable("away")
    results = await asyncio.gather(
        *(reads.reader.read(f"job:{n}") for n in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [BackendUnavailable] * 3
    reads.error = None
    assert await reads.reader.read("job:1") is not None
