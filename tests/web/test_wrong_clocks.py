"""A web server whose host has a wrong clock judges the times of others by the backend's."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from clients import NativeClient
from publisher import Publisher
from waiting import until
from web_servers import serve_realtime

from semantik_realtime.backends import server_clock
from semantik_realtime.backends.redis import status as redis_status
from semantik_realtime.clock import time_text
from semantik_realtime.config import Settings
from semantik_realtime.web import waiting_jobs

SETTINGS = {"queued_seconds": 3600.0}
HOUR_SECONDS = 3600.0


@pytest.fixture
def wrong_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far the host's clock is ahead for everything that judges by it."""
    seconds = float(request.param)
    clock = SimpleNamespace(**vars(time) | {"time": lambda: time.time() + seconds})
    for module in (waiting_jobs, server_clock, redis_status):
        monkeypatch.setattr(module, "time", clock)
    return seconds


@pytest.mark.parametrize("wrong_by", [-2 * HOUR_SECONDS, 2 * HOUR_SECONDS], indirect=True)
async def test_how_long_a_job_waits_is_judged_by_the_server_s_clock(
    wrong_by: float, settings: Settings, publisher: Publisher
) -> None:
    for job, hours in (("late", 2), ("young", 0)):
        at = time_text(time.time() - hours * HOUR_SECONDS)
        state = {"status": "queued", "attempt": 0, "queued_at": at}
        publisher.emit(
            "user:7", type="job_queued", state=state, job=job, key=job, attempt=0, time=at
        )
        publisher.emit(
            f"job:{job}", type="job_queued", state=state, job=job, key=job, attempt=0, time=at
        )
    await publisher.flush()
    async with serve_realtime(settings) as web_server:
        waiting = web_server.rt.web.waiting
        await until(lambda: waiting.is_measured, 15)
        async with NativeClient(web_server, "user:7") as client:
            await client.wait_synced()
            states = client.views["user:7"].states
            await until(lambda: states["late"]["status"] == "lost", 15)
            assert not waiting._found
            assert states["young"]["status"] == "queued"
