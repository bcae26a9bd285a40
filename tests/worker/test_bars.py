"""Bars of a job: nested, in threads, in coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from topic_log import Log

from semantik_realtime import job, track
from semantik_realtime.worker.bars import MAX_INNER
from semantik_realtime.worker.current import current_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]


def progress(log: Look) -> Any:
    return log("job:1").state["progress"]


async def count(number: int) -> AsyncIterator[int]:
    for item in range(number):
        await asyncio.sleep(0)
        yield item


def test_outside_a_job_a_bar_counts_and_reports_nothing() -> None:
    with job.bar(10, "Copying", unit="files") as bar:
        bar.advance(3)
        bar.message("other")
    assert (bar.current, bar.total) == (3, 10)
    assert job.wrap(len) is len


def test_a_bar_reports_what_is_done_and_stays_where_it_was(running: Job, log: Look) -> None:
    with job.bar(10, "Copying", unit="MB") as bar:
        bar.advance(3)
        bar.update(2.5)
        assert progress(log) == {"current": 5.5, "total": 10, "unit": "MB"}
        bar.total = 20
        bar.set(7)
    assert progress(log) == {"current": 7, "total": 20, "unit": "MB"}
    assert log("job:1").state["message"] == "Copying"
    bar.advance(1)
    assert progress(log)["current"] == 7, "a bar that is closed reports nothing"


def test_an_unknown_total_may_be_set_later(running: Job, log: Look) -> None:
    with job.bar(unit="rows") as bar:
        bar.advance(4)
        assert progress(log) == {"current": 4, "total": None, "unit": "rows"}
        bar.total = 8
        assert progress(log) == {"current": 4, "total": 8, "unit": "rows"}


def test_inner_bars_are_in_the_progress_of_the_outermost_one(running: Job, log: Look) -> None:
    for _ in track(["a.pdf", "b.pdf"], "Indexing", unit="files"):
        with job.bar(30, "Pages", unit="pages") as pages:
            pages.advance(12)
            for _ in track([1, 2], "Words"):
                assert progress(log)["inner"] == [
                    {"current": 12, "total": 30, "unit": "pages", "message": "Pages"},
                    {"current": 0, "total": 2, "message": "Words"},
                ]
                break
            assert [inner["message"] for inner in progress(log)["inner"]] == ["Pages"]
        assert "inner" not in progress(log)
        assert log("job:1").state["message"] == "Indexing"
        break
    assert progress(log) == {"current": 0, "total": 2, "unit": "files"}


def test_too_many_inner_bars_are_not_shown(running: Job, log: Look) -> None:
    bars = [job.bar(1) for _ in range(MAX_INNER + 5)]
    assert len(progress(log)["inner"]) == MAX_INNER
    for bar in bars:
        bar.close()
    assert "inner" not in progress(log)


def test_a_bad_value_of_a_bar_is_noted_and_raises_nothing(running: Job, log: Look) -> None:
    with job.bar(10, "Outer") as outer, job.bar(3, "Inner") as inner:
        outer.advance("x")  # type: ignore[arg-type]
        inner.set("x")  # type: ignore[arg-type]
        inner.total = object()  # type: ignore[assignment]
        inner.message(5)  # type: ignore[arg-type]
        outer.advance(2)
        assert progress(log) == {"current": 2, "total": 10}
    assert misuse["progress is not a number"] >= 2


def test_threads_of_the_task_report_to_its_job(running: Job, log: Look) -> None:
    language = ContextVar("language", default="en")
    language.set("de")

    def read(name: str, times: int) -> tuple[str, str | None]:
        job.emit("file_read", file=name)
        for _ in range(times):
            bar.advance()
        return language.get(), job.id

    with job.bar(800, "Reading") as bar, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(job.wrap(read), [f"{n}.txt" for n in range(8)], [100] * 8))
        assert progress(log)["current"] == 800
    assert results == [("de", "1")] * 8
    files = [event["data"]["file"] for event in log("job:1").events if event["type"] == "file_read"]
    assert sorted(files) == [f"{n}.txt" for n in range(8)]


def test_a_thread_without_the_wrapper_has_no_job(running: Job) -> None:
    seen: list[object] = []
    for target in (lambda: seen.append(job.id), job.wrap(lambda: seen.append(job.id))):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert seen == [None, "1"]


def test_bars_of_several_threads_are_side_by_side(running: Job, log: Look) -> None:
    both_open, looked = threading.Barrier(3), threading.Event()

    def copy(number: int) -> None:
        with job.bar(10, f"disk {number}") as bar:
            bar.advance(number)
            both_open.wait(10)
            looked.wait(10)

    with job.bar(2, "Copying", unit="disks"), ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(job.wrap(copy), number) for number in (1, 2)]
        both_open.wait(10)
        inner = progress(log)["inner"]
        looked.set()
        [future.result(10) for future in futures]
    assert sorted((one["message"], one["current"]) for one in inner) == [
        ("disk 1", 1),
        ("disk 2", 2),
    ]


def test_wrapped_functions_keep_their_name_and_raise_what_they_raise(running: Job) -> None:
    def fail(number: int) -> None:
        """Fail."""
        raise ZeroDivisionError(number)

    wrapped = job.wrap(fail)
    assert (wrapped.__name__, wrapped.__doc__) == ("fail", "Fail.")
    with pytest.raises(ZeroDivisionError, match="7"):
        wrapped(number=7)
    assert current_job() is running


def test_an_asynchronous_loop_is_tracked(running: Job, log: Look) -> None:
    async def task() -> list[int]:
        return [item async for item in track(count(3), "Fetching", unit="pages", total=3)]

    assert asyncio.run(task()) == [0, 1, 2]
    assert progress(log) == {"current": 3, "total": 3, "unit": "pages"}
    assert log("job:1").state["message"] == "Fetching"
    assert running.bars == []


def test_an_asynchronous_loop_that_ends_early_closes_its_bar_at_once(
    running: Job, log: Look
) -> None:
    async def leave() -> None:
        async for item in track(count(10)):
            if item == 3:
                break
        assert running.bars == []
        async for _ in track(count(4), "Then"):
            pass

    async def fail() -> None:
        async for _ in track(count(10)):
            raise ZeroDivisionError

    asyncio.run(leave())
    assert progress(log) == {"current": 4, "total": None}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())
    assert running.bars == []


def test_an_exception_of_an_asynchronous_iterable_passes_through(running: Job) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    async def cancelled() -> None:
        async for _ in track(count(10)):
            await asyncio.sleep(60)

    async def cancel() -> None:
        waiting = asyncio.ensure_future(cancelled())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await waiting

    async def use() -> None:
        async for _ in track(broken()):
            pass

    with pytest.raises(ZeroDivisionError):
        asyncio.run(use())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert running.bars == []


def test_an_asynchronous_loop_can_be_closed(running: Job) -> None:
    closed = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(True)

    async def task() -> None:
        loop = track(items())
        assert await loop.__anext__() == 1
        assert len(running.bars) == 1
        await loop.aclose()  # type: ignore[attr-defined]

    asyncio.run(task())
    assert (closed, running.bars) == ([True], [])


def test_a_loop_of_tasks_reports_from_each_of_them(running: Job, log: Look) -> None:
    async def fetch(bar: Any) -> None:
        await asyncio.sleep(0)
        bar.advance()

    async def task() -> None:
        with job.bar(20, "Fetching") as bar:
            await asyncio.gather(*(fetch(bar) for _ in range(20)))

    asyncio.run(task())
    assert progress(log)["current"] == 20


def test_a_generator_that_is_closed_closes_its_bar(running: Job) -> None:
    items = track(range(10))
    next(items)
    assert len(running.bars) == 1
    items.close()  # type: ignore[attr-defined]
    assert running.bars == []
