"""Which events a sink gets, and what follows a failure, for all values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.sinks import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MAX_ERROR_CHARACTERS,
    Fate,
    SinkFilter,
    check_sink_name,
    settle_failure,
)
from semantik_realtime.errors import ConfigError

TYPES = st.lists(st.sampled_from(["a", "b", "job_failed"]), min_size=1)
TOPICS = st.lists(st.sampled_from(["job:1", "job:*", "job:1*", "user:7", "*", "j*"]), min_size=1)
SHARES = st.floats(0, 1)


@given(TYPES, TOPICS, st.randoms())
def test_equal_filters_have_equal_bytes(types: list[str], topics: list[str], rng: object) -> None:
    first = SinkFilter.of(types, topics)
    rng.shuffle(types)  # type: ignore[attr-defined]
    assert SinkFilter.of([*types, *types], tuple(topics[::-1])).encode() == first.encode()


@given(TOPICS, st.sampled_from(["job:1", "job:12", "user:7", "jobs:1"]))
def test_more_topics_match_more(topics: list[str], topic: str) -> None:
    each = [SinkFilter.of(None, one).matches(topic, "a") for one in topics]
    assert SinkFilter.of(None, topics).matches(topic, "a") == any(each)
    assert SinkFilter.of(None, "*").matches(topic, "a")


@given(st.integers(1, 10_000), st.integers(1, 10_000), SHARES)
def test_a_failure_before_the_last_attempt_is_a_pause_within_its_bounds(
    attempt: int, attempts: int, share: float
) -> None:
    settled = settle_failure("1", attempt, attempts, share, "x" * 10_000)
    assert len(settled.error) == MAX_ERROR_CHARACTERS
    if attempt >= attempts:
        assert settled.fate is Fate.DEAD
    else:
        assert settled.fate is Fate.RETRY
        assert FIRST_PAUSE_SECONDS / 2 <= settled.seconds <= LONGEST_PAUSE_SECONDS


@given(st.text(st.sampled_from("a\x00é\ud800\udcff")), st.integers(0, 500))
def test_any_error_can_be_encoded(error: str, more: int) -> None:
    whole = error + "\udcff" * more
    settled = settle_failure("1", 1, 1, 0.0, whole)
    assert len(settled.error) <= MAX_ERROR_CHARACTERS
    assert whole.encode(errors="backslashreplace").startswith(settled.error.encode())


@given(st.integers(1, 10_000), SHARES)
def test_pauses_grow_up_to_the_longest(attempt: int, share: float) -> None:
    first, second = (
        settle_failure("1", number, 100_000, share, "").seconds for number in (attempt, attempt + 1)
    )
    assert first <= second


def test_ten_attempts_take_about_nine_minutes() -> None:
    pauses = [settle_failure("1", number, 10, 0.0, "").seconds for number in range(1, 10)]
    assert sum(pauses) == 511.0


@given(st.integers(1, 100), st.integers(1, 100), SHARES)
def test_what_is_refused_for_good_is_a_dead_letter_at_once(
    attempt: int, attempts: int, share: float
) -> None:
    settled = settle_failure("1", attempt, attempts, share, "", is_final=True)
    assert settled.fate is Fate.DEAD


@pytest.mark.parametrize("name", ["", "two words", "<lambda>", "é", "-x", "x" * 101, "a\nb"])
def test_a_name_that_a_key_or_a_terminal_could_misread_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a sink"):
        check_sink_name(name)
