"""The npm package as it is packed, and what applications are built with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from npm_application import HERE, STATIC, Application, output


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that `npm pack` makes of the installed folder."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing: apt-get install npm, or a Node.js that comes with it")
    folder = tmp_path_factory.mktemp("packed")
    output(folder, npm, "pack", "--silent", STATIC)
    [archive] = folder.glob("*.tgz")
    return archive


@pytest.fixture(scope="session")
def application(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    folder = tmp_path_factory.mktemp("application")
    for file in HERE.iterdir():
        if file.is_file() and file.suffix != ".py":
            shutil.copy(file, folder)
    # React 18 and 19 beside each other: each asks for a react-dom of its own version.
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"]
    output(folder, "npm", "install", *options, "--legacy-peer-deps", packed)
    return Application(folder)
