"""Live topics are moved to another engine while a process writes and a client watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from clients import NativeClient
from configuration import environment, make_settings
from publisher import Publisher
from waiting import until
from web_servers import serve_realtime

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import Backend
from semantik_realtime.testing.servers import ROWS

COMMAND = [sys.executable, "-c", "from semantik_realtime.cli import main; main()", "migrate"]
TOPIC = "job:1"
FEED = "user:7"
PAIRS = [
    pytest.param(("valkey", "nats"), marks=pytest.mark.nats),
    pytest.param(("nats", "redis"), marks=pytest.mark.nats),
    pytest.param(("redis", "cluster"), marks=pytest.mark.cluster),
]


def migrate(source: Settings, target: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the settings of ``source``."""
    return subprocess.run(
        [*COMMAND, str(source.url), str(target.url), *options],
        env={**os.environ, **environment(source)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@contextlib.contextmanager
def writing(publisher: Publisher, *topics: str) -> Iterator[Callable[[], None]]:
    """Emit to the topics all the time, in a thread; yield what ends that."""
    ending = threading.Event()

    def write() -> None:
        while not ending.wait(0.005):
            for topic in topics:
                publisher.emit(topic)

    thread = threading.Thread(target=write)
    thread.start()

    def end() -> None:
        ending.set()
        thread.join()

    try:
        yield end
    finally:
        end()


@contextlib.asynccontextmanager
async def backend_of(settings: Settings) -> AsyncIterator[Backend]:
    backend = load_backend(settings)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()
        backend.close_writer()


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, server_url: Callable[[str], str], tmp_path: Path
) -> tuple[Settings, Settings]:
    """Of processes before and after the move."""
    source, target = request.param
    before = make_settings(
        server_url(source),
        backend=ROWS[source].backend,
        spool_directory=str(tmp_path),
        timeout_seconds=2.0,
        flush_seconds=0.5,
        tops_seconds=1.0,
    )
    after = before.model_copy(update={"url": server_url(target), "backend": ROWS[target].backend})
    return before, after


@pytest.mark.parametrize("settings", PAIRS, indirect=True)
async def test_a_client_resumes_on_the_other_engine_and_gets_each_event_once(
    settings: tuple[Settings, Settings],
) -> None:
    before, after = settings
    publisher = Publisher(before)
    await publisher.publish(FEED, 3)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve_realtime(before))
        client = NativeClient(first, TOPIC, FEED)
        with writing(publisher, TOPIC, FEED) as stop_writing:
            await until(lambda: publisher.count[TOPIC] > 20)
            await client.open()
            await client.wait_synced()
            done = await asyncio.to_thread(migrate, before, after, "--switch", "--json")
            assert done.returncode == 0, done.stderr
            # Writers go on, and their drafts wait.
            at = publisher.count[TOPIC]
            await until(lambda: publisher.count[TOPIC] > at + 20)
        stop_writing()
        assert publisher.rt.emitter.waiting >= 20
        await client.wait_for("degraded")
        await asyncio.to_thread(publisher.close)
        epoch = client.views[TOPIC].cursor.partition(".")[0]
    await client.close()
    report = json.loads(done.stdout)
    assert report["topics"] >= 2
    assert report["differences"] == report["changing"] == report["left_out"] == 0

    second = Publisher(after)
    second.count = publisher.count
    try:
        async with serve_realtime(after) as web_server:
            client.web_server = web_server
            await client.open()
            second.rt.emitter.recover()
            await second.publish(FEED, 3)
            await until(lambda: len(client.numbers(TOPIC)) >= 1)
            # The drafts of the process that has ended come first or later: nothing orders the two.
            await second.end(TOPIC)
            total = second.count[TOPIC]
            last = total - 1
            await until(lambda: client.views[TOPIC].offset >= total, 20, lambda: client)
            await until(lambda: client.views[FEED].offset >= second.count[FEED], 20)
            await client.close()
    finally:
        await asyncio.to_thread(second.close)
    # The events before the first snapshot came as states.
    [_, *later] = [sync for sync in client.syncs if sync["topic"] == TOPIC]
    assert [sync["mode"] for sync in later] == ["replay"]
    assert client.views[TOPIC].cursor.partition(".")[0] == epoch
    missing = total - len(client.numbers(TOPIC))
    assert sorted(client.numbers(TOPIC)) == list(range(missing, total))
    assert last in client.numbers(TOPIC)
    assert not client.bad_batches
    assert len(set(client.numbers(FEED))) == len(client.numbers(FEED))
    async with backend_of(after) as backend:
        assert (await backend.tops([TOPIC]))[TOPIC].cursor.offset == total
