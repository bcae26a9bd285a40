"""One topic of the backend in memory: its log, its states and its fence."""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

import msgspec

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.fence import AttemptState
from semantik_realtime.core.limits import KEPT_PRODUCERS, MAX_PRODUCERS, PRODUCER_SECONDS


class Job(msgspec.Struct, frozen=True):
    """What the fence of a topic knows of one job."""

    state: AttemptState = AttemptState()
    ended_at: int = 0
    """The offset of its end; 0 while it has not ended."""
    token: str = ""
    """The token of its newest claim."""


class Log:
    """One topic. All under the backend's lock."""

    def __init__(self, retention_events: int) -> None:
        self.epoch = secrets.token_hex(5)
        self.offset = 0
        self.chain = 0
        """At ``offset``."""
        self.owner: str | None = None
        """See `semantik_realtime.core.ownership`."""
        self.retention_events = retention_events
        self.entries: deque[tuple[Event, str, int]] = deque()
        """The events that are kept, oldest first, each with its draft's producer and number."""
        self.states: dict[str, bytes] = {}
        """The last event with a state of each key."""
        self.bytes = 0
        """Of the events in ``entries`` and ``states``."""
        self.jobs: dict[str, Job] = {}
        """The one that changed longest ago comes first."""
        self.numbers: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """The last number of each producer, and when it was appended, on the backend's clock; the
        one that appended longest ago comes first."""
        self.due_at: float | None = None
        """When the topic's own job is to start, in seconds since 1970; None: no draft said so."""
        self.expires_at = 0.0
        """When the topic is forgotten, on the backend's clock."""
        self.deleted = False
        """Whether the topic was deleted and refuses drafts until it expires."""

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.offset, self.chain)

    @property
    def first(self) -> int:
        """The offset of the oldest event that is kept."""
        return self.entries[0][0].offset if self.entries else self.offset + 1

    def note_number(self, producer: str, number: int, now: float) -> None:
        """Remember the last number of a producer, and forget others that are over the limits."""
        self.numbers[producer] = number, now
        self.numbers.move_to_end(producer)
        while len(self.numbers) > KEPT_PRODUCERS:
            oldest, (_, appended_at) = next(iter(self.numbers.items()))
            if now - appended_at < PRODUCER_SECONDS and len(self.numbers) <= MAX_PRODUCERS:
                break
            del self.numbers[oldest]

    def begin_again(self) -> None:
        """Begin a new epoch without events and states; the fence stays."""
        self.epoch = secrets.token_hex(5)
        self.offset = self.chain = self.bytes = 0
        self.entries.clear()
        self.states.clear()

    def after(self, offset: int) -> Iterator[Event]:
        """Yield the kept events after ``offset``, oldest first."""
        return (entry[0] for entry in islice(self.entries, max(0, offset + 1 - self.first), None))

    def newest(self, count: int) -> Iterator[Event]:
        """Yield the newest ``count`` of the kept events, newest first."""
        return (entry[0] for entry in islice(reversed(self.entries), max(0, count)))

    def add(self, event: Event, producer: str, number: int) -> None:
        """Append an event; drop the oldest if there are too many."""
        self.entries.append((event, producer, number))
        self.bytes += len(event.json)
        if len(self.entries) > self.retention_events:
            self.bytes -= len(self.entries.popleft()[0].json)

    def set_state(self, key: str, json: bytes) -> None:
        """Set the last event with a state of a key."""
        self.drop_state(key)
        self.states[key] = json
        self.bytes += len(json)

    def drop_state(self, key: str) -> None:
        """Delete a key."""
        self.bytes -= len(self.states.pop(key, b""))


NEW_JOB = Job()
