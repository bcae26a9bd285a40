"""The lower bounds are written down once, or the same wherever they are written down."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECTS = [
    ROOT / "pyproject.toml",
    ROOT / "plugins/semantik-realtime-nats/pyproject.toml",
    *(ROOT / "docs/examples").glob("*/pyproject.toml"),
]


def bounds_of(path: Path) -> list[tuple[str, str]]:
    """Return name and version of every ``>=`` of a project."""
    content = tomllib.loads(path.read_text())
    project = content["project"]
    lists = [
        project.get("dependencies", []),
        *project.get("optional-dependencies", {}).values(),
        *content.get("dependency-groups", {}).values(),
    ]
    requirements = [Requirement(text) for texts in lists for text in texts]
    return [
        (one.name.lower(), specifier.version)
        for one in requirements
        for specifier in one.specifier
        if specifier.operator == ">="
    ]


def test_a_package_has_one_bound_in_all_projects() -> None:
    bounds = {bound for path in PROJECTS for bound in bounds_of(path)}
    names = [name for name, _ in bounds]
    assert [bound for bound in sorted(bounds) if names.count(bound[0]) > 1] == []


def tox_deps(name: str) -> list[Requirement]:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    lines = tox[name].get("deps", "").splitlines()
    return [Requirement(line.partition(": ")[2] or line) for line in lines if line.strip("{}[] ")]


def test_the_row_lowest_installs_the_lowest_version_that_a_bound_allows() -> None:
    bounds = dict(bounds_of(PROJECTS[0]))
    # Not ours, but Celery's: its first version with Celery's bound.
    bounds["kombu"] = bounds["celery"]
    pins = {one.name: str(one.specifier) for one in tox_deps("testenv:lowest")}
    assert pins == {name: f"=={bounds[name]}.*" for name in pins}


@pytest.mark.parametrize("row", ["testenv", "testenv:backend-nats", "testenv:types"])
def test_a_row_of_tox_repeats_a_bound_as_it_is(row: str) -> None:
    bounds = {bound for path in PROJECTS for bound in bounds_of(path)}
    deps = {(one.name, next(iter(one.specifier)).version) for one in tox_deps(row)}
    assert deps
    assert deps <= bounds
