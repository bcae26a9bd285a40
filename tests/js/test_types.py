"""realtime.d.ts fits the client, and an application in strict TypeScript that uses all of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "semantik_realtime" / "web" / "static"
TSC = ["exec", "--yes", "--prefer-offline", "--package", "typescript@5", "--", "tsc"]
STRICT = [
    *("--noEmit", "--strict", "--noUncheckedIndexedAccess"),
    *("--target", "es2022", "--lib", "es2022,dom,dom.iterable"),
    *("--module", "esnext", "--moduleResolution", "bundler"),
]
SECONDS = 110


@pytest.fixture(scope="module")
def npm() -> str:
    """Path of npm; skips if npm is missing or cannot fetch the compiler."""
    program = shutil.which("npm")
    if program is None:
        pytest.skip("npm is missing: apt-get install npm, or a Node.js that comes with it")
    if run(program, "--version").returncode != 0:
        pytest.skip("typescript is missing, and npm cannot fetch it: npm cache add typescript@5")
    return program


def run(npm: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [npm, *TSC, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )


def check(npm: str, *arguments: str | Path) -> None:
    ran = run(npm, *STRICT, *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_application_in_strict_typescript_compiles(npm: str) -> None:
    check(npm, ROOT / "tests" / "js" / "types.ts")


def test_the_client_matches_its_declarations(npm: str) -> None:
    # The hooks need the types of React and Vue: tests/browser/packages.
    hooks = {STATIC / "react.js", STATIC / "vue.js"}
    check(npm, "--allowJs", "--checkJs", *sorted({*STATIC.glob("*.js")} - hooks))
