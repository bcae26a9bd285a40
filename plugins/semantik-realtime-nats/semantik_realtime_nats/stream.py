"""The JetStream stream on one connection: conditional publishes, reads and purges."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import nats.errors
from semantik_realtime.core.copying import Mark
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable

from semantik_realtime_nats.client import Message
from semantik_realtime_nats.clock import ServerClock
from semantik_realtime_nats.connection import Connection
from semantik_realtime_nats.errors import (
    STREAM_EXISTS,
    STREAM_MISSING,
    JetStreamError,
    check_reply,
    explain,
    explain_reset,
)
from semantik_realtime_nats.freshness import Seen
from semantik_realtime_nats.marks import read_mark
from semantik_realtime_nats.servers import first_answer, open_first
from semantik_realtime_nats.settings import ConnectOptions
from semantik_realtime_nats.stored import StoredMessage, parse_time, to_stored
from semantik_realtime_nats.subjects import Subjects
from semantik_realtime_nats.top_cache import TopCache

Result = TypeVar("Result")

HANDSHAKES = 3
"""Attempts to receive a server's error message: a server that refuses credentials closes the
connection at once, and the message may be lost with it."""
BATCH = 500
"""Most subjects, or messages, of one read request."""
BATCH_BYTES = 4 * 2**20
"""Most bytes of one reply; the rest is requested after it."""
MEASURE_SECONDS = 60.0
"""How old the measurement of the server's clock may become where a time is stored or compared."""
CONFIRM_SECONDS = 1.0
"""How old it may be where something is found to be over, which may remove data."""
MOVING_SECONDS = 1.0
"""How long a request is repeated that no server of a cluster listens to."""
MOVING_PAUSE_SECONDS = 0.03
BEHIND_SECONDS = 1.0
"""How long a server of a cluster may be behind what the process has seen; then it is left."""

_encode = msgspec.json.Encoder().encode


class Stream:
    """The stream on one connection. Lives and dies with it, see `Connection`."""

    def __init__(self, connection: Connection, name: str, seen: Seen) -> None:
        self.connection = connection
        self._name = name
        self._seen = seen
        # Whether several servers answer reads.
        self._is_replicated = False
        self.tops = TopCache()
        """The last messages of topics that were asked for, as this connection has read them."""
        self.mark: Mark | None = None
        """Of a migration, when the stream was found."""
        # False until the stream is found: before that, no answer means that there is no JetStream.
        self._is_found = False
        self._clock = ServerClock()
        # Held while the server's clock is measured, so that calls share a measurement.
        self._measuring = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        options: ConnectOptions,
        subjects: Subjects,
        timeout_seconds: float,
        seen: Seen | None = None,
    ) -> Stream:
        """Connect to one of the servers, in random order, and find or create the stream.

        Args:
            options: the servers (`open_first`), and the credentials.
            subjects: the stream's name and configuration.
            timeout_seconds: for all servers together.
            seen: what the process's connections share.

        Raises:
            BackendUnavailable: no server answers.
            BackendRefused: a server answers, and its version, permissions or stream forbid its
                use.
        """
        known = Seen() if seen is None else seen
        return await open_first(
            random.sample(options.urls, len(options.urls)),
            lambda url: cls._open_on(url, options, subjects, known),
            timeout_seconds,
        )

    @classmethod
    async def _open_on(
        cls, url: str, options: ConnectOptions, subjects: Subjects, seen: Seen
    ) -> Stream:
        for _ in range(HANDSHAKES):
            connection = Connection()
            try:
                await connection.connect(url, options)
                stream = cls(connection, subjects.stream, seen)
                await stream._prepare(subjects)
                return stream
            except BaseException as error:
                await connection.close()
                if isinstance(error, BackendError) or not isinstance(error, Exception):
                    raise
                cause = connection.error or error
            if not isinstance(cause, ConnectionResetError | BrokenPipeError):
                raise explain(cause) from cause
        raise explain_reset(cause, connection.server_info) from cause

    async def _prepare(self, subjects: Subjects) -> None:
        """Find the stream, or create it, and measure the difference of the clocks.

        Raises:
            BackendRefused: the server has no JetStream, or the stream another configuration
                than we need.
        """
        try:
            info = await self._find_or_create(subjects.stream_config())
        except nats.errors.NoRespondersError:
            raise BackendRefused(
                "the server has no JetStream; start it with -js or a jetstream block"
            ) from None
        self._is_found = True
        config = info["config"]
        self.mark = read_mark(config)
        self._is_replicated = config.get("num_replicas", 1) > 1
        subjects.check_config(config)
        if self._clock.age_seconds > CONFIRM_SECONDS:
            # It was created just now, and that reply has no time.
            await self.read_info()

    @property
    def clock_ahead_seconds(self) -> float:
        """How far the server's clock is ahead of the host's. For people: nothing depends on it."""
        return self._clock.now() - time.time()

    async def now(self) -> float:
        """Return the server's time, in seconds since 1970.

        It is measured again if the measurement is older than `MEASURE_SECONDS`.

        Raises: see `request_api`.
        """
        await self._measure(MEASURE_SECONDS)
        return self._clock.now()

    def estimate_now(self) -> float:
        """Return the same by the last measurement, without a request."""
        return self._clock.now()

    async def is_past(self, moment: float) -> bool:
        """Return True if the server's clock has reached ``moment``, in seconds since 1970.

        True only by a measurement that is not older than `CONFIRM_SECONDS`: neither the host's
        clock nor its drift over weeks may make something expire.

        Raises: see `request_api`.
        """
        if await self.now() < moment:
            return False
        await self._measure(CONFIRM_SECONDS)
        return self._clock.now() >= moment

    async def _measure(self, max_age_seconds: float) -> None:
        if self._clock.age_seconds > max_age_seconds:
            async with self._measuring:
                if self._clock.age_seconds > max_age_seconds:
                    await self.read_info()

    async def publish(
        self,
        subject: str,
        data: bytes,
        expected_seq: int,
        *,
        expected_on: str | None = None,
        rollup: bool = False,
        ttl_seconds: int | None = None,
    ) -> int:
        """Store a message on a condition, and return its sequence.

        Args:
            subject: of the message.
            data: of the message.
            expected_seq: what the sequence of the last message of ``expected_on`` must be; 0 if
                there must be none.
            expected_on: a subject; by default the message's own.
            rollup: purge the older messages of the subject.
            ttl_seconds: how long the server keeps the message; by default until it is purged.

        Raises:
            SequenceConflict: the condition does not hold. Nothing was stored.
            NoReply: it may have been stored.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected_seq)}
        if expected_on is not None:
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = expected_on
        if rollup:
            headers["Nats-Rollup"] = "sub"
        if ttl_seconds is not None:
            headers["Nats-TTL"] = str(ttl_seconds)
        reply = await self._request_json(subject, data, headers)
        seq = int(reply["seq"])
        self._seen.stored(subject, seq, self._clock.read(), ttl_seconds)
        return seq

    async def read_last(self, subjects: list[str]) -> dict[str, StoredMessage]:
        """Return the last message of each of these subjects, as of one moment.

        A message that is replaced during the call may be absent.
        """
        return {
            message.subject: message
            async for part in self.read_last_parts(subjects)
            for message in part
        }

    async def read_last_parts(self, subjects: list[str]) -> AsyncIterator[list[StoredMessage]]:
        """Yield the same in parts of at most `BATCH_BYTES`; each is read when it is asked for."""
        for start in range(0, len(subjects), BATCH):
            async for messages, _ in self.read_last_since(subjects[start : start + BATCH], 0):
                yield messages

    async def read_last_since(
        self, subjects: list[str], seq: int
    ) -> AsyncIterator[tuple[list[StoredMessage], int]]:
        """Yield the last messages of at most `BATCH` subjects that have ``seq`` or a later one.

        In parts, like `read_last_parts`, each with the stream's last sequence when it was read;
        0: no subject has a message.
        """
        request: dict[str, Any] = {"multi_last": subjects, "max_bytes": BATCH_BYTES}
        if seq:
            request["seq"] = seq
        while True:
            if self._is_replicated and "up_to_seq" not in request:
                messages, end = await self._read_fresh(request)
            else:
                messages, end = await self._read(request)
            up_to_seq = int(end.get("Nats-UpTo-Sequence", 0))
            yield messages, up_to_seq
            if not messages or end["Nats-Num-Pending"] == "0":
                return
            request["up_to_seq"] = up_to_seq
            request["seq"] = messages[-1].seq + 1

    async def read_from(self, subject: str, seq: int) -> list[StoredMessage]:
        """Return all messages of a subject with the sequence ``seq`` or a later one."""
        return [message async for part in self.read_parts(subject, seq) for message in part]

    async def read_parts(self, subject: str, seq: int) -> AsyncIterator[list[StoredMessage]]:
        """Yield the same in parts of at most `BATCH_BYTES`; each is read when it is asked for."""
        while True:
            request = {
                "next_by_subj": subject,
                "seq": seq,
                "batch": BATCH,
                "max_bytes": BATCH_BYTES,
            }
            messages, end = await self._read(request)
            yield messages
            if not messages or end["Nats-Num-Pending"] == "0":
                return
            seq = messages[-1].seq + 1

    async def purge(self, subject: str, below_seq: int) -> None:
        """Remove the messages of a subject (it may have wildcards) with lower sequences."""
        if below_seq <= 1:
            # There are none, and servers 2.11 and 2.12 would remove all of them.
            return
        await self.request_api(f"STREAM.PURGE.{self._name}", {"filter": subject, "seq": below_seq})

    async def read_info(self, **request: Any) -> dict[str, Any]:
        """Return the server's STREAM.INFO, which measures its clock too."""
        sent_at = self._clock.read()
        info = await self.request_api(f"STREAM.INFO.{self._name}", request)
        if "ts" in info:
            self._clock.measured(parse_time(info["ts"]), sent_at)
        self._seen.stream_ends_at(info["state"]["last_seq"])
        return info

    async def request_api(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to JetStream's API and return its reply."""
        return await self._request_json(f"$JS.API.{name}", _encode(request))

    async def _find_or_create(self, config: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self.read_info()
        except JetStreamError as error:
            if error.error_code != STREAM_MISSING:
                raise
        try:
            return await self.request_api(f"STREAM.CREATE.{self._name}", config)
        except JetStreamError as error:
            # Another process created it in between.
            if error.error_code != STREAM_EXISTS:
                raise
        return await self.read_info()

    async def _request_json(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(
            await self._while_moving(lambda: self.connection.request(subject, data, headers))
        )
        check_reply(reply)
        return reply

    async def _read_fresh(
        self, request: dict[str, Any]
    ) -> tuple[list[StoredMessage], dict[str, str]]:
        """Read, and read again while the server has less than this process has seen.

        Raises:
            BackendUnavailable: it does not catch up. The connection is closed, because another
                server may be better.
        """
        until = self._clock.read() + BEHIND_SECONDS
        subjects = request["multi_last"]
        while True:
            least_seq, anchor = self._seen.seq, self._seen.anchor(self._clock.read())
            asked = [*subjects, anchor] if anchor and anchor not in subjects else subjects
            messages, end = await self._read({**request, "multi_last": asked})
            up_to_seq = end.get("Nats-UpTo-Sequence")
            if (up_to_seq is None and anchor is None) or int(up_to_seq or 0) >= least_seq:
                return [one for one in messages if asked is subjects or one.subject != anchor], end
            if self._clock.read() > until:
                info = await self.read_info()
                if info["state"]["last_seq"] < least_seq:
                    # The whole stream has lost what this process has seen.
                    continue
                await self.connection.close()
                raise BackendUnavailable(
                    "the server is behind the others of its cluster: another one is tried"
                )
            await asyncio.sleep(MOVING_PAUSE_SECONDS / 4)

    async def _while_moving(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Repeat a request that no server listens to, for a moment. Nobody has received it.

        In a cluster that is so until every server knows of a new stream, and during an election.
        """
        until = self._clock.read() + MOVING_SECONDS
        while True:
            try:
                return await call()
            except nats.errors.NoRespondersError:
                if not self._is_found or self._clock.read() > until:
                    raise
            await asyncio.sleep(MOVING_PAUSE_SECONDS)

    async def _read(self, request: dict[str, Any]) -> tuple[list[StoredMessage], dict[str, str]]:
        if self._is_replicated:
            return await first_answer(lambda parts: self._read_once(request, parts))
        return await self._read_once(request, [])

    async def _read_once(
        self, request: dict[str, Any], parts: list[Message]
    ) -> tuple[list[StoredMessage], dict[str, str]]:
        subject, data = f"$JS.API.DIRECT.GET.{self._name}", _encode(request)
        end = await self._while_moving(lambda: self.connection.request_parts(subject, data, parts))
        if end.get("Status") not in ("204", "404"):
            raise BackendRefused(
                f"JetStream refuses a read: {end.get('Status')} {end.get('Description')}"
            )
        return [to_stored(message) for message in parts], end
