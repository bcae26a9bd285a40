"""The members of a Celery canvas: a number and a place for each, before it is published.

A member is a task that runs: each task of a chain, a group or a chord, nested in any way. Its
place travels as a header of its message (`semantik_realtime.worker.members`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from celery.canvas import Signature, _basemap, chunks

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


class Leaf(msgspec.Struct):
    """A task of a canvas, in a copy of it."""

    signature: Signature
    at: str
    """Where it is: ``step 2/3``."""
    skips: list[Range]
    """The members that do not run if this one does not succeed."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers of its message."""
        return self.signature["options"].get("headers") or {}


class Plan(msgspec.Struct):
    """A copy of a canvas, whose members know their places after `place`."""

    canvas: Signature
    name: str
    """For people: ``chain of 3 tasks``."""
    leaves: list[Leaf]
    """The members, by their numbers."""
    ends: str
    """`LAST` or `ALL`."""
    last: int | None
    """The number of the member that ends it; None: several do."""
    weights: list[tuple[int, int | float]]
    """Runs of equal weights in the order of the numbers; empty if each is 1."""

    def as_state(self) -> dict[str, Any]:
        """Return the member ``workflow`` of the job's state."""
        state: dict[str, Any] = {"total": len(self.leaves), "ends": self.ends}
        if self.weights:
            state["weights"] = [list(run) for run in self.weights]
        return state

    def place(
        self, headers: Mapping[str, Any], member_header: str, *, is_submitted: bool = True
    ) -> None:
        """Give each member ``headers``, and its place in ``member_header``.

        One that is submitted is mirrored whatever the task's option says: a member that nobody
        reports would never end.
        """
        for number, leaf in enumerate(self.leaves):
            place: dict[str, Any] = {"n": number, "total": len(self.leaves)}
            if not is_submitted:
                place["result"] = True
            if leaf.at:
                place["at"] = leaf.at
            if leaf.skips:
                place["skips"] = [list(pair) for pair in leaf.skips]
            if number == self.last:
                place["ends"] = True
            made = {**leaf.headers, **headers, member_header: place}
            if is_submitted and not isinstance(made.get(OPTION), Mapping):
                made[OPTION] = True
            leaf.signature["options"]["headers"] = made


def is_canvas(task: object) -> bool:
    """Return True for a chain, group, chord or chunks; False for a task or a task's signature."""
    if not isinstance(task, Mapping):
        return False
    return task.get("subtask_type") in CONTAINERS or task.get("task") == CHUNKS


def first_task(canvas: Any) -> Mapping[str, Any] | None:
    """Return the first task of a canvas, in the order of its numbers; None if it has none."""
    node = canvas
    while isinstance(node, Mapping) and node.get("subtask_type") in CONTAINERS:
        kwargs = node.get("kwargs") or {}
        parts = kwargs.get("tasks" if node["subtask_type"] != "chord" else "header")
        node = parts if isinstance(parts, Mapping) else next(iter(parts or ()), None)
    return node if isinstance(node, Mapping) else None


def plan_canvas(canvas: Any, headers: Mapping[str, Any] | None = None) -> Plan:
    """Return a copy of ``canvas`` whose tasks are numbered.

    ``headers`` are those of the call that publishes it. In the copy the tasks to which Celery would
    pass them have them, beside their own, and so for the headers of a chain, group or chord in it:
    passed on by Celery they would replace those of the tasks.

    Raises:
        InvalidInput: it has no members, or more than `MAX_MEMBERS`, or one that cannot be
            published with a place (`MAPS_KEEP_OPTIONS`).
    """
    planner = _Planner(getattr(canvas, "app", None))
    root = _plain(canvas)
    tree = planner.walk(root, "", True, dict(headers or {}))
    total = len(planner.leaves)
    if not 0 < total <= MAX_MEMBERS:
        raise InvalidInput(f"a workflow has 1 to {MAX_MEMBERS} tasks, not {total}")
    last = planner.ends[0] if len(planner.ends) == 1 else None
    return Plan(
        canvas=tree,
        name=f"{root['subtask_type']} of {total} task{'s' if total > 1 else ''}",
        leaves=planner.leaves,
        ends=ALL if last is None else LAST,
        last=last,
        weights=planner.weights(),
    )


def copied(signature: Signature) -> Signature:
    """Return a signature of the same class that shares no options with ``signature``.

    The constructors, and Celery's own copies, drop what they do not expect.
    """
    copy: Signature = dict.__new__(type(signature))
    dict.update(copy, signature)
    copy.__dict__.update(vars(signature))
    copy["options"] = dict(signature.get("options") or {})
    copy["kwargs"] = dict(signature.get("kwargs") or {})
    return copy


Headers = Mapping[str, Any]


class _Planner:
    """Copies a canvas, and numbers its tasks in the order of the canvas."""

    def __init__(self, app: Any) -> None:
        # Of a signature that does not know its application: a canvas inside a canvas may lose it.
        self._app = app
        self.leaves: list[Leaf] = []
        self.ends: list[int] = []
        """Numbers of the members after which nothing follows."""

    def walk(self, node: Mapping[str, Any], at: str, is_end: bool, headers: Headers) -> Signature:
        """Number the tasks of ``node``, and return a copy of it.

        Args:
            node: a signature.
            at: where it is.
            is_end: whether nothing follows it.
            headers: what it gets of those that are passed on to it.
        """
        copy = self._copy(node)
        kind, kwargs, options = node.get("subtask_type"), copy["kwargs"], copy["options"]
        headers = {**(options.pop("headers", None) or {}), **headers}
        if kind == "chain":
            kwargs["tasks"] = self._walk_steps(_parts(kwargs["tasks"]), at, is_end, headers)
        elif kind == "group":
            kwargs["tasks"] = self._walk_group(
                _parts(kwargs["tasks"]), "group", at, is_end, headers
            )
        elif kind == "chord":
            self._walk_chord(kwargs, at, is_end, headers)
        else:
            if node.get("task") in MAPS and not MAPS_KEEP_OPTIONS:
                raise InvalidInput(
                    "map, starmap and chunks cannot be part of a workflow with this release of "
                    "Celery, which drops their options: use a group"
                )
            if is_end:
                self.ends.append(len(self.leaves))
            if headers:
                options["headers"] = headers
            self.leaves.append(Leaf(copy, at, []))
        return copy

    def _copy(self, node: Mapping[str, Any]) -> Signature:
        """Return a signature like ``node``, of its class, that shares no options with it."""
        if isinstance(node, Signature):
            signature = node
        else:
            # Of its own: for a group Celery changes them.
            own = {**node, "kwargs": dict(node.get("kwargs") or {})}
            signature = Signature.from_dict(own, app=self._app)
        copy = copied(signature)
        if copy._app is None:
            copy._app = self._app
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
        self, steps: Sequence[Mapping[str, Any]], at: str, is_end: bool, headers: Headers
    ) -> list[Signature]:
        copies, bounds = [], []
        for index, step in enumerate(steps, 1):
            first = len(self.leaves)
            is_last = is_end and index == len(steps)
            step_at = _join(at, f"step {index}/{len(steps)}")
            # Celery passes them on to the first step alone.
            copies.append(self.walk(step, step_at, is_last, headers if index == 1 else {}))
            bounds.append((first, len(self.leaves)))
        for first, end in bounds[:-1]:
            self._skip(first, end, (end, len(self.leaves)))
        return copies

    def _walk_group(
        self,
        tasks: Sequence[Mapping[str, Any]],
        word: str,
        at: str,
        is_end: bool,
        headers: Headers,
    ) -> list[Signature]:
        return [
            self.walk(task, _join(at, f"{word} {index}/{len(tasks)}"), is_end, headers)
            for index, task in enumerate(tasks, 1)
        ]

    def _walk_chord(self, kwargs: dict[str, Any], at: str, is_end: bool, headers: Headers) -> None:
        header, first = kwargs["header"], len(self.leaves)
        if isinstance(header, Mapping) and header.get("subtask_type") == "group":
            # Celery passes on the group's options too.
            group = kwargs["header"] = self._copy(header)
            own = {**(group["options"].pop("headers", None) or {}), **headers}
            tasks = _parts(group["kwargs"]["tasks"])
            group["kwargs"]["tasks"] = self._walk_group(tasks, "header", at, False, own)
        else:
            tasks = [_plain(header)] if isinstance(header, Mapping) else _parts(header)
            kwargs["header"] = self._walk_group(tasks, "header", at, False, headers)
        end = len(self.leaves)
        kwargs["body"] = self.walk(_plain(kwargs["body"]), _join(at, "body"), is_end, headers)
        self._skip(first, end, (end, len(self.leaves)))

    def _skip(self, first: int, end: int, skipped: Range) -> None:
        if skipped[0] == skipped[1]:
            return
        for leaf in self.leaves[first:end]:
            if leaf.skips and leaf.skips[-1][1] == skipped[0]:
                leaf.skips[-1] = (leaf.skips[-1][0], skipped[1])
            else:
                leaf.skips.append(skipped)


def _parts(tasks: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [_plain(task) for task in tasks]


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
