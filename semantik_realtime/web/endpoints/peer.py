"""The socket behind a connection, as far as the web server shows it.

ASGI has no access to it. uvicorn passes a method of its protocol as ``receive``,
and the protocol has the transport. With another server, or a middleware that
replaces ``receive``, nothing here has an effect.
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


class Peer:
    """The transport of one connection, if it can be reached."""

    def __init__(self, receive: Receive) -> None:
        self._transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)

    def limit_reads(self) -> None:
        """Read little at once, so that one client's frames do not occupy the loop."""
        # An attribute of asyncio's own transports; those of uvloop and of TLS have none.
        if hasattr(self._transport, "max_size"):
            self._transport.max_size = READ_BYTES

    def end_if_vanished(self) -> None:
        """Make the kernel end the connection when the peer acknowledges nothing (Linux).

        Otherwise it goes on sending for about 15 minutes.
        """
        if self._transport is None or not hasattr(socket, "TCP_USER_TIMEOUT"):
            return
        link = self._transport.get_extra_info("socket")
        # A Unix socket has no such option.
        with contextlib.suppress(OSError, AttributeError):
            milliseconds = int(USER_TIMEOUT_SECONDS * 1000)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

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
