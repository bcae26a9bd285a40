"""A file that has grown too long holds more than one idea."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
FOLDERS = [ROOT / name for name in ("semantik_realtime", "plugins", "benchmarks", "docs/examples")]
SUFFIXES = {".py", ".js", ".lua"}


def sources(*folders: Path) -> Iterator[Path]:
    """The code in these folders, without the tests of a plugin or an example."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES and "tests" not in path.relative_to(folder).parts:
                yield path


def too_long(*folders: Path) -> dict[str, int]:
    lines = {path: len(path.read_text().splitlines()) for path in sources(*folders)}
    return {str(path): count for path, count in lines.items() if count > MAX_LINES}


def test_the_code_of_each_language_is_found() -> None:
    assert {path.suffix for path in sources(*FOLDERS)} == SUFFIXES
    for folder in FOLDERS:
        assert any(sources(folder)), folder


def test_no_source_file_is_too_long() -> None:
    assert too_long(*FOLDERS) == {}, f"more than {MAX_LINES} lines: split it by idea"


def test_a_file_that_is_too_long_is_found(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("long.py", "long.js", "long.lua", "long.md", "tests/test_long.py"):
        (tmp_path / name).write_text("\n" * (MAX_LINES + 1))
    (tmp_path / "short.py").write_text("\n" * MAX_LINES)
    found = {Path(path).name for path in too_long(tmp_path)}
    assert found == {"long.py", "long.js", "long.lua"}
