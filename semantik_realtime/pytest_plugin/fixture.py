"""What a test sees through the fixture ``realtime``."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from semantik_realtime.backends.loader import load_backend, substitute
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Receipt
from semantik_realtime.core.lifecycle import STATUS_OF_TYPE
from semantik_realtime.core.topic import job_topic, name_topic, split_topic
from semantik_realtime.errors import TopicError
from semantik_realtime.hookspecs import Backend
from semantik_realtime.pytest_plugin.substitution import memory_settings, substituted, tracked
from semantik_realtime.runtime import Runtime, configured_runtimes
from semantik_realtime.testing.expectations import (
    Expected,
    compare,
    countable,
    describe,
    has_diverged,
    is_over,
    matches,
)
from semantik_realtime.testing.shared_memory import SharedMemory

WAIT_SECONDS = 10.0
"""How long a call waits for events, unless it is told otherwise."""
OTHER_PROCESS = (
    "A worker in another process does not share the memory of a test: use eager tasks, or "
    "celery_worker with the pool solo or threads."
)
STATUSES = frozenset(STATUS_OF_TYPE.values())
Found = TypeVar("Found")


class MemoryRuntime(Runtime):
    """A runtime that keeps its memory for ever: what its jobs send after the test stays there."""

    def __init__(self, settings: Settings, memory: SharedMemory) -> None:
        super().__init__(settings, backend=memory.client())
        self._memory = memory

    def second_backend(self) -> Backend:
        return self._memory.client()


class RealtimeFixture:
    """The events of one test.

    A ``job`` is an id, what ``apply_async`` or ``submit`` returned, or the name
    of a topic: ``user:7``. Only the async methods may be called where a loop
    runs and the events come from that loop.
    """

    def __init__(self, runtime: Runtime, memory: SharedMemory) -> None:
        self.runtime = runtime
        """Sends the events of the tasks. A test may publish through it."""
        self._memory = memory

    @property
    def jobs(self) -> list[str]:
        """The ids of the jobs that have events, in the order of their first ones."""
        self._flush()
        topics = (split_topic(topic) for topic in self._memory.topics)
        return [ident for kind, ident in topics if kind == "job"]

    def events(self, job: object) -> list[dict[str, Any]]:
        """Return all events so far, oldest first, as a page of the application gets them."""
        self._flush()
        return self._memory.events(self._topic(job))

    def types(self, job: object) -> list[str]:
        """Return the types of all events so far, oldest first."""
        return [event["type"] for event in self.events(job)]

    def state(self, job: object) -> dict[str, Any]:
        """Return the job's newest state; empty if it has none."""
        topic = self._topic(job)
        _, key = split_topic(topic)
        states = [
            event["state"]
            for event in self.events(topic)
            if event["key"] == key
            if "state" in event
        ]
        return dict(states[-1] or {}) if states else {}

    def owner(self, job: object) -> str | None:
        """Return the owner of the topic; None without one."""
        self._flush()
        topic = self._topic(job)
        tops = _run(self._memory.store.tops([topic]))
        return tops[topic].owner if topic in tops else None

    def wait_for(
        self, job: object, what: str, timeout_seconds: float = WAIT_SECONDS
    ) -> dict[str, Any]:
        """Wait until the job has, or has had, a status or an event of a type. Return the event.

        Fail at once if the job ends without it, and after ``timeout_seconds``. The failure
        shows the events.
        """
        __tracebackhide__ = True
        found = self._wait(lambda: self._search(job, what), timeout_seconds)
        if isinstance(found, dict):
            return found
        topic = self._topic(job)
        events = self._memory.events(topic)
        reason = "it has ended" if found else f"waited {timeout_seconds:g} s"
        raise AssertionError(f"no {what!r} of {topic}, {reason}{self._hints(topic, what, events)}")

    async def wait_for_async(
        self, job: object, what: str, timeout_seconds: float = WAIT_SECONDS
    ) -> dict[str, Any]:
        """Wait as `wait_for` does; the loop goes on meanwhile."""
        __tracebackhide__ = True
        return await asyncio.to_thread(self.wait_for, job, what, timeout_seconds)

    def assert_events(
        self, job: object, expected: Sequence[Expected], timeout_seconds: float = WAIT_SECONDS
    ) -> None:
        """Fail unless the job has exactly these events, in this order.

        Each is a type, or a type and members that its data has:
        ``("file_completed", {"file": "a.txt"})``. Progress and log records count
        only if they are named; in a row they are one. While more events can
        make it true, and the job has not ended, it waits.
        """
        __tracebackhide__ = True

        def look() -> bool | None:
            topic = self._topic(job)
            events = self._memory.events(topic)
            counted = countable(events, expected)
            if len(counted) == len(expected) and all(map(matches, counted, expected)):
                return True
            has_ended = is_over(events, split_topic(topic)[1])
            return False if has_ended or has_diverged(counted, expected) else None

        if self._wait(look, timeout_seconds):
            return
        topic = self._topic(job)
        events = self._memory.events(topic)
        difference = compare(countable(events, expected), expected)
        raise AssertionError(
            f"{topic} has other events (- missing, + not expected):\n"
            f"{difference}{self._hints(topic, '', events)}"
        )

    def publish(self, topic: str, type: str, **given: Any) -> Receipt:
        """Append an event as a worker or another server would; see `Runtime.publish`.

        Where a loop runs, await ``realtime.runtime.publish`` instead.
        """
        return asyncio.run(self.runtime.publish(topic, type, **given))

    def _topic(self, job: object) -> str:
        """Return the topic of what a test calls a job."""
        given = getattr(job, "topic", None) or getattr(job, "id", None) or job
        if isinstance(given, str):
            # An id may have a colon, as a topic has.
            with contextlib.suppress(TopicError):
                if (topic := job_topic(given)) in self._memory.topics:
                    return topic
            with contextlib.suppress(TopicError):
                return name_topic(given)
        return job_topic(given if isinstance(given, str | UUID) else str(given))

    def _search(self, job: object, what: str) -> dict[str, Any] | bool | None:
        """Return the event; True if it cannot come any more, None if it may."""
        topic = self._topic(job)
        kind, key = split_topic(topic)
        events = self._memory.events(topic)
        for event in events:
            # The life of a workflow's members is not that of the workflow.
            is_own = kind != "job" or event["key"] == key
            state = event.get("state")
            status = state.get("status") if isinstance(state, Mapping) else None
            if what in (STATUSES | STATUS_OF_TYPE.keys()):
                if is_own and what in (event["type"], status):
                    return event
            elif event["type"] == what:
                return event
        return True if kind == "job" and is_over(events, key) else None

    def _wait(self, look: Callable[[], Found | None], timeout_seconds: float) -> Found | None:
        started = time.monotonic()
        self._flush()
        rest = timeout_seconds - (time.monotonic() - started)
        return self._memory.wait(look, max(0.0, rest))

    def _flush(self) -> None:
        """Wait until all that this process has emitted is in the memory."""
        for runtime in (self.runtime, *configured_runtimes()):
            runtime.emitter.flush(WAIT_SECONDS)

    def _hints(self, topic: str, what: str, events: Sequence[Mapping[str, Any]]) -> str:
        lines = [""]
        known = [*sorted(STATUSES), *STATUS_OF_TYPE]
        if what and what not in known and (near := difflib.get_close_matches(what, known, 1)):
            lines.append(f"Is {near[0]!r} meant?")
        others = [other for other in self._memory.topics if other != topic]
        if not events and others:
            lines.append(f"There are events of {', '.join(others)}.")
        if topic.startswith("job:") and not any(event["type"] == "job_started" for event in events):
            lines.append(OTHER_PROCESS)
        return "\n".join([*lines, "", describe(topic, events)])


@contextlib.contextmanager
def realtime_fixture(given: Mapping[str, Any]) -> Iterator[RealtimeFixture]:
    """Run the block on a memory of its own; ``given`` are settings of the fixture's runtime."""
    settings = memory_settings(given)
    memory = SharedMemory(load_memory(settings))
    with substituted(memory):
        runtime = MemoryRuntime(settings, memory)
        try:
            with tracked(runtime):
                yield RealtimeFixture(runtime, memory)
        finally:
            runtime.close()


@contextlib.contextmanager
def session_in_memory() -> Iterator[None]:
    """Run the block with every runtime, and Celery's tasks, in a memory that nobody reads."""
    with realtime_fixture({}):
        yield


def load_memory(settings: Settings) -> Backend:
    """Return a backend in memory, whatever else is substituted for backends now."""
    before = substitute(None)
    try:
        return load_backend(settings)
    finally:
        substitute(before)


def _run(call: Any) -> Any:
    """Return the result of a coroutine of the memory, which never waits."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the memory waited")
