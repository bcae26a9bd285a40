"""The application of the web server processes."""

import asyncio
import os
from importlib.metadata import version

from fastapi import FastAPI

from semantik_realtime import Realtime
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.web.endpoints import websocket

if expected := os.environ.get("TEST_WEBSOCKETS"):
    assert version("websockets") == expected

app = FastAPI()
rt = Realtime().install(app)

if stall := os.environ.get("TEST_STALL_SECONDS"):
    rt.web.hub.limits = Limits(stall_seconds=float(stall))
if pings := os.environ.get("TEST_COMPAT_PING_SECONDS"):
    websocket.COMPAT_PING_SECONDS = float(pings)
if seconds := os.environ.get("TEST_DRAIN_SECONDS"):
    drain = rt.web.hub.drain

    async def drain_later(timeout_seconds: float) -> None:
        await asyncio.sleep(float(seconds))
        await drain(timeout_seconds)

    rt.web.hub.drain = drain_later


@app.get("/alive")
async def alive() -> dict[str, bool]:
    return {"alive": True}
