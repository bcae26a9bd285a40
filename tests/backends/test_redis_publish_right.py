"""A Redis user that may append and not publish: counted, logged once, and told what is missing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest
import redis
from test_redis_rights import LINES, WORKER, doctor, url_for

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.metrics import writing
from semantik_realtime.testing.contract import Author
from semantik_realtime.testing.servers import RedisServer, running, valkey_program

RULES = {"one server": "+publish &semantik:*", "cluster": "+spublish &semantik:*"}
CLUSTER_RULES = "+spublish +ssubscribe +sunsubscribe +cluster|slots +asking"

pytestmark = pytest.mark.valkey


@pytest.fixture(scope="module", params=list(RULES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str) -> Iterator[RedisServer]:
    """One server, or a cluster of one node."""
    options = ("--cluster-enabled", "yes") if kind == "cluster" else ()
    with running(RedisServer(valkey_program(), options=options)) as server:
        if kind == "cluster":
            with redis.Redis.from_url(server.url) as admin:
                admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        yield server


@pytest.fixture(params=["the command", "the channels"])
def backend(
    request: pytest.FixtureRequest, server: RedisServer, kind: str
) -> Iterator[RedisBackend]:
    """That of a user that lacks the right to publish."""
    removed = ["-publish", "-spublish"] if request.param == "the command" else ["resetchannels"]
    with redis.Redis.from_url(server.url) as admin:
        words = LINES[WORKER].replace(WORKER, "silent").split()
        admin.execute_command(*words, *CLUSTER_RULES.split(), *removed)
        deadline = time.monotonic() + 20
        while kind == "cluster" and "'ok'" not in str(admin.execute_command("CLUSTER INFO")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    backend = RedisBackend(load_settings(url=url_for(server, "silent")))
    yield backend
    backend.close_writer()


def unpublished() -> float:
    """What this process exports, a worker as a web server."""
    [family] = [one for one in writing().collect() if one.name.endswith("_events_unpublished")]
    return family.samples[0].value


async def test_what_is_appended_and_not_published_is_counted_and_the_missing_rule_logged_once(
    server: RedisServer, backend: RedisBackend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic, author, before = f"job:{secrets.token_hex(6)}", Author(), unpublished()
    receipts = backend.publish([author.draft(topic, state={"n": n}) for n in range(3)])
    assert {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}
    emitter = Emitter(GuardedBackend(backend, 5.0))
    for number in range(5):
        emitter.emit(author.draft(topic, state={"n": number}))
    assert emitter.close(10)
    assert emitter.stats.appended == 5
    assert unpublished() - before == 5
    assert caplog.text.count(f"add {RULES[kind]} to its ACL") == 1
    status = await backend.status()
    assert sum(RULES[kind] in warning for warning in status.warnings) == 1
    if kind == "one server":
        assert RULES[kind] in doctor(url_for(server, "silent")).stdout


def test_a_topic_is_deleted_though_that_cannot_be_published(
    backend: RedisBackend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"job:{secrets.token_hex(6)}"
    assert backend.delete(topic) is False
    backend.publish([Author().draft(topic)])
    guard = GuardedBackend(backend, 5.0)
    topic = f"job:{secrets.token_hex(6)}"
    backend.publish([Author().draft(topic)])
    assert guard.delete(topic) is True
    assert not guard.fails_writes
    assert caplog.text.count(f"add {RULES[kind]} to its ACL") == 1
