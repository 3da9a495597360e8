from __future__ import annotations

import numpy as np
import pytest

from onlooker import semconv
from onlooker.batches import SKIP_METRICS, SKIP_TRACES, SpanKind, Values
from onlooker.enrich.routes import RouteOptions, Routes
from support.request_batches import a_request, a_service, requests


def routes_of(batch, values):
    at = batch.dim_names.index(semconv.HTTP_ROUTE)
    return [values[i] for i in batch.dims[:, at].tolist()]


def names_of(batch, values):
    return [values[i] for i in batch.name.tolist()]


def apply(rows, services=None, *, values=None, **options):
    values = values or Values()
    stage = Routes(RouteOptions(**options), values, rng=np.random.default_rng(1))
    return stage.apply(requests(values, rows), services or {1: a_service(1)}), values, stage


@pytest.mark.parametrize(
    ("unmatched", "route"),
    [
        ("unset", None),
        ("path", "/users/42"),
        ("wildcard", "/**"),
        ("heuristic", "/users/*"),
        ("low-cardinality", "/users/*"),
    ],
)
def test_unmatched_modes(unmatched, route):
    batch, values, _ = apply([a_request(path=b"/users/42")], unmatched=unmatched)
    assert routes_of(batch, values) == [route]
    assert names_of(batch, values) == ["GET" if route is None else f"GET {route}"]


def test_patterns_come_before_the_heuristic_and_global_ones_before_those_of_the_service():
    services = {
        1: a_service(1, routes_incoming=("/in/{x}", "/both/{own}"), routes_outgoing=("/out/{x}",)),
        2: a_service(2),
    }
    batch, values, _ = apply(
        [
            a_request(path=b"/both/a"),
            a_request(path=b"/in/word"),
            a_request(path=b"/out/word", kind=SpanKind.CLIENT),
            a_request(path=b"/out/word"),
            a_request(path=b"/in/word", service=2),
        ],
        services,
        patterns=("/both/{shared}",),
    )
    assert routes_of(batch, values) == ["/both/{shared}", "/in/{x}", "/out/{x}", "/out/word", "/in/word"]


def test_unknown_methods_are_called_http():
    batch, values, _ = apply([a_request(path=b"/x", method="_OTHER")])
    assert names_of(batch, values) == ["HTTP /x"]


def test_a_route_and_a_name_that_are_there_stay():
    batch, values, _ = apply(
        [a_request(path=b"/x/1", route="/x/{id}"), a_request(path=b"/q", name="query Products"), a_request(name="GET")]
    )
    assert routes_of(batch, values) == ["/x/{id}", "/q", "/"]
    assert names_of(batch, values) == ["GET /x/{id}", "query Products", "GET /"]


def test_harvested_routes_are_asked_for_server_requests():
    values = Values()
    stage = Routes(RouteOptions(), values, rng=np.random.default_rng(1))
    stage.use_harvested(lambda service, path: f"/harvested/{{{service}}}" if path == "/h/1" else None)
    rows = [a_request(path=b"/h/1"), a_request(path=b"/h/1", kind=SpanKind.CLIENT), a_request(path=b"/other")]
    batch = stage.apply(requests(values, rows), {1: a_service(1)})
    assert routes_of(batch, values) == ["/harvested/{1}", "/h/*", "/other"]


def test_ignored_rows_are_dropped_and_counted():
    batch, values, stage = apply(
        [a_request(path=b"/health"), a_request(path=b"/x"), a_request(path=b"/health")], ignored_patterns=("/health",)
    )
    assert routes_of(batch, values) == ["/x"]
    assert stage.ignored == 2


@pytest.mark.parametrize(("mode", "bits"), [("metrics", SKIP_METRICS), ("traces", SKIP_TRACES)])
def test_rows_ignored_for_one_signal_are_marked(mode, bits):
    batch, values, stage = apply(
        [a_request(path=b"/health"), a_request(path=b"/x")], ignored_patterns=("/health",), ignore_mode=mode
    )
    assert batch.skip.tolist() == [bits, 0]
    assert routes_of(batch, values) == ["/health", "/x"]
    assert stage.ignored == 0


def test_rows_of_other_protocols_are_left_alone():
    values = Values()
    stage = Routes(RouteOptions(), values, rng=np.random.default_rng(1))
    rows = [a_request(protocol=3, name="SELECT users"), a_request(path=b"/x")]
    batch = stage.apply(requests(values, rows), {1: a_service(1)})
    assert names_of(batch, values) == ["SELECT users", "GET /x"]
    assert routes_of(batch, values) == [None, "/x"]
    other = requests(values, rows[:1], dim_names=(semconv.DB_SYSTEM_NAME,))
    assert stage.apply(other, {}) is other


def test_an_empty_batch_and_bytes_that_are_no_text():
    batch, values, _ = apply([])
    assert len(batch) == 0
    batch, values, _ = apply([a_request(path=b"/\xff\xfe\x00\n"), a_request(path=None), a_request(path=b"")])
    assert routes_of(batch, values) == ["/*", "/", "/"]


def test_a_place_that_collapses_changes_the_answers_given_before():
    values = Values()
    stage = Routes(RouteOptions(max_path_segment_cardinality=3), values, rng=np.random.default_rng(1))
    services = {1: a_service(1), 2: a_service(2)}
    first = requests(values, [a_request(path=b"/shop/" + name) for name in (b"anna", b"bert", b"carl")])
    assert routes_of(stage.apply(first, services), values) == ["/shop/anna", "/shop/bert", "/shop/carl"]
    stage.apply(requests(values, [a_request(path=b"/shop/dora")]), services)
    again = requests(values, [a_request(path=b"/shop/anna"), a_request(path=b"/shop/anna", service=2)])
    assert routes_of(stage.apply(again, services), values) == ["/shop/*", "/shop/anna"]


def test_the_same_paths_cost_python_nothing_again():
    values = Values()
    stage = Routes(RouteOptions(), values, rng=np.random.default_rng(1))
    rows = [a_request(path=b"/a/%d" % (i % 50)) for i in range(1000)]
    stage.apply(requests(values, rows), {})
    assert stage.new_paths == 50
    batch = stage.apply(requests(values, rows), {})
    assert stage.new_paths == 50
    assert set(routes_of(batch, values)) == {"/a/*"}


def test_hundred_thousand_paths_leave_few_values_behind():
    values = Values()
    stage = Routes(RouteOptions(), values, rng=np.random.default_rng(1))
    for first in range(0, 100_000, 10_000):
        stage.apply(requests(values, [a_request(path=b"/item/%d/x" % i) for i in range(first, first + 10_000)]), {})
    assert stage.new_paths == 100_000
    assert len(values) < 20
    assert len(stage._outcomes) == 1


def test_forgetting_a_service_frees_its_trie():
    _, _, stage = apply([a_request(path=b"/x"), a_request(path=b"/x", service=2)])
    stage.forget_service(1)
    assert {service for service, _ in stage._tries} == {2}


def test_routes_are_capped_whatever_is_chosen():
    rows = [a_request(path=b"/item/%d" % i) for i in range(30)]
    batch, values, stage = apply(rows, unmatched="path", max_routes=10)
    assert routes_of(batch, values) == [f"/item/{i}" for i in range(10)] + ["/**"] * 20
    assert stage.capped == 20
