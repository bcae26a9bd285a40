"""What a benchmark prints and writes: its progress, tables, facts of the machine, JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class RunProgress:
    """A bar on the standard error that counts the measurements of a run and names the current one.

    It disappears when the run ends.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, description: str) -> Iterator[None]:
        """Show ``description`` while the block runs, and count one measurement after it."""
        self._progress.update(self._task, description=description, refresh=True)
        yield
        self._progress.advance(self._task)


def make_console(columns: int) -> Console:
    """Return the console of the standard output: ``columns`` wide if that is not a terminal.

    Rich assumes 80 columns there, which would cut the tables.
    """
    return Console(width=None if sys.stdout.isatty() else columns)


def count_text(number: int) -> str:
    """Return a count of errors as markup for a table: red unless it is zero."""
    return "0" if number == 0 else f"[bold red]{number:,}[/]"


def machine_text(machine: Mapping[str, Any]) -> str:
    """Return two lines for `describe_machine`: the machine, and the versions that ran on it."""
    servers = {f"{name}-server": version for name, version in machine.get("servers", {}).items()}
    versions = {**machine["versions"], **servers}
    web = machine["web_server"]
    return (
        f"{machine['cpu_count']} × {machine['cpu']}, {machine['system']}, "
        f"{machine['python']}, load {machine['load_average']}\n"
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; web servers: {web['loop']}, {web['websockets']}"
    )


def encode_json(value: object) -> bytes:
    """Return ``value`` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value))
