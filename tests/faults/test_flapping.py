"""A broker that goes and comes back again and again: every event arrives once and in order."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from clients import CompatClient, NativeClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer

from semantik_realtime.testing.servers import Server

FLAPS = int(os.environ.get("FLAPS", "3"))
"""How often the broker goes away for a second and returns for a second."""
SHOWN_SECONDS = 5.0
BACK_SECONDS = 15.0
"""Emitter and subscription pause for up to 5 s each between two tries."""


pytestmark = pytest.mark.usefixtures("quick_recalls")


class Flap(NamedTuple):
    """One outage and the time after it."""

    hangs: bool = False
    down_seconds: float | None = None
    """None: until the clients are notified."""
    up_seconds: float | None = None


async def follow_through(
    flaps: Sequence[Flap], server: Server, web_server: InProcessServer, publisher: Publisher
) -> int:
    """Let the broker go and return while a worker emits 50 events a second and a client of each
    wire follows. Nothing is lost, repeated or out of order. Return how many outages the
    clients were notified of."""
    await publisher.publish("job:1", 1)
    writing = True

    async def write() -> None:
        while writing:
            publisher.emit("job:1")
            await asyncio.sleep(0.02)

    async with (
        NativeClient(web_server, "job:1") as client,
        CompatClient(web_server.compat_url("1")) as browser,
    ):

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

        await client.wait_synced()
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
        await client.wait_for_offset("job:1", count, BACK_SECONDS)
        await browser.wait_for("step", count, BACK_SECONDS)
        await wait(None, "restored")
        notices = [
            frame["op"] for frame in client.frames if frame["op"] in ("degraded", "restored")
        ]
        print(
            f"{len(flaps)} flaps in {ended - began:.1f} s, notified {len(notices) // 2} times,"
            f" {count} events, the last delivered after {time.monotonic() - ended:.1f} s"
        )
        assert client.numbers("job:1") == list(range(1, count))
        assert [message["data"]["i"] for message in browser.of_type("step")] == list(range(count))
        assert (client.connections, client.closed, client.bad_batches) == (1, None, [])
        assert browser.closed is None
        assert notices == ["degraded", "restored"] * (len(notices) // 2)
        assert client.views["job:1"].states["1"]["progress"]["current"] == count
    return len(notices) // 2


@pytest.mark.every_backend
@pytest.mark.timeout(60 + 10 * FLAPS)
async def test_clients_catch_up_each_time_that_a_broker_goes_and_returns(
    server: Server, web_server: InProcessServer, publisher: Publisher
) -> None:
    """Down for a second and up for a second, killed and hanging in turn."""
    flaps = [Flap(number % 2 == 1, 1.0, 1.0) for number in range(FLAPS)]
    assert await follow_through(flaps, server, web_server, publisher) >= 1


async def test_clients_catch_up_with_a_broker_that_goes_and_returns_thirty_times(
    server: Server, web_server: InProcessServer, publisher: Publisher
) -> None:
    """Ten outages until the clients are notified; after each one two short ones, which may end
    unnoticed, or begin during a return."""
    rng = random.Random(30)
    flaps: list[Flap] = []
    for _ in range(10):
        hanging, killed = (
            Flap(hangs, rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.8)) for hangs in (True, False)
        )
        flaps += [Flap(), hanging, killed]
    assert await follow_through(flaps, server, web_server, publisher) >= 10
