"""The queues of an application's sinks: one script, on the server of all topics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from semantik_realtime.backends.redis.script import SINKS, milliseconds
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.core.sinks import MAX_DEAD, Settlement
from semantik_realtime.errors import BackendRefused
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.sink_hooks import DeadEntry, SinkEntry, SinkStatus

_ID = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")


class SinkQueues:
    """The hooks of `semantik_realtime.sink_hooks.SinkBackend`, for the backend to inherit."""

    _writer: Writer
    _topology: Topology
    _sinks_key: str
    """Of the hash with the filters; what each append looks at."""

    @hookimpl
    def sink_open(self, name: str, filter: bytes, limit: int, idle_seconds: float) -> bool:
        return bool(self._call("open", name, filter, limit, round(idle_seconds * 1000)))

    @hookimpl
    def sink_take(
        self, name: str, filter: bytes, limit: int, seconds: float
    ) -> list[SinkEntry] | None:
        taken = self._call("take", name, filter, limit, milliseconds(seconds))
        if taken is None:
            return None
        return [_entry(id, int(attempt), _fields(flat)) for id, attempt, flat in taken]

    @hookimpl
    def sink_settle(self, name: str, settlements: Sequence[Settlement]) -> int:
        flat: list[Any] = []
        for one in settlements:
            flat += [one.id, one.attempt, one.fate.value, round(one.seconds * 1000), one.error]
        settled: int = self._call("settle", name, MAX_DEAD, *flat)
        return settled

    @hookimpl
    def sink_status(self) -> list[SinkStatus]:
        found = []
        for encoded, filter, *counts in self._call("status", ""):
            name = encoded.decode(errors="backslashreplace")
            if len(counts) == 1:
                error = counts[0].decode(errors="replace")
                found.append(SinkStatus.unreadable(name, filter, error))
                continue
            queued, held, dead, handled, lost, age, silent = map(int, counts)
            found.append(
                SinkStatus(
                    name=name,
                    filter=filter,
                    queued=queued,
                    held=held,
                    dead=dead,
                    handled=handled,
                    lost=lost,
                    oldest_seconds=age / 1000,
                    taken_seconds=None if silent < 0 else silent / 1000,
                )
            )
        return sorted(found, key=lambda one: one.name)

    @hookimpl
    def sink_dead(self, name: str, after: str, limit: int) -> list[DeadEntry]:
        found = []
        for id, flat in self._call("dead", name, after if _ID.fullmatch(after) else "", limit):
            fields = _fields(flat)
            entry = _entry(id, int(fields.get(b"attempt", 0)), fields)
            died_at = int(id.partition(b"-")[0]) / 1000
            error = fields.get(b"error", b"").decode(errors="replace")
            found.append(DeadEntry(entry=entry, error=error, died_at=died_at))
        return found

    @hookimpl
    def sink_replay(self, name: str, ids: Sequence[str]) -> int:
        found: int = self._call("replay", name, *filter(_ID.fullmatch, ids))
        return found

    @hookimpl
    def sink_discard(self, name: str, ids: Sequence[str]) -> int:
        found: int = self._call("discard", name, *filter(_ID.fullmatch, ids))
        return found

    @hookimpl
    def sink_forget(self, name: str) -> bool:
        return bool(self._call("forget", name))

    def _call(self, operation: str, name: str, *args: Any) -> Any:
        if self._topology.find().is_cluster:
            raise BackendRefused(
                "sinks do not work on a Redis Cluster, where no script reaches a topic and the "
                "queue of a sink: use one server, or Sentinels (see docs/sinks.md)"
            )
        return self._writer.run(SINKS, [self._sinks_key], operation, name, *args)


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _entry(id: bytes, attempt: int, fields: dict[bytes, bytes]) -> SinkEntry:
    # What another program has added lacks members, and is no event that can be read.
    topic, draft, epoch, owner = (
        fields.get(name, b"").decode(errors="replace")
        for name in (b"topic", b"draft", b"epoch", b"owner")
    )
    return SinkEntry(
        id=id.decode(),
        attempt=attempt,
        identity=f"{topic}/{draft.replace(' ', '.')}",
        topic=topic,
        epoch=epoch,
        owner=owner or None,
        json=fields.get(b"event", b""),
    )
