"""All metrics at one moment, in a form that belongs to no exporter.

``aggregate`` makes a `MetricSnapshot`; the OTLP and the Prometheus exporter read it.  Values are cumulative since
``start_unix_ns`` of their point.  A point is one series of one metric, never one request, so objects are cheap enough.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, overload

from onlooker.batches import AttributeValue, Service

HOST_SERVICE_ID = -1
"""``service_id`` of points that belong to the host or to onlooker itself and to no watched service."""


class MetricKind(enum.Enum):
    """The instrument, hence the class of the points."""

    GAUGE = "gauge"  # NumberPoint
    SUM = "sum"  # NumberPoint
    HISTOGRAM = "histogram"  # HistogramPoint, with `Metric.bounds`
    EXPONENTIAL_HISTOGRAM = "exponential_histogram"  # ExponentialPoint


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One measurement that points at its trace.

    Attributes:
        value: In the unit of the metric.
        trace_id: 16 bytes, as on the wire.
        span_id: 8 bytes.
    """

    value: float
    time_unix_ns: int
    trace_id: bytes
    span_id: bytes


@dataclass(frozen=True, slots=True)
class NumberPoint:
    """A sum or a gauge.  An int stays an int on the wire."""

    service_id: int
    attributes: Mapping[str, AttributeValue]
    start_unix_ns: int
    time_unix_ns: int
    value: int | float
    exemplars: Sequence[Exemplar] = ()


@dataclass(frozen=True, slots=True)
class HistogramPoint:
    """A histogram over the fixed bounds of its metric.

    Attributes:
        bucket_counts: ``len(bounds) + 1`` counts, one a bucket, not cumulative over buckets; bucket i holds the
            values v with ``bounds[i - 1] < v <= bounds[i]``.
        minimum, maximum: Of all values since the start; None where not tracked.
    """

    service_id: int
    attributes: Mapping[str, AttributeValue]
    start_unix_ns: int
    time_unix_ns: int
    count: int
    sum: float
    bucket_counts: Sequence[int]
    minimum: float | None = None
    maximum: float | None = None
    exemplars: Sequence[Exemplar] = ()


@dataclass(frozen=True, slots=True)
class ExponentialPoint:
    """A base-2 exponential histogram of values that are never negative.

    Attributes:
        scale: The base is ``2 ** (2 ** -scale)``.
        zero_count: Values that are zero (or too small to tell).
        offset: Index of the first bucket; bucket i of ``bucket_counts`` holds ``base ** (offset + i) < v <=
            base ** (offset + i + 1)``.
    """

    service_id: int
    attributes: Mapping[str, AttributeValue]
    start_unix_ns: int
    time_unix_ns: int
    count: int
    sum: float
    scale: int
    zero_count: int
    offset: int
    bucket_counts: Sequence[int]
    minimum: float | None = None
    maximum: float | None = None
    exemplars: Sequence[Exemplar] = ()


Point: TypeAlias = NumberPoint | HistogramPoint | ExponentialPoint


class LazyPoints(Sequence[Point]):
    """Points that are made when they are looked at: as objects, all of them at once are larger than what they show.

    Args:
        count: How many there are.
        make: The point of an index below ``count``; what it reads must not change any more.
    """

    def __init__(self, count: int, make: Callable[[int], Point]) -> None:
        self._indices = range(count)
        self._make = make

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Point]:
        return map(self._make, self._indices)

    @overload
    def __getitem__(self, index: int) -> Point: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Point]: ...

    def __getitem__(self, index: int | slice) -> Point | Sequence[Point]:
        chosen = self._indices[index]
        return self._make(chosen) if isinstance(chosen, int) else [self._make(i) for i in chosen]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with all its points.

    Attributes:
        name: OpenTelemetry name (`onlooker.semconv`).
        unit: UCUM: ``s``, ``By``, ``{request}``, ``1``.
        bounds: Upper bounds of the buckets, ascending, without infinity; `MetricKind.HISTOGRAM` only.
        monotonic: `MetricKind.SUM` only: whether it is a counter that never falls.
    """

    name: str
    unit: str
    description: str
    kind: MetricKind
    points: Sequence[Point]
    bounds: Sequence[float] = ()
    monotonic: bool = True


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """All metrics at one moment.

    Attributes:
        services: Every service that a point names, as it was at that moment: by the time of the export a service may
            be gone.  `HOST_SERVICE_ID` may be missing.
    """

    time_unix_ns: int
    metrics: Sequence[Metric]
    services: Mapping[int, Service] = field(default_factory=dict)
