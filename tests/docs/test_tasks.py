"""The examples of docs/tasks.md run, in jobs, and report what the page says."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.schedules import crontab

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import event_types
from semantik_realtime.worker import tracker as tracker_module
from semantik_realtime.worker.tracker import install
from semantik_realtime.worker.values import misuse

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


class Book(list[int]):
    title = "Emma"


async def fetch(urls: list[str]) -> AsyncIterator[str]:
    for url in urls:
        await asyncio.sleep(0)
        yield url


def read(page: Any) -> None:
    if page == Path("bad.txt"):
        raise OSError


class Examples:
    """The page's functions, after all of its blocks have run in one module."""

    def __init__(self) -> None:
        self.settings = Settings(backend="memory", prefix=f"t{uuid.uuid4().hex[:8]}")
        self.backend = load_backend(self.settings)
        self.runtime = Runtime(self.settings, backend=self.backend)
        self.tracker = install(runtime=self.runtime)
        queue = Celery("page", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.queue = queue
        self.names: dict[str, Any] = {
            "queue": queue,
            "asyncio": asyncio,
            "msgspec": msgspec,
            "ThreadPoolExecutor": ThreadPoolExecutor,
            "crontab": crontab,
            "files_of": lambda folder: [Path("a.txt"), Path("bad.txt")],
            "read": read,
            "fetch": fetch,
            "store": lambda page: None,
            "parts_of": lambda url: [(4.0, bytes(1_500_000)), (4.0, bytes(2_500_000))],
            "save": lambda part: None,
            "convert_file": lambda file: None,
        }
        for block in BLOCKS:
            exec(compile(block, "tasks.md", "exec"), self.names)

    def run(self, name: str, *args: Any) -> list[dict[str, Any]]:
        """Run a task of the page; return the events of its job."""
        job_id = uuid.uuid4().hex
        self.names[name].apply(args, task_id=job_id).get()
        assert self.runtime.emitter.flush(5)

        async def events() -> list[dict[str, Any]]:
            await self.backend.open()
            snapshot = await self.backend.snapshot(f"job:{job_id}", None, 1000)
            return [json.loads(event.json) for event in snapshot.events]

        return asyncio.run(events())


@pytest.fixture(scope="module")
def page() -> Iterator[Examples]:
    declared = dict(event_types.declared)
    previous, tracker_module._tracker = tracker_module._tracker, None
    if previous is not None:
        previous.disconnect()
    misuse.clear()
    examples = Examples()
    yield examples
    assert not examples.tracker.failures
    assert not misuse
    examples.tracker.disconnect()
    examples.runtime.close()
    tracker_module._tracker = previous
    if previous is not None:
        previous.connect()
    event_types.declared.clear()
    event_types.declared.update(declared)


def last_state(events: list[dict[str, Any]]) -> dict[str, Any]:
    return [event["state"] for event in events if "state" in event][-1]


def test_a_loop_with_events_fields_and_messages(page: Examples) -> None:
    events = page.run("index", "books")
    files = [event["data"]["file"] for event in events if event["type"] == "file_processing"]
    assert files == ["a.txt", "bad.txt"]
    state = last_state(events)
    assert state["progress"] == {"current": 9, "total": 10}
    assert (state["message"], state["fields"]) == ("Optimising", {"failed_files": 1})


def test_an_asynchronous_loop(page: Examples) -> None:
    state = last_state(page.run("fetch_site", ["a", "b", "c"]))
    assert state["progress"] == {"current": 3, "total": 3, "unit": "pages"}


def test_a_bar_whose_total_is_learnt_on_the_way(page: Examples) -> None:
    state = last_state(page.run("download", "http://here"))
    assert state["progress"] == {"current": 4.0, "total": 4.0, "unit": "MB"}
    assert state["message"] == "Downloading"


def test_nested_bars(page: Examples) -> None:
    shown = []
    page.names["read"] = lambda number: (
        shown.append(number),
        page.names["job"].emit("page_read"),
    )
    try:
        events = page.run("index_books", [Book(range(3)), Book(range(2))])
    finally:
        page.names["read"] = read
    states = [event["state"]["progress"] for event in events if event["type"] == "page_read"]
    inner = {"current": 2, "total": 3, "unit": "pages", "message": "Reading Emma"}
    assert states[2] == {"current": 0, "total": 2, "unit": "books", "inner": [inner]}
    assert last_state(events)["progress"] == {"current": 2, "total": 2, "unit": "books"}
    # As the page shows it.
    [printed] = re.findall(r'`(\{"current".*"inner".*\})`', PAGE)
    assert json.loads(printed).keys() == states[2].keys()
    assert json.loads(printed)["inner"][0].keys() == inner.keys()


def test_threads(page: Examples) -> None:
    events = page.run("convert", [f"{number}.pdf" for number in range(10)])
    assert sum(event["type"] == "file_converted" for event in events) == 10
    assert last_state(events)["progress"] == {"current": 10, "total": 10, "unit": "files"}


def test_events_with_a_shape(page: Examples) -> None:
    sent = [event for event in page.run("split", "a.pdf") if event["type"] == "file_done"]
    assert [event["data"] for event in sent] == [{"file": "a.pdf", "chunks": 3}] * 2


def test_tasks_that_opt_out(page: Examples) -> None:
    assert page.run("heartbeat") == []
    assert page.run("train", "model")[-1]["type"] == "job_completed"


def test_the_schedule_of_beat_names_an_owner(page: Examples) -> None:
    entry = page.queue.conf.beat_schedule["nightly"]
    assert entry["options"]["headers"] == {"realtime_owner": "7"}
