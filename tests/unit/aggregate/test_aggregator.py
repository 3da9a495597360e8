from __future__ import annotations

import bisect
import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker import semconv
from onlooker.aggregate.aggregator import AGGREGATED, AggregateOptions, Aggregator
from onlooker.aggregate.definitions import DEFINITIONS, DURATION_BOUNDS, SIZE_BOUNDS
from onlooker.aggregate.selection import Selection
from onlooker.aggregate.store import OVERFLOW_ATTRIBUTE, MetricStore
from onlooker.batches import OTHER_SERVICES, SKIP_METRICS, SpanKind, StatusCode, Values
from onlooker.snapshot import HistogramPoint, MetricKind
from support.request_batches import HTTP_DIMS, START_UNIX_NS, a_request, a_service, identities_of, requests

S = 1_000_000_000
MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = START_UNIX_NS

    def __call__(self) -> int:
        return self.now


class Bench:
    """An aggregator with two services and a clock that stands still."""

    def __init__(self, *services, **options):
        self.values = Values()
        self.clock = Clock()
        self.identities = identities_of(*(services or (a_service(1, "shop"), a_service(2, "web"))))
        self.aggregator = Aggregator(
            AggregateOptions(**{"features": frozenset({"application"}), **options}),
            self.identities,
            self.values,
            rng=np.random.default_rng(1),
            clock_unix_ns=self.clock,
        )

    def observe(self, rows, **more):
        return self.aggregator.observe(requests(self.values, rows, **more))

    def metrics(self):
        return {metric.name: metric for metric in self.aggregator.snapshot().metrics}


def points(metric):
    """Points by the attributes that tests vary."""
    return {tuple(sorted((k, v) for k, v in p.attributes.items())): p for p in metric.points}


def test_a_request_counts_in_duration_and_sizes():
    bench = Bench()
    bench.observe([a_request(path=b"/x", route="/x", name="GET /x", duration_ns=7 * MS, response_bytes=33)])
    metrics = bench.metrics()
    duration = metrics["http.server.request.duration"]
    assert (duration.unit, duration.kind, tuple(duration.bounds)) == ("s", MetricKind.HISTOGRAM, DURATION_BOUNDS)
    (point,) = duration.points
    assert point.attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.route": "/x",
        "server.address": "shop.example",
        "server.port": 8080,
    }
    assert (point.service_id, point.count, point.start_unix_ns) == (1, 1, START_UNIX_NS)
    assert point.sum == pytest.approx(0.007)
    assert list(point.bucket_counts) == [0, 0, 1] + [0] * 13
    (request,) = metrics["http.server.request.body.size"].points
    assert list(request.bucket_counts) == [1] + [0] * 10
    (response,) = metrics["http.server.response.body.size"].points
    assert (response.sum, list(response.bucket_counts)) == (33, [0, 0, 1] + [0] * 8)
    assert [p.service_id for p in metrics["target.info"].points] == [1]


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12 * S), st.integers(-1, 10_000), st.sampled_from(["/a", "/b", "/c"]), st.integers(1, 2)
        ),
        max_size=200,
    ),
    st.integers(1, 5),
)
def test_sums_are_what_a_plain_loop_says(rows, batches):
    bench = Bench()
    for part in range(batches):
        bench.observe(
            [
                a_request(duration_ns=d, response_bytes=b, route=r, name=f"GET {r}", service=s)
                for d, b, r, s in rows[part::batches]
            ]
        )
    expected = collections.defaultdict(lambda: [0, 0, [0] * 16, 0, [0] * 11])
    for d, b, r, s in rows:
        entry = expected[s, r]
        entry[0] += 1
        entry[1] += d
        entry[2][bisect.bisect_left(DURATION_BOUNDS, d / S)] += 1
        if b >= 0:
            entry[3] += b
            entry[4][bisect.bisect_left(SIZE_BOUNDS, b)] += 1
    metrics = bench.metrics()
    duration = metrics.get("http.server.request.duration")
    found = {(p.service_id, p.attributes["http.route"]): p for p in (duration.points if duration else ())}
    assert {key: (p.count, list(p.bucket_counts)) for key, p in found.items()} == {
        key: (e[0], e[2]) for key, e in expected.items()
    }
    for key, entry in expected.items():
        assert found[key].sum == pytest.approx(entry[1] / S)
    sizes = metrics.get("http.server.response.body.size")
    assert {
        (p.service_id, p.attributes["http.route"]): (p.sum, list(p.bucket_counts))
        for p in (sizes.points if sizes else ())
    } == {key: (e[3], e[4]) for key, e in expected.items() if sum(e[4])}


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 200 * MS), st.booleans(), st.booleans(), st.booleans()),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_a_row_of_some_weight_counts_as_that_many(rows):
    def told(weighted):
        bench = Bench()
        found, weights, skips = [], [], []
        for weight, duration, failed, stream, skip in rows:
            copies = 1 if weighted else weight
            row = a_request(
                path=b"/x", route="/x", name="GET /x", duration_ns=duration, stream=stream,
                status=StatusCode.ERROR if failed else StatusCode.UNSET,
            )  # fmt: skip
            found += [row] * copies
            weights += [weight] * copies
            skips += [SKIP_METRICS * skip] * copies
        batch = requests(bench.values, found)
        batch.skip = np.array(skips, np.uint8)
        if weighted:
            batch.weight = np.array(weights, np.int64)
        bench.aggregator.observe(batch)
        metrics = {
            name: sorted(
                (sorted(p.attributes.items()), p.count, p.sum, list(p.bucket_counts))
                for p in metric.points
                if isinstance(p, HistogramPoint)
            )
            for name, metric in bench.metrics().items()
        }
        counters = (bench.aggregator.uncounted, bench.aggregator.streams, batch.requests())
        return metrics, bench.aggregator.live_routes(60), counters

    (one, lines, counters), (other, expected, others) = told(True), told(False)
    assert counters == others
    assert one == other
    assert lines == expected


def test_snapshots_are_cumulative_and_keep_their_attribute_objects():
    bench = Bench()
    bench.observe([a_request(), a_request()])
    (first,) = bench.metrics()["http.server.request.duration"].points
    bench.clock.now += S
    bench.observe([a_request()])
    (second,) = bench.metrics()["http.server.request.duration"].points
    assert (first.count, second.count) == (2, 3)
    assert first.start_unix_ns == second.start_unix_ns
    assert first.attributes is second.attributes
    assert bench.metrics()["http.server.request.duration"].points[0].count == 3


def test_series_say_what_spans_share():
    bench = Bench()
    batch = bench.observe(
        [a_request(route="/x", name="GET /x"), a_request(route="/x", name="GET /x"), a_request(code=503, name="GET")]
    )
    one, two, three = batch.series.tolist()
    assert one == two != three
    series = bench.aggregator.table[three]
    assert (series.name, series.kind, series.status, series.service_id) == ("GET", SpanKind.SERVER, StatusCode.ERROR, 1)
    assert list(series.attributes) == [
        "http.request.method", "url.scheme", "http.response.status_code", "server.address", "server.port",
    ]  # fmt: skip
    assert series.attributes["http.response.status_code"] == 503
    assert bench.observe([a_request(route="/x", name="GET /x")]).series.tolist() == [one]


def test_streams_stay_out_of_latencies_and_are_counted():
    bench = Bench(features=frozenset({"application", "application_span_otel"}))
    bench.observe([a_request(stream=True, duration_ns=3600 * S, response_bytes=5), a_request(duration_ns=MS)])
    metrics = bench.metrics()
    assert [p.count for p in metrics["http.server.request.duration"].points] == [1]
    assert [p.value for p in metrics["traces.span.metrics.calls"].points] == [2]
    assert [p.sum for p in metrics["http.server.response.body.size"].points] == [105]
    assert bench.aggregator.streams == 1


def test_beyond_the_cap_one_overflow_series_a_service_takes_all():
    bench = Bench(limit=3)
    rows = [a_request(route=f"/r{i}", name=f"GET /r{i}", service=1 + i % 2) for i in range(40)]
    batch = bench.observe(rows)
    metrics = bench.metrics()
    duration = metrics["http.server.request.duration"]
    assert sum(p.count for p in duration.points) == 40
    over = [p for p in duration.points if p.attributes == {OVERFLOW_ATTRIBUTE: True}]
    assert sorted((p.service_id, p.count) for p in over) == [(1, 18), (2, 19)]
    assert bench.aggregator.overflowed == 37
    assert len(set(batch.series.tolist())) == 5
    assert all(bench.aggregator.table[i].overflow for i in set(batch.series[3:].tolist()))
    bench.observe(rows)
    assert bench.aggregator.overflowed == 74


def test_thousands_of_services_beyond_the_cap_share_one_overflow_series():
    services = [a_service(i, f"job-{i}") for i in range(1, 1001)]
    muted = dataclasses.replace(a_service(1001, "muted"), exports=frozenset({"traces"}))
    bench = Bench(*services, muted, limit=64, features=frozenset({"application", "application_span_otel"}))
    bench.observe([a_request(route="/r", name="GET /r", service=1 + i % 1001) for i in range(2002)])
    metrics = bench.metrics()
    for name in ("http.server.request.duration", "traces.span.metrics.duration"):
        found = metrics[name].points
        assert len(found) == 64 + 16 + 1
        assert sum(p.count for p in found) == 2000, "all but those of the service without metrics"
        (shared,) = (p for p in found if p.service_id == OTHER_SERVICES.id)
        assert shared.count == 2 * (1000 - 80)
    snapshot = bench.aggregator.snapshot()
    assert snapshot.services[OTHER_SERVICES.id].name == "other_services"
    assert len(list(bench.aggregator.table)) <= 64 + 16 + 2
    assert {line.service for line in bench.aggregator.live_services()} >= {"job-1", "other_services"}


def test_a_metric_with_too_many_services_has_one_overflow_series_for_the_rest():
    store = MetricStore(DEFINITIONS[0], (), 1, 64, OTHER_SERVICES.id)
    rows = [store.row(service, {"a": service}, 1) for service in range(1, 1001)]
    assert len(store) == 64 + 16 + 1
    assert len(set(rows)) == 81
    assert [p.service_id for p in store.rows if p is not None][-1] == OTHER_SERVICES.id
    assert store.row(1, {"a": 1}, 1) == rows[0]
    assert store.row(900, {"b": 1}, 1) == rows[-1]


def test_idle_series_expire_and_their_ids_come_back_with_another_generation():
    bench = Bench(ttl_s=60.0)
    old = bench.observe([a_request(route="/old", name="GET /old")]).series[0]
    first_life = bench.aggregator.table[old]
    bench.metrics()
    for _ in range(12):  # the other one stays busy
        bench.clock.now += 10 * S
        bench.observe([a_request(route="/busy", name="GET /busy")])
        routes = {p.attributes["http.route"] for p in bench.metrics()["http.server.request.duration"].points}
    assert routes == {"/busy"}
    with pytest.raises(KeyError):
        bench.aggregator.table[old]
    again = bench.observe([a_request(route="/old", name="GET /old")]).series[0]
    assert again == old
    assert bench.aggregator.table[again].generation > first_life.generation
    (point,) = [
        p for p in bench.metrics()["http.server.request.duration"].points if p.attributes["http.route"] == "/old"
    ]
    assert (point.count, point.start_unix_ns) == (1, bench.clock.now)


def test_a_retired_id_can_still_be_read_until_the_next_sweep():
    bench = Bench(ttl_s=60.0)
    old = bench.observe([a_request(route="/old", name="GET /old")]).series[0]
    bench.metrics()
    bench.clock.now += 61 * S
    bench.metrics()
    assert bench.aggregator.table[old].name == "GET /old"
    new = bench.observe([a_request(route="/new", name="GET /new")]).series[0]
    assert new != old


def test_the_cap_has_room_again_after_expiry():
    bench = Bench(ttl_s=60.0, limit=1)
    bench.observe([a_request(route="/a", name="GET /a"), a_request(route="/b", name="GET /b")])
    bench.metrics()
    bench.clock.now += 61 * S
    bench.metrics()
    bench.observe([a_request(route="/b", name="GET /b")])
    assert {p.attributes.get("http.route") for p in bench.metrics()["http.server.request.duration"].points} == {"/b"}


def test_clients_count_in_client_metrics():
    bench = Bench()
    bench.observe([a_request(kind=SpanKind.CLIENT, code=404, status=StatusCode.ERROR)])
    assert "http.client.request.duration" in bench.metrics()
    assert "http.server.request.duration" not in bench.metrics()


@pytest.mark.parametrize(
    ("protocol", "kind", "dims", "metric"),
    [
        (3, SpanKind.CLIENT, {"db.system.name": "mysql", "db.operation.name": "GET"}, "db.client.operation.duration"),
        (3, SpanKind.SERVER, {"db.system.name": "postgresql"}, "db.server.operation.duration"),
        (2, SpanKind.SERVER, {"rpc.system.name": "grpc", "rpc.method": "/a.B/C"}, "rpc.server.call.duration"),
        (2, SpanKind.CLIENT, {"rpc.system.name": "grpc"}, "rpc.client.call.duration"),
        (9, SpanKind.CLIENT, {}, "dns.lookup.duration"),
        (11, SpanKind.PRODUCER, {"messaging.system": "kafka"}, "messaging.client.operation.duration"),
        (11, SpanKind.CONSUMER, {"messaging.system": "kafka"}, "messaging.process.duration"),
        (1, SpanKind.CLIENT, {"gen_ai.operation.name": "chat"}, "gen_ai.client.operation.duration"),
    ],
)  # fmt: skip
def test_other_protocols_have_their_metrics(protocol, kind, dims, metric):
    bench = Bench()
    names = (*HTTP_DIMS, *dims)
    bench.observe([a_request(protocol=protocol, kind=kind, dims=dims)], dim_names=names)
    metrics = bench.metrics()
    assert set(metrics) == {metric, "target.info"}
    (point,) = metrics[metric].points
    assert point.count == 1
    assert {k: v for k, v in point.attributes.items() if k in dims} == dims


def test_tokens_of_generative_ai():
    bench = Bench()
    dims = {semconv.GEN_AI_OPERATION_NAME: "chat", semconv.GEN_AI_REQUEST_MODEL: "m"}
    batch = requests(bench.values, [a_request(kind=SpanKind.CLIENT, dims=dims)] * 2, dim_names=(*HTTP_DIMS, *dims))
    batch.varying[semconv.GEN_AI_USAGE_INPUT_TOKENS] = np.array([5, -1], np.int64)
    batch.varying[semconv.GEN_AI_USAGE_OUTPUT_TOKENS] = np.array([7, 8], np.int64)
    bench.aggregator.observe(batch)
    usage = {p.attributes["gen_ai.token.type"]: p for p in bench.metrics()["gen_ai.client.token.usage"].points}
    assert {kind: (p.count, p.sum) for kind, p in usage.items()} == {"input": (1, 5), "output": (2, 15)}


def test_instrumentations_and_features_switch_metrics_off():
    assert Bench(instrumentations=frozenset({"sql"})).aggregator is not None
    bench = Bench(instrumentations=frozenset({"sql"}))
    bench.observe([a_request()])
    assert set(bench.metrics()) == set()
    bench = Bench(
        a_service(1, features=frozenset({"application_span"})),
        a_service(2, exports=frozenset({"traces"})),
        features=frozenset({"application"}),
    )
    bench.observe([a_request(name="GET"), a_request(service=2)])
    assert set(bench.metrics()) == {
        "traces_spanmetrics_latency", "traces_spanmetrics_calls_total", "traces.target.info", "target.info",
    }  # fmt: skip


def test_ignored_rows_count_nowhere_but_have_a_series():
    bench = Bench()
    batch = requests(bench.values, [a_request(), a_request(route="/health")])
    batch.skip = np.array([0, SKIP_METRICS], np.uint8)
    bench.aggregator.observe(batch)
    assert (batch.series >= 0).all()
    assert [p.attributes.get("http.route") for p in bench.metrics()["http.server.request.duration"].points] == [None]
    assert bench.aggregator.uncounted == 1


def test_selected_attributes():
    bench = Bench(
        select={"http.server.request.duration": Selection(include=("url.path", "http.request.method"))},
    )
    batch = bench.observe([a_request(path=b"/a"), a_request(path=b"/b"), a_request(path=b"/a", code=500)])
    metrics = bench.metrics()
    found = {p.attributes["url.path"]: p.count for p in metrics["http.server.request.duration"].points}
    assert found == {"/a": 2, "/b": 1}
    assert all(
        set(p.attributes) == {"url.path", "http.request.method"} for p in metrics["http.server.request.duration"].points
    )
    assert "url.path" not in metrics["http.server.response.body.size"].points[0].attributes
    # Spans carry their path themselves.
    assert "url.path" not in bench.aggregator.table[int(batch.series[0])].attributes


def test_span_metrics_and_their_limit_of_names():
    bench = Bench(features=frozenset({"application_span"}), span_names_limit=3)
    bench.observe([a_request(name=f"GET /{i}", code=500 if i == 0 else 200) for i in range(3)])
    calls = bench.metrics()["traces_spanmetrics_calls_total"]
    assert {(p.attributes["span.name"], p.attributes["status.code"], p.value) for p in calls.points} == {
        ("GET /0", "STATUS_CODE_ERROR", 1),
        ("GET /1", "STATUS_CODE_UNSET", 1),
        ("GET /2", "STATUS_CODE_UNSET", 1),
    }
    assert calls.points[0].attributes["span.kind"] == "SPAN_KIND_SERVER"
    assert calls.points[0].attributes["source"] == "onlooker"
    bench.observe([a_request(name=f"GET /{i}") for i in range(6)])
    calls = bench.metrics()["traces_spanmetrics_calls_total"]
    assert sum(p.value for p in calls.points) == 9
    by_name = collections.Counter()
    for p in calls.points:
        by_name[p.attributes["span.name"]] += p.value
    assert by_name[AGGREGATED] >= 3
    bench.observe([a_request(name=f"GET /{i}") for i in range(6)])
    later = collections.Counter()
    for p in bench.metrics()["traces_spanmetrics_calls_total"].points:
        later[p.attributes["span.name"]] += p.value
    assert later[AGGREGATED] == by_name[AGGREGATED] + 6


def test_exemplars_are_the_latest_kept_span_of_each_bucket():
    bench = Bench(exemplars=True)
    batch = bench.observe([a_request(duration_ns=d * MS) for d in (7, 8, 300, 9)])
    batch.keep = np.array([True, True, True, False])
    bench.aggregator.observe_kept(batch)
    (point,) = bench.metrics()["http.server.request.duration"].points
    assert {(e.value, e.trace_id, e.span_id) for e in point.exemplars} == {
        (0.008, batch.trace_id[1].tobytes(), batch.span_id[1].tobytes()),
        (0.3, batch.trace_id[2].tobytes(), batch.span_id[2].tobytes()),
    }
    (point,) = bench.metrics()["http.server.request.duration"].points
    assert len(point.exemplars) == 2


def test_without_exemplars_none_are_kept():
    bench = Bench()
    batch = bench.observe([a_request()])
    batch.keep = np.array([True])
    bench.aggregator.observe_kept(batch)
    assert bench.metrics()["http.server.request.duration"].points[0].exemplars == ()


def test_host_info():
    bench = Bench(features=frozenset({"application_host"}), host_id="h-1")
    info = bench.metrics()["traces.host.info"]
    assert [(p.service_id, p.attributes, p.value) for p in info.points] == [(-1, {"grafana_host_id": "h-1"}, 1)]


def test_an_empty_batch_and_a_service_nobody_knows():
    bench = Bench()
    assert len(bench.observe([]).series) == 0
    assert bench.observe([a_request(service=77)]).series.tolist() == [0]
    assert bench.metrics() == {}


def test_services_of_a_snapshot_outlive_their_identity():
    bench = Bench()
    bench.observe([a_request()])
    bench.identities.services = {}
    snapshot = bench.aggregator.snapshot()
    assert snapshot.services[1].name == "shop"


def test_live_lines():
    bench = Bench()
    bench.observe(
        [
            a_request(name="GET /a", duration_ns=10 * MS),
            a_request(name="GET /b", code=500),
            a_request(name="GET /a", service=2),
        ]
    )
    bench.clock.now += S
    services = {line.service: line for line in bench.aggregator.live_services()}
    assert services["shop"].window.requests == 2
    assert services["shop"].window.errors == 0.5
    routes = {(line.service, line.name): line.window.requests for line in bench.aggregator.live_routes()}
    assert routes == {("shop", "GET /a"): 1, ("shop", "GET /b"): 1, ("web", "GET /a"): 1}


def test_ten_thousand_names_have_few_live_rows_and_lose_no_request():
    bench = Bench()
    for first in range(0, 3000, 500):
        bench.observe([a_request(name=f"GET /{i}", route=f"/{i}") for i in range(first, first + 500)])
    bench.clock.now += S
    (line,) = bench.aggregator.live_services()
    assert line.window.requests == 3000
    assert len(bench.aggregator.live_routes()) <= 600


def test_every_histogram_adds_up():
    bench = Bench(features=frozenset({"*"}))
    bench.observe([a_request(duration_ns=i * 100 * MS, name="GET") for i in range(120)])
    histograms = [m for m in bench.aggregator.snapshot().metrics if m.kind is MetricKind.HISTOGRAM]
    assert len(histograms) >= 5
    for metric in histograms:
        for point in metric.points:
            assert isinstance(point, HistogramPoint)
            assert sum(point.bucket_counts) == point.count == 120
            assert len(point.bucket_counts) == len(metric.bounds) + 1
