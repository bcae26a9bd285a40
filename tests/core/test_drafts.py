"""One event becomes one draft for each of its topics."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.drafts import make_drafts, owners_of
from semantik_realtime.core.event import Claim, StateChange
from semantik_realtime.core.limits import MAX_EVENT_BYTES
from semantik_realtime.errors import EventError, EventTooBig, TopicError

users = st.sampled_from(["7", "8", "auth0.5f7"])
others = st.lists(
    st.sampled_from(["job:1", "job:2", "collection:9", "user:7", "user:8", "user:auth0.5f7"]),
    max_size=6,
)


@given(others, st.none() | users)
def test_the_owner_owns_the_events_topic_each_feed_its_user_and_nobody_a_shared_topic(
    others, owner
):
    topics = owners_of("job:1", others, owner)
    assert topics.keys() == {"job:1", *others}
    assert next(iter(topics)) == "job:1"
    for topic, one in topics.items():
        kind, _, ident = topic.partition(":")
        assert one == {"user": ident, "job": owner if topic == "job:1" else None}.get(kind)


@pytest.mark.parametrize(
    ("given", "change", "body"),
    [
        ({}, StateChange.KEEP, {}),
        ({"state": None}, StateChange.DROP, {"state": None}),
        ({"state": {"n": 1}}, StateChange.SET, {"state": {"n": 1}}),
        (
            {"terminal": True, "data": {"n": 1}},
            StateChange.KEEP,
            {"terminal": True, "data": {"n": 1}},
        ),
    ],
)
def test_every_draft_has_the_same_body_and_members_that_agree_with_it(given, change, body):
    topics = {"job:1": "7", "user:7": "7", "collection:9": None}
    drafts = make_drafts(topics, "note", "now", "1", job="1", attempt=2, **given)
    assert {one.topic: one.owner for one in drafts} == topics
    for one in drafts:
        assert one.body is drafts[0].body
        assert json.loads(one.body) == {"type": "note", "time": "now", "key": "1", **body}
        assert (one.type, one.key, one.change) == ("note", "1", change)
        assert one.terminal is given.get("terminal", False)
        assert (one.job, one.attempt, one.producer, one.number) == ("1", 2, "", 0)


def test_a_wrong_name_or_value_is_refused():
    with pytest.raises(TopicError):
        make_drafts({"job:1": None, "../x": None}, "note", "", "1")
    with pytest.raises(TopicError):
        owners_of("job:1", [], "a\n")
    with pytest.raises(EventError):
        make_drafts({"job:1": None}, "Note", "", "1")
    with pytest.raises(EventError):
        make_drafts({"job:1": None}, "note", "", "1", state={"x": object()})
    with pytest.raises(EventTooBig):
        make_drafts({"job:1": None}, "note", "", "1", data={"x": "y" * 300}, max_bytes=300)
    assert make_drafts({"job:1": None}, "note", "", "1", state=msgspec.UNSET)


def test_every_draft_has_the_claim_of_the_attempt_and_the_time_at_which_the_job_is_due():
    claim = Claim("job:1", "1", token="t", expected=2)
    drafts = make_drafts({"job:1": None, "user:7": "7"}, "note", "", "1", claim=claim, due_at=9.5)
    assert [(one.claim, one.due_at) for one in drafts] == [(claim, 9.5)] * 2


def test_a_key_outside_its_grammar_is_refused():
    with pytest.raises(EventError):
        make_drafts({"job:1": None}, "note", "", "a\n")
    with pytest.raises(EventError):
        make_drafts({"job:1": None}, "note", "", "")


def test_the_encoded_event_may_have_as_many_bytes_as_the_limit_says():
    bare = len(make_drafts({"job:1": None}, "note", "", "1", data={"x": ""})[0].body)
    room = {"x": "y" * (MAX_EVENT_BYTES - bare)}
    [draft] = make_drafts({"job:1": None}, "note", "", "1", data=room)
    assert len(draft.body) == MAX_EVENT_BYTES
    with pytest.raises(EventTooBig):
        make_drafts({"job:1": None}, "note", "", "1", data={"x": room["x"] + "y"})


def test_a_feed_belongs_to_its_user_also_where_another_user_writes_to_it_alone():
    assert owners_of("user:8", [], "7") == {"user:8": "8"}
    assert owners_of("user:8", ["user:8", "job:1"], None) == {"user:8": "8", "job:1": None}
