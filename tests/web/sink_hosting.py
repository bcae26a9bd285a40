"""An application with sinks, on the loop of the test and in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from waiting import until

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core import sinks as rules
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.sinks import runner, worker


@pytest.fixture
def realtime(monkeypatch: pytest.MonkeyPatch) -> Realtime:
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runner, "STATUS_SECONDS", 0.05)
    monkeypatch.setattr(rules, "FIRST_PAUSE_SECONDS", 0.02)
    return Realtime(Settings(backend="memory", jwt_secret="a secret of at least thirty-two bytes"))


@contextlib.asynccontextmanager
async def started(realtime: Realtime) -> AsyncIterator[None]:
    """The lifespan of an application, when its sinks are recorded."""
    app = FastAPI()
    realtime.install(app)
    async with app.router.lifespan_context(app):
        await until(lambda: is_recorded(realtime), 10, "the sinks are recorded")
        yield


def is_recorded(realtime: Realtime) -> bool:
    if realtime.sink_backend is None or not realtime.settings.run_sinks:
        return True
    try:
        found = {one.name for one in realtime.sink_backend.sink_status()}
    except BackendUnavailable:
        return False
    return {sink.name for sink in realtime.sinks} <= found


def status(realtime: Realtime, name: str) -> Any:
    return next(one for one in realtime.sink_backend.sink_status() if one.name == name)


def sink_filter(realtime: Realtime, name: str) -> bytes:
    return next(sink.filter for sink in realtime.sinks if sink.name == name).encode()
