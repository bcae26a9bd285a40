"""What is mutated, by which tests it is judged, and what a mutant is called."""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
RESULTS = HERE / "results.json"
EXPLAINED = HERE / "explained.toml"
SCOPE = ("core", "web/hub", "emitter", "backends", "backends/redis")


def modules_in_scope() -> list[str]:
    """Return the modules that a complete run mutates, as paths from the root."""
    package = REPOSITORY / "semantik_realtime"
    return [
        path.relative_to(REPOSITORY).as_posix()
        for folder in SCOPE
        for path in sorted((package / folder).glob("*.py"))
        if path.name != "__init__.py"
    ]


def tests_of(module: str) -> list[str]:
    """Return the paths of the tests that judge ``module``; none if it has no fast ones."""
    table = tomllib.loads((HERE / "modules.toml").read_text(encoding="utf-8"))
    folder, _, name = module.removeprefix("semantik_realtime/").removesuffix(".py").rpartition("/")
    return [f"tests/{path}" for path in table.get(folder.replace("/", "."), {}).get(name, [])]


def load_results() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


def load_explained() -> dict[str, str]:
    """Return the reason of each survivor that no test can or need kill, by its id."""
    table = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    return {entry["id"]: entry["reason"] for entry in table.get("survivor", [])}


def function_lines(module: str, function: str) -> tuple[int, list[str]] | None:
    """Return the first line's number and the lines of a function, or None if there is none.

    Args:
        module: A path from the root.
        function: ``name`` or ``Class.name``.
    """
    source = (REPOSITORY / module).read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(source).body
    *classes, name = function.split(".")
    for wanted in classes:
        found = [n for n in body if isinstance(n, ast.ClassDef) and n.name == wanted]
        if not found:
            return None
        body = found[0].body
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node.lineno, source.splitlines()[node.lineno - 1 : node.end_lineno]
    return None


def changed_lines(diff: str) -> tuple[list[str], list[str]]:
    """Return the lines that a unified diff removes and adds, without their indentation."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    removed = [line[1:].strip() for line in lines if line.startswith("-")]
    added = [line[1:].strip() for line in lines if line.startswith("+")]
    return removed, added


def mutant_id(module: str, name: str, diff: str) -> dict[str, Any]:
    """Return a survivor's entry: an id that other changes of the file leave as it is, line, diff.

    Args:
        name: The tester's name, ``package.module.xǁClassǁfunction__mutmut_7`` or ``…x_function…``.
    """
    mangled = name.partition("__mutmut_")[0].rpartition(".")[2]
    function = ".".join(mangled.split("ǁ")[1:]) if "ǁ" in mangled else mangled.removeprefix("x_")
    removed, added = changed_lines(diff)
    digest = hashlib.sha256("\n".join([*removed, "->", *added]).encode()).hexdigest()[:8]
    offset = next(
        (
            int(line.split("@@")[1].split()[0].split(",")[0][1:])
            for line in diff.splitlines()
            if line.startswith("@@")
        ),
        1,
    )
    found = function_lines(module, function)
    line = 0
    if found is not None:
        first, lines = found
        matches = [i for i, text in enumerate(lines) if removed and text.strip() == removed[0]]
        line = first + min(matches, key=lambda i: abs(i - offset - 2), default=0)
    return {
        "id": f"{module}:{function}:{digest}",
        "line": line,
        "removed": removed,
        "added": added,
    }
