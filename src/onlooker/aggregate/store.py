"""The series of one metric, cumulative, and what has been summed over span series since the last look."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.aggregate.definitions import Definition, Measure
from onlooker.batches import I8, AttributeValue
from onlooker.snapshot import Exemplar

OVERFLOW_ATTRIBUTE: Final = "otel.metric.overflow"


class Sums:
    """What one measure adds up to, by span series: a sum and the counts of buckets.  Grows by doubling."""

    def __init__(self, bounds: NDArray[np.float64], scale: int, capacity: int) -> None:
        self.bounds = (bounds * scale).round().astype(np.int64)
        self.buckets = len(bounds) + 1
        self.counts: I8 = np.zeros((capacity, self.buckets), np.int64)
        self.sums: I8 = np.zeros(capacity, np.int64)

    def grow(self, capacity: int) -> None:
        """Make room for series ids below ``capacity``."""
        more = capacity - len(self.sums)
        self.counts = np.concatenate([self.counts, np.zeros((more, self.buckets), np.int64)])
        self.sums = np.concatenate([self.sums, np.zeros(more, np.int64)])

    def add(self, series: I8, values: I8, weight: I8 | None = None) -> None:
        """Add ``values``, none negative, to their series; each ``weight`` times."""
        bucket = np.searchsorted(self.bounds, values)  # the first bound that is not less
        bucket += series * self.buckets
        np.add.at(self.counts.reshape(-1), bucket, 1 if weight is None else weight)
        np.add.at(self.sums, series, values if weight is None else values * weight)


@dataclass(slots=True)
class Taken:
    """A copy of some rows of `Sums` that were then set to zero."""

    counts: I8
    sums: I8


@dataclass(slots=True)
class PointRow:
    """One series of a metric: whose it is and what it says."""

    service_id: int
    attributes: Mapping[str, AttributeValue]
    start_unix_ns: int
    updated_unix_ns: int
    exemplars: dict[int, Exemplar] | None = None


def key_of(service_id: int, attributes: Mapping[str, AttributeValue]) -> Hashable:
    """What tells rows of one metric apart."""
    return (service_id, *attributes.items())


def overflow_limit(limit: int) -> int:
    """How many services may have an overflow series of their own; the others share one."""
    return max(limit // 8, 16)


class MetricStore:
    """All series of one metric: at most ``limit``, and an overflow series a service, up to `overflow_limit` of them.

    Args:
        others: The service id of the one overflow series that is left for all further services.
    """

    def __init__(
        self, definition: Definition, attributes: tuple[str, ...], buckets: int, limit: int, others: int
    ) -> None:
        self.definition = definition
        self.attributes = attributes
        self.overflowed = 0
        self._limit = limit
        self._others = others
        self._ids: dict[Hashable, int] = {}
        self._keys: list[Hashable] = []
        self._free: list[int] = []
        self.rows: list[PointRow | None] = []
        self.counts: I8 = np.zeros((16, buckets), np.int64)
        self.sums: I8 = np.zeros(16, np.int64)
        self.calls: I8 = np.zeros(16, np.int64)
        self.of_series = np.full(256, -1, np.int32)
        """Span series to row of this metric; -1: it does not count here."""

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def measure(self) -> Measure:
        """What is summed."""
        return self.definition.measure

    def row(
        self,
        service_id: int,
        attributes: Mapping[str, AttributeValue],
        now_unix_ns: int,
        key: Hashable | None = None,
    ) -> int:
        """The row of these attributes, made if it is new.

        Args:
            service_id: Whose it is.
            attributes: Kept as they are.
            now_unix_ns: The start of a new row.
            key: `key_of` the first two, where it is at hand: metrics of one series can share it and the attributes.
        """
        key = key or key_of(service_id, attributes)
        found = self._ids.get(key)
        if found is not None:
            return found
        if len(self._ids) >= self._limit:
            self.overflowed += 1
            attributes = {OVERFLOW_ATTRIBUTE: True}
            key = (service_id, None)
            if key not in self._ids and len(self._ids) >= self._limit + overflow_limit(self._limit):
                service_id, key = self._others, (self._others, None)
            found = self._ids.get(key)
            if found is not None:
                return found
        new = self._free.pop() if self._free else len(self.rows)
        point = PointRow(service_id, attributes, now_unix_ns, now_unix_ns)
        if new == len(self.rows):
            self.rows.append(point)
            self._keys.append(key)
        else:
            self.rows[new] = point
            self._keys[new] = key
        self._ids[key] = new
        if new >= len(self.sums):
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)])
            self.calls = np.concatenate([self.calls, np.zeros_like(self.calls)])
        return new

    def map_series(self, series: int, row: int) -> None:
        """Let span series ``series`` count in ``row``."""
        if series >= len(self.of_series):
            size = max(2 * len(self.of_series), series + 1)
            grown = np.full(size, -1, np.int32)
            grown[: len(self.of_series)] = self.of_series
            self.of_series = grown
        self.of_series[series] = row

    def fold(self, series: NDArray[np.intp], calls: I8, taken: Taken | None, now_unix_ns: int) -> None:
        """Add what was taken from the sums of ``series``."""
        known = series < len(self.of_series)
        rows = np.where(known, self.of_series[np.where(known, series, 0)], -1)
        here = np.flatnonzero(rows >= 0)
        if not here.size:
            return
        rows = rows[here]
        np.add.at(self.calls, rows, calls[here])
        if taken is not None:
            np.add.at(self.sums, rows, taken.sums[here])
            if self.definition.histogram:
                np.add.at(self.counts, rows, taken.counts[here])
        for row in np.unique(rows).tolist():
            point = self.rows[row]
            if point is not None:
                point.updated_unix_ns = now_unix_ns

    def expire(self, before_unix_ns: int) -> None:
        """Forget the rows that nothing was added to since then."""
        gone = [
            row for row, point in enumerate(self.rows) if point is not None and point.updated_unix_ns < before_unix_ns
        ]
        if gone:
            for row in gone:
                self.rows[row] = None
                del self._ids[self._keys[row]]
                self._keys[row] = None
            self._free += gone
            self.counts[gone] = 0
            self.sums[gone] = 0
            self.calls[gone] = 0
            self.of_series[np.isin(self.of_series, gone)] = -1
