"""When to try again: exponential backoff with jitter, or what the receiver asked for, within a bound."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the backoff; the defaults are those of the OpenTelemetry Collector.

    Attributes:
        initial_interval_s: Before the first retry.
        max_interval_s: Between any two.
        max_elapsed_s: From the first attempt; then the request is dropped.  0: for ever.
        multiplier: From one interval to the next.
        jitter: Share of an interval that is left to chance, so that a fleet of agents does not come back as one.
    """

    initial_interval_s: float = 5.0
    max_interval_s: float = 30.0
    max_elapsed_s: float = 300.0
    multiplier: float = 1.5
    jitter: float = 0.5


class Backoff:
    """The waits of one request."""

    def __init__(self, policy: RetryPolicy, *, started_s: float, chance: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._started = started_s
        self._chance = chance
        self._interval = policy.initial_interval_s

    def wait_s(self, now_s: float, retry_after_s: float = 0.0) -> float | None:
        """How long to wait before the next attempt; None to give up.

        Args:
            now_s: On the clock of ``started_s``.
            retry_after_s: What the receiver asked for: a lower bound, however long the interval.
        """
        policy = self._policy
        spread = policy.jitter * self._interval
        wait = max(self._interval - spread + 2 * spread * self._chance(), retry_after_s)
        self._interval = min(self._interval * policy.multiplier, policy.max_interval_s)
        if policy.max_elapsed_s and now_s - self._started + wait > policy.max_elapsed_s:
            return None
        return wait
