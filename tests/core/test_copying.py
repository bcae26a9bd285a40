"""What is kept of a history, and when a copy continues another one."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.copying import (
    DELETED,
    UNKNOWN,
    CopiedEvent,
    CopiedJob,
    CopiedProducer,
    TopicCopy,
    continues,
    keep_sound_events,
    offset_of_place,
    runs_of,
)
from semantik_realtime.core.event import Cursor, Event, link, with_offset


def make_log(numbers: list[int], first: int = 1) -> TopicCopy:
    """Return a whole log with an event for each number, the oldest at the offset ``first``."""
    chain, events = 7 * (first - 1), []
    for offset, number in enumerate(numbers, start=first):
        body = b'{"type":"note","n":%d}' % number
        chain = link(chain, crc32(body))
        events.append(CopiedEvent(Event(offset, chain, with_offset(body, offset)), "p", number))
    return TopicCopy("job:1", Cursor("e", first + len(numbers) - 1, chain), events=events)


numbers = st.lists(st.integers(0, 3), min_size=1, max_size=12)
firsts = st.integers(1, 1000)


@given(numbers, firsts)
def test_a_sound_history_is_kept_whole(log: list[int], first: int) -> None:
    copy = make_log(log, first)
    before = list(copy.events)
    assert keep_sound_events(copy) == 0
    assert list(copy.events) == before


@given(numbers, firsts, st.data())
def test_of_a_damaged_history_the_newest_events_are_kept(
    log: list[int], first: int, data: st.DataObject
) -> None:
    copy = make_log(log, first)
    events = list(copy.events)
    place = data.draw(st.integers(0, len(events) - 1))
    fault = data.draw(st.sampled_from(["missing", "bytes", "chain", "offset"]))
    event = events[place].event
    if fault == "missing":
        del events[place]
    elif fault == "bytes":
        damaged = Event(event.offset, event.chain, event.json[:-1] + b" }")
        events[place] = CopiedEvent(damaged, "p", 1)
    elif fault == "chain":
        events[place] = CopiedEvent(Event(event.offset, event.chain ^ 1, event.json), "p", 1)
    else:
        events[place] = CopiedEvent(Event(event.offset + 5, event.chain, event.json), "p", 1)
    copy.events = events
    left_out = keep_sound_events(copy)
    kept = [one.event.offset for one in copy.events]
    assert left_out == len(events) - len(kept)
    assert kept == list(range(copy.cursor.offset - len(kept) + 1, copy.cursor.offset + 1))
    damaged_offset = first + place
    # The oldest one cannot be checked: nothing says what the chain before it was.
    if place > 0 or fault != "bytes":
        assert damaged_offset not in kept
    assert set(range(damaged_offset + 1, copy.cursor.offset + 1)) - set(kept) <= (
        # Whose predecessor says another chain.
        {damaged_offset + 1} if fault == "chain" else set()
    )


@given(numbers, numbers, firsts)
def test_events_continue_exactly_the_place_before_them(
    older: list[int], newer: list[int], first: int
) -> None:
    whole = make_log(older + newer, first)
    before = make_log(older, first)
    tail = TopicCopy("job:1", whole.cursor, events=list(whole.events)[len(older) :])
    assert continues(tail, before.place)
    assert offset_of_place(before.place) == before.cursor.offset
    other = Cursor("other", before.cursor.offset, before.cursor.chain)
    rewritten = Cursor("e", before.cursor.offset, before.cursor.chain ^ 1)
    for place in (str(other), str(rewritten), UNKNOWN, DELETED):
        assert not continues(tail, place)
    assert continues(TopicCopy("job:1", before.cursor), before.place)


def test_a_copy_differs_if_a_fact_differs_and_not_if_only_times_do() -> None:
    def copy(**given: object) -> TopicCopy:
        made = make_log([1, 2])
        made.owner, made.states = "7", {"1": b"{}"}
        made.jobs = {"1": CopiedJob(1, 0, 1, "token")}
        made.producers = {"p": CopiedProducer(2, 0.0)}
        for name, value in given.items():
            setattr(made, name, value)
        return made

    same = (
        {"keep_seconds": 5.0},
        {"producers": {"p": CopiedProducer(2, 9.0)}},
        {"jobs": {"1": CopiedJob(1, 0, 9, "token")}},
        {"events": ()},
    )
    other = (
        {"owner": "8"},
        {"owner": None},
        {"is_open": True},
        {"deleted": True},
        {"states": {"1": b"{ }"}},
        {"states": {}},
        {"jobs": {"1": CopiedJob(2, 0, 1, "token")}},
        {"jobs": {"1": CopiedJob(1, 2, 1, "token")}},
        {"jobs": {"1": CopiedJob(1, 0, 1, "other")}},
        {"producers": {"p": CopiedProducer(3, 0.0)}},
        {"cursor": Cursor("e", 2, 1)},
    )
    assert [copy(**given).digest() == copy().digest() for given in same] == [True] * len(same)
    assert [copy(**given).digest() == copy().digest() for given in other] == [False] * len(other)


@given(st.lists(st.tuples(st.sampled_from("pq"), st.integers(1, 4)), max_size=12))
def test_runs_have_every_draft_in_order(drafts: list[tuple[str, int]]) -> None:
    events = [CopiedEvent(Event(1, 1, b""), *draft) for draft in drafts]
    runs = runs_of(events)
    assert [(name, first + i) for name, first, count in runs for i in range(count)] == drafts
