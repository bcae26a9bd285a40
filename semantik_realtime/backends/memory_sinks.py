"""The queues of an application's sinks, in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from semantik_realtime.core.event import Draft, Event
from semantik_realtime.core.sinks import MAX_DEAD, Fate, Settlement, SinkFilter
from semantik_realtime.sink_hooks import DeadEntry, SinkEntry, SinkStatus

_read_filter = msgspec.json.Decoder(SinkFilter).decode


class _Queued(msgspec.Struct):
    entry: SinkEntry
    added_at: float
    # When it may be taken. 0: it was not taken yet.
    due_at: float = 0.0


class _Queue:
    """Of one sink. Ids are running numbers, so both dicts are ordered by them."""

    def __init__(self) -> None:
        self.encoded = b""
        self.filter = SinkFilter((), ())
        self.limit = 0
        self.entries: OrderedDict[str, _Queued] = OrderedDict()
        self.dead: OrderedDict[str, DeadEntry] = OrderedDict()
        self.handled = 0
        self.lost = 0
        self.taken_at: float | None = None
        self.next_id = 1

    def add(self, entry: SinkEntry, now: float) -> None:
        id = str(self.next_id)
        self.next_id += 1
        entry = msgspec.structs.replace(entry, id=id, attempt=0)
        self.entries[id] = _Queued(entry, now)
        if len(self.entries) > self.limit:
            self.entries.popitem(last=False)
            self.lost += 1

    def bury(self, entry: SinkEntry, error: str) -> None:
        id = str(self.next_id)
        self.next_id += 1
        entry = msgspec.structs.replace(entry, id=id)
        self.dead[id] = DeadEntry(entry=entry, error=error, died_at=time.time())
        if len(self.dead) > MAX_DEAD:
            self.dead.popitem(last=False)
            self.lost += 1


class MemorySinks:
    """See `semantik_realtime.sink_hooks.SinkBackend`. Not thread-safe; times are the caller's."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def offer(self, draft: Draft, event: Event, epoch: str, owner: str | None, now: float) -> None:
        """Put an event that was appended into the queues that it matches."""
        for queue in self._queues.values():
            if queue.filter.matches(draft.topic, event.head().type):
                entry = SinkEntry(
                    id="",
                    identity=f"{draft.topic}/{draft.producer}.{draft.number}",
                    topic=draft.topic,
                    epoch=epoch,
                    owner=owner,
                    json=event.json,
                )
                queue.add(entry, now)

    def open(self, name: str, filter: bytes, limit: int, idle_seconds: float, now: float) -> bool:
        queue = self._queues.setdefault(name, _Queue())
        if queue.encoded != filter:
            is_taken = queue.encoded and queue.taken_at is not None
            if is_taken and now - (queue.taken_at or 0.0) < idle_seconds:
                return False
            queue.encoded, queue.filter, queue.taken_at = filter, _read_filter(filter), now
        queue.limit = limit
        return True

    def take(
        self, name: str, filter: bytes, limit: int, seconds: float, now: float
    ) -> list[SinkEntry] | None:
        queue = self._queues.get(name)
        if queue is None or queue.encoded != filter:
            return None
        queue.taken_at = now
        due = [one for one in queue.entries.values() if one.due_at <= now]
        # Those that were taken before come first.
        due.sort(key=lambda one: one.due_at or float("inf"))
        given = []
        for one in due[:limit]:
            one.entry = msgspec.structs.replace(one.entry, attempt=one.entry.attempt + 1)
            one.due_at = now + seconds
            given.append(one.entry)
        return given

    def settle(self, name: str, settlements: Sequence[Settlement], now: float) -> int:
        queue = self._queues.get(name) or _Queue()
        done = 0
        for settlement in settlements:
            queued = queue.entries.get(settlement.id)
            if queued is None:
                continue
            if settlement.fate is Fate.HANDLED:
                del queue.entries[settlement.id]
                queue.handled += 1
            elif queued.entry.attempt != settlement.attempt:
                continue
            elif settlement.fate is Fate.DEAD:
                del queue.entries[settlement.id]
                queue.bury(queued.entry, settlement.error)
            elif settlement.fate is Fate.RETRY:
                queued.due_at = now + settlement.seconds
            else:
                attempt = queued.entry.attempt - 1
                queued.entry = msgspec.structs.replace(queued.entry, attempt=attempt)
                queued.due_at = now
            done += 1
        return done

    def status(self, now: float) -> list[SinkStatus]:
        return [
            SinkStatus(
                name=name,
                filter=queue.encoded,
                queued=len(queue.entries),
                held=sum(one.due_at > 0 for one in queue.entries.values()),
                dead=len(queue.dead),
                handled=queue.handled,
                lost=queue.lost,
                oldest_seconds=now - next(iter(queue.entries.values())).added_at
                if queue.entries
                else 0.0,
                taken_seconds=None if queue.taken_at is None else now - queue.taken_at,
            )
            for name, queue in sorted(self._queues.items())
        ]

    def dead(self, name: str, after: str, limit: int) -> list[DeadEntry]:
        queue = self._queues.get(name) or _Queue()
        first = int(after or 0)
        return [one for id, one in queue.dead.items() if int(id) > first][:limit]

    def remove_dead(self, name: str, ids: Sequence[str], now: float, *, replay: bool) -> int:
        queue = self._queues.get(name) or _Queue()
        found = [queue.dead.pop(id) for id in ids if id in queue.dead]
        if replay:
            for one in found:
                queue.add(one.entry, now)
        return len(found)

    def forget(self, name: str) -> bool:
        return self._queues.pop(name, None) is not None
