"""Which tasks are mirrored, and what of each: its message decides, then its options, then settings.

::

    @app.task(realtime=False)
    @app.task(realtime={"logs": "WARNING", "tqdm": False})
    task.apply_async(headers={"realtime": False})
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from celery import _state

from semantik_realtime.config import Settings
from semantik_realtime.worker.headers import QUEUED_AT, is_job, note_ownerless, read_header
from semantik_realtime.worker.mirrors import Mirrors
from semantik_realtime.worker.values import note_misuse

logger = logging.getLogger(__name__)

OPTION = "realtime"
"""Name of the option of a task, and of the header of a message."""
PARTS = frozenset({"updates", "tqdm", "logs"})
"""What the option may switch, beside the whole task."""

_announced: set[str] = set()
"""The tasks without a mirror whose senders report jobs, as logged by this process."""


def mirrors_of(
    name: Any, message: Any, settings: Settings | None, task: Any = None
) -> Mirrors | None:
    """Return what is mirrored of a task; None: nothing.

    Args:
        name: the task's name.
        message: its message's headers, or Celery's request.
        settings: of this process; None: the tracker is off.
        task: the task; None: look for one with that name.
    """
    if settings is None or not is_job(name):
        return None
    name = str(name)
    # The weaker first. A process that does not have the task's code knows only its name.
    option = _option_of(name) if task is None else getattr(task, OPTION, None)
    given = (option, read_header(message, OPTION))
    configured = (settings.mirror_updates, settings.mirror_tqdm, settings.mirror_logs.lower())
    patterns = tuple(settings.mirror_tasks)
    if given == (None, None):
        return _configured_mirrors(name, patterns, *configured)
    is_mirrored = _is_selected(name, patterns)
    parts: dict[str, Any] = dict(zip(("updates", "tqdm", "logs"), configured, strict=True))
    for value in given:
        if isinstance(value, bool):
            is_mirrored = value
        elif isinstance(value, Mapping):
            is_mirrored = True
            parts |= {str(part): choice for part, choice in value.items()}
        elif value is not None:
            note_misuse(f"{OPTION} is neither true nor false nor a mapping", name, repr(value))
    if not is_mirrored:
        return None
    for part in parts.keys() - PARTS:
        note_misuse(f"{OPTION} has an unknown member", name, part)
    return Mirrors(bool(parts["updates"]), bool(parts["tqdm"]), _level(parts["logs"], name))


def note_received(message: Any, mirrors: Mirrors | None) -> None:
    """Log what the sender of a task may have forgotten; once for each task."""
    if mirrors is not None:
        note_ownerless(message)
    elif is_job(message.get("task")):
        note_announced(message.get("task"), message)


def note_announced(name: str, message: Any) -> None:
    """Log that a task's sender reports its jobs, although they are not mirrored; once a task."""
    if read_header(message, QUEUED_AT) is not None and name not in _announced:
        _announced.add(name)
        logger.warning(
            "tracker: queued job is not mirrored task=%s, its page waits for ever: let its sender "
            "know, by the header %s or by SEMANTIK_REALTIME_MIRROR_TASKS (logged once a task)",
            name,
            OPTION,
        )


def _option_of(name: str) -> Any:
    """Return the option of the task with this name in any of the process's applications."""
    for app in list(_state._get_active_apps()):
        # Not `app.tasks`, which would finalize the application.
        option = getattr(app._tasks.get(name), OPTION, None)
        if option is not None:
            return option
    return None


@functools.lru_cache(maxsize=1024)
def _configured_mirrors(
    name: str, patterns: tuple[str, ...], updates: bool, tqdm: bool, logs: str
) -> Mirrors | None:
    """Return what the settings alone say of a task."""
    if not _is_selected(name, patterns):
        return None
    return Mirrors(updates, tqdm, _level(logs, name))


@functools.lru_cache(maxsize=1024)
def _is_selected(name: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a pattern has the name, or none is without ``!``, and none with ``!`` has it.

    >>> [_is_selected(name, ("docs.*", "!docs.clean")) for name in ("docs.read", "docs.clean", "x")]
    [True, False, False]
    >>> _is_selected("x", ("!docs.*",))
    True
    """
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return (not wanted or any(fnmatchcase(name, pattern) for pattern in wanted)) and not any(
        fnmatchcase(name, pattern) for pattern in unwanted
    )


def _level(logs: Any, name: str) -> int | None:
    """Return the lowest level of the records that are mirrored; None: none is."""
    if logs is None or logs is False or logs == "off":
        return None
    if logs is True:
        return logging.INFO
    level = logging.getLevelNamesMapping().get(logs.upper()) if isinstance(logs, str) else logs
    if isinstance(level, int):
        return level
    note_misuse(f"{OPTION}: logs is no level", name, repr(logs))
    return None
