"""The summary of a workflow does not depend on who reports what, how often and in which order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.summary import summarize
from semantik_realtime.core.tally import (
    MAX_GIVERS,
    MAX_MEMBERS,
    OUTCOMES,
    Tally,
    decode_numbers,
    encode_numbers,
    numbers_of,
)
from semantik_realtime.core.workflow import (
    KEPT_TALLIES,
    end_of,
    progress_of,
    tallies_to_unite,
    uncounted,
)

numbers = st.sets(st.integers(0, 60))
reports = st.lists(
    st.tuples(st.sampled_from(["", "k1"]), st.integers(0, 60), st.sampled_from(OUTCOMES)),
    max_size=40,
)
json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["", "n", "of", "member", "tally", "status", "workflow", "done", "total"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def bits_of(members: set[int]) -> int:
    return sum(1 << number for number in members)


def tally_of(reported: list[tuple[str, int, str]]) -> Tally:
    tally = Tally()
    for report in reported:
        tally.add(*report)
    return tally


def states_of(*tallies: Tally) -> dict[str, Any]:
    own = {"workflow": {"total": 61}, "started_at": "1970-01-01T00:00:00.000Z"}
    return {"w": own} | {f"~{n}": {"tally": tally.as_state()} for n, tally in enumerate(tallies)}


@given(numbers)
def test_numbers_survive_their_text(members: set[int]) -> None:
    assert decode_numbers(encode_numbers(bits_of(members))) == bits_of(members)


@pytest.mark.parametrize(
    "text", [None, 7, "", "7", "x:AQ==", "-1:AQ==", "0:!", "0:AQ", "99999:AQ=="]
)
def test_what_is_no_text_of_numbers_is_none(text: object) -> None:
    assert decode_numbers(text) == 0


@given(reports, st.integers(1, 5), st.randoms())
def test_how_reports_are_spread_over_tallies_does_not_matter(
    reported: list[tuple[str, int, str]], parts: int, random: Any
) -> None:
    one = summarize(states_of(tally_of(reported)), "w", 5000)
    # Some twice: a member that ran again, or a tally that was united with another one.
    spread = [*reported, *random.sample(reported, len(reported) // 2)]
    random.shuffle(spread)
    many = [tally_of(spread[part::parts]) for part in range(parts)]
    assert summarize(states_of(*many), "w", 5000) == one
    united = Tally()
    for tally in many:
        united.merge(tally.as_state())
    assert summarize(states_of(*many, united), "w", 5000) == one
    assert summarize(states_of(united), "w", 5000) == one


@given(reports, reports)
def test_a_member_is_counted_once(
    reported: list[tuple[str, int, str]], others: list[tuple[str, int, str]]
) -> None:
    keys = {
        f"{giver}{number}": {
            "status": {"done": "completed"}.get(outcome, outcome),
            "member": {"of": giver, "n": number},
        }
        for giver, number, outcome in others
        if outcome != "skipped"
    }
    summary = summarize(states_of(tally_of(reported)) | keys, "w", 5000)
    counted = summary.done + summary.failed + summary.cancelled + summary.lost + summary.skipped
    members = {report[:2] for report in reported}
    members |= {(state["member"]["of"], state["member"]["n"]) for state in keys.values()}
    assert counted == len(members)
    assert counted + summary.running + summary.waiting == summary.total
    assert 0 <= summary.ended_weight <= summary.weight


@given(st.dictionaries(st.sampled_from(["w", "a", "b", "~1"]), json))
def test_states_of_any_shape_have_a_summary(states: dict[str, Any]) -> None:
    summary = summarize(states, "w", 0)
    assert summary.total >= summary.done + summary.running
    end_of(states, "w")
    progress_of(states, "w", "1970-01-01T00:00:00.000Z")
    uncounted(states, "w", 1000, 0)
    tallies_to_unite(states, "~1")


def test_what_a_tally_holds_is_bounded() -> None:
    tally = Tally()
    tally.add("", MAX_MEMBERS, "done")
    for giver in range(MAX_GIVERS + 5):
        tally.add(str(giver), 0, "done")
    assert len(tally.givers()) == MAX_GIVERS
    assert numbers_of([[0, MAX_MEMBERS + 1]]) == 0


def member(number: int, status: str, **place: Any) -> dict[str, Any]:
    return {"status": status, "member": {"n": number, **place}, "ended_at": f"{number}"}


def flow(ends: str, total: int = 2, **state: Any) -> dict[str, Any]:
    return {"w": {"status": "running", "workflow": {"ends": ends, "total": total}, **state}}


def test_a_workflow_ends_as_its_members_say() -> None:
    first, last = member(0, "completed"), member(1, "completed", ends=True)
    ends = {
        "queued": (flow("last"), None),
        "first step": (flow("last") | {"a": first}, None),
        "last step": (flow("last") | {"b": last}, "job_completed"),
        "failed step": (flow("last") | {"a": member(0, "failed")}, "job_failed"),
        "lost step": (flow("last") | {"a": member(0, "lost")}, "job_failed"),
        "cancelled step": (flow("last") | {"a": member(0, "cancelled")}, "job_cancelled"),
        "group": (flow("all") | {"a": first}, None),
        "group of two": (flow("all") | {"a": first, "b": member(1, "completed")}, "job_completed"),
        "a failed one": (flow("all") | {"a": first, "b": member(1, "failed")}, "job_failed"),
        "one that waits": (flow("all") | {"a": member(0, "failed")}, None),
        "skipped": (flow("all") | {"a": member(0, "failed", skips=[[1, 2]])}, "job_failed"),
        "children": (
            flow("all", 1) | {"a": first, "b": member(0, "running", of="k")},
            "job_completed",
        ),
        "open": (flow("open") | {"a": first}, None),
        "flagged": (flow("open") | {"b": last}, "job_completed"),
        "without a state": ({"b": last}, "job_completed"),
        "no status": (flow("all") | {"a": {"member": {"n": 0}}, "b": first}, None),
        "ended": (flow("last", status="failed") | {"b": last}, None),
    }
    for name, (states, type) in ends.items():
        ending = end_of(states, "w")
        assert (ending and ending.type) == type, name


def test_the_error_of_a_workflow_names_the_member_that_failed_first() -> None:
    states = flow("all") | {
        "b": member(1, "failed", at="group 2/2"),
        "a": {**member(0, "failed", at="group 1/2"), "name": "app.add", "error": {"type": "E"}},
    }
    ending = end_of(states, "w")
    assert ending is not None
    assert ending.error == {"type": "E", "where": "group 1/2 · app.add", "key": "a"}


def test_a_state_of_the_applications_own_is_left_alone() -> None:
    states = {"w": {"status": "running"}, "a": member(0, "completed")}
    assert progress_of(states, "w", "now") is None


def test_only_the_oldest_of_many_tallies_are_united() -> None:
    states = {f"~{n}": {"tally": {}, "sent_at": f"{n:03}"} for n in range(2 * KEPT_TALLIES + 1)}
    assert tallies_to_unite(states, "~own") == [f"~{n}" for n in range(KEPT_TALLIES + 1)]
    states.pop("~0")
    assert tallies_to_unite(states, "~own") == []


def test_a_key_that_its_process_has_not_counted_is_counted_later() -> None:
    states = flow("all", 300) | {
        "a": {**member(0, "completed"), "ended_at": "1970-01-01T00:00:00.000Z"},
        "b": {**member(1, "failed"), "ended_at": "1970-01-01T00:00:00.000Z"},
    }
    assert uncounted(states, "w", 1000, 9_000) == []
    assert [found[2] for found in uncounted(states, "w", 1000, 11_000)] == ["a"]
    assert uncounted(flow("all", 3) | {"a": states["a"]}, "w", 1000, 11_000) == []
