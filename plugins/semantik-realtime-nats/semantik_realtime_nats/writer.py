"""All writes of a process: one connection, and a `TopicWriter` for each topic."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.core.holding import Holding
from semantik_realtime.errors import AppendUncertain, BackendUnavailable

from semantik_realtime_nats.errors import NoReply, explain
from semantik_realtime_nats.holders import Holders
from semantik_realtime_nats.leases import Leases
from semantik_realtime_nats.marks import read_mark
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects
from semantik_realtime_nats.topic_writer import TopicWriter

MAX_TOPICS = 2000
"""Topics whose ledger is kept; then that of the topic that was written to longest ago goes."""
TOPICS_AT_ONCE = 64
LEAST_SECONDS = 1.0
"""What a call has at least, after it had to wait for the connection."""


class Writer:
    """All writes of a process. Lives on one loop, that of `thread.LoopThread`."""

    def __init__(
        self, settings: Settings, subjects: Subjects, connect: Callable[[], Awaitable[Stream]]
    ) -> None:
        self._settings = settings
        self._subjects = subjects
        self._connect = connect
        self._stream: Stream | None = None
        """On the last connection, which may be closed; None before the first."""
        self._connecting: asyncio.Task[Stream] | None = None
        """Shared by the calls that wait for it; None when it has ended."""
        self._topics: OrderedDict[str, TopicWriter] = OrderedDict()
        """The one that was written to longest ago comes first."""
        self._holders = Holders(subjects)
        self.leases = Leases(subjects, self._connected)
        """The leases of the process; some renewals need no loop."""
        self._topic_slots = asyncio.Semaphore(TOPICS_AT_ONCE)
        """Limits the appends that run side by side."""

    async def close(self) -> None:
        """Close the connection. Calls that run fail."""
        if self._connecting is not None:
            await stop_tasks([self._connecting])
        stream = self._stream
        await self.leases.close(None if stream is None or stream.connection.is_closed else stream)
        if stream is not None:
            await stream.connection.close()

    async def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        """See `semantik_realtime.hookspecs.BackendSpec.publish`."""
        by_topic: dict[str, list[int]] = {}
        for place, draft in enumerate(drafts):
            by_topic.setdefault(draft.topic, []).append(place)
        try:
            async with self._connected() as stream:
                results = await asyncio.gather(
                    *(
                        self._append(stream, topic, [drafts[place] for place in places])
                        for topic, places in by_topic.items()
                    ),
                    return_exceptions=True,
                )
        except NoReply as error:
            raise AppendUncertain(str(error)) from error
        receipts: dict[int, Receipt] = {}
        failures: list[BaseException] = []
        for places, result in zip(by_topic.values(), results, strict=True):
            if isinstance(result, BaseException):
                failures.append(result)
            else:
                receipts.update(zip(places, result, strict=True))
        if failures:
            await _close_after(failures, stream)
            reason = explain(failures[0])
            # Without any receipt, and no failure that may have appended, nothing was.
            if receipts or any(isinstance(failure, AppendUncertain) for failure in failures):
                raise AppendUncertain(f"{len(failures)} of {len(results)} topics failed: {reason}")
            raise reason
        return [receipts[place] for place in range(len(drafts))]

    async def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        """See `semantik_realtime.hookspecs.BackendSpec.claim`."""
        async with self._connected() as stream:
            return await self._topic(topic).claim(stream, job, token, owner)

    async def delete(self, topic: str) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.delete`."""
        async with self._connected() as stream:
            return await self._topic(topic).delete(stream)

    async def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.lease`."""
        async with self._connected() as stream:
            return await self.leases.lease(stream, name, holder, limit, seconds)

    async def release(self, name: str, holder: str) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.release`."""
        async with self._connected() as stream:
            return await self.leases.release(stream, name, holder)

    async def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        """See `semantik_realtime.hookspecs.Backend.hold`."""
        async with self._connected() as stream:
            return await self._holders.hold(stream, holder, jobs, ended, seconds)

    async def overdue(self, seconds: float) -> list[Holding]:
        """See `semantik_realtime.hookspecs.Backend.overdue`."""
        async with self._connected() as stream:
            return await self._holders.overdue(stream, seconds)

    async def _append(self, stream: Stream, topic: str, drafts: list[Draft]) -> list[Receipt]:
        async with self._topic_slots:
            return await self._topic(topic).append(stream, drafts)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Stream]:
        """Yield the stream on an open connection, and limit the block to the call's deadline.

        Raises:
            BackendUnavailable: there is no connection. Nothing was sent.
            NoReply: the deadline passed, or the connection broke.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.timeout_seconds
        stream = await self._open_stream()
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + LEAST_SECONDS)):
                await self._check_open(stream)
                yield stream
        except TimeoutError as error:
            await stream.connection.close()
            raise NoReply("no reply in time") from error
        except Exception as error:
            await _close_after([error], stream)
            raise explain(error) from error

    @staticmethod
    async def _check_open(stream: Stream) -> None:
        """Check that no migration has closed the stream for what processes write.

        Raises:
            BackendUnavailable: one has.
        """
        if stream.mark is not None and stream.mark.closes:
            stream.mark = read_mark((await stream.read_info())["config"])
        if stream.mark is not None and stream.mark.closes:
            raise BackendUnavailable(f"the stream is closed: {stream.mark.reason}")

    async def _open_stream(self) -> Stream:
        if self._stream is not None and not self._stream.connection.is_closed:
            return self._stream
        if self._connecting is None:
            self._connecting = asyncio.create_task(
                self._reconnect(), name="semantik-realtime-connect"
            )
        # A caller that gives up must not cancel the connection that others wait for.
        return await asyncio.shield(self._connecting)

    async def _reconnect(self) -> Stream:
        try:
            if self._stream is not None:
                await self._stream.connection.close()
            self._stream = await self._connect()
        finally:
            self._connecting = None
        # A server that lost its newest messages uses their sequences for others.
        for topic in self._topics.values():
            topic.forget()
        self._holders.forget()
        self.leases.forget()
        return self._stream

    def _topic(self, topic: str) -> TopicWriter:
        writer = self._topics.get(topic)
        if writer is None:
            writer = self._topics[topic] = TopicWriter(self._settings, self._subjects, topic)
            if len(self._topics) > MAX_TOPICS:
                oldest = next(iter(self._topics))
                if not self._topics[oldest].is_busy:
                    del self._topics[oldest]
        self._topics.move_to_end(topic)
        return writer


async def _close_after(errors: Sequence[BaseException], stream: Stream) -> None:
    """Close the connection if one of the errors may be its fault: another server may work."""
    if any(isinstance(explain(error), BackendUnavailable | AppendUncertain) for error in errors):
        await stream.connection.close()
