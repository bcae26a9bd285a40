"""Writes: every change of a topic or a lease, on one loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Outcome, Receipt
from semantik_realtime.errors import AppendUncertain, BackendError, BackendUnavailable

from semantik_realtime_nats.ledger import Gap, Ledger, Limits, Plan
from semantik_realtime_nats.link import Conflict, Link, NoAnswer, explain
from semantik_realtime_nats.log import (
    catch_up,
    encode_base,
    read_messages,
    read_topic,
)
from semantik_realtime_nats.settings import Names

logger = logging.getLogger(__name__)

SETTLE_EVENTS = 64
"""Events after the base that make a writer settle; who reads the topic folds that many."""
KNOWN_TOPICS = 2000
TOPICS_AT_ONCE = 64
HEAD_BYTES = 8192
"""Room in a message for what is beside the events."""
CROWDED = 0.75
"""Part of a message that a base may fill before new keys have to take the place of old ones."""
CLOCK_SECONDS = 0.1
"""How far two processes' ideas of the server's clock may be apart. What a reader takes for over
must be over for a writer, or it would append where nobody looks."""
LEAST_SECONDS = 1.0
"""What a call may take after it had to wait for the connection."""
CONFLICT_SECONDS = 0.002
LONGEST_CONFLICT_SECONDS = 0.1


class _Known:
    """What the writer remembers of a topic. Used by one call at a time."""

    __slots__ = ("is_crowded", "ledger", "lock", "max_keys")

    def __init__(self, max_keys: int) -> None:
        self.lock = asyncio.Lock()
        self.ledger: Ledger | None = None
        self.max_keys = max_keys
        """Fewer than configured while the base is nearly as large as a message can be."""
        self.is_crowded = False
        """Whether that was logged."""

    async def __aenter__(self) -> _Known:
        await self.lock.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.lock.release()


class Writer:
    """All writes of a process.

    Lives on one loop. The ledgers of the topics it wrote to last are kept; a
    ledger that is out of date shows by a conflict.
    """

    def __init__(self, settings: Settings, names: Names, connect: Callable[[], Awaitable[Link]]):
        self._settings = settings
        self._names = names
        self._connect = connect
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._topics: OrderedDict[str, _Known] = OrderedDict()
        self._places = asyncio.Semaphore(TOPICS_AT_ONCE)

    async def close(self) -> None:
        """End the connection."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._link is not None:
            await self._link.close()

    async def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        """Append drafts; see `semantik_realtime.hookspecs.BackendSpec.publish`."""
        by_topic: dict[str, list[int]] = {}
        for place, draft in enumerate(drafts):
            by_topic.setdefault(draft.topic, []).append(place)
        try:
            async with self._using() as link:
                answers = await asyncio.gather(
                    *(
                        self._append(link, topic, [drafts[place] for place in places])
                        for topic, places in by_topic.items()
                    ),
                    return_exceptions=True,
                )
        except NoAnswer as error:
            raise AppendUncertain(str(error)) from error
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures:
            await self._give_up(link, failures)
            reason = explain(failures[0])
            if len(failures) < len(answers) or any(map(_may_have_written, failures)):
                raise AppendUncertain(f"{len(failures)} of {len(answers)} topics failed: {reason}")
            raise reason
        receipts: dict[int, Receipt] = {}
        for places, answer in zip(by_topic.values(), answers, strict=True):
            assert isinstance(answer, list)
            receipts.update(zip(places, answer, strict=True))
        return [receipts[place] for place in range(len(drafts))]

    async def claim(self, topic: str, job: str, token: str) -> int:
        """See `semantik_realtime.hookspecs.BackendSpec.claim`."""
        attempt = 0

        def plan(ledger: Ledger) -> Plan | None:
            nonlocal attempt
            attempt, made = ledger.claim(job, token, self._limits(link, known))
            return made

        async with self._using() as link, self._known(topic) as known:
            await self._write(link, topic, known, plan)
        return attempt

    async def delete(self, topic: str) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.delete`."""
        existed = False

        def plan(ledger: Ledger) -> Plan:
            nonlocal existed
            existed = not ledger.deleted and ledger.offset > 0
            return ledger.delete(self._limits(link, known))

        async with self._using() as link, self._known(topic) as known:
            await self._write(link, topic, known, plan, replaces=True)
        return existed

    async def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.lease`."""

        def take(held: dict[str, float], now: float) -> bool:
            if holder not in held and len(held) >= limit:
                return False
            held[holder] = now + seconds
            return True

        async with self._using() as link:
            return await change_lease(link, self._names, name, take)

    async def release(self, name: str, holder: str) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.release`."""
        async with self._using() as link:
            return await change_lease(
                link, self._names, name, lambda held, _: held.pop(holder, None) is not None
            )

    @contextlib.asynccontextmanager
    async def _using(self) -> AsyncIterator[Link]:
        """The connection, for as long as a call may take.

        Raises:
            BackendUnavailable: there is none.
            NoAnswer: the call was not done in time, or the connection broke.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.timeout_seconds
        link = await self._linked()
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + LEAST_SECONDS)):
                yield link
        except TimeoutError as error:
            await link.close()
            raise NoAnswer("no answer in time") from error
        except Exception as error:
            await self._give_up(link, [error])
            raise explain(error) from error

    async def _linked(self) -> Link:
        if self._link is not None and not self._link.closed.is_set():
            return self._link
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="semantik-realtime-connect")
        return await asyncio.shield(self._opening)

    async def _open(self) -> Link:
        try:
            if self._link is not None:
                await self._link.close()
            self._link = await self._connect()
        finally:
            self._opening = None
        # A server that lost its newest messages hands out their sequences again.
        for known in self._topics.values():
            known.ledger = None
        return self._link

    async def _give_up(self, link: Link, errors: Sequence[BaseException]) -> None:
        """Leave a connection on which something failed: another server may do better."""
        if any(
            isinstance(explain(error), BackendUnavailable | AppendUncertain) for error in errors
        ):
            await link.close()

    def _known(self, topic: str) -> _Known:
        known = self._topics.get(topic)
        if known is None:
            known = self._topics[topic] = _Known(self._settings.max_keys)
            if len(self._topics) > KNOWN_TOPICS:
                oldest = next(iter(self._topics))
                if not self._topics[oldest].lock.locked():
                    del self._topics[oldest]
        self._topics.move_to_end(topic)
        return known

    async def _append(self, link: Link, topic: str, drafts: list[Draft]) -> list[Receipt]:
        receipts: list[Receipt] = []
        async with self._places, self._known(topic) as known:
            for part in _parts(drafts, link.max_payload - HEAD_BYTES):
                rest = part
                while rest:
                    try:
                        answers = await self._append_part(link, topic, known, rest)
                    except Exception as error:
                        if not receipts:
                            raise
                        raise AppendUncertain(f"only in part: {explain(error)}") from error
                    receipts += answers
                    rest = rest[len(answers) :]
                    await self._settle(link, topic, known)
        return receipts

    async def _append_part(
        self, link: Link, topic: str, known: _Known, drafts: list[Draft]
    ) -> list[Receipt]:
        """Append what fits in one message; gives the receipts of that."""
        receipts: list[Receipt] = []

        def plan(ledger: Ledger) -> Plan:
            nonlocal receipts
            planned = ledger.append(drafts, self._limits(link, known))
            receipts = planned.receipts
            return planned

        await self._write(link, topic, known, plan)
        if any(receipt.outcome is Outcome.DUPLICATE for receipt in receipts):
            try:
                return await self._with_first_positions(link, topic, drafts, receipts)
            except BackendError as error:
                raise AppendUncertain(f"first positions not read: {error}") from error
        return receipts

    async def _write(
        self,
        link: Link,
        topic: str,
        known: _Known,
        plan: Callable[[Ledger], Plan | None],
        replaces: bool = False,
    ) -> None:
        """Append what ``plan`` makes of the ledger, again and again until nobody came first."""
        pause_seconds = 0.0
        log = self._names.log(topic)
        while True:
            ledger = (await self._ledger(link, topic, known)).copy()
            made = plan(ledger)
            if made is None or made.payload is None:
                return
            expected = ledger.expected
            begins = expected > 0 and (replaces or ledger.seq == 0)
            try:
                seq = await link.publish(log, made.payload, expected, rollup=begins)
            except NoAnswer as error:
                raise AppendUncertain(str(error)) from error
            except Conflict:
                await asyncio.sleep(pause_seconds * random.random())  # noqa: S311
                pause_seconds = min(
                    max(CONFLICT_SECONDS, pause_seconds * 2), LONGEST_CONFLICT_SECONDS
                )
                await self._catch_up(link, topic, known)
                continue
            ledger.commit(made.head, seq, link.now())
            known.ledger = None if replaces else ledger
            if begins:
                # What is left of an older epoch. Nobody takes it for ours.
                try:
                    await link.purge(self._names.all_of(topic), seq)
                except BackendError as error:
                    logger.info("writer: not purged topic=%s error=%s", topic, error)
            return

    async def _ledger(self, link: Link, topic: str, known: _Known) -> Ledger:
        if known.ledger is None:
            reading = await read_topic(link, self._names, topic)
            known.ledger = reading.ledger if reading else Ledger.begin(0)
        if link.now() + CLOCK_SECONDS >= known.ledger.alive_until:
            known.ledger = Ledger.begin(known.ledger.expected)
        return known.ledger

    async def _catch_up(self, link: Link, topic: str, known: _Known) -> None:
        ledger, known.ledger = known.ledger, None
        if ledger is not None and ledger.seq > 0:
            with contextlib.suppress(Gap):
                if await catch_up(link, self._names, topic, ledger):
                    known.ledger = ledger

    async def _with_first_positions(
        self, link: Link, topic: str, drafts: list[Draft], receipts: list[Receipt]
    ) -> list[Receipt]:
        """Tell duplicates where they first were, as far as the log still knows."""
        positions: dict[tuple[str, int], Cursor] = {}
        for message in await read_messages(link, self._names, topic, 1):
            epoch = message.head.epoch
            for event, number in zip(message.events(), message.numbers(), strict=True):
                positions[number] = Cursor(epoch, event.offset, event.chain)
        return [
            Receipt(Outcome.DUPLICATE, positions.get((draft.producer, draft.number)))
            if receipt.outcome is Outcome.DUPLICATE
            else receipt
            for draft, receipt in zip(drafts, receipts, strict=False)
        ]

    async def _settle(self, link: Link, topic: str, known: _Known) -> None:
        """Write what saves readers the log, if it has grown; without success nothing is lost."""
        ledger = known.ledger
        if ledger is None or ledger.offset - ledger.base_offset < SETTLE_EVENTS:
            return
        log, names = self._names.log(topic), self._names
        oldest = ledger.pages[0]
        base = encode_base(ledger, self._settings.retention_events)
        if not self._fits(link, topic, known, ledger, len(base)):
            return
        try:
            answers = await asyncio.gather(
                *(
                    link.publish(
                        names.state(topic, key),
                        event,
                        ledger.seq,
                        on=log,
                        rollup=True,
                    )
                    for key, event in ledger.changed.items()
                ),
                return_exceptions=True,
            )
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            await link.publish(names.base(topic), base, ledger.seq, on=log, rollup=True)
            ledger.base_offset = ledger.offset
            ledger.changed.clear()
            if ledger.pages[0] != oldest:
                await link.purge(log, ledger.pages[0][1])
        except Conflict:
            # Someone appended meanwhile, and will settle in turn.
            pass
        except BackendError as error:
            logger.info("writer: not settled topic=%s error=%s", topic, error)

    def _fits(self, link: Link, topic: str, known: _Known, ledger: Ledger, base_bytes: int) -> bool:
        """Whether a base fits in a message. Before it does not, the topic gets no more keys."""
        room = link.max_payload - HEAD_BYTES
        known.max_keys = self._settings.max_keys
        if base_bytes > CROWDED * room:
            known.max_keys = max(1, min(known.max_keys, len(ledger.keys)))
            if not known.is_crowded:
                known.is_crowded = True
                logger.warning(
                    "writer: no more keys topic=%s keys=%d: what is known of it has %d bytes and "
                    "the server's max_payload is %d; raise that, or lower "
                    "SEMANTIK_REALTIME_MAX_KEYS",
                    topic,
                    len(ledger.keys),
                    base_bytes,
                    link.max_payload,
                )
        return base_bytes <= room

    def _limits(self, link: Link, known: _Known) -> Limits:
        settings = self._settings
        return Limits(
            settings.retention_events,
            settings.retention_seconds,
            settings.grace_seconds,
            known.max_keys,
            min(settings.max_event_bytes, link.max_payload - 2 * HEAD_BYTES),
        )


async def change_lease(
    link: Link, names: Names, name: str, change: Callable[[dict[str, float], float], bool]
) -> bool:
    """Let ``change`` alter the holders and their ends; gives what it gives."""
    subject = names.lease(name)
    while True:
        stored = (await link.last([subject])).get(subject)
        now = link.now()
        before: dict[str, float] = msgspec.json.decode(stored.data) if stored else {}
        held = {holder: until for holder, until in before.items() if until > now}
        if not change(held, now):
            return False
        keep_seconds = max(1, math.ceil(max(held.values(), default=now) - now))
        try:
            await link.publish(
                subject,
                msgspec.json.encode(held),
                stored.seq if stored else 0,
                rollup=True,
                keep_seconds=keep_seconds,
            )
        except Conflict:
            continue
        return True


def _parts(drafts: list[Draft], max_bytes: int) -> list[list[Draft]]:
    """Drafts in lots that fit in a message each."""
    lots: list[list[Draft]] = [[]]
    size = 0
    for draft in drafts:
        cost = len(draft.body) + 4 * (len(draft.key) + len(draft.job or "")) + 128
        if size + cost > max_bytes and lots[-1]:
            lots.append([])
            size = 0
        lots[-1].append(draft)
        size += cost
    return lots


def _may_have_written(error: BaseException) -> bool:
    return isinstance(error, AppendUncertain)
