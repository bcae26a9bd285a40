"""Which place each task of a canvas has, and what does not run if it does not succeed."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chain, chord, chunks, group
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.errors import InvalidInput
from semantik_realtime.worker.canvas import (
    MAX_RUNS,
    WEIGHT,
    Plan,
    is_canvas,
    plan_canvas,
)

app = Celery("canvas", set_as_current=False)


@app.task
def add(*numbers: Any) -> None:
    pass


def plan(canvas: Any) -> Plan:
    made = plan_canvas(canvas)
    made.place({"realtime_owner": "7"}, "place")
    return made


def places(planned: Any) -> list[dict[str, Any]]:
    """Return the places in the order of their numbers."""
    found: list[dict[str, Any]] = []

    def walk(node: Any) -> None:
        kind, kwargs = node.get("subtask_type"), node["kwargs"]
        if kind == "chord":
            header = kwargs["header"]
            inner = header["kwargs"]["tasks"] if isinstance(header, dict) else header
            for each in [*inner, kwargs["body"]]:
                walk(each)
        elif kind in ("chain", "group"):
            for each in kwargs["tasks"]:
                walk(each)
        else:
            assert node["options"]["headers"]["realtime_owner"] == "7"
            found.append(node["options"]["headers"]["place"])

    walk(planned.canvas)
    return found


def test_a_chain() -> None:
    planned = plan(chain(add.s(1), add.s(2), add.s(3)))
    assert (len(planned.leaves), planned.ends, planned.name) == (3, "last", "chain of 3 tasks")
    assert places(planned) == [
        {"n": 0, "total": 3, "at": "step 1/3", "skips": [[1, 3]]},
        {"n": 1, "total": 3, "at": "step 2/3", "skips": [[2, 3]]},
        {"n": 2, "total": 3, "at": "step 3/3", "ends": True},
    ]


def test_a_group_ends_with_all_of_its_members() -> None:
    planned = plan(group(add.s(n) for n in range(2)))
    assert planned.ends == "all"
    assert places(planned) == [
        {"n": 0, "total": 2, "at": "group 1/2"},
        {"n": 1, "total": 2, "at": "group 2/2"},
    ]


def test_a_chord_in_a_chain_in_a_group() -> None:
    inner = chain(add.s(1), chord([add.s(2), add.s(3)], add.s(4)), add.s(5))
    planned = plan(group(inner, add.s(6)))
    assert planned.ends == "all"
    # Celery makes the step after the chord a part of its body.
    assert [place.get("skips", []) for place in places(planned)] == [
        [[1, 5]],
        [[3, 5]],
        [[3, 5]],
        [[4, 5]],
        [],
        [],
    ]


def test_chunks_are_the_group_that_they_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semantik_realtime.worker.canvas.MAPS_KEEP_OPTIONS", True)
    planned = plan(chunks(add, [(1,), (2,), (3,)], 2))
    assert len(planned.leaves) == 2
    assert [place["at"] for place in places(planned)] == ["group 1/2", "group 2/2"]


def test_only_a_canvas_is_one() -> None:
    assert is_canvas(group(add.s(1)))
    assert is_canvas(chain(add.s(1), add.s(2)))
    assert not is_canvas(add)
    assert not is_canvas(add.s(1))
    assert not is_canvas(add.map([1]))


def test_the_canvas_itself_is_not_changed() -> None:
    same = add.s(1)
    canvas = group([same, same, add.s(2).set(headers={"x": 1})])
    planned = plan(canvas)
    assert [place["n"] for place in places(planned)] == [0, 1, 2]
    assert "headers" not in same.options
    assert canvas.tasks[2].options["headers"] == {"x": 1}


def test_a_map_is_refused_if_celery_drops_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semantik_realtime.worker.canvas.MAPS_KEEP_OPTIONS", False)
    with pytest.raises(InvalidInput, match="use a group"):
        plan(group(add.map([1, 2]), add.s(1)))


def test_a_member_is_mirrored_whatever_its_option_says() -> None:
    silent = add.s(1).set(headers={"realtime": False})
    chosen = add.s(1).set(headers={"realtime": {"logs": "off"}})
    first, second = plan(chain(silent, chosen)).canvas.tasks
    assert first.options["headers"]["realtime"] is True
    assert second.options["headers"]["realtime"] == {"logs": "off"}


def test_weights_are_runs() -> None:
    heavy = add.s(1).set(headers={WEIGHT: 2.5})
    assert plan(chain(add.s(1), heavy, heavy, add.s(1))).weights == [(1, 1), (2, 2.5), (1, 1)]
    assert plan(chain(add.s(1), add.s(1))).weights == []
    many = [add.s(1).set(headers={WEIGHT: n}) for n in range(MAX_RUNS + 1)]
    assert plan(group(many)).weights == []
    with pytest.raises(InvalidInput, match="realtime_weight"):
        plan(group(add.s(1).set(headers={WEIGHT: "much"})))


def test_a_canvas_without_tasks_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 to 100000 tasks, not 0"):
        plan(group([]))


canvases: st.SearchStrategy[Any] = st.recursive(
    st.builds(lambda: add.s(1)),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(chain)
        | st.lists(inner, min_size=2, max_size=3).map(group)
        | st.tuples(st.lists(inner, min_size=1, max_size=2), inner).map(lambda pair: chord(*pair))
    ),
    max_leaves=8,
).filter(is_canvas)


@given(canvases)
def test_every_canvas_can_end(canvas: Any) -> None:
    planned = plan(canvas)
    found = places(planned)
    assert [place["n"] for place in found] == list(range(len(planned.leaves)))
    assert sum(place.get("ends", False) for place in found) == (planned.ends == "last")
    for place in found:
        # What is skipped comes later, and with one end every failure skips it.
        assert all(
            place["n"] < first < end <= len(planned.leaves) for first, end in place.get("skips", [])
        )
        if planned.ends == "last" and not place.get("ends"):
            assert place["skips"][-1][1] == len(planned.leaves)


def test_headers_of_a_canvas_do_not_replace_those_of_its_members() -> None:
    inner = group(add.s(2), add.s(3)).set(headers={"inner": 1})
    canvas = chain(add.s(1), inner).set(headers={"outer": 1})
    planned = plan(canvas)
    made = [leaf.headers for leaf in planned.leaves]
    # Celery passes on those of a chain to its first step alone.
    assert [(h.get("outer"), h.get("inner")) for h in made] == [(1, None), (None, 1), (None, 1)]
    assert "headers" not in planned.canvas.options
    assert "headers" not in planned.canvas.tasks[1].options
    assert canvas.options["headers"] == {"outer": 1}
