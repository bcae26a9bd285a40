"""What a client sends on a WebSocket, read no faster than the server works it off."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.websockets import WebSocket, WebSocketDisconnect

from semantik_realtime.core.allowance import Allowance
from semantik_realtime.core.limits import FLOOD_SECONDS
from semantik_realtime.core.session import CloseCode, SessionLimits
from semantik_realtime.web.hub.ended import Ended

logger = logging.getLogger(__name__)


class Inbox:
    """The frames of one client. One that sends more than its allowance waits in the network.

    While the next frame is not read, the web server stops reading the socket,
    so neither frames nor tasks pile up in this process.
    """

    def __init__(self, websocket: WebSocket, limits: SessionLimits) -> None:
        self._websocket = websocket
        self._limits = limits
        self._allowance = Allowance(limits.burst, limits.per_second, time.monotonic())
        # How long to wait before the next frame is read, for what the last one cost.
        self._wait_seconds = 0.0

    async def next_frame(self) -> str | bytes:
        """Return the next frame, when the client may send one.

        Raises:
            Ended: the client has sent more than it may for too long.
            WebSocketDisconnect: the client or the network has ended the connection.
        """
        # Without a wait too: `receive` does not yield while the web server has frames, and one
        # read of a socket may give it thousands.
        await asyncio.sleep(self._wait_seconds)
        if self._allowance.behind_seconds(time.monotonic()) > FLOOD_SECONDS:
            path = self._websocket.scope["path"]
            logger.warning("websocket: closed, the client sends too many frames path=%s", path)
            raise Ended(
                CloseCode.FLOOD,
                f"too many frames: over {self._limits.per_second} units a second "
                f"for {FLOOD_SECONDS:g} s",
            )
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        return message.get("text") or message.get("bytes") or ""

    def charge(self, units: int) -> None:
        """Count what the last frame costs."""
        self._wait_seconds = self._allowance.spend(units, time.monotonic())
