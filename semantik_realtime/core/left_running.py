"""Which attempts an ended process has left running, by the drafts that it could not send. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Draft, Event
from semantik_realtime.core.leases import HeldJob
from semantik_realtime.core.lifecycle import ATTEMPT_ENDS
from semantik_realtime.core.topic import job_topic, split_topic, user_topic

_BEGIN = "job_started"


class LeftRunning:
    """Collects them from the drafts of one process, in the order of their numbers.

    Only attempts whose ``job_started`` is among the drafts count: an attempt that the backend knew
    was held by its process before.
    """

    def __init__(self) -> None:
        # By job: the process's name, the attempt, and what a server must know to end it.
        self._found: dict[str, tuple[str, int, HeldJob]] = {}

    def add(self, drafts: Iterable[Draft]) -> None:
        """Note the attempts that begin and end in ``drafts``, which follow those before."""
        for draft in drafts:
            if draft.job is None or draft.attempt is None:
                continue
            if draft.type == _BEGIN:
                self._begin(draft, draft.job, draft.attempt)
            elif draft.type in ATTEMPT_ENDS:
                known = self._found.get(draft.job)
                if known is not None and draft.attempt >= known[1]:
                    del self._found[draft.job]

    def records(self) -> dict[str, dict[str, bytes]]:
        """Return the record of each attempt that has not ended, by the process's name and job."""
        records: dict[str, dict[str, bytes]] = {}
        for job, (worker, _, held) in self._found.items():
            records.setdefault(worker, {})[job] = held.encode()
        return records

    def _begin(self, draft: Draft, job: str, attempt: int) -> None:
        known = self._found.get(job)
        if known is not None and known[1] == attempt:
            # The same event for a further topic.
            held = known[2]
            feed = None if held.owner is None else user_topic(held.owner)
            if draft.topic not in (feed, _own_topic(held, job), *held.topics):
                topics = [*held.topics, draft.topic]
                self._found[job] = *known[:2], msgspec.structs.replace(held, topics=topics)
            return
        state = _state_of(draft)
        worker = state.get("worker")
        if not isinstance(worker, str) or not worker:
            return
        is_member = draft.topic != job_topic(job)
        self._found[job] = (
            worker,
            attempt,
            HeldJob(
                name=_text(state, "name"),
                owner=draft.owner,
                queued_at=_text(state, "queued_at"),
                expected=attempt,
                workflow=split_topic(draft.topic)[1] if is_member else None,
            ),
        )


def _own_topic(held: HeldJob, job: str) -> str:
    return job_topic(held.workflow or job)


def _state_of(draft: Draft) -> Mapping[str, Any]:
    try:
        state = Event(0, 0, draft.body).head().state
        decoded = msgspec.json.decode(state) if isinstance(state, msgspec.Raw) else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return decoded if isinstance(decoded, Mapping) else {}


def _text(state: Mapping[str, Any], name: str) -> str | None:
    value = state.get(name)
    return value if isinstance(value, str) else None


def parts_of(records: Mapping[str, bytes], size: int) -> Sequence[dict[str, bytes]]:
    """Return ``records`` in parts of at most ``size``.

    >>> parts_of({"a": b"", "b": b"", "c": b""}, 2)
    [{'a': b'', 'b': b''}, {'c': b''}]
    """
    items = list(records.items())
    return [dict(items[start : start + size]) for start in range(0, len(items), size)]
