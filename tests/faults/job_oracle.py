"""Whether a job ended right, by its log, by what its tasks wrote down, and by what was killed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from semantik_realtime.core.lifecycle import END_TYPES

STATUSES = {
    "early": {"completed", "failed", "lost"},
    "late": {"completed"},
    "failing": {"failed", "lost"},
    "retrying": {"completed", "failed", "lost"},
    "suicidal": {"failed", "lost"},
}
"""How each task of `killed_app` may end, if a worker begins it."""
OWN_ERRORS = {"failing": {"ValueError"}, "retrying": {"ValueError"}}
"""Errors that a task raises itself."""
ERRORS_OF_KILLS = {"WorkerLostError", "Lost"}
NEVER_BEGUN, NOT_BEGUN_AGAIN = "never begun", "not begun again"
BEGUN_UNSEEN = "begun unseen"


class Note(NamedTuple):
    """A line of the record: what a task has done, in which process, on the monotonic clock."""

    what: str
    pid: int
    at: float
    parent: int = 0
    """The main process of the worker."""


class Story(msgspec.Struct):
    """All that is known of one job."""

    task: str
    events: Sequence[dict[str, Any]]
    """Its log."""
    notes: Sequence[Note] = ()
    """What its tasks wrote down."""
    is_in_broker: bool = False
    """Whether the broker still has a message of it."""

    @property
    def begins(self) -> list[Note]:
        return [note for note in self.notes if note.what == "begin"]

    def end_of(self, begin: Note) -> Note | None:
        """Return the note of the end of what began there; None: it did not finish."""
        after = self.notes[self.notes.index(begin) + 1 :]
        return next((one for one in after if (one.what, one.pid) == ("end", begin.pid)), None)


def read_record(path: Path) -> dict[str, list[Note]]:
    """Return what the tasks wrote down, by job."""
    notes: dict[str, list[Note]] = defaultdict(list)
    for line in path.read_text().splitlines():
        what, job, pid, parent, at = line.split()
        notes[job].append(Note(what, int(pid), float(at), int(parent)))
    return notes


def left_by_broker(story: Story, killed: set[int], *, loses_messages: bool) -> str | None:
    """Return how a job was left that no worker began, or began again; None: it was not.

    A message is gone if its worker is killed after the broker gave it away and before anything is
    known of it: with an early acknowledgement with every broker, and over Redis always, where
    Celery's worker takes a message before it notes that it has it. And a task may begin, or even
    end, and its process be killed before it could send or store an event: mostly while the backend
    is away, for a moment.
    """
    last = story.events[-1]
    if last["state"]["status"] != "lost" or story.is_in_broker:
        return None
    is_queued = last.get("data", {}).get("reason") == "queued"
    has_begun = bool(story.notes) or any(one["type"] == "job_started" for one in story.events)
    can_be_lost = loses_messages or story.task != "late"
    if is_queued and not has_begun and can_be_lost:
        return NEVER_BEGUN
    has_shown = any(one["type"] == "job_started" for one in story.events)
    was_killed = all(one.pid in killed for one in story.notes)
    is_gone = can_be_lost or any(one.what == "end" for one in story.notes)
    if is_queued and story.notes and not has_shown and was_killed and is_gone:
        return BEGUN_UNSEEN
    is_retry = len(story.events) > 1 and story.events[-2]["type"] == "job_retrying"
    if is_queued and is_retry and can_be_lost:
        return NOT_BEGUN_AGAIN
    if story.task == "late" and loses_messages and not is_queued:
        return NOT_BEGUN_AGAIN if all(one.pid in killed for one in story.begins) else None
    return None


def faults_of(story: Story, killed: set[int], *, loses_messages: bool) -> Iterator[str]:
    """Yield what is wrong with the end of a job.

    Args:
        story: the job.
        killed: the processes that did not end by themselves.
        loses_messages: whether the broker is one that may lose a message with its worker.
    """
    yield from _faults_of_log(story.events)
    if not story.events or story.events[-1]["type"] not in END_TYPES:
        yield "no end"
        return
    state = story.events[-1]["state"]
    status = state["status"]
    was_killed = story.task == "suicidal" or any(note.pid in killed for note in story.notes)
    left = left_by_broker(story, killed, loses_messages=loses_messages)
    if left is None and status not in STATUSES[story.task]:
        yield f"{story.task} is {status}"
    if status == "lost" and story.is_in_broker:
        yield "lost although its message waits"
    is_queued = story.events[-1].get("data", {}).get("reason") == "queued"
    if status == "lost" and is_queued and left is None:
        yield "lost as queued although it had begun"
    if status == "completed" and not any(note.what == "end" for note in story.notes):
        yield "completed without its work"
    if status in ("lost", "failed"):
        error = (state.get("error") or {}).get("type")
        if error not in ERRORS_OF_KILLS | OWN_ERRORS.get(story.task, set()):
            yield f"{status} by {error}"
        if error in ERRORS_OF_KILLS and left is None and story.notes and not was_killed:
            yield f"{status} although nothing of it was killed"
    unfinished = [one for one in story.begins if story.end_of(one) is None]
    for begin in unfinished:
        if begin.pid not in killed:
            yield f"process {begin.pid} stopped in the middle, and was not killed"


def _faults_of_log(events: Sequence[dict[str, Any]]) -> Iterator[str]:
    attempts = [event["state"]["attempt"] for event in events if "state" in event]
    if attempts != sorted(attempts):
        yield "an older attempt after a newer one"
    ended: set[int] = set()
    started: set[int] = set()
    for event in events:
        attempt = event["state"]["attempt"]
        if attempt in ended:
            yield f"{event['type']} after the end of attempt {attempt}"
        if event["type"] == "job_started":
            if attempt in started:
                yield f"attempt {attempt} started twice"
            started.add(attempt)
        if event["type"] in END_TYPES:
            ended.add(attempt)


def surplus_runs(story: Story, killed: set[int]) -> int:
    """Return how often the task ran again although its process lived: the broker delivered twice.

    A retry runs three times.
    """
    lived = sum(one.pid not in killed and story.end_of(one) is not None for one in story.begins)
    return max(0, lived - (3 if story.task == "retrying" else 1))
