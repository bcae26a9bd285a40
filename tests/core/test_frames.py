"""Frames are joined from encoded parts, and are the JSON of docs/protocol.md."""

import json

import msgspec
import pytest
from histories import json_texts, json_values, logs
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.resume import Reason

topics = st.sampled_from(["job:42", "user:a@b.c", "z9_:0=+~-"])
cursors = st.builds(Cursor, st.just("e"), st.integers(0, 2**53 - 1), st.integers(0, 2**32 - 1))


def plain(events):
    return [json.loads(event.json) for event in events]


@given(st.lists(st.tuples(cursors, st.integers(0, 99), logs(max_size=4)), max_size=3))
def test_an_events_frame_has_every_topic_with_its_events(parts):
    members, expected = [], {}
    for number, (cursor, prev, events) in enumerate(parts):
        topic = f"job:{number}"
        members.append(frames.topic_events(topic, prev, cursor, events, conflated=number))
        expected[topic] = {
            "prev": prev,
            "offset": cursor.offset,
            "cursor": str(cursor),
            "events": plain(events),
        }
        if number:
            expected[topic]["conflated"] = number
    frame = json.loads(frames.events_frame(members))
    assert frame == {"op": "events", "topics": expected}


@given(topics, cursors, cursors, logs(max_size=4))
def test_a_replay_has_the_positions_before_and_after_its_events(topic, prev, cursor, events):
    assert json.loads(frames.replay_frame(topic, prev, cursor, events)) == {
        "op": "sync",
        "topic": topic,
        "mode": "replay",
        "prev": prev.offset,
        "prev_cursor": str(prev),
        "offset": cursor.offset,
        "cursor": str(cursor),
        "events": plain(events),
    }


@given(
    topics,
    st.sampled_from(Reason),
    st.none() | cursors,
    st.dictionaries(json_texts, json_values, max_size=3),
    logs(max_size=3),
)
def test_a_snapshot_has_the_states_of_any_keys(topic, reason, cursor, states, history):
    encoded = {key: msgspec.json.encode(state) for key, state in states.items()}
    assert json.loads(frames.snapshot_frame(topic, reason, cursor, encoded, history)) == {
        "op": "sync",
        "topic": topic,
        "mode": "snapshot",
        "reason": reason.value,
        "offset": cursor.offset if cursor else 0,
        "cursor": str(cursor) if cursor else None,
        "states": states,
        "events": plain(history),
    }


@given(
    topics,
    st.sampled_from(["m:0", "e"]),
    st.sampled_from(["recall", "delayed"]),
    st.dictionaries(json_texts, json_values, max_size=3),
)
def test_a_provisional_frame_has_the_states_and_where_they_are_from(topic, epoch, source, states):
    encoded = {key: msgspec.json.encode(state) for key, state in states.items()}
    assert json.loads(frames.provisional_frame(topic, epoch, source, encoded)) == {
        "op": "provisional",
        "topic": topic,
        "epoch": epoch,
        "source": source,
        "states": states,
    }


def test_members_that_are_absent_take_no_room():
    cursor = Cursor("e", 5, 1)
    assert b"conflated" not in frames.topic_events("job:1", 4, cursor, [])
    assert json.loads(frames.snapshot_frame("job:1", Reason.NEW, cursor, {}))["events"] == []


@given(st.dictionaries(topics, cursors))
def test_tops_have_the_offset_and_the_cursor_of_each_topic(tops):
    expected = {t: {"offset": c.offset, "cursor": str(c)} for t, c in tops.items()}
    assert json.loads(frames.tops_frame(tops)) == {"op": "tops", "topics": expected}


@given(st.text() | st.binary())
def test_decoding_never_raises_and_returns_only_objects_with_an_op(text):
    frame = frames.decode(text)
    assert frame is None or isinstance(frame["op"], str)


@given(st.dictionaries(json_texts, json_values, max_size=3), json_texts)
def test_an_object_with_an_op_is_decoded_as_it_was_encoded(members, op):
    frame = {**members, "op": op}
    assert frames.decode(json.dumps(frame)) == frame
    assert frames.decode(frames.encode(frame)) == frame


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"ping"',
        "{}",
        '{"op":5}',
        '{"op":null}',
        '{"op":"ping"',
        '{"op":"ping"} {"op":"ping"}',
        '{"op":"ping","n":NaN}',
        '{"op":"ping","n":1e999}',
        '{"op":"ping","n":' + "9" * 5000 + "}",
        '{"op":"ping","n":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"op":"\\ud800"}',
        '{"op":"\ud800"}',
        "\ufeff" + '{"op":"ping"}',
        b'{"op":"\xff"}',
        b'{"op":"\xed\xa0\x80"}',
        b"\x00",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_any_other_text_is_no_frame(text):
    assert frames.decode(text) is None
