"""`tox -e lowest` really installs the lowest version that each bound of the package allows."""

from __future__ import annotations

from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = [
    requirement
    for requirement in map(Requirement, requires("semantik-realtime") or ())
    if requirement.name != "semantik-realtime"
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lowest_version_is_installed(requirement: Requirement) -> None:
    [bound] = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    installed = Version(version(requirement.name))
    assert installed.release[: len(bound.release)] == bound.release
