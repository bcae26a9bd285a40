"""The fixtures of pytest for applications that use this package; see docs/testing.md.

pytest loads this module in every session, by entry point. It imports the rest
only for a test that uses one of the fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from semantik_realtime.pytest_plugin.fixture import RealtimeFixture as RealtimeFixture


@pytest.fixture
def realtime_settings() -> Mapping[str, Any]:
    """Settings of the fixture ``realtime``, by name. Override it; the environment has no effect."""
    return {}


@pytest.fixture
def realtime(realtime_settings: Mapping[str, Any]) -> Iterator[RealtimeFixture]:
    """The live updates of this test, in memory; no server is needed.

    Every Celery task of the process is a job. Every runtime of the process, web or
    not, whose backend follows from the settings uses the same memory, whatever
    these settings are. Afterwards everything is as before.
    """
    from semantik_realtime.pytest_plugin.fixture import realtime_fixture

    with realtime_fixture(realtime_settings) as fixture:
        yield fixture


@pytest.fixture(scope="session")
def realtime_session() -> Iterator[None]:
    """Keep all live updates of the session in memory, also between tests with ``realtime``.

    For fixtures of a wider scope than a test: a web application or a worker
    that is started once. Request it before they start, or make it autouse.
    """
    from semantik_realtime.pytest_plugin.fixture import session_in_memory

    with session_in_memory():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Set ``realtime`` up before the test's other fixtures: these may start an application."""
    names: list[str] = getattr(item, "fixturenames", [])
    if "realtime" in names and _is_ours(item, "realtime"):
        names.sort(key=lambda name: name not in ("realtime_session", "realtime"))


def _is_ours(item: pytest.Item, name: str) -> bool:
    """Return False if the application has a fixture of this name."""
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return bool(known.get(name)) and known[name][-1].func.__module__ == __name__


def __getattr__(name: str) -> Any:
    if name != "RealtimeFixture":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from semantik_realtime.pytest_plugin.fixture import RealtimeFixture

    return RealtimeFixture
