"""Backoff on a clock of the test."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onlooker.export.retry import Backoff, RetryPolicy


def test_intervals_grow_to_the_bound() -> None:
    backoff = Backoff(RetryPolicy(1.0, 4.0, 0.0, 2.0, 0.0), started_s=0.0)
    assert [backoff.wait_s(0.0) for _ in range(5)] == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_jitter_spreads_around_the_interval() -> None:
    policy = RetryPolicy(10.0, 10.0, 0.0, 1.0, 0.5)
    waits = [Backoff(policy, started_s=0.0, chance=lambda c=c: c).wait_s(0.0) for c in (0.0, 0.5, 1.0)]
    assert waits == [5.0, 10.0, 15.0]


def test_the_receiver_may_ask_for_more_but_not_for_less() -> None:
    backoff = Backoff(RetryPolicy(1.0, 4.0, 0.0, 1.0, 0.0), started_s=0.0)
    assert backoff.wait_s(0.0, 60.0) == 60.0
    assert backoff.wait_s(0.0, 0.1) == 1.0


def test_gives_up_when_the_next_attempt_would_come_too_late() -> None:
    backoff = Backoff(RetryPolicy(5.0, 5.0, 30.0, 1.0, 0.0), started_s=100.0)
    assert backoff.wait_s(125.0) == 5.0
    assert backoff.wait_s(125.1) is None
    assert backoff.wait_s(100.0, retry_after_s=31.0) is None


@given(st.floats(0, 1), st.integers(1, 50))
def test_never_negative_never_beyond_the_jittered_bound(chance: float, attempts: int) -> None:
    policy = RetryPolicy(max_elapsed_s=0.0)
    backoff = Backoff(policy, started_s=0.0, chance=lambda: chance)
    for _ in range(attempts):
        wait = backoff.wait_s(0.0)
        assert wait is not None
        assert 0 < wait <= policy.max_interval_s * (1 + policy.jitter)
