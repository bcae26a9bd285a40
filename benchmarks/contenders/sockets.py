"""A socket's endpoint that sends, and ends with its client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from fastapi import WebSocket


async def send_until_gone(websocket: WebSocket, sending: Coroutine[Any, Any, None]) -> None:
    """Run ``sending`` for as long as the client is there."""
    sender = asyncio.create_task(sending)
    try:
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass
    finally:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender
