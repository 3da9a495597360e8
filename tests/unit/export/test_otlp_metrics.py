"""Metric snapshots as OTLP, read back by the official protobuf classes and by a real receiver."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from onlooker import semconv
from onlooker.export.endpoint import Connection, Signal, resolve_endpoint
from onlooker.export.exporter import MetricExporter, make_transport
from onlooker.export.otlp_metrics import encode_metrics
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
from support.otlp_receiver import OtlpReceiver
from support.span_batches import a_service

START, NOW = 1_700_000_000_000_000_000, 1_700_000_060_000_000_000
SERVICES = {1: a_service(1), 2: a_service(2, "stock"), 3: a_service(3, "quiet", exports=frozenset({"traces"}))}
EXEMPLAR = Exemplar(0.25, NOW - 5, b"\xaa" * 16, b"\xbb" * 8)


def a_histogram(*points: Point) -> Metric:
    name = semconv.METRIC_HTTP_SERVER_REQUEST_DURATION
    return Metric(name, "s", "Duration.", MetricKind.HISTOGRAM, points, bounds=(0.1, 1.0))


def a_point(service_id: int = 1, **attributes: Any) -> HistogramPoint:
    return HistogramPoint(service_id, attributes, START, NOW, 6, 3.5, [1, 2, 3], 0.05, 2.0, (EXEMPLAR,))


def a_number(service_id: int = 1, value: float = 3, **attributes: Any) -> NumberPoint:
    return NumberPoint(service_id, attributes, START, NOW, value)


def encode(*metrics: Metric, **changes: int) -> list[Chunk]:
    return encode_metrics(MetricSnapshot(NOW, metrics, SERVICES), version="1.2.3", **changes)


def decode(chunks: list[Chunk]) -> list[Any]:
    return [r for chunk in chunks for r in ExportMetricsServiceRequest.FromString(chunk.data).resource_metrics]


def only(chunks: list[Chunk]) -> pb.Metric:
    (resource,) = decode(chunks)
    (scope,) = resource.scope_metrics
    (metric,) = scope.metrics
    assert isinstance(metric, pb.Metric)
    return metric


def test_an_explicit_histogram() -> None:
    metric = only(encode(a_histogram(a_point(**{"http.request.method": "GET", "http.response.status_code": 200}))))
    assert (metric.name, metric.unit, metric.description) == ("http.server.request.duration", "s", "Duration.")
    assert metric.histogram.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = metric.histogram.data_points
    assert (point.count, point.sum, point.min, point.max) == (6, 3.5, 0.05, 2.0)
    assert (list(point.bucket_counts), list(point.explicit_bounds)) == ([1, 2, 3], [0.1, 1.0])
    assert (point.start_time_unix_nano, point.time_unix_nano) == (START, NOW)
    assert [(a.key, a.value.WhichOneof("value")) for a in point.attributes] == [
        ("http.request.method", "string_value"),
        ("http.response.status_code", "int_value"),
    ]
    (exemplar,) = point.exemplars
    assert (exemplar.as_double, exemplar.trace_id, exemplar.span_id) == (0.25, b"\xaa" * 16, b"\xbb" * 8)
    assert exemplar.time_unix_nano == NOW - 5


def test_untracked_extremes_are_absent() -> None:
    metric = only(encode(a_histogram(HistogramPoint(1, {}, START, NOW, 0, 0.0, [0, 0, 0]))))
    assert not metric.histogram.data_points[0].HasField("min")
    assert not metric.histogram.data_points[0].HasField("max")


def test_an_exponential_histogram() -> None:
    point = ExponentialPoint(1, {}, START, NOW, 10, 12.5, 3, 2, -7, [1, 0, 7], 0.1, 9.0, (EXEMPLAR,))
    metric = only(encode(Metric("x", "s", "", MetricKind.EXPONENTIAL_HISTOGRAM, [point])))
    assert metric.exponential_histogram.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    (found,) = metric.exponential_histogram.data_points
    assert (found.count, found.sum, found.scale, found.zero_count) == (10, 12.5, 3, 2)
    assert (found.positive.offset, list(found.positive.bucket_counts)) == (-7, [1, 0, 7])
    assert not found.negative.bucket_counts
    assert len(found.exemplars) == 1


def test_sums_and_gauges() -> None:
    counter = only(encode(Metric("calls", "{call}", "", MetricKind.SUM, [a_number(value=3)])))
    assert counter.sum.is_monotonic
    assert counter.sum.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert counter.sum.data_points[0].as_int == 3
    memory = only(encode(Metric("memory", "By", "", MetricKind.SUM, [a_number(value=2.5)], monotonic=False)))
    assert not memory.sum.is_monotonic
    assert memory.sum.data_points[0].as_double == 2.5
    gauge = only(encode(Metric("load", "1", "", MetricKind.GAUGE, [a_number(value=0.5)])))
    assert gauge.gauge.data_points[0].as_double == 0.5


def test_one_resource_for_each_service() -> None:
    calls = Metric(
        "calls", "{call}", "", MetricKind.SUM, [a_number(2), a_number(1), a_number(HOST_SERVICE_ID), a_number(9)]
    )
    resources = decode(encode(a_histogram(a_point(1), a_point(2)), calls))
    found = {
        r.resource.attributes[0].value.string_value: [m.name for s in r.scope_metrics for m in s.metrics]
        for r in resources
    }
    both = ["http.server.request.duration", "calls"]
    assert found == {"shop": both, "stock": both, "onlooker": ["calls"], "unknown_service": ["calls"]}
    assert len(resources) == 4
    for resource in resources:
        assert resource.schema_url == semconv.SCHEMA_URL
        assert (resource.scope_metrics[0].scope.name, resource.scope_metrics[0].scope.version) == ("onlooker", "1.2.3")


def test_a_service_that_exports_no_metrics_is_left_out() -> None:
    assert encode(a_histogram(a_point(3))) == []


def test_nothing_gives_no_request() -> None:
    assert encode() == []
    assert encode(a_histogram()) == []


def test_requests_are_cut_by_bytes_and_lose_no_point() -> None:
    points = [a_point(1 + i % 2, **{"http.route": f"/{i}"}) for i in range(5000)]
    chunks = encode(a_histogram(*points), max_bytes=300_000)
    assert len(chunks) > 2
    assert sum(chunk.items for chunk in chunks) == 5000
    assert max(len(chunk.data) for chunk in chunks) < 700_000  # a message of 2,000 points is not cut further
    routes = [
        a.value.string_value
        for r in decode(chunks)
        for s in r.scope_metrics
        for m in s.metrics
        for p in m.histogram.data_points
        for a in p.attributes
    ]
    assert sorted(routes) == sorted(f"/{i}" for i in range(5000))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf", "http/json"])
def test_metrics_arrive(protocol: str) -> None:
    with OtlpReceiver() as receiver:
        endpoint = resolve_endpoint(Signal.METRICS, common=receiver.endpoint(protocol), protocol=protocol)
        assert endpoint is not None
        exporter = MetricExporter("metrics", make_transport(Connection(endpoint), version="1"), version="1")
        exporter.start()
        calls = Metric("calls", "{call}", "", MetricKind.SUM, [a_number(2, 7)])
        exporter.export(MetricSnapshot(NOW, [a_histogram(a_point(1, **{"http.route": "/a"})), calls], SERVICES))
        assert exporter.drain(10), exporter.stats().last_error
        exporter.stop()
        histogram, counter = sorted(receiver.metrics(), key=lambda m: m["kind"])
        assert histogram["exemplars"] == [(0.25, "aa" * 16, "bb" * 8)]
        assert (histogram["service"], histogram["attributes"], histogram["buckets"]) == (
            "shop",
            {"http.route": "/a"},
            [1, 2, 3],
        )
        assert (counter["service"], counter["value"]) == ("stock", 7)
        assert exporter.stats().sent == 2
