"""The tracker in pool processes that are not forked: they import what Celery's settings name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from celery.utils.functional import maybe_list

INSTALLING_MODULE = "semantik_realtime.worker.command"
"""Installs the tracker when it is imported."""


def add_to_imports(conf: Any) -> None:
    """Add `INSTALLING_MODULE` to the setting ``imports``. Idempotent.

    Raises:
        ImproperlyConfigured: Celery cannot read its settings.
    """
    _set(conf, "imports", _names(conf.imports, INSTALLING_MODULE))
    # One name alone is allowed, but Celery itself later takes it apart into letters.
    _set(conf, "include", _names(conf.include))


def _set(conf: Any, name: str, value: Collection[str]) -> None:
    setattr(conf, name, value)
    if getattr(conf, name) != value:
        # Celery 5.3 looks for the name with the application's namespace first.
        prefix: str = getattr(conf, "data", conf).prefix
        name = prefix + name
        conf[name.upper() if prefix.isupper() else name.lower()] = value


def _names(value: Any, *more: str) -> Collection[str]:
    """Return the modules that the application set, and ``more``.

    Of the application's type: it may add to the setting in a signal of its own.
    """
    kind = next((kind for kind in (tuple, set, frozenset) if isinstance(value, kind)), list)
    names = [*(maybe_list(value) or ())]
    return kind([*names, *(name for name in more if name not in names)])
