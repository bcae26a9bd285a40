"""A plugin that wraps the backend's hooks sees all that goes in and out, on every transport."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence

import msgspec
import pytest
from clients import NativeClient
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Event
from semantik_realtime.hookspecs import Page, Sink, SinkProxy, Snapshot, hookimpl

PLAIN, SECRET = b"the plan", b"XXXXXXXX"


def replaced(event: Event, old: bytes, new: bytes) -> Event:
    return msgspec.structs.replace(event, json=event.json.replace(old, new))


class DecryptingSink:
    """Passes events on in plain text."""

    def __init__(self, target: Sink) -> None:
        self._target = target

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        plain = [replaced(event, SECRET, PLAIN) for event in events]
        self._target.events(topic, prev, plain)

    def interrupted(self, topic: str) -> None:
        self._target.interrupted(topic)

    def gone(self, topic: str) -> None:
        self._target.gone(topic)


class Encrypting:
    """Stands for encryption: one text of the same length in place of another."""

    @hookimpl(wrapper=True)
    def publish(self, drafts: list[Draft]) -> Generator[None, object, object]:
        drafts[:] = [
            msgspec.structs.replace(draft, body=draft.body.replace(PLAIN, SECRET))
            for draft in drafts
        ]
        return (yield)

    @hookimpl(wrapper=True)
    def subscribe(self, topic: str, sink: SinkProxy) -> Generator[None, object, object]:
        sink.target = DecryptingSink(sink.target)
        return (yield)

    @hookimpl(wrapper=True)
    def snapshot(
        self, topic: str, after: Cursor | None, history: int
    ) -> Generator[None, Awaitable[Snapshot], Awaitable[Snapshot]]:
        reading = yield
        return self._decrypt(reading)

    @hookimpl(wrapper=True)
    def page(
        self, topic: str, after: int, limit: int
    ) -> Generator[None, Awaitable[Page], Awaitable[Page]]:
        reading = yield
        return self._decrypt_page(reading)

    async def _decrypt_page(self, reading: Awaitable[Page]) -> Page:
        page = await reading
        events = [replaced(event, SECRET, PLAIN) for event in page.events]
        return msgspec.structs.replace(page, events=events)

    async def _decrypt(self, reading: Awaitable[Snapshot]) -> Snapshot:
        snapshot = await reading
        return msgspec.structs.replace(
            snapshot,
            states={key: event.replace(SECRET, PLAIN) for key, event in snapshot.states.items()},
            events=[replaced(event, SECRET, PLAIN) for event in snapshot.events],
        )


@pytest.fixture
async def web_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings, plugins=[Encrypting()]) as here:
        yield here


@pytest.mark.every_row
async def test_what_a_wrapper_encrypts_is_plain_for_watchers_and_secret_in_the_log(
    web_server: InProcessServer, settings: Settings, read_raw: Callable[[str], Awaitable[Snapshot]]
) -> None:
    state = {"status": "running", "message": PLAIN.decode()}
    await web_server.rt.publish("job:1", "step", state=state, owner="7")
    async with NativeClient(web_server, "job:1") as client, web_server.http_client() as http:
        await client.wait_synced()
        assert client.views["job:1"].states["1"] == state
        live = state | {"message": f"still {PLAIN.decode()}"}
        await web_server.rt.publish("job:1", "step", state=live, owner="7")
        await client.wait_for_offset("job:1", 2)
        assert client.views["job:1"].states["1"] == live
        job = (await http.get("/realtime/jobs/1")).json()
        assert job["states"]["1"] == live
        history = (await http.get("/realtime/jobs/1/history")).json()
        assert [event["state"] for event in history["events"]] == [state, live]
    raw = await read_raw("job:1")
    stored = [*raw.states.values(), *(event.json for event in raw.events)]
    assert len(stored) == 3
    assert not any(PLAIN in event for event in stored)
    assert all(json.loads(event)["state"]["message"].endswith(SECRET.decode()) for event in stored)


@pytest.fixture
def read_raw(web_server: InProcessServer) -> Callable[[str], Awaitable[Snapshot]]:
    """Read a topic past the plugins."""

    async def read(topic: str) -> Snapshot:
        return await web_server.rt.unguarded.snapshot(topic, None, 10)

    return read
