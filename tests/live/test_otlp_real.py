"""What leaves the agent, read by the official software: protobuf stubs over gRPC and HTTP, Prometheus, its client."""

from __future__ import annotations

import json
import shutil
import time
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


def _prometheus(program: str, directory: Path, target: int):
    import contextlib

    @contextlib.contextmanager
    def run():
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

    return run()


def _query(port: int, query: str) -> float:
    import urllib.error
    import urllib.parse

    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            result = json.load(response)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return -1.0
    return float(result[0]["value"][1]) if result else -1.0
