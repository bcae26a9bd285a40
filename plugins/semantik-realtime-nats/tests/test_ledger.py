"""The fold of a log: whoever reads the messages knows what their writer knew."""

from __future__ import annotations

import random
import secrets
import uuid

import pytest
from semantik_realtime.core.event import Draft, Outcome
from semantik_realtime.testing.contract import Author

from semantik_realtime_nats.ledger import (
    MAX_PRODUCERS,
    PAGE_EVENTS,
    Gap,
    Job,
    Ledger,
    Limits,
    Message,
    Run,
)
from semantik_realtime_nats.log import encode_base
from semantik_realtime_nats.settings import MOST_KEYS, NatsSettings, plan_access
from semantik_realtime_nats.writer import CROWDED, HEAD_BYTES

LIMITS = Limits(1000, 86_400.0, 3600.0, max_keys=5, max_event_bytes=65_536)
TOPIC = "user:7"


def make_drafts(chance: random.Random, authors: list[Author], count: int) -> list[Draft]:
    drafts = []
    for _ in range(count):
        job = f"j{chance.randrange(8)}"
        drafts.append(
            chance.choice(authors).draft(
                TOPIC,
                key=job if chance.random() < 0.8 else f"child{chance.randrange(3)}",
                state=chance.choice([..., None, {"n": chance.random()}]),
                job=chance.choice([None, job]),
                attempt=chance.choice([None, 0, 1, 2]),
                terminal=chance.random() < 0.2,
                owner=chance.choice([None, "7"]),
            )
        )
    return drafts


def knowledge(ledger: Ledger) -> dict[str, object]:
    return {
        name: getattr(ledger, name)
        for name in Ledger.__slots__
        if name not in ("alive_until", "changed", "base_offset")
    } | {"numbers": list(ledger.numbers.items()), "jobs": list(ledger.jobs.items())}


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_of_the_log_knows_what_its_writer_knows(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    authors = [Author(f"a{n}") for n in range(3)]
    writer = Ledger.begin(0)
    reader, late = Ledger(writer.epoch), None
    seq = 0
    for step in range(40):
        work = writer.copy()
        if chance.random() < 0.2:
            _, plan = work.claim(f"j{chance.randrange(8)}", f"t{step}", LIMITS)
        else:
            plan = work.append(make_drafts(chance, authors, chance.randrange(1, 12)), LIMITS)
        if plan is None or plan.payload is None:
            assert knowledge(work) == knowledge(writer)
            continue
        seq += chance.randrange(1, 5)
        work.commit(plan.head, seq, 1.0)
        writer = work
        message = Message.decode(seq, 1.0, plan.payload)
        assert message.cursor == writer.cursor
        reader.take(message)
        assert knowledge(reader) == knowledge(writer)
        assert reader.changed == writer.changed
        if late is not None:
            late.take(message)
            assert knowledge(late) == knowledge(writer)
        elif step >= 20:
            late = Ledger.restore(writer.copy().settled(LIMITS.retention_events))
    assert late is not None
    assert late.keys.keys() >= late.changed.keys()


def test_a_message_that_does_not_follow_is_a_gap() -> None:
    author = Author()
    writer = Ledger.begin(0)
    messages = []
    for seq in range(1, 4):
        plan = writer.append([author.draft(TOPIC)], LIMITS)
        assert plan.payload is not None
        writer.commit(plan.head, seq, 1.0)
        messages.append(Message.decode(seq, 1.0, plan.payload))
    reader = Ledger(writer.epoch)
    reader.take(messages[0])
    with pytest.raises(Gap):
        reader.take(messages[2])
    with pytest.raises(Gap):
        Ledger("another").take(messages[0])


def test_events_that_differ_in_their_number_only_are_one_fact() -> None:
    author = Author()
    drafts = [author.draft(TOPIC, job="j", attempt=1, state={"n": n}) for n in range(500)]
    plan = Ledger.begin(0).append(drafts, LIMITS)
    assert [fact.count for fact in plan.head.facts if isinstance(fact, Run)] == [500]
    assert plan.payload is not None
    assert len(plan.payload) < sum(len(draft.body) + 1 for draft in drafts) + 400


def test_a_planned_append_leaves_the_ledger_it_was_copied_from_as_it_was() -> None:
    author = Author()
    ledger = Ledger.begin(0)
    first = ledger.append([author.draft(TOPIC, job="j", attempt=1, state={})], LIMITS)
    ledger.commit(first.head, 1, 1.0)
    before = knowledge(ledger.copy())
    work = ledger.copy()
    work.append([author.draft(TOPIC, key=f"k{n}", job=f"j{n}", state={}) for n in range(3)], LIMITS)
    work.claim("j", "token", LIMITS)
    assert knowledge(ledger) == before


def test_producers_that_are_silent_longest_are_forgotten_first() -> None:
    ledger = Ledger.begin(0)
    authors = [Author(f"a{n}") for n in range(MAX_PRODUCERS + 1)]
    first, second = authors[0].draft(TOPIC), authors[1].draft(TOPIC)
    for draft in (first, second, authors[0].draft(TOPIC)):
        ledger.append([draft], LIMITS)
    for author in authors[2:]:
        ledger.append([author.draft(TOPIC)], LIMITS)
    [receipt] = ledger.append([first], LIMITS).receipts
    assert receipt.outcome is Outcome.DUPLICATE
    [receipt] = ledger.append([second], LIMITS).receipts
    assert receipt.outcome is Outcome.APPENDED


def make_ended(count: int, limits: Limits, name: str = "{:036d}") -> Ledger:
    """The ledger of a feed with so many jobs that ended."""
    author, ledger = Author(), Ledger.begin(0)
    for n in range(count):
        job = name.format(n)
        draft = author.draft(TOPIC, key=job, job=job, attempt=1, state={}, terminal=True)
        ledger.commit(ledger.append([draft], limits).head, n + 1, 1.0)
    return ledger


@pytest.mark.parametrize("name", ["{:036d}", "{:0200d}", "𝄞" * 190 + "{:010d}"])
def test_what_is_forgotten_for_a_new_key_fits_in_the_head(name: str) -> None:
    limits = Limits(1000, 86_400.0, 3600.0, max_keys=1000, max_event_bytes=65_536)
    ledger = make_ended(1000, limits, name)
    plan = ledger.append([Author().draft(TOPIC, key="new", state={})], limits)
    assert [receipt.outcome for receipt in plan.receipts] == [Outcome.APPENDED]
    assert plan.payload is not None
    assert 4 * len(name.format(0)) < len(plan.payload) < HEAD_BYTES


def test_drafts_that_need_more_room_than_a_message_can_make_wait_for_the_next() -> None:
    limits = Limits(1000, 86_400.0, 3600.0, max_keys=1000, max_event_bytes=65_536)
    ledger = make_ended(1000, limits)
    reader = Ledger.restore(ledger.copy().settled(1000))
    author = Author()
    rest = [author.draft(TOPIC, key=f"new{n}", state={}) for n in range(300)]
    # And an operator wants fewer from now on.
    limits = Limits(1000, 86_400.0, 3600.0, max_keys=800, max_event_bytes=65_536)
    seq = 1000
    while rest:
        plan = ledger.append(rest, limits)
        rest = rest[len(plan.receipts) :]
        assert {receipt.outcome for receipt in plan.receipts} <= {Outcome.APPENDED}
        assert plan.payload is not None
        assert len(plan.payload) < HEAD_BYTES + 100 * 100
        seq += 1
        ledger.commit(plan.head, seq, 1.0)
        reader.take(Message.decode(seq, 1.0, plan.payload))
    assert 1003 < seq < 1010
    assert ledger.keys == reader.keys
    assert len(ledger.keys) <= 800
    assert {f"new{n}" for n in range(300)} <= ledger.keys.keys()


def test_the_most_keys_that_may_be_configured_fit_in_a_message() -> None:
    ledger = Ledger.begin(0)
    for n in range(MOST_KEYS):
        name = str(uuid.uuid4())
        ledger.jobs[name], ledger.keys[name] = Job(1, n + 1, secrets.token_hex(6)), n + 1
    ledger.offset = 1_000_000
    ledger.numbers = {secrets.token_hex(6): n for n in range(MAX_PRODUCERS)}
    ledger.pages = [(n, 10 * n) for n in range(0, ledger.offset, PAGE_EVENTS)]
    assert len(encode_base(ledger, ledger.offset)) < CROWDED * 2**20


def test_the_index_finds_a_message_at_or_before_every_offset() -> None:
    author = Author()
    ledger = Ledger.begin(0)
    begins: dict[int, int] = {}
    for seq in range(10, 3000, 7):
        plan = ledger.append([author.draft(TOPIC) for _ in range(seq % 3 + 1)], LIMITS)
        begins[seq] = plan.head.offset
        ledger.commit(plan.head, seq, 1.0)
    for offset in range(0, ledger.offset, 13):
        distance = offset - begins[ledger.page(offset)]
        assert 0 <= distance < 2 * 64


def test_a_base_of_a_feed_with_a_thousand_jobs_fits_in_a_message() -> None:
    limits = Limits(1000, 86_400.0, 3600.0, max_keys=1000, max_event_bytes=65_536)
    author, ledger = Author(), Ledger.begin(0)
    for n in range(1000):
        job = f"{n:036d}"
        plan = ledger.append([author.draft(TOPIC, key=job, job=job, state={})], limits)
        ledger.commit(plan.head, n + 1, 1.0)
    assert len(encode_base(ledger, 1000)) < 100_000


def test_a_list_of_urls_may_have_spaces() -> None:
    access = plan_access("nats://a:1, tls://b:2", NatsSettings())
    assert access.urls == ["nats://a:1", "tls://b:2"]
