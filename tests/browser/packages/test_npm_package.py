"""The npm package: what it has, that strict compilers accept it, and how big it is."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from pathlib import Path

import pytest
from npm_application import HERE, STATIC, Application

import semantik_realtime

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

# Gzipped, of an application that connects and watches.
MAX_CORE_BYTES = 8_000
STRICT = [
    *("--noEmit", "--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"),
    *("--noPropertyAccessFromIndexSignature", "--verbatimModuleSyntax", "--isolatedModules"),
    *("--target", "es2022", "--lib", "es2022,dom,dom.iterable"),
]


def manifest() -> dict[str, object]:
    described: dict[str, object] = json.loads((STATIC / "package.json").read_text())
    return described


def test_the_package_has_every_module_and_every_export(packed: Path) -> None:
    with tarfile.open(packed) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    source = {path.name for path in STATIC.iterdir() if path.is_file()}
    assert names == source
    targets = set(re.findall(r'"\./([\w.]+)"', json.dumps(manifest()["exports"])))
    targets -= {"react", "vue"}
    assert targets <= names
    assert {"realtime.js", "react.d.ts", "vue.js"} <= targets


def test_its_version_is_that_of_the_python_package() -> None:
    # A pre-release has a hyphen for npm: 1.0.0rc1 is 1.0.0-rc.1.
    version = re.sub(r"(a|b|rc)(\d+)$", r"-\1.\2", semantik_realtime.__version__)
    assert manifest()["version"] == version


@pytest.mark.parametrize("module", ["bundler", "nodenext"])
def test_an_application_compiles_in_the_strictest_settings(
    application: Application, module: str
) -> None:
    modules = ["--module", "nodenext"]
    if module == "bundler":
        modules = ["--module", "esnext", "--moduleResolution", "bundler"]
    application.run("tsc", *STRICT, *modules, "types.ts")


def test_the_hooks_match_their_declarations(application: Application) -> None:
    # Not below node_modules, whose modules the compiler does not check.
    folder = application.folder / "checked"
    folder.mkdir()
    for file in STATIC.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    application.run(
        *("tsc", "--noEmit", "--strict", "--noUncheckedIndexedAccess", "--allowJs", "--checkJs"),
        *("--target", "es2022", "--lib", "es2022,dom,dom.iterable"),
        *("--module", "esnext", "--moduleResolution", "bundler"),
        *sorted(folder.glob("*.js")),
    )


def test_the_core_is_small(application: Application) -> None:
    bundled = application.run(
        *("esbuild", "core.js", "--bundle", "--minify", "--format=esm", "--target=es2022"),
        "--log-level=error",
    )
    size = len(gzip.compress(bundled.encode(), 9))
    assert 1_000 < size < MAX_CORE_BYTES


def test_importing_has_no_effect(application: Application) -> None:
    imports = [f'import "semantik-realtime{path}";' for path in ("", "/react", "/vue")]
    (application.folder / "unused.js").write_text("\n".join(imports))
    flags = ["--bundle", "--format=esm", "--external:react", "--external:vue"]
    bundled = application.run("esbuild", "unused.js", *flags, "--log-level=error")
    assert [line for line in bundled.splitlines() if line and not line.startswith("//")] == []


def test_servers_render_without_a_connection(application: Application) -> None:
    assert json.loads(application.run("node", "render.js")) == {
        "react": "<p>connecting null true 0</p>",
        "vue": "<p>connecting null true 0</p>",
        "open": [],
    }


def test_the_folder_of_the_applications_has_no_modules_of_its_own() -> None:
    assert not (HERE / "node_modules").exists()
