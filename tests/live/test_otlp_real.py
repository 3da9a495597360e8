"""What leaves the agent, read by the official software: protobuf stubs over gRPC and HTTP, Prometheus, its client."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from support import agent, truth, zoo
from support.otlp_receiver import OtlpReceiver

pytestmark = pytest.mark.live

REQUESTS = 500


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf", "http/json"])
def test_a_receiver_takes_every_batch(place, tmp_path, protocol: str) -> None:
    with OtlpReceiver() as receiver, zoo.server("nginx-gunicorn-unix") as server:
        export = {"endpoint": receiver.endpoint(protocol), "protocol": protocol}
        sections = {
            "otel_traces_export": {**export, "batch_timeout": "200ms"},
            "otel_metrics_export": {**export, "interval": "1s"},
        }
        if protocol.startswith("http"):
            for name, signal in (("otel_traces_export", "traces"), ("otel_metrics_export", "metrics")):
                sections[name]["endpoint"] += f"/v1/{signal}"
        began = time.time_ns()
        with agent.running(tmp_path, place.selects(**sections), prints=False) as onlooker:
            onlooker.wait_watched([pid for name in server.pids for pid in server.tree(name)])
            plan = truth.plan(1, REQUESTS, pages=server.spec.pages, run=f"otlp-{protocol.replace('/', '-')}")
            with zoo.client("c", server.port, plan) as client:
                onlooker.wait_watched([client.pid, *(pid for name in server.pids for pid in server.tree(name))])
                client.run()
            # the c client's, nginx's two sides, and gunicorn's
            try:
                agent.wait_until(lambda: len(_of(plan, receiver.spans())) >= 4 * REQUESTS, "all spans received", 20)
            except agent.AgentFailure as err:
                kinds = Counter((span["service"], span["kind"]) for span in _of(plan, receiver.spans()))
                raise agent.AgentFailure(f"{err}: {kinds}; lost {onlooker.losses()}") from None
            agent.wait_until(lambda: len(receiver.messages("metrics")) >= 2, "metrics received twice", 20)
            assert onlooker.losses() == {}
            assert onlooker.metric("onlooker_export_failures_total") == 0
        ended = time.time_ns()
    assert all(one.taken and one.protocol == protocol for one in receiver.requests)
    spans = _of(plan, receiver.spans())
    assert len(spans) == 4 * REQUESTS
    by_id = {span["span_id"]: span for span in spans}
    assert len(by_id) == len(spans)
    assert all(int(span["span_id"], 16) and int(span["trace_id"], 16) for span in spans)
    for span in spans:
        assert began < span["start_unix_ns"] <= span["end_unix_ns"] < ended
        if span["parent_span_id"]:
            parent = by_id[span["parent_span_id"]]
            assert parent["trace_id"] == span["trace_id"]
            assert parent["start_unix_ns"] <= span["start_unix_ns"] + 1_000_000
    roots = [span for span in spans if not span["parent_span_id"]]
    assert {span["kind"] for span in roots} == {3}  # clients: the request began there
    counts = {
        point["count"]
        for point in receiver.metrics()
        if point["name"] == "http.server.request.duration" and point["kind"] == "histogram"
    }
    assert counts
    print(f"{protocol}: {len(spans)} spans in {len(receiver.messages('traces'))} batches, {len(roots)} traces")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf", "http/json"])
def test_an_opentelemetry_collector_takes_every_batch(place, tmp_path, protocol: str) -> None:
    program = zoo.BIN / "collector"
    if not program.exists():
        pytest.skip("no Collector here: scripts/setup_zoo.sh live builds one, with Go 1.23 or newer")
    with zoo.server("c-threads") as server, _collector(str(program), tmp_path / "collector") as (ports, received):
        endpoint = f"http://127.0.0.1:{ports['grpc' if protocol == 'grpc' else 'http']}"
        # as OpenTelemetry has it, the base of both signals
        otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}  # fmt: skip
        with agent.running(tmp_path, place.selects(), prints=False, environment=otlp) as onlooker:
            onlooker.wait_watched(server.tree())
            plan = truth.plan(4, REQUESTS, pages=server.spec.pages, run=f"collector-{protocol.replace('/', '-')}")
            with zoo.client("c", server.port, plan) as client:
                onlooker.wait_watched([*server.tree(), client.pid])
                made = client.run()
            agent.wait_until(
                lambda: sum(len(spans) for _, spans in received("traces")) >= 2 * REQUESTS, "all spans", 20
            )
            assert onlooker.losses() == {}
            assert onlooker.metric("onlooker_export_failures_total") == 0
        spans = [span for _, batch in received("traces") for span in batch]
        points = [
            (resource["service.name"], point)
            for resource, metrics in received("metrics")
            for metric in metrics
            if metric["name"] == "http.server.request.duration"
            for point in metric["histogram"]["dataPoints"]
        ]
    assert len({span["spanId"] for span in spans}) == len(spans) == 2 * REQUESTS
    assert all(len(span["traceId"]) == 32 and len(span["spanId"]) == 16 for span in spans)
    of_server = [span for span in spans if span["kind"] == 2]
    by_path = {one.path.partition("?")[0]: one for one in made}
    for span in of_server:
        attributes = {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}
        true = by_path.pop(attributes["url.path"])
        assert int(attributes["http.response.status_code"]) == true.status
        assert span.get("status", {}).get("code", 0) == (2 if true.status >= 500 else 0)
    assert not by_path
    counted: dict[tuple[str, str], int] = {}
    for service, point in points:  # cumulative: the last one of each series counts
        counted[service, json.dumps(point["attributes"], sort_keys=True)] = int(point["count"])
    assert sum(counted.values()) == REQUESTS
    print(f"{protocol}: the Collector wrote {len(spans)} spans and {len(counted)} series")


@contextlib.contextmanager
def _collector(program: str, directory: Path):
    """A Collector that writes what it takes to a file; yields its ports, and what came of a signal by resource."""
    directory.mkdir()
    ports = {"grpc": agent.free_port(), "http": agent.free_port()}
    out = {signal: directory / f"{signal}.json" for signal in ("traces", "metrics")}
    configuration = {
        "receivers": {"otlp": {"protocols": {name: {"endpoint": f"127.0.0.1:{port}"} for name, port in ports.items()}}},
        "exporters": {f"file/{signal}": {"path": str(path), "flush_interval": "100ms"} for signal, path in out.items()},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {signal: {"receivers": ["otlp"], "exporters": [f"file/{signal}"]} for signal in out},
        },
    }
    (directory / "collector.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    started = zoo.Program([program, f"--config={directory}/collector.yaml"], directory, name="collector")

    def received(signal: str) -> list[tuple[dict[str, str], list[dict[str, object]]]]:
        parts = {"traces": ("resourceSpans", "scopeSpans", "spans"),
                 "metrics": ("resourceMetrics", "scopeMetrics", "metrics")}[signal]  # fmt: skip
        whole = out[signal].read_bytes().rpartition(b"\n")[0] if out[signal].exists() else b""
        return [
            ({pair["key"]: next(iter(pair["value"].values())) for pair in resource["resource"]["attributes"]},
             [item for scope in resource[parts[1]] for item in scope[parts[2]]])
            for line in whole.splitlines()
            for resource in json.loads(line)[parts[0]]
        ]  # fmt: skip

    try:
        for port in ports.values():
            agent.wait_until(functools.partial(_listens, port), "the Collector listens", 30, 0.2)
        yield ports, received
    finally:
        started.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _of(plan: list[truth.PlannedRequest], spans: list[dict[str, object]]) -> list[dict[str, object]]:
    targets = {request.path for request in plan}
    return [span for span in spans if _path(span["attributes"]) in targets]


def _path(attributes: dict[str, object]) -> str:
    path = attributes.get("url.path")
    if path is None:
        path = "/" + str(attributes.get("url.full", "")).partition("://")[2].partition("/")[2].partition("?")[0]
    return str(path)


def test_prometheus_scrapes_and_its_client_parses(place, tmp_path) -> None:
    program = zoo.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus here: apt-get install prometheus")
    with (
        zoo.server("c-threads") as server,
        agent.running(tmp_path, place.selects(), prints=False) as onlooker,
        _prometheus(program, tmp_path / "prometheus", onlooker.web_port) as port,
    ):
        onlooker.wait_watched(server.tree())
        plan = truth.plan(3, REQUESTS, pages=server.spec.pages, run="prometheus")
        with zoo.client("c", server.port, plan) as client:
            onlooker.wait_watched([*server.tree(), client.pid])
            client.run()
        agent.wait_until(
            lambda: onlooker.metric("http_server_request_duration_seconds_count") == REQUESTS, "all requests counted"
        )
        for openmetrics in (False, True):
            assert onlooker.samples(openmetrics=openmetrics)
        query = "sum(http_server_request_duration_seconds_count)"
        agent.wait_until(lambda: _query(port, query) == REQUESTS, "Prometheus has counted the same", 30, 0.5)
        assert _query(port, "min(up)") == 1
        assert _query(port, "max(scrape_samples_scraped)") > 50


@contextlib.contextmanager
def _prometheus(program: str, directory: Path, target: int):
    directory.mkdir()
    port = agent.free_port()
    job = {"job_name": "onlooker", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (directory / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    started = zoo.Program(
        [program, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        directory, name="prometheus",
    )  # fmt: skip
    try:
        agent.wait_until(lambda: _query(port, "vector(1)") == 1, "Prometheus answers", 30, 0.2)
        yield port
    finally:
        started.stop()
        shutil.rmtree(directory / "data", ignore_errors=True)


def _query(port: int, query: str) -> float:
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            result = json.load(response)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return -1.0
    return float(result[0]["value"][1]) if result else -1.0
