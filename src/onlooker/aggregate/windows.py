"""The last minute, finer than the exported histograms: for the live table and the page, not for exporters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I4, I8

SLOT_NS: Final = 5_000_000_000
SLOTS: Final = 13
"""A minute, and the slot that is being filled."""

PER_OCTAVE: Final = 8
"""Buckets a doubling: 9 % wide, so the middle of one is within 4.5 % of all its values."""
FIRST_OCTAVE: Final = 13  # 8 µs
OCTAVES: Final = 24  # to 137 s
BUCKETS: Final = PER_OCTAVE * OCTAVES + 1
STREAM: Final = BUCKETS - 1
"""The bucket of requests without a latency: streams."""


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One line of the live view.

    Attributes:
        rate: Requests a second.
        errors: Share of failed requests, 0 to 1.
        quantiles_s: p50, p95 and p99 in seconds; None without a latency.
    """

    requests: int
    rate: float
    errors: float
    quantiles_s: tuple[float, float, float] | None


class Windows:
    """Counts by (row, latency) in slots of five seconds.  Fixed memory: ``SLOTS * rows * BUCKETS`` counters."""

    def __init__(self, capacity: int = 512) -> None:
        self._capacity = capacity
        self._counts = np.zeros((SLOTS, 32, BUCKETS), np.uint32)
        self._errors = np.zeros((SLOTS, 32), np.uint32)
        self._slot_of = np.full(SLOTS, -1, np.int64)
        self._used = 0
        self._first_slot = -1
        self._free: list[int] = []

    def row(self) -> int:
        """A fresh row, or -1 when all are taken."""
        if self._free:
            return self._free.pop()
        if self._used >= self._capacity:
            return -1
        if self._used >= self._counts.shape[1]:
            more = min(2 * self._used, self._capacity) - self._used
            self._counts = np.concatenate([self._counts, np.zeros((SLOTS, more, BUCKETS), np.uint32)], axis=1)
            self._errors = np.concatenate([self._errors, np.zeros((SLOTS, more), np.uint32)], axis=1)
        self._used += 1
        return self._used - 1

    def release(self, row: int) -> None:
        """Give a row back."""
        self._counts[:, row] = 0
        self._errors[:, row] = 0
        self._free.append(row)

    def add(
        self, rows: I4, duration_ns: I8, stream: NDArray[np.bool_], failed: NDArray[np.bool_], now_ns: int,
        weight: I8 | None = None,
    ) -> None:  # fmt: skip
        """Count finished requests; ``rows`` as given by `row`, each ``weight`` times."""
        slot = self._slot(now_ns)
        octave = np.log2(np.maximum(duration_ns, 1).astype(np.float32))
        octave -= FIRST_OCTAVE
        octave *= PER_OCTAVE
        bucket = octave.astype(np.int32)
        np.maximum(bucket, 0, out=bucket)
        np.minimum(bucket, STREAM - 1, out=bucket)
        if np.count_nonzero(stream):
            bucket[stream] = STREAM
        bucket += rows * BUCKETS
        hits = np.uint32(1) if weight is None else weight.astype(np.uint32)
        np.add.at(self._counts[slot].reshape(-1), bucket, hits)
        if np.count_nonzero(failed):
            np.add.at(self._errors[slot], rows[failed], hits if isinstance(hits, np.uint32) else hits[failed])

    def _slot(self, now_ns: int) -> int:
        number = now_ns // SLOT_NS
        slot = int(number % SLOTS)
        if self._slot_of[slot] != number:
            self._counts[slot] = 0
            self._errors[slot] = 0
            self._slot_of[slot] = number
            if self._first_slot < 0:
                self._first_slot = int(number)
        return slot

    def read(self, groups: list[list[int]], window_s: int, now_ns: int) -> list[WindowRow]:
        """One line for each group of rows, over the last ``window_s`` seconds (10 to 60) and what has begun."""
        number = now_ns // SLOT_NS
        first = max(number - window_s * 1_000_000_000 // SLOT_NS, self._first_slot)
        slots = np.flatnonzero((self._slot_of >= first) & (self._slot_of <= number))
        span_s = max((now_ns - first * SLOT_NS) / 1e9, 1.0) if slots.size else 1.0
        counts = self._counts[slots].sum(axis=0, dtype=np.int64)
        errors = self._errors[slots].sum(axis=0, dtype=np.int64)
        lines = []
        for rows in groups:
            histogram = counts[rows].sum(axis=0)
            total = int(histogram.sum())
            failed = int(errors[rows].sum())
            share = failed / total if total else 0.0
            lines.append(WindowRow(total, total / span_s, share, quantiles_s(histogram[:STREAM])))
        return lines


def quantiles_s(
    histogram: I8, wanted: tuple[float, float, float] = (0.5, 0.95, 0.99)
) -> tuple[float, float, float] | None:
    """Quantiles by nearest rank, each the geometric middle of its bucket; None without values."""
    cumulative = np.cumsum(histogram)
    total = int(cumulative[-1])
    if total == 0:
        return None
    at = np.searchsorted(cumulative, np.ceil(np.array(wanted) * total))
    middles = 2.0 ** (FIRST_OCTAVE + (at + 0.5) / PER_OCTAVE) / 1e9
    return float(middles[0]), float(middles[1]), float(middles[2])
