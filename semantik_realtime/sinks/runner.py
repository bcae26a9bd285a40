"""Runs the sinks of an application, from its start to its stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from semantik_realtime.backoff import spread
from semantik_realtime.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    ConfigError,
)
from semantik_realtime.sink_hooks import SinkBackend, SinkStatus
from semantik_realtime.sinks.registry import OUTCOMES, Sinks
from semantik_realtime.sinks.worker import SinkWorker

logger = logging.getLogger(__name__)

STATUS_SECONDS = 5.0
"""Between two looks at the lengths of the queues, for the metrics."""
STOP_SECONDS = 1.5
"""How long a stop waits for handlers."""
THREADS = 4
"""Calls of the backend that run at once, of all sinks of a process."""

Result = TypeVar("Result")


class SinkRunner:
    """Runs the sinks of one runtime on one loop, from `start` to `stop`.

    Args:
        sinks: the registered ones.
        backend: returns the hooks for sinks, or None if the backend has none.
        is_away: whether the backend is known to be away.
        limit: the bound of each queue.
    """

    def __init__(
        self,
        sinks: Sinks,
        backend: Callable[[], SinkBackend | None],
        is_away: Callable[[], bool],
        limit: int,
    ) -> None:
        self.sinks = sinks
        self.statuses: dict[str, SinkStatus] = {}
        """The newest known condition of each registered sink, for the metrics."""
        self._backend_of = backend
        self._is_away = is_away
        self._limit = limit
        # From `start` to `stop`. The threads wait for the backend: those of the loop's own executor
        # are the application's.
        self._threads: ThreadPoolExecutor | None = None
        self._workers: list[SinkWorker] = []
        self._watch: asyncio.Task[None] | None = None
        # The names of sinks whose condition cannot be read, and "" for all, which are logged once.
        self._logged: set[str] = set()
        # From the beginning of a stop to the next start.
        self._stopping: asyncio.Task[None] | None = None

    @property
    def outcomes(self) -> dict[str, int]:
        """What this process has done with events, of all sinks."""
        total = dict.fromkeys(OUTCOMES, 0)
        for sink in self.sinks:
            for outcome, count in sink.counts.outcomes.items():
                total[outcome] += count
        return total

    def check(self) -> None:
        """Return if the backend can have the registered sinks.

        Raises:
            ConfigError: it cannot.
        """
        if len(self.sinks) and self._backend_of() is None:
            names = ", ".join(sink.name for sink in self.sinks)
            raise ConfigError(
                f"the backend has no hooks for sinks, and there are some: {names} "
                "(set SEMANTIK_REALTIME_BACKEND, see docs/sinks.md)"
            )

    def start(self, *, handles: bool = True) -> None:
        """Begin to take events, on the running loop. Does nothing without sinks, or twice.

        With ``handles`` False only `statuses` is kept: other processes run the sinks.

        Raises:
            ConfigError: as `check`.
        """
        self.check()
        if self._watch is not None or not len(self.sinks):
            return
        self.sinks.is_running = True
        self._stopping = None
        self._threads = ThreadPoolExecutor(THREADS, "semantik-realtime-sinks")
        wanted = self.sinks if handles else ()
        self._workers = [SinkWorker(sink, self._call, self._limit) for sink in wanted]
        for worker in self._workers:
            worker.start()
        self._watch = asyncio.create_task(self._look(), name="semantik-realtime-sinks")

    async def stop(self) -> None:
        """Take nothing any more, and wait `STOP_SECONDS` for the handlers. Then cancel coroutines.

        The events of those are given back. Lasts at most half a second longer.
        """
        if self._stopping is None:
            if self._watch is None:
                return
            self._stopping = asyncio.create_task(self._stop())
        # A second signal must not end the first one's stop.
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        await asyncio.gather(*(worker.stop(STOP_SECONDS) for worker in self._workers))
        self._workers = []
        if self._threads is not None:
            # Their calls have deadlines of their own.
            self._threads.shutdown(wait=False)
            self._threads = None
        self.sinks.is_running = False

    async def _call(self, call: Callable[[SinkBackend], Result]) -> Result:
        """Call the backend in a thread.

        Raises:
            BackendError: it failed, or the runner has stopped.
        """
        # Asked for each call: a test may replace the backend of an application that runs.
        backend = self._backend_of()
        if backend is None:
            raise BackendRefused("the backend has no hooks for sinks")
        if self._threads is None:
            raise BackendUnavailable("the sinks have stopped")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, call, backend)

    async def _look(self) -> None:
        lost: dict[str, int] = {}
        while True:
            if not self._is_away() and (found := await self._find_statuses()) is not None:
                self.statuses = found
                for one in found.values():
                    if one.lost > lost.setdefault(one.name, one.lost):
                        logger.warning(
                            "sinks: events lost, the queue is full sink=%s lost=%d limit=%d "
                            "(SEMANTIK_REALTIME_SINK_EVENTS)",
                            one.name,
                            one.lost - lost[one.name],
                            self._limit,
                        )
                    lost[one.name] = one.lost
            await asyncio.sleep(spread(STATUS_SECONDS))

    async def _find_statuses(self) -> dict[str, SinkStatus] | None:
        """Return the conditions of the registered sinks; of an unreadable one, the last known.

        None: there is no answer.
        """
        try:
            found = await self._call(lambda backend: backend.sink_status())
        except BackendUnavailable:
            # The guard's listeners say so.
            return None
        except BackendError as error:
            if self._is_first(""):
                logger.error("sinks: no status error=%s (logged once)", error)
            return None
        except Exception:
            if self._is_first(""):
                logger.exception("sinks: failed, no status (logged once)")
            return None
        own = {sink.name for sink in self.sinks}
        statuses = {}
        for one in found:
            if one.name not in own:
                continue
            if one.error:
                if self._is_first(one.name):
                    logger.error(
                        "sinks: unreadable queue sink=%s error=%s (logged once)",
                        one.name,
                        one.error,
                    )
                if one.name not in self.statuses:
                    continue
                one = self.statuses[one.name]
            statuses[one.name] = one
        return statuses

    def _is_first(self, what: str) -> bool:
        """Return True the first time."""
        is_first = what not in self._logged
        self._logged.add(what)
        return is_first
