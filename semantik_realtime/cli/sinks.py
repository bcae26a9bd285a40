"""What the commands ``semantik-realtime sinks …`` do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from semantik_realtime.backends.loader import bind_sinks, build_plugins, load_backend
from semantik_realtime.cli.terminal import visible
from semantik_realtime.config import load_settings
from semantik_realtime.core.sinks import SinkFilter, check_sink_name
from semantik_realtime.errors import ConfigError
from semantik_realtime.runtime import Runtime
from semantik_realtime.sink_hooks import DeadEntry, SinkBackend, SinkStatus

_PAGE = 500
"""Dead letters of one call."""


def run_list(*, as_json: bool) -> int:
    """Print the recorded sinks; return the exit code."""
    found = _hooks().sink_status()
    for status in found:
        click.echo(_json_of(status) if as_json else _line_of(status))
    if not found and not as_json:
        click.echo("no sink is recorded: a web server with one records it when it starts")
    return 1 if any(status.lost or status.error for status in found) else 0


def run_dead(name: str, limit: int, *, as_json: bool) -> None:
    """Print dead letters."""
    hooks = _hooks_for(name)
    for number, letter in enumerate(_dead_letters(hooks, name)):
        if number >= limit:
            break
        entry = letter.entry
        died_at = datetime.datetime.fromtimestamp(letter.died_at, datetime.UTC)
        members = {
            "id": entry.id,
            "died_at": died_at.isoformat(timespec="milliseconds"),
            "identity": entry.identity,
            "attempts": entry.attempt,
            "error": letter.error,
        }
        if as_json:
            event = entry.json.decode(errors="replace")
            click.echo(visible(json.dumps({**members, "event": event})))
        else:
            click.echo(visible("  ".join(map(str, members.values()))))


def run_replay(name: str, ids: Sequence[str]) -> str:
    """Replay dead letters; return a sentence."""
    hooks = _hooks_for(name)
    count = sum(hooks.sink_replay(name, part) for part in _parts(hooks, name, ids))
    return f"{count} dead letters are in the queue of {visible(name)} again"


def run_discard(name: str, ids: Sequence[str]) -> str:
    """Remove dead letters; return a sentence."""
    hooks = _hooks_for(name)
    count = sum(hooks.sink_discard(name, part) for part in _parts(hooks, name, ids))
    return f"{count} dead letters of {visible(name)} removed"


def run_forget(name: str) -> str:
    """Remove a sink; return a sentence."""
    _hooks_for(name).sink_forget(name)
    return f"sink {visible(name)} removed"


def run_sinks(name: str) -> None:
    """Run the sinks of an application until SIGTERM or SIGINT.

    Raises:
        ConfigError: there is no such application, it has no sink, or its backend has no hooks.
    """
    runtime = _load(name)
    if not len(runtime.sinks):
        raise ConfigError(f"{visible(name)} has registered no sink")
    runtime.sink_runner.check()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_run(runtime))
    finally:
        runtime.close()


async def _run(runtime: Runtime) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Windows has none: there Ctrl-C ends the process by itself.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stopping.set)
    runtime.sink_runner.start()
    await stopping.wait()
    await runtime.sink_runner.stop()


def _load(name: str) -> Runtime:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{visible(name)}: name it as module:name, for example app:realtime")
    # The command's own folder is first in the path, and the application is where it is called.
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no application {visible(name)}: {visible(error)}") from error
    if not isinstance(found, Runtime):
        found = getattr(getattr(found, "state", None), "realtime", None)
    if not isinstance(found, Runtime):
        raise ConfigError(
            f"{visible(name)} is no Realtime, and no application in which one is installed"
        )
    return found


def _hooks() -> SinkBackend:
    settings = load_settings()
    hooks = bind_sinks(build_plugins(load_backend(settings)))
    if hooks is None:
        raise ConfigError(
            f"the backend {visible(settings.backend)} has no sinks (see docs/sinks.md)"
        )
    return hooks


def _hooks_for(name: str) -> SinkBackend:
    """Return the hooks.

    Raises:
        ConfigError: no such sink is recorded.
    """
    check_sink_name(name)
    hooks = _hooks()
    known = [status.name for status in hooks.sink_status()]
    if name not in known:
        raise ConfigError(
            f"there is no sink {visible(name)}; recorded: {visible(', '.join(known)) or 'none'}"
        )
    return hooks


def _dead_letters(hooks: SinkBackend, name: str) -> Iterator[DeadEntry]:
    after = ""
    while page := hooks.sink_dead(name, after, _PAGE):
        yield from page
        after = page[-1].entry.id


def _parts(hooks: SinkBackend, name: str, ids: Sequence[str]) -> list[list[str]]:
    """Return the given ids, or those of all dead letters, in parts of one call each."""
    wanted = list(ids) or [letter.entry.id for letter in _dead_letters(hooks, name)]
    return [wanted[first : first + _PAGE] for first in range(0, len(wanted), _PAGE)]


def _json_of(status: SinkStatus) -> str:
    members = msgspec.structs.asdict(status)
    try:
        wanted = msgspec.json.decode(status.filter)
    except ValueError:
        wanted = status.filter.decode(errors="replace")
    return visible(json.dumps({**members, "filter": wanted}))


def _line_of(status: SinkStatus) -> str:
    try:
        wanted = msgspec.json.decode(status.filter, type=SinkFilter)
        matches = f"{','.join(wanted.types) or 'all types'} of {','.join(wanted.topics)}"
    except (msgspec.MsgspecError, ValueError):
        matches = "an unreadable filter"
    if status.error:
        return visible(
            f"{status.name}  unreadable: {status.error}  ({matches}; "
            f"semantik-realtime sinks forget {status.name} removes it)"
        )
    taken = "never" if status.taken_seconds is None else f"{status.taken_seconds:.0f} s ago"
    return visible(
        f"{status.name}  queued={status.queued} held={status.held} "
        f"oldest={status.oldest_seconds:.0f}s dead={status.dead} handled={status.handled} "
        f"lost={status.lost}  taken {taken}  ({matches})"
    )
