"""The contract of sinks, over the rows of the matrix whose backend has their hooks."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Draft, Outcome
from semantik_realtime.core.sinks import Fate, Settlement, SinkFilter, settle_failure
from semantik_realtime.errors import BackendRefused, BackendUnavailable
from semantik_realtime.sinks.registry import SinkEvent
from semantik_realtime.testing.contract import Author, SinkContract
from semantik_realtime.testing.servers import ROWS

WITH_SINKS = [
    pytest.param(name, marks=getattr(pytest.mark, name))
    for name in ("memory", "valkey", "redis", "fakeredis", "sentinel")
]


@pytest.mark.parametrize("row", WITH_SINKS, indirect=True, scope="module")
class TestSinks(SinkContract):
    @pytest.fixture
    def make_backend(self, row: str, server_url: Callable[[str], str]) -> Callable[..., Any]:
        backend, url = ROWS[row].backend, server_url(row)
        self.shares_storage = ROWS[row].shares_storage
        return lambda **settings: load_backend(load_settings(backend=backend, url=url, **settings))


@pytest.mark.parametrize(
    "row", [pytest.param("cluster", marks=pytest.mark.cluster)], indirect=True, scope="module"
)
def test_a_cluster_refuses_sinks_with_a_sentence(
    row: str, server_url: Callable[[str], str]
) -> None:
    backend: Any = load_backend(load_settings(backend="redis", url=server_url(row)))
    with pytest.raises(BackendRefused, match=r"Redis Cluster.*docs/sinks\.md"):
        backend.sink_open("ends", SinkFilter.of(None, "*").encode(), 10, 0.0)
    backend.close_writer()


@pytest.mark.parametrize("row", WITH_SINKS[1:2], indirect=True, scope="module")
class TestAppends:
    """What an append costs, and that it does not fail by what another program does to a sink."""

    @pytest.fixture
    def backend(self, row: str, server_url: Callable[[str], str]) -> Iterator[Any]:
        prefix = f"t{secrets.token_hex(6)}"
        made: Any = load_backend(load_settings(backend="redis", url=server_url(row), prefix=prefix))
        yield made
        for status in made.sink_status():
            made.sink_forget(status.name)
        made.close_writer()

    @pytest.fixture
    def admin(self, row: str, server_url: Callable[[str], str]) -> Iterator[Any]:
        with redis.Redis.from_url(server_url(row)) as admin:
            yield admin

    def commands(self, admin: Any, backend: Any, drafts: Sequence[Draft]) -> Counter[str]:
        """The commands that an append runs, inside of the script too."""
        admin.config_resetstat()
        backend.publish(drafts)
        stats = admin.info("commandstats")
        found = Counter({name[8:]: stat["calls"] for name, stat in stats.items()})
        return found - Counter({"config|resetstat": 1, "info": 1})

    def test_without_sinks_an_append_looks_once_and_sends_nothing_more(
        self, backend: Any, admin: Any
    ) -> None:
        author = Author()
        backend.publish([author.draft("job:1")])
        found = self.commands(admin, backend, [author.draft("job:1") for _ in range(20)])
        assert found["evalsha"] == found["hgetall"] == 1
        assert found["xadd"] == 20

    def test_with_a_sink_it_adds_what_matches(self, backend: Any, admin: Any) -> None:
        author = Author()
        backend.publish([author.draft("job:1")])
        wanted = SinkFilter.of("job_failed", "job:*").encode()
        backend.sink_open("ends", wanted, 10, 0.0)
        drafts = [author.draft("job:1", type) for type in ("note", "job_failed", "note")]
        found = self.commands(admin, backend, drafts)
        assert found["evalsha"] == found["hgetall"] == 1
        assert found["xadd"] == 4
        others = self.commands(admin, backend, [author.draft("user:1") for _ in range(3)])
        assert others["xadd"] == 3

    def test_a_damaged_record_or_queue_stops_no_append(self, backend: Any, admin: Any) -> None:
        author = Author()
        every = SinkFilter.of(None, "*").encode()
        for name in ("whole", "taken"):
            backend.sink_open(name, every, 10, 0.0)
        key = backend._sinks_key
        admin.hset(key, "damaged", "{no JSON")
        admin.hset(key, "other", '{"types":7}')
        admin.set(f"{key}:taken:queue", "text")
        [receipt] = backend.publish([author.draft("job:1")])
        assert receipt.outcome is Outcome.APPENDED
        assert len(backend.sink_take("whole", every, 10, 60.0)) == 1
        assert admin.hget(f"{key}:taken:facts", "lost") == b"1"
        admin.delete(key)
        admin.set(key, "text")
        [receipt] = backend.publish([author.draft("job:1")])
        assert receipt.outcome is Outcome.APPENDED
        admin.delete(key)

    @pytest.mark.parametrize(
        "odd",
        [
            '{"types":[],"topics":[{}]}',
            '{"types":[],"topics":[true]}',
            '{"types":[],"topics":7}',
            "[]",
            "null",
        ],
    )
    def test_a_filter_with_odd_values_stops_no_publication_and_no_other_sink(
        self, backend: Any, admin: Any, odd: str
    ) -> None:
        every = SinkFilter.of(None, "*").encode()
        author = Author()
        names = [secrets.token_hex(4) for _ in range(4)]
        # Some are looked at before the odd one, some after it, whatever the order of the hash.
        for name in names:
            backend.sink_open(name, every, 10, 0.0)
        admin.hset(backend._sinks_key, "odd", odd)
        try:
            found = self.commands(admin, backend, [author.draft("job:1")])
            assert found["publish"] == 1
            assert [len(backend.sink_take(name, every, 10, 60.0)) for name in names] == [1] * 4
        finally:
            admin.hdel(backend._sinks_key, "odd")

    @pytest.mark.parametrize("part", ["queue", "held", "attempts", "dead", "facts", "handled"])
    def test_a_spoiled_key_hides_no_other_sink_and_can_be_forgotten(
        self, backend: Any, admin: Any, part: str
    ) -> None:
        every = SinkFilter.of(None, "*").encode()
        for name in ("a", "spoiled", "z"):
            backend.sink_open(name, every, 10, 0.0)
        backend.publish([Author().draft("job:1")])
        key = f"{backend._sinks_key}:spoiled"
        if part == "handled":
            admin.hset(f"{key}:facts", "handled", "many")
        else:
            admin.set(f"{key}:{part}", "text")
        first, spoiled, last = backend.sink_status()
        assert [(one.queued, one.error) for one in (first, last)] == [(1, "")] * 2
        expected = "no whole number" if part == "handled" else "WRONGTYPE"
        assert expected in spoiled.error
        assert (spoiled.name, spoiled.filter, spoiled.queued) == ("spoiled", every, 0)
        assert backend.sink_forget("spoiled")
        assert backend.sink_open("spoiled", every, 10, 0.0)
        backend.publish([Author().draft("job:1")])
        assert len(backend.sink_take("spoiled", every, 10, 60.0)) == 1
        assert [one.error for one in backend.sink_status()] == [""] * 3

    @pytest.mark.parametrize("limit", [None, "many", "-1", "1e3"])
    def test_a_queue_without_a_readable_limit_has_the_usual_one(
        self, backend: Any, admin: Any, limit: str | None
    ) -> None:
        backend.sink_open("ends", SinkFilter.of(None, "*").encode(), 10, 0.0)
        key = f"{backend._sinks_key}:ends"
        admin.hdel(f"{key}:facts", "limit")
        if limit is not None:
            admin.hset(f"{key}:facts", "limit", limit)
        filler = "for i = 1, 100005 do redis.call('XADD', KEYS[1], i .. '-0', 'a', 'b') end"
        admin.eval(filler, 1, f"{key}:queue")
        backend.publish([Author().draft("job:1")])
        assert admin.xlen(f"{key}:queue") == 100000
        assert admin.hget(f"{key}:facts", "lost") == b"6"

    def test_an_error_with_half_a_surrogate_pair_can_be_settled(self, backend: Any) -> None:
        every = SinkFilter.of(None, "*").encode()
        backend.sink_open("ends", every, 10, 0.0)
        backend.publish([Author().draft("job:1")])
        [entry] = backend.sink_take("ends", every, 10, 60.0)
        failure = settle_failure(entry.id, 1, 1, 0.0, "no file caf\udce9")
        assert backend.sink_settle("ends", [failure]) == 1
        [letter] = backend.sink_dead("ends", "", 10)
        assert letter.error == r"no file caf\udce9"

    def test_a_full_server_lets_its_queues_be_emptied(self, backend: Any, admin: Any) -> None:
        every = SinkFilter.of(None, "*").encode()
        backend.sink_open("ends", every, 10, 0.0)
        author = Author()
        backend.publish([author.draft("job:1") for _ in range(3)])
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(BackendUnavailable, match="its memory is full"):
                backend.publish([author.draft("job:1")])
            assert backend.sink_open("ends", every, 10, 0.0)
            first, second, third = backend.sink_take("ends", every, 10, 60.0)
            fates = [
                Settlement(first.id, 1, Fate.RETRY, 60.0),
                Settlement(second.id, 1, Fate.HANDLED),
                Settlement(third.id, 1, Fate.DEAD, error="refused"),
            ]
            assert [backend.sink_settle("ends", [fate]) for fate in fates] == [1, 1, 1]
        finally:
            admin.config_set("maxmemory", "0")
        [status] = backend.sink_status()
        assert (status.queued, status.handled, status.dead) == (1, 1, 1)

    def test_an_entry_that_another_program_has_added_is_given_and_can_be_settled(
        self, backend: Any, admin: Any
    ) -> None:
        every = SinkFilter.of(None, "*").encode()
        backend.sink_open("ends", every, 10, 0.0)
        key = f"{backend._sinks_key}:ends"
        admin.xadd(f"{key}:queue", {"text": b"\xff"})
        [entry] = backend.sink_take("ends", every, 10, 60.0)
        with pytest.raises(ValueError):  # noqa: PT011
            SinkEvent.of(entry)
        settlement = Settlement(entry.id, entry.attempt, Fate.DEAD, error="unreadable")
        assert backend.sink_settle("ends", [settlement]) == 1
        admin.xadd(f"{key}:dead", {"text": b"\xff"})
        letters = backend.sink_dead("ends", "", 10)
        assert [letter.error for letter in letters] == ["unreadable", ""]
        assert backend.sink_discard("ends", [letter.entry.id for letter in letters]) == 2
