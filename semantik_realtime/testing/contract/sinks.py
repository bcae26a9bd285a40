"""The contract of a backend that has queues for sinks (`semantik_realtime.sink_hooks`)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from semantik_realtime.core.sinks import Fate, Settlement, SinkFilter
from semantik_realtime.sink_hooks import SINK_HOOKS, SinkEntry
from semantik_realtime.testing.contract.actors import Author
from semantik_realtime.testing.contract.fixtures import Fixtures
from semantik_realtime.testing.contract.waiting import until

EVERYTHING = SinkFilter.of(None, "*").encode()
MATCHED = (
    SinkFilter.of(None, "*"),
    SinkFilter.of(None, "job:*"),
    SinkFilter.of(["job_failed", "note"], ["job:1", "user:*"]),
    SinkFilter.of("job.x", "j*"),
    SinkFilter.of("note", ["jobs:1", "job:1*"]),
)


class Queue:
    """One sink, of one backend."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.name = secrets.token_hex(6)
        self.filter = EVERYTHING

    def open(self, *, limit: int = 1000, idle_seconds: float = 0.0, again: Any = None) -> bool:
        wanted = self.filter if again is None else again
        opened: bool = self.backend.sink_open(self.name, wanted, limit, idle_seconds)
        return opened

    def take(self, limit: int = 100, seconds: float = 60.0) -> list[SinkEntry]:
        taken = self.backend.sink_take(self.name, self.filter, limit, seconds)
        assert taken is not None
        return list(taken)

    def settle(self, entry: SinkEntry, fate: Fate, **more: Any) -> int:
        settlement = Settlement(entry.id, entry.attempt, fate, **more)
        done: int = self.backend.sink_settle(self.name, [settlement])
        return done

    def status(self) -> Any:
        [found] = [one for one in self.backend.sink_status() if one.name == self.name]
        return found


def identities(entries: Sequence[SinkEntry]) -> list[str]:
    return [entry.identity for entry in entries]


class SinkContract(Fixtures):
    """The queues of sinks. For a backend with the hooks of `semantik_realtime.sink_hooks`.

    Subclass it as `BackendContract`, with the same fixture ``make_backend``.
    """

    @pytest.fixture
    def sinks(self, make_backend: Callable[..., Any]) -> Iterator[Any]:
        """A backend with a storage of its own, as far as it has prefixes."""
        backend = make_backend(prefix=f"t{secrets.token_hex(6)}")
        yield backend
        for status in backend.sink_status():
            backend.sink_forget(status.name)
        backend.close_writer()

    @pytest.fixture
    def queue(self, sinks: Any) -> Queue:
        queue = Queue(sinks)
        assert queue.open()
        return queue

    @pytest.fixture
    def author(self) -> Author:
        return Author()

    async def test_the_backend_has_all_hooks(self, sinks: Any) -> None:
        assert [name for name in SINK_HOOKS if not hasattr(sinks, name)] == []

    async def test_an_append_puts_its_events_into_the_queue_in_their_order(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        drafts = [author.draft(topic, data={"n": n}, owner="ada") for n in range(3)]
        receipts = sinks.publish(drafts)
        taken = queue.take()
        assert identities(taken) == [f"{topic}/{author.name}.{n}" for n in (1, 2, 3)]
        first = taken[0]
        assert (first.topic, first.owner, first.attempt) == (topic, "ada", 1)
        assert first.epoch == receipts[0].cursor.epoch
        assert first.json == b'{"offset":%d,%b' % (receipts[0].cursor.offset, drafts[0].body[1:])

    async def test_events_that_were_appended_before_the_sink_do_not_reach_it(
        self, sinks: Any, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        queue = Queue(sinks)
        queue.open()
        sinks.publish([author.draft(topic)])
        assert identities(queue.take()) == [f"{topic}/{author.name}.2"]

    async def test_what_is_not_appended_reaches_no_sink(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        ended = [
            author.draft(topic, job="1", attempt=2, state={}, terminal=True),
            author.draft(topic, job="1", attempt=1, state={}),
        ]
        sinks.publish(ended)
        sinks.publish(ended)
        sinks.publish([author.draft(topic, job="1", attempt=2, state={})])
        assert len(queue.take()) == 1

    async def test_events_before_a_topic_has_its_first_owner_are_not_given_in_its_name(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        # The owner begins a new epoch. In one batch as in two, the sink gets what that removes.
        sinks.publish([author.draft(topic), author.draft(topic)])
        sinks.publish([author.draft(topic), author.draft(topic, owner="ada")])
        taken = queue.take()
        assert [(one.identity.rpartition(".")[2], one.owner) for one in taken] == [
            ("1", None),
            ("2", None),
            ("3", None),
            ("4", "ada"),
        ]
        first, second, third, fourth = [one.epoch for one in taken]
        assert first == second == third != fourth

    @pytest.mark.parametrize("wanted", MATCHED, ids=lambda one: one.encode().decode())
    async def test_the_filter_is_that_of_the_core(self, sinks: Any, wanted: SinkFilter) -> None:
        queue = Queue(sinks)
        queue.filter = wanted.encode()
        queue.open()
        cases = [
            (topic, type)
            for topic in ("job:1", "job:12", "user:1", "jobs:1", "j:1")
            for type in ("note", "job_failed", "job.x", "jobxx")
        ]
        author = Author()
        for topic, type in cases:
            # The text of the data must not be taken for the type.
            sinks.publish([author.draft(topic, type, data={"type": "note"})])
        expected = [topic for topic, type in cases if wanted.matches(topic, type)]
        assert [entry.topic for entry in queue.take()] == expected

    async def test_an_event_is_given_to_one_taker_until_its_time_is_over(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic), author.draft(topic)])
        [first] = queue.take(1, seconds=60.0)
        [second] = queue.take(seconds=0.05)
        assert first.identity != second.identity
        again: list[SinkEntry] = []

        def is_given() -> bool:
            again.extend(queue.take())
            return bool(again)

        await until(is_given, "the time is over")
        assert [(one.identity, one.attempt) for one in again] == [(second.identity, 2)]

    async def test_a_handled_event_is_gone(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        [entry] = queue.take()
        assert (queue.status().queued, queue.status().held) == (1, 1)
        assert queue.settle(entry, Fate.HANDLED) == 1
        assert queue.settle(entry, Fate.HANDLED) == 0
        status = queue.status()
        assert (status.queued, status.held, status.handled) == (0, 0, 1)
        assert status.oldest_seconds == 0.0

    async def test_a_retried_event_comes_after_its_pause_and_before_new_ones(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        [entry] = queue.take()
        queue.settle(entry, Fate.RETRY, seconds=60.0)
        assert queue.take() == []
        assert queue.settle(entry, Fate.RETRY, seconds=0.0) == 1
        sinks.publish([author.draft(topic)])
        assert [one.attempt for one in queue.take()] == [2, 1]

    async def test_a_returned_event_comes_at_once_and_the_attempt_does_not_count(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        [entry] = queue.take()
        assert queue.settle(entry, Fate.RETURNED) == 1
        assert queue.take() == [entry]

    @pytest.mark.parametrize("fate", [Fate.RETRY, Fate.RETURNED, Fate.DEAD])
    async def test_who_has_an_event_no_longer_may_only_say_that_it_is_handled(
        self, sinks: Any, queue: Queue, author: Author, topic: str, fate: Fate
    ) -> None:
        sinks.publish([author.draft(topic)])
        [late] = queue.take(seconds=0.001)
        await until(lambda: bool(queue.take()), "the time is over")
        assert queue.settle(late, fate) == 0
        assert (queue.status().queued, queue.status().dead) == (1, 0)
        assert queue.settle(late, Fate.HANDLED) == 1

    async def test_a_dead_letter_is_kept_and_can_be_replayed_or_discarded(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic) for _ in range(3)])
        taken = queue.take()
        for entry in taken:
            queue.settle(entry, Fate.DEAD, error="refused: é")
        assert (queue.status().queued, queue.status().dead) == (0, 3)
        first, *rest = sinks.sink_dead(queue.name, "", 1)
        assert rest == []
        assert (first.entry.identity, first.error) == (taken[0].identity, "refused: é")
        assert (first.entry.attempt, first.entry.json) == (1, taken[0].json)
        others = sinks.sink_dead(queue.name, first.entry.id, 100)
        assert identities([one.entry for one in others]) == identities(taken[1:])
        assert sinks.sink_discard(queue.name, [others[0].entry.id, "9-9", "no id"]) == 1
        assert sinks.sink_replay(queue.name, [first.entry.id, "9-9", "no id"]) == 1
        [again] = queue.take()
        assert (again.identity, again.attempt) == (taken[0].identity, 1)
        assert again.json == taken[0].json
        assert queue.status().dead == 1

    async def test_a_full_queue_loses_its_oldest_events_and_counts_them(
        self, sinks: Any, author: Author, topic: str
    ) -> None:
        queue = Queue(sinks)
        queue.open(limit=3)
        sinks.publish([author.draft(topic)])
        [held] = queue.take()
        sinks.publish([author.draft(topic) for _ in range(4)])
        status = queue.status()
        assert (status.queued, status.lost) == (3, 2)
        assert identities(queue.take()) == [f"{topic}/{author.name}.{n}" for n in (3, 4, 5)]
        assert queue.settle(held, Fate.RETRY) == 0

    async def test_one_that_was_lost_while_it_was_held_is_not_given_again(
        self, sinks: Any, author: Author, topic: str
    ) -> None:
        queue = Queue(sinks)
        queue.open(limit=1)
        sinks.publish([author.draft(topic)])
        queue.take(seconds=0.001)
        sinks.publish([author.draft(topic)])
        taken: list[SinkEntry] = []

        def is_clean() -> bool:
            taken.extend(queue.take())
            return bool(queue.status().held == 1)

        await until(is_clean, "the time is over")
        assert identities(taken) == [f"{topic}/{author.name}.2"]

    async def test_another_filter_replaces_one_that_is_silent(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        newer = SinkFilter.of("note", "*").encode()
        queue.take(1)
        assert not queue.open(idle_seconds=60.0, again=newer)
        assert sinks.sink_take(queue.name, newer, 1, 60.0) is None
        assert queue.open(again=newer)
        assert sinks.sink_take(queue.name, queue.filter, 1, 60.0) is None
        # And the one before cannot come back at once.
        assert not queue.open(idle_seconds=60.0)
        await until(lambda: queue.open(idle_seconds=0.05), "the time is over")
        assert queue.status().queued == 1

    async def test_a_sink_that_is_forgotten_is_unknown_and_gets_nothing(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        assert sinks.sink_forget(queue.name)
        assert not sinks.sink_forget(queue.name)
        sinks.publish([author.draft(topic)])
        assert sinks.sink_status() == []
        assert sinks.sink_take(queue.name, queue.filter, 1, 60.0) is None
        queue.open()
        assert queue.take() == []

    async def test_the_status_says_since_when_nobody_takes(
        self, sinks: Any, author: Author
    ) -> None:
        queue = Queue(sinks)
        queue.open()
        queue.take()
        taken = queue.status().taken_seconds
        assert taken is not None
        assert 0.0 <= taken < 30.0
        assert queue.status().filter == queue.filter

    async def test_who_takes_nothing_keeps_its_filter_in_use(
        self, sinks: Any, queue: Queue, author: Author, topic: str
    ) -> None:
        sinks.publish([author.draft(topic)])
        newer = SinkFilter.of("note", "*").encode()
        await until(lambda: queue.status().taken_seconds >= 0.3, "it is silent")
        began = time.monotonic()
        assert queue.take(0) == []
        assert queue.status().taken_seconds <= time.monotonic() - began + 0.1
        assert not queue.open(idle_seconds=60.0, again=newer)
        assert queue.status().held == 0
        assert sinks.sink_take(queue.name, newer, 0, 60.0) is None
        assert [one.attempt for one in queue.take()] == [1]

    async def test_two_servers_share_a_queue(
        self, make_backend: Callable[..., Any], author: Author, topic: str
    ) -> None:
        if not self.shares_storage:
            return
        prefix = f"t{secrets.token_hex(6)}"
        one, two = make_backend(prefix=prefix), make_backend(prefix=prefix)
        queue = Queue(one)
        queue.open()
        two.publish([author.draft(topic) for _ in range(4)])
        here = queue.take(2)
        there = list(two.sink_take(queue.name, queue.filter, 100, 60.0) or ())
        assert identities([*here, *there]) == [f"{topic}/{author.name}.{n}" for n in (1, 2, 3, 4)]
        one.sink_forget(queue.name)
        for backend in (one, two):
            backend.close_writer()
