"""Live job updates for Celery and FastAPI that survive reconnects, restarts and broker outages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semantik_realtime.config import Settings as Settings
    from semantik_realtime.errors import AccessError as AccessError
    from semantik_realtime.hookspecs import NO_OPINION as NO_OPINION
    from semantik_realtime.hookspecs import Identity as Identity
    from semantik_realtime.hookspecs import hookimpl as hookimpl
    from semantik_realtime.sinks.registry import RejectEvent as RejectEvent
    from semantik_realtime.web.realtime import Realtime as Realtime
    from semantik_realtime.worker.cancelled import JobCancelled as JobCancelled
    from semantik_realtime.worker.current import job as job
    from semantik_realtime.worker.event_types import event as event
    from semantik_realtime.worker.progress import track as track
    from semantik_realtime.worker.tracker import install as install

__version__ = "0.1.0"

_HOMES = {
    "AccessError": "semantik_realtime.errors",
    "Identity": "semantik_realtime.hookspecs",
    "JobCancelled": "semantik_realtime.worker.cancelled",
    "NO_OPINION": "semantik_realtime.hookspecs",
    "Realtime": "semantik_realtime.web.realtime",
    "RejectEvent": "semantik_realtime.sinks.registry",
    "Settings": "semantik_realtime.config",
    "event": "semantik_realtime.worker.event_types",
    "hookimpl": "semantik_realtime.hookspecs",
    "install": "semantik_realtime.worker.tracker",
    "job": "semantik_realtime.worker.current",
    "track": "semantik_realtime.worker.progress",
}
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    # A worker must not import FastAPI, nor a web server Celery: each name loads its own side.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
