"""A host that serves the built pages, and publishes what a test asks for."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from semantik_realtime import Realtime

app = FastAPI()
rt = Realtime().install(app)
app.mount("/built", StaticFiles(directory=os.environ["BUILT"], html=True))


@app.post("/publish/{job}/{current}")
async def publish(job: str, current: int, status: str = "running") -> None:
    """Publish the progress of a job, to its topic and a feed."""
    state: dict[str, Any] = {"status": status, "progress": {"current": current, "total": 10}}
    for topic in (f"job:{job}", "user:dev"):
        await rt.publish(topic, "job_progress", key=job, state=state)


@app.post("/start/{job}")
async def start(job: str) -> dict[str, str]:
    await publish(job, 0)
    return {"job_id": job}
