"""Delayed drafts of a writer whose broker is killed, hangs and returns."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from publisher import Publisher
from waiting import until

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft
from semantik_realtime.core.lifecycle import EVENTS_DROPPED
from semantik_realtime.testing.servers import Server

TOPICS = tuple(f"job:{number}" for number in range(5))


async def read_log(settings: Settings, topic: str) -> list[dict[str, Any]]:
    """Read all events of a topic, with a backend that was not connected during the outage."""
    backend = RedisBackend(settings)
    await backend.open()
    try:
        snapshot = await backend.snapshot(topic, None, 1000)
        return [json.loads(event.json) for event in snapshot.events]
    finally:
        await backend.close()


async def flush(publisher: Publisher, seconds: float = 20) -> bool:
    return await asyncio.to_thread(publisher.rt.emitter.flush, seconds)


async def test_a_writer_sends_again_within_two_seconds_of_the_brokers_return(
    server: Server, publisher: Publisher
) -> None:
    await publisher.publish("job:0", 1)
    emitter = publisher.rt.emitter
    waits = []
    for _ in range(2):
        server.kill()
        publisher.emit("job:0")
        # Until the pauses between retries are at their longest.
        failures = emitter.stats.failures
        await until(lambda failures=failures: emitter.stats.failures >= failures + 5)
        server.start()
        began = time.monotonic()
        assert await flush(publisher)
        waits.append(time.monotonic() - began)
    # The better of two: the machine may have been busy with something else.
    assert min(waits) < 2


async def test_a_writer_sends_at_once_after_retry_now(
    server: Server, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semantik_realtime.emitter.sender.FIRST_RETRY_SECONDS", 3600.0)
    monkeypatch.setattr("semantik_realtime.emitter.sender.LAST_RETRY_SECONDS", 3600.0)
    server.kill()
    publisher.emit("job:0")
    await until(lambda: publisher.rt.backend.fails_writes)
    server.start()
    publisher.rt.emitter.retry_now()
    assert await flush(publisher)


async def test_after_many_outages_every_event_is_in_the_log_once_and_in_order(
    server: Server, settings: Settings, publisher: Publisher
) -> None:
    rng = random.Random(7)
    delayed: list[Draft] = []
    publisher.rt.emitter.on_delayed(delayed.extend)
    faults: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (server.kill, server.start),
        (server.pause, server.resume),
    ]

    async def emit_some(count: int) -> None:
        for _ in range(count):
            publisher.emit(rng.choice(TOPICS))
            await asyncio.sleep(rng.choice((0, 0, 0.001)))

    for begin, end in (faults * 3)[:5]:
        await emit_some(60)
        begin()
        await emit_some(60)
        if rng.random() < 0.7:
            await until(lambda: publisher.rt.backend.fails_writes)
            await emit_some(40)
        end()
    assert await flush(publisher, 30)
    assert publisher.rt.emitter.stats.failures >= 3
    for topic in TOPICS:
        numbers = [event["data"]["i"] for event in await read_log(settings, topic)]
        assert numbers == list(range(publisher.count[topic]))
    places = [(draft.topic, json.loads(draft.body)["data"]["i"]) for draft in delayed]
    assert len(places) == len(set(places)) > 60
    for topic in TOPICS:
        numbers = [number for where, number in places if where == topic]
        assert numbers == sorted(numbers)


async def test_a_spool_that_overflows_keeps_every_end_and_each_keys_newest_state(
    server: Server, settings: Settings
) -> None:
    publisher = Publisher(settings.model_copy(update={"spool_drafts": 100}))
    try:
        await publisher.publish("job:0", 1)
        server.kill()
        publisher.emit("job:0")
        await until(lambda: publisher.rt.backend.fails_writes)
        for turn in range(100):
            for topic in TOPICS:
                publisher.emit(topic)
            # The inbox is bounded, and must not overflow instead of the spool.
            await until(lambda: len(publisher.rt.emitter._queue.inbox) < 20)
            if turn < 40:
                publisher.emit(f"job:ended{turn}", terminal=True, job=f"ended{turn}")
        server.start()
        assert await flush(publisher)
        # Then it reports what it has dropped.
        await until(lambda: not publisher.rt.emitter._dropped)
        assert await flush(publisher)
        assert publisher.rt.emitter.stats.dropped > 300
        reported = 0
        for topic in TOPICS:
            whole = await read_log(settings, topic)
            log = [event for event in whole if event["type"] != EVENTS_DROPPED]
            reported += sum(event["data"]["count"] for event in whole if event not in log)
            assert log[-1]["state"]["progress"]["current"] == publisher.count[topic]
            offsets = [event["data"]["i"] for event in log]
            assert offsets == sorted(set(offsets))
        for turn in range(40):
            [end] = await read_log(settings, f"job:ended{turn}")
            assert end["terminal"]
        assert reported == publisher.rt.emitter.stats.dropped
        assert publisher.rt.emitter.stats.duplicate == 0
    finally:
        publisher.close()
