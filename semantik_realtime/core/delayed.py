"""The states of drafts that an outage delays, shown until the backend is back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec

from semantik_realtime.core.event import Draft, Event, StateChange
from semantik_realtime.core.fence import AttemptState, Refusal, check_fence
from semantik_realtime.core.ownership import OwnerChange, check_owner

ENTRY_BYTES = 200
"""About how many bytes a topic, a key or a job takes beside its name and its state."""


class DelayedStates:
    """The last delayed state of each key of each topic, bounded in bytes.

    The fence orders the drafts of a job as a log does: a draft of an outdated
    attempt does not replace the state of a newer one. A topic has one owner, as
    in a log. Above the bound the
    topic that has been quiet for longest is forgotten; its watchers get its
    state when the backend is back.

    >>> from semantik_realtime.core.drafts import make_drafts
    >>> delayed = DelayedStates(max_bytes=1000)
    >>> delayed.add(make_drafts({"job:1": None}, "note", "", "1", state={"n": 1}))
    {'job:1'}
    >>> delayed.of("job:1")
    {'1': b'{"n":1}'}
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # The topic that changed longest ago comes first.
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._bytes = 0

    def add(self, drafts: Iterable[Draft]) -> set[str]:
        """Add delayed drafts, in order; return the topics whose states changed."""
        changed = set()
        for draft in drafts:
            topic = self._topics.pop(draft.topic, None)
            before = 0 if topic is None else topic.bytes
            topic = self._topics[draft.topic] = topic or _Topic(draft.topic)
            if topic.add(draft):
                changed.add(draft.topic)
            self._bytes += topic.bytes - before
            while self._bytes > self._max_bytes:
                name, forgotten = self._topics.popitem(last=False)
                self._bytes -= forgotten.bytes
                changed.discard(name)
        return changed

    def of(self, topic: str, owner: str | None = None) -> Mapping[str, bytes]:
        """Return the delayed states of ``topic``, as JSON; none if ``owner``, to whom it belongs in
        the log, is another than theirs.
        """
        known = self._topics.get(topic)
        if known is None or (owner is not None and known.owner not in (None, owner)):
            return {}
        return dict(known.states)

    def owner_of(self, topic: str) -> str | None:
        """Return the owner of the delayed drafts of ``topic``; None: they have none."""
        known = self._topics.get(topic)
        return None if known is None else known.owner

    def clear(self) -> None:
        """Forget everything: the backend has acknowledged it."""
        self._topics.clear()
        self._bytes = 0


class _Topic:
    """What is delayed in one topic."""

    def __init__(self, name: str) -> None:
        self.states: dict[str, bytes] = {}
        """The last state of each key, as JSON."""
        self.owner: str | None = None
        """The owner of the first draft that had one."""
        self.bytes = len(name) + ENTRY_BYTES
        """About how much memory the topic takes."""
        # The newest attempt of each job.
        self._attempts: dict[str, AttemptState] = {}

    def add(self, draft: Draft) -> bool:
        """Add a draft. Return True if a state changed."""
        owner_change = check_owner(self.owner, len(self.states), draft.owner)
        if owner_change is OwnerChange.FOREIGN:
            return False
        if draft.job is not None:
            known = self._attempts.get(draft.job)
            verdict = check_fence(known or AttemptState(), draft.attempt, draft.terminal)
            if isinstance(verdict, Refusal):
                return False
            if known is None:
                self.bytes += len(draft.job) + ENTRY_BYTES
            self._attempts[draft.job] = verdict
        if owner_change is OwnerChange.BEGIN:
            for key in list(self.states):
                self._drop(key)
        self.owner = self.owner or draft.owner
        if draft.change is StateChange.KEEP:
            return False
        self._drop(draft.key)
        if draft.change is StateChange.SET:
            state = Event(0, 0, draft.body).head().state
            assert isinstance(state, msgspec.Raw)
            self.states[draft.key] = bytes(state)
            self.bytes += len(draft.key) + len(state) + ENTRY_BYTES
        return True

    def _drop(self, key: str) -> None:
        was = self.states.pop(key, None)
        if was is not None:
            self.bytes -= len(key) + len(was) + ENTRY_BYTES
