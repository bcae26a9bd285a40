"""One connection to one server: requests with replies, and subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import nats.errors
from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.errors import BackendRefused, BackendUnavailable

from semantik_realtime_nats.client import TOO_MANY_SUBSCRIPTIONS, Listener, Message, NatsClient
from semantik_realtime_nats.errors import (
    NoReply,
    check_version,
    explain_violation,
    refused_subscription,
)
from semantik_realtime_nats.settings import ConnectOptions

logger = logging.getLogger(__name__)

PING_SECONDS = 5
"""Between two pings, and how long each may take: a dead connection is found within twice that."""
TOO_MANY = (
    "the server allows no more subscriptions on a connection, and a web process needs one for each "
    "watched topic: raise max_subscriptions of the server, or subs of the account or the user"
)
NEVER_SECONDS = 3600
"""For nats-py's own timeouts, which must not fire: every call has a deadline from its caller."""


class _Request:
    """A request that waits for its reply."""

    __slots__ = ("future", "parts", "subject")

    def __init__(self, subject: str, parts: list[Message] | None = None) -> None:
        self.subject = subject
        self.parts = parts
        """Gets the messages before the last one, which has a status header; None if the reply is
        one message."""
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        """Gets the last message, or the error."""


class Connection:
    """One connection to one server. It never reconnects: a caller that needs one opens another.

    nats-py's reconnecting is off because it keeps what was published during a break and sends
    it later, when the caller has its error and has perhaps published the same drafts again.

    Call it on one event loop. No method has a deadline of its own: use `asyncio.timeout`.
    """

    def __init__(self) -> None:
        self._client = NatsClient()
        self._closed = asyncio.Event()
        """Set once the connection is broken or closed, for good."""
        self._error: Exception | None = None
        """The last error that nats-py reported; None before the first."""
        self._inbox = ""
        """The subject of all replies, up to the request's token; empty until connected."""
        self._last_token = 0
        """Numbers the requests."""
        self._requests: dict[str, _Request] = {}
        """The requests without a reply, by token."""
        self._confirmed: set[str] = set()
        """Subjects, in lower case, that the server lets us subscribe to."""
        self._refused: set[str] = set()
        """Subjects, in lower case, that the server does not let us subscribe to."""
        self._has_too_many = False
        """True if the server has refused a subscription, not naming it, since the last `confirm`:
        there are as many as it allows."""
        self._pinging: asyncio.Task[None] | None = None
        """Runs from `connect` to `close`."""

    @property
    def is_closed(self) -> bool:
        """True once the connection is broken or closed."""
        return self._closed.is_set()

    @property
    def error(self) -> Exception | None:
        """The last error that nats-py reported: often why the connection broke."""
        return self._error

    @property
    def server_info(self) -> dict[str, Any]:
        """The server's INFO message; empty before it is received."""
        return dict(self._client.info)

    @property
    def max_payload_bytes(self) -> int:
        """The largest message that the server accepts."""
        return self._client.max_payload

    async def wait_closed(self) -> None:
        """Return once the connection is broken or closed."""
        await self._closed.wait()

    async def connect(self, url: str, options: ConnectOptions) -> None:
        """Connect to one server.

        Raises:
            BackendRefused: the server is too old, or offers no TLS although the options require it.
            nats.errors.Error, OSError: it does not answer, or refuses. Call `close`.
        """
        if options.requires_tls(url):
            self._client.require_tls()
        await self._client.connect(
            url,
            name="semantik-realtime",
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=NEVER_SECONDS,
            ping_interval=NEVER_SECONDS,
            **options.arguments,
        )
        refusal = check_version(str(self._client.info.get("version", "")))
        if refusal is not None:
            raise BackendRefused(refusal)
        self._client.on_reading_ended(self._break)
        self._inbox = self._client.new_inbox() + "."
        await self._client.listen(self._inbox + "*", self._on_reply)
        self._pinging = asyncio.create_task(self._ping(), name="semantik-realtime-ping")

    async def close(self) -> None:
        """Close the connection; requests without a reply raise `NoReply`. Idempotent."""
        self._break()
        if self._pinging is not None:
            await stop_tasks([self._pinging])
        await self._client.force_close()

    async def request(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> bytes:
        """Send a request and return the data of its reply.

        Raises:
            BackendUnavailable: the connection was closed before. Nothing was sent.
            NoReply: the connection broke.
            BackendRefused: the user may not publish to the subject, or not subscribe to replies.
            nats.errors.NoRespondersError: nothing listens to the subject.
        """
        return (await self._request(_Request(subject), data, headers)).data

    async def request_parts(
        self, subject: str, data: bytes, parts: list[Message]
    ) -> dict[str, str]:
        """Send a request whose reply is several messages; return the last one's headers.

        The last message has a status header and no data; ``parts`` gets the others as they come.

        Raises: see `request`.
        """
        return (await self._request(_Request(subject, parts), data, None)).headers

    async def subscribe(self, subject: str, listener: Listener) -> int:
        """Subscribe to ``subject``, and return its number. Call `confirm` before you rely on it.

        Args:
            subject: without wildcards.
            listener: called on the loop with each message.
        """
        # The permissions may have changed since the last subscription to it.
        self._refused.discard(subject.lower())
        self._confirmed.discard(subject.lower())
        with _no_reply_on_error():
            return await self._client.listen(subject, listener)

    async def unsubscribe(self, number: int) -> None:
        """End a subscription. Without a connection the server has dropped it already."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.unlisten(number)

    async def confirm(self, subjects: Sequence[str], permission: str) -> None:
        """Wait until the server has processed the subscriptions to these subjects.

        The connection breaks if the server withdraws the permission later.

        Raises:
            BackendRefused: the user may not subscribe to one of them; the message asks for the
                permission to subscribe to ``permission``.
            NoReply: the connection broke.
        """
        await self._flush()
        if self._has_too_many:
            self._has_too_many = False
            raise BackendRefused(TOO_MANY)
        for subject in subjects:
            if subject.lower() in self._refused:
                raise BackendRefused(
                    f"the user may not subscribe to {subject}; grant the permission to subscribe "
                    f"to {permission}"
                )
        self._confirmed.update(subject.lower() for subject in subjects)

    async def _flush(self) -> None:
        """Wait until the server has processed everything that was sent."""
        with _no_reply_on_error():
            flushed = asyncio.ensure_future(self._client.flush(timeout=NEVER_SECONDS))
            closed = asyncio.ensure_future(self._closed.wait())
            try:
                # nats-py's flush does not end when the connection breaks.
                await asyncio.wait({flushed, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not flushed.done():
                    raise NoReply("connection lost")
                flushed.result()
            finally:
                flushed.cancel()
                closed.cancel()

    async def _ping(self) -> None:
        """Break the connection when the server stops answering. nats-py's pings may not."""
        try:
            while True:
                await asyncio.sleep(PING_SECONDS)
                async with asyncio.timeout(PING_SECONDS):
                    await self._client.flush(timeout=NEVER_SECONDS)
        except Exception as error:
            self._error = error
            self._break()

    async def _request(
        self, request: _Request, data: bytes, headers: dict[str, str] | None
    ) -> Message:
        if self.is_closed:
            raise BackendUnavailable("not connected")
        self._last_token += 1
        token = str(self._last_token)
        self._requests[token] = request
        try:
            with _no_reply_on_error():
                await self._client.publish(
                    request.subject, data, reply=self._inbox + token, headers=headers
                )
            return await request.future
        finally:
            del self._requests[token]

    def _on_reply(self, message: Message) -> None:
        request = self._requests.get(message.subject.decode().removeprefix(self._inbox))
        if request is None or request.future.done():
            return
        status = message.raw_headers[9:12] if message.raw_headers else b""
        if status == b"503":
            request.future.set_exception(nats.errors.NoRespondersError())
        elif request.parts is not None and not status.isdigit():
            request.parts.append(message)
        else:
            request.future.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        if not isinstance(error, nats.errors.Error | OSError):
            logger.error("connection: a message was not processed", exc_info=error)
            return
        self._error = error
        if self._inbox and isinstance(error, OSError | nats.errors.UnexpectedEOF):
            # nats-py may call `closed_cb` much later, or never.
            self._break()
            return
        # nats-py passes the server's message on in lower case.
        text = str(error).lower()
        if TOO_MANY_SUBSCRIPTIONS in text:
            self._has_too_many = True
            return
        if "permissions violation" in text:
            self._on_permissions_violation(text)

    def _on_permissions_violation(self, text: str) -> None:
        inbox = self._inbox.lower()
        for request in self._requests.values():
            concerns_request = request.subject.lower() in text or (inbox and inbox in text)
            if concerns_request and not request.future.done():
                request.future.set_exception(BackendRefused(explain_violation(text)))
        refused = refused_subscription(text)
        if refused is not None:
            self._refused.add(refused)
            if refused in self._confirmed:
                self._break()

    async def _on_closed(self) -> None:
        # nats-py keeps the server's last message here and reports it nowhere else.
        self._error = self._error or self._client.last_error
        self._break()

    def _break(self) -> None:
        self._closed.set()
        for request in self._requests.values():
            if not request.future.done():
                request.future.set_exception(NoReply(f"connection lost: {self._error or 'closed'}"))


@contextlib.contextmanager
def _no_reply_on_error() -> Iterator[None]:
    try:
        yield
    except (nats.errors.Error, OSError) as error:
        raise NoReply(f"{type(error).__name__}: {error}") from error
