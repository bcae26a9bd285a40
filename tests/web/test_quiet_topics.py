"""Which topics a web server compares with the backend, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from clients import NativeClient
from publisher import Publisher
from web_servers import InProcessServer

from semantik_realtime.hookspecs import Top


@pytest.fixture
def asked(web_server: InProcessServer, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The topics of each call of `tops`."""
    calls: list[set[str]] = []
    hub = web_server.rt.web.hub
    tops = hub._backend.tops

    async def noted(topics: Sequence[str]) -> dict[str, Top]:
        calls.append(set(topics))
        return await tops(topics)

    monkeypatch.setattr(hub._backend, "tops", noted)
    return calls


async def test_only_topics_without_events_since_the_last_time_are_compared(
    web_server: InProcessServer, publisher: Publisher, asked: list[set[str]]
) -> None:
    hub = web_server.rt.web.hub
    for topic in ("job:1", "job:2"):
        await publisher.publish(topic, 1)
    async with NativeClient(web_server, "job:1", "job:2") as client:
        await client.wait_synced()
        asked.clear()
        await hub.check_tops()
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        await hub.check_tops()
        await hub.check_tops()
    assert [call for call in asked if "job:2" in call] == [
        {"job:1", "job:2"},
        {"job:2"},
        {"job:1", "job:2"},
    ]
