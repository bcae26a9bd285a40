"""The Redis users of docs/security.md can do what their process does, and nothing else."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from semantik_realtime.backends.redis import script
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.holding import Holding
from semantik_realtime.errors import BackendRefused
from semantik_realtime.testing.contract import Author, BackendContract, Recorder, until
from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    redis_program,
    running,
    valkey_program,
)

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
LINES = {
    line.split()[2]: line for line in re.findall("^ACL SETUSER .*$", PAGE.read_text(), re.MULTILINE)
}
WEB, WORKER, READER = "realtime-web", "realtime-worker", "realtime-reader"
WRITERS = [WEB, WORKER]
EVERYONE = [*WRITERS, READER]
IN_CLUSTERS = {"spublish", "ssubscribe", "sunsubscribe", "cluster|slots", "asking"}
REFUSAL = r"permission|NOPERM|can't (run|access|publish)"
FORBIDDEN = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("CONFIG", "GET", "requirepass"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("ACL", "LIST"),
    ("MONITOR",),
    ("SHUTDOWN",),
    ("SWAPDB", "0", "1"),
    ("GET", "semantik:x"),
    ("HMGET", "other:x", "field"),
    ("HSET", "other:x", "field", "value"),
    ("DEL", "other:x"),
    ("EVAL", "return redis.call('HGETALL', KEYS[1])", "1", "other:x"),
    ("EVAL", "return redis.call('HGETALL', 'other:x')", "0"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ("EVAL", "return redis.call('KEYS', '*')", "0"),
    ("SUBSCRIBE", "other:x"),
    ("PSUBSCRIBE", "*"),
    ("PSUBSCRIBE", "semantik:*"),
    ("PUBLISH", "other:x", "text"),
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(valkey_program, marks=pytest.mark.valkey, id="valkey"),
        pytest.param(redis_program, marks=pytest.mark.redis, id="redis"),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A running server with the page's users."""
    try:
        program = request.param()
    except ServerMissing as error:
        pytest.skip(str(error))
    with running(RedisServer(program)) as server:
        with redis.Redis.from_url(server.url) as admin:
            for line in LINES.values():
                assert admin.execute_command(*line.split())
        yield server


@pytest.fixture
def url(server: RedisServer, user: str) -> Iterator[str]:
    """The URL for a user; after the test, only what redis-py asks for itself was refused."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        yield url_for(server, user)
        refused = {entry["object"] for entry in admin.acl_log()}
    # A reader's attempt to write begins with SCRIPT LOAD. Only a web server gets overdue jobs.
    expected = {READER: {"script|load", "zrem"}, WORKER: {"zrangebyscore"}, WEB: set()}
    assert refused <= {"client|setinfo"} | expected[user]


def url_for(server: RedisServer, user: str) -> str:
    return server.url.replace("://", f"://{user}:password@")


@contextmanager
def closing_writer(backend: RedisBackend) -> Iterator[RedisBackend]:
    """Close the connections for writing after the block."""
    try:
        yield backend
    finally:
        backend.close_writer()


@pytest.fixture
def topic() -> str:
    return f"job:{secrets.token_hex(6)}"


def doctor(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from semantik_realtime.cli import main; main()", "doctor"],
        env={**os.environ, "COLUMNS": "200", "REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_the_page_has_three_users() -> None:
    assert sorted(LINES) == sorted(EVERYONE)


def test_the_page_allows_no_command_that_the_backend_does_not_use() -> None:
    texts = {path.stem: path.read_text() for path in Path(script.__file__).parent.glob("*.lua")}
    in_scripts = {
        name: {
            command.lower() for command in re.findall(r"(?:redis\.p?call|read_any)\('(\w+)'", text)
        }
        for name, text in texts.items()
    }
    for commands in in_scripts.values():
        commands -= IN_CLUSTERS
    of_web_servers = set[str]().union(
        *(in_scripts.pop(name) for name in ("overdue", "give", "sinks"))
    )
    of_writers = set[str]().union(*in_scripts.values())
    in_python = {"ping", "select", "info", "subscribe", "unsubscribe", "eval", "evalsha"}
    allowed = {user: set(re.findall(r" \+(\S+)", line)) for user, line in LINES.items()}
    assert allowed[WORKER] == of_writers | in_python | {"script|load"}
    assert allowed[WEB] == allowed[WORKER] | of_web_servers
    [in_clusters] = re.findall(r"in a cluster.*?`(\+s[^`]*)`", PAGE.read_text())
    assert set(in_clusters.replace("+", "").split()) == IN_CLUSTERS
    assert of_web_servers - of_writers == {
        *("rename", "zrangebyscore"),
        # Of the sinks.
        *("hincrby", "xdel", "xlen", "zcard"),
    }
    in_reading = {"hmget", "hgetall", "xrange", "xrevrange"}
    assert in_reading == {
        name.lower()
        for name in re.findall(r"(?:read_any|read_events)\('(\w+)'", script.READ.source.decode())
    }
    # Publishing is in parentheses: on the channel of the canary only.
    assert allowed[READER] == in_reading | in_python | {"time"}


def grant(server: RedisServer, user: str, prefix: str) -> None:
    """Grant a user the same rights for another prefix."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", user, f"~{prefix}:*", f"&{prefix}:*")


class Pair(NamedTuple):
    """A worker, which holds jobs, and a web server, which gets those that are overdue."""

    worker: RedisBackend
    web: RedisBackend

    def hold(self, *args: Any) -> bool:
        return self.worker.hold(*args)

    def overdue(self, seconds: float) -> list[Holding]:
        return self.web.overdue(seconds)


class Contract(BackendContract):
    @pytest.fixture
    def make_backend(self, server: RedisServer, user: str, url: str) -> Callable[..., Any]:
        def make(prefix: str = "semantik", **settings: Any) -> RedisBackend:
            grant(server, user, prefix)
            return RedisBackend(load_settings(url=url, prefix=prefix, **settings))

        return make


@pytest.mark.parametrize("user", [WEB])
class TestWebContract(Contract):
    """Everything that a backend promises, with the rights of a web server."""


@pytest.mark.parametrize("user", [WORKER])
class TestWorkerContract(Contract):
    """The same with the rights of a worker, which gets no overdue jobs of another one."""

    @pytest.fixture
    def fleet(
        self, server: RedisServer, make_backend: Callable[..., Any], url: str
    ) -> Iterator[Callable[[], Pair]]:
        prefix = f"semantik.{secrets.token_hex(4)}"
        grant(server, WEB, prefix)
        web = RedisBackend(load_settings(url=url_for(server, WEB), prefix=prefix))
        made: list[RedisBackend] = []

        def make() -> Pair:
            made.append(make_backend(prefix=prefix))
            return Pair(made[-1], web)

        with closing_writer(web):
            yield make
        for backend in made:
            backend.close_writer()

    async def test_holders_of_another_prefix_are_not_seen(
        self, fleet: Callable[[], Any], make_backend: Callable[..., Any]
    ) -> None:
        """It is of the web server's contract."""

    async def test_a_worker_holds_jobs_and_gets_none(
        self, make_backend: Callable[..., Any]
    ) -> None:
        holder = secrets.token_hex(6)
        with closing_writer(make_backend()) as worker:
            assert worker.hold(holder, {"1": b"one", "2": b"two"}, [], 60.0) is False
            assert worker.hold(holder, {}, ["1"], 60.0) is True
            assert worker.hold(holder, {}, ["2"], 60.0) is True
            assert worker.hold(holder, {}, [], 60.0) is False
            with pytest.raises(BackendRefused, match=REFUSAL):
                worker.overdue(60.0)


@pytest.mark.parametrize("user", WRITERS)
def test_the_doctor_is_content_with_a_web_server_and_a_worker(url: str) -> None:
    done = doctor(url)
    assert done.returncode == 0, done.stdout
    assert re.search(r"ok +server +a read, a write and a subscription succeeded", done.stdout)
    assert re.search(r"ok +clock", done.stdout)


@pytest.mark.parametrize("user", [READER])
async def test_a_reader_watches_and_reads_what_a_worker_publishes(
    server: RedisServer, url: str, topic: str
) -> None:
    reader, worker = (
        RedisBackend(load_settings(url=one)) for one in (url, url_for(server, WORKER))
    )
    sink, author = Recorder(), Author()
    with closing_writer(worker):
        await reader.open()
        try:
            await reader.subscribe(topic, sink)
            receipts = worker.publish([author.draft(topic, state={"n": n}) for n in range(10)])
            assert {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}
            await sink.wait_for_events(10)
            # Loads the script if the server does not know it.
            with redis.Redis.from_url(server.url) as admin:
                admin.script_flush()
            snapshot = await reader.snapshot(topic, None, 10)
            assert sink.received == list(snapshot.events)
            assert (await reader.snapshot(topic, snapshot.cursor, 0)).events == []
            assert await reader.tops([topic])
            status = await reader.status()
            assert status.reachable
            assert status.clock_ahead_seconds is not None
            # The canary, which checks the subscription, comes back.
            [subscriber] = reader._subscriptions.subscribers
            await until(lambda: subscriber._canary._received)
            worker.delete(topic)
            await until(lambda: sink.deletions)
        finally:
            await reader.close()


@pytest.mark.parametrize("user", [READER])
def test_a_reader_writes_nothing(url: str, topic: str) -> None:
    with closing_writer(RedisBackend(load_settings(url=url))) as backend:
        for write in (
            lambda: backend.publish([Author().draft(topic)]),
            lambda: backend.claim(topic, "1", "token", None),
            lambda: backend.delete(topic),
            lambda: backend.lease("name", "holder", 1, 60.0),
            lambda: backend.release("name", "holder"),
            lambda: backend.hold("holder", {"1": b"one"}, [], 60.0),
            lambda: backend.overdue(60.0),
        ):
            with pytest.raises(BackendRefused, match=REFUSAL):
                write()


@pytest.mark.parametrize("user", [READER])
def test_the_doctor_reports_that_a_reader_cannot_write(url: str) -> None:
    done = doctor(url)
    assert done.returncode == 1
    assert re.search(r"FAIL +server.*permission", done.stdout)


@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
@pytest.mark.parametrize("user", EVERYONE)
def test_a_user_may_do_nothing_else(
    server: RedisServer, user: str, command: tuple[str, ...]
) -> None:
    client = redis.Redis.from_url(url_for(server, user))
    with client, pytest.raises(redis.ResponseError, match=REFUSAL):
        client.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("PUBLISH", "semantik:{job:1}", "gone"),
        ("EVAL", "return redis.call('PUBLISH', 'semantik:{job:1}', 'gone')", "0"),
        ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "semantik:{job:1}:log"),
        ("HSET", "semantik:{job:1}:meta", "owner", "someone"),
    ],
    ids=" ".join,
)
def test_a_reader_forges_no_event(server: RedisServer, command: tuple[str, ...]) -> None:
    client = redis.Redis.from_url(url_for(server, READER))
    with client, pytest.raises(redis.ResponseError, match=REFUSAL):
        client.execute_command(*command)


@pytest.mark.parametrize("user", EVERYONE)
async def test_no_user_of_the_page_is_told_that_it_may_not_publish(url: str) -> None:
    status = await RedisBackend(load_settings(url=url)).status()
    assert not any("may not publish" in warning for warning in status.warnings)
