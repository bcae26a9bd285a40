"""Pages of the history continue the history that the client knows, or say why they do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from configuration import SECRET
from publisher import Publisher
from replica import TOPIC, Replica
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Replica:
    return Replica(Settings(backend="memory", url=None, **getattr(request, "param", {})))


@pytest.fixture
async def web_server(backend: Replica) -> AsyncIterator[InProcessServer]:
    settings = Settings(backend="memory", url=None, jwt_secret=SECRET, tops_seconds=3600)
    async with serve_realtime(settings, backend=backend) as made:
        yield made


@pytest.fixture
async def publisher(web_server: InProcessServer) -> Publisher:
    return Publisher(web_server.rt.settings, web_server.rt)


@pytest.fixture
async def http(web_server: InProcessServer) -> AsyncIterator[httpx.AsyncClient]:
    async with web_server.http_client() as made:
        yield made


async def read(http: httpx.AsyncClient, after: object, limit: int = 100) -> dict[str, Any]:
    answer = await http.get("/realtime/jobs/1/history", params={"after": after, "limit": limit})
    assert answer.status_code == 200
    return dict(answer.json())


def offsets(page: dict[str, Any]) -> list[int]:
    return [event["offset"] for event in page["events"]]


async def test_page_by_page_each_event_is_read_once(
    publisher: Publisher, http: httpx.AsyncClient
) -> None:
    await publisher.publish(TOPIC, 25)
    seen: list[int] = []
    after: object = 0
    while True:
        page = await read(http, after, 10)
        assert page["reason"] is None
        seen += offsets(page)
        after = page["cursor"]
        if not page["more"]:
            break
    assert seen == list(range(1, 26))
    page = await read(http, after, 10)
    assert (page["events"], page["more"], page["cursor"], page["reason"]) == (
        [],
        False,
        after,
        None,
    )
    # As many as the server ever reads at once, and none.
    assert offsets(await read(http, (await read(http, 0, 1))["cursor"], 1000)) == seen[1:]
    nothing = await read(http, after, 0)
    assert (nothing["events"], nothing["cursor"]) == ([], after)


@pytest.mark.parametrize("fresh", [0, 2, 3])
async def test_after_a_rewriting_the_page_is_the_beginning_of_the_log_and_has_the_reason(
    backend: Replica, publisher: Publisher, http: httpx.AsyncClient, fresh: int
) -> None:
    await publisher.publish(TOPIC, 10)
    common = (await read(http, 0))["cursor"]
    backend.remember()
    await publisher.publish(TOPIC, 2)
    lost = await read(http, 0)
    backend.promote()
    publisher.rt.emitter._queue.producer = "after"
    publisher.count[TOPIC] = 100
    await publisher.publish(TOPIC, fresh)
    page = await read(http, lost["cursor"])
    assert page["reason"] == ("diverged" if fresh >= 2 else "ahead")
    assert page["epoch"] == lost["epoch"]
    assert offsets(page) == list(range(1, 11 + fresh))
    assert page["cursor"] == str(backend.end())
    # What both histories have is continued.
    page = await read(http, common)
    assert (page["reason"], offsets(page)) == (None, list(range(11, 11 + fresh)))
    # An offset alone shows it where the log is shorter now.
    page = await read(http, 12)
    assert page["reason"] == (None if fresh >= 2 else "ahead")
    assert offsets(page) == (list(range(13, 11 + fresh)) if fresh >= 2 else list(range(1, 11)))
    assert page["next"] == 10 + fresh if fresh != 2 else page["next"] == 12


async def test_a_log_that_began_again_is_read_from_its_beginning(
    backend: Replica, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    await publisher.publish(TOPIC, 5)
    old = (await read(http, 0))["cursor"]
    with backend._lock:
        backend._remove(TOPIC)
    publisher.rt.emitter._queue.producer = "after"
    await publisher.publish(TOPIC, 7)
    page = await read(http, old)
    assert (page["reason"], offsets(page)) == ("epoch", list(range(1, 8)))


@pytest.mark.parametrize("backend", [{"retention_events": 5}], indirect=True)
async def test_where_the_event_at_the_cursor_is_trimmed_the_page_says_so(
    publisher: Publisher, http: httpx.AsyncClient
) -> None:
    await publisher.publish(TOPIC, 3)
    old = (await read(http, 0))["cursor"]
    await publisher.publish(TOPIC, 7)
    page = await read(http, old, 2)
    assert (page["reason"], offsets(page), page["more"]) == ("trimmed", [6, 7], True)
    page = await read(http, page["cursor"])
    assert (page["reason"], offsets(page), page["more"]) == (None, [8, 9, 10], False)


@pytest.mark.parametrize("backend", [{"max_read_bytes": 1024}], indirect=True)
async def test_events_that_fit_one_by_one_are_all_read(
    publisher: Publisher, http: httpx.AsyncClient
) -> None:
    for _ in range(3):
        publisher.emit(TOPIC, data={"text": "x" * 1000})
    await publisher.flush()
    after: object = 0
    for offset in (1, 2, 3):
        page = await read(http, after)
        assert (offsets(page), page["more"]) == ([offset], offset < 3)
        after = page["cursor"]
