"""The Python of the page on workflows, run as it is printed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.summary import summarize
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import tracker as tracker_module

PAGE = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
app = Celery("workflows_page", broker="memory://", backend="cache+memory://", set_as_current=False)


@app.task
def run(*_: Any) -> None:
    pass


@pytest.fixture
def backend() -> Iterator[MemoryBackend]:
    settings = Settings(backend="memory")
    backend = MemoryBackend(settings)
    before = tracker_module.swap_tracker(None)
    runtime = Runtime(settings, backend=backend)
    tracker = tracker_module.install(runtime=runtime)
    yield backend
    tracker.disconnect()
    tracker_module.swap_tracker(before)
    runtime.close()


def states_of(backend: MemoryBackend, topic: str) -> dict[str, Any]:
    """Return the states of a topic, after everything emitted so far is in it."""
    tracker = tracker_module.install()
    assert (runtime := tracker.runtime()) is not None
    assert runtime.emitter.flush(10)
    snapshot = asyncio.run(backend.snapshot(topic, None, 0))
    return {key: msgspec.json.decode(event)["state"] for key, event in snapshot.states.items()}


def test_a_canvas_is_one_job(backend: MemoryBackend, capsys: pytest.CaptureFixture[str]) -> None:
    names = dict.fromkeys(("fetch", "index_page", "report"), run)
    exec(compile(BLOCKS[0], "workflows.md", "exec"), names)
    assert capsys.readouterr().out == "import:42 job:import~3A42 user:7\n"
    states = states_of(backend, "job:import~3A42")
    assert states["import:42"]["status"] == "queued"
    assert states["import:42"]["workflow"] == {"total": 5, "ends": "last"}
    assert states["import:42"]["name"] == "chain of 5 tasks"
    assert summarize(states, "import:42", 0).waiting == 5


def test_a_canvas_without_submit_is_one_job(backend: MemoryBackend) -> None:
    names: dict[str, Any] = {"index_page": run}
    exec(compile(BLOCKS[1], "workflows.md", "exec"), names)
    job = names["start_all"](["a.html", "b.html"], "7")
    states = states_of(backend, f"job:{job}")
    assert states[job]["workflow"] == {"total": 2, "ends": "all"}
    assert summarize(states, job, 0).waiting == 2
    assert job in states_of(backend, "user:7")


def test_tasks_are_members_of_a_job_of_the_applications_own(backend: MemoryBackend) -> None:
    names: dict[str, Any] = dict.fromkeys(("index_folder", "report_night"), run)
    exec(compile(BLOCKS[2], "workflows.md", "exec"), names)
    names["nightly"]("1", ["a", "b"])
    states = states_of(backend, "job:nightly~3A1")
    assert states["nightly:1"]["workflow"] == {"ends": "open"}
    assert summarize(states, "nightly:1", 0).waiting == 3
    assert [state["member"].get("ends") for state in states.values() if "member" in state] == [
        None,
        None,
        True,
    ]
