"""What is stored in the stream, and what is removed from it."""

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
from semantik_realtime_nats.log import TopicLog
from semantik_realtime_nats.settings import NatsSettings, plan_connect
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects
from semantik_realtime_nats.sweep import sweep

Make = Callable[..., NatsBackend]
SUBJECTS = Subjects(load_settings(), NatsSettings())


@pytest.fixture
def topic() -> str:
    return f"job:{secrets.token_hex(6)}"


@asynccontextmanager
async def open_stream(url: str) -> AsyncIterator[Stream]:
    stream = await Stream.open(plan_connect(url, NatsSettings()), SUBJECTS, 5.0)
    try:
        yield stream
    finally:
        await stream.connection.close()


async def count_stored(stream: Stream, topic: str) -> dict[str, int]:
    """Return the number of a topic's messages in the stream, for each subject."""
    info = await stream.read_info(subjects_filter=SUBJECTS.all_of(topic))
    return dict(info["state"].get("subjects") or {})


async def test_a_log_beyond_its_retention_is_trimmed_in_the_stream_too(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, retention_events=100), Author()
    for n in range(600):
        backend.publish([author.draft(topic, state={"n": n})])
    for _ in range(10):
        backend.publish([author.draft(topic) for _ in range(300)])
    async with open_stream(url) as stream:
        left = await count_stored(stream, topic)
    assert left.pop(SUBJECTS.log(topic)) <= 2
    assert set(left.values()) == {1}


async def test_purging_below_the_first_message_of_a_stream_removes_nothing(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    backend.publish([author.draft(topic) for _ in range(70)])
    async with open_stream(server.url) as stream:
        await stream.purge(SUBJECTS.log(topic), 1)
        assert (await count_stored(stream, topic))[SUBJECTS.log(topic)] == 1


async def test_a_topic_is_read_from_its_checkpoint_and_at_most_64_messages(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    for n in range(500):
        backend.publish([author.draft(topic, key=f"k{n % 5}", state={"n": n})])
    async with open_stream(url) as stream:
        log = await TopicLog.read(stream, SUBJECTS, topic)
    assert log is not None
    assert log.ledger.offset == 500
    assert len(log.messages) <= 64


async def test_a_deleted_topic_leaves_only_the_message_that_refuses_late_drafts(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url), Author()
    backend.publish([author.draft(topic, key=f"k{n}", state={}) for n in range(100)])
    async with open_stream(url) as stream:
        assert len(await count_stored(stream, topic)) == 102
        backend.delete(topic)
        assert await count_stored(stream, topic) == {SUBJECTS.log(topic): 1}


async def test_a_new_epoch_has_nothing_of_the_expired_one(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, retention_seconds=0.4), Author()
    await backend.open()
    backend.publish([author.draft(topic, key=f"k{n}", state={}) for n in range(100)])
    await until_unknown(backend, topic)
    backend.publish([author.draft(topic)])
    async with open_stream(url) as stream:
        assert await count_stored(stream, topic) == {SUBJECTS.log(topic): 1}


async def test_the_sweep_purges_the_expired_topics_and_no_others(
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
    async with open_stream(server.url) as stream:
        assert await sweep(stream, SUBJECTS) == 131
        assert await sweep(stream, SUBJECTS) == 0
        assert await count_stored(stream, topic) == {}
        assert (await stream.read_info())["state"]["messages"] == 130


async def test_a_snapshot_larger_than_one_reply_is_read_in_parts(
    url: str, make_backend: Make, topic: str
) -> None:
    backend = make_backend(url, max_event_bytes=500_000, max_read_bytes=10**8)
    author = Author()
    await backend.open()
    text = "x" * 200_000
    for n in range(150):
        backend.publish([author.draft(topic, key=f"k{n}", state={"n": n}, data={"x": text})])
    snapshot = await backend.snapshot(topic, None, 1000)
    assert len(snapshot.states) == 150
    assert [event.offset for event in snapshot.events] == [*range(1, 151)]


async def test_a_batch_larger_than_a_message_is_appended_completely(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, max_read_bytes=10**8), Author()
    await backend.open()
    drafts = [author.draft(topic, data={"x": "y" * 50_000}) for _ in range(100)]
    receipts = backend.publish(drafts)
    assert [receipt.outcome for receipt in receipts] == [Outcome.APPENDED] * 100
    assert len((await backend.snapshot(topic, None, 1000)).events) == 100


async def test_an_event_larger_than_the_server_accepts_is_too_big(
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
async def test_a_topic_whose_checkpoint_outgrows_a_message_gets_no_more_keys_and_still_appends(
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
    warnings = [message for message in caplog.messages if "no more keys" in message]
    assert len(warnings) == 1
    assert "max_payload is 65536" in warnings[0]
    assert not [message for message in caplog.messages if "no checkpoint" in message]
    if ends:
        assert outcomes == {Outcome.APPENDED: 1500}
    else:
        assert outcomes.keys() == {Outcome.APPENDED, Outcome.TOO_MANY_KEYS}
    for _ in range(3):
        backend.publish([author.draft(topic) for _ in range(500)])
    async with open_stream(server.url) as stream:
        log = await TopicLog.read(stream, SUBJECTS, topic)
        left = await count_stored(stream, topic)
    assert log is not None
    assert 500 < len(log.ledger.keys) < 1000
    assert log.messages[0].seq == log.ledger.seq
    assert left[SUBJECTS.log(topic)] < 50


async def test_a_topic_whose_checkpoint_fits_in_no_message_is_still_appended_to(
    start_server: Callable[..., NatsServer],
    make_backend: Make,
    topic: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_server()
    backend, author = make_backend(server.url), Author()
    jobs = [str(uuid.uuid4()) for _ in range(1000)]
    backend.publish([author.draft(topic, key=job, job=job, state={}) for job in jobs])
    async with open_stream(server.url) as stream:
        before = (await stream.read_info())["state"]["last_seq"]
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
    async with open_stream(server.url) as stream:
        assert (await stream.read_info())["state"]["last_seq"] - before < 20


async def test_a_full_stream_refuses_appends_and_loses_nothing(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(server.url), Author()
    await backend.open()
    appended = backend.publish([author.draft(topic, key="quiet", state={"n": 0})])
    update = f"STREAM.UPDATE.{SUBJECTS.stream}"
    async with open_stream(server.url) as stream:
        config = (await stream.read_info())["config"]
        await stream.request_api(update, config | {"max_bytes": 300_000})
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
        await stream.request_api(update, config)
    assert backend.publish([draft])[0].outcome is Outcome.APPENDED


async def test_a_stream_that_removes_messages_by_itself_is_refused(
    server: NatsServer, make_backend: Make, topic: str
) -> None:
    backend = make_backend(server.url)
    backend.publish([Author().draft(topic)])
    async with open_stream(server.url) as stream:
        config = (await stream.read_info())["config"]
        await stream.request_api(
            f"STREAM.UPDATE.{SUBJECTS.stream}", config | {"max_age": 3600 * 10**9}
        )
    backend.close_writer()
    with pytest.raises(BackendRefused, match=r"other settings than we need \(max_age\)"):
        backend.publish([Author().draft(topic)])


async def test_a_rewritten_history_is_detected_by_its_chain(
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


async def test_snapshots_during_checkpoints_are_consistent(
    url: str, make_backend: Make, topic: str
) -> None:
    """States are read while a writer replaces them."""
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
