"""Several processes on one host, some of them killed or forked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from semantik_realtime_sqlite.backend import SqliteBackend

from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Cursor
from semantik_realtime.testing.contract import Author, Recorder, until

HERE = Path(__file__).parent
TOPIC = "job:1"
BATCH = 200


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/realtime.db"


@pytest.fixture
def start(url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a program beside this file, with a pipe for its output."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(HERE / program), url, TOPIC, *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_line(process: subprocess.Popen[str]) -> Any:
    """Return the next value that a program prints."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_a_process_gets_what_another_one_publishes(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    reader = start("reader.py")
    assert read_line(reader) == "watching"
    writer = start("writer.py", "a", "1")
    for number in range(20):
        assert read_line(writer) == number
        assert read_line(reader) == ["a", number, number + 1]


def test_a_killed_writer_loses_no_acknowledged_batch_and_leaves_none_incomplete(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    reader = start("reader.py")
    assert read_line(reader) == "watching"
    acknowledged: dict[str, int] = {}
    for name in "abc":
        writer = start("writer.py", name, str(BATCH))
        for _ in range(3):
            read_line(writer)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        acknowledged[name] = 3 + len(rest.splitlines())
    # Another process can still write; its event is the last one.
    last = start("writer.py", "z", "1")
    assert read_line(last) == 0
    seen: list[Any] = []
    while not seen or seen[-1][0] != "z":
        seen.append(read_line(reader))
    assert [offset for _, _, offset in seen] == [*range(1, len(seen) + 1)]
    for name, batches in acknowledged.items():
        counts = Counter(number for by, number, _ in seen if by == name)
        assert set(counts.values()) == {BATCH}
        # One more batch may be stored, whose number the writer had not printed yet.
        assert list(counts) in ([*range(batches)], [*range(batches + 1)])


@pytest.mark.asyncio
async def test_a_fork_while_a_thread_writes_leaves_both_processes_able_to_write(url: str) -> None:
    backend = SqliteBackend(load_settings(backend="sqlite", url=url, retention_events=100_000))
    await backend.open()
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        author = Author()
        while not stop.is_set():
            written.append(len(backend.publish([author.draft(TOPIC) for _ in range(20)])))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        await until(lambda: written)
        for _ in range(10):
            child = os.fork()
            if child == 0:
                try:
                    backend.publish([Author().draft(TOPIC)])
                    backend.close_writer()
                    os._exit(0)
                finally:
                    os._exit(1)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()
        thread.join()
    top = (await backend.tops([TOPIC]))[TOPIC]
    await backend.close()
    backend.close_writer()
    assert top.cursor.offset == sum(written) + 10


@pytest.mark.asyncio
async def test_a_sink_gets_interrupted_when_the_file_is_replaced(
    url: str,
) -> None:
    backend = SqliteBackend(load_settings(backend="sqlite", url=url))
    author, sink = Author(), Recorder()
    await backend.open()
    backend.publish([author.draft(TOPIC)])
    await backend.subscribe(TOPIC, sink)
    for file in Path(url.removeprefix("sqlite:///")).parent.iterdir():
        file.unlink()
    await until(lambda: sink.interruptions)
    [receipt] = backend.publish([author.draft(TOPIC)])
    await sink.wait_for_events(1)
    await backend.close()
    backend.close_writer()
    assert sink.batches[-1][0] == Cursor(receipt.cursor.epoch, 0, 0)
