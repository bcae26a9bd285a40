"""From Celery's signals to events, in this process; tasks run eagerly."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.exceptions import Reject, SoftTimeLimitExceeded
from topic_log import Log, Reader, wait_until

from semantik_realtime import job
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.core.topic import job_topic, user_topic
from semantik_realtime.errors import BackendRefused, BackendUnavailable, TopicError
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import elsewhere
from semantik_realtime.worker import tracker as tracker_module
from semantik_realtime.worker.current import current_job
from semantik_realtime.worker.headers import read_job_meta
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.receivers import AGAIN_SECONDS
from semantik_realtime.worker.submit import submit
from semantik_realtime.worker.tracker import TaskTracker, install
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]

app = Celery("eager_app", broker="memory://", backend="cache+memory://", set_as_current=False)


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def fail() -> None:
    raise ValueError("no")


@app.task(bind=True)
def retry_twice(self: Task) -> str:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return "done"


@app.task
def outer(inner_id: str) -> str | None:
    add.apply((1, 2), task_id=inner_id)
    job.emit("inner_done")
    return job.id


@app.task(name="celery.own")
def celerys_own() -> str | None:
    return job.id


@app.task
def exit_process() -> None:
    raise SystemExit(3)


@app.task(bind=True)
def update(self: Task, state: str | None, meta: Any) -> None:
    self.update_state(state=state, meta=meta)


@pytest.mark.every_row
def test_a_task_is_a_job(tracker: TaskTracker, log: Look, job_id: str) -> None:
    add.apply((1, 2), task_id=job_id, headers={"realtime_owner": "7"})
    own = log(f"job:{job_id}")
    assert own.types == ["job_started", "job_completed"]
    assert own.state["name"] == add.name
    assert own.owner == "7"
    assert log("user:7").types == own.types
    assert current_job() is None
    assert not tracker.failures


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_the_end_is_appended_at_once(reader: Reader, job_id: str) -> None:
    add.apply((1, 2), task_id=job_id)
    # Without a flush here.
    wait_until(lambda: Log(reader, f"job:{job_id}").types[-1:] == ["job_completed"])


def test_installing_again_sends_no_event_twice(
    tracker: TaskTracker, runtime: Runtime, log: Look, job_id: str
) -> None:
    assert install(app, runtime) is tracker
    add.apply((1, 2), task_id=job_id)
    assert log(f"job:{job_id}").types == ["job_started", "job_completed"]


def test_nothing_is_connected_when_the_mirror_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "_tracker", None)
    before = len(signals.task_prerun.receivers)
    install(runtime=Runtime(Settings(backend="memory", mirror=False)))
    assert len(signals.task_prerun.receivers) <= before


@pytest.mark.usefixtures("tracker")
def test_installing_a_runtime_with_the_mirror_off_disconnects_the_tracker(
    log: Look, job_id: str
) -> None:
    install(runtime=Runtime(Settings(backend="memory", mirror=False)))
    install()
    add.apply((1, 2), task_id=job_id)
    assert log(f"job:{job_id}").events == []


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize("throw", [False, True])
def test_a_failure_is_sent_once(log: Look, job_id: str, throw: bool) -> None:
    if throw:
        with pytest.raises(ValueError, match="no"):
            fail.apply(task_id=job_id, throw=True)
    else:
        fail.apply(task_id=job_id)
    own = log(f"job:{job_id}")
    assert own.types == ["job_started", "job_failed"]
    assert own.state["error"] == {"type": "ValueError", "message": "no"}


@pytest.mark.usefixtures("tracker")
def test_a_task_that_exits_outside_a_pool_process_fails_its_job(log: Look, job_id: str) -> None:
    with pytest.raises(SystemExit):
        exit_process.apply(task_id=job_id)
    assert log(f"job:{job_id}").state["error"]["type"] == "SystemExit"
    assert current_job() is None


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_each_retry_is_an_attempt_of_the_same_job(log: Look, job_id: str) -> None:
    retry_twice.apply(task_id=job_id)
    assert log(f"job:{job_id}").statuses == [
        (1, "running"),
        (1, "retrying"),
        (2, "running"),
        (2, "retrying"),
        (3, "running"),
        (3, "completed"),
    ]


@pytest.mark.usefixtures("tracker")
def test_a_task_within_a_task_is_a_job_of_its_own(log: Look) -> None:
    outer_id, inner_id = str(uuid.uuid4()), str(uuid.uuid4())
    assert outer.apply((inner_id,), task_id=outer_id).get() == outer_id
    assert log(f"job:{inner_id}").types == ["job_started", "job_completed"]
    assert log(f"job:{outer_id}").types == ["job_started", "inner_done", "job_completed"]


@pytest.mark.usefixtures("tracker")
def test_celerys_own_tasks_are_not_jobs(log: Look, job_id: str) -> None:
    assert celerys_own.apply(task_id=job_id).get() is None
    assert log(f"job:{job_id}").events == []


def test_a_failing_receiver_is_counted_logged_once_and_harms_no_task(
    tracker: TaskTracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(tracker_module, "read_job_meta", fail)
    with caplog.at_level(logging.ERROR, "semantik_realtime"):
        for _ in range(3):
            assert add.apply((1, 2)).get() == 3
    assert tracker.failures["prerun: RuntimeError"] == 3
    assert len(caplog.records) == 1


# Publishing.


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_a_published_task_is_queued(log: Look) -> None:
    job_id = add.apply_async((1, 2), headers={"realtime_owner": 7}).id
    own = log(f"job:{job_id}")
    assert own.types == ["job_queued"]
    assert own.state == {
        "status": "queued",
        "attempt": 0,
        "name": add.name,
        "queued_at": own.state["queued_at"],
    }
    assert own.state["queued_at"] <= own.last["time"]
    assert own.owner == "7"
    assert log("user:7").last["key"] == job_id


@pytest.mark.usefixtures("tracker")
def test_a_republished_retry_is_not_a_new_job(log: Look, job_id: str) -> None:
    add.apply_async((1, 2), task_id=job_id, retries=1)
    assert log(f"job:{job_id}").events == []


@pytest.mark.usefixtures("tracker")
def test_a_job_that_publishes_itself_again_keeps_its_owner_and_counts_its_attempts(
    runtime: Runtime,
) -> None:
    sent: list[dict[str, Any]] = []

    def note_headers(headers: dict[str, Any], **_: Any) -> None:
        sent.append(headers)

    @app.task(bind=True)
    def replace(self: Task) -> None:
        add.apply_async((1, 2), task_id=self.request.id)

    signals.after_task_publish.connect(note_headers)
    replace.apply(
        headers={
            "realtime_owner": "7",
            "realtime_topics": ["collection:9"],
            "realtime_queued_at": "2026-01-01T00:00:00.000Z",
        }
    )
    signals.after_task_publish.disconnect(note_headers)
    [headers] = sent
    assert headers["realtime_owner"] == "7"
    assert headers["realtime_topics"] == ["collection:9"]
    assert headers["realtime_queued_at"] == "2026-01-01T00:00:00.000Z"
    assert headers["realtime_attempt"] == 1


@pytest.mark.usefixtures("tracker")
def test_the_last_task_of_a_replacement_goes_on_with_the_next_attempt_without_being_queued(
    log: Look, job_id: str
) -> None:
    bodies: list[Any] = []

    def note_body(body: Any, **_: Any) -> None:
        bodies.append(body)

    @app.task(bind=True)
    def go_on(self: Task) -> None:
        (add.s(1, 2) | add.s(3).set(task_id=self.request.id)).apply_async()

    signals.after_task_publish.connect(note_body)
    go_on.apply(task_id=job_id)
    signals.after_task_publish.disconnect(note_body)
    [(_, _, embedded)] = bodies
    [last] = embedded["chain"]
    assert last["options"]["headers"]["realtime_attempt"] == 1
    # Another process publishes it, and its events may come before those of the first attempt.
    other = str(uuid.uuid4())
    add.apply_async((1, 2), task_id=other, headers=last["options"]["headers"])
    assert log(f"job:{other}").events == []


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_a_queued_event_that_comes_after_the_start_is_dropped(
    log: Look, runtime: Runtime, job_id: str
) -> None:
    add.apply((1, 2), task_id=job_id)
    add.apply_async((1, 2), task_id=job_id)
    assert log(f"job:{job_id}").types == ["job_started", "job_completed"]
    assert runtime.emitter.stats.stale == 1


def test_a_job_may_be_watched_as_soon_as_submit_returns(
    settings: Settings, tracker: TaskTracker
) -> None:
    class Slow(MemoryBackend):
        @hookimpl
        def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
            time.sleep(0.1)
            return super().publish(drafts)

    backend = Slow(settings)
    runtime = Runtime(settings, backend=backend)
    tracker.use(runtime)
    reader = Reader(backend)
    sent = submit(add, 1, owner="7", b=2, topics=["collection:9"])
    own, shared = Log(reader, sent.topic), Log(reader, "collection:9")
    assert own.types == ["job_queued"]
    assert own.owner == "7"
    assert shared.last["key"] == sent.id
    assert sent.feed == "user:7"
    assert sent.topic == f"job:{sent.id}"
    reader.close()
    runtime.close()


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize(
    "wrong",
    [
        {"owner": "a\nb"},
        {"owner": ""},
        {"owner": ["7"]},
        {"owner": "x" * 201},
        {"owner": "é" * 34},
        {"owner": "7", "job_id": "a\x00"},
        {"owner": "7", "topics": ["no topic"]},
    ],
)
def test_a_task_whose_owner_or_id_no_topic_can_have_is_not_submitted(
    wrong: dict[str, Any], runtime: Runtime
) -> None:
    with pytest.raises(TopicError):
        submit(add, 1, 2, **wrong)
    assert runtime.emitter.stats.appended == 0


@pytest.mark.usefixtures("tracker")
def test_a_task_of_celerys_first_protocol_is_queued(log: Look, job_id: str) -> None:
    first = Celery("first", broker="memory://", set_as_current=False)
    first.conf.task_protocol = 1
    headers = {"realtime_owner": "7", "realtime_topics": ["collection:9"]}
    first.send_task("some.task", (1,), task_id=job_id, headers=headers)
    own = log(f"job:{job_id}")
    assert own.types == ["job_queued"]
    assert own.owner == "7"
    assert own.state["name"] == "some.task"
    assert log("collection:9").last["key"] == job_id
    first.send_task("some.task", task_id=str(uuid.uuid4()), retries=1)
    assert log("collection:9").types == ["job_queued"]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("not for me", {"type": "Reject", "message": "not for me"}),
        (None, {"type": "Reject", "message": ""}),
        (("a", 1), {"type": "Reject", "message": "('a', 1)"}),
        (ValueError("no file"), {"type": "ValueError", "message": "no file"}),
        (Unprintable(), {"type": "Reject", "message": ""}),
    ],
    ids=["text", "none", "tuple", "exception", "unprintable"],
)
def test_a_rejected_job_has_the_reason_as_its_error(
    log: Look, tracker: TaskTracker, job_id: str, reason: Any, error: dict[str, str]
) -> None:
    rejected = Reject(reason, requeue=False)
    add.push_request(id=job_id)
    signals.task_prerun.send(sender=add, task_id=job_id, task=add)
    signals.task_postrun.send(sender=add, task_id=job_id, state="REJECTED", retval=rejected)
    add.pop_request()
    assert log(f"job:{job_id}").state["error"] == error
    assert not tracker.failures


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize("stored", [{"attempt": "1"}, {"attempt": [2]}, {"attempt": None}])
def test_a_stored_state_of_any_shape_does_not_keep_a_job_from_its_end(
    stored: dict[str, Any],
    log: Look,
    tracker: TaskTracker,
    job_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elsewhere, "read_stored_state", lambda *_: stored)
    add.push_request(id=job_id)
    signals.task_failure.send(sender=add, task_id=job_id, exception=TimeoutError("slow"))
    add.pop_request()
    assert log(f"job:{job_id}").statuses == [(1, "failed")]
    assert not tracker.failures


@pytest.mark.parametrize(("signal_name", "again"), [("task_prerun", 1), ("task_postrun", 0)])
def test_a_soft_time_limit_within_a_receiver_is_raised_again_in_the_task(
    tracker: TaskTracker, monkeypatch: pytest.MonkeyPatch, signal_name: str, again: int
) -> None:
    def interrupted(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    raised = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: raised.append(1))
    monkeypatch.setattr(tracker, "_job", interrupted)
    monkeypatch.setattr(tracker, "runtime", interrupted)
    try:
        for _, uid, receiver in tracker._receivers:
            if uid.endswith(signal_name):
                receiver(task_id="1", task=add, state="SUCCESS")
        if again:
            wait_until(lambda: raised)
        else:
            time.sleep(5 * AGAIN_SECONDS)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert len(raised) == again
    assert not tracker.failures


# Attempts.


class Claimless(MemoryBackend):
    """Appends, but refuses each claim."""

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        raise BackendRefused("no rights")


@pytest.fixture
def claimless(settings: Settings, tracker: TaskTracker) -> Iterator[tuple[Claimless, Runtime]]:
    backend = Claimless(settings)
    runtime = Runtime(settings, backend=backend)
    tracker.use(runtime)
    yield backend, runtime
    runtime.close()


def test_if_claims_are_refused_attempts_are_counted_by_the_message(
    claimless: tuple[Claimless, Runtime], job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend, runtime = claimless
    retry_twice.apply(task_id=job_id)
    other = str(uuid.uuid4())
    add.apply((1, 2), task_id=other, headers={"realtime_attempt": 4})
    # As after redeliveries, which the message does not know of.
    for _ in range(2):
        add.apply((1, 2), task_id=other, headers={"realtime_attempt": 4})
    runtime.emitter.flush(5)
    reader = Reader(backend)
    statuses = Log(reader, f"job:{job_id}").statuses
    after = Log(reader, f"job:{other}").statuses
    reader.close()
    assert statuses[-1] == (3, "completed")
    assert after == [(5, "running"), (5, "completed")]
    assert len([r for r in caplog.records if "not claimed" in r.message]) == 1


def test_a_job_with_the_id_of_another_users_job_disturbs_it_not_and_is_in_its_own_feed(
    runtime: Runtime, tracker: TaskTracker, reader: Reader, job_id: str
) -> None:
    others = Job(runtime, JobMeta(job_id, owner="8"), 1, is_new=True)
    others.begin()
    add.apply((1, 2), task_id=job_id, headers={"realtime_owner": "7"})
    others.end("job_completed")
    assert runtime.emitter.flush(5)
    job, feed = Log(reader, f"job:{job_id}"), Log(reader, "user:7")
    assert (job.owner, job.statuses) == ("8", [(1, "running"), (1, "completed")])
    assert feed.types == ["job_started", "job_completed"]
    assert runtime.emitter.stats.foreign_owner == 2


class Hanging(MemoryBackend):
    """Answers no write until `released` is set."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.released = threading.Event()

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        self.released.wait(60)
        return super().claim(topic, job, token, owner)

    @hookimpl
    def publish(self, drafts: Any) -> Any:
        self.released.wait(60)
        return super().publish(drafts)


def test_no_task_waits_for_a_backend_that_hangs(
    settings: Settings, tracker: TaskTracker, job_id: str
) -> None:
    backend = Hanging(settings)
    runtime = Runtime(settings, backend=backend)
    tracker.use(runtime)
    for _ in range(20):
        add.apply((1, 2))
    add.apply((1, 2), task_id=job_id)
    # Nothing was written, and every task is over.
    assert not backend._logs
    backend.released.set()
    assert runtime.emitter.flush(10)
    reader = Reader(backend)
    assert Log(reader, f"job:{job_id}").statuses == [(1, "running"), (1, "completed")]
    reader.close()
    runtime.close()


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_an_attempt_that_the_message_does_not_know_of_gets_the_next_number(
    log: Look, runtime: Runtime, job_id: str
) -> None:
    add.apply((1, 2), task_id=job_id, headers={"realtime_owner": "7"})
    assert runtime.emitter.flush(5)
    # As after a redelivery, which Celery does not count.
    add.apply((1, 2), task_id=job_id, headers={"realtime_owner": "7"})
    expected = [(1, "running"), (1, "completed"), (2, "running"), (2, "completed")]
    assert log(f"job:{job_id}").statuses == expected
    assert log("user:7").statuses == expected


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_attempts_that_are_sent_together_do_not_make_each_other_stale(
    log: Look, runtime: Runtime, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter = runtime.emitter
    with monkeypatch.context() as patch:
        # Nothing leaves the queue while all are emitted.
        patch.setattr(emitter, "_wake_thread", lambda can_wait=False: None)
        patch.setattr(emitter._wake, "set", lambda can_wait=False: None)
        for _ in range(3):
            add.apply((1, 2), task_id=job_id)
    attempts = [(number, status) for number in (1, 2, 3) for status in ("running", "completed")]
    assert log(f"job:{job_id}").statuses == attempts


@pytest.mark.parametrize("lost", ["claim", "publish"])
def test_an_attempt_whose_reply_is_lost_begins_once(
    settings: Settings, tracker: TaskTracker, job_id: str, lost: str
) -> None:
    class Forgetful(MemoryBackend):
        calls: Counter[str] = Counter()

        def forget(self, name: str) -> None:
            self.calls[name] += 1
            if name == lost and self.calls[name] < 3:
                raise BackendUnavailable("the reply is lost")

        @hookimpl
        def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
            attempt = super().claim(topic, job, token, owner)
            self.forget("claim")
            return attempt

        @hookimpl
        def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
            receipts = super().publish(drafts)
            self.forget("publish")
            return receipts

    backend = Forgetful(settings)
    runtime = Runtime(settings, backend=backend)
    tracker.use(runtime)
    headers = {"realtime_owner": "7"}
    for _ in range(2):
        # The second one as after a redelivery, which the message does not know of.
        add.apply((1, 2), task_id=job_id, headers=headers)
    assert runtime.emitter.flush(10)
    assert backend.calls[lost] >= 3
    reader = Reader(backend)
    expected = [(1, "running"), (1, "completed"), (2, "running"), (2, "completed")]
    for topic in (f"job:{job_id}", "user:7"):
        assert Log(reader, topic).statuses == expected
    reader.close()
    runtime.close()


# Events of a worker's main process.


@pytest.mark.usefixtures("tracker")
def test_the_main_process_leaves_a_rejection_to_the_process_that_ran_the_task(
    log: Look, runtime: Runtime, job_id: str
) -> None:
    add.push_request(id=job_id, realtime_owner="7")
    signals.task_failure.send(sender=add, task_id=job_id, exception=Reject("not for me"))
    add.pop_request()
    runtime.emitter.flush(5)
    assert log(f"job:{job_id}").events == []


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_an_end_that_is_sent_twice_is_appended_once(
    log: Look, runtime: Runtime, job_id: str
) -> None:
    add.apply_async((1, 2), task_id=job_id, headers={"realtime_owner": "7"})
    headers = {"realtime_owner": "7"}
    add.push_request(id=job_id, **headers)
    for _ in range(2):
        signals.task_failure.send(sender=add, task_id=job_id, exception=TimeoutError("slow"))
    add.pop_request()
    for topic in (f"job:{job_id}", "user:7"):
        assert log(topic).types == ["job_queued", "job_failed"]
    assert log(f"job:{job_id}").state["attempt"] == 1


def test_a_deleted_job_sends_nothing_to_its_feed(
    settings: Settings, tracker: TaskTracker, job_id: str
) -> None:
    class Recording(MemoryBackend):
        sent: list[str] = []

        @hookimpl
        def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
            self.sent += [draft.topic for draft in drafts]
            return super().publish(drafts)

    backend = Recording(settings)
    runtime = Runtime(settings, backend=backend)
    tracker.use(runtime)
    backend.delete(f"job:{job_id}")
    add.apply((1, 2), task_id=job_id, headers={"realtime_owner": "7"})
    runtime.close()
    assert set(backend.sent) == {f"job:{job_id}"}


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
def test_nothing_is_appended_for_a_deleted_job(log: Look, runtime: Runtime, job_id: str) -> None:
    headers = {"realtime_owner": "7"}
    add.apply_async((1, 2), task_id=job_id, headers=headers)
    asyncio.run(runtime.delete(job_id, owner="7"))
    add.apply((1, 2), task_id=job_id, headers=headers)
    add.push_request(id=job_id, **headers)
    signals.task_revoked.send(
        sender=add, request=add.request, terminated=False, signum=None, expired=False
    )
    add.pop_request()
    assert log("user:7").types == ["job_queued", "job_deleted"]


# Headers.


def test_topics_may_be_a_list_or_comma_separated() -> None:
    for topics in (["a:1", "b:2"], "a:1, b:2"):
        meta = read_job_meta({"id": "1", "realtime_topics": topics})
        assert meta is not None
        assert meta.topics == ("a:1", "b:2")


@pytest.mark.parametrize(
    "headers",
    [
        {"realtime_owner": "a\nb"},
        {"realtime_topics": ["no topic", 5, "a:1"]},
        {"realtime_topics": 5},
        {"realtime_topics": None, "realtime_owner": ["x"]},
        {"realtime_queued_at": 5},
    ],
)
def test_a_bad_header_is_left_out(headers: dict[str, Any]) -> None:
    meta = read_job_meta({"id": "1", **headers})
    assert meta is not None
    assert meta.owner is None
    assert set(meta.topics) <= {"a:1"}
    assert meta.queued_at is None


def test_topics_after_the_20th_are_left_out() -> None:
    topics = [f"a:{number}" for number in range(1000)]
    meta = read_job_meta({"id": "1", "realtime_topics": topics})
    assert meta is not None
    assert len(meta.topics) == 20
    assert misuse == {"realtime_topics cut, it has more than 20": 1}


# Ids as they are.

OWNERS = ["auth0|5f7c", "us-east-1:8f3a", "ada@example.org", "org:7", "Zoë", "名", uuid.UUID(int=7)]


@pytest.mark.every_row
@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize("task_id", ["import:42", "a/b c", "Straße.~41"])
def test_a_task_id_of_any_characters_is_a_job(log: Look, task_id: str) -> None:
    job_id = f"{task_id} {uuid.uuid4()}"
    add.apply_async((1, 2), task_id=job_id, headers={"realtime_owner": "auth0|5f7c"})
    assert log(job_topic(job_id)).types == ["job_queued"]
    add.apply((1, 2), task_id=job_id, headers={"realtime_owner": "auth0|5f7c"})
    own = log(job_topic(job_id))
    assert own.types == ["job_queued", "job_started", "job_completed"]
    assert own.last["key"] == job_id
    assert own.owner == "auth0|5f7c"
    assert log(user_topic("auth0|5f7c")).last["key"] == job_id
    assert not misuse


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize("owner", OWNERS, ids=ascii)
def test_an_owner_is_the_id_of_the_application(log: Look, owner: Any) -> None:
    by_header = add.apply_async((1, 2), headers={"realtime_owner": owner}).id
    sent = submit(add, 1, 2, owner=owner)
    for job_id in (by_header, sent.id):
        assert log(f"job:{job_id}").owner == str(owner)
        assert job_id in [event["key"] for event in log(sent.feed).events]
    assert sent.feed == user_topic(owner)
    assert not misuse


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"realtime_owner": "x" * 201}, "realtime_owner refused, an id has 1 to 200"),
        ({"realtime_owner": "/" * 67}, "realtime_owner refused, an id has at most 200"),
        ({"realtime_owner": "a\nb"}, "realtime_owner refused, an id has 1 to 200"),
        ({"realtime_owner": ["7"]}, "realtime_owner refused, an id is a text"),
        ({"realtime_topics": ["no topic"]}, "realtime_topics refused, not a topic"),
        ({"realtime_topics": {"a": 1}}, "realtime_topics refused, it is no list"),
    ],
)
def test_a_header_that_is_refused_is_logged_once_with_its_name(
    headers: dict[str, Any], named: str, log: Look, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        for _ in range(3):
            job_id = add.apply_async((1, 2), headers=headers).id
            add.apply((1, 2), task_id=job_id, headers=headers)
            assert log(f"job:{job_id}").types[-1] == "job_completed"
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"job: {named}")


def test_each_cause_of_a_refused_owner_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for owner in ("a\nb", "x" * 201, "/" * 67, ["7"], 1.5, "b\nc"):
        read_job_meta({"id": "1", "realtime_owner": owner})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert all(line.startswith("job: realtime_owner refused") for line in said)


def test_a_task_id_that_no_topic_can_have_is_logged_once_and_harms_no_task(
    tracker: TaskTracker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        for _ in range(3):
            add.apply_async((1, 2), task_id="x" * 201)
            assert add.apply((1, 2), task_id="x" * 201).get() == 3
            assert fail.apply(task_id="x" * 201).state == "FAILURE"
    [line] = [r.getMessage() for r in caplog.records if r.name.startswith("semantik_realtime")]
    assert line.startswith("job: task_id refused")
    assert not tracker.failures


# update_state.


@pytest.mark.parametrize(
    ("state", "meta", "expected"),
    [
        (
            "PROGRESS",
            {"current": 3, "total": 10, "status": "reading"},
            {"progress": {"current": 3, "total": 10}, "message": "reading"},
        ),
        (
            "PROGRESS",
            {"current": 3, "message": "m", "status": "s", "unit": "files"},
            {
                "progress": {"current": 3, "total": None, "unit": "files"},
                "message": "m",
                "fields": {"status": "s"},
            },
        ),
        (
            "DOWNLOADING",
            {"url": "x"},
            {"message": "DOWNLOADING", "fields": {"url": "x", "state": "DOWNLOADING"}},
        ),
        ("DOWNLOADING", None, {"message": "DOWNLOADING", "fields": {"state": "DOWNLOADING"}}),
        (
            "DOWNLOADING",
            {"message": "a"},
            {"message": "a", "fields": {"state": "DOWNLOADING"}},
        ),
        ("PROGRESS", {"failed": [1], "bad": object}, {"fields": {"failed": [1]}}),
        (None, {"current": 1}, {"progress": {"current": 1, "total": None}}),
        ("PROGRESS", "plain text", {"message": "plain text"}),
        ("PROGRESS", {5: 6, "current": "x"}, {"fields": {"current": "x"}}),
    ],
)
@pytest.mark.usefixtures("tracker")
def test_update_state_sets_progress_message_and_fields(
    log: Look, job_id: str, state: str, meta: Any, expected: dict[str, Any]
) -> None:
    stored: list[Any] = []
    original = update.backend.store_result
    update.backend.store_result = lambda *args, **kwargs: stored.append(args)
    try:
        update.apply((state, meta), task_id=job_id)
    finally:
        update.backend.store_result = original
    assert stored == [(job_id, meta, state)]
    shown = log(f"job:{job_id}").state
    assert {n: shown[n] for n in ("progress", "message", "fields") if n in shown} == expected


@pytest.mark.usefixtures("tracker")
def test_an_update_of_another_task_does_not_change_this_job(log: Look, job_id: str) -> None:
    @app.task(bind=True)
    def update_both(self: Task) -> None:
        self.update_state(task_id=self.request.id, state="PROGRESS", meta={"current": 1})
        self.update_state(task_id="other", state="PROGRESS", meta={"current": 2})

    update_both.apply(task_id=job_id)
    assert log(f"job:{job_id}").state["progress"]["current"] == 1
    assert log("job:other").events == []


@pytest.mark.usefixtures("tracker")
def test_update_state_is_wrapped_once() -> None:
    for _ in range(3):
        update.apply((None, None))
    assert not hasattr(update.update_state.__wrapped__, "__wrapped__")


def test_good_values_are_not_counted_as_misuse(tracker: TaskTracker) -> None:
    update.apply(("PROGRESS", {"current": 1, "total": 2, "status": "x"}))
    assert not misuse
    assert not tracker.failures


# Imports.


@pytest.mark.parametrize(
    "module",
    [
        "worker.job",
        "worker.current",
        "worker.progress",
        "worker.headers",
        "worker.tracker",
        "worker.command",
        "worker.submit",
    ],
)
def test_importing_needs_neither_a_server_nor_its_client_nor_a_web_framework(module: str) -> None:
    code = (
        f"import sys, semantik_realtime.{module}\n"
        "bad = {'redis', 'fastapi', 'starlette'} & set(sys.modules)\n"
        "import threading\n"
        "assert not bad, bad\n"
        "assert threading.active_count() == 1\n"
    )
    if module in ("worker.job", "worker.current", "worker.progress", "worker.headers"):
        code += "assert 'celery' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@app.task(bind=True)
def replace_eagerly(self: Task, fails: bool) -> Any:
    return self.replace(fail.si() if fails else add.s(1, 2))


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_that_is_replaced_eagerly_is_one_attempt_that_ends_as_celery_says(
    tracker: TaskTracker, log: Look, fails: bool
) -> None:
    result = replace_eagerly.apply((fails,), task_id="1")
    status = {"SUCCESS": "completed", "FAILURE": "failed"}[result.state]
    assert log("job:1").statuses == [(1, "running"), (1, status)]
