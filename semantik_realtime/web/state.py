"""What the requests of one web process share, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.access import Access, ask
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.limiter import ConnectionLimiter

if TYPE_CHECKING:
    from semantik_realtime.web.metrics import WebMetrics

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 2.0
METRICS_MISSING = 'there are no metrics: pip install "semantik-realtime[metrics]"'

_encode = msgspec.json.Encoder().encode


class WebState:
    """Hub, access and seats over one runtime. Made before there is an event loop."""

    def __init__(self, runtime: Runtime, registry: Any = None) -> None:
        self.settings = runtime.settings
        self.plugins: pluggy.PluginManager = runtime.plugins
        self.access = Access(runtime.settings, runtime.plugins)
        self.hub = Hub(
            runtime.backend,
            flush=self._flush,
            recall=self._recall,
            tops_seconds=runtime.settings.tops_seconds,
            recall_seconds=runtime.settings.recall_seconds,
        )
        runtime.emitter.shelter = runtime.backend.shelter
        self.seats = ConnectionLimiter(
            runtime.write_hook("lease"),
            runtime.write_hook("release"),
            runtime.settings.max_connections,
        )
        self.metrics: WebMetrics | None = None
        self.metrics_fault = ""
        """Why there are none."""
        self._recall_fails = False
        self._runtime = runtime
        self._open_metrics(registry)

    async def may_watch(self, user: str, topic: str) -> bool:
        """Whether ``user`` may watch ``topic``, by the owner the backend knows.

        While it is away the owner is unknown: then only a yes counts, for a
        no might be nothing but that.

        Raises:
            BackendError: nobody can tell now.
        """
        try:
            top = await self.hub.top(topic)
        except BackendError:
            if await self.access.authorize(user, topic, None):
                return True
            raise
        return await self.access.authorize(user, topic, top.owner if top else None)

    @property
    def spool(self) -> dict[str, int]:
        """What this process has not sent yet."""
        emitter = self._runtime.emitter
        return {"drafts": emitter.waiting, "bytes": emitter.waiting_bytes}

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Open at start, drain and close at the end. Composes with the host's own lifespan."""
        restore = self._drain_before_stop(asyncio.get_running_loop())
        try:
            try:
                await self.hub.open_at_start(self.settings.start_tries)
            except BackendError as error:
                logger.warning("server: started without backend error=%s", error)
            self._runtime.emitter.adopt()
            yield
        finally:
            restore()
            await self.hub.drain(DRAIN_SECONDS)
            await self.seats.close()
            await self.hub.close()
            await asyncio.to_thread(self._runtime.close)
            if self.metrics is not None:
                self.metrics.carry()

    def _open_metrics(self, registry: Any) -> None:
        try:
            # An extra. Whatever is wrong with it, everything else works.
            from semantik_realtime.web.metrics import WebMetrics

            self.metrics = WebMetrics(self.hub, registry)
        except ImportError:
            self.metrics_fault = METRICS_MISSING
        except OSError as error:
            self.metrics_fault = f"the directory of the metrics cannot be written: {error}"
            logger.error("server: no metrics error=%s", error)

    async def _flush(self) -> bool:
        """Send what waits; False: it still cannot be sent. What is a lot goes on afterwards."""
        emitter = self._runtime.emitter
        emitter.retry_now()
        done = await asyncio.to_thread(emitter.flush, self.settings.flush_seconds)
        return done or not emitter.is_failing

    async def _recall(self, topic: str) -> Mapping[str, bytes] | None:
        try:
            states = await ask(self.plugins.hook.recall, topic=topic)
            recalled = None
            if states is not None:
                recalled = {str(key): _encode(dict(state)) for key, state in states.items()}
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            # Whatever it raises: who watches is not to pay for it. (A pool of connections that
            # is being closed cancels those who wait for one, though nobody has cancelled us.)
            if not self._recall_fails:
                logger.warning("server: no recall topic=%s error=%r", topic, error)
            self._recall_fails = True
            raise BackendUnavailable("the host's record cannot be read now") from error
        self._recall_fails = False
        return recalled

    def _drain_before_stop(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Drain when the process is told to stop, before the server closes the sockets itself.

        Servers close every WebSocket with a close frame of their own, and
        browsers of the compatibility wire never come back from one. There is no
        other sign of a shutdown than the signal.
        """
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        previous: dict[int, Any] = {}

        def stop(number: int, frame: FrameType | None) -> None:
            handler = previous[number]
            signal.signal(number, handler)

            async def drain() -> None:
                await self.hub.drain(DRAIN_SECONDS)
                if callable(handler):
                    handler(number, frame)

            loop.call_soon_threadsafe(lambda: self.hub.spawn(drain(), "drain"))

        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            # Only servers that set a handler of their own stop in good order.
            if callable(handler) and handler is not signal.default_int_handler:
                previous[number] = handler
                signal.signal(number, stop)

        def restore() -> None:
            for number, handler in previous.items():
                if signal.getsignal(number) is stop:
                    signal.signal(number, handler)

        return restore
