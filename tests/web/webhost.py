"""The application of the web server processes."""

import os

from fastapi import FastAPI

from semantik_realtime import Realtime
from semantik_realtime.core.outbox import Limits
from semantik_realtime.web import websocket

app = FastAPI()
rt = Realtime().install(app)

if stall := os.environ.get("TEST_STALL_SECONDS"):
    rt.server.hub.limits = Limits(stall_seconds=float(stall))
if pings := os.environ.get("TEST_FOUNDING_PING_SECONDS"):
    websocket.FOUNDING_PING_SECONDS = float(pings)


@app.get("/alive")
async def alive() -> dict[str, bool]:
    return {"alive": True}
