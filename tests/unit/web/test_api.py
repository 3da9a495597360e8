"""What the API answers, over HTTP, from a real store."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from onlooker import semconv
from onlooker.batches import SpanKind
from onlooker.store import MEMORY
from onlooker.web.openapi import PATHS
from support.page_server import BAD_UTF8, HOSTILE_NAME, HOSTILE_PATH, CannedFacts, Traffic, serve


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    traffic = Traffic(MEMORY, services=("shop", "users", HOSTILE_NAME))
    for number in range(30):
        traffic.put(traffic.a_trace(number, failing=number % 10 == 0))
    traffic.put(traffic.hostile())
    for _ in range(2):
        traffic.store.writer.round(0.0)
    facts = CannedFacts(traffic.store, [{"what": "ring_full", "count": 3, "why": "the ring was full"}])
    with serve(traffic.store, facts=facts) as found:
        yield found
    traffic.store.close()


def get(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=10) as response:
        data = response.read()
    assert data.isascii()  # nothing in it can steer a terminal or a browser
    assert not re.search(rb"[\x00-\x1f\x7f]", data)
    return json.loads(data)


def status_of(url: str, path: str) -> int:
    try:
        with urllib.request.urlopen(url + path, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as err:
        err.close()
        return err.code


def test_overview(url: str) -> None:
    found = get(url, "/api/v1/overview?range=15m")
    rows = {row["name"]: row for row in found["services"]}
    assert rows["shop"]["server"]["count"] == 30
    assert rows["shop"]["server"]["errors"] == 3
    assert rows["shop"]["health"] == "failing"
    assert rows["shop"]["why"] == "10.0 % of requests fail"
    assert rows["shop"]["processes"] == 1
    assert len(rows["shop"]["server"]["spark"]["rate"]) == found["steps"]
    assert found["unseen"] == [{"what": "ring_full", "count": 3, "why": "the ring was full"}]
    assert found["services"][0]["health"] == "failing"  # what is wrong comes first


def test_map(url: str) -> None:
    found = get(url, "/api/v1/map")
    names = {node["id"]: (node["type"], node["name"]) for node in found["nodes"]}
    edges = {(names[edge["from"]][1], names[edge["to"]][1]): edge for edge in found["edges"]}
    assert edges["shop", "users"]["count"] == 30
    assert edges["shop", "users"]["errors"] == 3
    assert edges["outside", "shop"]["count"] == 30
    assert edges["users", "postgresql db.internal:5432"]["operations"] == ["SELECT users"]
    assert ("outside", "users") not in edges  # all its callers are known
    assert ("database", "postgresql db.internal:5432") in names.values()


def test_map_draws_a_service_that_only_answers_statements_as_a_database() -> None:
    traffic = Traffic(MEMORY, services=("shop", "postgres", "search"))
    asked = {"kind": SpanKind.SERVER, "protocol": 3, "name": "SELECT users", "path": None,
             "dims": {semconv.DB_SYSTEM_NAME: "postgresql"}}  # fmt: skip
    traffic.put([{"service": 1, "path": b"/"}, {"service": 2, **asked}, {"service": 3, **asked}])
    traffic.put([{"service": 3, "path": b"/health"}])
    for _ in range(2):
        traffic.store.writer.round(0.0)
    with serve(traffic.store, facts=CannedFacts(traffic.store, [])) as found:
        types = {node["name"]: node["type"] for node in get(found, "/api/v1/map")["nodes"]}
    traffic.store.close()
    assert types == {"outside": "outside", "shop": "service", "postgres": "database", "search": "service"}


def test_service(url: str) -> None:
    shop = next(row for row in get(url, "/api/v1/services")["services"] if row["name"] == "shop")
    assert shop["operations"] == ["GET /checkout", "GET /users/*"]
    found = get(url, f"/api/v1/services/{shop['id']}?range=5m")
    assert found["main"] == "server"
    server = found["sides"]["server"]
    assert set(server["rate_by_status"]) == {"2xx", "5xx"}
    assert sum(map(sum, server["heat"]["cells"])) == 30
    assert [one["name"] for one in found["callees"]] == ["users"]
    assert [one["name"] for one in found["callers"]] == ["outside"]
    assert {one["kind"] for one in found["operations"]} == {"server", "client"}
    assert sum(one["time_share"] for one in found["operations"] if one["kind"] == "server") == pytest.approx(1.0)
    assert found["processes"]["running"][0]["threads"] == 4


def test_a_trace_has_both_sides_of_a_connection(url: str) -> None:
    found = get(url, "/api/v1/traces?service=shop&status=error&kind=server")
    assert len(found["spans"]) == 3
    trace_id = found["spans"][0]["trace_id"]
    assert found["traces"][trace_id]["services"] == ["shop", "users"]
    trace = get(url, f"/api/v1/traces/{trace_id}")
    assert [span["depth"] for span in trace["spans"]] == [0, 1, 2, 3]
    client, server = trace["spans"][1:3]
    assert (client["other_side"], server["other_side"]) == (server["span_id"], client["span_id"])
    assert server["attributes"]["http.route"] == "/users/*"
    assert server["resource"]["service.name"] == "users"
    root = trace["spans"][0]
    parts = root["request_ms"] + root["processing_ms"] + (root["duration_ms"] - root["response_start_ms"])
    assert parts == pytest.approx(root["duration_ms"])


def test_otlp_is_what_a_receiver_takes(url: str) -> None:
    trace_id = get(url, "/api/v1/traces?service=shop&kind=server")["spans"][0]["trace_id"]
    found = get(url, f"/api/v1/traces/{trace_id}/otlp")
    request = ParseDict(_with_base64_ids(found), ExportTraceServiceRequest())
    spans = [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
    assert len(spans) == 4
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    assert all(span.end_time_unix_nano > span.start_time_unix_nano > 0 for span in spans)
    names = {value.value.string_value for one in request.resource_spans for value in one.resource.attributes
             if value.key == "service.name"}  # fmt: skip
    assert names == {"shop", "users"}


def _with_base64_ids(found: dict[str, Any]) -> dict[str, Any]:
    """OTLP/JSON writes ids as hex, the generic JSON of protobuf as base64."""
    import base64

    for one in found["resourceSpans"]:
        for scope in one["scopeSpans"]:
            for span in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    return found


def test_jaeger(url: str) -> None:
    assert {"shop", "users"} <= set(get(url, "/api/services")["data"])
    assert get(url, "/api/services/shop/operations")["data"] == ["GET /checkout", "GET /users/*"]
    assert {"name": "SELECT users", "spanKind": ""} in get(url, "/api/operations?service=users")["data"]
    tags = quote('{"error":"true"}')
    found = get(url, f"/api/traces?service=shop&limit=2&lookback=1h&maxDuration=60s&tags={tags}")["data"]
    assert len(found) == 2
    trace = found[0]
    assert len(trace["spans"]) == 4
    assert set(trace["processes"]) == {span["processID"] for span in trace["spans"]}
    again = get(url, f"/api/traces/{trace['traceID']}")["data"]
    assert again[0]["spans"] == trace["spans"]
    child = next(span for span in trace["spans"] if span["references"])
    assert child["references"][0]["refType"] == "CHILD_OF"
    parts = {(one["parent"], one["child"]) for one in get(url, "/api/dependencies?lookback=3600000")["data"]}
    assert ("shop", "users") in parts


def test_text_from_traffic_stays_text(url: str) -> None:
    spans = get(url, f"/api/v1/traces?service={quote(HOSTILE_NAME)}&kind=server")["spans"]
    targets = {span["target"] for span in spans}
    assert HOSTILE_PATH in targets
    assert BAD_UTF8.decode("utf-8", "replace") in targets
    longest = max(targets, key=len)
    assert longest.endswith("…")
    assert len(longest) == 8193
    assert get(url, f"/api/v1/traces?q={quote('alert(1)')}")["spans"]
    assert HOSTILE_NAME in get(url, "/api/services")["data"]


def test_the_stream_tells_the_overview_and_new_spans(url: str) -> None:
    with urllib.request.urlopen(url + "/api/v1/stream?range=300", timeout=10) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        events = {}
        while set(events) < {"overview", "spans"}:
            line = response.readline().decode()
            if line.startswith("event: "):
                data = response.readline().decode().removeprefix("data: ")
                events.setdefault(line[7:].strip(), json.loads(data))
    assert events["overview"]["services"]
    assert events["spans"]["spans"][0]["id"] > events["spans"]["spans"][-1]["id"]


@pytest.mark.parametrize(
    "path",
    ["/api/v1/overview?range=x", "/api/v1/overview?range=-1", "/api/v1/traces?min=fast", "/api/v1/traces?limit=-1",
     "/api/v1/traces?status=%3Cb%3E", "/api/v1/traces?kind=other", "/api/v1/traces?attribute=novalue",
     "/api/v1/traces?from=1e9", "/api/v1/traces?before=99999999999999999999", "/api/v1/traces/zz",
     "/api/v1/traces/" + "0" * 33, "/api/v1/services/abc", "/api/v1/services/%D9%A1", "/api/traces/none",
     "/api/traces?tags=%7Bx", "/api/traces?tags=[1]", "/api/v1/stream?topics=all", "/api/v1/traces?entry=yes",
     "/api/v1/traces?q=" + "x" * 501],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_reason(url: str, path: str) -> None:
    assert status_of(url, path) == 400


@pytest.mark.parametrize("path", ["/api/v1/traces/00ff", "/api/v1/services/999", "/api/v2/x", "/api/traces/abcdef"])
def test_what_is_not_there(url: str, path: str) -> None:
    assert status_of(url, path) == 404


def test_a_service_that_nobody_knows_has_no_traces(url: str) -> None:
    assert get(url, "/api/v1/traces?service=nobody")["spans"] == []


def test_the_description_names_every_path(url: str) -> None:
    found = get(url, "/api/v1/openapi.json")
    assert found["openapi"].startswith("3.1")
    assert set(found["paths"]) == set(PATHS)
    trace_id = get(url, "/api/v1/traces")["spans"][0]["trace_id"]
    for path in PATHS:
        if path in ("/healthz", "/readyz", "/metrics", "/api/v1/stream"):
            continue  # served beside the API
        name = "shop" if path.startswith("/api/services") else "1"
        assert status_of(url, path.replace("{service}", name).replace("{trace}", trace_id)) == 200, path
