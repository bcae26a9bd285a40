"""The members of a Celery canvas: a number and a place for each, before it is published.

A member is a task that runs: each task of a chain, a group or a chord, nested in any way. Its
place travels as a header of its message (`semantik_realtime.worker.members`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from celery.canvas import Signature, _basemap, chunks, maybe_signature

from semantik_realtime.core.tally import MAX_MEMBERS
from semantik_realtime.core.workflow import ALL, LAST
from semantik_realtime.errors import InvalidInput
from semantik_realtime.worker.selection import OPTION

WEIGHT = "realtime_weight"
"""Header of a signature: the weight of the member, a number from 0; 1 if it has none."""
MAX_RUNS = 1000
"""Runs of equal weights that a workflow's state lists; of more, no member has a weight."""
CONTAINERS = frozenset({"chain", "group", "chord"})
CHUNKS = "celery.chunks"
"""Name of the task that Celery makes a group of when it is applied."""

MAPS = frozenset({"celery.map", "celery.starmap"})
MAPS_KEEP_OPTIONS = "_merge" in _basemap.apply_async.__code__.co_names
"""Whether this release of Celery publishes such a task with the options of its signature, and so
with its headers."""

Range = tuple[int, int]
"""The first number, and the one after the last."""


class Plan(msgspec.Struct):
    """A canvas whose members know their places."""

    canvas: Signature
    name: str
    """For people: ``chain of 3 tasks``."""
    total: int
    ends: str
    """`LAST` or `ALL`."""
    weights: list[tuple[int, int | float]]
    """Runs of equal weights in the order of the numbers; empty if each is 1."""

    def as_state(self) -> dict[str, Any]:
        """Return the member ``workflow`` of the job's state."""
        state: dict[str, Any] = {"total": self.total, "ends": self.ends}
        if self.weights:
            state["weights"] = [list(run) for run in self.weights]
        return state


def is_canvas(task: object) -> bool:
    """Return True for a chain, group, chord or chunks; False for a task or a task's signature."""
    if not isinstance(task, Mapping):
        return False
    return task.get("subtask_type") in CONTAINERS or task.get("task") == CHUNKS


def plan_canvas(canvas: Any, headers: Mapping[str, Any], member_header: str) -> Plan:
    """Return a copy of ``canvas`` in which each member has ``headers``, and its place in
    ``member_header``.

    Raises:
        InvalidInput: it has no members, or more than `MAX_MEMBERS`, or one that cannot be
            published with a place (`MAPS_KEEP_OPTIONS`).
    """
    app = getattr(canvas, "app", None)
    planner = _Planner(app)
    root = _plain(canvas)
    tree = planner.walk(root, "", True)
    total = len(planner.leaves)
    if not 0 < total <= MAX_MEMBERS:
        raise InvalidInput(f"a workflow has 1 to {MAX_MEMBERS} tasks, not {total}")
    ends = LAST if len(planner.ends) == 1 else ALL
    for number, leaf in enumerate(planner.leaves):
        place: dict[str, Any] = {"n": number, "total": total}
        if leaf.at:
            place["at"] = leaf.at
        if leaf.skips:
            place["skips"] = [list(pair) for pair in leaf.skips]
        if ends == LAST and number in planner.ends:
            place["ends"] = True
        own = leaf.signature["options"].get("headers") or {}
        # Whatever the task's option says: a member that nobody reports would never end.
        option = own[OPTION] if isinstance(own.get(OPTION), Mapping) else True
        leaf.signature["options"]["headers"] = {
            **own,
            **headers,
            OPTION: option,
            member_header: place,
        }
    return Plan(
        canvas=maybe_signature(tree, app=app),
        name=f"{root['subtask_type']} of {total} task{'s' if total > 1 else ''}",
        total=total,
        ends=ends,
        weights=planner.weights(),
    )


class _Leaf(msgspec.Struct):
    signature: dict[str, Any]
    at: str
    # The members that do not run if this one does not succeed.
    skips: list[Range]


class _Planner:
    """Copies a canvas as plain dicts, and numbers its tasks in the order of the canvas."""

    def __init__(self, app: Any) -> None:
        # Of a signature that does not know its application: a canvas inside a canvas may lose it.
        self._app = app
        self.leaves: list[_Leaf] = []
        self.ends: set[int] = set()
        """Numbers of the members after which nothing follows."""

    def walk(self, node: Mapping[str, Any], at: str, is_end: bool) -> dict[str, Any]:
        """Number the tasks of ``node``, and return a copy of it."""
        copy = {**node, "options": dict(node.get("options") or {})}
        kind, kwargs = node.get("subtask_type"), node.get("kwargs") or {}
        if kind == "chain":
            steps = [_plain(step) for step in kwargs["tasks"]]
            copy["kwargs"] = {**kwargs, "tasks": self._walk_steps(steps, at, is_end)}
        elif kind == "group":
            tasks = [_plain(task) for task in kwargs["tasks"]]
            copy["kwargs"] = {**kwargs, "tasks": self._walk_group(tasks, "group", at, is_end)}
        elif kind == "chord":
            return self._walk_chord(copy, at, is_end)
        else:
            if node.get("task") in MAPS and not MAPS_KEEP_OPTIONS:
                raise InvalidInput(
                    "map, starmap and chunks cannot be part of a workflow with this release of "
                    "Celery, which drops their options: use a group"
                )
            if is_end:
                self.ends.add(len(self.leaves))
            copy = Signature(copy, app=getattr(node, "_app", None) or self._app)
            self.leaves.append(_Leaf(copy, at, []))
        return copy

    def weights(self) -> list[tuple[int, int | float]]:
        """Return the runs of equal weights; none if all are 1, or there are too many."""
        runs: list[tuple[int, int | float]] = []
        for leaf in self.leaves:
            weight = (leaf.signature["options"].get("headers") or {}).get(WEIGHT, 1)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                raise InvalidInput(f"{WEIGHT} is a number from 0, not {weight!r}")
            if runs and runs[-1][1] == weight:
                runs[-1] = (runs[-1][0] + 1, weight)
            else:
                runs.append((1, weight))
        return [] if len(runs) > MAX_RUNS or {weight for _, weight in runs} == {1} else runs

    def _walk_steps(
        self, steps: Sequence[Mapping[str, Any]], at: str, is_end: bool
    ) -> list[dict[str, Any]]:
        copies, bounds = [], []
        for index, step in enumerate(steps, 1):
            first = len(self.leaves)
            is_last = is_end and index == len(steps)
            copies.append(self.walk(step, _join(at, f"step {index}/{len(steps)}"), is_last))
            bounds.append((first, len(self.leaves)))
        for first, end in bounds[:-1]:
            self._skip(first, end, (end, len(self.leaves)))
        return copies

    def _walk_group(
        self, tasks: Sequence[Mapping[str, Any]], word: str, at: str, is_end: bool
    ) -> list[dict[str, Any]]:
        return [
            self.walk(task, _join(at, f"{word} {index}/{len(tasks)}"), is_end)
            for index, task in enumerate(tasks, 1)
        ]

    def _walk_chord(self, copy: dict[str, Any], at: str, is_end: bool) -> dict[str, Any]:
        kwargs = copy["kwargs"]
        header, first = kwargs["header"], len(self.leaves)
        if isinstance(header, Mapping):
            header = (
                header["kwargs"]["tasks"] if header.get("subtask_type") == "group" else [header]
            )
        tasks = [_plain(task) for task in header]
        members = self._walk_group(tasks, "header", at, False)
        end = len(self.leaves)
        body = self.walk(_plain(kwargs["body"]), _join(at, "body"), is_end)
        self._skip(first, end, (end, len(self.leaves)))
        copy["kwargs"] = {**kwargs, "header": members, "body": body}
        return copy

    def _skip(self, first: int, end: int, skipped: Range) -> None:
        if skipped[0] == skipped[1]:
            return
        for leaf in self.leaves[first:end]:
            if leaf.skips and leaf.skips[-1][1] == skipped[0]:
                leaf.skips[-1] = (leaf.skips[-1][0], skipped[1])
            else:
                leaf.skips.append(skipped)


def _plain(signature: Any) -> Mapping[str, Any]:
    """Return a part of a canvas as a mapping; of chunks, the group of tasks that they make."""
    if not isinstance(signature, Mapping):
        raise InvalidInput(f"not a signature: {type(signature).__name__}")
    if signature.get("task") == CHUNKS:
        parts = signature["kwargs"]
        made: Mapping[str, Any] = chunks(parts["task"], parts["it"], parts["n"]).group()
        return made
    return signature


def _join(at: str, part: str) -> str:
    return f"{at}, {part}" if at else part
