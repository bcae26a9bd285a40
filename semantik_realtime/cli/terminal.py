"""Texts of events, servers and files, made safe to print in a terminal."""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BIDI_CONTROLS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""They reorder the text around them, so that it reads as something else."""
_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, halves of surrogate pairs, separators of lines and of paragraphs."""


def visible(text: object, keep: str = "") -> str:
    r"""Return the text with every character that a terminal may obey as its Python escape.

    An escape sequence in an event could otherwise set the clipboard or the
    title of the terminal, or overwrite what was printed before it.

    Args:
        text: Anything that can be a str.
        keep: Control characters that stay, such as newlines.

    >>> print(visible("\x1b]0;title\x07 naïve\n"))
    \x1b]0;title\x07 naïve\n
    """
    return "".join(
        character if character in keep or _is_harmless(character) else ascii(character)[1:-1]
        for character in str(text)
    )


def _is_harmless(character: str) -> bool:
    return character not in _BIDI_CONTROLS and unicodedata.category(character) not in _CATEGORIES


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that wraps lines in a terminal only: a program reads whole lines."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, soft_wrap=not stream.isatty())


def plain(text: object, style: str = "", keep: str = "") -> Text:
    """Return `visible` text for rich, which does not look for markup or emoji codes in it."""
    # rich is an extra, and `visible` is used without it.
    from rich.text import Text

    return Text(visible(text, keep), style)
