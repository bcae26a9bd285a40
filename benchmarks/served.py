"""The web server that is measured: uvicorn in a process of its own, with `Realtime` installed."""

from __future__ import annotations

import threading
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.burst import Burst, publish_burst
from semantik_realtime.config import load_settings
from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.web import websocket
from semantik_realtime.web.channel import Outgoing
from semantik_realtime.web.native import NativeWire
from semantik_realtime.web.plugin import Realtime


class OneFrameAnEvent(NativeWire):
    """The yardstick: the same wire, but each event is encoded and sent by itself."""

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        return [
            frames.events_frame(
                [
                    frames.topic_events(
                        topic,
                        event.offset - 1,
                        Cursor(outgoing.cursor.epoch, event.offset, event.chain),
                        [event],
                    )
                ]
            )
            for topic, outgoing in waiting
            for event in outgoing.events
        ]


def serve(url: str | None, port: int, one_frame_an_event: bool, burst: Burst) -> None:
    """Run until the process is told to end.

    Without a ``url`` the events are made in here too: that backend ends at the process.
    """
    if one_frame_an_event:
        module: Any = websocket
        module.NativeWire = OneFrameAnEvent
    settings = load_settings(
        backend="redis" if url else "memory",
        url=url,
        disable_auth=True,
        environment="development",
        max_connections=1_000_000,
    )
    app = FastAPI()
    realtime = Realtime(settings).install(app)
    if url is None:
        threading.Thread(target=publish_burst, args=(realtime, burst), daemon=True).start()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
