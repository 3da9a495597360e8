from __future__ import annotations

import asyncio
import gzip
from types import MappingProxyType

import pytest
from aiohttp import ClientSession, web
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from onlooker.export.prometheus import (
    PrometheusOptions,
    PrometheusRenderer,
    accepts_openmetrics,
    handler,
    label_name,
    label_value,
    metric_name,
)
from onlooker.snapshot import (
    HOST_SERVICE_ID,
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    MetricKind,
    MetricSnapshot,
    NumberPoint,
)
from support.request_batches import a_service

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
T = 1_700_000_000_000_000_000
BOUNDS = (0.0, 0.005, 1.0)
SERVICES = (a_service(1, "shop", namespace="prod"), a_service(2, "web"))


def a_histogram(attributes=None, *, service_id=1, counts=(0, 3, 1, 2), total=4.25, exemplars=()):
    return HistogramPoint(service_id, attributes or {}, T, T, sum(counts), total, counts, exemplars=exemplars)


def a_duration(*points, name="http.server.request.duration"):
    return Metric(name, "s", "Duration of requests.", MetricKind.HISTOGRAM, points, BOUNDS)


def a_counter(*points, name="onlooker_lost_requests"):
    return Metric(name, "", "Lost.", MetricKind.SUM, points)


def a_number(value, attributes=None, service_id=HOST_SERVICE_ID, exemplars=()):
    return NumberPoint(service_id, attributes or {}, T, T, value, exemplars)


def a_snapshot(*metrics, services=SERVICES):
    return MetricSnapshot(T, metrics, {service.id: service for service in services})


def scrape(*snapshots, openmetrics=False, options=None):
    """Every sample of a scrape: (name, labels) to value, as prometheus_client reads it."""
    body, content_type = PrometheusRenderer(options).render(snapshots, OPENMETRICS if openmetrics else None)
    parse = openmetrics_parser.text_string_to_metric_families if openmetrics else text_string_to_metric_families
    samples = {}
    for family in parse(body.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} stands twice"
            samples[key] = sample.value
    assert content_type.startswith("application/openmetrics-text" if openmetrics else "text/plain; version=0.0.4")
    return samples


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_histogram(openmetrics):
    samples = scrape(a_snapshot(a_duration(a_histogram({"http.route": "/x"}))), openmetrics=openmetrics)
    labels = (
        ("http_route", "/x"),
        ("instance", "host:1"),
        ("job", "prod/shop"),
        ("service_name", "shop"),
        ("service_namespace", "prod"),
    )
    name = "http_server_request_duration_seconds"
    buckets = {dict(key[1])["le"]: value for key, value in samples.items() if key[0] == f"{name}_bucket"}
    assert buckets == {"0.0": 0, "0.005": 3, "1.0": 4, "+Inf": 6}
    assert samples[f"{name}_sum", labels] == 4.25
    assert samples[f"{name}_count", labels] == 6


@pytest.mark.parametrize("openmetrics", [False, True])
def test_counters_and_gauges(openmetrics):
    samples = scrape(
        a_snapshot(
            a_counter(a_number(3, {"reason": "ring_full"}), a_number(0, {"reason": "other"})),
            Metric("onlooker_memory", "By", "Memory.", MetricKind.GAUGE, [a_number(1.5)]),
            Metric("onlooker_queue", "1", "Filled.", MetricKind.GAUGE, [a_number(0.25)]),
            Metric("traces.span.metrics.calls", "", "Spans.", MetricKind.SUM, [a_number(2, service_id=2)]),
        ),
        openmetrics=openmetrics,
    )
    assert samples == {
        ("onlooker_lost_requests_total", (("reason", "ring_full"),)): 3,
        ("onlooker_lost_requests_total", (("reason", "other"),)): 0,
        ("onlooker_memory_bytes", ()): 1.5,
        ("onlooker_queue_ratio", ()): 0.25,
        (
            "traces_span_metrics_calls_total",
            (("instance", "host:2"), ("job", "web"), ("service_name", "web"), ("telemetry_sdk_language", "python")),
        ): 2,
    }


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("http.server.request.duration", "s", MetricKind.HISTOGRAM, "http_server_request_duration_seconds"),
        ("http.server.request.body.size", "By", MetricKind.HISTOGRAM, "http_server_request_body_size_bytes"),
        ("gen_ai.client.token.usage", "{token}", MetricKind.HISTOGRAM, "gen_ai_client_token_usage"),
        ("traces_spanmetrics_calls_total", "", MetricKind.SUM, "traces_spanmetrics_calls"),
        ("process.cpu.utilization", "1", MetricKind.GAUGE, "process_cpu_utilization_ratio"),
        ("go.config.gogc", "%", MetricKind.GAUGE, "go_config_gogc_percent"),
        ("target.info", "", MetricKind.GAUGE, "target_info"),
        ("onlooker_rss_bytes", "By", MetricKind.GAUGE, "onlooker_rss_bytes"),
        ("a..b  c", "", MetricKind.GAUGE, "a_b_c"),
        ("1st", "", MetricKind.GAUGE, "_1st"),
    ],
)
def test_metric_names(name, unit, kind, expected):
    assert metric_name(name, unit, kind) == expected


@pytest.mark.parametrize(
    ("key", "label"), [("http.route", "http_route"), ("1a", "key_1a"), ("le", "key_le"), ("__x", "key__x"), ("", "_")]
)
def test_label_names(key, label):
    assert label_name(key) == label


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (3, "3"), (1.5, "1.5"), (("a", "b"), '[\\"a\\", \\"b\\"]'), ("a\\b", "a\\\\b"), ("\r", "\ufffd")],
)
def test_label_values(value, text):
    assert label_value(value) == text


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.one_of(st.text(max_size=12), st.booleans(), st.integers()), max_size=4
    ),
    st.booleans(),
)
def test_no_attribute_breaks_a_scrape(attributes, openmetrics):
    samples = scrape(a_snapshot(a_duration(a_histogram(attributes)), a_counter(a_number(1))), openmetrics=openmetrics)
    counts = [value for (name, _), value in samples.items() if name == "http_server_request_duration_seconds_count"]
    assert counts == [6]
    assert samples["onlooker_lost_requests_total", ()] == 1


def test_hostile_values_come_back_as_they_are():
    evil = 'a"} 1\nfake_metric{x="y\\'
    samples = scrape(a_snapshot(a_counter(a_number(1, {"route": evil}))))
    assert list(samples) == [("onlooker_lost_requests_total", (("route", 'a"} 1\nfake_metric{x="y\\'),))]


def test_two_services_with_the_same_labels_are_added_up():
    twins = (a_service(1, "shop", instance_id="i"), a_service(2, "shop", instance_id="i"))
    samples = scrape(
        a_snapshot(
            a_duration(a_histogram(), a_histogram(service_id=2)),
            a_counter(a_number(1, service_id=1), a_number(2, service_id=2), name="traces.span.metrics.calls"),
            services=twins,
        )
    )
    assert {v for (n, _), v in samples.items() if n.endswith("_count")} == {12}
    assert {v for (n, _), v in samples.items() if n.endswith("_total")} == {3}


def test_service_graph_points_of_several_instances_are_one_edge():
    edge = {"client": "a", "server": "b"}
    samples = scrape(
        a_snapshot(
            a_counter(a_number(1, edge, 1), a_number(2, dict(edge), 2), name="traces_service_graph_request_total")
        )
    )
    assert samples == {("traces_service_graph_request_total", (("client", "a"), ("server", "b"))): 3}


def test_one_family_of_several_snapshots_stands_together():
    body, _ = PrometheusRenderer().render(
        [
            a_snapshot(a_counter(a_number(1, {"a": "1"})), a_duration(a_histogram())),
            a_snapshot(a_counter(a_number(2, {"a": "2"}))),
        ]
    )
    assert body.decode().count("# TYPE onlooker_lost_requests_total") == 1


def test_target_info_has_the_resource():
    service = a_service(1, "shop", resource=(("host.name", "box"), ("process.pid", 7)))
    info = Metric(
        "target.info", "", "Attributes of the service.", MetricKind.GAUGE, [a_number(1, dict(service.resource), 1)]
    )
    ((name, labels),) = scrape(a_snapshot(info, services=(service,)))
    assert name == "target_info"
    assert dict(labels) == {
        "host_name": "box",
        "instance": "host:1",
        "job": "shop",
        "process_pid": "7",
        "service_instance_id": "host:1",
        "service_name": "shop",
    }


def test_extra_resource_attributes():
    service = a_service(1, "shop", resource=(("host.name", "box"), ("k8s.pod.name", "p-1")))
    options = PrometheusOptions(extra_resource_attributes=("host.name",))
    samples = scrape(
        a_snapshot(
            a_duration(a_histogram()),
            a_counter(a_number(1, service_id=1), name="traces.span.metrics.calls"),
            services=(service,),
        ),
        options=options,
    )
    labels = {name: dict(found) for name, found in samples}
    assert labels["http_server_request_duration_seconds_count"]["host_name"] == "box"
    assert labels["http_server_request_duration_seconds_count"]["k8s_pod_name"] == "p-1"
    assert "host_name" not in labels["traces_span_metrics_calls_total"]


def test_exemplars_stand_at_their_bucket_in_openmetrics_only():
    exemplars = (Exemplar(0.004, T, b"\x01" * 16, b"\x02" * 8), Exemplar(2.5, T + 1, b"\x03" * 16, b"\x04" * 8))
    snapshot = a_snapshot(a_duration(a_histogram(exemplars=exemplars)))
    body, _ = PrometheusRenderer().render([snapshot], OPENMETRICS)
    found = {
        sample.labels["le"]: (sample.exemplar.labels, sample.exemplar.value, float(sample.exemplar.timestamp))
        for family in openmetrics_parser.text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.exemplar
    }
    assert found == {
        "0.005": ({"trace_id": "01" * 16, "span_id": "02" * 8}, 0.004, 1_700_000_000.0),
        "+Inf": ({"trace_id": "03" * 16, "span_id": "04" * 8}, 2.5, 1_700_000_000.0),
    }
    assert b"trace_id" not in PrometheusRenderer().render([snapshot])[0]


def test_exponential_histograms_become_ordinary_ones():
    point = ExponentialPoint(HOST_SERVICE_ID, {}, T, T, 5, 9.0, 0, 1, 0, (2, 0, 2))
    metric = Metric("x", "", "X.", MetricKind.EXPONENTIAL_HISTOGRAM, [point])
    samples = scrape(a_snapshot(metric))
    assert {dict(k[1])["le"]: v for k, v in samples.items() if k[0] == "x_bucket"} == {
        "0.0": 1, "2.0": 3, "8.0": 5, "+Inf": 5,
    }  # fmt: skip


def test_nothing_at_all():
    assert scrape() == {}
    assert scrape(a_snapshot(a_counter()), openmetrics=True) == {}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (OPENMETRICS, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x;;,;=", False),
    ],
)
def test_negotiation(accept, wanted):
    assert accepts_openmetrics(accept) is wanted


def test_label_texts_are_kept_between_scrapes_and_not_beyond():
    renderer = PrometheusRenderer()
    attributes = MappingProxyType({"a": "1"})
    first = a_snapshot(a_counter(a_number(1, attributes)))
    renderer.render([first])
    kept = next(iter(renderer._labels.values()))
    renderer.render([first])
    assert next(iter(renderer._labels.values())) is kept
    renderer.render([a_snapshot()])
    assert renderer._labels == {}


def test_large_scrapes_come_in_pieces():
    points = [a_histogram({"http.route": f"/{i}"}) for i in range(2000)]
    chunks = list(PrometheusRenderer().chunks([a_snapshot(a_duration(*points))], openmetrics=False))
    assert len(chunks) > 5
    assert max(len(chunk) for chunk in chunks) < 2 * 65_536
    families = list(text_string_to_metric_families(b"".join(chunks).decode()))
    assert sum(sample.name.endswith("_count") for sample in families[0].samples) == 2000


async def _fetch(app, **headers):
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with (
            ClientSession(auto_decompress=False) as session,
            session.get(f"http://127.0.0.1:{port}/metrics", headers=headers) as response,
        ):
            return response.status, dict(response.headers), await response.read()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_endpoint_answers_a_real_client(encoding):
    sizes: list[int] = []
    app = web.Application()
    app.router.add_get("/metrics", handler(lambda: [a_snapshot(a_counter(a_number(1)))], on_scrape=sizes.append))
    status, headers, body = asyncio.run(_fetch(app, **{"Accept-Encoding": encoding, "Accept": OPENMETRICS}))
    if encoding == "gzip":
        assert headers["Content-Encoding"] == "gzip"
        body = gzip.decompress(body)
    assert status == 200
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    (family,) = openmetrics_parser.text_string_to_metric_families(body.decode())
    assert family.samples[0].value == 1
    assert sizes == [len(body)]
