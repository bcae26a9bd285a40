"""``semantik-realtime doctor``: checks of an installation, for an operator."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

import msgspec
from rich.console import Console
from rich.table import Table

from semantik_realtime.backends.loader import BACKENDS, PLUGINS, backend_names
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.errors import BackendError, RealtimeError
from semantik_realtime.hookspecs import Status
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text

MAX_CLOCK_SKEW_SECONDS = 2.0
"""With a larger difference between the clocks of hosts, shown durations and ages look wrong."""
PACKAGES = (
    "semantik-realtime",
    "redis",
    "celery",
    "fastapi",
    "starlette",
    "uvicorn",
    "websockets",
    "msgspec",
    "pluggy",
    "PyJWT",
)
GROUPS = (BACKENDS, PLUGINS, "semantik.webui", "celery.commands")

_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]", "": ""}


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    subject: str
    text: str
    grade: str = ""
    """``ok``, ``warn`` or ``fail``; empty for a fact that is not checked."""


def run_doctor() -> int:
    """Print the report; return the exit code: 1 if a check failed."""
    findings = list(examine())
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        text = mask_text(finding.text).replace("[", r"\[")
        table.add_row(_MARKS[finding.grade], finding.subject, text)
    Console().print(table)
    return int(any(finding.grade == "fail" for finding in findings))


def examine() -> Iterator[Finding]:
    """Check packages, settings, backend and server, in this order; stop where one is unusable."""
    yield Finding("python", platform.python_version())
    for package in PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, "not installed")
    for group in GROUPS:
        names = sorted(entry_points(group=group).names)
        yield Finding(group, ", ".join(names) or "none")
    try:
        settings = load_settings()
    except RealtimeError as error:
        yield Finding("settings", str(error), "fail")
        return
    yield from _examine_settings(settings)
    try:
        runtime = Runtime(settings)
    except RealtimeError as error:
        yield Finding("backend", str(error), "fail")
        return
    backend = settings.backend + _distribution(settings.backend)
    yield Finding("backend", f"{backend} (installed: {', '.join(backend_names())})", "ok")
    status, failure = asyncio.run(_try_backend(runtime))
    runtime.close()
    yield from _examine_server(status)
    if status.reachable:
        text = failure or "a read, a write and a subscription succeeded"
        yield Finding("server", text, "fail" if failure else "ok")


async def _try_backend(runtime: Runtime) -> tuple[Status, str | None]:
    """Return the backend's status, and the error of a read, a write and a subscription, if any."""
    status = await runtime.backend.status()
    try:
        await runtime.backend.open()
        await runtime.backend.probe(thorough=True)
    except BackendError as error:
        return status, str(error)
    finally:
        await runtime.backend.close()
    return status, None


def _distribution(backend: str) -> str:
    """Return " from NAME VERSION" for a backend of another distribution, else an empty text."""
    for entry in entry_points(group=BACKENDS, name=backend):
        if entry.dist is not None and entry.dist.name != PACKAGES[0]:
            return f" from {entry.dist.name} {entry.dist.version}"
    return ""


def _examine_settings(settings: Settings) -> Iterator[Finding]:
    given = ", ".join(sorted(settings.model_fields_set)) or "nothing, all defaults"
    yield Finding("settings", f"set: {given}", "ok")
    if settings.disable_auth:
        grade = "warn" if settings.is_development else "fail"
        yield Finding(
            "access", f"authentication is off (environment {settings.environment})", grade
        )
    elif settings.jwt_jwks_url or settings.jwt_secret:
        secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else ""
        if secret and len(secret.encode()) < 32:
            yield Finding("access", "SEMANTIK_REALTIME_JWT_SECRET is shorter than 32 bytes", "warn")
        else:
            yield Finding("access", "JWT, " + ", ".join(settings.jwt_algorithms), "ok")
    else:
        yield Finding(
            "access",
            "neither SEMANTIK_REALTIME_JWT_SECRET nor SEMANTIK_REALTIME_JWT_JWKS_URL is set: "
            "the web side starts only with an authenticate hook",
            "warn",
        )


def _examine_server(status: Status) -> Iterator[Finding]:
    if not status.reachable:
        yield Finding("server", f"not usable: {status.server}", "fail")
        return
    yield Finding("server", status.server, "ok")
    for warning in status.warnings:
        yield Finding("server", warning, "warn")
    if status.clock_ahead_seconds is not None:
        skew_seconds = abs(status.clock_ahead_seconds)
        direction = "ahead of" if status.clock_ahead_seconds > 0 else "behind"
        grade = "ok" if skew_seconds < MAX_CLOCK_SKEW_SECONDS else "warn"
        yield Finding("clock", f"{skew_seconds:.1f} s {direction} this host", grade)
