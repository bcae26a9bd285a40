"""A page that subscribes to a job as soon as it knows the id is never refused: a real worker."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from celery_workers import Place, running

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from clients import NativeClient
from configuration import SECRET
from web_servers import serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.tracker import TaskTracker

JOBS = 200
AT_ONCE = 50
"""Jobs that are sent before the first of them must have begun: the worker is busy."""


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.mark.every_backend(shares_storage=True)
@pytest.mark.parametrize("is_tracked", [False, True], ids=["apply_async", "submit"])
async def test_a_job_that_was_just_sent_may_be_watched(
    broker: str, place: Place, tmp_path: Path, is_tracked: bool
) -> None:
    """``apply_async`` with the header alone, or with the events and the flush of ``submit``."""
    tracker = TaskTracker()
    with running(broker, place, "prefork", tmp_path) as worker:
        settings = Settings(**{**worker.settings.model_dump(), "jwt_secret": SECRET})
        runtime = Runtime(settings)
        tracker.use(runtime)
        if is_tracked:
            tracker.connect()

        def send() -> str:
            job_id = worker.send("add", 1, 2)
            assert tracker.flush()
            return f"job:{job_id}"

        try:
            async with serve_realtime(settings) as server:
                for _ in range(0, JOBS, AT_ONCE):
                    async with NativeClient(server) as client:
                        await client.wait_for("welcome")
                        for _ in range(AT_ONCE):
                            await client.subscribe(await asyncio.to_thread(send))
                        await client.wait_synced(*client.views)
                        assert len(client.ops("sync")) >= AT_ONCE
                        assert not client.ops("denied")
        finally:
            tracker.disconnect()
            runtime.close()
