"""The application of the web servers under attack: that of the web tests, with a clock to set."""

from __future__ import annotations

import time
from types import SimpleNamespace

from webhost import app, rt

from semantik_realtime import clock
from semantik_realtime.backends import server_clock
from semantik_realtime.backends.redis import status
from semantik_realtime.web import tokens, waiting_jobs

__all__ = ["app", "rt"]


def step(seconds: float) -> None:
    """Set the clock of the modules that read the host's, ``seconds`` ahead; 0: right again."""
    stepped = SimpleNamespace(
        **vars(time)
        | {
            "time": lambda: time.time() + seconds,
            "time_ns": lambda: time.time_ns() + int(seconds * 1e9),
        }
    )
    for module in (clock, server_clock, status, waiting_jobs, tokens):
        if hasattr(module, "time"):
            module.time = stepped  # type: ignore[attr-defined]


@app.post("/step")
async def set_clock(seconds: float) -> dict[str, float]:
    step(seconds)
    return {"seconds": seconds}
