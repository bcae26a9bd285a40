"""The Python client: once and in order, through reconnects; final refusals end it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from fleet import Publisher, site_of, token, until
from websockets.asyncio.server import ServerConnection, serve

from semantik_realtime import client
from semantik_realtime.client import Update, watch
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, TopicError


async def numbers_until(
    url: str, topic: str, last: int, updates: list[Update] | None = None
) -> list[int]:
    """The events' numbers in the order in which the client gave them, to the ``last``."""
    got: list[int] = []
    async with asyncio.timeout(30), aclosing(watch(url, topic, token=token())) as following:
        async for update in following:
            if updates is not None:
                updates.append(update)
            got += [event["data"]["n"] for event in update.events if "n" in event["data"]]
            if got and got[-1] == last:
                return got
    raise AssertionError(f"ended after {got[-3:]}")


@pytest.mark.every_backend
async def test_events_come_once_and_in_order_though_the_server_cuts_the_link(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.01)
    async with site_of(settings) as site:
        runtime = site.rt
        await runtime.publish("job:1", "begin", owner="7")
        updates: list[Update] = []
        following = asyncio.create_task(numbers_until(site.native, "job:1", 299, updates))
        await until(lambda: updates)
        for number in range(300):
            await runtime.publish("job:1", "step", data={"n": number})
            if number % 60 == 30:
                await runtime_cut(runtime)
        assert await following == list(range(300))
        assert sum(update.connection == "reconnecting" for update in updates) >= 3


async def runtime_cut(runtime: Any) -> None:
    """End every connection, there being one, as a draining server does, and serve on."""
    hub = runtime.server.hub
    await until(lambda: hub.connections)
    await hub.drain(5.0)
    hub.draining = False


async def test_a_foreign_topic_ends_it(settings: Settings, publisher: Publisher) -> None:
    await publisher.publish("job:2", 1, owner="8")
    async with site_of(settings) as site:
        with pytest.raises(AccessError, match="not yours"):
            await numbers_until(site.native, "job:2", 1)


async def test_a_topic_outside_the_grammar_is_refused_before_connecting() -> None:
    with pytest.raises(TopicError):
        await numbers_until("ws://127.0.0.1:9/", "../x", 1)


@pytest.mark.parametrize("code", [1009, 4400, 4401, 4402, 4403, 4408])
async def test_final_close_codes_end_it(code: int) -> None:
    async def refuse(connection: ServerConnection) -> None:
        await connection.close(code, "no")

    async with serve(
        refuse,
        "127.0.0.1",
        0,
        subprotocols=["semantik.realtime.v1"],  # type: ignore[list-item]
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(AccessError, match=str(code)):
            await numbers_until(f"ws://127.0.0.1:{port}/", "job:1", 1)


@pytest.mark.parametrize("code", [1011, 1012, 4413, 4429])
async def test_after_other_codes_it_comes_back(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.001)
    came = 0

    async def refuse(connection: ServerConnection) -> None:
        nonlocal came
        came += 1
        await connection.close(code, "later")

    async with serve(
        refuse,
        "127.0.0.1",
        0,
        subprotocols=["semantik.realtime.v1"],  # type: ignore[list-item]
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        following = asyncio.create_task(numbers_until(f"ws://127.0.0.1:{port}/", "job:1", 1))
        await until(lambda: came >= 4)
        following.cancel()
        await asyncio.wait((following,))
