"""No literal, key, value, password or token of anybody's traffic is in any output, with the defaults."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import agent, database_clients, databases, zoo
from support.otlp_receiver import OtlpReceiver

pytestmark = pytest.mark.live

SCRIPT = Path(__file__).parent / "databases/python/markers.py"


@contextlib.contextmanager
def _exports(tmp_path: Path) -> Iterator[tuple[dict[str, Any], OtlpReceiver, Path]]:
    """Sections of exports to a receiver built of the official protobuf, by HTTP and gRPC; what came is in it."""
    with OtlpReceiver() as receiver:
        endpoint = receiver.endpoint("http/protobuf")
        yield (
            {
                "otel_traces_export": {
                    "endpoint": f"{endpoint}/v1/traces", "protocol": "http/protobuf", "batch_timeout": "200ms",
                },
                "otel_metrics_export": {
                    "endpoint": receiver.endpoint("grpc"), "protocol": "grpc", "interval": "500ms",
                },
                "store": {"path": str(tmp_path / "store.sqlite")},
            },
            receiver,
            tmp_path,
        )  # fmt: skip


@pytest.mark.parametrize("printer", ["json", "text"])
def test_no_secret_is_told(place: Any, tmp_path: Path, printer: str) -> None:
    marker = "Zq7Xmarker" + printer
    (tmp_path / "marker").write_text(marker)  # not in the command line, which the page may show
    with (
        _exports(tmp_path) as (sections, receiver, _),
        databases.postgres("log_min_messages=panic") as postgres,
        databases.mariadb() as mariadb,
        databases.redis() as redis,
        databases.memcached() as memcached,
        zoo.server("c-threads") as web,
        agent.running(
            tmp_path,
            place.selects(log_level="DEBUG", **sections),
            prints=False,
            arguments=("--print", printer),
            stores=True,
        ) as onlooker,
    ):
        ports = [str(one.port) for one in (postgres, mariadb, redis, memcached, web)]
        run = database_clients.start_script(
            [sys.executable, SCRIPT, tmp_path / "marker", *ports, f"{place.directory}/"]
        )
        run.operations()
        agent.wait_until(lambda: onlooker.metric("db_client_operation_duration_seconds_count") >= 14, "the operations")
        told = {"metrics": onlooker.get("/metrics")[2]}
        for path in ("overview", "map", "services", "traces", "agent", "config", "processes"):
            told[path] = onlooker.get(f"/api/v1/{path}")[2]
        traces = json.loads(told["traces"])
        for one in traces.get("spans", traces.get("traces", [])):
            number = one.get("trace_id") or one.get("trace")
            told[f"trace {number}"] = onlooker.get(f"/api/v1/traces/{number}")[2]
            told[f"otlp {number}"] = onlooker.get(f"/api/v1/traces/{number}/otlp")[2]
        assert sum(name.startswith("otlp") for name in told) > 3
        agent.wait_until(lambda: len(receiver.spans()) >= 28, "spans at the receiver")
        agent.wait_until(lambda: len(receiver.messages("metrics")) >= 2, "metrics at the receiver")
    # the agent has ended: what it wrote is whole
    for number, request in enumerate(receiver.requests):
        told[f"OTLP {request.signal} {number}"] = request.raw.decode("latin-1") + str(request.message)
    stored = sorted(tmp_path.glob("store.sqlite*"))
    for path in stored:
        told[path.name] = path.read_bytes().decode("latin-1")
    assert stored
    assert "SELECT" in told[stored[0].name]
    assert any("SELECT" in text for name, text in told.items() if name.startswith("OTLP traces"))
    assert any("SELECT" in text for name, text in told.items() if name.startswith("OTLP metrics"))
    told["printed"] = (tmp_path / "agent.out").read_text(errors="replace")
    told["log"] = onlooker.log()
    assert "SELECT" in told["printed"]
    assert "/login" in told["printed"]
    found = {name: text[max(at - 80, 0) : at + 80] for name, text in told.items() if (at := text.find(marker)) >= 0}
    assert found == {}
