"""Which drafts of a job are appended."""

from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.fence import AttemptState, Refusal, check_fence

attempts = st.none() | st.integers(-1, 4)
arrivals = st.lists(st.tuples(attempts, st.booleans()), max_size=20)


@given(arrivals)
def test_a_job_never_goes_back_in_whichever_order_drafts_arrive(arrivals):
    state = AttemptState()
    for attempt, terminal in arrivals:
        verdict = check_fence(state, attempt, terminal)
        if isinstance(verdict, Refusal):
            continue
        assert (verdict.attempt, verdict.ended) >= (state.attempt, state.ended)
        assert not (state.ended and verdict.attempt == state.attempt)
        state = verdict


@given(arrivals)
def test_a_verdict_depends_on_the_newest_attempt_and_on_the_ends_so_far(arrivals):
    state = AttemptState()
    newest, ended = 0, set()
    for attempt, terminal in arrivals:
        verdict = check_fence(state, attempt, terminal)
        meant = newest if attempt is None else attempt
        if meant < newest:
            assert verdict is Refusal.STALE
        elif meant in ended:
            assert verdict is Refusal.CLOSED
        else:
            newest = meant
            ended |= {meant} if terminal else set()
            assert verdict == AttemptState(newest, ended=newest in ended)
            state = verdict


@given(st.builds(AttemptState, st.integers(0, 5), st.booleans()), st.booleans())
def test_a_newer_attempt_always_opens_the_job_again(state, terminal):
    attempt = state.attempt + 1
    assert check_fence(state, attempt, terminal) == AttemptState(attempt, ended=terminal)


@given(st.integers(0, 5), attempts, st.booleans())
def test_after_the_end_of_the_newest_attempt_its_drafts_are_refused(newest, attempt, terminal):
    verdict = check_fence(AttemptState(newest, ended=True), attempt, terminal)
    assert isinstance(verdict, Refusal) == (attempt is None or attempt <= newest)


def test_a_job_that_is_cancelled_while_queued_is_closed_until_it_starts():
    cancelled = check_fence(AttemptState(), None, True)
    assert cancelled == AttemptState(0, ended=True)
    assert check_fence(cancelled, 0, False) is Refusal.CLOSED
    assert check_fence(cancelled, 1, False) == AttemptState(1)


@given(st.builds(AttemptState, st.integers(0, 5), st.booleans()), st.integers(0, 6), st.booleans())
def test_an_attempt_whose_number_is_taken_cannot_begin(state, attempt, terminal):
    verdict = check_fence(state, attempt, terminal, begins=True)
    if attempt <= state.attempt:
        assert verdict is Refusal.STALE
    else:
        assert verdict == AttemptState(attempt, ended=terminal)
