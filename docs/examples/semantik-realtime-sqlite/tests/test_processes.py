"""Several processes of one host, and what their sudden end leaves behind."""

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

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.testing.contract import Author, Recorder, until

HERE = Path(__file__).parent
TOPIC = "job:1"
BATCH = 200


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/realtime.db"


@pytest.fixture
def start(url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one of the programs beside this file; its lines come through a pipe."""
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


def line(process: subprocess.Popen[str]) -> Any:
    """The next thing a program says."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_what_one_process_publishes_another_sees_as_it_happens(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    reader = start("reader.py")
    assert line(reader) == "watching"
    writer = start("writer.py", "a", "1")
    for number in range(20):
        assert line(writer) == number
        assert line(reader) == ["a", number, number + 1]


def test_a_killed_writer_loses_nothing_that_was_acknowledged_and_leaves_no_half_batch(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    reader = start("reader.py")
    assert line(reader) == "watching"
    acknowledged: dict[str, int] = {}
    for name in "abc":
        writer = start("writer.py", name, str(BATCH))
        for _ in range(3):
            line(writer)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        acknowledged[name] = 3 + len(rest.splitlines())
    # Somebody can still write, and comes last.
    last = start("writer.py", "z", "1")
    assert line(last) == 0
    seen: list[Any] = []
    while not seen or seen[-1][0] != "z":
        seen.append(line(reader))
    assert [offset for _, _, offset in seen] == [*range(1, len(seen) + 1)]
    for name, batches in acknowledged.items():
        counts = Counter(number for by, number, _ in seen if by == name)
        assert set(counts.values()) == {BATCH}
        # The last one may be there without our having heard of it.
        assert list(counts) in ([*range(batches)], [*range(batches + 1)])


@pytest.mark.asyncio
async def test_a_fork_while_a_thread_writes_leaves_both_processes_able_to_write(url: str) -> None:
    backend: Any = load_backend(load_settings(backend="sqlite", url=url, retention_events=100_000))
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
async def test_watchers_of_a_file_that_was_replaced_hear_that_they_may_have_missed_something(
    url: str,
) -> None:
    backend: Any = load_backend(load_settings(backend="sqlite", url=url))
    author, sink = Author(), Recorder()
    await backend.open()
    backend.publish([author.draft(TOPIC)])
    await backend.subscribe(TOPIC, sink)
    for file in Path(url.removeprefix("sqlite:///")).parent.iterdir():
        file.unlink()
    await until(lambda: sink.interruptions)
    [receipt] = backend.publish([author.draft(TOPIC)])
    await sink.heard(1)
    await backend.close()
    backend.close_writer()
    assert sink.batches[-1][:2] == (receipt.cursor.epoch, 0)
