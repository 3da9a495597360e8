"""All protocols at once, with the churn of a live host: every request is counted, and nothing of the agent grows.

``ONLOOKER_TEST_SOAK_SECONDS`` says how long (40 s without it) and ``ONLOOKER_TEST_SOAK_RATE`` how many requests a
second (2,000 without it); from half an hour on, the slope of its memory is held too.  Figures are left in
``build/soak-protocols.json``, and ``benchmarks/plot_soak.py`` draws them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import soak, zoo

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("ONLOOKER_TEST_SOAK_SECONDS", "40"))
RATE = float(os.environ.get("ONLOOKER_TEST_SOAK_RATE", "2000"))
SLACK_KIB_PER_HOUR = 1024.0

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(SECONDS + 400)]


def test_all_protocols_for_long(live: None) -> None:
    missing = [name for name in soak.NEEDS if zoo.which(name) is None]
    if missing:
        pytest.skip(f"lacks {', '.join(missing)}: run scripts/setup_databases.sh")
    pytest.importorskip("psycopg")
    pytest.importorskip("pymysql")
    out = ROOT / "build" / "soak-protocols"
    out.parent.mkdir(exist_ok=True)
    paths = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ONLOOKER_")}
    # a process of its own: it chooses where temporary files go, and the ports
    done = subprocess.run(
        [sys.executable, "-m", "support.soak", str(SECONDS), str(out), "--rate", str(RATE),
         "--period", str(min(max(SECONDS / 12, 4), 30))],
        env={**environment, "PYTHONPATH": paths}, text=True, stdout=subprocess.PIPE, timeout=SECONDS + 360, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    result = json.loads(out.with_suffix(".json").read_text())
    assert all(lane["sent"] > 0 for lane in result["lanes"].values()), result["lanes"]
    # requests by their own words; the other reasons tell of bytes and of answers to nobody's question
    lost = sum(result["lost"].get(name, 0) for name in ("ring_full", "half_without_request", "half_without_response"))
    missing_of = {name: lane["sent"] - lane["seen"] for name, lane in result["lanes"].items()}
    assert 0 <= sum(missing_of.values()) <= lost, (missing_of, result["lost"])
    assert all(count >= 0 for count in missing_of.values()), missing_of
    assert result["agent_ended_badly"] == ""
    assert not any("ERROR" in line for line in result["agent_said"]), result["agent_said"]
    samples = result["samples"]
    if SECONDS >= 1800:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from plot_soak import slope

        found = slope(samples[:-1])
        assert found.kib_per_hour <= found.noise + SLACK_KIB_PER_HOUR, found
        middle, last = samples[len(samples) // 2], samples[-2]
        assert last["descriptors"] <= middle["descriptors"] + 40
        assert last["map_bytes"] <= middle["map_bytes"] * 1.05
