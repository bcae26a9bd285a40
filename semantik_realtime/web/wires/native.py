"""The native wire: `semantik.realtime.v1`."""

from __future__ import annotations

import random
from collections.abc import Mapping

from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.web.wires.wire import Outgoing, Sync

RECONNECT_SECONDS = 3.0
"""The longest time until a client reconnects after a drain."""


class NativeWire:
    """The frames of docs/protocol.md."""

    name = "native"

    def sync(self, sync: Sync) -> list[str]:
        return [sync.frame]

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        if len(waiting) == 1:
            return [waiting[0][1].frame]
        return [frames.events_frame([outgoing.member for _, outgoing in waiting])]

    def denied(self, topic: str) -> list[str]:
        return [
            frames.encode(
                {
                    "op": "denied",
                    "topic": topic,
                    "code": "forbidden",
                    "message": "not yours, or not there",
                }
            )
        ]

    def gone(self, topic: str) -> list[str]:
        return [frames.encode({"op": "gone", "topic": topic})]

    def degraded(self, since: str) -> list[str]:
        return [frames.encode({"op": "degraded", "since": since})]

    def restored(self) -> list[str]:
        return ['{"op":"restored"}']

    def provisional(
        self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]
    ) -> list[str]:
        return [frames.provisional_frame(topic, epoch, source, states)]

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        return [frames.tops_frame(places)]

    def bye(self) -> list[str]:
        return [frames.encode({"op": "bye", "reconnect_seconds": reconnect_seconds()})]


def reconnect_seconds() -> float:
    """Return when a client should reconnect: random, so that a fleet's clients spread out."""
    return round(random.uniform(0.1, RECONNECT_SECONDS), 2)  # noqa: S311
