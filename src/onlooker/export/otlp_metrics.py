"""Turns a snapshot of all metrics into OTLP metric requests, by protobuf objects: points are series, not requests.

Receives a `MetricSnapshot`, hands on `Chunk`s with one ResourceMetrics for each service.  Sums and histograms are
cumulative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from onlooker import semconv
from onlooker.batches import AttributeValue, Service
from onlooker.export._wire import field, key_value
from onlooker.export.otlp_traces import SCOPE_NAME, UNKNOWN_SERVICE
from onlooker.export.queue import Chunk
from onlooker.snapshot import (
    HOST_SERVICE_ID,
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    MetricKind,
    MetricSnapshot,
    NumberPoint,
    Point,
)

MAX_POINTS_PER_METRIC = 2000  # in one message, so that a request stays near its size bound


def encode_metrics(snapshot: MetricSnapshot, *, version: str, max_bytes: int = 4 << 20) -> list[Chunk]:
    """The snapshot as requests of about ``max_bytes`` bytes.

    Points of services that export no metrics are left out.
    """
    chunks: list[Chunk] = []
    parts: list[bytes] = []
    points = size = 0
    for service_id, metrics in _by_service(snapshot).items():
        service = snapshot.services.get(service_id)
        if service is not None and "metrics" not in service.exports:
            continue
        for data, count in _resource_metrics(service, service_id, metrics, version, max_bytes):
            if parts and size + len(data) > max_bytes:
                chunks.append(Chunk(b"".join(parts), points))
                parts, points, size = [], 0, 0
            parts.append(data)
            points += count
            size += len(data)
    if parts:
        chunks.append(Chunk(b"".join(parts), points))
    return chunks


def _by_service(snapshot: MetricSnapshot) -> dict[int, list[tuple[Metric, list[int]]]]:
    """The metrics of each service, with the indices of its points, which are made one message at a time."""
    services: dict[int, list[tuple[Metric, list[int]]]] = {}
    for metric in snapshot.metrics:
        own: dict[int, list[int]] = {}
        for i, point in enumerate(metric.points):
            own.setdefault(point.service_id, []).append(i)
        for service_id, indices in own.items():
            services.setdefault(service_id, []).append((metric, indices))
    return services


def _resource_metrics(
    service: Service | None, service_id: int, metrics: Sequence[tuple[Metric, list[int]]], version: str, limit: int
) -> Iterator[tuple[bytes, int]]:
    """Serialized ``resource_metrics`` fields of one service: one, or more if they would exceed the limit."""
    if service is not None:
        pairs = service.resource
    else:
        pairs = ((semconv.SERVICE_NAME, SCOPE_NAME if service_id == HOST_SERVICE_ID else UNKNOWN_SERVICE),)
    resource = field(1, b"".join(field(1, key_value(key, value)) for key, value in pairs))
    schema = field(3, semconv.SCHEMA_URL.encode())
    scope = field(1, field(1, SCOPE_NAME.encode()) + field(2, version.encode())) + schema

    def wrap(messages: list[bytes]) -> bytes:
        return field(1, resource + schema + field(2, scope + b"".join(messages)))

    messages: list[bytes] = []
    count = size = 0
    for metric, indices in metrics:
        for first in range(0, len(indices), MAX_POINTS_PER_METRIC):
            some = [metric.points[i] for i in indices[first : first + MAX_POINTS_PER_METRIC]]
            message = field(2, metric_message(metric, some).SerializeToString())
            if messages and size + len(message) > limit:
                yield wrap(messages), count
                messages, count, size = [], 0, 0
            messages.append(message)
            count += len(some)
            size += len(message)
    if messages:
        yield wrap(messages), count


def metric_message(metric: Metric, points: Iterable[Point]) -> pb.Metric:
    """One metric with some of its points as a protobuf object."""
    message = pb.Metric(name=metric.name, unit=metric.unit, description=metric.description)
    cumulative = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    if metric.kind is MetricKind.GAUGE:
        message.gauge.data_points.extend(_number(p) for p in points if isinstance(p, NumberPoint))
    elif metric.kind is MetricKind.SUM:
        message.sum.aggregation_temporality = cumulative
        message.sum.is_monotonic = metric.monotonic
        message.sum.data_points.extend(_number(p) for p in points if isinstance(p, NumberPoint))
    elif metric.kind is MetricKind.HISTOGRAM:
        message.histogram.aggregation_temporality = cumulative
        bounds = [float(bound) for bound in metric.bounds]
        message.histogram.data_points.extend(_explicit(p, bounds) for p in points if isinstance(p, HistogramPoint))
    else:
        message.exponential_histogram.aggregation_temporality = cumulative
        message.exponential_histogram.data_points.extend(
            _exponential(p) for p in points if isinstance(p, ExponentialPoint)
        )
    return message


def _number(point: NumberPoint) -> pb.NumberDataPoint:
    message = pb.NumberDataPoint(
        attributes=_attributes(point.attributes),
        start_time_unix_nano=point.start_unix_ns,
        time_unix_nano=point.time_unix_ns,
        exemplars=_exemplars(point.exemplars),
    )
    if isinstance(point.value, float):
        message.as_double = point.value
    else:
        message.as_int = int(point.value)
    return message


def _explicit(point: HistogramPoint, bounds: list[float]) -> pb.HistogramDataPoint:
    return pb.HistogramDataPoint(
        attributes=_attributes(point.attributes),
        start_time_unix_nano=point.start_unix_ns,
        time_unix_nano=point.time_unix_ns,
        count=int(point.count),
        sum=float(point.sum),
        bucket_counts=[int(count) for count in point.bucket_counts],
        explicit_bounds=bounds,
        min=point.minimum,
        max=point.maximum,
        exemplars=_exemplars(point.exemplars),
    )


def _exponential(point: ExponentialPoint) -> pb.ExponentialHistogramDataPoint:
    buckets = pb.ExponentialHistogramDataPoint.Buckets(
        offset=point.offset, bucket_counts=[int(count) for count in point.bucket_counts]
    )
    return pb.ExponentialHistogramDataPoint(
        attributes=_attributes(point.attributes),
        start_time_unix_nano=point.start_unix_ns,
        time_unix_nano=point.time_unix_ns,
        count=int(point.count),
        sum=float(point.sum),
        scale=point.scale,
        zero_count=int(point.zero_count),
        positive=buckets,
        min=point.minimum,
        max=point.maximum,
        exemplars=_exemplars(point.exemplars),
    )


def _exemplars(exemplars: Sequence[Exemplar]) -> list[pb.Exemplar]:
    return [
        pb.Exemplar(time_unix_nano=e.time_unix_ns, as_double=e.value, trace_id=e.trace_id, span_id=e.span_id)
        for e in exemplars
    ]


def _attributes(attributes: Mapping[str, AttributeValue]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any_value(value)) for key, value in attributes.items()]


def _any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, bool):  # before int: a bool is one
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    message = AnyValue()
    message.array_value.values.extend(_any_value(item) for item in value)
    return message
