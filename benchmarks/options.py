"""Command-line options that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.broker import BACKENDS

Command = Callable[..., Any]
TARGET_WINDOW = 100
"""The least ``--window`` for which a fan-out has targets: with fewer events on the way, there are
fewer to send in one frame."""


class Names(click.ParamType[tuple[str, ...]]):
    """Some names of a set, separated by commas; an empty text is none."""

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
    """Return the option for the backends; ``--backend`` is an alias."""
    return names("backends", BACKENDS, default, "--backend")


def names(
    option: str, known: Sequence[str], default: Sequence[str], *aliases: str
) -> Callable[[Command], Command]:
    """Return an option for some names of ``known``."""
    return click.option(
        option,
        f"--{option}",
        *aliases,
        type=Names(known),
        default=",".join(default),
        show_default=True,
        help=f"Some of {', '.join(known)}; separated by commas.",
    )


def number(option: str, default: int, least: int, help: str) -> Callable[[Command], Command]:
    """Return an option for a whole number, ``least`` or more."""
    return click.option(
        f"--{option}", type=click.IntRange(least), default=default, show_default=True, help=help
    )


class Numbers(click.ParamType[tuple[int, ...]]):
    """Some whole numbers from 1 on, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        texts = value.split(",") if isinstance(value, str) else [str(one) for one in value]
        if not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
            self.fail(f"{value!r} are no numbers from 1 on", param, ctx)
        return tuple(sorted({int(text) for text in texts}))


def numbers(option: str, default: Sequence[int], help: str) -> Callable[[Command], Command]:
    """Return an option for some whole numbers from 1 on."""
    text = ",".join(map(str, default))
    return click.option(f"--{option}", type=Numbers(), default=text, show_default=True, help=help)


def seconds(default: float, help: str) -> Callable[[Command], Command]:
    """Return the option for a time limit."""
    return click.option("--seconds", type=float, default=default, show_default=True, help=help)


# 200 events are some 57 kB, less than the 64 KiB above which our server conflates. 100 events are
# the most that a channel of channels_redis holds before it drops.
window = click.option(
    "--window",
    type=click.IntRange(1, 200),
    default=TARGET_WINDOW,
    show_default=True,
    help="Events that may be on the way to the slowest client.",
)
quick = click.option("--quick", is_flag=True, help="Run one small round, to see that it works.")
check = click.option("--check", is_flag=True, help="Fail also if a target is missed.")
lose = click.option(
    "--lose",
    type=click.IntRange(0),
    default=0,
    help="Leave out one event in so many, to see that the run fails.",
)
json_file = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file for the figures as JSON.",
)
