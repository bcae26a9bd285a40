"""The server refuses one topic: the others of a batch, of a process and of its readers go on."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis
from redis._parsers.base import BaseParser

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.redis import appender
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.backends.redis.refusals import Kind, explain, kind_of
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.errors import (
    AppendUncertain,
    BackendRefused,
    BackendUnavailable,
    TopicRefused,
)
from semantik_realtime.testing.contract import Author

pytestmark = pytest.mark.valkey
KEYS = ("meta", "log", "state", "fence", "seen")
REFUSED = ("state", "fence", "seen")
"""The keys that a topic cannot begin again without; the script replaces the others."""


@pytest.fixture(scope="module")
def url(server_url: Callable[[str], str]) -> str:
    return server_url("valkey")


@pytest.fixture
def admin(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
async def backend(url: str) -> AsyncIterator[RedisBackend]:
    made = RedisBackend(load_settings(url=url, prefix=f"t{secrets.token_hex(4)}"))
    await made.open()
    yield made
    await made.close()
    made.close_writer()


def spoil(admin: redis.Redis, backend: RedisBackend, topic: str, key: str = "fence") -> None:
    """Append an event to a topic, and give a key of it a type that it must not have."""
    backend.publish([draft(topic)])
    admin.set(backend._keys(topic)[KEYS.index(key)], "text")


def draft(topic: str) -> Any:
    return Author().draft(topic, key="1", state={"n": 1}, job="1", attempt=1)


@pytest.mark.parametrize("key", REFUSED)
def test_the_other_topics_of_a_batch_are_appended(
    backend: RedisBackend, admin: redis.Redis, key: str
) -> None:
    spoil(admin, backend, "job:1", key)
    receipts = backend.publish([draft("job:1"), draft("job:2"), draft("job:1"), draft("job:3")])
    assert [receipt.outcome for receipt in receipts] == [
        Outcome.REFUSED,
        Outcome.APPENDED,
        Outcome.REFUSED,
        Outcome.APPENDED,
    ]
    assert "WRONGTYPE" in receipts[0].reason


def test_a_batch_of_a_refused_topic_alone_is_refused_and_waits_for_nothing(
    backend: RedisBackend, admin: redis.Redis
) -> None:
    spoil(admin, backend, "job:1")
    [receipt] = backend.publish([draft("job:1")])
    assert receipt.outcome is Outcome.REFUSED
    # What found out that the server accepts others does not stay.
    [trial] = admin.keys(f"{backend._settings.prefix}:{{probe:*:meta")
    # A topic is kept up to a 64th longer.
    assert 0 < admin.pttl(trial) <= 1016 * appender.TRIAL_SECONDS


def test_an_emitter_drops_what_is_refused_once_logged_and_sends_the_rest(
    backend: RedisBackend, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(admin, backend, "job:1")
    guarded = GuardedBackend(backend, 5.0)
    emitter = Emitter(guarded)
    refused = [emitter.emit_and_confirm(draft("job:1")) for _ in range(3)]
    assert refused[0].result(10).outcome is Outcome.REFUSED
    for n in range(20):
        emitter.emit(draft(f"job:{n % 4 + 1}"))
    assert emitter.flush(10)
    assert emitter.waiting == 0
    assert (emitter.stats.refused, emitter.stats.appended) == (8, 15)
    assert not guarded.is_away
    lines = [line for line in caplog.messages if line.startswith("emitter: topic refused")]
    assert len(lines) == 1
    assert "topic=job:1" in lines[0]
    assert "WRONGTYPE" in lines[0]
    emitter.close()


async def test_the_owners_feed_says_how_many_events_of_a_refused_topic_are_missing(
    backend: RedisBackend, admin: redis.Redis
) -> None:
    spoil(admin, backend, "job:1")
    emitter = Emitter(GuardedBackend(backend, 5.0))
    author = Author()
    for _ in range(3):
        emitter.emit(author.draft("job:1", state={"n": 1}, owner="7"))
    assert emitter.flush(10)
    # The report comes with the next batch.
    assert emitter.flush(10)
    # One for each batch.
    events = (await backend.snapshot("user:7", None, 10)).events
    reports = [msgspec.json.decode(event.json) for event in events]
    assert {(report["type"], report["key"]) for report in reports} == {("events_dropped", "1")}
    assert {report["data"]["topic"] for report in reports} == {"job:1"}
    assert sum(report["data"]["count"] for report in reports) == 3
    emitter.close()


@pytest.mark.parametrize("key", ["meta", "log", "state"])
async def test_a_topic_that_cannot_be_read_is_no_outage(
    backend: RedisBackend, admin: redis.Redis, key: str
) -> None:
    backend.publish([draft("job:2")])
    spoil(admin, backend, "job:1", key)
    guarded = GuardedBackend(backend, 5.0)
    await guarded.open()
    for topic in ("job:1", "job:2"):
        await guarded.snapshot(topic, None, 10)
        await guarded.page(topic, 0, 10)
    tops = await guarded.tops(["job:1", "job:2"])
    assert ("job:1" in tops) is (key != "meta")
    assert "job:2" in tops
    assert not guarded.is_away


def test_a_claim_of_a_refused_topic_is_no_outage(backend: RedisBackend, admin: redis.Redis) -> None:
    spoil(admin, backend, "job:1")
    guarded = GuardedBackend(backend, 5.0)
    with pytest.raises(TopicRefused, match="topic job:1 is refused: WRONGTYPE"):
        guarded.claim("job:1", "1", "token", None)
    assert not guarded.is_away
    spoil(admin, backend, "job:2", "meta")
    with pytest.raises(TopicRefused):
        guarded.delete("job:2")
    assert not guarded.is_away


def test_a_right_that_a_topic_lacks_stops_no_other_one(
    url: str, backend: RedisBackend, admin: redis.Redis
) -> None:
    name = f"u{secrets.token_hex(4)}"
    prefix = backend._settings.prefix
    shared = [f"~{prefix}:{name}*" for name in ("sinks", "migration")]
    rules = ("on", ">secret", "+@all", "&*", f"~{prefix}:{{job:1}}*", *shared)
    admin.execute_command("ACL", "SETUSER", name, *rules)
    limited_url = url.replace("redis://", f"redis://{name}:secret@")
    limited = RedisBackend(load_settings(url=limited_url, prefix=prefix))
    receipts = limited.publish([draft("job:2"), draft("job:1")])
    assert [one.outcome for one in receipts] == [Outcome.REFUSED, Outcome.APPENDED]
    # Where nothing is accepted it is the user who has no rights: an operator has to act.
    with pytest.raises(BackendRefused, match="rights"):
        limited.publish([draft("job:2")])
    limited.close_writer()
    admin.execute_command("ACL", "DELUSER", name)


def test_an_error_that_explains_nothing_is_tried_again_for_a_while(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_each = backend._writer.run_each

    def run(script: Any, calls: Any) -> Any:
        replies = run_each(script, calls)
        return [
            redis.ResponseError("upstream failure") if "{job:1}" in keys[0] else reply
            for (keys, _), reply in zip(calls, replies, strict=True)
        ]

    monkeypatch.setattr(backend._writer, "run_each", run)
    drafts = [draft("job:1"), draft("job:2")]
    with pytest.raises(AppendUncertain, match="upstream failure"):
        backend.publish(drafts)
    monkeypatch.setattr(appender, "PATIENCE_SECONDS", 0.0)
    assert [one.outcome for one in backend.publish(drafts)] == [Outcome.REFUSED, Outcome.DUPLICATE]


ERRORS = {
    Kind.WRONG_SERVER: BackendUnavailable,
    Kind.WRONG_NODE: BackendRefused,
    Kind.TEMPORARY: BackendUnavailable,
    Kind.RIGHTS: BackendRefused,
    Kind.CALL: BackendRefused,
}
IN_SCRIPT = "ERR Error running script (call to f_1): @user_script: 1: "


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (Kind.WRONG_SERVER, "READONLY You can't write against a read only replica.", "a replica"),
        (Kind.WRONG_SERVER, "LOADING Redis is loading the dataset in memory", "loading its data"),
        (Kind.WRONG_SERVER, "MASTERDOWN Link with MASTER is down", "lost its master"),
        (Kind.WRONG_SERVER, "CLUSTERDOWN Hash slot not served", "cluster is down"),
        (Kind.WRONG_SERVER, "NOREPLICAS Not enough good replicas to write.", "too few replicas"),
        (Kind.WRONG_SERVER, f"{IN_SCRIPT}-READONLY You can't write", "a replica"),
        (Kind.WRONG_NODE, "MOVED 15176 10.0.0.2:7001", "slot 15176 of these keys is on another"),
        (Kind.WRONG_NODE, "ASK 15176 10.0.0.2:7001", "10.0.0.2:7001 (ASK)"),
        (Kind.TEMPORARY, "TRYAGAIN Multiple keys request during rehashing", "moving these keys"),
        (Kind.TEMPORARY, "OOM command not allowed when used memory > 'maxmemory'.", "is full"),
        (Kind.TEMPORARY, "MISCONF Errors writing to the AOF file", "cannot save"),
        (Kind.TEMPORARY, "BUSY Redis is busy running a script.", "blocks it"),
        (Kind.RIGHTS, "NOPERM User x has no permissions", "rights"),
        (Kind.RIGHTS, "ERR The user executing the script can't run this command", "rights"),
        (Kind.RIGHTS, "NOAUTH Authentication required.", "rights"),
        (Kind.CALL, "WRONGTYPE Operation against a key", "WRONGTYPE"),
        (Kind.CALL, "CROSSSLOT Keys in request don't hash to the same slot", "the same slot"),
        (Kind.CALL, f"{IN_SCRIPT}WRONGTYPE Operation against a key", "WRONGTYPE"),
    ],
)
def test_an_error_of_the_server_has_a_kind_and_a_sentence(
    kind: Kind, text: str, sentence: str
) -> None:
    # As redis-py makes it of the reply.
    error = BaseParser.parse_error(text)
    assert kind_of(error) is kind
    explained = explain(error)
    assert type(explained) is ERRORS[kind]
    assert sentence in str(explained)


def test_a_spoiled_key_of_no_topic_is_named_and_is_no_outage(
    backend: RedisBackend, admin: redis.Redis
) -> None:
    prefix = backend._settings.prefix
    admin.set(f"{prefix}:{{holders}}", "text")
    admin.set(backend._lease_key("connections:7"), "text")
    guarded = GuardedBackend(backend, 5.0)
    for call, key in (
        (lambda: guarded.hold("worker", {"1": b"one"}, [], 60.0), "{holders}"),
        (lambda: guarded.overdue(60.0), "{holders}"),
        (lambda: guarded.lease("connections:7", "one", 10, 60.0), "lease:{connections:7}"),
        (lambda: guarded.release("connections:7", "one"), "lease:{connections:7}"),
    ):
        with pytest.raises(BackendRefused) as refused:
            call()
        assert f"the key {prefix}:{key} is refused: WRONGTYPE" in str(refused.value)
        assert not guarded.is_away
    assert guarded.lease("connections:8", "one", 10, 60.0)
    assert [receipt.outcome for receipt in guarded.publish([draft("job:1")])] == [Outcome.APPENDED]
