"""The pauses between attempts to connect, and the splitting of drafts. No server."""

from __future__ import annotations

from semantik_realtime.testing.contract import Author
from tenacity import AsyncRetrying, RetryCallState

from semantik_realtime_nats.subscriber import RECONNECT_WAIT
from semantik_realtime_nats.topic_writer import split_drafts


def pause_after(failed_attempts: int) -> float:
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = failed_attempts
    return RECONNECT_WAIT(state)


def test_the_pauses_between_attempts_to_connect_grow_to_a_second_and_differ() -> None:
    pauses = [[pause_after(failed) for _ in range(50)] for failed in range(1, 21)]
    assert 0.05 <= min(pauses[0]) <= max(pauses[0]) <= 0.1
    assert all(0.5 <= pause <= 1 for late in pauses[5:] for pause in late)
    assert all(len(set(same_attempt)) > 1 for same_attempt in pauses)


def test_drafts_are_split_in_order_into_parts_below_the_limit() -> None:
    author = Author()
    drafts = [author.draft("user:7", key=f"k{n}", data={"x": "y" * 300}) for n in range(50)]
    parts = split_drafts(drafts, 2000)
    assert [draft.number for part in parts for draft in part] == [*range(1, 51)]
    assert all(1 < len(part) < 6 for part in parts)


def test_a_draft_above_the_limit_is_a_part_of_its_own() -> None:
    author = Author()
    sizes = (10, 5000, 10)
    drafts = [author.draft("user:7", data={"x": "y" * size}) for size in sizes]
    assert [len(part) for part in split_drafts(drafts, 1000)] == [1, 1, 1]
