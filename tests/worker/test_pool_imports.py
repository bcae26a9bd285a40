"""What an application sets as ``imports`` and ``include`` stays, and the tracker is added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals

from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import tracker as tracker_module
from semantik_realtime.worker.pool_imports import INSTALLING_MODULE

FORMS = ["colorsys", ("colorsys",), ["colorsys"], {"colorsys"}, frozenset({"colorsys"})]
NAMES = pytest.mark.parametrize("name", ["imports", "include"])


@pytest.fixture(autouse=True)
def tracker(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The tests import the module that installs it, which then finds this one.
    monkeypatch.setattr(tracker_module, "_tracker", None)
    tracker = tracker_module.install(runtime=runtime)
    yield
    tracker.disconnect()
    assert not tracker.failures


def start_worker(app: Celery) -> None:
    signals.celeryd_init.send(sender="w@here", instance=None, conf=app.conf, options={})


def imported(app: Celery) -> list[str]:
    return [module.__name__ for module in app.loader.import_default_modules()]


@NAMES
@pytest.mark.parametrize("value", [*FORMS, None, {"colorsys": 1}.keys()], ids=repr)
def test_a_worker_imports_what_the_application_names_in_any_form(name: str, value: Any) -> None:
    app = Celery("other", broker="memory://", set_as_current=False)
    app.conf[name] = value
    start_worker(app)
    expected = {INSTALLING_MODULE} | ({"colorsys"} if value else set())
    assert expected <= {*imported(app)}
    # As Celery reads it once more for processes that are not forked.
    assert tuple(app.conf.include) == (("colorsys",) if value and name == "include" else ())


@pytest.mark.parametrize("namespace", [None, "CELERY", "MINE"])
@pytest.mark.parametrize("value", FORMS, ids=repr)
def test_a_worker_imports_what_old_and_namespaced_settings_name(
    namespace: str | None, value: Any
) -> None:
    prefix = namespace or "CELERY"
    source = type("Source", (), {f"{prefix}_IMPORTS": value, f"{prefix}_INCLUDE": value})
    app = Celery("other", set_as_current=False)
    app.config_from_object(source, namespace=namespace)
    start_worker(app)
    assert {INSTALLING_MODULE, "colorsys"} <= {*imported(app)}
    assert tuple(app.conf.include) == ("colorsys",)


@NAMES
@pytest.mark.parametrize(
    ("value", "more"), [(("colorsys",), ("wave",)), (["colorsys"], ["wave"]), ((), ("wave",))]
)
def test_an_application_may_add_modules_in_a_signal_of_its_own(
    name: str, value: Any, more: Any
) -> None:
    app = Celery("other", broker="memory://", set_as_current=False)
    app.conf[name] = value
    start_worker(app)
    app.conf[name] = app.conf[name] + more
    assert {INSTALLING_MODULE, "wave", *value} <= {*imported(app)}


def test_a_second_worker_of_a_process_adds_nothing() -> None:
    app = Celery("other", broker="memory://", set_as_current=False)
    for _ in range(2):
        start_worker(app)
    assert app.conf.imports == (INSTALLING_MODULE,)
