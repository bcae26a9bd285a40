"""The application of the web server processes, with a record and a route that publishes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from record import Record

from semantik_realtime import Realtime

app = FastAPI()
record = Record(Path(os.environ["TEST_RECORD"]))
rt = Realtime(plugins=[record]).install(app)


@app.get("/alive")
async def alive() -> dict[str, bool]:
    return {"alive": True}


@app.post("/publish/{job}")
async def publish(job: str, state: dict[str, Any]) -> dict[str, str]:
    receipt = await rt.publish(f"job:{job}", "step", state=state)
    return {"outcome": receipt.outcome.value}
