"""What is in the stream, and what is not any more."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Cursor, Outcome
from semantik_realtime.core.resume import Reason
from semantik_realtime.errors import BackendRefused, BackendUnavailable
from semantik_realtime.testing.contract import Author, until_unknown
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.link import Link
from semantik_realtime_nats.log import read_topic
from semantik_realtime_nats.settings import Names, NatsSettings, plan_access
from semantik_realtime_nats.sweep import sweep

Make = Callable[..., NatsBackend]
NAMES = Names(load_settings(), NatsSettings())


@pytest.fixture
def topic() -> str:
    return f"job:{secrets.token_hex(6)}"


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Link]:
    access = plan_access(url, NatsSettings())
    link = await Link.open(access, NAMES.config(1), NAMES.needed_config(), 5.0)
    try:
        yield link
    finally:
        await link.close()


async def stored(link: Link, topic: str) -> dict[str, int]:
    """Messages of a topic in the stream, for each subject."""
    info = await link.info(subjects_filter=NAMES.all_of(topic))
    return dict(info["state"].get("subjects") or {})


async def test_a_log_that_grew_long_is_trimmed_in_the_stream_too(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, retention_events=100), Author()
    for n in range(600):
        backend.publish([author.draft(topic, state={"n": n})])
    for _ in range(10):
        backend.publish([author.draft(topic) for _ in range(300)])
    async with linked(url) as link:
        left = await stored(link, topic)
    assert left.pop(NAMES.log(topic)) <= 2
    assert set(left.values()) == {1}


async def test_the_very_first_message_of_a_stream_is_not_purged_by_mistake(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    backend.publish([author.draft(topic) for _ in range(70)])
    async with linked(server.url) as link:
        await link.purge(NAMES.log(topic), 1)
        assert (await stored(link, topic))[NAMES.log(topic)] == 1


async def test_a_topic_that_nobody_remembers_is_known_from_little_of_its_log(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    for n in range(500):
        backend.publish([author.draft(topic, key=f"k{n % 5}", state={"n": n})])
    async with linked(url) as link:
        reading = await read_topic(link, NAMES, topic)
    assert reading is not None
    assert reading.ledger.offset == 500
    assert len(reading.messages) <= 64


async def test_a_deleted_topic_leaves_only_what_refuses_late_drafts(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    backend.publish([author.draft(topic, key=f"k{n}", state={}) for n in range(100)])
    async with linked(url) as link:
        assert len(await stored(link, topic)) == 102
        backend.delete(topic)
        assert await stored(link, topic) == {NAMES.log(topic): 1}


async def test_a_topic_that_begins_anew_has_nothing_of_the_old_one(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, retention_seconds=0.4), Author()
    await backend.open()
    backend.publish([author.draft(topic, key=f"k{n}", state={}) for n in range(100)])
    await until_unknown(backend, topic)
    backend.publish([author.draft(topic)])
    async with linked(url) as link:
        assert await stored(link, topic) == {NAMES.log(topic): 1}


async def test_the_sweep_removes_what_has_expired_and_nothing_else(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    author = Author()
    brief, lasting = make_backend(server.url, retention_seconds=0.3), make_backend(server.url)
    await brief.open()
    for n in range(130):
        brief.publish([author.draft(f"{topic}.{n}", state={})])
        lasting.publish([author.draft(f"{topic}-{n}", state={})])
    brief.publish([author.draft(topic, key=f"k{n}", state={}) for n in range(100)])
    await until_unknown(brief, topic)
    async with linked(server.url) as link:
        assert await sweep(link, NAMES) == 131
        assert await sweep(link, NAMES) == 0
        assert await stored(link, topic) == {}
        assert (await link.info())["state"]["messages"] == 130


async def test_answers_that_do_not_fit_into_one_are_read_in_parts(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, max_event_bytes=500_000), Author()
    await backend.open()
    text = "x" * 200_000
    for n in range(150):
        backend.publish([author.draft(topic, key=f"k{n}", state={"n": n}, data={"x": text})])
    snapshot = await backend.snapshot(topic, None, 1000)
    assert len(snapshot.states) == 150
    assert [event.offset for event in snapshot.events] == [*range(1, 151)]


async def test_a_batch_larger_than_a_message_is_appended_whole(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    await backend.open()
    drafts = [author.draft(topic, data={"x": "y" * 50_000}) for _ in range(100)]
    receipts = backend.publish(drafts)
    assert [receipt.outcome for receipt in receipts] == [Outcome.APPENDED] * 100
    assert len((await backend.snapshot(topic, None, 1000)).events) == 100


async def test_an_event_larger_than_the_server_takes_is_too_big(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, max_event_bytes=10**7), Author()
    receipts = backend.publish(
        [author.draft(topic), author.draft(topic, data={"x": "y" * 2**20}), author.draft(topic)]
    )
    assert [receipt.outcome for receipt in receipts] == [
        Outcome.APPENDED,
        Outcome.TOO_BIG,
        Outcome.APPENDED,
    ]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_topic_that_outgrows_a_message_gets_no_more_keys_and_goes_on(
    start_server: Callable[..., NatsServer],
    make_backend: Make,
    topic: str,
    caplog: pytest.LogCaptureFixture,
    ends: bool,
) -> None:
    server = start_server(config="max_payload: 65536")
    backend, author = make_backend(server.url, max_keys=5000), Author()
    outcomes: Counter[Outcome] = Counter()
    for _ in range(15):
        jobs = [str(uuid.uuid4()) for _ in range(100)]
        drafts = [
            author.draft(topic, key=job, job=job, attempt=1, state={}, terminal=ends)
            for job in jobs
        ]
        outcomes.update(receipt.outcome for receipt in backend.publish(drafts))
    told = [message for message in caplog.messages if "no more keys" in message]
    assert len(told) == 1
    assert "max_payload is 65536" in told[0]
    assert not [message for message in caplog.messages if "not settled" in message]
    if ends:
        assert outcomes == {Outcome.APPENDED: 1500}
    else:
        assert outcomes.keys() == {Outcome.APPENDED, Outcome.TOO_MANY_KEYS}
    for _ in range(3):
        backend.publish([author.draft(topic) for _ in range(500)])
    async with linked(server.url) as link:
        reading = await read_topic(link, NAMES, topic)
        left = await stored(link, topic)
    assert reading is not None
    assert 500 < len(reading.ledger.keys) < 1000
    assert reading.messages[0].seq == reading.ledger.seq
    assert left[NAMES.log(topic)] < 50


async def test_a_topic_that_is_too_large_for_the_server_is_still_written(
    start_server: Callable[..., NatsServer],
    make_backend: Make,
    topic: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_server()
    backend, author = make_backend(server.url), Author()
    jobs = [str(uuid.uuid4()) for _ in range(1000)]
    backend.publish([author.draft(topic, key=job, job=job, state={}) for job in jobs])
    async with linked(server.url) as link:
        before = (await link.info())["state"]["last_seq"]
    backend.close_writer()
    server.stop()
    conf = server.directory / "conf"
    conf.write_text(f"max_payload: 32768\n{conf.read_text()}")
    server.start()
    for _ in range(2):
        drafts = [author.draft(topic, key=job, state={"n": 1}) for job in jobs[:100]]
        receipts = backend.publish(drafts)
        assert {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}
    assert len([message for message in caplog.messages if "no more keys" in message]) == 1
    async with linked(server.url) as link:
        assert (await link.info())["state"]["last_seq"] - before < 20


async def test_a_full_stream_takes_no_more_and_forgets_nothing(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    await backend.open()
    appended = backend.publish([author.draft(topic, key="quiet", state={"n": 0})])
    update = f"STREAM.UPDATE.{NAMES.stream}"
    async with linked(server.url) as link:
        config = (await link.info())["config"]
        await link.api(update, config | {"max_bytes": 300_000})
        refusal: BackendUnavailable | None = None
        while refusal is None:
            draft = author.draft(topic, data={"x": "y" * 20_000})
            try:
                appended += backend.publish([draft])
            except BackendUnavailable as error:
                refusal = error
        assert "cannot do it now: maximum bytes exceeded" in str(refusal)
        snapshot = await backend.snapshot(topic, None, 1000)
        assert [event.offset for event in snapshot.events] == [*range(1, len(appended) + 1)]
        assert snapshot.states.keys() == {"quiet"}
        await link.api(update, config)
    assert backend.publish([draft])[0].outcome is Outcome.APPENDED


async def test_a_stream_that_forgets_by_itself_is_refused(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url)
    backend.publish([Author().draft(topic)])
    async with linked(server.url) as link:
        config = (await link.info())["config"]
        await link.api(f"STREAM.UPDATE.{NAMES.stream}", config | {"max_age": 3600 * 10**9})
    backend.close_writer()
    with pytest.raises(BackendRefused, match=r"other settings than we need \(max_age\)"):
        backend.publish([Author().draft(topic)])


async def test_a_rewritten_history_is_seen_by_its_chain(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    await backend.open()
    receipts = backend.publish([author.draft(topic) for _ in range(100)])
    for place in (10, 99):
        known = receipts[place].cursor
        assert known is not None
        other = Cursor(known.epoch, known.offset, known.chain ^ 1)
        assert (await backend.snapshot(topic, other, 0)).reason is Reason.DIVERGED


async def test_looks_while_writers_settle_are_whole(
    url: str, make_backend: Make, topic: str
) -> None:
    """The proof of a snapshot: states are read while they are replaced."""
    backend, author = make_backend(url), Author()
    await backend.open()
    backend.publish([author.draft(topic, key=f"k{n}", state={"n": n}) for n in range(200)])
    writing = True

    async def write() -> None:
        n = 200
        while writing:
            drafts = [author.draft(topic, key=f"k{n % 200}", state={"n": n}) for _ in range(70)]
            await asyncio.to_thread(backend.publish, drafts)
            n += 1

    task = asyncio.create_task(write())
    for _ in range(100):
        snapshot = await backend.snapshot(topic, None, 1000)
        last = {event.head().key: event.json for event in snapshot.events}
        assert snapshot.cursor is not None
        assert snapshot.events[-1].offset == snapshot.cursor.offset
        assert {key: snapshot.states[key] for key in last} == last
        assert len(snapshot.states) == 200
    writing = False
    await task
