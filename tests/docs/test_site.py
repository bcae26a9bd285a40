"""The pages as a site: Sphinx builds it, and fails on every reference that leads nowhere."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import semantik_realtime
from semantik_realtime import errors, hookspecs

DOCS = Path(__file__).parents[2] / "docs"
BUILD_SECONDS = 110

if importlib.util.find_spec("sphinx") is None:
    pytest.skip("Sphinx is missing: pip install --group docs", allow_module_level=True)


def build(pages: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build ``pages`` into ``folder``/site as `tox -e docs` does."""
    command = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    return subprocess.run(
        [sys.executable, *command, "-d", str(folder / "read"), str(pages), str(folder / "site")],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("whole")
    built = build(DOCS, folder)
    assert built.returncode == 0, built.stderr
    return folder / "site"


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in DOCS.glob("**/*.md")]
    assert len(pages) > 20
    assert not [page for page in pages if not (site / page).is_file()]


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    found = set(re.findall(r'id="([\w.]+)"', "".join(map(Path.read_text, site.glob("api/*.html")))))
    public = [name for name in semantik_realtime.__all__ if name != "__version__"]
    named = {f"semantik_realtime.{name}" for name in public}
    for module in (errors, hookspecs):
        named |= {
            f"{module.__name__}.{name}"
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        }
    named |= {
        f"semantik_realtime.hookspecs.{spec.__name__}.{name}"
        for spec in (hookspecs.Backend, hookspecs.HostSpec)
        for name in vars(spec)
        if not name.startswith("_")
    }
    named |= {
        "semantik_realtime.runtime.Runtime.publish",
        "semantik_realtime.client.watch",
        "semantik_realtime.worker.submit.submit",
        "semantik_realtime.testing.contract.BackendContract",
    }
    assert len(named) > 30
    assert named - found == set()


def test_links_within_the_site_lead_to_an_anchor_that_exists(site: Path) -> None:
    """Also those that themes and directives make."""
    broken = []
    for page in site.glob("**/*.html"):
        for target in re.findall(r'href="([^"]+)"', page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not file.is_file() or (anchor and f'id="{anchor}"' not in file.read_text()):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert broken == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A site of the same configuration with one page, `index.md`; beside it is `code.py`."""
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(DOCS / "conf.py", folder)
    shutil.copytree(DOCS / "_site", folder / "_site", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "code.py").write_text('"""A file that is no page."""\n')
    return folder


def build_page(small: Path, text: str) -> subprocess.CompletedProcess[str]:
    (small / "index.md").write_text(f"# A page\n\n{text}\n")
    return build(small, small.parent)


def test_a_site_without_faults_is_built(small: Path) -> None:
    built = build_page(small, "[Here](#a-page) and in [the code](../code.py).")
    assert built.returncode == 0, built.stderr
    assert list(small.parent.glob("site/_downloads/*/code.py"))


def test_a_file_outside_the_pages_is_linked_in_the_repository_if_that_is_known(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://forge.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/something")
    monkeypatch.setenv("GITHUB_SHA", "0a1b")
    built = build_page(small, "[The code](../code.py)")
    assert built.returncode == 0, built.stderr
    page = (small.parent / "site" / "index.html").read_text()
    assert 'href="https://forge.example/someone/something/blob/0a1b/code.py"' in page


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[A page](missing.md)", "missing.md"),
        ("[A heading](#missing)", "missing"),
        ("[A file](../missing.py)", "missing.py"),
        ("```{toctree}\nmissing\n```", "missing"),
        ("```{eval-rst}\n.. autofunction:: semantik_realtime.missing\n```", "missing"),
        ("```{eval-rst}\n:py:class:`semantik_realtime.Missing`\n```", "Missing"),
        ("```{eval-rst}\n.. autofunction:: example.f\n```", "there is no `renamed`"),
    ],
    ids=["page", "heading", "file", "navigation", "object", "reference", "docstring"],
)
def test_a_reference_that_leads_nowhere_fails_the_build(
    small: Path, text: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(small.parent))
    (small.parent / "example.py").write_text('def f(x):\n    """Return `x` or `renamed`."""\n')
    built = build_page(small, text)
    assert built.returncode != 0
    assert complaint in built.stderr


def test_a_page_that_nothing_leads_to_fails_the_build(small: Path) -> None:
    (small / "alone.md").write_text("# Alone\n")
    built = build_page(small, "Nothing.")
    assert built.returncode != 0
    assert "alone.md" in built.stderr
