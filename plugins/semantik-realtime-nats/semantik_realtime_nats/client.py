"""nats-py's client, with the private parts of it that this plugin needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.errors import BackendRefused

NO_TLS = (
    "the server offers no TLS, but the URL (tls://) or SEMANTIK_REALTIME_NATS_TLS_CA or _TLS_CERT "
    "requires it; nothing was sent"
)
TOO_MANY_SUBSCRIPTIONS = "maximum subscriptions exceeded"
"""What the server says, in lower case, of a subscription beyond its limit."""
CLOSE_SECONDS = 0.5
"""Longest wait for nats-py to close; then its task is cancelled."""


class Message(NamedTuple):
    """A message of a subscription, as it was read."""

    subject: bytes
    data: bytes
    raw_headers: bytes | None

    @property
    def headers(self) -> dict[str, str]:
        """The headers; of a status line ``Status`` and ``Description``."""
        return parse_headers(self.raw_headers) if self.raw_headers else {}


Listener = Callable[[Message], None]


def parse_headers(raw: bytes) -> dict[str, str]:
    r"""Return the headers of a message, and its status and description if it has a status line.

    >>> parse_headers(b"NATS/1.0\r\nNats-Sequence: 17\r\n\r\n")
    {'Nats-Sequence': '17'}
    >>> parse_headers(b"NATS/1.0 404 No Results\r\n\r\n")
    {'Status': '404', 'Description': 'No Results'}
    """
    first, *lines = raw.decode().split("\r\n")
    headers = {}
    _, _, status = first.partition(" ")
    if status:
        headers["Status"], _, headers["Description"] = status.partition(" ")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers


class NatsClient(Client):
    """nats-py's client. Nothing else in this plugin touches its private attributes.

    nats-py uses TLS only if the server's INFO says that TLS is required, whatever the URL, and
    anybody between us and the server can write an INFO. So `require_tls` decides here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._requires_tls = False
        """True if no credential may be sent without TLS; set before `connect`."""
        self._listeners: dict[int, Listener] = {}
        """What `listen` was called with, by the subscription's number."""

    def require_tls(self) -> None:
        """Make `connect` raise `BackendRefused` before it sends anything without TLS."""
        self._requires_tls = True

    @property
    def info(self) -> Mapping[str, Any]:
        """The server's INFO message; empty before it is received."""
        return self._server_info

    def on_reading_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the task that reads the socket ends, for whatever reason.

        nats-py's own ``closed_cb`` is not called in every such case.
        """
        if self._reading_task is not None:
            self._reading_task.add_done_callback(lambda _: callback())

    async def listen(self, subject: str, listener: Listener) -> int:
        """Subscribe to ``subject``, and return the number of the subscription for `unlisten`.

        Without nats-py's queue and task for each subscription, of which a process with thousands
        of topics has thousands: ``listener`` is called where the message is read. What it does not
        read in time waits in the socket, and the server closes the connection when that is full.

        Raises:
            nats.errors.Error: the connection is closed.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        self._sid += 1
        self._listeners[self._sid] = listener
        sid = self._sid
        await self._send(b"SUB %s  %d\r\n" % (subject.encode(), sid))
        return sid

    async def unlisten(self, sid: int) -> None:
        """End a subscription of `listen`: nothing is called any more."""
        if self._listeners.pop(sid, None) is None or self.is_closed:
            return
        await self._send(b"UNSUB %d\r\n" % sid)

    async def _send(self, command: bytes) -> None:
        await self._send_command(command)
        # Otherwise it leaves with those that wait already.
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def force_close(self) -> None:
        """Close within a few `CLOSE_SECONDS`, whatever state the connection is in.

        nats-py's `close` stops halfway if it cannot flush, and a second call returns at once
        because the status is CLOSED already. So the status is reset and `close` is called
        again: the second time there is nothing to flush.
        """
        for _ in range(2):
            if self.is_closed:
                self._status = Client.DISCONNECTED
            # In a task, because after a failed TLS handshake `close` ends with a CancelledError.
            closing = asyncio.create_task(self.close())
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
            if not closing.done():
                await stop_tasks([closing], CLOSE_SECONDS)
            elif not closing.cancelled() and closing.exception() is None:
                return

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        listener = self._listeners.get(sid)
        if listener is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            listener(Message(subject, data, headers))
        except Exception as error:
            # It must not end the reading of the socket.
            await self._error_cb(error)

    async def _process_err(self, err_msg: str) -> None:
        if TOO_MANY_SUBSCRIPTIONS in err_msg:
            # nats-py would close the connection, and with it all subscriptions that the server has
            # accepted.
            await self._error_cb(nats.errors.Error(err_msg))
            return
        await super()._process_err(err_msg)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self._requires_tls and initial_connection:
            if not info.get("tls_required") and not info.get("tls_available"):
                raise BackendRefused(NO_TLS)
            # nats-py ignores "tls_available", and reads this entry when the method has returned.
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        # It has the credentials. Checked here too, where nothing that nats-py does before matters.
        if self._requires_tls and not self._is_encrypted():
            raise BackendRefused(NO_TLS)
        return super()._connect_command()

    def _is_encrypted(self) -> bool:
        writer = getattr(self._transport, "_io_writer", None)
        return writer is not None and writer.get_extra_info("ssl_object") is not None
