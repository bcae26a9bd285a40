"""The rate of a count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.rate import MAX_SAMPLES, WINDOW_SECONDS, Rate

steps = st.lists(st.tuples(st.floats(0.001, 5), st.integers(0, 1000)), min_size=1, max_size=200)


@given(st.floats(0.01, 1e6), st.floats(0.05, 3.0))
def test_a_steady_count_has_its_own_rate(per_second: float, step: float) -> None:
    rate, now, seen = Rate(), 0.0, None
    while now < 3 * WINDOW_SECONDS:
        seen = rate.add(per_second * now, now)
        now += step
    assert seen == pytest.approx(per_second, rel=0.006)


@given(steps)
def test_a_rate_lies_between_the_slowest_and_the_fastest_step(
    steps: list[tuple[float, int]],
) -> None:
    rate, now, count = Rate(), 0.0, 0
    rate.add(0, 0.0)
    for seconds, more in steps:
        now, count = now + seconds, count + more
        measured = rate.add(count, now)
        if measured is not None:
            assert 0 < measured <= max(more / seconds for seconds, more in steps) * 1.006
        assert len(rate._samples) <= MAX_SAMPLES


def test_the_rate_follows_a_change_within_the_window() -> None:
    rate = Rate()
    for second in range(20):
        rate.add(second, float(second))
    count = 19
    for second in range(20, 31):
        count += 100
        measured = rate.add(count, float(second))
    assert measured == 100.0


def test_a_count_that_stands_has_a_rate_that_falls_and_then_none() -> None:
    rate = Rate()
    for second in range(11):
        rate.add(10 * second, float(second))
    falling = [rate.add(100, 10.0 + second) for second in (1, 5, 9)]
    assert falling == sorted((one for one in falling if one), reverse=True)
    assert rate.add(100, 30.0) is None


def test_many_looks_in_a_moment_keep_few_samples() -> None:
    rate = Rate()
    for number in range(10_000):
        rate.add(number, number / 10_000)
    assert len(rate._samples) <= 3
