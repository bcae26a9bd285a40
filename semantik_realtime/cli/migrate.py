"""``semantik-realtime migrate``: move live topics to another server."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeVar

from msgspec import structs
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.cli.migrate_copy import (
    CALL_SECONDS,
    Copier,
    MigrationFailed,
    Side,
)
from semantik_realtime.cli.migrate_found import Comparison
from semantik_realtime.cli.terminal import make_console, plain
from semantik_realtime.clock import now_text
from semantik_realtime.config import load_settings
from semantik_realtime.core.copying import Mark, Role, find_conflict
from semantik_realtime.errors import BackendError, BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import Backend
from semantik_realtime.transfer import TRANSFERS, Transfer
from semantik_realtime.urls import mask_urls

ROUND_SECONDS = 1.0
"""Between two looks for what is new."""
PATIENCE_SECONDS = 60.0
"""How long a server may not answer before the command ends; while it only follows, for ever."""
LAST_PAUSE_SECONDS = 5.0
"""Longest pause before a server that does not answer is asked again."""
MOST_ROUNDS = 10
"""Rounds before the close, each shorter than the one before, until nothing is left to copy."""
LAST_ROUNDS = 3
"""Rounds after the close, until all topics are equal; the first should be enough."""

Result = TypeVar("Result")


class Options(NamedTuple):
    """The options of the command."""

    once: bool = False
    switch: bool = False
    reopen: bool = False
    stopped: bool = False
    restart_seconds: float = 3600.0
    as_json: bool = False


def run_migrate(source: str, target: str, options: Options) -> int:
    """Move the topics at the URL ``source`` to ``target``; return the exit code.

    Raises:
        ConfigError: no installed engine has such a URL, or it is wrong.
        MigrationFailed, BackendError: it cannot go on; what was copied stays.
    """
    modes = [name for name in ("once", "switch", "reopen") if getattr(options, name)]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]} exclude each other")
    sides = Side("FROM", make_transfer(source)), Side("TO", make_transfer(target))
    if sides[0].address == sides[1].address:
        raise ConfigError("FROM and TO are the same server")
    migration = Migration(*sides, source, options)
    try:
        return asyncio.run(migration.run())
    except KeyboardInterrupt:
        migration.note(migration.interrupted)
        return 0 if not modes else 130


def make_transfer(url: str) -> Transfer:
    """Make what moves topics to or from a URL, by its scheme. Opens no connection.

    Raises:
        ConfigError: no installed engine has such a URL, or it is wrong.
    """
    name, made = _find_engine(url)
    transfer: Transfer = made(load_settings(backend=name, url=url))
    return transfer


def make_backend(url: str) -> Backend:
    """Make the backend of a URL that `make_transfer` accepts. Opens no connection."""
    name, _ = _find_engine(url)
    return load_backend(load_settings(backend=name, url=url))


def _find_engine(url: str) -> tuple[str, Any]:
    """Return the name of the backend of a URL, and what makes its transfer."""
    scheme, separator, _ = url.partition("://")
    installed = {entry.name: entry.load() for entry in entry_points(group=TRANSFERS)}
    for name, found in installed.items():
        if separator and scheme.lower() in found.schemes:
            return name, found
    schemes = ", ".join(f"{name} ({', '.join(one.schemes)})" for name, one in installed.items())
    raise ConfigError(
        f"topics cannot be moved from or to {mask_urls(url)}; engines with URLs of their own: "
        f"{schemes}. The topics of the memory backend end with its process"
    )


class Migration:
    """One run of the command; ``source_url`` is that of the source."""

    def __init__(self, source: Side, target: Side, source_url: str, options: Options) -> None:
        self._source = source
        self._source_url = source_url
        self._target = target
        self._options = options
        self._console = make_console(stderr=options.as_json)
        self.interrupted = "stopped: nothing was changed on FROM; run the command again to go on"
        """What to say after Ctrl-C."""
        self._progress = _progress(self._console)
        self._bar = self._progress.add_task("copying", total=None, events=0)
        self._own = self._mark(Role.TARGET, secrets.token_hex(6), source, secrets.token_hex(6))
        """The mark of TO while this run may fill it."""
        self._copier = Copier(source, target, self._show, self._own.run)

    def note(self, text: str, style: str = "") -> None:
        """Print a line."""
        self._console.print(plain(text, style))

    async def run(self) -> int:
        """Do what the options say; return the exit code."""
        try:
            with self._progress:
                return await self._run()
        finally:
            for side in (self._source, self._target):
                await side.transfer.close()

    async def _run(self) -> int:
        for side in (self._source, self._target):
            await side.ask(side.transfer.open())
        source_mark, target_mark = await self._source.read_mark(), await self._target.read_mark()
        if self._options.reopen:
            return await self._reopen(source_mark, target_mark)
        self._check(
            source_mark,
            target_mark,
            target_has_topics=target_mark is None and await self._target.has_topics(),
        )
        if source_mark is not None and source_mark.role is Role.SOURCE:
            if not self._options.switch:
                raise MigrationFailed("FROM is closed already: finish with --switch, or --reopen")
        await self._take_target(target_mark)
        if self._options.switch:
            return await self._switch(source_mark)
        await self._patiently(self._copier.copy_round)
        return await (self._once() if self._options.once else self._follow())

    def _check(self, source: Mark | None, target: Mark | None, *, target_has_topics: bool) -> None:
        roles = [mark and mark.role for mark in (source, target)]
        if roles == [Role.SOURCE, Role.ARRIVED] and source and target:
            if source.migration == target.migration:
                raise MigrationFailed(
                    "this migration is complete: FROM is closed, TO is open and has all topics"
                )
        address = self._source.address
        conflict = find_conflict(source, target, address, target_has_topics=target_has_topics)
        if conflict:
            raise MigrationFailed(conflict)

    async def _take_target(self, mark: Mark | None) -> None:
        """Make this the one run that may fill TO, which had this mark; others end.

        Raises:
            MigrationFailed: TO has another mark, or topics of another migration.
        """
        if mark is not None and mark.role is Role.TARGET:
            self._own = structs.replace(self._own, migration=mark.migration)
        await self._change_mark(self._target, mark, self._own)
        if mark is None and await self._target.has_topics():
            # From now on nobody else stores any; these came since the look before the mark.
            await self._change_mark(self._target, self._own, None)
            raise MigrationFailed("TO has got topics meanwhile: another migrate fills it, or has")

    @staticmethod
    async def _change_mark(side: Side, old: Mark | None, new: Mark | None, **given: bool) -> None:
        given = {"is_closing_needed": False, **given}
        if not await side.set_mark(new, instead_of=old, **given):
            raise MigrationFailed(
                f"another migrate has marked {side.name} meanwhile: this one ends, and that one "
                "decides what is open"
            )

    @staticmethod
    def _mark(role: Role, migration: str, other: Side, run: str = "") -> Mark:
        return Mark(role, migration, other.address, now_text(), run)

    async def _follow(self) -> int:
        """Copy what is new, until Ctrl-C."""
        self.note("TO follows FROM. Ctrl-C ends that; --switch moves the processes (docs)")
        pause = ROUND_SECONDS
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            await self._patiently(self._copier.copy_round, for_ever=True)
            # Looking at very many topics takes at most half of the time.
            pause = max(ROUND_SECONDS, time.monotonic() - began)

    async def _once(self) -> int:
        comparison = await self._patiently(self._copier.compare)
        self._finish(comparison)
        return 0 if comparison.is_equal else 1

    async def _switch(self, mark: Mark | None) -> int:
        """Copy, close FROM, which has this mark, copy the rest, compare, and open TO."""
        options = self._options
        for _ in range(MOST_ROUNDS):
            stored = await self._patiently(self._copier.copy_round)
            # Before the close, so that little is left to compare after it.
            comparison = await self._patiently(self._copier.compare)
            if comparison.is_equal and not stored:
                break
        if not comparison.is_equal:
            self._finish(comparison)
            self.note("the topics differ; FROM stays open", "red")
            return 1
        await self._patiently(self._copier.check_target)
        self.interrupted = (
            "stopped: FROM is closed and TO is not open yet; run the command again to finish, or "
            "with --reopen to open FROM again"
        )
        closed_at = time.monotonic()
        closing = self._mark(Role.SOURCE, self._own.migration, self._target)
        await self._change_mark(self._source, mark, closing, is_closing_needed=not options.stopped)
        self.note(f"FROM is closed: {self._source.address}")
        for _ in range(LAST_ROUNDS):
            await self._patiently(lambda: self._copier.copy_round(thorough=True))
            comparison = await self._patiently(self._copier.compare)
            if comparison.is_equal and not comparison.changing:
                break
        jobs = await self._patiently(lambda: self._copier.copy_holders(options.restart_seconds))
        if not comparison.is_equal or comparison.changing:
            self._finish(comparison)
            self.note(
                "the topics differ, so TO stays closed, and FROM too: run the command again, or "
                "with --reopen to open FROM again",
                "red",
            )
            return 1
        if await self._patiently(self._source.read_mark) != closing:
            raise MigrationFailed("another migrate has marked FROM meanwhile: TO stays closed")
        arrived = self._mark(Role.ARRIVED, self._own.migration, self._source)
        await self._change_mark(self._target, self._own, arrived)
        seconds = time.monotonic() - closed_at
        self._finish(comparison, closed_seconds=round(seconds, 3), held_jobs=jobs)
        await self._note_sinks()
        self.note(
            f"TO is open, {seconds:.2f} s after the close of FROM. Restart every process with "
            f"{self._target.address}: until then it writes nothing",
            "green",
        )
        return 0

    async def _reopen(self, source: Mark | None, target: Mark | None) -> int:
        """Open FROM again, if TO was not opened."""
        if source is None or source.role is not Role.SOURCE:
            self.note("FROM is open")
            return 0
        if target is None or target.migration != source.migration:
            raise MigrationFailed(f"FROM was not closed for TO: {source.reason}")
        if target.role is not Role.TARGET:
            raise MigrationFailed(
                "TO is open, and may have events that FROM has not: move them back with migrate "
                "TO FROM"
            )
        # First, so that a switch that still runs cannot open TO any more.
        self._own = structs.replace(self._own, migration=target.migration)
        await self._change_mark(self._target, target, self._own)
        await self._copier.check_target()
        await self._change_mark(self._source, source, None)
        self.note("FROM is open again")
        return 0

    async def _note_sinks(self) -> None:
        """Say which sinks of FROM have events in their queues: those are not copied."""
        backend = make_backend(self._source_url)
        status = getattr(backend, "sink_status", None)
        if status is None:
            return
        try:
            sinks = await asyncio.wait_for(asyncio.to_thread(status), CALL_SECONDS)
        except (BackendError, TimeoutError) as error:
            self.note(f"FROM: the queues of sinks were not read: {error}", "yellow")
            return
        finally:
            backend.close_writer()
        for sink in sinks:
            if sink.error:
                self.note(f"FROM: the queue of {sink.name} was not read: {sink.error}", "yellow")
            if waiting := sink.queued + sink.dead:
                self.note(
                    f"the sink {sink.name} has {waiting} events in its queue on FROM: let the web "
                    "servers handle them before they are restarted",
                    "yellow",
                )

    async def _patiently(
        self, call: Callable[[], Awaitable[Result]], *, for_ever: bool = False
    ) -> Result:
        """Make a call, again while a server does not answer."""
        until, pause = time.monotonic() + PATIENCE_SECONDS, ROUND_SECONDS
        while True:
            try:
                return await call()
            except BackendUnavailable as error:
                if not for_ever and time.monotonic() > until:
                    raise
                if pause == ROUND_SECONDS:
                    self.note(f"{error}; trying again", "yellow")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    def _show(self, looked: int) -> None:
        counts = self._copier.counts
        self._progress.update(
            self._bar, completed=looked, total=max(looked, counts.topics), events=counts.events
        )

    def _finish(self, comparison: Comparison, **facts: Any) -> None:
        counts = self._copier.counts
        report = {
            "topics": counts.topics,
            "events": counts.events,
            "left_out": counts.left_out,
            "equal": comparison.equal,
            "changing": comparison.changing,
            "differences": comparison.differences,
            "different": comparison.different,
            **facts,
        }
        if self._options.as_json:
            print(json.dumps(report), flush=True)
            return
        self.note(
            f"{counts.topics} topics, {counts.events} events copied; {comparison.equal} topics are "
            f"equal, {comparison.changing} got events meanwhile, {comparison.differences} differ"
        )
        for topic in comparison.different:
            self.note(f"differs: {topic}", "red")
        if counts.left_out:
            self.note(
                f"{counts.left_out} events were left out: their histories are damaged, or have "
                "holes before them",
                "yellow",
            )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("topics, {task.fields[events]} events", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
