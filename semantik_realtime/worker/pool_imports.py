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
    conf.imports = _names(conf.imports, INSTALLING_MODULE)
    # One name alone is allowed, but Celery itself later takes it apart into letters.
    conf.include = _names(conf.include)


def _names(value: Any, *more: str) -> Collection[str]:
    """Return the modules that the application set, and ``more``.

    Of the application's type: it may add to the setting in a signal of its own.
    """
    kind = next((kind for kind in (tuple, set, frozenset) if isinstance(value, kind)), list)
    names = [*(maybe_list(value) or ())]
    return kind([*names, *(name for name in more if name not in names)])
