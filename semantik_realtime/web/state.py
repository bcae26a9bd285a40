"""The state that the routes of one application share, from its start to its stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_urls
from semantik_realtime.web.access import Access
from semantik_realtime.web.control import JobControl
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.permission import Permissions
from semantik_realtime.web.job_ends import JobEnds
from semantik_realtime.web.limiter import ConnectionLimiter
from semantik_realtime.web.lost_jobs import LostJobs
from semantik_realtime.web.outage import DegradedMode, HostRecord
from semantik_realtime.web.reads import Answers
from semantik_realtime.web.refusals import RefusalLog
from semantik_realtime.web.server_limits import ServerLimits
from semantik_realtime.web.unauthenticated import UnauthenticatedLimiter
from semantik_realtime.web.waiting_jobs import WaitingJobs

if TYPE_CHECKING:
    from semantik_realtime.web.metrics import WebMetrics

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 2.0
STOP_SECONDS = 2.5
"""From the beginning of the drain to the end of the process, with half a second to spare."""
RELEASE_SECONDS = 0.5
"""How long a stop waits until the places of its connections are given back."""
LEAST_SECONDS = 0.2
"""What each part of a stop has, even if those before took all the time."""
METRICS_MISSING = 'there are no metrics: pip install "semantik-realtime[metrics]"'


class WebState:
    """Hub, degraded mode, access, connection limit and metrics over one runtime.

    It may be made before there is an event loop; `lifespan` opens it.
    """

    def __init__(self, runtime: Runtime, registry: Any = None) -> None:
        self.settings = runtime.settings
        self.words = runtime.words
        self._runtime = runtime
        self.sinks = runtime.sink_runner
        self.access = Access(runtime.settings, runtime.plugins)
        self.refusals = RefusalLog(runtime.settings.token_cookie)
        self.outage = DegradedMode(
            runtime.backend,
            recall=HostRecord(runtime.plugins, runtime.words),
            flush=self._flush,
            recall_seconds=runtime.settings.recall_seconds,
            tops_seconds=runtime.settings.tops_seconds,
            max_delayed_bytes=runtime.settings.spool_bytes,
            url=mask_urls(runtime.settings.url) if runtime.settings.url else "default",
        )
        runtime.emitter.on_delayed(self.outage.add_delayed)
        self.hub = Hub(runtime.backend, self.outage)
        self.permissions = Permissions(self.access, self.hub.top, self.hub.stats, self.refusals)
        self.control = JobControl(runtime, self.access, self.hub)
        # Until when a stop has to be over, on the monotonic clock; None before it begins.
        self._stop_at: float | None = None
        self.answers = Answers()
        self.limiter = ConnectionLimiter(
            runtime.backend, runtime.settings.max_connections, runtime.settings.max_viewers
        )
        self.server_limits = ServerLimits()
        self.unauthenticated = UnauthenticatedLimiter(runtime.settings.max_unauthenticated)
        self.hub.on_tick(self.unauthenticated.end_crowd)
        self.ends = JobEnds(runtime)
        self.lost = LostJobs(runtime, self.hub, self.outage, self.ends)
        self.hub.on_tick(self.lost.tick)
        self.waiting = WaitingJobs(
            runtime.settings.queued_seconds, runtime.backend, self.hub, self.ends
        )
        self.hub.on_tick(self.waiting.tick)
        self.hub.on_read(self.waiting.look)
        self.metrics: WebMetrics | None = None
        """None: there are no metrics; `metrics_error` is the reason."""
        self.metrics_error = ""
        """Why there are no metrics; empty while there are."""
        self._open_metrics(registry)

    @property
    def spool(self) -> dict[str, int]:
        """How many drafts this process has not sent yet, and their bytes."""
        emitter = self._runtime.emitter
        return {"drafts": emitter.waiting, "bytes": emitter.waiting_bytes}

    def explain_refusal(self, connection: HTTPConnection) -> str:
        """Return why a page may not connect; outside development nothing that helps an attacker."""
        if not self.settings.is_development:
            return "not for pages of this origin"
        origin = connection.headers.get("origin", "")
        return f"SEMANTIK_REALTIME_ALLOWED_ORIGINS does not have {origin}"

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Open at start, drain and close at the end. Composes with the host's own lifespan.

        Raises:
            ConfigError: as `Access.check` and `SinkRunner.check`; the application does not start.
        """
        self.access.check()
        self.sinks.check()
        restore = self._drain_before_stop(asyncio.get_running_loop())
        try:
            await self.hub.open_at_start()
            self._runtime.emitter.recover()
            self.sinks.start(handles=self.settings.run_sinks)
            yield
        finally:
            restore()
            await self._stop()
            if self.metrics is not None:
                self.metrics.flush()

    async def _drain(self) -> None:
        """Close every connection, and end the sinks. It is part of the time for the whole stop."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + STOP_SECONDS
        await asyncio.gather(
            self.hub.drain(min(DRAIN_SECONDS, self._seconds_left())), self.sinks.stop()
        )

    async def _stop(self) -> None:
        """End everything within `STOP_SECONDS` of the beginning of the drain, or soon after."""
        await self._drain()
        await self.limiter.close(min(RELEASE_SECONDS, self._seconds_left()))
        await self.hub.close()
        seconds = min(self.settings.flush_seconds, self._seconds_left() / 2)
        await asyncio.to_thread(self._runtime.close, seconds)
        self._stop_at = None

    def _seconds_left(self) -> float:
        assert self._stop_at is not None
        return max(LEAST_SECONDS, self._stop_at - time.monotonic())

    def _open_metrics(self, registry: Any) -> None:
        try:
            # prometheus-client is an extra: without it everything else must work.
            from semantik_realtime.web.metrics import WebMetrics

            self.metrics = WebMetrics(self, registry)
        except ImportError:
            self.metrics_error = METRICS_MISSING
        except OSError as error:
            self.metrics_error = f"the directory of the metrics cannot be written: {error}"
            logger.error("web: no metrics error=%s", error)

    async def _flush(self) -> bool:
        """Send the drafts that wait. Return False if the backend still fails."""
        emitter = self._runtime.emitter
        emitter.retry_now()
        done = await asyncio.to_thread(emitter.flush, self.settings.flush_seconds)
        # Many drafts may take longer than one flush; the emitter goes on sending them.
        return done or not (emitter.is_retrying or self._runtime.backend.fails_writes)

    def _drain_before_stop(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Drain on SIGTERM or SIGINT, before the server closes the sockets itself.

        Servers close every WebSocket with a close frame, after which browsers
        of the compatibility wire never reconnect. Only the signal comes before
        that.
        """
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        previous: dict[int, Any] = {}

        def stop(number: int, frame: FrameType | None) -> None:
            handler = previous[number]
            signal.signal(number, handler)

            async def drain() -> None:
                await self._drain()
                if callable(handler):
                    handler(number, frame)

            loop.call_soon_threadsafe(lambda: self.hub.spawn(drain(), "drain"))

        # The last one is Ctrl-Break, on Windows only.
        names = [name for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)]
        for number in (getattr(signal, name) for name in names):
            handler = signal.getsignal(number)
            # Without a handler of the server the signal ends the process at once.
            if callable(handler) and handler is not signal.default_int_handler:
                previous[number] = handler
                signal.signal(number, stop)

        def restore() -> None:
            for number, handler in previous.items():
                if signal.getsignal(number) is stop:
                    signal.signal(number, handler)

        return restore
