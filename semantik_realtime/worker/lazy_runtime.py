"""The runtime of a process that runs or publishes tasks: made when it is needed first."""

from __future__ import annotations

import logging
from abc import abstractmethod

from semantik_realtime.errors import ConfigError
from semantik_realtime.runtime import Runtime

logger = logging.getLogger(__name__)


class LazyRuntime:
    """The part of `semantik_realtime.worker.tracker.TaskTracker` that has the runtime."""

    def __init__(self) -> None:
        # Made at first use, or set by `use`. None while the tracker is off.
        self._runtime: Runtime | None = None
        # Whether the settings turned it off; cleared by `use`.
        self._is_off = False

    @abstractmethod
    def disconnect(self) -> None:
        """Stop receiving the signals of tasks."""

    def runtime(self) -> Runtime | None:
        """Return the runtime, made now if there is none yet; None if the tracker is off."""
        if self._runtime is None and not self._is_off:
            # No lock: a fork could leave it locked. Two threads may each make a runtime; the
            # second one is then used by nobody and opens no connection.
            try:
                made = Runtime()
            except ConfigError as error:
                logger.error("tracker: off, no task is mirrored error=%s", error)
                self._turn_off()
                return None
            if not made.settings.mirror:
                self._turn_off()
                return None
            self._runtime = self._runtime or made
        return self._runtime

    def use(self, runtime: Runtime) -> None:
        """Send through ``runtime`` from now on."""
        self._runtime = runtime
        self._is_off = False

    def flush(self) -> bool:
        """Wait at most ``flush_seconds`` until the backend has acknowledged all events so far.

        Return False if it has not in that time.
        """
        runtime = self._runtime
        return runtime is None or runtime.emitter.flush(runtime.settings.flush_seconds)

    def _turn_off(self) -> None:
        self._is_off = True
        self.disconnect()
