"""The ledger: a reader of the log has the same one as the writer; limits; forgetting."""

from __future__ import annotations

import random
import secrets
import uuid

import pytest
from semantik_realtime.core.event import Draft, Outcome
from semantik_realtime.core.retention import Retention
from semantik_realtime.testing.contract import Author

from semantik_realtime_nats.ledger import (
    MAX_PRODUCERS,
    PAGE_EVENTS,
    Gap,
    JobAttempt,
    Ledger,
    Limits,
)
from semantik_realtime_nats.log import encode_checkpoint
from semantik_realtime_nats.records import EventRun, LogMessage
from semantik_realtime_nats.settings import MAX_KEYS_LIMIT
from semantik_realtime_nats.topic_writer import CROWDED, HEADER_BYTES

RETENTION = Retention(86_400.0, 3600.0, 30 * 86_400.0)
LIMITS = Limits(1000, RETENTION, max_keys=5, max_event_bytes=65_536)
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
                owner=chance.choice([None, None, "7", "8"]),
            )
        )
    return drafts


def content(ledger: Ledger) -> dict[str, object]:
    """Everything that must be equal, the order of producers and jobs included."""
    return {
        name: getattr(ledger, name)
        for name in Ledger.__struct_fields__
        if name not in ("alive_until", "changed", "checkpoint_offset")
    } | {"numbers": list(ledger.numbers.items()), "jobs": list(ledger.jobs.items())}


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_that_applies_the_log_has_the_same_ledger_as_its_writer(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    authors = [Author(f"a{n}") for n in range(3)]
    writer = Ledger.begin(0)
    reader, late_reader = Ledger(writer.epoch), None
    seq = 0
    for step in range(40):
        work = writer.copy()
        if chance.random() < 0.2:
            owner = chance.choice([None, "7", "8"])
            _, plan = work.plan_claim(f"j{chance.randrange(8)}", f"t{step}", owner, LIMITS)
        else:
            plan = work.plan_append(make_drafts(chance, authors, chance.randrange(1, 12)), LIMITS)
        if plan is None or plan.payload is None:
            assert content(work) == content(writer)
            continue
        seq += chance.randrange(1, 5)
        work.commit(plan.header, seq, 1.0)
        writer = work
        message = LogMessage.decode(seq, 1.0, plan.payload)
        assert message.cursor == writer.cursor
        if message.header.epoch != reader.epoch:
            # The first owner: the log begins again.
            assert (message.header.prev_seq, reader.owner) == (0, None)
            reader, late_reader = Ledger(message.header.epoch), None
        reader.apply(message)
        assert content(reader) == content(writer)
        assert reader.changed == writer.changed
        if late_reader is not None:
            late_reader.apply(message)
            assert content(late_reader) == content(writer)
        elif step >= 20:
            late_reader = Ledger.restore(writer.copy().checkpoint(LIMITS.retention_events))
    assert late_reader is not None
    assert late_reader.keys.keys() >= late_reader.changed.keys()


def test_a_message_that_does_not_follow_is_a_gap() -> None:
    author = Author()
    writer = Ledger.begin(0)
    messages = []
    for seq in range(1, 4):
        plan = writer.plan_append([author.draft(TOPIC)], LIMITS)
        assert plan.payload is not None
        writer.commit(plan.header, seq, 1.0)
        messages.append(LogMessage.decode(seq, 1.0, plan.payload))
    reader = Ledger(writer.epoch)
    reader.apply(messages[0])
    with pytest.raises(Gap):
        reader.apply(messages[2])
    with pytest.raises(Gap):
        Ledger("another").apply(messages[0])


def test_events_that_differ_only_in_their_number_share_one_fact() -> None:
    author = Author()
    drafts = [author.draft(TOPIC, job="j", attempt=1, state={"n": n}) for n in range(500)]
    plan = Ledger.begin(0).plan_append(drafts, LIMITS)
    assert [fact.count for fact in plan.header.facts if isinstance(fact, EventRun)] == [500]
    assert plan.payload is not None
    assert len(plan.payload) < sum(len(draft.body) + 1 for draft in drafts) + 400


def test_planning_on_a_copy_leaves_the_original_ledger_unchanged() -> None:
    author = Author()
    ledger = Ledger.begin(0)
    first = ledger.plan_append([author.draft(TOPIC, job="j", attempt=1, state={})], LIMITS)
    ledger.commit(first.header, 1, 1.0)
    before = content(ledger.copy())
    work = ledger.copy()
    work.plan_append(
        [author.draft(TOPIC, key=f"k{n}", job=f"j{n}", state={}) for n in range(3)], LIMITS
    )
    work.plan_claim("j", "token", None, LIMITS)
    assert content(ledger) == before


def test_the_producer_that_wrote_longest_ago_is_forgotten_first() -> None:
    ledger = Ledger.begin(0)
    authors = [Author(f"a{n}") for n in range(MAX_PRODUCERS + 1)]
    first, second = authors[0].draft(TOPIC), authors[1].draft(TOPIC)
    for draft in (first, second, authors[0].draft(TOPIC)):
        ledger.plan_append([draft], LIMITS)
    for author in authors[2:]:
        ledger.plan_append([author.draft(TOPIC)], LIMITS)
    [receipt] = ledger.plan_append([first], LIMITS).receipts
    assert receipt.outcome is Outcome.DUPLICATE
    [receipt] = ledger.plan_append([second], LIMITS).receipts
    assert receipt.outcome is Outcome.APPENDED


def ledger_with_ended_jobs(count: int, limits: Limits, name: str = "{:036d}") -> Ledger:
    """Return the ledger of a feed with ``count`` jobs that have ended."""
    author, ledger = Author(), Ledger.begin(0)
    for n in range(count):
        job = name.format(n)
        draft = author.draft(TOPIC, key=job, job=job, attempt=1, state={}, terminal=True)
        ledger.commit(ledger.plan_append([draft], limits).header, n + 1, 1.0)
    return ledger


@pytest.mark.parametrize("name", ["{:036d}", "{:0200d}", "𝄞" * 190 + "{:010d}"])
def test_the_jobs_forgotten_for_a_new_key_fit_in_the_header(name: str) -> None:
    limits = Limits(1000, RETENTION, max_keys=1000, max_event_bytes=65_536)
    ledger = ledger_with_ended_jobs(1000, limits, name)
    plan = ledger.plan_append([Author().draft(TOPIC, key="new", state={})], limits)
    assert [receipt.outcome for receipt in plan.receipts] == [Outcome.APPENDED]
    assert plan.payload is not None
    assert 4 * len(name.format(0)) < len(plan.payload) < HEADER_BYTES


def test_drafts_that_need_more_forgotten_jobs_than_fit_in_a_message_get_several() -> None:
    limits = Limits(1000, RETENTION, max_keys=1000, max_event_bytes=65_536)
    ledger = ledger_with_ended_jobs(1000, limits)
    reader = Ledger.restore(ledger.copy().checkpoint(1000))
    author = Author()
    rest = [author.draft(TOPIC, key=f"new{n}", state={}) for n in range(300)]
    # The operator has lowered the limit in the meantime.
    limits = Limits(1000, RETENTION, max_keys=800, max_event_bytes=65_536)
    seq = 1000
    while rest:
        plan = ledger.plan_append(rest, limits)
        rest = rest[len(plan.receipts) :]
        assert {receipt.outcome for receipt in plan.receipts} <= {Outcome.APPENDED}
        assert plan.payload is not None
        assert len(plan.payload) < HEADER_BYTES + 100 * 100
        seq += 1
        ledger.commit(plan.header, seq, 1.0)
        reader.apply(LogMessage.decode(seq, 1.0, plan.payload))
    assert 1003 < seq < 1010
    assert ledger.keys == reader.keys
    assert len(ledger.keys) <= 800
    assert {f"new{n}" for n in range(300)} <= ledger.keys.keys()


def test_a_checkpoint_with_the_most_keys_that_can_be_configured_fits_in_a_message() -> None:
    ledger = Ledger.begin(0)
    for n in range(MAX_KEYS_LIMIT):
        name = str(uuid.uuid4())
        ledger.jobs[name], ledger.keys[name] = JobAttempt(1, n + 1, secrets.token_hex(6)), n + 1
    ledger.offset = 1_000_000
    ledger.numbers = {secrets.token_hex(6): n for n in range(MAX_PRODUCERS)}
    ledger.pages = [(n, 10 * n) for n in range(0, ledger.offset, PAGE_EVENTS)]
    assert len(encode_checkpoint(ledger, ledger.offset)) < CROWDED * 2**20


def test_the_index_finds_a_message_at_or_before_every_offset() -> None:
    author = Author()
    ledger = Ledger.begin(0)
    begins: dict[int, int] = {}
    for seq in range(10, 3000, 7):
        plan = ledger.plan_append([author.draft(TOPIC) for _ in range(seq % 3 + 1)], LIMITS)
        begins[seq] = plan.header.offset
        ledger.commit(plan.header, seq, 1.0)
    for offset in range(0, ledger.offset, 13):
        distance = offset - begins[ledger.find_seq(offset)]
        assert 0 <= distance < 2 * 64


def test_a_checkpoint_of_a_feed_with_a_thousand_jobs_has_less_than_100_kilobytes() -> None:
    limits = Limits(1000, RETENTION, max_keys=1000, max_event_bytes=65_536)
    author, ledger = Author(), Ledger.begin(0)
    for n in range(1000):
        job = f"{n:036d}"
        plan = ledger.plan_append([author.draft(TOPIC, key=job, job=job, state={})], limits)
        ledger.commit(plan.header, n + 1, 1.0)
    assert len(encode_checkpoint(ledger, 1000)) < 100_000
