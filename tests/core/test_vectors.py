"""The rules of docs/protocol.md as examples: the vectors in ``tests/vectors``."""

import json
import zlib
from pathlib import Path

import msgspec
import pytest

from semantik_realtime.core.backpressure import conflate
from semantik_realtime.core.event import Cursor, Event, link
from semantik_realtime.core.fence import AttemptState, Refusal, check_fence
from semantik_realtime.core.fold import View, fold
from semantik_realtime.core.lifecycle import is_finished
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.core.summary import summarize
from semantik_realtime.core.topic import check_topic, job_topic, name_topic, split_topic
from semantik_realtime.errors import TopicError

VECTORS = Path(__file__).parents[1] / "vectors"


def cases(name, label="name"):
    """Parametrize with the cases of a file. A file without cases fails."""
    found = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    assert found
    return pytest.mark.parametrize("case", found, ids=[case[label] for case in found])


def events_of(case):
    return [
        Event(event["offset"], 0, json.dumps(event, ensure_ascii=False).encode())
        for event in case["events"]
    ]


@cases("topic", label="topic")
def test_topic(case):
    if case["valid"]:
        assert check_topic(case["topic"]) == case["topic"]
    else:
        with pytest.raises(TopicError) as refused:
            check_topic(case["topic"])
        assert refused.value.code == "bad_topic"


@cases("topic", label="topic")
def test_the_topic_that_a_name_means(case):
    if case["valid"] or "named" in case:
        assert name_topic(case["topic"]) == case.get("named", case["topic"])
    else:
        with pytest.raises(TopicError):
            name_topic(case["topic"])


IDS = json.loads((VECTORS / "topic.json").read_text(encoding="utf-8"))["ids"]


@pytest.mark.parametrize("case", IDS, ids=[ascii(case["id"])[:40] for case in IDS])
def test_ids_in_topics(case):
    if case["encoded"] is None:
        with pytest.raises(TopicError):
            job_topic(case["id"])
    else:
        assert job_topic(case["id"]) == check_topic(f"job:{case['encoded']}")
        assert split_topic(f"job:{case['encoded']}") == ("job", case["id"])


@cases("chain")
def test_chain(case):
    chain, chains = 0, []
    for body in case["bodies"]:
        chain = link(chain, zlib.crc32(body.encode()))
        chains.append(f"{chain:08x}")
    assert chains == case["chains"]


@cases("fold")
def test_fold(case):
    states: dict[str, msgspec.Raw] = {}
    fold(states, [event.head() for event in events_of(case)])
    assert {key: json.loads(bytes(state)) for key, state in states.items()} == case["states"]


@cases("fold")
def test_fold_by_a_reader(case):
    view = View("job:42")
    view.sync({"mode": "snapshot", "offset": 0, "cursor": "e.0.00000000", "states": {}})
    end = max((event["offset"] for event in case["events"]), default=0)
    view.batch({"prev": 0, "offset": end, "cursor": "c", "events": case["events"]})
    assert view.states == case["states"]


@cases("resume")
def test_resume(case):
    log = LogInfo(
        case["log"]["epoch"],
        case["log"]["offset"],
        int(case["log"]["chain"], 16),
        case["log"]["first"],
    )
    asked = None if case["asked"] is None else Cursor.parse(case["asked"])
    there = None if case["chain_there"] is None else int(case["chain_there"], 16)
    assert plan_sync(asked, log, there) == case["reason"]


@cases("fence")
def test_fence(case):
    state, verdicts = AttemptState(), []
    for attempt, terminal in case["drafts"]:
        verdict = check_fence(state, attempt, terminal)
        if isinstance(verdict, Refusal):
            verdicts.append(verdict.value)
        else:
            state = verdict
            verdicts.append("appended")
    assert verdicts == case["verdicts"]


@cases("conflate")
def test_conflate(case):
    assert [event.offset for event in conflate(events_of(case))] == case["kept"]


def parts(frame):
    """Return the topics of a server frame, each with its part of the frame."""
    if frame.get("op") in ("events", "tops"):
        return list(frame["topics"].items())
    return [(frame["topic"], frame)] if isinstance(frame.get("topic"), str) else []


def read(view, op, part):
    """Apply a part of a frame to a view. Return None if there is a gap."""
    match op:
        case "sync":
            return view.sync(part)
        case "events":
            return view.batch(part)
        case "tops":
            return None if view.behind(part) else []
        case "provisional":
            view.provisional(part["states"])
    return []


@cases("reader")
def test_reader(case):
    expect = case["expect"]
    views = {topic: View(topic) for topic in expect["views"]}
    shown, gaps = {topic: [] for topic in views}, {topic: [] for topic in views}
    asked = []
    for frame in case["frames"]:
        for topic, part in parts(frame):
            if frame["op"] in ("gone", "denied"):
                views[topic] = View(topic)
            events = read(views[topic], frame["op"], part)
            if events is None:
                asked.append({"topic": topic, "cursor": views[topic].cursor})
            else:
                shown[topic] += [event["offset"] for event in events]
            if frame["op"] in ("sync", "events") and views[topic].gap is not None:
                gaps[topic].append(msgspec.to_builtins(views[topic].gap))
    found = {
        topic: {"states": view.states, "offset": view.offset, "cursor": view.cursor}
        for topic, view in views.items()
    }
    assert found == expect["views"]
    assert shown == expect["shown"]
    assert asked == expect["resubscribe"]
    assert gaps == expect.get("gaps", gaps)


@cases("overlay")
def test_overlay(case):
    view = View("job:42")
    for step in case["steps"]:
        frame = step["frame"]
        if frame["op"] == "restored":
            view.restored()
        for topic, part in parts(frame):
            if frame["op"] in ("gone", "denied"):
                view = View("job:42")
            elif topic == "job:42":
                read(view, frame["op"], part)
        assert (dict(view.states), sorted(view.overlay)) == (
            step["shown"],
            step.get("overlay", []),
        ), frame
    assert (view.folded, view.offset, view.cursor) == (
        case["folded"],
        case["offset"],
        case["cursor"],
    )


@cases("finished")
def test_finished(case):
    assert is_finished(case["topic"], case["states"]) is case["finished"]


@cases("summary")
def test_summary(case):
    summary = summarize(case["states"], case["job"], case["now_ms"])
    assert msgspec.to_builtins(summary) == case["summary"]
