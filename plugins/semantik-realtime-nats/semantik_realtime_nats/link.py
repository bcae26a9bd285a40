"""One connection to a server, for as long as it holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable

from semantik_realtime_nats.settings import Access

logger = logging.getLogger(__name__)

OLDEST_VERSION = (2, 11)
"""Conditions on another subject, several last messages at once, messages with a time to live."""
PING_SECONDS = 5
CLOSE_SECONDS = 0.5
HOST_SECONDS = 2.0
"""Longest wait for one of several servers."""
HANDSHAKES = 3
"""A server that refuses our credentials closes at once, and what it says may be lost by that: so
often we ask why."""
BATCH = 500
PART_BYTES = 4 * 2**20
"""Bytes of an answer, before the rest has to be asked for."""

STREAM_MISSING = 10059
STREAM_EXISTS = 10058
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
NO_JETSTREAM = frozenset({10039, 10076})
NO_CLUSTER = 10074
NO_CERTIFICATE = (
    "the server wants a certificate that it trusts; set SEMANTIK_REALTIME_NATS_TLS_CERT and "
    "SEMANTIK_REALTIME_NATS_TLS_KEY"
)
_CERTIFICATE_ALERT = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA)")
_REFUSED_SUBJECT = re.compile(r'violation for subscription to "([^"]+)"')

_encode = msgspec.json.Encoder().encode


class Conflict(Exception):
    """The condition of a publish did not hold: nothing was stored."""


class NoAnswer(BackendUnavailable):
    """The question was sent and the connection broke; whether it arrived is not known."""


class Stored(msgspec.Struct, frozen=True):
    """A message of the stream. ``at`` is when it was stored, in seconds since 1970."""

    subject: str
    seq: int
    at: float
    data: bytes


class _Question:
    """What waits for an answer; an answer in parts ends with a status."""

    __slots__ = ("future", "parts", "subject")

    def __init__(self, subject: str, in_parts: bool) -> None:
        self.subject = subject
        self.parts: list[Msg] | None = [] if in_parts else None
        self.future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()


class Link:
    """A connection that is not renewed: when it breaks, whoever needs one makes another.

    Nothing is kept for later, so nothing is sent late. No call has a deadline
    of its own: callers use `asyncio.timeout`.
    """

    def __init__(self, stream: str) -> None:
        self.closed = asyncio.Event()
        self.error: Exception | None = None
        """What broke it, if that is known."""
        self.dropped: Callable[[str], None] | None = None
        """Called with the subject when nats-py threw a message away: its queue was full."""
        self.version = ""
        self.clock_ahead_seconds = 0.0
        self._stream = stream
        self._client = Client()
        self._inbox = ""
        self._asked = 0
        self._questions: dict[str, _Question] = {}
        self._confirmed: set[str] = set()
        self._refused: set[str] = set()
        """Subjects that we may not subscribe, in lower case."""
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, access: Access, config: dict[str, Any], needed: dict[str, Any], timeout_seconds: float
    ) -> Link:
        """Connect to one of the servers, and make sure that the stream is there.

        Raises:
            BackendUnavailable: no server answers.
            BackendRefused: it does, and will not do for us.
        """
        reasons: list[str] = []
        refusal: BackendRefused | None = None
        each_seconds = timeout_seconds if len(access.urls) == 1 else HOST_SECONDS
        try:
            async with asyncio.timeout(timeout_seconds):
                for url in random.sample(access.urls, len(access.urls)):
                    for _ in range(HANDSHAKES):
                        link = cls(config["name"])
                        try:
                            async with asyncio.timeout(each_seconds):
                                await link._connect(url, access)
                                await link._prepare(config, needed)
                            return link
                        except BaseException as error:
                            await link.close()
                            if not isinstance(error, Exception):
                                raise
                            is_ours = isinstance(error, BackendError)
                            cause = error if is_ours else link.error or error
                        if not isinstance(cause, ConnectionResetError | BrokenPipeError):
                            break
                        if link._client._server_info.get("tls_verify"):
                            cause = BackendRefused(NO_CERTIFICATE)
                        elif link._client._server_info.get("auth_required"):
                            cause = BackendRefused(
                                "the server refuses our credentials: it closes the connection"
                            )
                    reason = _explain(cause, url)
                    if isinstance(reason, BackendRefused):
                        refusal = reason
                    reasons.append(str(reason))
        except TimeoutError:
            reasons.append(f"nothing in {timeout_seconds:g} s")
        raise refusal or BackendUnavailable("; ".join(reasons))

    async def close(self) -> None:
        """End it. Whoever waits for an answer gets `NoAnswer`. Idempotent."""
        self._break()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        # nats-py stops in the middle of closing if it cannot send what waits, and does not
        # begin again. The second time nothing waits.
        for _ in range(2):
            if self._client.is_closed:
                self._client._status = Client.DISCONNECTED
            # A task of its own: after a failed TLS handshake it ends as if it were cancelled.
            closing = asyncio.create_task(self._client.close())
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
            if not closing.done():
                closing.cancel()
                await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
            elif not closing.cancelled() and closing.exception() is None:
                return

    @property
    def max_payload(self) -> int:
        """Most bytes of one message."""
        return self._client.max_payload

    def now(self) -> float:
        """The server's clock, seconds since 1970."""
        return time.time() + self.clock_ahead_seconds

    async def publish(
        self,
        subject: str,
        data: bytes,
        last: int,
        *,
        on: str | None = None,
        rollup: bool = False,
        keep_seconds: int | None = None,
    ) -> int:
        """Store a message if the last one of its subject, or of ``on``, has the sequence ``last``.

        ``rollup`` purges the subject's older messages.

        Raises:
            Conflict: it has another. Nothing was stored.
            NoAnswer: it may have been stored.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(last)}
        if on is not None:
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = on
        if rollup:
            headers["Nats-Rollup"] = "sub"
        if keep_seconds is not None:
            headers["Nats-TTL"] = str(keep_seconds)
        answer = await self._ask_json(subject, data, headers)
        return int(answer["seq"])

    async def last(self, subjects: list[str]) -> dict[str, Stored]:
        """The last message of each of these subjects, as they were at one moment.

        A message that is replaced while this one is read may be absent.
        """
        found: dict[str, Stored] = {}
        for start in range(0, len(subjects), BATCH):
            request: dict[str, Any] = {
                "multi_last": subjects[start : start + BATCH],
                "max_bytes": PART_BYTES,
            }
            while True:
                parts, end = await self._read(request)
                found.update((part.subject, part) for part in parts)
                if not parts or end["Nats-Num-Pending"] == "0":
                    break
                request["up_to_seq"] = int(end["Nats-UpTo-Sequence"])
                request["seq"] = parts[-1].seq + 1
        return found

    async def read(self, subject: str, seq: int) -> list[Stored]:
        """All messages of a subject from a sequence on."""
        found: list[Stored] = []
        while True:
            request = {
                "next_by_subj": subject,
                "seq": seq,
                "batch": BATCH,
                "max_bytes": PART_BYTES,
            }
            parts, end = await self._read(request)
            found += parts
            if not parts or end["Nats-Num-Pending"] == "0":
                return found
            seq = parts[-1].seq + 1

    async def purge(self, subject: str, below: int) -> None:
        """Remove a subject's messages with sequences below ``below``."""
        if below <= 1:
            # There are none, but 2.11 and 2.12 would take that for all of them.
            return
        await self.api(f"STREAM.PURGE.{self._stream}", {"filter": subject, "seq": below})

    async def info(self, **request: Any) -> dict[str, Any]:
        """What the server says of the stream."""
        return await self.api(f"STREAM.INFO.{self._stream}", request)

    async def api(self, name: str, request: Any) -> dict[str, Any]:
        """Ask the administration of JetStream."""
        return await self._ask_json(f"$JS.API.{name}", _encode(request))

    async def subscribe(
        self, subject: str, take: Callable[[bytes], None]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Call ``take`` with the data of each message. Gives what ends that."""

        async def call(message: Msg) -> None:
            take(message.data)

        # What was so before may have changed.
        for known in (self._refused, self._confirmed):
            known.discard(subject.lower())
        with self._errors():
            subscription = await self._client.subscribe(subject, cb=call)

        async def stop() -> None:
            # Without a connection there is nothing to end.
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

        return stop

    async def confirm(self, subjects: Sequence[str], right: str) -> None:
        """Wait until the server has taken the subscriptions to these subjects.

        The connection breaks if it takes the right back later.

        Raises:
            BackendRefused: one of them needs the right to subscribe to ``right``.
            NoAnswer: the connection broke.
        """
        await self.flush()
        for subject in subjects:
            if subject.lower() in self._refused:
                raise BackendRefused(
                    f"the server refuses our rights: the user may not subscribe to {subject}; "
                    f"give the right to subscribe to {right}"
                )
        self._confirmed.update(subject.lower() for subject in subjects)

    async def flush(self) -> None:
        """Wait until the server has gone through all that was sent."""
        with self._errors():
            flushed = asyncio.ensure_future(self._client.flush(timeout=3600))
            closed = asyncio.ensure_future(self.closed.wait())
            try:
                # nats-py would wait on a connection that is gone.
                await asyncio.wait({flushed, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not flushed.done():
                    raise NoAnswer("connection lost")
                flushed.result()
            finally:
                flushed.cancel()
                closed.cancel()

    async def _connect(self, url: str, access: Access) -> None:
        await self._client.connect(
            url,
            name="semantik-realtime",
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=3600,
            ping_interval=3600,
            **access.options,
        )
        self.version = str(self._client._server_info.get("version", ""))
        refusal = judge_version(self.version)
        if refusal is not None:
            raise BackendRefused(refusal)
        reading = self._client._reading_task
        if reading is not None:
            # However nats-py's reading ends, nothing is answered any more; it may not say so.
            reading.add_done_callback(lambda _: self._break())
        self._inbox = self._client.new_inbox() + "."
        await self._client.subscribe(self._inbox + "*", cb=self._on_answer)
        self._watching = asyncio.create_task(self._watch(), name="semantik-realtime-ping")

    async def _watch(self) -> None:
        """Find out that nobody is there any more. nats-py's own pings may fail to say so."""
        try:
            while True:
                await asyncio.sleep(PING_SECONDS)
                async with asyncio.timeout(PING_SECONDS):
                    await self._client.flush(timeout=3600)
        except Exception as error:
            self.error = error
            self._break()

    async def _prepare(self, config: dict[str, Any], needed: dict[str, Any]) -> None:
        """Find the stream or create it; read the server's clock."""
        sent = time.time()
        try:
            info = await self.info()
        except ApiError as error:
            if error.number != STREAM_MISSING:
                raise
            try:
                info = await self.api(f"STREAM.CREATE.{self._stream}", config)
            except ApiError as again:
                if again.number != STREAM_EXISTS:
                    raise
                info = await self.info()
        except nats.errors.NoRespondersError:
            raise BackendRefused(
                "the server has no JetStream; start it with -js or a jetstream block"
            ) from None
        wrong = [name for name, value in needed.items() if info["config"].get(name) != value]
        if wrong:
            raise BackendRefused(
                f"the stream {self._stream} has other settings than we need "
                f"({', '.join(wrong)}); delete it, or name another one in "
                "SEMANTIK_REALTIME_NATS_STREAM together with SEMANTIK_REALTIME_PREFIX"
            )
        if "ts" in info:
            self.clock_ahead_seconds = read_time(info["ts"]) - (sent + time.time()) / 2

    async def _ask(
        self, subject: str, data: bytes, headers: dict[str, str] | None, in_parts: bool
    ) -> _Question:
        if self.closed.is_set():
            raise BackendUnavailable("not connected")
        question = _Question(subject, in_parts)
        self._asked += 1
        token = str(self._asked)
        self._questions[token] = question
        try:
            with self._errors():
                await self._client.publish(
                    subject, data, reply=self._inbox + token, headers=headers
                )
            await question.future
        finally:
            del self._questions[token]
        return question

    async def _ask_json(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        question = await self._ask(subject, data, headers, in_parts=False)
        answer: dict[str, Any] = json.loads(question.future.result().data)
        error = answer.get("error")
        if error is None:
            return answer
        number = int(error.get("err_code", 0))
        text = str(error.get("description", error))
        if number in WRONG_LAST_SEQUENCE:
            raise Conflict(text)
        if number in NO_JETSTREAM:
            raise BackendRefused(f"there is no JetStream for this account: {text}")
        raise ApiError(number, int(error.get("code", 0)), text)

    async def _read(self, request: dict[str, Any]) -> tuple[list[Stored], dict[str, str]]:
        question = await self._ask(
            f"$JS.API.DIRECT.GET.{self._stream}", _encode(request), None, in_parts=True
        )
        end = question.future.result().headers or {}
        status = end.get("Status")
        if status not in ("204", "404"):
            raise BackendRefused(f"the server says: {status} {end.get('Description')}")
        assert question.parts is not None
        return [_stored(part) for part in question.parts], end

    async def _on_answer(self, message: Msg) -> None:
        question = self._questions.get(message.subject.removeprefix(self._inbox))
        if question is None or question.future.done():
            return
        status = message.headers.get("Status") if message.headers else None
        if status == "503":
            question.future.set_exception(nats.errors.NoRespondersError())
        elif question.parts is None or status is not None:
            question.future.set_result(message)
        else:
            question.parts.append(message)

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            logger.warning("link: too slow subject=%s", error.subject)
            if self.dropped is not None:
                self.dropped(error.subject)
            return
        if not isinstance(error, nats.errors.Error | OSError):
            logger.error("link: a message was not taken", exc_info=error)
            return
        self.error = error
        if self._inbox and isinstance(error, OSError | nats.errors.UnexpectedEOF):
            # It may be long until nats-py calls it closed, if it does at all.
            self._break()
            return
        # nats-py gives what the server said in lower case.
        text = str(error).lower()
        if "permissions violation" in text:
            refusal = BackendRefused(f"the server refuses our rights: {text}")
            inbox = self._inbox.lower()
            for question in self._questions.values():
                about = question.subject.lower() in text or (inbox and inbox in text)
                if about and not question.future.done():
                    question.future.set_exception(refusal)
            refused = _REFUSED_SUBJECT.search(text)
            if refused is not None:
                self._refused.add(refused[1])
                if refused[1] in self._confirmed:
                    self._break()

    async def _on_closed(self) -> None:
        # What the server said before it closed is told to nobody by nats-py.
        self.error = self.error or self._client.last_error
        self._break()

    def _break(self) -> None:
        self.closed.set()
        for question in self._questions.values():
            if not question.future.done():
                question.future.set_exception(
                    NoAnswer(f"connection lost: {self.error or 'closed'}")
                )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error


class ApiError(BackendError):
    """JetStream said no."""

    def __init__(self, number: int, code: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        # A single server will never have replicas, and calls that its own fault.
        self.is_temporary = code >= 500 and number != NO_CLUSTER


def judge_version(text: str) -> str | None:
    """What is wrong with a server of this version.

    >>> judge_version("2.15.1")
    >>> judge_version("2.10.26")
    'the server is NATS 2.10.26; 2.11 or newer is needed'
    """
    try:
        major, minor = (int(part) for part in text.split(".")[:2])
    except ValueError:
        return None
    if (major, minor) >= OLDEST_VERSION:
        return None
    return f"the server is NATS {text}; {'.'.join(map(str, OLDEST_VERSION))} or newer is needed"


def read_time(text: str) -> float:
    """Seconds since 1970.

    >>> read_time("1970-01-01T00:00:01.5Z")
    1.5
    """
    return datetime.fromisoformat(text).timestamp()


def explain(error: BaseException) -> BackendError:
    """Our word for what nats-py or the server said."""
    if isinstance(error, ApiError):
        if error.is_temporary:
            return BackendUnavailable(f"the server cannot do it now: {error}")
        return BackendRefused(f"the server says: {error}")
    if isinstance(error, BackendError):
        return error
    if isinstance(error, nats.errors.NoRespondersError):
        return BackendUnavailable("nobody answers for the stream")
    if isinstance(error, TimeoutError):
        return BackendUnavailable("no answer in time")
    if isinstance(error, ssl.SSLError) and _CERTIFICATE_ALERT.search(error.reason or ""):
        return BackendRefused(f"{NO_CERTIFICATE} ({error.reason})")
    text = str(error) or type(error).__name__
    if "authoriz" in text.lower() or "authent" in text.lower():
        return BackendRefused(f"the server refuses our credentials: {text}")
    return BackendUnavailable(f"{type(error).__name__}: {text}")


def _explain(error: Exception, url: str) -> BackendError:
    reason = explain(error)
    host = urlsplit(url).netloc.rpartition("@")[2]
    return type(reason)(f"{reason} (server {host})")


def _stored(message: Msg) -> Stored:
    headers = message.headers or {}
    return Stored(
        headers["Nats-Subject"],
        int(headers["Nats-Sequence"]),
        read_time(headers["Nats-Time-Stamp"]),
        message.data,
    )
