"""Another program writes garbage into the log of a job: its watchers, and all others, stay."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import count
from typing import Any, TypeVar

import pytest
import redis.asyncio
from clients import CompatClient, NativeClient, SseClient
from configuration import make_settings
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from publisher import Publisher, one_draft
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.backends import border
from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS

Result = TypeVar("Result")
EXAMPLES = 6
CALM = "job:calm"
"""A topic that nobody writes garbage to."""

SCALARS = st.sampled_from(
    ["null", "true", "0", "-1", '"x"', '"\\ud800"', "NaN", "Infinity", "1e999", "LONG", "1.0"]
).map(str.encode) | st.sampled_from(
    [b'"\xff"', b'"\xed\xa0\x80"', b"\x00", b"", b"NESTED", b'{"a":1,"a":2}']
)
MEMBER = st.tuples(
    st.sampled_from(["offset", "type", "time", "key", "state", "data", "terminal", "x"]), SCALARS
).map(lambda member: b'"%b":%b' % (member[0].encode(), member[1]))
EVENT = (
    st.binary(max_size=12)
    | st.lists(MEMBER, max_size=5).map(lambda members: b"{%b}" % b",".join(members))
    | st.tuples(SCALARS, SCALARS).map(
        lambda values: (
            b'{"offset":2,"type":"note","time":"","key":"k","state":%b,"data":%b}' % values
        )
    )
)
NUMBER = st.sampled_from([b"0", b"1", b"2", b"3", b"-1", b"9" * 30, b"inf", b"0x2", b"", b"\xff"])
CHAIN = st.sampled_from([b"00000000", b"ffffffff", b"-1", b"xyz", b"f" * 20, b""])
EPOCH = st.sampled_from([b"EPOCH", b"other", b'","x":"', b"\xff", b""])
MESSAGE = st.binary(max_size=12) | st.tuples(EPOCH, NUMBER, CHAIN, EVENT).map(
    lambda parts: b"%b %b %b 00000000\n%b" % parts
)
ID = st.sampled_from(["*", "2-1", "3-0", "3-7", "4-0", "18446744073709551615-0"])
FIELDS = st.lists(
    st.sampled_from([b"e", b"m", b"foo"]) | st.binary(max_size=4), min_size=2, max_size=4
)
ON_REDIS = st.one_of(
    st.tuples(st.just("XADD"), ID, FIELDS),
    st.tuples(st.just("XADD"), ID, st.tuples(st.just(b"e"), EVENT, st.just(b"m"), CHAIN)),
    st.tuples(st.just("PUBLISH"), MESSAGE),
    st.tuples(st.just("HSET"), st.just("state"), st.sampled_from([b"k", b"\xff", b""]), EVENT),
    st.tuples(st.just("HSET"), st.just("state"), st.just(b"KEY"), EVENT),
    st.tuples(
        st.just("HSET"), st.just("meta"), st.sampled_from([b"epoch", b"offset", b"chain"]), NUMBER
    ),
    st.tuples(
        st.just("HSET"), st.sampled_from(["fence", "seen"]), st.sampled_from([b"KEY", b"p"]), NUMBER
    ),
    st.tuples(st.just("SET"), st.sampled_from(["meta", "log"])),
)
HEADER = st.dictionaries(
    st.sampled_from(
        ["epoch", "prev_seq", "offset", "chain", "last_chain", "keep_seconds", "facts"]
    ),
    st.sampled_from([None, True, -1, 0, 2, 2**60, "x", '","x":"', [], ["run"], {}]),
).map(lambda header: json.dumps(header).encode())
ON_NATS = st.one_of(
    st.tuples(st.just("log"), EVENT | MESSAGE),
    st.tuples(st.just("live"), EVENT | MESSAGE),
    st.tuples(
        st.sampled_from(["log", "live"]),
        st.tuples(HEADER, EVENT).map(lambda parts: b"%b\n%b" % parts),
    ),
)


BIG = {b"NESTED": b"[" * 10_000 + b"]" * 10_000, b"LONG": b"9" * 5000}
"""What is too long for the report of a failure."""


def expand(value: Any) -> Any:
    """Replace the names in `BIG`."""
    if isinstance(value, bytes):
        for name, text in BIG.items():
            value = value.replace(name, text)
        return value
    return [expand(one) for one in value] if isinstance(value, tuple | list) else value


class Host:
    """A web server on a loop of its own, and a program that writes garbage to its backend."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._stack = AsyncExitStack()
        self.web: InProcessServer = self.run(self._stack.enter_async_context(self._serve()))
        self.publisher = Publisher(settings)
        self.run(self.publisher.publish(CALM))
        self.calm = NativeClient(self.web, CALM)
        self.run(self.calm.open())
        self.run(self.calm.wait_synced())

    def _serve(self) -> Any:
        return serve_realtime(self.settings)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(90)

    def close(self) -> None:
        self.run(self.calm.close())
        self.run(self._stack.aclose())
        self.publisher.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def write(self, topic: str, operation: tuple[Any, ...]) -> None:
        """Write what an operation says."""
        operation = expand(operation)
        if self.settings.backend == "nats":
            subjects = self.publisher.rt.unguarded._subjects  # type: ignore[attr-defined]
            subject = subjects.log(topic) if operation[0] == "log" else subjects.live(topic)
            stream = await self.publisher.rt.unguarded._connect()  # type: ignore[attr-defined]
            await stream.connection._client.publish(subject, operation[1])
            await stream.connection._client.flush()
            await stream.connection.close()
            return
        base = f"{self.settings.prefix}:{{{topic}}}"
        key = topic.partition(":")[2].encode()
        async with redis.asyncio.Redis.from_url(self.settings.url) as client:
            epoch = b""
            if await client.type(f"{base}:meta") == b"hash":
                epoch = await client.hget(f"{base}:meta", "epoch") or b""
            match operation:
                case ("XADD", ident, fields):
                    even = list(fields)[: len(fields) // 2 * 2]
                    await self._try(client, "XADD", f"{base}:log", ident, *even)
                case ("PUBLISH", message):
                    await client.publish(base, message.replace(b"EPOCH", epoch))
                case ("HSET", part, field, value):
                    field = field.replace(b"KEY", key)
                    await self._try(client, "HSET", f"{base}:{part}", field, value)
                case ("SET", part):
                    await client.set(f"{base}:{part}", b"text")

    async def _try(self, client: Any, *command: Any) -> None:
        # An id that is too low, or a key of another type by now.
        with suppress(redis.exceptions.ResponseError):
            await client.execute_command(*command)


@pytest.fixture(scope="module")
def host(row: str, server_url: Callable[[str], str]) -> Iterator[Host]:
    made = Host(make_settings(server_url(row), backend=ROWS[row].backend, tops_seconds=0.5))
    yield made
    made.close()


numbers = count()


@pytest.mark.every_backend(shares_storage=True)
@settings(
    max_examples=EXAMPLES,
    # An example costs too much to be made smaller.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(ON_REDIS, min_size=1, max_size=6), st.lists(ON_NATS, min_size=1, max_size=6))
def test_no_watcher_is_lost_by_garbage_in_a_log(
    host: Host,
    caplog: pytest.LogCaptureFixture,
    on_redis: list[tuple[Any, ...]],
    on_nats: list[tuple[Any, ...]],
) -> None:
    garbage = on_nats if host.settings.backend == "nats" else on_redis
    topic = f"job:{next(numbers)}"
    with caplog.at_level(logging.WARNING):
        host.run(watch_in_garbage(host, topic, garbage))
    assert "outage: degraded" not in caplog.text
    assert "Traceback" not in caplog.text


async def watch_in_garbage(host: Host, topic: str, garbage: list[tuple[Any, ...]]) -> None:
    job, publisher, calm = topic.partition(":")[2], host.publisher, host.calm
    await publisher.publish(topic, 2)
    early = NativeClient(host.web, topic, history=100)
    stream = SseClient(host.web, topic, path=f"/realtime/jobs/{job}/events")
    compat = CompatClient(host.web.compat_url(job))
    late = NativeClient(host.web, topic, history=100)
    async with early, stream, compat, host.web.http_client() as http:
        await early.wait_synced()
        await stream.wait_synced()
        for operation in garbage:
            await host.write(topic, operation)
        async with late:
            for path in ("", "/history", "/history?after=1&limit=1", "/events?cursor=e.1.0"):
                async with http.stream("GET", f"/realtime/jobs/{job}{path}") as answer:
                    assert answer.status_code < 500
            await publisher.publish(topic, 2)
            await publisher.end(topic)
            if late.ops("denied"):
                # Nobody knew the topic, and so its owner.
                await late.subscribe()
            for client in (early, stream, late):
                await until(partial(is_over, client, topic, job), 15, str(garbage)[:1000])
            assert (early.closed, late.closed, compat.closed) == (None, None, None)
        assert early.bad_batches == stream.bad_batches == []
        assert not stream.ops("bye") or stream.ops("bye")[0]["code"] != 1011
        for path in ("", "/history"):
            answer = await http.get(f"/realtime/jobs/{job}{path}")
            assert answer.status_code == 200
            answer.json()
    await publisher.publish(CALM)
    await until(lambda: len(calm.numbers(CALM)) == publisher.count[CALM] - 1, 10, lambda: calm)
    assert (len(calm.syncs), calm.ops("degraded"), calm.closed) == (1, [], None)


def is_over(client: NativeClient, topic: str, job: str) -> bool:
    state = client.views[topic].states.get(job)
    return isinstance(state, dict) and state.get("status") == "completed"


@pytest.mark.parametrize("row", [pytest.param("valkey", marks=pytest.mark.valkey)], indirect=True)
def test_an_unreadable_event_keeps_its_place_and_is_counted_and_logged_once(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    topic, job = "job:placed", "placed"
    before = border.unreadable["event"]

    async def watch() -> None:
        await host.publisher.publish(topic, 2)
        async with NativeClient(host.web, topic, history=100) as early:
            await early.wait_synced()
            # As if a disk had damaged it: a body that is no UTF-8, appended like any other.
            for _ in range(2):
                host.publisher.rt.emitter.emit(damaged_draft(topic, job))
            await host.publisher.publish(topic, 1)
            await early.wait_for_offset(topic, 5)
            live = [event["type"] for event in early.applied[topic]]
            assert live == ["event_unreadable", "event_unreadable", "step"]
            assert early.views[topic].states[job]["progress"]["current"] == 3
            cursor = early.views[topic].cursor
            async with host.web.http_client() as http:
                page = (await http.get(f"/realtime/jobs/{job}/history")).json()
                state = (await http.get(f"/realtime/jobs/{job}")).json()
        assert [event["offset"] for event in page["events"]] == [1, 2, 3, 4, 5]
        assert page["events"][2:] == early.applied[topic]
        assert (state["cursor"], state["offset"]) == (cursor, 5)

    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        host.run(watch())
    lines = [record.getMessage() for record in caplog.records if "border:" in record.getMessage()]
    # Older releases of msgspec say of the same bytes that they are no UTF-8.
    [line] = lines
    assert line.startswith(f"border: unreadable event left out topic={topic} offset=3 fault=it is ")
    assert line.endswith("(logged once for each topic)")
    assert border.unreadable["event"] >= before + 2


def damaged_draft(topic: str, job: str) -> Any:
    draft = one_draft(topic, "step", key=job, state={"status": "x"}, owner="7")
    draft.body = draft.body.replace(b'"x"', b'"\xff"')
    return draft
