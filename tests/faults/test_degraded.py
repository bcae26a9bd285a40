"""What the degraded mode promises while the broker is away, one promise a test."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from fleet import (
    Compat,
    Here,
    Native,
    Publisher,
    fleet_of,
    make_settings,
    site_of,
    until,
)
from record import Record

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import AccessError
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.servers import ROWS, Server

FLAPS = int(os.environ.get("FLAPS", "3"))
"""How often the broker goes for a second and comes for a second; by hand, say, 30."""
SHOWN_SECONDS = 5.0
BACK_SECONDS = 15.0
"""The longest pauses of an emitter and of a feed between two tries are 5 s each."""


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    made = Record(tmp_path)
    made.write("1", {"status": "running", "attempt": 1})
    yield made
    made.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"recall_seconds": 0.5, "start_tries": 1})


@pytest.fixture
async def site(settings: Settings, record: Record) -> AsyncIterator[Here]:
    async with site_of(settings, plugins=[record]) as here:
        yield here


async def test_the_record_is_asked_again_and_again_and_once_for_all_watchers(
    server: Server, site: Here, record: Record, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        Native(site, "job:1") as one,
        Native(site, "job:1") as other,
        Compat(site.compat("1")) as browser,
    ):
        await one.synced()
        await other.synced()
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
        # Each look was told to both.
        asked = record.asked["job:1"]
        assert abs(len(one.ops("provisional")) - asked) <= 1
        assert abs(len(other.ops("provisional")) - asked) <= 1
        server.start()
        await one.wait_for("restored", 1, BACK_SECONDS)
        await browser.wait_for("restored", 1, BACK_SECONDS)
        # The log has the last word, and it has yet to catch up.
        await publisher.publish("job:1", 39)
        await one.has("job:1", 40)
        await browser.wait_for("step", 40)
        assert one.views["job:1"].states["1"]["progress"]["current"] == 40
        assert browser.messages[-1]["data"]["current"] == 40


async def test_a_feed_on_the_compat_wire_is_told_of_the_outage_job_by_job(
    server: Server, settings: Settings, record: Record, publisher: Publisher
) -> None:
    def say(job: str, current: int, type: str = "job_progress") -> None:
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
    settings = settings.model_copy(update={"compat_feed_path": "/ws/operations"})
    say("1", 1)
    say("2", 1)
    await publisher.flush()
    async with (
        site_of(settings, plugins=[record]) as site,
        Compat(site.compat("", "/ws/operations")) as browser,
    ):
        await browser.wait_for("job_progress", 2)
        server.kill()
        await browser.wait_for("degraded", 2)
        assert {message["data"]["job_id"] for message in browser.of("degraded")} == {"1", "2"}
        assert {message["data"]["status"] for message in browser.of("degraded")} == {"running"}
        record.write("2", {"status": "running", "attempt": 1, "progress": {"current": 3}})
        await until(lambda: provisional("2"), SHOWN_SECONDS)
        record.write("2", {"status": "completed", "attempt": 1})
        await until(lambda: provisional("2")[-1]["status"] == "completed", SHOWN_SECONDS)
        # The record is behind what was shown of the other, so nothing is said of it.
        assert not provisional("1")
        say("1", 2)
        say("2", 2)
        say("2", 4, "job_completed")
        server.start()
        await browser.wait_for("restored", 2, BACK_SECONDS)
        await until(lambda: browser.messages[-1]["data"].get("progress") == 100.0, BACK_SECONDS)
        # Its end was told while it was provisional, and is told once.
        assert not browser.of("job_completed")
        of_two = [m["data"]["status"] for m in browser.messages if m["data"]["job_id"] == "2"]
        assert of_two == sorted(of_two, reverse=True), "running, then completed"
        assert browser.closed is None


@pytest.mark.parametrize("error", [AccessError("no session"), asyncio.CancelledError()], ids=type)
async def test_a_record_that_fails_meanwhile_is_asked_on(
    server: Server, settings: Settings, publisher: Publisher, error: BaseException
) -> None:
    class Troubled:
        @hookimpl
        def recall(self, topic: str) -> dict[str, dict[str, str]]:
            nonlocal asked
            asked += 1
            if asked <= 3:
                raise error
            return {"1": {"status": "running", "message": "by the record"}}

    asked = 0
    await publisher.publish("job:1", 1)
    async with (
        site_of(settings, plugins=[Troubled()]) as site,
        Native(site, "job:1") as client,
    ):
        await client.synced()
        server.kill()
        await client.wait_for("provisional", 1, SHOWN_SECONDS)
        assert client.views["job:1"].states["1"]["message"] == "by the record"
        assert client.connections == 1


@pytest.mark.parametrize("ready", [True, False])
async def test_health_says_since_when_and_how_much_waits(
    server: Server, settings: Settings, ready: bool
) -> None:
    settings = settings.model_copy(update={"degraded_is_ready": ready})
    async with site_of(settings) as site, site.client() as http:
        before = await http.get("/realtime/health")
        assert (before.status_code, before.json()["degraded_since"]) == (200, None)
        server.kill()
        await until(lambda: site.rt.web.outage.since, SHOWN_SECONDS)
        for _ in range(3):
            await site.rt.publish("job:1", "step", data={"n": 1})
        during = await http.get("/realtime/health")
        said = during.json()
        assert during.status_code == (200 if ready else 503)
        assert (said["live"], said["ready"]) == (True, ready)
        assert said["degraded_since"] is not None
        assert said["spool"]["drafts"] == 3
        assert said["spool"]["bytes"] > 100
        server.start()
        await until(lambda: not site.rt.web.outage.since, BACK_SECONDS)
        after = await http.get("/realtime/health")
        assert after.status_code == 200
        assert after.json()["spool"] == {"drafts": 0, "bytes": 0}


@pytest.mark.every_backend
async def test_nobody_pays_for_a_broker_that_hangs(
    server: Server, settings: Settings, record: Record, publisher: Publisher
) -> None:
    settings = settings.model_copy(update={"timeout_seconds": 3.0, "max_connections": 1000})
    await publisher.publish("job:1", 1)
    slowest: dict[str, float] = {}

    async def take(name: str, work: Awaitable[object]) -> object:
        began = time.monotonic()
        answer = await work
        slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - began)
        return answer

    async def connect() -> None:
        async with Native(site, "job:1") as client:
            await client.wait_for("degraded")
            await client.wait_for("provisional")

    async def browse() -> None:
        async with Compat(site.compat("1")) as browser:
            await browser.wait_for("current_state")

    async with (
        site_of(settings, plugins=[record]) as site,
        site.client() as http,
        Native(site, "job:1") as client,
    ):
        await client.synced()
        server.pause()
        try:
            await client.wait_for("degraded", 1, 10)
            until_when = time.monotonic() + 6
            while time.monotonic() < until_when:
                state = {"status": "running", "attempt": 1}
                health, job, receipt, *_ = await asyncio.gather(
                    take("health", http.get("/realtime/health")),
                    take("job", http.get("/realtime/jobs/1")),
                    take("publish", site.rt.publish("job:1", "step", state=state)),
                    take("history", http.get("/realtime/jobs/1/history")),
                    take("connect", connect()),
                    take("browse", browse()),
                )
                assert health.json()["degraded_since"]
                assert job.json()["provisional"]
                assert receipt.outcome is Outcome.WAITING
        finally:
            server.resume()
        await client.wait_for("restored", 1, BACK_SECONDS)
    # Half of what one deadline would cost.
    assert max(slowest.values()) < 1.5, slowest


class Flap(NamedTuple):
    """Once down and up."""

    hangs: bool = False
    down_seconds: float | None = None
    """None: until the watchers are told."""
    up_seconds: float | None = None


async def follow_through(
    flaps: Sequence[Flap], server: Server, site: Here, publisher: Publisher
) -> int:
    """Let the broker go and come while a worker speaks fifty times a second and a browser of each
    wire follows. Nothing is lost, doubled or out of order; gives how often it was told."""
    await publisher.publish("job:1", 1)
    writing = True

    async def write() -> None:
        while writing:
            publisher.emit("job:1")
            await asyncio.sleep(0.02)

    async with Native(site, "job:1") as client, Compat(site.compat("1")) as browser:

        async def wait(seconds: float | None, op: str) -> None:
            if seconds is not None:
                await asyncio.sleep(seconds)
                return
            is_away = op == "degraded"
            await until(
                lambda: len(client.ops("degraded")) - len(client.ops("restored")) == is_away,
                BACK_SECONDS,
                lambda: client,
            )

        await client.synced()
        await browser.wait_for("step")
        began = time.monotonic()
        task = asyncio.create_task(write())
        for flap in flaps:
            if flap.hangs:
                server.pause()
                await wait(flap.down_seconds, "degraded")
                server.resume()
            else:
                server.kill()
                await wait(flap.down_seconds, "degraded")
                await asyncio.to_thread(server.start)
            await wait(flap.up_seconds, "restored")
        writing = False
        await task
        await publisher.flush()
        ended = time.monotonic()
        count = publisher.count["job:1"]
        await client.has("job:1", count, BACK_SECONDS)
        await browser.wait_for("step", count, BACK_SECONDS)
        await wait(None, "restored")
        told = [frame["op"] for frame in client.frames if frame["op"] in ("degraded", "restored")]
        print(
            f"{len(flaps)} flaps in {ended - began:.1f} s, told {len(told) // 2} times, {count}"
            f" events, all of them there {time.monotonic() - ended:.1f} s after the last"
        )
        assert client.numbers("job:1") == list(range(1, count))
        assert [message["data"]["i"] for message in browser.of("step")] == list(range(count))
        assert (client.connections, client.closed, client.holes) == (1, None, [])
        assert browser.closed is None
        assert told == ["degraded", "restored"] * (len(told) // 2)
        assert client.views["job:1"].states["1"]["progress"]["current"] == count
    return len(told) // 2


@pytest.mark.every_backend
@pytest.mark.timeout(60 + 10 * FLAPS)
async def test_a_broker_that_comes_and_goes_is_told_and_made_up_for_each_time(
    server: Server, site: Here, publisher: Publisher
) -> None:
    """Down for a second, up for a second, killed and hanging in turn."""
    flaps = [Flap(number % 2 == 1, 1.0, 1.0) for number in range(FLAPS)]
    assert await follow_through(flaps, server, site, publisher) >= 1


async def test_a_broker_that_comes_and_goes_thirty_times_is_made_up_for_each_time(
    server: Server, site: Here, publisher: Publisher
) -> None:
    """Ten times until everyone is told; after each twice for moments, which may end before
    anybody has noticed, or amid a return."""
    rng = random.Random(30)
    flaps: list[Flap] = []
    for _ in range(10):
        hanging, killed = (
            Flap(hangs, rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.8)) for hangs in (True, False)
        )
        flaps += [Flap(), hanging, killed]
    assert await follow_through(flaps, server, site, publisher) >= 10


@pytest.mark.every_backend
async def test_a_broker_that_was_never_there_is_waited_for(
    server: Server, settings: Settings, record: Record
) -> None:
    server.kill()
    async with (
        site_of(settings, plugins=[record]) as site,
        site.client() as http,
        Native(site, "job:1") as client,
        Compat(site.compat("1")) as browser,
    ):
        await client.wait_for("degraded")
        await client.wait_for("provisional")
        await browser.wait_for("current_state")
        assert (await http.get("/realtime/jobs/1")).json()["provisional"]
        state = {"status": "completed", "attempt": 1}
        receipt = await site.rt.publish("job:1", "job_completed", state=state)
        assert receipt.outcome is Outcome.WAITING
        await until(lambda: client.views["job:1"].states["1"] == state, SHOWN_SECONDS)
        await asyncio.to_thread(server.start)
        await client.wait_for("restored", 1, BACK_SECONDS)
        await until(lambda: client.views["job:1"].folded.get("1") == state, BACK_SECONDS)
        await browser.wait_for("restored", 1, BACK_SECONDS)
        await until(lambda: browser.messages[-1]["id"], BACK_SECONDS, lambda: browser.messages)
        assert client.connections == 1
        assert browser.closed is None
        assert browser.messages[-1]["data"]["status"] == "completed"
        said = (await http.get("/realtime/jobs/1")).json()
        assert said["states"]["1"] == state
        assert "provisional" not in said


class Names:
    """What a process knows of names: a file that the resolver reads when its time has changed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hosts"
        self.variables = {
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_HOSTS": str(self.file),
        }
        self._time = int(time.time())

    def know(self, *names: str) -> None:
        self.file.write_text("".join(f"127.0.0.1 {name}\n" for name in names))
        # In whole seconds, and each time another one.
        self._time += 1
        os.utime(self.file, (self._time, self._time))

    def resolve(self, name: str) -> bool:
        """Whether a process knows ``name``."""
        look = f"import socket; socket.getaddrinfo({name!r}, 1)"
        command = [sys.executable, "-c", look]
        return not subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True
        ).returncode


async def test_a_name_that_resolves_no_more_is_looked_up_again(
    server: Server, row: str, tmp_path: Path, record: Record
) -> None:
    names = Names(tmp_path)
    names.know("broker.test", "other.test")
    if not names.resolve("broker.test"):
        pytest.skip("libnss_wrapper.so is missing: apt-get install libnss-wrapper")
    known, named = server.url, server.url.replace("127.0.0.1", "broker.test")
    given = {"timeout_seconds": 1.0, "tops_seconds": 1.0, "backend": ROWS[row].backend}
    settings = make_settings(named, **given)
    publisher = Publisher(make_settings(known, prefix=settings.prefix, **given))
    await publisher.publish("job:1", 1)
    variables = {**names.variables, "TEST_RECORD": str(tmp_path), "PYTHONPATH": _python_path()}
    async with (
        fleet_of(1, settings, app="host:app", **variables) as [site],
        site.client() as http,
        Native(site, "job:1") as client,
    ):
        await client.synced()
        names.know("other.test")
        server.kill()
        # It is there again, and nobody finds it.
        server.start()
        await publisher.publish("job:1", 3)
        await client.wait_for("degraded")
        said = await http.post("/say/1", json={"status": "running", "message": "hello"})
        assert said.json() == {"outcome": "waiting"}
        await until(
            lambda: client.views["job:1"].states["1"].get("message") == "hello", SHOWN_SECONDS
        )
        assert not client.ops("restored")
        names.know("broker.test", "other.test")
        await client.wait_for("restored", 1, 2 * BACK_SECONDS)
        await client.has("job:1", 5)
        assert [event.get("data") for event in client.seen["job:1"]] == [
            *({"i": number} for number in (1, 2, 3)),
            None,
        ]
        assert (client.connections, client.holes) == (1, [])
    publisher.close()


def _python_path() -> str:
    return os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
