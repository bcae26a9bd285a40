"""An attempt begins without a claim, unless its expected number is taken."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Claim, Draft, Outcome, Receipt
from semantik_realtime.emitter.attempts import AttemptPublisher
from semantik_realtime.emitter.outcomes import EmitterStats

A, C, S = Outcome.APPENDED, Outcome.CLOSED, Outcome.STALE


class Recording(MemoryBackend):
    """The memory backend as a writer that records its calls."""

    fails_writes = False

    def __init__(self) -> None:
        super().__init__(Settings(backend="memory"))
        self.calls: list[list[tuple[str, str, int | None]]] = []
        self.claims: list[str] = []
        self.newest_start = ""

    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self.calls.append([(one.topic, one.type, one.attempt) for one in drafts])
        return super().publish(drafts)

    def read_start(self, topic: str, job: str) -> str:
        return self.newest_start

    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        self.claims.append(job)
        return super().claim(topic, job, token, owner)


class Process:
    """The drafts of one process, as its emitter numbers them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers: dict[str, int] = {}

    def attempt(self, job: str, token: str, *types: str, feed: bool = True) -> list[Draft]:
        """Return the drafts of an attempt that expects the number 1."""
        claim = Claim(f"job:{job}", job, token, expected=1)
        topics = {f"job:{job}": None} | ({"user:7": "7"} if feed else {})
        drafts = []
        for type in types:
            drafts += make_drafts(
                topics, type, "", job, state={"attempt": 1}, job=job, attempt=1, claim=claim,
                terminal=type == "job_completed",
            )  # fmt: skip
        for draft in drafts:
            self.numbers[draft.topic] = draft.number = self.numbers.get(draft.topic, 0) + 1
            draft.producer = self.name
        return drafts


@pytest.fixture
def writer() -> Recording:
    return Recording()


@pytest.fixture
def publisher(writer: Recording) -> AttemptPublisher:
    return AttemptPublisher(writer, EmitterStats())


def outcomes(publisher: AttemptPublisher, drafts: Sequence[Draft]) -> list[Outcome]:
    return [receipt.outcome for receipt in publisher.publish(drafts)]


def test_attempts_of_many_jobs_need_two_calls_and_no_claim(
    writer: Recording, publisher: AttemptPublisher
) -> None:
    one = Process("p")
    drafts = [
        draft
        for number in range(10)
        for draft in one.attempt(f"{number}", f"t{number}", "job_started", "job_completed")
    ]
    assert outcomes(publisher, drafts) == [A] * 40
    assert [len(call) for call in writer.calls] == [20, 20]
    assert {topic for topic, _, _ in writer.calls[1]} == {"user:7"}
    assert writer.claims == []


def test_a_taken_number_is_claimed_and_the_attempts_drafts_are_sent_again(
    writer: Recording, publisher: AttemptPublisher
) -> None:
    one, other = Process("p"), Process("q")
    first = one.attempt("j", "first", "job_started")
    assert outcomes(publisher, first) == [A, A]
    # A redelivery in another process, while the first attempt runs.
    second = other.attempt("j", "second", "job_started", "job_completed")
    more = other.attempt("k", "other", "job_started")
    assert outcomes(publisher, [*second, *more]) == [A] * 6
    assert writer.claims == ["j"]
    assert [draft.attempt for draft in second] == [2, 2, 2, 2]
    assert b'"state":{"attempt":2}' in second[0].body
    late = one.attempt("j", "first", "job_completed")
    for draft in late:
        draft.claim = None
    assert outcomes(publisher, late) == [S, S]


def test_a_refused_attempt_is_not_taken_for_a_duplicate_when_it_is_sent_again(
    writer: Recording, publisher: AttemptPublisher
) -> None:
    """Its numbers are lower than those that the topic got from this process in the same call."""
    one = Process("p")
    publisher.publish(Process("q").attempt("j", "first", "job_started"))
    child = Claim("job:child", "child", "c", expected=1)
    refused = one.attempt("j", "second", "job_started")
    [log_line] = make_drafts({"job:j": None}, "note", "", "page")
    log_line.producer, log_line.number = "p", 2
    assert outcomes(publisher, [*refused, log_line]) == [A, A, A]
    assert child.number is None


def test_a_deleted_job_sends_nothing_to_its_feed(
    writer: Recording, publisher: AttemptPublisher
) -> None:
    writer.delete("job:j")
    drafts = Process("p").attempt("j", "token", "job_started", "job_completed")
    assert outcomes(publisher, drafts) == [C] * 4
    assert {topic for call in writer.calls for topic, _, _ in call} == {"job:j"}


def test_a_feed_alone_gets_the_number_by_a_claim(
    writer: Recording, publisher: AttemptPublisher
) -> None:
    """The draft for the job's own topic was dropped for lack of room."""
    publisher.publish(Process("q").attempt("j", "first", "job_started", "job_completed"))
    [_, feed] = Process("p").attempt("j", "second", "job_started")
    assert outcomes(publisher, [feed]) == [A]
    assert (writer.claims, feed.attempt) == (["j"], 2)


def test_sending_a_batch_again_changes_nothing(
    writer: Recording, publisher: AttemptPublisher
) -> None:
    publisher.publish(Process("q").attempt("j", "first", "job_started"))
    drafts = Process("p").attempt("j", "second", "job_started", "job_completed")
    assert outcomes(publisher, drafts) == [A] * 4
    assert outcomes(publisher, drafts) == [Outcome.DUPLICATE] * 4
    assert writer.claims == ["j"]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_attempt_that_arrives_after_a_later_one_is_dropped(
    publisher: AttemptPublisher, writer: Recording, is_first: bool
) -> None:
    """A task is replaced, or retried at once, by one that another process runs."""
    late = Process("late").attempt("1", "a", "job_started", "job_completed")
    late[0].claim.started_at = "2026-01-31T09:30:00.000Z"
    later = Process("other").attempt("1", "b", "job_started", "job_completed")
    publisher.publish(later)
    writer.newest_start = f"2026-01-31T09:{'30:00.001' if is_first else '29:59.999'}Z"
    outcomes = {receipt.outcome for receipt in publisher.publish(late)}
    assert writer.claims == ([] if is_first else ["1"])
    assert outcomes == ({C} if is_first else {A})
    assert late[0].claim is None or late[0].claim.number == 0
