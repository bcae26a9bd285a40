"""The architecture page names files, classes and functions that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
STATIC = ROOT / "semantik_realtime" / "web" / "static"
ROW = re.compile(r"^\|.*?\| `(semantik_realtime/[^`]+)` \| (`[^|]+`) \|", re.MULTILINE)


def named() -> list[tuple[str, str]]:
    """Each file of the page's tables with each name beside it."""
    rows = ROW.findall(PAGE.read_text())
    return [(path, name) for path, names in rows for name in re.findall(r"`([^`]+)`", names)]


def definitions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """The names that a module or a class defines, and imports, at its top level."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name):
                yield prefix + name
                yield from definitions(node, f"{prefix}{name}.")
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                yield prefix + name
            case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
                yield prefix + name
            case ast.ImportFrom(names=names):
                yield from (prefix + (alias.asname or alias.name) for alias in names)


def test_the_page_follows_an_event_a_subscription_and_an_outage() -> None:
    assert len(named()) >= 45
    text = PAGE.read_text()
    for first, last in (
        ("Job.progress", "#paint"),
        ("Session.receive", "Sync"),
        ("GuardedBackend.listen", "DegradedMode._come_back"),
    ):
        assert 0 < text.index(first) < text.index(last)


@pytest.mark.parametrize(("path", "name"), named(), ids=lambda value: value.split("/")[-1])
def test_a_file_of_the_page_defines_the_name_beside_it(path: str, name: str) -> None:
    text = (ROOT / path).read_text()
    if path.endswith(".js"):
        assert re.search(rf"^(export function |function |  ){re.escape(name)}\(", text, re.M)
    else:
        assert name in set(definitions(ast.parse(text)))


def test_in_the_path_of_an_event_each_file_comes_once_except_the_two_that_are_explained() -> None:
    text = PAGE.read_text()
    section = text[text.index("## An event") : text.index("## A subscription")]
    files = [path for path, _ in ROW.findall(section)]
    again = {path for path in files if files.count(path) > 1}
    assert again == {"semantik_realtime/worker/job.py", "semantik_realtime/web/hub/channel.py"}


def test_a_module_of_the_javascript_client_imports_only_from_those_named_after_it() -> None:
    (paragraph,) = re.findall(r"^So has the JavaScript client in `.*", PAGE.read_text(), re.M)
    names = re.findall(r"`(\w+)`", paragraph)
    files = {path.stem: path.read_text() for path in STATIC.glob("*.js")}
    assert sorted(names) == sorted(files)
    for at, name in enumerate(names):
        imported = set(re.findall(r'from "\./(\w+)\.js"', files[name]))
        assert imported <= set(names[at + 1 :]), name
