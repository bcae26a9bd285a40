"""Put every runtime of this process, and the tracker of Celery's tasks, on the memory of a test."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from semantik_realtime.backends.loader import load_backend, substitute
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.runtime import Runtime, configured_runtimes
from semantik_realtime.testing.shared_memory import MemoryClient, SharedMemory

CLOSE_SECONDS = 5.0
"""How long the end of a test waits for a reading of the memory that is under way."""


def memory_settings(given: Mapping[str, Any]) -> Settings:
    """Return settings of which none is from the environment: the given ones, else the defaults.

    Raises:
        ConfigError: a given one is wrong.
    """
    default = {name: field.get_default() for name, field in Settings.model_fields.items()}
    # Without pauses a test sees progress at once.
    quick = {"progress_seconds": 0.0, "feed_seconds": 0.0}
    return load_settings(**{**default, **quick, **given, "backend": "memory", "url": None})


@contextlib.contextmanager
def substituted(memory: SharedMemory) -> Iterator[None]:
    """Use ``memory`` while the block runs, in runtimes that exist and in those that are made.

    A runtime that was given its backend as an object keeps that.
    """

    def client(_: Settings) -> MemoryClient:
        return memory.client()

    known = configured_runtimes()
    before = substitute(client)
    undo = [runtime.replace_backend(memory.client()) for runtime in known]
    try:
        yield
    finally:
        substitute(before)
        for back in undo:
            back()
        known_ids = set(map(id, known))
        for runtime in configured_runtimes():
            if id(runtime) not in known_ids:
                # Made in the block, for example by the import of an application. With wrong
                # settings it stays as it is.
                with contextlib.suppress(ConfigError):
                    runtime.replace_backend(load_backend(runtime.settings))


@contextlib.contextmanager
def tracked(runtime: Runtime) -> Iterator[None]:
    """Send the events of all Celery tasks of this process through ``runtime``.

    Nothing happens without Celery.
    """
    if importlib.util.find_spec("celery") is None:
        yield
        return
    from semantik_realtime.worker import listener
    from semantik_realtime.worker.places import forget_jobs
    from semantik_realtime.worker.tracker import TaskTracker, swap_tracker

    tracker = TaskTracker()
    tracker.use(runtime)
    before = swap_tracker(tracker)
    was_connected = before is not None and before.is_connected
    if before is not None:
        # Both have the same ids at the signals.
        before.disconnect()
    forget_jobs()
    tracker.connect()
    try:
        yield
    finally:
        tracker.disconnect()
        swap_tracker(before)
        tracker.close(CLOSE_SECONDS)
        listener.close()
        forget_jobs()
        if before is not None and was_connected:
            before.connect()
