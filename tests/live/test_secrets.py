"""No literal, key, value, password or token of anybody's traffic is in any output, with the defaults."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support import agent, database_clients, databases, zoo

pytestmark = pytest.mark.live

SCRIPT = Path(__file__).parent / "databases/python/markers.py"


@pytest.mark.parametrize("printer", ["json", "text"])
def test_no_secret_is_told(place: Any, tmp_path: Path, printer: str) -> None:
    marker = "Zq7Xmarker" + printer
    selection = place.selects(log_level="DEBUG")
    with (
        databases.postgres("log_min_messages=panic") as postgres,
        databases.mariadb() as mariadb,
        databases.redis() as redis,
        databases.memcached() as memcached,
        zoo.server("c-threads") as web,
        agent.running(tmp_path, selection, prints=False, arguments=("--print", printer)) as onlooker,
    ):
        ports = [str(one.port) for one in (postgres, mariadb, redis, memcached, web)]
        run = database_clients.start_script([sys.executable, SCRIPT, marker, *ports, f"{place.directory}/"])
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
    told["printed"] = (tmp_path / "agent.out").read_text(errors="replace")
    told["log"] = onlooker.log()
    assert "SELECT" in told["printed"]
    assert "/login" in told["printed"]
    # the client's command line has the marker too, and the page may show whose process it is
    found = {name: text[max(at - 80, 0) : at + 80] for name, text in told.items() if (at := text.find(marker)) >= 0}
    found.pop("processes", None)
    assert found == {}
