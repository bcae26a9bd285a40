"""What a run of ``semantik-realtime verify`` proves: records of watchers, judged. No I/O."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

STEP = "verify_step"
"""Type of the numbered events that a run publishes."""
MAX_END_SECONDS = 30.0
"""Longest time from the publishing of the end to a watcher that knows it; a reconnect is in it."""


class Record:
    """What one watcher was shown, in the order in which it was shown it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.applied: list[tuple[int, int]] = []
        """Offset and number of each `STEP`."""
        self.covered: list[tuple[int, int, str]] = []
        """What came in place of events: the offsets that it is after and up to, and the reason."""
        self.first_offset: int | None = None
        """That of the first snapshot; None: there was none."""
        self.delays: list[float] = []
        """Seconds from the publishing of each event to the watcher, those of replays too."""
        self.faults = 0
        """How often its connection was cut, stopped, or lost a response."""
        self.degraded = 0
        """How often the server said that its backend was away."""
        self.end_delay: float | None = None
        """Seconds from the publishing of the end; None: it never came."""
        self.state: Mapping[str, Any] | None = None
        """The job's state after the end."""
        self._offset = 0

    def sync(self, offset: int, reason: str | None) -> None:
        """Note a snapshot up to ``offset``."""
        if self.first_offset is None:
            self.first_offset = offset
        elif offset > self._offset:
            self.covered.append((self._offset, offset, reason or "no reason"))
        self._offset = max(self._offset, offset)

    def gap(self, offset: int, reason: str) -> None:
        """Note that events up to ``offset`` were left out, and that the server reported it."""
        self.covered.append((self._offset, offset, reason))

    def event(self, event: Mapping[str, Any], delay: float) -> None:
        """Note an event that was applied, ``delay`` seconds after it was published."""
        if event.get("type") == STEP:
            self.applied.append((int(event["offset"]), int(event["data"]["n"])))
            self.delays.append(delay)
        self._offset = max(self._offset, int(event["offset"]))


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    subject: str
    """``G1`` to ``G7``, or what else was looked at."""
    is_right: bool | None
    """None: the run could not show it."""
    text: str


class Run(msgspec.Struct, frozen=True):
    """What was published, and everything that was observed."""

    offsets: Mapping[int, int]
    """The offset of each number, as the backend acknowledged it."""
    last: int
    """The number of the last event; the end has it as its progress."""
    records: Sequence[Record]
    acknowledged: Sequence[float]
    """Seconds that each event needed from `publish` to its receipt."""
    foreign: str | None
    """How the server refused another user's job; None: it did not."""
    anonymous: str | None
    """How it refused a client without a credential; None: it did not."""
    rest: Mapping[str, Any] | None
    """The job's state as the server's REST interface has it after the end."""


def judge(run: Run) -> list[Finding]:
    """Compare what was published with what each watcher saw.

    >>> record = Record("steady")
    >>> record.sync(0, "new")
    >>> record.event({"type": STEP, "offset": 1, "data": {"n": 1}}, 0.002)
    >>> record.event({"type": STEP, "offset": 1, "data": {"n": 1}}, 0.004)
    >>> run = Run({1: 1, 2: 2}, 2, [record], [0.001], "denied", "denied", None)
    >>> [(one.subject, one.is_right) for one in judge(run)][:4]
    [('G1 order', True), ('G2 once', False), ('G3 no silent gap', False), ('G4 the end', False)]
    """
    return [
        _order(run),
        _once(run),
        _gaps(run),
        _end(run),
        _outage(run),
        Finding(
            "G6 no harm",
            None,
            "of your tasks: not visible from here; the time to an acknowledgement was "
            f"{_times(run.acknowledged)}",
        ),
        _refusals(run),
        _states(run),
    ]


def _order(run: Run) -> Finding:
    wrong = [
        record.name
        for record in run.records
        if any(later <= earlier for earlier, later in _pairs(record.applied))
    ]
    seen = sum(len(record.applied) for record in run.records)
    text = _at(wrong, "an event came after a later one") or f"{seen:,} events, each after the last"
    return Finding("G1 order", not wrong, text)


def _once(run: Run) -> Finding:
    repeated = {
        record.name: len(record.applied) - len(set(record.applied)) for record in run.records
    }
    wrong = [name for name, count in repeated.items() if count]
    text = _at(wrong, f"{sum(repeated.values()):,} events came twice") or "no event came twice"
    return Finding("G2 once", not wrong, text)


def _gaps(run: Run) -> Finding:
    missing: dict[str, int] = {}
    reasons: list[str] = []
    for record in run.records:
        seen = {number for _, number in record.applied}
        for number, offset in run.offsets.items():
            if number in seen or (
                record.first_offset is not None and offset <= record.first_offset
            ):
                continue
            reason = next(
                (reason for after, to, reason in record.covered if after < offset <= to), None
            )
            if reason is None:
                missing[record.name] = missing.get(record.name, 0) + 1
            else:
                reasons.append(reason)
    if missing:
        text = _at(missing, f"{sum(missing.values()):,} events are missing without a reason")
        return Finding("G3 no silent gap", False, text)
    faults = sum(record.faults for record in run.records)
    text = f"none after {faults:,} faults of connections"
    if reasons:
        named = ", ".join(sorted(set(reasons)))
        text += f"; {len(reasons):,} events were left out and reported ({named})"
    return Finding("G3 no silent gap", True, text)


def _end(run: Run) -> Finding:
    late = [
        record.name
        for record in run.records
        if record.end_delay is None or record.end_delay > MAX_END_SECONDS
    ]
    text = _at(late, f"the end did not come within {MAX_END_SECONDS:.0f} s")
    if not late:
        longest = max((record.end_delay or 0.0 for record in run.records), default=0.0)
        text = f"came to {len(run.records)} watchers, to the last after {longest:.2f} s"
    return Finding("G4 the end", not late, text)


def _outage(run: Run) -> Finding:
    degraded = sum(record.degraded for record in run.records)
    waiting = run.last - len(run.offsets)
    if not degraded and not waiting:
        return Finding("G5 honest outage", None, "the backend was not away during the run")
    text = (
        f"the server reported it {degraded} times; {waiting} events were not acknowledged at once"
    )
    return Finding("G5 honest outage", bool(degraded) or not waiting, text)


def _refusals(run: Run) -> Finding:
    shown = {"another user's job": run.foreign, "a job without a credential": run.anonymous}
    wrong = [name for name, refusal in shown.items() if refusal is None]
    if wrong:
        return Finding("G7 no silence", False, f"the server shows {' and '.join(wrong)}")
    text = "; ".join(f"{name}: {refusal}" for name, refusal in shown.items())
    return Finding("G7 no silence", True, text)


def _states(run: Run) -> Finding:
    states = {record.name: record.state for record in run.records}
    states["REST"] = run.rest
    wrong = [name for name, state in states.items() if not _is_final(state, run.last)]
    text = _at(wrong, "the state is not that of the end") or "all watchers have that of the end"
    return Finding("states at rest", not wrong, text)


def _is_final(state: Mapping[str, Any] | None, last: int) -> bool:
    if state is None or state.get("status") != "completed":
        return False
    progress = state.get("progress")
    return isinstance(progress, Mapping) and progress.get("current") == last


def delays(records: Iterable[Record]) -> str:
    """Return the median and the 99th percentile of the delays of all events, as a text."""
    return _times([delay for record in records for delay in record.delays])


def _times(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "not measured"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{statistics.median(seconds) * 1000:.1f} ms (p99 {cuts[98] * 1000:.0f} ms)"


def _pairs(applied: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Return neighbours that are not the same event: that is a fault of its own."""
    return ((earlier, later) for earlier, later in itertools.pairwise(applied) if earlier != later)


def _at(names: Iterable[str], text: str) -> str:
    listed = ", ".join(names)
    return f"{text} ({listed})" if listed else ""
