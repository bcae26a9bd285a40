"""What happens when a canvas is published with Celery's own calls: its id, its owner, its messages.

Without a worker: the messages stay in the broker's memory.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signals, signature
from celery import canvas as celery_canvas
from celery.backends.base import Backend
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from topic_log import Log

from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import plain_canvas
from semantik_realtime.worker.canvas import first_task, is_canvas, plan_canvas
from semantik_realtime.worker.headers import MEMBER, WORKFLOW
from semantik_realtime.worker.places import forget_jobs
from semantik_realtime.worker.submit import submit
from semantik_realtime.worker.tracker import TaskTracker

Look = Callable[[str], Log]
Message = dict[str, Any]
app = Celery("calls", broker="memory://", backend="cache+memory://", set_as_current=False)
app.conf.task_default_queue = "calls"


@app.task
def add(*numbers: Any) -> None:
    pass


@app.task(realtime=False)
def silent(*numbers: Any) -> None:
    pass


@pytest.fixture(autouse=True)
def _anew(tracker: TaskTracker) -> Iterator[None]:
    plain_canvas._refused.clear()
    forget_jobs()
    yield
    assert not tracker.failures


@pytest.fixture
def sent() -> Iterator[list[Message]]:
    """The headers of the messages that are published, in their order."""
    found: list[Message] = []

    def note(headers: Message, **_: Any) -> None:
        found.append(headers)

    signals.before_task_publish.connect(note)
    yield found
    signals.before_task_publish.disconnect(note)


CALLS: dict[str, Callable[[], Any]] = {
    "apply_async": lambda: group(add.s(1), add.s(2)).apply_async(),
    "delay": lambda: chain(add.s(1), add.s(2)).delay(),
    "call": lambda: group(add.s(1), add.s(2))(),
    "call of a chain": lambda: chain(add.s(1), add.s(2))(),
    "operators": lambda: (add.s(1) | add.s(2) | add.s(3)).apply_async(),
    "body of the call": lambda: chord([add.s(1), add.s(2)])(add.s()),
    "header that is a group": lambda: chord(group(add.s(1), add.s(2)), add.s()).delay(),
    "group and task": lambda: (group(add.s(1), add.s(2)) | add.s()).delay(),
    "body that is a group": lambda: chord([add.s(1)], group(add.s(), add.s())).apply_async(),
    "given id of a group": lambda: group(add.s(1), add.s(2)).apply_async(task_id="g"),
    "given id of a chain": lambda: chain(add.s(1), add.s(2)).apply_async(task_id="c"),
    "given id of a chord": lambda: chord([add.s(1)], add.s()).apply_async(task_id="d"),
    "group of one": lambda: group(add.s(1)).apply_async(),
    "group in a group": lambda: group(group(add.s(1), add.s(2))).apply_async(),
    "group of one in a group": lambda: group(group(add.s(1))).apply_async(),
    "group of one chain": lambda: group(
        chain(add.s(1), group(add.s(2), group(add.s(3))))
    ).apply_async(),
    "group of one at the end": lambda: chain(add.s(1), group(add.s(2))).apply_async(),
    "frozen": lambda: frozen(chord([add.s(1)], add.s())).apply_async(),
    "frozen group": lambda: frozen(group(add.s(1), add.s(2))).apply_async(),
}


def frozen(canvas: Any) -> Any:
    canvas.freeze()
    return canvas


@pytest.mark.parametrize("call", CALLS)
def test_every_call_publishes_one_job_with_the_id_of_its_result(
    log: Look, sent: list[Message], call: str
) -> None:
    result = CALLS[call]()
    states = [event["state"] for event in log(f"job:{result.id}").events]
    [state] = [state for state in states if "workflow" in state]
    assert state["status"] == "queued"
    assert {message[WORKFLOW] for message in sent} == {str(result.id)}
    assert len({message[MEMBER]["n"] for message in sent}) == len(sent)


canvases: st.SearchStrategy[Any] = st.recursive(
    st.builds(lambda: add.s(1)),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(chain)
        | st.lists(inner, min_size=1, max_size=3).map(group)
        | st.tuples(st.lists(inner, min_size=1, max_size=2), inner).map(lambda pair: chord(*pair))
    ),
    max_leaves=7,
).filter(lambda canvas: is_canvas(canvas) and len(plan_canvas(canvas).leaves) > 1)


@given(canvases)
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_canvas_is_published_as_celery_does(
    tracker: TaskTracker, sent: list[Message], canvas: Any
) -> None:
    before = json.dumps(canvas)
    # Old releases of Celery change the canvas that they publish, and do not find its application.
    canvas, other = (signature(json.loads(before), app=app) for _ in range(2))
    del sent[:]
    tracker._canvases.disconnect()
    try:
        plain = other.apply_async()
    finally:
        tracker._canvases.connect()
    expected = [(message["task"], message["argsrepr"]) for message in sent]
    del sent[:]
    result = canvas.apply_async()
    assert [(message["task"], message["argsrepr"]) for message in sent] == expected
    assert type(result) is type(plain)
    assert json.dumps(canvas) == before
    workflows = {message.get(WORKFLOW) for message in sent}
    assert workflows == {str(result.id)}


OWNERS: dict[str, tuple[Callable[[], Any], str | None]] = {
    "call": (lambda: group(add.s(), add.s()).apply_async(headers={"realtime_owner": "7"}), "7"),
    "call of a chain": (
        lambda: chain(add.s(), add.s()).apply_async(headers={"realtime_owner": 7}),
        "7",
    ),
    "canvas": (lambda: group(add.s(), add.s()).set(headers={"realtime_owner": "7"})(), "7"),
    "signatures": (lambda: group([add.s().set(headers={"realtime_owner": "7"})] * 2)(), "7"),
    "first step": (lambda: chain(add.s().set(headers={"realtime_owner": "7"}), add.s())(), "7"),
    "stamp": (lambda: stamped(group(add.s(), add.s()))(), "7"),
    "nobody": (lambda: group(add.s(), add.s())(), None),
}


def stamped(canvas: Any) -> Any:
    canvas.stamp(realtime_owner="7")
    return canvas


@pytest.mark.parametrize(("publish", "owner"), OWNERS.values(), ids=OWNERS)
def test_the_owner_is_named_as_for_a_task(
    log: Look, publish: Callable[[], Any], owner: str | None
) -> None:
    result = publish()
    assert log(f"job:{result.id}").owner == owner
    feed = {event["key"] for event in log("user:7").events}
    assert feed == ({str(result.id)} if owner else set())


def test_the_feed_and_the_topics_get_the_whole(log: Look) -> None:
    first = add.s().set(headers={"realtime_topics": ["collection:9"]})
    result = group(first, add.s()).apply_async(headers={"realtime_owner": "7"})
    for topic in ("user:7", "collection:9"):
        assert {event["key"] for event in log(topic).events} == {str(result.id)}


def test_the_headers_of_the_call_reach_the_tasks_that_celery_gives_them(
    sent: list[Message],
) -> None:
    group(add.s().set(headers={"own": 1}), add.s()).apply_async(headers={"given": 2})
    assert [(m.get("own"), m.get("given")) for m in sent] == [(1, 2), (None, 2)]


SINGLE: dict[str, tuple[Callable[[], Any], str]] = {
    "not mirrored": (lambda: group(add.s(), silent.s())(), "the task"),
    "two owners": (
        lambda: group(
            add.s().set(headers={"realtime_owner": "7"}),
            add.s().set(headers={"realtime_owner": "8"}),
        )(),
        "several owners",
    ),
    "one for nobody": (
        lambda: group(
            add.s().set(headers={"realtime_owner": "7"}),
            add.s().set(headers={"realtime_owner": None}),
        )(),
        "several owners",
    ),
    "one without": (
        lambda: group(add.s().set(headers={"realtime_owner": "7"}), add.s())(),
        "several owners",
    ),
    "a chain of one": (lambda: chain(add.s())(), ""),
    "members of another": (
        lambda: group(add.s(), add.s()).apply_async(headers={"realtime_job": "nightly"}),
        "",
    ),
}


@pytest.mark.parametrize(("publish", "reason"), SINGLE.values(), ids=SINGLE)
def test_what_stays_single_says_why(
    log: Look,
    sent: list[Message],
    caplog: pytest.LogCaptureFixture,
    publish: Callable[[], Any],
    reason: str,
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            publish()
    assert caplog.text.count("canvas is not one job") == bool(reason)
    assert reason in caplog.text
    assert not any("total" in (message.get(MEMBER) or {}) for message in sent)


def test_a_nested_canvas_of_a_single_one_is_no_job(sent: list[Message]) -> None:
    inner = chain(add.s(1), add.s(2))
    group(inner, inner, silent.s()).apply_async()
    assert not any(WORKFLOW in message for message in sent)


def test_what_celery_publishes_is_no_job_of_its_own(sent: list[Message]) -> None:
    canvas = group(add.s(1), add.s(2))
    scope = {"__name__": "celery.app.trace", "canvas": canvas}
    exec("def publish():\n    canvas.apply_async()", scope)
    scope["publish"]()  # type: ignore[operator]

    class Results(Backend):
        def __init__(self) -> None:
            pass

        def on_chord_part_return(self, *_: Any, **__: Any) -> None:
            canvas.delay()

    Results().on_chord_part_return()
    assert len(sent) == 4
    assert not any(WORKFLOW in message for message in sent)


def test_submit_still_names_the_job_itself(log: Look, sent: list[Message]) -> None:
    job = submit(group(add.s(1), chain(add.s(2), add.s(3))), owner="7", job_id="import:42")
    assert {message[WORKFLOW] for message in sent} == {"import:42"}
    assert [event["key"] for event in log("user:7").events] == [job.id]


def test_an_eager_canvas_is_left_alone(log: Look) -> None:
    app.conf.task_always_eager = True
    try:
        result = group(add.s(1), add.s(2)).apply_async()
    finally:
        app.conf.task_always_eager = False
    assert log(f"job:{result.id}").events == []


def test_a_canvas_that_cannot_be_published_fails_its_job(log: Look) -> None:
    canvas = chain(add.s(object()), add.s())
    canvas.freeze("w")
    with pytest.raises(Exception, match="not JSON serializable"):
        canvas.apply_async()
    assert [event["type"] for event in log("job:w").events] == ["job_queued", "job_failed"]


def test_what_the_callers_generator_raises_is_the_callers() -> None:
    def tasks() -> Iterator[Any]:
        yield add.s(1)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        group(tasks()).apply_async()


def test_our_own_fault_does_not_keep_a_canvas_from_being_published(
    tracker: TaskTracker, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(plain_canvas, "plan_canvas", fail)
    result = group(add.s(1), add.s(2)).apply_async()
    assert [message["id"] for message in sent] == [child.id for child in result.children]
    assert tracker.failures == {"canvas: RuntimeError": 1}
    tracker.failures.clear()


def test_celerys_classes_are_restored(tracker: TaskTracker) -> None:
    wrapped = [vars(owner)["apply_async"] for owner in plain_canvas.CLASSES]
    tracker.connect()
    tracker.disconnect()
    for owner, ours in zip(plain_canvas.CLASSES, wrapped, strict=True):
        function = vars(owner)["apply_async"]
        assert function.__code__.co_filename == celery_canvas.__file__
        assert function is not ours
    assert not plain_canvas._originals


def test_another_package_that_wraps_the_same_is_kept(
    tracker: TaskTracker, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, calls = celery_canvas.group.apply_async, []

    @functools.wraps(ours)
    def theirs(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return ours(*args, **options)

    monkeypatch.setattr(celery_canvas.group, "apply_async", theirs)
    tracker.connect()
    group(add.s(1), add.s(2)).apply_async()
    assert len({message[WORKFLOW] for message in sent}) == 1
    tracker.disconnect()
    group(add.s(1), add.s(2)).apply_async()
    assert len(calls) == 2
    assert not any(WORKFLOW in message for message in sent[2:])


def test_a_runtime_that_is_off_changes_nothing(
    runtime: Runtime, tracker: TaskTracker, sent: list[Message]
) -> None:
    tracker._turn_off()
    tracker._runtime = None
    group(add.s(1), add.s(2)).apply_async()
    assert not any(WORKFLOW in message for message in sent)
    assert first_task(group([])) is None
