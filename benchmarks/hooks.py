"""What a call of a hook costs: bound directly, guarded, and through pluggy with a wrapper.

::

    python -m benchmarks.hooks

No server: the backend's method returns at once, so that only the call is measured. The rows are
ratios of one run; the figures themselves depend on the machine.
"""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable, Generator, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.loader import bind_hooks, build_plugins
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.hookspecs import hookimpl

CALLS = 20_000
ROUNDS = 7


class Idle(MemoryBackend):
    """A backend whose `publish` does nothing."""

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        return []


class Wrapper:
    """A plugin that wraps `publish` and changes nothing."""

    @hookimpl(wrapper=True)
    def publish(self, drafts: Sequence[Draft]) -> Generator[None, Any, Any]:
        return (yield)


def ways(wrapper: object) -> dict[str, Callable[[Sequence[Draft]], object]]:
    """Return each way of calling `publish`, the last one wrapped, by its name in the table."""
    backend = Idle(Settings(backend="memory"))
    alone = bind_hooks(build_plugins(backend))
    wrapped = bind_hooks(build_plugins(backend, [wrapper]))
    return {
        "the backend's method": backend.publish,
        "bound, no plugin": alone.publish,
        "guarded, no plugin": GuardedBackend(alone, 5.0).publish,
        "guarded, one wrapper": GuardedBackend(wrapped, 5.0).publish,
    }


def measure(calls: int, rounds: int) -> dict[str, float]:
    """Return microseconds a call, the best of several rounds in which the ways take turns."""
    measured = ways(Wrapper())
    best = dict.fromkeys(measured, float("inf"))
    for _ in track(range(rounds), "Calling", transient=True, console=Console(stderr=True)):
        for name, call in measured.items():
            seconds = timeit.timeit(functools.partial(call, ()), number=calls)
            best[name] = min(best[name], seconds / calls * 1e6)
    return best


@click.command()
@click.option("--calls", default=CALLS, show_default=True, help="Calls in a round.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="Rounds; the best one counts.")
def main(calls: int, rounds: int) -> None:
    """Measure what a call of a hook costs."""
    best = measure(calls, rounds)
    table = Table("call of publish", "µs", "more than the method, µs")
    bare = next(iter(best.values()))
    for name, micros in best.items():
        table.add_row(name, f"{micros:.2f}", f"{micros - bare:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
