"""The options that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.broker import BACKENDS

Command = Callable[..., Any]
TARGET_WINDOW = 100
"""The targets of a fan-out are for so many events on the way: with fewer there is less to put
into one frame."""


class Names(click.ParamType[tuple[str, ...]]):
    """Some of a set of names, separated by commas; nothing means none."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = tuple(known)

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        names = tuple(name.strip() for name in names if name.strip())
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


def backends(*default: str) -> Callable[[Command], Command]:
    """Which backends are measured; ``--backend`` is an alias."""
    return names("backends", BACKENDS, default, "--backend")


def names(
    option: str, known: Sequence[str], default: Sequence[str], *aliases: str
) -> Callable[[Command], Command]:
    """Which of ``known`` are measured."""
    return click.option(
        option,
        f"--{option}",
        *aliases,
        type=Names(known),
        default=",".join(default),
        show_default=True,
        help=f"Of {', '.join(known)}; separated by commas.",
    )


def number(option: str, default: int, least: int, help: str) -> Callable[[Command], Command]:
    """A whole number."""
    return click.option(
        f"--{option}", type=click.IntRange(least), default=default, show_default=True, help=help
    )


def seconds(default: float, help: str) -> Callable[[Command], Command]:
    """How long it may take."""
    return click.option("--seconds", type=float, default=default, show_default=True, help=help)


# 200 are some 57 kB, below the 64 KiB at which our server conflates; 100 are what a channel of
# channels_redis holds before it drops.
window = click.option(
    "--window",
    type=click.IntRange(1, 200),
    default=TARGET_WINDOW,
    show_default=True,
    help="Events that may be on the way to the slowest client.",
)
quick = click.option(
    "--quick", is_flag=True, help="One small round: does it work, not how fast it is."
)
lose = click.option(
    "--lose",
    type=click.IntRange(0),
    default=0,
    help="Leave out every so-manieth event: the run must fail.",
)
json_file = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the figures for machines.",
)
