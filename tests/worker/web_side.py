"""A web application that uses the Celery application of the workers."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
from celery_workers import Worker
from fastapi import FastAPI

from semantik_realtime import Realtime
from semantik_realtime.config import Settings

SECRET = "a secret of at least thirty-two bytes"


class Web:
    """An application that uses the Celery application of the workers, as the user 7."""

    def __init__(self, rt: Realtime, http: httpx.AsyncClient) -> None:
        self.rt = rt
        self.http = http

    async def queue(self, worker: Worker, name: str, *args: Any, **options: Any) -> str:
        """Send a task whose job is shown as queued from the beginning; return its id."""
        job_id = str(uuid.uuid4())
        state = {"status": "queued", "attempt": 0, "name": f"mirrored_app.{name}"}
        await self.rt.publish(f"job:{job_id}", "job_queued", state=state, owner="7")
        return worker.send(name, *args, task_id=job_id, **options)

    async def stop(self, job_id: str) -> None:
        """Cancel a job whose task stops at once: it may be over before the request is answered."""
        assert await self.cancel(job_id) in [(202, "cancelling"), (200, "cancelled")]

    async def cancel(self, job_id: str) -> tuple[int, str]:
        answer = await self.http.post(f"/realtime/jobs/{job_id}/cancel")
        return answer.status_code, answer.json().get("status") or answer.text


@contextlib.asynccontextmanager
async def web_of(worker: Worker, **changes: Any) -> AsyncIterator[Web]:
    given = worker.settings.model_dump(exclude_unset=True)
    rt = Realtime(Settings(**{**given, "jwt_secret": SECRET, **changes}))
    app = FastAPI()
    rt.install(app)
    token = jwt.encode({"sub": "7", "exp": time.time() + 600}, SECRET, "HS256")
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://here",
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        ) as http,
    ):
        yield Web(rt, http)
