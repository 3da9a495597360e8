"""Keeps onlooker within ``limits.cpu_percent`` and ``limits.memory`` by shedding detail, never counts.

Receives batches before they are sampled, marks the rows that are to become no span.  First every second trace goes,
then three of four, down to `LEAST_SHARE`, then all; whole traces, chosen by their id.  What is left is the price of
counting, which is not shed: rounds of draining get longer and that is all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from onlooker.batches import SKIP_TRACES, RequestBatch

log: Final = logging.getLogger("onlooker")

LOOK_S: Final = 2.0
"""A limit is compared with so many seconds at a time: a scrape or a garbage collection is no overload."""
CALM: Final = 0.7
"""Detail comes back below this share of the limit: twice the spans must fit under it."""
CALM_S: Final = 10.0
CALM_MAX_S: Final = 320.0
"""How long it must be calm before; doubled each time that what came back had to go again."""
LEAST_SHARE: Final = 1 / 64
STRETCH: Final = 2.0


class Overload:
    """Compares what onlooker uses with what it may use.

    Args:
        cpu_percent: Of one core; 0: no limit.
        memory_bytes: Resident; 0: no limit.
        monotonic_s, cpu_s, rss_bytes: Meters.
        relieve: Gives memory back that can be had without losing anything.

    Attributes:
        share: Of traces that may become spans, 1 to 0.
        shed: Requests that became no span because of it.
        sheds: Times that the share was lowered, by reason.
    """

    def __init__(
        self,
        *,
        cpu_percent: float,
        memory_bytes: int,
        rss_bytes: Callable[[], int],
        monotonic_s: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.process_time,
        relieve: Callable[[], None] = lambda: None,
    ) -> None:
        self.share = 1.0
        self.shed = 0
        self.sheds = {"cpu": 0, "memory": 0}
        self._cpu_limit = cpu_percent / 100
        self._memory_limit = memory_bytes
        self._rss_bytes = rss_bytes
        self._now = monotonic_s
        self._cpu_s = cpu_s
        self._relieve = relieve
        self._looked_s = monotonic_s()
        self._used_s = cpu_s()
        self._calm_since_s = self._looked_s
        self._calm_s = CALM_S
        self._raised_s = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether there is any limit to keep."""
        return self._cpu_limit > 0 or self._memory_limit > 0

    @property
    def stretch(self) -> float:
        """By how much rounds of draining are to be longer: spans are gone, and it is still too much."""
        return STRETCH if self.share == 0.0 else 1.0

    def look(self) -> None:
        """Compare, if it is time to; lowers or raises `share`."""
        now = self._now()
        passed = now - self._looked_s
        if not self.is_on or passed < LOOK_S:
            return
        used = self._cpu_s()
        cpu = (used - self._used_s) / passed
        self._looked_s, self._used_s = now, used
        memory = self._rss_bytes() if self._memory_limit else 0
        if self._memory_limit and memory > self._memory_limit:
            self._relieve()
            memory = self._rss_bytes()
        if self._memory_limit and memory > self._memory_limit:
            said = f"{memory >> 20} MiB of memory are in use, limits.memory is {self._memory_limit >> 20}"
            self._lower(now, "memory", said)
        elif self._cpu_limit and cpu > self._cpu_limit:
            said = f"{cpu:.0%} of a core is in use, limits.cpu_percent is {self._cpu_limit:.0%}"
            self._lower(now, "cpu", said)
        elif (self._cpu_limit and cpu > CALM * self._cpu_limit) or memory > 0.95 * (self._memory_limit or 1 << 62):
            self._calm_since_s = now
        elif self.share < 1.0 and now - self._calm_since_s >= self._calm_s:
            self._raise(now)

    def _lower(self, now: float, reason: str, said: str) -> None:
        self._calm_since_s = now
        if self.share == 0.0:
            return
        if now - self._raised_s < 3 * LOOK_S:
            self._calm_s = min(2 * self._calm_s, CALM_MAX_S)
        self.sheds[reason] += 1
        first = self.share == 1.0
        self.share = self.share / 2 if self.share > LEAST_SHARE else 0.0
        kept = f"1 of {round(1 / self.share)} traces is kept" if self.share else "no traces are kept"
        log.log(logging.WARNING if first or not self.share else logging.INFO, "%s: %s from now on, and every request "
                "is still counted", said, kept)  # fmt: skip

    def _raise(self, now: float) -> None:
        self._calm_since_s = self._raised_s = now
        self.share = min(2 * self.share, 1.0) if self.share else LEAST_SHARE
        if self.share == 1.0:
            self._calm_s = CALM_S
            log.warning("onlooker is within its limits again: every trace is kept")

    def apply(self, batch: RequestBatch) -> None:
        """Mark the rows whose traces are shed with `SKIP_TRACES`."""
        if self.share == 1.0 or not len(batch):
            return
        if self.share == 0.0:
            gone = np.ones(len(batch), np.bool_)
        else:
            # The middle of the id: samplers take its end, and the two must not keep the same traces.
            part = np.ascontiguousarray(batch.trace_id[:, 4:8]).view(np.uint32)[:, 0]
            gone = part >= np.uint32(self.share * 2**32)
        if len(batch.skip) != len(batch):
            batch.skip = np.zeros(len(batch), np.uint8)
        gone &= (batch.skip & SKIP_TRACES) == 0
        batch.skip = np.where(gone, batch.skip | SKIP_TRACES, batch.skip).astype(np.uint8)
        self.shed += int(np.count_nonzero(gone))
