"""Links, files, settings, imports and commands in the pages exist."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from semantik_realtime.cli import cli
from semantik_realtime.config import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path if path else page), anchor


def test_the_pages_are_found() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "CHANGELOG.md", "quickstart.md", "protocol.md", "glossary.md"} <= names


@every_page
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target.name}#{anchor}"


@every_page
def test_every_named_file_exists(page: Path) -> None:
    for path in re.findall(r"`(?!\.\.)([\w.-]+(?:/[\w.-]+)+/?)`", prose(page)):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@every_page
def test_every_named_variable_is_a_setting(page: Path) -> None:
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    options = {
        option.envvar
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option.envvar, str)
    }
    named = set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", page.read_text()))
    # Other distributions have settings of their own, in their READMEs.
    theirs = [
        readme.read_text()
        for folder in ("plugins", "docs/examples")
        for readme in (ROOT / folder).glob("*/README.md")
    ]
    assert {
        name
        for name in named - settings - options
        # A guide may use a prefix for all settings that begin with it.
        if not any(name in text for text in theirs)
    } == set()


@every_page
def test_python_examples_compile_and_import_names_that_exist(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page of an example imports the example, installed or not.
    monkeypatch.syspath_prepend(page.parent)
    for block in blocks(page, "python"):
        compile(block, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("semantik"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("path", GENERATED["PAGES"], ids=lambda path: path.name)
def test_the_generated_files_match_the_settings(path: Path) -> None:
    assert path.read_text() == GENERATED["PAGES"][path](), "run: python docs/generate.py"


def test_the_table_of_settings_links_to_the_settings_of_the_plugins() -> None:
    found = set(links(ROOT / "docs" / "configuration.md"))
    for readme in ROOT.glob("plugins/*/README.md"):
        assert (ROOT / "docs" / ".." / readme.relative_to(ROOT), "settings") in found


def test_the_example_environment_gives_the_default_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = re.findall(r"^#(\w+)=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(lines) > 20
    default = Settings()
    for name, value in lines:
        monkeypatch.setenv(name, value)
    assert Settings() == default


def test_ci_runs_the_command_of_the_readme() -> None:
    command = "pip install tox && tox"
    assert command in blocks(ROOT / "README.md", "")[-1]
    script = (ROOT / ".ci" / "run").read_text()
    assert command.replace("tox && tox", "--quiet tox && REQUIRE_ALL=1 tox") in script
    assert "run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_package_installs_the_programs_of_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    programs = set(re.findall(r"^.*&& ([\w-]+) demo$", blocks(ROOT / "README.md", "")[0], re.M))
    assert programs == set(project["scripts"])
    for target in project["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_tox_runs_every_folder_of_tests() -> None:
    checks = (ROOT / "tox.ini").read_text()
    tests = ("tests/*/*test*.*", "plugins/*/tests/test_*.py", "docs/examples/*/tests/test_*.py")
    folders = {path.parent for pattern in tests for path in ROOT.glob(pattern)}
    assert len(folders) > 7
    assert not [folder for folder in folders if f"{folder.relative_to(ROOT)} " not in checks]


def test_the_list_of_decisions_is_complete() -> None:
    pages = {page.name for page in ROOT.glob("docs/adr/[0-9]*.md")}
    assert pages == {target.name for target, _ in links(ROOT / "docs" / "adr" / "README.md")} - {
        "glossary.md"
    }


def test_vectors_run_on_the_sides_that_the_protocol_names() -> None:
    rows = re.findall(
        r"^\| `(\w+)\.json` \|.*?\| (yes|no)\b.*?\| (yes|no)\b",
        (ROOT / "docs/protocol.md").read_text(),
        re.MULTILINE,
    )
    files = {path.stem for path in (ROOT / "tests/vectors").glob("*.json")}
    assert {name for name, *_ in rows} == files

    def run_by(*tests: Path) -> set[str]:
        return set(re.findall(r'cases\("(\w+)"', "".join(map(Path.read_text, tests))))

    assert run_by(ROOT / "tests/core/test_vectors.py") == files
    in_node = run_by(*(ROOT / "tests/js").glob("*.test.js"))
    assert in_node == {name for name, client, _ in rows if client == "yes"}
