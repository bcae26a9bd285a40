"""A request to cancel ends a job that waits, and marks one that runs."""

from histories import json_values
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.cancelling import CONTROL_TOPIC, cancel_step
from semantik_realtime.core.lifecycle import END_STATUSES, STATUS_OF_TYPE, has_ended
from semantik_realtime.core.shape import complete_state
from semantik_realtime.core.topic import check_topic

statuses = st.sampled_from(sorted(STATUS_OF_TYPE.values())) | json_values
states = st.fixed_dictionaries(
    {}, optional={"status": statuses, "attempt": st.integers(0, 5) | json_values}
).flatmap(
    lambda known: st.dictionaries(st.sampled_from(["progress", "name"]), json_values).map(
        lambda more: {**more, **known}
    )
)


def test_the_topic_of_the_requests_is_a_topic():
    check_topic(CONTROL_TOPIC)


@given(states | json_values)
def test_an_event_has_the_whole_state_with_the_status_of_its_type(state):
    step = cancel_step(state, "t")
    if step.type is not None:
        assert complete_state(step.type, step.state) == step.state
        known = state if isinstance(state, dict) else {}
        for name in known.keys() - {"status", "ended_at"}:
            assert step.state[name] == known[name]


@given(states | json_values)
def test_only_a_job_that_waits_ends_at_once(state):
    step = cancel_step(state, "t")
    was = state.get("status") if isinstance(state, dict) else None
    if isinstance(was, str) and was in {"queued", "retrying"}:
        assert (step.type, step.state["status"]) == ("job_cancelled", "cancelled")
        assert step.state["ended_at"] == "t"
    elif isinstance(was, str) and was in {*END_STATUSES, "cancelling"}:
        assert step.type is None
    else:
        assert (step.type, step.state["status"]) == ("job_cancelling", "cancelling")


@given(states)
def test_a_second_request_changes_nothing(state):
    once = cancel_step(state, "t")
    again = cancel_step(once.state, "later")
    assert again.type is None
    assert again.state == once.state
    assert has_ended(again.state) == has_ended(once.state)
