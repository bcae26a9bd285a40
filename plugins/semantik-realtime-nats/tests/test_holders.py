"""How the jobs of a worker process are kept in the stream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from semantik_realtime.core.holding import given_name
from semantik_realtime.testing.contract import until

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.held import Change, HeldJobs, Message, fold, size_of, split_change
from semantik_realtime_nats.holders import COMPACT_MESSAGES, REPLACE_BYTES

names = st.sampled_from(["a", "b", given_name("a", "1"), given_name("a", "2")])
job_ids = st.sampled_from([str(number) for number in range(8)])
changes = st.builds(
    Change,
    names,
    st.floats(0, 100),
    st.dictionaries(job_ids, st.binary(max_size=20), max_size=5),
    st.lists(job_ids, max_size=5),
    st.none() | st.just(given_name("a", "1")),
)


def encode(changes: list[Change], max_bytes: int) -> list[bytes]:
    return [
        Message(1.0, [part]).encode()
        for change in changes
        for part in (
            [change]
            if change.given_as
            else split_change(change.holder, change.ends_at, change.jobs, change.ended, max_bytes)
        )
    ]


@given(st.lists(changes, max_size=12), st.integers(1, 200))
def test_a_split_change_is_the_same_change(made: list[Change], max_bytes: int) -> None:
    whole = HeldJobs()
    for change in made:
        whole.apply(change)
    assert fold(encode(made, max_bytes)).holders == whole.holders


@given(st.lists(changes, max_size=12), st.integers(1, 200), st.integers(0, 20))
def test_jobs_that_are_stored_again_change_nothing_even_in_part(
    made: list[Change], max_bytes: int, stored: int
) -> None:
    messages = encode(made, 1000)
    held = fold(messages)
    again = [Message(1.0, [change]).encode() for change in held.all_changes(max_bytes)]
    assert fold(messages + again[:stored]).holders == held.holders
    assert fold(again).holders == held.holders


def test_the_parts_of_a_change_have_the_size_that_was_asked_for() -> None:
    jobs = {f"job {number}": b"x" * 100 for number in range(100)}
    parts = list(split_change("a", 1.0, jobs, list(jobs), 1000))
    assert len(parts) > 10
    assert all(len(Message(1.0, [part]).encode()) < 1100 for part in parts)
    assert max(size_of(part.jobs) for part in parts) > 700


async def stored(backend: NatsBackend) -> dict[str, int]:
    """Return how many messages each subject with jobs has."""
    assert backend._subscriber is not None
    stream = await backend._subscriber.current_stream()
    info = await stream.read_info(subjects_filter=backend._subjects.held("*"))
    return dict(info["state"].get("subjects") or {})


async def test_few_jobs_are_one_message_and_none_are_none(
    url: str, make_backend: Callable[..., Any]
) -> None:
    backend = make_backend(url, prefix=f"few{secrets.token_hex(4)}")
    await backend.open()
    for number in range(20):
        backend.hold("w1", {str(number): b"x" * 100}, [], 60.0)
        assert list((await stored(backend)).values()) == [1]
    backend.hold("w1", {}, [str(number) for number in range(20)], 60.0)

    async def is_empty() -> bool:
        return await stored(backend) == {}

    await until(is_empty, "the subject to be removed")


async def test_many_jobs_are_changes_and_are_stored_again_from_time_to_time(
    url: str, make_backend: Callable[..., Any]
) -> None:
    backend = make_backend(url, prefix=f"many{secrets.token_hex(4)}")
    await backend.open()
    jobs = {f"{number:032x}": b"x" * 100 for number in range(1000)}
    assert size_of(jobs) > REPLACE_BYTES
    backend.hold("w1", jobs, [], 60.0)
    most = 0
    for number in range(2 * COMPACT_MESSAGES):
        backend.hold("w1", {f"late {number}": b"late"}, [f"late {number - 1}"], 60.0)
        [messages] = (await stored(backend)).values()
        most = max(most, messages)
    assert COMPACT_MESSAGES - 5 < most <= COMPACT_MESSAGES + 1
    backend.hold("w1", {}, [], 0.05)
    await asyncio.sleep(0.2)
    reader = make_backend(url, prefix=backend._settings.prefix)
    [holding] = reader.overdue(60.0)
    assert holding.jobs == {**jobs, f"late {2 * COMPACT_MESSAGES - 1}": b"late"}
