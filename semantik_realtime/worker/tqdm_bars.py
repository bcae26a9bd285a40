"""The bars of tqdm, shown as bars of the job. What tqdm writes to the terminal stays as it is.

tqdm need not be installed, and is never imported here: its class is patched when
it has been imported, once in a process that runs tasks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from semantik_realtime.worker.bars import Bar
from semantik_realtime.worker.current import current_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.values import BAD_VALUE

MODULE = "tqdm.std"
"""The module with the class from which all classes of tqdm derive."""
BAR = "_semantik_realtime_bar"
"""The attribute of a tqdm that has its bar while it is open."""


def capture_tqdm() -> None:
    """Patch tqdm's class, now or when it is imported. Idempotent; call it before each task."""
    module = sys.modules.get(MODULE)
    if module is not None:
        _patch(module)
    elif _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder:
    """Patches the class as soon as its module has been executed, and then removes itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder != self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _patch(module)
            with suppress(ValueError):
                sys.meta_path.remove(self)

        # A loader that refuses this is left alone: the next task finds the module imported.
        with suppress(AttributeError):
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _Finder()


def _patch(module: ModuleType) -> None:
    # None: another thread is just importing it.
    bar_class: Any = getattr(module, "tqdm", None)
    if bar_class is None or getattr(bar_class.__init__, "is_mirrored", False):
        return
    init, refresh, close = bar_class.__init__, bar_class.refresh, bar_class.close

    @functools.wraps(init)
    def opening(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        job = current_job()
        if job is not None and job.mirrors.tqdm:
            _open(self, job, args, kwargs)

    @functools.wraps(refresh)
    def refreshing(self: Any, *args: Any, **kwargs: Any) -> Any:
        # tqdm calls it as often as its line shall change: by default ten times a second.
        _show(self)
        return refresh(self, *args, **kwargs)

    @functools.wraps(close)
    def closing(self: Any) -> Any:
        _show(self)
        bar = self.__dict__.pop(BAR, None)
        if bar is not None:
            bar.close()
        return close(self)

    opening.is_mirrored = True  # type: ignore[attr-defined]
    bar_class.__init__, bar_class.refresh, bar_class.close = opening, refreshing, closing


def _open(shown: Any, job: Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not shown.disable:
        setattr(shown, BAR, Bar(job))
        _show(shown)
    elif "disable" in kwargs and kwargs["disable"] is None:
        # Disabled because there is no terminal. tqdm itself then counts nothing.
        shown.desc = kwargs.get("desc", args[1] if len(args) > 1 else None)
        shown.unit, shown.unit_scale = kwargs.get("unit", "it"), kwargs.get("unit_scale", False)
        bar = Bar(job)
        setattr(shown, BAR, bar)
        _show(shown)
        factor = _factor(shown)
        # Without a reference to `shown`: tqdm closes a bar when nothing refers to it any more.
        shown.update = lambda n=1: bar.advance(n * factor)
        if shown.iterable is not None:
            shown.iterable = _Counted(shown.iterable, bar, factor)


def _show(shown: Any) -> None:
    bar: Bar | None = getattr(shown, BAR, None)
    if bar is None:
        return
    with suppress(*BAD_VALUE, AttributeError):
        factor = _factor(shown)
        current = bar.current if shown.disable else shown.n * factor
        total = None if shown.total is None else shown.total * factor
        unit = getattr(shown, "unit", "")
        message = (getattr(shown, "desc", None) or "").strip().removesuffix(":")
        # "it" is tqdm's word for anything.
        bar.show(current, total, "" if unit == "it" else unit.strip(), message)


def _factor(shown: Any) -> Any:
    scale = getattr(shown, "unit_scale", False)
    return 1 if isinstance(scale, bool) else scale


class _Counted:
    """The items of a bar that is disabled, each counted when the loop requests the next one."""

    def __init__(self, items: Any, bar: Bar, factor: Any) -> None:
        self._items, self._bar, self._factor = items, bar, factor

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self._items:
                yield item
                self._bar.advance(self._factor)
        finally:
            self._bar.close()

    def __reversed__(self) -> Iterator[Any]:
        return iter(_Counted(reversed(self._items), self._bar, self._factor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._items, name)

    def __len__(self) -> int:
        return len(self._items)
