"""``semantik-realtime doctor``: checks of an installation, for an operator."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semantik_realtime.backends.loader import BACKENDS, PLUGINS, backend_names, unknown_settings
from semantik_realtime.cli.terminal import plain, visible
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.errors import BackendError, RealtimeError
from semantik_realtime.hookspecs import Status
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text, mask_urls

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
LOWEST_UVICORN = (0, 30)
"""As the extra ``uvicorn`` of the package has it."""
UPDATE_UVICORN = (
    "Install uvicorn 0.30 or newer: before 0.29 it closes connections while they are drained, and "
    "pages of the compatibility wire do not return."
)
CORRECT_SETTING = "Correct the environment variable, and start the processes again."
CORRECT_BACKEND = (
    "Correct SEMANTIK_REALTIME_BACKEND or SEMANTIK_REALTIME_URL (without it REDIS_URL is read), "
    "or install the distribution of the backend."
)
SWITCH_ON_ACCESS = (
    "Unset SEMANTIK_REALTIME_DISABLE_AUTH and DISABLE_AUTH. On a developer's machine, set "
    "SEMANTIK_REALTIME_ENVIRONMENT=development."
)
START_SERVER = (
    "Start the server at {}, check that this machine can reach it with these credentials, or set "
    "SEMANTIK_REALTIME_URL to the right one (without it REDIS_URL is read)."
)
ALLOW_ACCESS = (
    "The server answers, but this user cannot use it: allow it to read, write and subscribe to "
    "names with the prefix of SEMANTIK_REALTIME_PREFIX, and check that the server has room."
)
GROUPS = (BACKENDS, PLUGINS, "semantik.webui", "celery.commands")

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red"), "": ("", "")}
"""Mark and style of a grade."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    subject: str
    text: str
    grade: str = ""
    """``ok``, ``warn`` or ``fail``; empty for a fact that is not checked."""
    advice: str = ""
    """What to do about it: of every failure, and of a warning whose text does not say so."""


def run_doctor(*, as_json: bool = False) -> int:
    """Print the report; return the exit code: 1 if a check failed."""
    findings = list(examine())
    has_failed = any(finding.grade == "fail" for finding in findings)
    console = Console()
    if as_json:
        # Not by msgspec: this leaves no control character in the output but DEL.
        print(json.dumps({"ok": not has_failed, "findings": msgspec.to_builtins(findings)}))
    elif console.is_terminal:
        console.print(_table(findings))
    else:
        # A program reads it: without a width, nothing is wrapped.
        for line in _lines(findings):
            print(line)
    return int(has_failed)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        grade = Text(*_MARKS[finding.grade])
        table.add_row(grade, finding.subject, plain(mask_text(finding.text)))
        if finding.advice:
            table.add_row("", "", plain(f"→ {mask_text(finding.advice)}", "bold"))
    return table


def _lines(findings: list[Finding]) -> Iterator[str]:
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = _MARKS[finding.grade][0]
        yield f"{mark:<4} {finding.subject:<{width}} {visible(mask_text(finding.text))}"
        if finding.advice:
            yield f"{'':<4} {'':<{width}} -> {visible(mask_text(finding.advice))}"


def examine() -> Iterator[Finding]:
    """Check packages, settings, backend and server, in this order; stop where one is unusable."""
    yield Finding("python", platform.python_version())
    for package in PACKAGES:
        try:
            yield _examine_package(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, "not installed")
    for group in GROUPS:
        names = sorted(entry_points(group=group).names)
        yield Finding(group, ", ".join(names) or "none")
    try:
        settings = load_settings()
    except RealtimeError as error:
        yield Finding("settings", str(error), "fail", CORRECT_SETTING)
        return
    yield from _examine_settings(settings)
    try:
        runtime = Runtime(settings)
    except RealtimeError as error:
        yield Finding("backend", str(error), "fail", CORRECT_BACKEND)
        return
    backend = settings.backend + _distribution(settings.backend)
    yield Finding("backend", f"{backend} (installed: {', '.join(backend_names())})", "ok")
    status, failure = asyncio.run(_try_backend(runtime))
    runtime.close()
    address = status.address or (mask_urls(settings.url) if settings.url else "")
    if address:
        source = "from the settings" if settings.url else "the default: no URL is set"
        yield Finding("address", f"{address} ({source})")
    yield from _examine_server(status, address)
    if status.reachable and failure:
        yield Finding("server", failure, "fail", ALLOW_ACCESS)
    elif status.reachable:
        yield Finding("server", "a read, a write and a subscription succeeded", "ok")


def _examine_package(package: str, installed: str) -> Finding:
    if package == "uvicorn" and tuple(map(int, installed.split(".")[:2])) < LOWEST_UVICORN:
        return Finding(package, f"{installed} cannot drain", "warn", UPDATE_UVICORN)
    return Finding(package, installed)


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
    for name, nearest in unknown_settings().items():
        meant = f", is {nearest} meant?" if nearest else ""
        yield Finding("settings", f"{name} is no setting{meant}", "warn")
    if settings.disable_auth:
        grade = "warn" if settings.is_development else "fail"
        text = f"authentication is off (environment {settings.environment})"
        yield Finding("access", text, grade, SWITCH_ON_ACCESS)
    elif settings.jwt_jwks_url or settings.jwt_secret:
        if fault := settings.secret_fault:
            grade = "warn" if settings.is_development else "fail"
            yield Finding("access", fault, grade, "Set it to that many random bytes or more.")
        else:
            yield Finding("access", "JWT, " + ", ".join(settings.jwt_algorithms), "ok")
    else:
        yield Finding(
            "access",
            "neither SEMANTIK_REALTIME_JWT_SECRET nor SEMANTIK_REALTIME_JWT_JWKS_URL is set: "
            "the web side starts only with an authenticate hook",
            "warn",
            "Set one of them to what signs your tokens, or add a plugin with that hook.",
        )


def _examine_server(status: Status, address: str) -> Iterator[Finding]:
    if not status.reachable:
        text = f"not usable: {status.server}"
        yield Finding("server", text, "fail", START_SERVER.format(address or "its address"))
        return
    yield Finding("server", status.server, "ok")
    for warning in status.warnings:
        yield Finding("server", warning, "warn")
    if status.clock_ahead_seconds is not None:
        skew_seconds = abs(status.clock_ahead_seconds)
        direction = "ahead of" if status.clock_ahead_seconds > 0 else "behind"
        grade = "ok" if skew_seconds < MAX_CLOCK_SKEW_SECONDS else "warn"
        advice = "" if grade == "ok" else "Synchronize the clocks of both hosts, as with NTP."
        yield Finding("clock", f"{skew_seconds:.1f} s {direction} this host", grade, advice)
