"""What the requests of one web process share, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import pluggy

from semantik_realtime.errors import BackendError
from semantik_realtime.realtime import Runtime
from semantik_realtime.web.access import Access
from semantik_realtime.web.hub import Hub
from semantik_realtime.web.seats import Seats

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 2.0


class Server:
    """Hub, access and seats over one runtime. Made before there is an event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.settings = runtime.settings
        self.plugins: pluggy.PluginManager = runtime.plugins
        self.access = Access(runtime.settings, runtime.plugins)
        self.hub = Hub(runtime.backend, tops_seconds=runtime.settings.tops_seconds)
        self.seats = Seats(
            runtime.write_hook("lease"),
            runtime.write_hook("release"),
            runtime.settings.max_connections,
        )
        self._runtime = runtime

    async def may_watch(self, user: str, topic: str) -> bool:
        """Whether ``user`` may watch ``topic``, by the owner the backend knows.

        Raises:
            BackendError: it cannot be asked now.
        """
        top = await self.hub.top(topic)
        return await self.access.authorize(user, topic, top.owner if top else None)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Open at start, drain and close at the end. Composes with the host's own lifespan."""
        restore = self._drain_before_stop(asyncio.get_running_loop())
        try:
            try:
                await self.hub.open()
            except BackendError as error:
                logger.warning("server: started without backend error=%s", error)
            yield
        finally:
            restore()
            await self.hub.drain(DRAIN_SECONDS)
            await self.seats.close()
            await self.hub.close()
            await asyncio.to_thread(self._runtime.close)

    def _drain_before_stop(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Drain when the process is told to stop, before the server closes the sockets itself.

        Servers close every WebSocket with a close frame of their own, and
        browsers of the founding wire never come back from one. There is no
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
