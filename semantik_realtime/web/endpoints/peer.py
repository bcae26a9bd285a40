"""The socket behind a connection, as far as the web server shows it.

ASGI has no access to it. uvicorn passes a method of its protocol as ``receive``,
and the protocol has the transport. Where it cannot be found, as with another
server, nothing here has an effect.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from starlette.types import Receive

READ_BYTES = 16 * 1024
"""What is read of a socket at once. asyncio's 256 KiB have tens of thousands of tiny frames, and a
hundred times as many bytes after decompression, all of which the web server parses in one go."""
USER_TIMEOUT_SECONDS = 30.0
"""How long sent bytes may stay unacknowledged before the kernel ends the connection (RFC 5482)."""
MAX_WRAPPERS = 10
"""How many middlewares may have replaced ``receive``."""


class Peer:
    """The transport of one connection, if it can be reached."""

    def __init__(self, receive: Receive) -> None:
        self._transport = _find_transport(receive)

    def limit_reads(self) -> None:
        """Read little at once, so that one client's frames do not occupy the loop."""
        # An attribute of asyncio's own transports; those of uvloop and of TLS have none.
        if hasattr(self._transport, "max_size"):
            self._transport.max_size = READ_BYTES

    def send_at_once(self) -> None:
        """Make the kernel send each frame when it is written.

        asyncio does so only for sockets that name their protocol, which those of several workers
        or of systemd do not: there a second small frame would wait for the peer's delayed
        acknowledgement of the first one, 40 ms on Linux.
        """
        self._set_option(socket.TCP_NODELAY, 1)

    def end_if_vanished(self) -> None:
        """Make the kernel end the connection when the peer acknowledges nothing (Linux).

        Otherwise it goes on sending for about 15 minutes.
        """
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self._set_option(socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT_SECONDS * 1000))

    def stop_reading(self) -> None:
        """Leave what the client sends from now on in the network."""
        if self._transport is not None:
            # It may be closed, or have no reading side any more.
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()

    def abort(self) -> None:
        """End the connection at once, and drop what is not sent yet."""
        if self._transport is not None:
            self._transport.abort()

    def _set_option(self, option: int, value: int) -> None:
        if self._transport is None:
            return
        link = self._transport.get_extra_info("socket")
        # A Unix socket has no such option.
        with contextlib.suppress(OSError, AttributeError):
            link.setsockopt(socket.IPPROTO_TCP, option, value)


def _find_transport(receive: Any) -> Any:
    """Return the transport behind ``receive``, also through middlewares that wrap it, or None."""
    for _ in range(MAX_WRAPPERS):
        owner = getattr(receive, "__self__", None)
        transport = getattr(owner, "transport", None)
        if transport is not None:
            return transport
        # Starlette's requests keep the one that they were made with, as `BaseHTTPMiddleware` does;
        # other middlewares wrap it in a function.
        receive = getattr(owner, "_receive", None) or _wrapped_receive(receive)
    return None


def _wrapped_receive(function: Any) -> Any:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        # A cell is empty until its variable has a value.
        with contextlib.suppress(ValueError):
            if "receive" in name and callable(cell.cell_contents):
                return cell.cell_contents
    return None
