"""What the comparison of tops costs, and that it finds every change."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest
from semantik_realtime.core.event import Cursor
from semantik_realtime.testing.contract import Author, Recorder

from semantik_realtime_nats import top_cache
from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.top_cache import LastMessage, TopCache

Make = Callable[..., NatsBackend]

COUNT = 1200
"""More topics than one request may have."""


@pytest.fixture
def topics() -> list[str]:
    return [f"job:{secrets.token_hex(4)}-{number}" for number in range(COUNT)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects of all messages that were read."""
    subjects: list[str] = []
    original = Stream._read

    async def counted(self: Stream, request: Any) -> Any:
        messages, end = await original(self, request)
        subjects.extend(message.subject for message in messages)
        return messages, end

    monkeypatch.setattr(Stream, "_read", counted)
    return subjects


def offsets(tops: dict[str, Any]) -> dict[str, int]:
    return {topic: top.cursor.offset for topic, top in tops.items()}


async def test_topics_that_got_nothing_since_the_last_reading_are_not_read_again(
    url: str, make_backend: Make, topics: list[str], read: list[str]
) -> None:
    backend, author = make_backend(url), Author()
    await backend.open()
    absent, present = topics[:10], topics[10:]
    backend.publish([author.draft(topic) for topic in present])
    expected = dict.fromkeys(present, 1)
    assert offsets(await backend.tops(topics)) == expected
    read.clear()
    assert offsets(await backend.tops(topics)) == expected
    assert read == []

    backend.publish([author.draft(topic) for topic in (present[0], present[-1], absent[3])])
    expected |= {present[0]: 2, present[-1]: 2, absent[3]: 1}
    read.clear()
    assert offsets(await backend.tops(topics)) == expected
    assert len(read) == 3

    backend.delete(present[1])
    del expected[present[1]]
    assert offsets(await backend.tops(topics)) == expected
    backend.publish([author.draft(topics[-1])])
    assert offsets(await backend.tops([topics[-1]])) == {topics[-1]: 3}


async def test_messages_that_somebody_else_has_removed_are_noticed_after_a_while(
    url: str, make_backend: Make, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, author = make_backend(url), Author()
    await backend.open()
    assert backend._subscriber is not None
    stream = backend._subscriber.stream
    assert stream is not None
    backend.publish([author.draft(topics[0])])
    assert offsets(await backend.tops(topics[:1])) == {topics[0]: 1}
    await stream.request_api(
        f"STREAM.PURGE.{backend._subjects.stream}", {"filter": backend._subjects.log(topics[0])}
    )
    for entry in stream.tops._entries.values():
        entry.read_again_at -= top_cache.KEEP_SECONDS
    assert await backend.tops(topics[:1]) == {}


async def test_ends_that_are_read_at_the_same_time_do_not_confuse_each_other(
    url: str, make_backend: Make, topics: list[str]
) -> None:
    backend, author = make_backend(url), Author()
    await backend.open()
    some = topics[:50]
    for offset in range(1, 6):
        backend.publish([author.draft(topic) for topic in some])
        found = await asyncio.gather(*(backend.tops(some) for _ in range(5)))
        assert [offsets(tops) for tops in found] == [dict.fromkeys(some, offset)] * 5


def last(offset: int) -> LastMessage:
    return LastMessage(Cursor("e", offset, 0), None, 9e9, False)


def test_a_server_that_is_behind_makes_the_topics_be_read_as_a_whole() -> None:
    cache = TopCache()
    cache.note(["a", "b"], {"a": last(1)}, 10, now=0.0)
    assert cache.split(["a", "b"], now=1.0) == (["a", "b"], [], 11)
    assert cache.note_news(["a", "b"], {"b": last(1)}, 12)
    assert not cache.note_news(["a", "b"], {}, 9)
    assert cache.split(["a", "b"], now=1.0) == ([], ["a", "b"], 0)


def test_a_topic_without_a_message_is_asked_for_from_the_beginning() -> None:
    cache = TopCache()
    cache.note(["none"], {}, 0, now=0.0)
    cache.note(["a"], {"a": last(1)}, 10, now=0.0)
    assert cache.split(["none", "a"], now=1.0) == (["none", "a"], [], 1)


async def test_a_reader_with_thousands_of_topics_closes_at_once(
    url: str, make_backend: Make
) -> None:
    backend = make_backend(url)
    await backend.open()
    token = secrets.token_hex(4)
    await asyncio.gather(*(backend.subscribe(f"job:{token}-{n}", Recorder()) for n in range(3000)))
    before = len(asyncio.all_tasks())
    began = time.monotonic()
    await backend.close()
    assert time.monotonic() - began < 2
    # Its own few tasks have ended; there was none for each topic.
    assert before - 8 < len(asyncio.all_tasks()) <= before
