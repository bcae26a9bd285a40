"""Delayed states: ordered by the fence as in a log, and bounded in bytes."""

import json
from collections import OrderedDict

import msgspec
from histories import append_all, draft, log_of, states_after
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.delayed import ENTRY_BYTES, DelayedStates

TOPICS = ("job:1", "user:7", "job:2")

job_drafts = st.builds(
    draft,
    st.sampled_from(["a", "b"]),
    st.sampled_from([msgspec.UNSET, None, {"n": 1}, {"n": 2}, {"text": "x" * 60}]),
    terminal=st.sampled_from([False, False, True]),
    topic=st.sampled_from(TOPICS),
    job=st.sampled_from([None, "a", "b"]),
    attempt=st.sampled_from([None, 0, 1, 2]),
)


def states_of(delayed, topic):
    return {key: json.loads(state) for key, state in delayed.of(topic).items()}


@given(st.lists(st.lists(job_drafts, max_size=5), max_size=8))
def test_without_a_bound_the_states_are_those_that_a_log_would_have(batches):
    delayed = DelayedStates(max_bytes=10**9)
    for batch in batches:
        before = {topic: states_of(delayed, topic) for topic in TOPICS}
        changed = delayed.add(batch)
        for topic in set(TOPICS) - changed:
            assert states_of(delayed, topic) == before[topic]
    appended = append_all([one for batch in batches for one in batch])
    for topic in TOPICS:
        expected = states_after(log_of(one for one in appended if one.topic == topic))
        assert states_of(delayed, topic) == expected


def test_a_late_draft_of_an_outdated_attempt_replaces_no_state():
    delayed = DelayedStates(10**6)
    assert delayed.add([draft("1", {"n": 2}, job="1", attempt=2)]) == {"job:1"}
    assert delayed.add([draft("1", {"n": 1}, job="1", attempt=1)]) == set()
    assert states_of(delayed, "job:1") == {"1": {"n": 2}}


def owned(key, state, owner, *, topic="job:1"):
    return msgspec.structs.replace(draft(key, state, topic=topic), owner=owner)


def test_a_topic_shows_the_states_of_its_first_owner_and_none_from_before():
    delayed = DelayedStates(10**6)
    delayed.add([draft("old", {"n": 1})])
    assert delayed.owner_of("job:1") is None
    assert delayed.add([owned("a", {"n": 2}, "alice")]) == {"job:1"}
    assert delayed.add([owned("a", {"n": 3}, "bob")]) == set()
    assert delayed.add([draft("b", {"n": 4})]) == {"job:1"}
    assert states_of(delayed, "job:1") == {"a": {"n": 2}, "b": {"n": 4}}
    assert delayed.owner_of("job:1") == "alice"
    assert delayed.owner_of("job:2") is None


def test_a_deleted_key_is_no_longer_among_the_states():
    delayed = DelayedStates(10**6)
    delayed.add([draft("a", {"n": 1}), draft("b", {"n": 2})])
    assert delayed.add([draft("a", None)]) == {"job:1"}
    assert states_of(delayed, "job:1") == {"b": {"n": 2}}


def test_clearing_forgets_the_states_the_attempts_and_the_bytes():
    delayed = DelayedStates(max_bytes=1000)
    end = draft("1", {"n": 1}, job="1", attempt=2, terminal=True)
    for _ in range(20):
        # Without the old attempt it is not refused, and without the old bytes not forgotten.
        assert delayed.add([end]) == {"job:1"}
        delayed.clear()
        assert delayed.of("job:1") == {}


@given(st.lists(job_drafts, max_size=30), st.integers(300, 2000))
def test_above_the_bound_the_topics_that_changed_longest_ago_are_forgotten(drafts, max_bytes):
    """The model keeps all drafts of a topic, and counts what a log of them would keep."""
    delayed = DelayedStates(max_bytes)
    kept: OrderedDict[str, list] = OrderedDict()

    def size(topic):
        appended = append_all(kept[topic])
        states = states_after(log_of(appended))
        names = [topic, *states, *{one.job for one in appended if one.job is not None}]
        texts = sum(len(msgspec.json.encode(state)) for state in states.values())
        return texts + sum(len(name) + ENTRY_BYTES for name in names)

    for one in drafts:
        kept.setdefault(one.topic, []).append(one)
        kept.move_to_end(one.topic)
        changed = delayed.add([one])
        while sum(map(size, kept)) > max_bytes:
            kept.popitem(last=False)
        assert changed <= kept.keys() & {one.topic}
        for topic in TOPICS:
            expected = states_after(log_of(append_all(kept.get(topic, []))))
            assert states_of(delayed, topic) == expected


def test_topics_without_a_state_are_bounded_too():
    delayed = DelayedStates(max_bytes=10 * (ENTRY_BYTES + 10))
    delayed.add([draft("1", {"n": 1}, topic="job:first")])
    delayed.add([draft(topic=f"job:{n}") for n in range(10)])
    assert delayed.of("job:first") == {}


def test_a_topic_that_is_over_the_bound_alone_is_forgotten():
    delayed = DelayedStates(max_bytes=1000)
    assert delayed.add([draft("1", {"text": "x" * 1000})]) == set()
    assert delayed.of("job:1") == {}
