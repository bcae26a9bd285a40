"""How many events of each topic were dropped, and the events that report it in the topic's log."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Draft
from semantik_realtime.core.lifecycle import EVENTS_DROPPED, PROGRESS
from semantik_realtime.core.topic import split_topic, user_topic

MAX_TOPICS = 1000
"""Topics whose dropped events are counted; those of further topics are only in the metrics."""

Counts = dict[tuple[str, str | None], int]
"""Dropped events by topic and owner."""


class DroppedEvents:
    """Counts the dropped events of each topic until `reports` returns them.

    Progress is not counted: a later state has replaced it.
    """

    def __init__(self) -> None:
        # Filled by the emitter's threads, which hold the queue's lock.
        self._by_threads: Counts = {}
        # Filled by threads that emit. They take no lock (see `Queue`), so two of them that drop at
        # the same moment may count one event too few.
        self._by_callers: Counts = {}
        # Events that the backend's server has refused, by the topic that it refuses.
        self._refused: Counts = {}

    def __bool__(self) -> bool:
        return bool(self._by_threads or self._by_callers or self._refused)

    def add(self, draft: Draft) -> None:
        """Count a draft that the spool has dropped. The caller holds the queue's lock."""
        _count(self._by_threads, draft)

    def add_unlocked(self, draft: Draft) -> None:
        """Count a draft that was not admitted to the queue."""
        _count(self._by_callers, draft)

    def add_refused(self, draft: Draft) -> None:
        """Count a draft that the server has refused for its topic: its owner's feed reports it."""
        if draft.owner is not None and draft.topic != user_topic(draft.owner):
            _count(self._refused, draft)

    def reports(self, limit: int) -> list[Draft]:
        """Return an event `EVENTS_DROPPED` for each of ``limit`` topics, which are then forgotten.

        It is for the topic itself, or, of one that the server refuses, for its owner's feed. The
        fence does not apply to it: it is appended after the end of a job too.
        """
        by_callers, self._by_callers = self._by_callers, {}
        for place, count in by_callers.items():
            self._by_threads[place] = self._by_threads.get(place, 0) + count
        reports: list[Draft] = []
        for topic, owner in list(self._by_threads)[:limit]:
            count = self._by_threads.pop((topic, owner))
            reports += make_drafts(
                {topic: owner},
                EVENTS_DROPPED,
                now_text(),
                split_topic(topic)[1],
                data={"count": count},
            )
        for topic, owner in list(self._refused)[: limit - len(reports)]:
            count = self._refused.pop((topic, owner))
            assert owner is not None
            reports += make_drafts(
                {user_topic(owner): owner},
                EVENTS_DROPPED,
                now_text(),
                split_topic(topic)[1],
                data={"count": count, "topic": topic},
            )
        return reports


def _count(counts: Counts, draft: Draft) -> None:
    if draft.type == PROGRESS:
        return
    place = draft.topic, draft.owner
    # Dropping a report would lose what it reports.
    count = _reported(draft) if draft.type == EVENTS_DROPPED else 1
    if place in counts or len(counts) < MAX_TOPICS:
        counts[place] = counts.get(place, 0) + count


def _reported(draft: Draft) -> int:
    data: Mapping[str, int] = msgspec.json.decode(draft.body)["data"]
    return data["count"]
