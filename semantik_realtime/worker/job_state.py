"""The state of one attempt of a job: values in, a state to send out. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.clock import time_text
from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE
from semantik_realtime.core.rate import Rate
from semantik_realtime.worker.values import clean_line, clean_number, clean_text

ESSENTIAL = (
    *("status", "attempt", "queued_at", "eta", "started_at", "ended_at", "worker"),
    *("member", "workflow"),
)
"""What is left of a state that is too big for an event, beside the type of its error."""

_OF_RUNNING = frozenset({"rate", "inner"})
"""Members of ``progress`` that a job has only while it runs."""


class JobState:
    """The members of a job's state, and a number that grows when one changes.

    Not thread-safe: `semantik_realtime.worker.job.Job` holds its lock around each call.

    Args:
        attempt: the attempt's number; 0 while the job is queued, None if it is not known.
        name: the task's name.
        queued_at: when the task was published.
        due_at: before which no worker begins it, in seconds since 1970.
        known: members that another process has sent already; they replace the others.
    """

    def __init__(
        self,
        attempt: int | None,
        name: str | None = None,
        queued_at: str | None = None,
        known: Mapping[str, Any] | None = None,
        *,
        due_at: float | None = None,
    ) -> None:
        self.members: dict[str, Any] = {"status": "queued"}
        """The whole state, as events have it. Only this object's methods change it."""
        if attempt is not None:
            self.members["attempt"] = attempt
        if name is not None:
            self.members["name"] = name if name.isascii() else clean_text(name)
        if queued_at is not None:
            self.members["queued_at"] = queued_at
        if due_at is not None:
            self.members["eta"] = time_text(due_at)
        self.members.update(known or {})
        self.version = 0
        """How many changes `set_progress`, `set_inner`, `set_message` and `set_fields` have
        made."""
        self.inner: list[dict[str, Any]] = []
        """The bars inside the progress. Set by `set_inner`."""
        # The member ``progress`` without them.
        self._progress: dict[str, Any] = {}
        # Made by the first progress.
        self._rate: Rate | None = None
        # The members of ``fields``, each as JSON. Encoded when they are set: a list may
        # change afterwards, and a bad value must not spoil later events.
        self._fields: dict[str, bytes] = {}

    def cancel(self) -> None:
        """Somebody has requested that the attempt is cancelled, which has not ended yet."""
        self._set("status", STATUS_OF_TYPE["job_cancelling"])

    def set_attempt(self, number: int) -> None:
        """The attempt has the number ``number``."""
        self.members["attempt"] = number

    def start(self, time: str, worker: str) -> None:
        """The attempt started at ``time``, in the process whose lease is ``worker``'s."""
        self.members.update(status="running", started_at=time, worker=worker)
        self.members.pop("eta", None)

    def end(
        self,
        type: str,
        time: str,
        error: Mapping[str, str] | None,
        message: str | None,
        due_at: float | None = None,
    ) -> None:
        """The attempt ended at ``time``. ``job_retrying`` ends the attempt but not the job."""
        self.members["status"] = STATUS_OF_TYPE[type]
        if due_at is not None:
            self.members["eta"] = time_text(due_at)
        progress = self.members.get("progress")
        if progress is not None and isinstance(progress, Mapping):
            # What runs no more has no rate and no loops.
            self.members["progress"] = {
                name: value for name, value in progress.items() if name not in _OF_RUNNING
            }
        if type in END_TYPES:
            self.members["ended_at"] = time
            self.members.pop("eta", None)
        if error is not None:
            self.members["error"] = error
        if message is not None:
            self.members["message"] = message

    def set_progress(self, current: Any, total: Any, unit: Any, now: float) -> None:
        """Replace the progress; ``total`` and ``unit`` may be None. ``now``: monotonic seconds.

        Raises:
            TypeError, ValueError, OverflowError: a value is not fit; nothing has changed.
        """
        progress: dict[str, Any] = {
            "current": clean_number(current),
            "total": None if total is None else clean_number(total),
        }
        if unit:
            progress["unit"] = clean_line(unit)
        if progress == {name: self._progress[name] for name in self._progress if name != "rate"}:
            return
        if self._rate is None or progress.get("unit") != self._progress.get("unit"):
            self._rate = Rate()
        rate = self._rate.add(progress["current"], now)
        if rate is not None:
            progress["rate"] = rate
        self._progress = progress
        self._set_progress()

    def set_inner(self, bars: list[dict[str, Any]]) -> None:
        """Replace the bars inside the progress."""
        if bars != self.inner:
            self.inner = bars
            self._set_progress()

    def _set_progress(self) -> None:
        self._set("progress", self._progress | ({"inner": self.inner} if self.inner else {}))

    def set_message(self, text: Any) -> None:
        """Replace the message.

        Raises:
            TypeError: ``text`` is not text; nothing has changed.
        """
        self._set("message", clean_line(text))

    def set_fields(self, encoded: Mapping[str, bytes], max_bytes: int) -> bool:
        """Set members of ``fields``; the others stay. Return True if that changed the state.

        Raises:
            ValueError: names and values together exceed ``max_bytes``; nothing has changed.
        """
        merged = {**self._fields, **encoded}
        if merged == self._fields:
            return False
        size = sum(len(name) + len(value) for name, value in merged.items())
        if size > max_bytes:
            raise ValueError(f"{size} bytes, the limit is {max_bytes}")
        self._fields = merged
        self._set("fields", {name: msgspec.Raw(value) for name, value in merged.items()})
        return True

    def shrink(self) -> None:
        """Keep only what a watcher must know: `ESSENTIAL`, and the type of the error."""
        error = self.members.get("error")
        self.members = {name: self.members[name] for name in ESSENTIAL if name in self.members}
        if error is not None:
            self.members["error"] = {"type": error["type"], "message": ""}

    def _set(self, name: str, value: Any) -> None:
        if value != self.members.get(name):
            self.members[name] = value
            self.version += 1
