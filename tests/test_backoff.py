"""The pauses between retries: doubling, bounded, and different in each process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.backoff import Backoff, spread


@given(st.floats(0.01, 10), st.floats(1, 100), st.integers(1, 30))
def test_a_pause_doubles_with_each_failure_up_to_the_longest(first, factor, failures):
    longest = first * factor
    backoff = Backoff(first, longest, jitter=0)
    pauses = [backoff.next_seconds() for _ in range(failures)]
    assert pauses == pytest.approx([min(first * 2**n, longest) for n in range(failures)])
    assert backoff.failures == failures


def test_after_thousands_of_failures_the_pause_is_still_the_longest():
    backoff = Backoff(0.1, 1.0, jitter=0)
    assert {backoff.next_seconds() for _ in range(5000)} == {0.1, 0.2, 0.4, 0.8, 1.0}


@given(st.floats(0, 1))
def test_jitter_shortens_a_pause_by_that_share_at_most(jitter):
    backoff = Backoff(1.0, 1.0, jitter=jitter)
    pauses = [backoff.next_seconds() for _ in range(50)]
    assert all(1 - jitter <= pause <= 1 for pause in pauses)


def test_two_processes_that_fail_together_do_not_retry_together():
    one, other = Backoff(1.0, 1.0), Backoff(1.0, 1.0)
    pauses = [backoff.next_seconds() for backoff in (one, other) for _ in range(100)]
    assert len(set(pauses)) == 200
    assert min(pauses) < 0.6
    assert max(pauses) > 0.9


def test_after_a_reset_the_first_pause_comes_again():
    backoff = Backoff(0.1, 1.0, jitter=0)
    for _ in range(3):
        backoff.next_seconds()
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next_seconds() == 0.1


def test_repeated_work_is_spread_around_its_interval():
    times = [spread(10.0, share=0.2) for _ in range(500)]
    assert 8.0 <= min(times) < 8.5
    assert 11.5 < max(times) <= 12.0
