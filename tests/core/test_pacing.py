"""A key may send once in an interval."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.pacing import CallPacer, Pacer

times = st.lists(st.floats(0, 100), max_size=30).map(sorted)


@given(times, st.floats(0, 10))
def test_a_key_sends_at_once_at_first_and_then_once_in_an_interval(times, interval):
    pacer = Pacer()
    sent = []
    for now in times:
        wait = pacer.wait_seconds("k", now)
        if wait == 0:
            pacer.sent("k", now, interval)
            sent.append(now)
        else:
            assert wait == sent[-1] + interval - now
    assert sent[:1] == times[:1]
    for one, other in pairwise(sent):
        assert other >= one + interval
    # None waited longer than the interval: what was not sent came too early.
    for now in times:
        last = max((one for one in sent if one <= now), default=None)
        assert now in sent or now < last + interval


@given(times)
def test_keys_are_paced_independently(times):
    pacer = Pacer()
    for now in times:
        pacer.sent("busy", now, 1000.0)
        assert pacer.wait_seconds("idle", now) == 0


def test_each_sending_has_its_own_interval():
    pacer = Pacer()
    pacer.sent("k", 0.0, 100.0)
    pacer.sent("k", 1.0, 2.0)
    assert pacer.wait_seconds("k", 1.0) == 2.0


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5))
def test_only_the_keys_that_sent_last_are_remembered(keys, max_keys):
    pacer = Pacer(max_keys)
    for now, key in enumerate(keys):
        pacer.sent(key, float(now), 1000.0)
    newest_first = list(dict.fromkeys(reversed(keys)))
    held = [key for key in range(10) if pacer.wait_seconds(key, float(len(keys))) > 0]
    assert held == sorted(newest_first[:max_keys])


@given(st.lists(st.floats(0, 0.5), max_size=60), st.integers(1, 5))
def test_calls_that_wait_are_a_burst_and_then_one_in_each_interval(pauses, burst):
    pacer = CallPacer(burst, 1.0)
    now, called = 0.0, []
    for pause in pauses:
        now += pause
        wait = pacer.wait_seconds(now)
        assert 0 <= wait <= 1.0
        now += wait
        pacer.called(now)
        called.append(now)
    for first, one in enumerate(called):
        for count, other in enumerate(called[first:], 1):
            assert count <= burst + (other - one) + 1e-6


@given(st.integers(1, 5), st.integers(0, 50))
def test_calls_made_too_early_are_forgotten_after_as_long_as_a_burst_takes(burst, calls):
    pacer = CallPacer(burst, 1.0)
    for _ in range(calls):
        pacer.called(0.0)
    assert pacer.wait_seconds(0.0) == (1.0 if calls >= burst else 0.0)
    assert pacer.wait_seconds(1.0) == 0.0
    for _ in range(burst):
        assert pacer.wait_seconds(float(burst)) == 0.0
        pacer.called(float(burst))
    assert pacer.wait_seconds(float(burst)) == 1.0
