"""The kernel's CLOCK_MONOTONIC as Unix time.

Records carry CLOCK_MONOTONIC.  The distance to Unix time is measured anew every second, so that a step or slew of the
system clock reaches the spans that come after it, and no span's duration.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MEASURE_NS: Final = 1_000_000_000


class UnixClock:
    """Tracks the distance between CLOCK_MONOTONIC and Unix time."""

    def __init__(
        self,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._unix_ns = unix_ns
        self._measured_ns = 0
        self._offset_ns = 0
        self._measure()

    def offset_ns(self) -> int:
        """What to add to CLOCK_MONOTONIC, in ns."""
        if self._monotonic_ns() - self._measured_ns > _MEASURE_NS:
            self._measure()
        return self._offset_ns

    def _measure(self) -> None:
        # The narrowest of a few readings: a preemption between two of them would show as a step.
        best = None
        for _ in range(4):
            before = self._monotonic_ns()
            unix = self._unix_ns()
            after = self._monotonic_ns()
            if best is None or after - before < best:
                best = after - before
                self._offset_ns = unix - (before + after) // 2
        self._measured_ns = after
