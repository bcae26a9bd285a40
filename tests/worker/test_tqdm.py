"""The bars of tqdm as bars of the job."""

from __future__ import annotations

import asyncio
import gc
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from topic_log import Log
from tqdm import tqdm, trange
from tqdm.asyncio import tqdm as asyncio_tqdm

from semantik_realtime import job, track
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import pop_job, push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.mirrors import Mirrors
from semantik_realtime.worker.tqdm_bars import BAR, _show, capture_tqdm
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]


@pytest.fixture
def running(runtime: Runtime) -> Iterator[Job]:
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    push_job(running)
    capture_tqdm()
    yield running
    pop_job(running)
    assert running.bars == []


def progress(log: Look) -> Any:
    return log("job:1").state["progress"]


def quiet(**options: Any) -> dict[str, Any]:
    return {"file": io.StringIO(), "mininterval": 0, **options}


def test_a_loop_of_tqdm_is_the_progress(running: Job, log: Look) -> None:
    seen = [
        progress(log)["current"]
        for _ in tqdm(["a", "b", "c"], "Indexing", unit="files", miniters=1, **quiet())
    ]
    assert seen == [0, 1, 2]
    assert progress(log) == {"current": 3, "total": 3, "unit": "files"}
    assert log("job:1").state["message"] == "Indexing"


def test_the_terminal_gets_what_it_gets_without_a_job(running: Job) -> None:
    def line() -> str:
        file = io.StringIO()
        for _ in tqdm(
            range(3), "Reading", file=file, mininterval=0, bar_format="{desc}{n}/{total}"
        ):
            pass
        return file.getvalue()

    mirrored = line()
    running.mirrors = Mirrors(tqdm=False)
    assert mirrored == line() != ""


def test_a_bar_that_is_updated_by_hand(running: Job, log: Look) -> None:
    with tqdm(total=100, unit="B", unit_scale=True, **quiet()) as bar:
        bar.update(30)
        assert progress(log) == {"current": 30, "total": 100, "unit": "B"}
        bar.set_description("Fetching")
        bar.total = 200
        bar.refresh()
        assert progress(log) == {"current": 30, "total": 200, "unit": "B"}
        bar.reset(total=50)
        assert progress(log) == {"current": 0, "total": 50, "unit": "B"}
        bar.update(7)
    assert progress(log) == {"current": 7, "total": 50, "unit": "B"}
    assert log("job:1").state["message"] == "Fetching"


def test_a_scaled_bar_and_an_unknown_total(running: Job, log: Look) -> None:
    with tqdm(total=4, unit="rows", unit_scale=1000, **quiet()) as bar:
        bar.update(2)
        assert progress(log) == {"current": 2000, "total": 4000, "unit": "rows"}
    for _ in tqdm(iter("ab"), **quiet()):
        pass
    assert progress(log) == {"current": 2, "total": None}


def test_nested_bars_are_inside_the_outermost_one(running: Job, log: Look) -> None:
    for _ in track(["a.pdf"], "Indexing", unit="files"):
        for _ in trange(2, desc="Pages", leave=False, miniters=1, **quiet()):
            with tqdm(total=9, desc="Words", **quiet()) as words:
                words.update(4)
                inner = progress(log)["inner"]
            break
    assert inner == [
        {"current": 0, "total": 2, "message": "Pages"},
        {"current": 4, "total": 9, "message": "Words"},
    ]
    assert progress(log) == {"current": 1, "total": 1, "unit": "files"}


def test_a_bar_that_is_disabled_is_not_shown(running: Job, log: Look) -> None:
    for _ in tqdm(range(3), disable=True):
        pass
    assert "progress" not in log("job:1").state


def test_a_bar_that_is_disabled_for_want_of_a_terminal_is_shown(running: Job, log: Look) -> None:
    seen = [
        progress(log)["current"] for _ in tqdm(range(3), "Pages", disable=None, file=io.StringIO())
    ]
    assert seen == [0, 1, 2]
    assert progress(log) == {"current": 3, "total": 3}
    with tqdm(total=8, desc="By hand", unit="MB", disable=None, file=io.StringIO()) as bar:
        bar.update(2)
        bar.update()
        bar.set_description("Renamed")
        assert progress(log) == {"current": 3, "total": 8, "unit": "MB"}
    assert log("job:1").state["message"] == "Renamed"
    items = tqdm([1, 2, 3], disable=None, file=io.StringIO())
    assert (len(items), 2 in items, list(items)) == (3, True, [1, 2, 3])


def test_an_asynchronous_bar(running: Job, log: Look) -> None:
    async def items() -> AsyncIterator[int]:
        for item in range(3):
            yield item

    async def task() -> None:
        async for _ in asyncio_tqdm(items(), total=3, desc="Pages", **quiet()):
            pass

    asyncio.run(task())
    assert progress(log) == {"current": 3, "total": 3}


def test_a_bar_that_nobody_closes_is_closed_with_its_last_reference(running: Job) -> None:
    for options in ({}, {"disable": None}):
        bar = tqdm(total=3, **quiet(**options))
        bar.update(1)
        assert len(running.bars) == 1
        del bar
        assert running.bars == [], "at once, without the garbage collector"
    gc.collect()


def test_an_exception_of_the_body_closes_the_bar(running: Job) -> None:
    def loop() -> None:
        for _ in tqdm(range(3), **quiet()):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


def test_without_the_mirror_or_a_job_a_bar_is_only_tqdms(running: Job, log: Look) -> None:
    running.mirrors = Mirrors(tqdm=False)
    bar = tqdm(range(3), **quiet())
    assert list(bar) == [0, 1, 2]
    pop_job(running)
    other = tqdm(range(3), **quiet())
    assert list(other) == [0, 1, 2]
    assert not hasattr(bar, BAR)
    assert not hasattr(other, BAR)
    assert "progress" not in log("job:1").state


def test_odd_values_harm_nobody(running: Job) -> None:
    with tqdm(total=3, **quiet()) as bar:
        for name, value in (("total", "many"), ("desc", 5), ("n", None), ("unit", None)):
            before = getattr(bar, name)
            setattr(bar, name, value)
            _show(bar)
            setattr(bar, name, before)
    assert set(misuse) <= {"progress is not a number"}
    with pytest.raises(Exception, match="Unknown argument"):
        tqdm(range(3), colours=3, **quiet())


def test_tqdm_may_be_imported_within_the_task() -> None:
    program = """
import io, sys
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.tqdm_bars import capture_tqdm, _finder

settings = Settings(backend="memory")
job = Job(Runtime(settings, backend=MemoryBackend(settings)), JobMeta("1"), 1)
push_job(job)
capture_tqdm()
capture_tqdm()
assert sys.meta_path.count(_finder) == 1
assert not [name for name in sys.modules if name.startswith("tqdm")]
from tqdm.auto import tqdm
assert _finder not in sys.meta_path
bar = tqdm(total=3, file=io.StringIO())
assert len(job.bars) == 1
bar.close()
assert not job.bars
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_process_without_tqdm_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    capture_tqdm()
    with pytest.raises(ModuleNotFoundError, match="tqdm"):
        import tqdm.std  # noqa: F401


def test_threads_of_the_task_share_a_bar(running: Job, log: Look) -> None:
    from tqdm.contrib.concurrent import thread_map

    assert thread_map(job.wrap(lambda x: (x, job.id)), range(4), desc="Pages", **quiet()) == [
        (x, "1") for x in range(4)
    ]
    assert progress(log) == {"current": 4, "total": 4}
