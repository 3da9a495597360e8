"""The table of names: as the conventions write them, and as the script writes the table."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onlooker import semconv

ROOT = Path(__file__).resolve().parents[2]
NAMES = {name: value for name, value in vars(semconv).items() if name.isupper() and name != "SCHEMA_URL"}


def test_names_that_the_stages_rely_on() -> None:
    assert semconv.HTTP_REQUEST_METHOD == "http.request.method"
    assert semconv.HTTP_RESPONSE_STATUS_CODE == "http.response.status_code"
    assert semconv.RPC_SYSTEM_NAME == "rpc.system.name"
    assert semconv.DB_SYSTEM_NAME == "db.system.name"
    assert semconv.SERVICE_INSTANCE_ID == "service.instance.id"
    assert semconv.METRIC_HTTP_SERVER_REQUEST_DURATION == "http.server.request.duration"
    assert semconv.METRIC_DB_SERVER_OPERATION_DURATION == "db.server.operation.duration"


def test_constant_names_follow_from_their_values() -> None:
    for constant, value in NAMES.items():
        expected = re.sub(r"[^A-Z0-9]", "_", value.upper())
        assert constant in (expected, f"METRIC_{expected}")


def test_schema_is_a_version() -> None:
    assert re.fullmatch(r"https://opentelemetry\.io/schemas/\d+\.\d+\.\d+", semconv.SCHEMA_URL)


def test_the_committed_table_is_what_the_script_writes() -> None:
    try:
        importlib.metadata.distribution("opentelemetry-semantic-conventions")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("opentelemetry-semantic-conventions is not installed: it is needed to write the table only")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gen_semconv.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
