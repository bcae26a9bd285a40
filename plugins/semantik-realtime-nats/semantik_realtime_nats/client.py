"""nats-py's client, with the private parts of it that this plugin needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from nats.aio.client import Client

CLOSE_SECONDS = 0.5
"""Longest wait for nats-py to close; then its task is cancelled."""


class NatsClient(Client):
    """nats-py's client. Nothing else in this plugin touches its private attributes."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The server's INFO message; empty before it is received."""
        return self._server_info

    def on_reading_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the task that reads the socket ends, for whatever reason.

        nats-py's own ``closed_cb`` is not called in every such case.
        """
        if self._reading_task is not None:
            self._reading_task.add_done_callback(lambda _: callback())

    async def force_close(self) -> None:
        """Close within a few `CLOSE_SECONDS`, whatever state the connection is in.

        nats-py's `close` stops halfway if it cannot flush, and a second call returns at once
        because the status is CLOSED already. So the status is reset and `close` is called
        again: the second time there is nothing to flush.
        """
        for _ in range(2):
            if self.is_closed:
                self._status = Client.DISCONNECTED
            # In a task, because after a failed TLS handshake `close` ends with a CancelledError.
            closing = asyncio.create_task(self.close())
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
            if not closing.done():
                closing.cancel()
                await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
            elif not closing.cancelled() and closing.exception() is None:
                return
