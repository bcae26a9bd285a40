"""What an application publishes: the state follows from the type, and its shape is checked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE
from semantik_realtime.core.shape import check_job_state
from semantik_realtime.errors import EventError, InvalidInput
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.runtime import Runtime


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    settings = Settings(backend="memory")
    runtime = Runtime(settings, backend=MemoryBackend(settings))
    yield runtime
    runtime.close()


def publish(runtime: Runtime, *args: Any, **given: Any) -> Outcome:
    return asyncio.run(runtime.publish(*args, **given)).outcome


def read(runtime: Runtime, topic: str) -> Snapshot:
    async def snapshot() -> Snapshot:
        await runtime.backend.open()
        try:
            return await runtime.backend.snapshot(topic, None, 100)
        finally:
            await runtime.backend.close()

    return asyncio.run(snapshot())


def states(runtime: Runtime, topic: str) -> dict[str, Any]:
    found = read(runtime, topic).states
    return {key: msgspec.json.decode(event)["state"] for key, event in found.items()}


# The state follows from the type.


@pytest.mark.parametrize("type", STATUS_OF_TYPE)
def test_a_type_of_a_jobs_life_sets_the_status(runtime: Runtime, type: str) -> None:
    publish(runtime, "job:1", "job_progress", state={"status": "running", "attempt": 1})
    assert publish(runtime, "job:1", type) is Outcome.APPENDED
    assert states(runtime, "job:1") == {"1": {"status": STATUS_OF_TYPE[type]}}
    after = publish(runtime, "job:1", "job_progress", state={"status": "running"})
    assert after is (Outcome.CLOSED if type in END_TYPES else Outcome.APPENDED)


def test_the_status_is_added_to_a_state_without_one(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_failed", state={"attempt": 2, "status": None}, also=["user:7"])
    assert states(runtime, "job:1") == {"1": {"status": "failed", "attempt": 2}}
    assert runtime.emitter.flush(5)
    assert states(runtime, "user:7") == states(runtime, "job:1")


@pytest.mark.parametrize(
    ("type", "state", "named"),
    [
        ("job_failed", {"status": "running"}, "job_failed sets the status 'failed'"),
        ("job_started", {"status": "completed"}, "'completed'"),
        ("job_completed", None, "delete"),
        ("job_deleted", msgspec.UNSET, "delete"),
    ],
)
def test_a_state_that_contradicts_its_type_is_refused_and_closes_nothing(
    runtime: Runtime, type: str, state: Any, named: str
) -> None:
    publish(runtime, "job:1", "job_progress", state={"status": "running"})
    with pytest.raises(InvalidInput, match=named):
        publish(runtime, "job:1", type, state=state)
    assert publish(runtime, "job:1", "job_failed") is Outcome.APPENDED


def test_the_end_of_a_child_does_not_end_the_job(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_progress", state={"status": "running"})
    publish(runtime, "job:1", "job_completed", key="page 3")
    assert states(runtime, "job:1") == {
        "1": {"status": "running"},
        "page 3": {"status": "completed"},
    }
    assert publish(runtime, "job:1", "job_failed") is Outcome.APPENDED


def test_on_other_topics_no_state_follows_from_a_type(runtime: Runtime) -> None:
    publish(runtime, "collection:9", "job_failed")
    assert states(runtime, "collection:9") == {}


# Whose a topic is.


def test_a_foreign_owner_is_refused_and_logged_once_for_each_topic(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    assert publish(runtime, "job:1", "note", owner="alice") is Outcome.APPENDED
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        for _ in range(3):
            assert publish(runtime, "job:1", "note", owner="bob") is Outcome.FOREIGN_OWNER
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("emitter: owner refused topic=job:1 type=note owner='bob'")
    assert runtime.emitter.stats.foreign_owner == 3
    assert publish(runtime, "job:1", "note") is Outcome.APPENDED
    assert (read(runtime, "job:1").owner, len(read(runtime, "job:1").events)) == ("alice", 2)


def test_the_first_owner_of_a_job_gets_none_of_the_events_before(runtime: Runtime) -> None:
    publish(runtime, "job:1", "note", key="before", state={"secret": 1})
    assert publish(runtime, "job:1", "note", owner="alice") is Outcome.APPENDED
    assert (states(runtime, "job:1"), len(read(runtime, "job:1").events)) == ({}, 1)


def test_what_changes_a_jobs_state_goes_to_its_owners_feed(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_started", owner="7")
    # Later calls need not name the owner, whom the backend knows.
    publish(runtime, "job:1", "note", data={"n": 1})
    publish(runtime, "job:1", "item_done", key="item-1", state={"status": "completed"})
    publish(runtime, "job:1", "job_failed")
    assert publish(runtime, "job:1", "job_failed", owner="8") is Outcome.FOREIGN_OWNER
    publish(runtime, "job:2", "job_failed")
    assert runtime.emitter.flush(5)
    feed = read(runtime, "user:7")
    types = [msgspec.json.decode(event.json)["type"] for event in feed.events]
    assert types == ["job_started", "job_failed"]
    assert states(runtime, "user:7") == {"1": {"status": "failed"}}
    assert read(runtime, "user:8").cursor is None


def test_a_feed_belongs_to_its_user_whoever_publishes(runtime: Runtime) -> None:
    publish(runtime, "user:7", "note")
    publish(runtime, "job:1", "job_started", owner="7", also=["user:7", "user:a/b", "shared:1"])
    assert runtime.emitter.flush(5)
    assert (read(runtime, "user:7").owner, len(read(runtime, "user:7").events)) == ("7", 2)
    assert read(runtime, "user:a~2Fb").owner == "a/b"
    assert read(runtime, "shared:1").owner is None
    with pytest.raises(InvalidInput, match="feed of user '7', not of owner '8'"):
        publish(runtime, "user:7", "note", owner="8")


# Attempts.


def begin(runtime: Runtime, job: str) -> int:
    return asyncio.run(runtime.begin_attempt(job))


def test_a_new_attempt_opens_a_job_that_has_ended(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_failed", also=["user:7"])
    assert publish(runtime, "job:1", "job_started", also=["user:7"]) is Outcome.CLOSED
    assert begin(runtime, "1") == 1
    assert publish(runtime, "job:1", "job_started", attempt=1, also=["user:7"]) is Outcome.APPENDED
    assert states(runtime, "job:1") == {"1": {"status": "running", "attempt": 1}}
    assert publish(runtime, "job:1", "job_failed", attempt=1) is Outcome.APPENDED
    assert begin(runtime, "1") == 2
    assert publish(runtime, "job:1", "job_started", attempt=2, also=["user:7"]) is Outcome.APPENDED
    assert runtime.emitter.flush(5)
    assert states(runtime, "user:7") == {"1": {"status": "running", "attempt": 2}}


def test_a_late_event_of_an_earlier_attempt_is_refused(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_started", attempt=1)
    assert begin(runtime, "1") == 2
    # From the claim on, before the new attempt has said anything.
    assert publish(runtime, "job:1", "job_failed", attempt=1) is Outcome.STALE
    assert publish(runtime, "job:1", "page_done", key="page 3", attempt=1) is Outcome.STALE
    assert publish(runtime, "job:1", "job_completed", attempt=2) is Outcome.APPENDED
    assert publish(runtime, "job:1", "job_failed", attempt=1) is Outcome.STALE
    assert publish(runtime, "job:1", "job_failed", attempt=2) is Outcome.CLOSED
    assert states(runtime, "job:1") == {"1": {"status": "completed", "attempt": 2}}


def test_a_higher_attempt_begins_without_a_claim(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_failed", attempt=1)
    assert publish(runtime, "job:1", "job_started", attempt=4) is Outcome.APPENDED
    assert publish(runtime, "job:1", "note", attempt=3) is Outcome.STALE
    assert publish(runtime, "job:1", "note") is Outcome.APPENDED
    assert begin(runtime, "1") == 5


def test_a_deleted_job_has_no_new_attempt(runtime: Runtime) -> None:
    publish(runtime, "job:1", "job_started")
    asyncio.run(runtime.delete("1"))
    assert begin(runtime, "1") == 0
    assert publish(runtime, "job:1", "job_started", attempt=7) is Outcome.CLOSED


@pytest.mark.parametrize(
    ("topic", "given", "named"),
    [
        ("job:1", {"attempt": -1}, "attempt is an integer from 0"),
        ("job:1", {"attempt": "2"}, "attempt is"),
        ("job:1", {"attempt": True}, "attempt is"),
        ("job:1", {"attempt": 2**53}, "attempt is"),
        ("job:1", {"attempt": 2, "state": {"attempt": 1}}, "state.attempt is 1"),
        ("user:7", {"attempt": 1}, "job's topic"),
    ],
)
def test_an_attempt_that_cannot_be_is_refused(
    runtime: Runtime, topic: str, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(EventError, match=named):
        publish(runtime, topic, "note", **given)
    assert read(runtime, topic).cursor is None


# The application's own words.


@pytest.mark.parametrize(
    ("type", "state", "status"),
    [
        ("operation_started", {"status": "processing"}, "running"),
        ("operation_completed", {"status": "success"}, "completed"),
        ("operation_completed", msgspec.UNSET, "completed"),
        ("operation_failed", {"status": None}, "failed"),
        ("job_failed", msgspec.UNSET, "failed"),
    ],
)
def test_types_and_statuses_of_the_application_are_those_that_they_stand_for(
    type: str, state: Any, status: str
) -> None:
    settings = Settings(backend="memory", host_words=WORDS)
    runtime = Runtime(settings, backend=MemoryBackend(settings))
    try:
        assert publish(runtime, "job:1", type, state=state) is Outcome.APPENDED
        assert states(runtime, "job:1") == {"1": {"status": status}}
        after = publish(runtime, "job:1", "job_progress", state={"status": "processing"})
        assert after is (Outcome.APPENDED if status == "running" else Outcome.CLOSED)
        types = {msgspec.json.decode(event.json)["type"] for event in read(runtime, "job:1").events}
        assert types <= set(STATUS_OF_TYPE) | {"job_progress"}
        with pytest.raises(EventError, match="'running'"):
            publish(runtime, "job:2", "operation_failed", state={"status": "processing"})
    finally:
        runtime.close()


WORDS = {
    "operation_started": "job_started",
    "operation_completed": "job_completed",
    "operation_failed": "job_failed",
    "processing": "running",
    "success": "completed",
}


# The shape of data and state.


WRONG = [
    ({"data": "x"}, "data"),
    ({"data": []}, "data"),
    ({"data": {1: "x"}}, "data"),
    ({"state": "running"}, "state"),
    ({"state": ["running"]}, "state"),
    ({"state": {1: "running"}}, "state"),
    ({"state": {"status": ["running"]}}, "state.status"),
    ({"state": {"status": 5}}, "state.status"),
    ({"state": {"statuss": "running"}}, "'status' meant"),
    ({"state": {"attempt": "1"}}, "state.attempt"),
    ({"state": {"attempt": True}}, "state.attempt"),
    ({"state": {"attempt": -1}}, "state.attempt"),
    ({"state": {"progress": 50}}, "state.progress"),
    ({"state": {"progress": {"current": "3"}}}, "state.progress.current"),
    ({"state": {"progress": {"current": 3, "total": [1]}}}, "state.progress.total"),
    ({"state": {"progress": {"unit": 5}}}, "state.progress.unit"),
    ({"state": {"message": {"text": "x"}}}, "state.message"),
    ({"state": {"fields": [1]}}, "state.fields"),
    ({"state": {"error": "no such file"}}, "state.error"),
    ({"state": {"error": {"message": 5}}}, "state.error.message"),
    ({"state": {"started_at": 17}}, "state.started_at"),
]


@pytest.mark.parametrize(("given", "member"), WRONG)
def test_a_wrong_shape_is_refused_by_the_name_of_the_member(
    runtime: Runtime, given: dict[str, Any], member: str
) -> None:
    with pytest.raises(EventError) as refused:
        publish(runtime, "job:1", "note", **given)
    assert member in str(refused.value)
    assert read(runtime, "job:1").cursor is None


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"status": "paused"},
        {"status": None, "progress": None, "message": None},
        {"status": "running", "progress": {"current": 0.5, "total": None, "lane": ["fast"]}},
        {"status": "running", "colour": {"any": ["shape"]}},
        {"colour": "red"},
    ],
)
def test_members_of_the_application_may_have_any_shape(
    runtime: Runtime, state: dict[str, Any]
) -> None:
    assert publish(runtime, "job:1", "note", state=state) is Outcome.APPENDED


def test_the_state_of_another_key_or_topic_is_the_applications(runtime: Runtime) -> None:
    state = {"progress": 50, "statuss": "running"}
    assert publish(runtime, "job:1", "note", key="page 3", state=state) is Outcome.APPENDED
    assert publish(runtime, "collection:9", "note", state=state) is Outcome.APPENDED


def test_a_member_that_may_be_misspelt_is_logged_once(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        for _ in range(3):
            publish(runtime, "job:1", "note", state={"status": "complete", "progres": {}})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "progres, nearest is progress" in said[0]
    assert "status=complete, nearest is status=completed" in said[1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
MEMBERS = ["status", "attempt", "progress", "message", "fields", "error", "statuss", "other"]


@given(st.dictionaries(st.sampled_from(MEMBERS), JSON))
def test_any_state_is_accepted_or_refused_as_invalid_input(state: dict[str, Any]) -> None:
    with contextlib.suppress(EventError):
        check_job_state(state)
