"""docs/operations.md explains each line that the package logs, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "semantik_realtime"
PAGE = (ROOT / "docs" / "operations.md").read_text()
SECTION = PAGE.partition("## Log lines")[2].partition("\n## ")[0]
LEVELS = {"info", "warning", "error", "exception", "critical"}


def fixed(format: str) -> str:
    """The part of a log line before its first argument: `hub: gap topic=%s` is `hub: gap`."""
    return re.split(r"\s*(?:[\w.]+=)?%|\s*\(", format)[0].strip()


def logged() -> Iterator[str]:
    for file in PACKAGE.rglob("*.py"):
        # The demo is an example of a host, and not what an operator runs.
        if "demo" in file.relative_to(PACKAGE).parts[:-1]:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in LEVELS and ast.unparse(node.func.value) == "logger":
                    for part in ast.walk(node.args[0]):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield fixed(part.value)


def explained() -> set[str]:
    rows = re.findall(r"^\| (`.+?) \|", SECTION, re.MULTILINE)
    faults = SECTION.partition("**Faults of this package.**")[2]
    return set(re.findall(r"`([a-z][\w ]*:[^`]*)`", " ".join([*rows, faults])))


def test_the_lines_are_found() -> None:
    assert len(set(logged())) > 30
    assert "hub: gap" in set(logged()) & explained()


def test_every_logged_line_is_explained() -> None:
    beginnings = tuple(explained())
    assert [line for line in logged() if not line.startswith(beginnings)] == []


def test_every_explained_line_is_logged() -> None:
    lines = list(logged())
    assert [
        begin for begin in explained() if not any(line.startswith(begin) for line in lines)
    ] == []
