"""Several processes, threads and forks that append to one topic."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import secrets
import threading
from collections.abc import Callable

import pytest
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Draft, Outcome
from semantik_realtime.errors import AppendUncertain, BackendError, BackendUnavailable
from semantik_realtime.testing.contract import Author, Recorder
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats.backend import NatsBackend

Make = Callable[..., NatsBackend]
EVENTS = 300


@pytest.fixture
def topic() -> str:
    return f"user:{secrets.token_hex(6)}"


def publish_until_done(backend: NatsBackend, draft: Draft) -> list[BackendError]:
    """Publish one draft until that succeeds; return the errors before."""
    failures: list[BackendError] = []
    while True:
        try:
            backend.publish([draft])
            return failures
        except (BackendUnavailable, AppendUncertain) as error:
            failures.append(error)


def write(url: str, topic: str, name: str) -> None:
    """Publish `EVENTS` events. Runs in a process of its own."""
    backend = NatsBackend(load_settings(backend="nats", url=url))
    author = Author(name)
    for n in range(EVENTS):
        draft = author.draft(topic, key=f"{name}-{n % 5}", state={"n": n}, data={"by": name})
        [receipt] = backend.publish([draft])
        assert receipt.outcome is Outcome.APPENDED
    backend.close_writer()


async def test_writers_in_several_processes_lose_nothing_and_duplicate_nothing(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, sink = make_backend(url), Recorder()
    await backend.open()
    await backend.subscribe(topic, sink)
    spawn = multiprocessing.get_context("spawn")
    names = ["one", "two", "three"]
    processes = [spawn.Process(target=write, args=(url, topic, name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == 0
    await sink.wait_for_events(len(names) * EVENTS)
    events = list((await backend.snapshot(topic, None, 1000)).events)
    assert [event.offset for event in events] == [*range(1, len(names) * EVENTS + 1)]
    for name in names:
        bodies = [json.loads(event.json) for event in events]
        numbers = [body["state"]["n"] for body in bodies if body["data"]["by"] == name]
        assert numbers == [*range(EVENTS)]
    assert sink.received == events
    states = (await backend.snapshot(topic, None, 0)).states
    assert {json.loads(event)["state"]["n"] for event in states.values()} == {*range(295, 300)}
    assert len(states) == 15


async def test_a_forked_child_writes_on_its_own_connection_and_its_parent_keeps_its_own(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    await backend.open()
    backend.publish([author.draft(topic)])
    children = []
    for n in range(3):
        child = os.fork()
        if child == 0:
            try:
                if n == 0:
                    backend.close_writer()
                mine = Author(f"child{n}")
                drafts = [mine.draft(topic) for _ in range(20)]
                done = all(
                    backend.publish([draft])[0].outcome is Outcome.APPENDED for draft in drafts
                )
                backend.close_writer()
                os._exit(0 if done else 1)
            finally:
                os._exit(2)
        children.append(child)
        backend.publish([author.draft(topic) for _ in range(20)])
    for child in children:
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    backend.publish([author.draft(topic)])
    events = (await backend.snapshot(topic, None, 1000)).events
    assert [event.offset for event in events] == [*range(1, 123)]


async def test_closing_the_writer_while_threads_publish_makes_their_calls_fail_or_succeed(
    url: str, make_backend: Make, topic: str
) -> None:
    backend = make_backend(url)
    written: list[int] = []

    def keep_writing(author: Author) -> None:
        for _ in range(50):
            publish_until_done(backend, author.draft(topic))
            written.append(1)

    threads = [threading.Thread(target=keep_writing, args=(Author(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        backend.close_writer()
        threads[0].join(0.01)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    await backend.open()
    assert len((await backend.snapshot(topic, None, 1000)).events) == len(written) == 150


async def test_writers_lose_nothing_and_duplicate_nothing_when_the_server_is_killed(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url, timeout_seconds=2.0)
    other = make_backend(server.url, timeout_seconds=2.0)
    failures: list[BackendError] = []

    def keep_writing(backend: NatsBackend, author: Author) -> None:
        for n in range(150):
            draft = author.draft(topic, data={"by": author.name, "n": n})
            failures.extend(publish_until_done(backend, draft))

    authors = [Author("one"), Author("two")]
    threads = [
        threading.Thread(target=keep_writing, args=(each, author))
        for each, author in zip((backend, other), authors, strict=True)
    ]
    for thread in threads:
        thread.start()
    for _ in range(3):
        threads[0].join(0.1)
        server.kill()
        server.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures
    await backend.open()
    events = (await backend.snapshot(topic, None, 1000)).events
    data = [json.loads(event.json)["data"] for event in events]
    for author in authors:
        assert [one["n"] for one in data if one["by"] == author.name] == [*range(150)]
    assert [event.offset for event in events] == [*range(1, 301)]
