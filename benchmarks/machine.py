"""The machine on which a benchmark runs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

PACKAGES = (
    "semantik-realtime",
    "semantik-realtime-nats",
    "redis",
    "hiredis",
    "nats-py",
    "msgspec",
    "fastapi",
    "uvicorn",
    "uvloop",
    "websockets",
    "python-socketio",
    "channels",
    "channels-redis",
    "broadcaster",
    "celery",
    "opentelemetry-instrumentation-celery",
    "sentry-sdk",
)
"""Their versions are recorded if they are installed."""


def describe_machine() -> dict[str, Any]:
    """Return the processors, the versions, the web server's parts, and the load average now."""
    return {
        "cpu_count": os.cpu_count(),
        "cpu": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "web_server": _web_server(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _web_server() -> dict[str, str]:
    """Return what uvicorn chooses by itself; no benchmark changes its choice."""
    return {
        "loop": "uvloop" if find_spec("uvloop") else "asyncio",
        "websockets": getattr(AutoWebSocketsProtocol, "__name__", "none"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
