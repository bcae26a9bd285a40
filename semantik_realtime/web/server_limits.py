"""Notice a web server that keeps too much of a stranger's message, or stops too early."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from starlette.websockets import WebSocket

logger = logging.getLogger(__name__)

FIRST_UVICORN_THAT_DRAINS = (0, 29)
"""Older ones handle signals in the event loop, so that nothing comes before their own stop."""
MAX_MESSAGE_BYTES = 2**20
"""With a higher limit of the server, its log has a warning."""


class ServerLimits:
    """Looks once at the limits of the server behind the first WebSocket.

    ASGI does not tell them, but uvicorn passes the application a method of the
    object that has them. Of another server, or behind middleware that replaces
    the method, nothing is known and nothing is said.
    """

    def __init__(self) -> None:
        # Whether a server was looked at.
        self._is_checked = False

    def check(self, websocket: WebSocket) -> None:
        """Log a warning of each fault of the server."""
        if self._is_checked:
            return
        self._is_checked = True
        # Starlette has no public name for it.
        protocol = getattr(websocket._receive, "__self__", None)
        if type(protocol).__module__.startswith("uvicorn."):
            if _uvicorn_version() < FIRST_UVICORN_THAT_DRAINS:
                logger.warning(
                    "websocket: uvicorn before 0.29 closes connections while they are drained, so "
                    "install uvicorn 0.30; see the page Deployment"
                )
        fault = _fault(protocol)
        if fault:
            logger.warning(
                "websocket: the server keeps too much of a message: %s; see the page Deployment",
                fault,
            )


def _uvicorn_version() -> tuple[int, ...]:
    return tuple(map(int, version("uvicorn").split(".")[:2]))


def _fault(protocol: Any) -> str:
    config: Any = getattr(protocol, "config", None)
    size = getattr(config, "ws_max_size", None)
    if not isinstance(size, int):
        return ""
    if type(protocol).__module__.endswith(".wsproto_impl"):
        # The object that counts the bytes of a message.
        if not hasattr(protocol, "buffer"):
            return "before uvicorn 0.46 wsproto has no limit, so install websockets, and --ws auto"
        if config.ws_per_message_deflate:
            return (
                "wsproto decompresses all of it, so start uvicorn with "
                "--ws-per-message-deflate false, or with websockets installed and --ws auto"
            )
    if size > MAX_MESSAGE_BYTES:
        return f"{size} bytes of each connection, so start uvicorn with --ws-max-size 65536"
    return ""
