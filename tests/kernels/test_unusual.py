"""The whole agent on unusual hosts, in one machine of the kernel lab after the other; see `unusual`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from kernels import run, unusual

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="machines of the kernel lab need root"),
    pytest.mark.timeout(2000),
]


def boot(*cases: str) -> list[dict[str, Any]]:
    """Runs cases in a machine of their own; two processors, so that one can go."""
    done = subprocess.run(
        [sys.executable, str(run.ROOT / "kernel-lab/vmrun"), "--kernel", "6.12", "--cpus", "2", "--mem", "3G",
         "--timeout", "1800", "--append", "no_timer_check", "--append", "lsm=lockdown,capability,yama,apparmor,bpf",
         "--", sys.executable, "-B", str(run.HERE / "unusual.py"), "--only", ",".join(cases)],
        capture_output=True, text=True, cwd=run.ROOT, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["case"] for one in found] == list(cases), done.stderr[-3000:]
    return found


@pytest.mark.parametrize("case", unusual.CASES)
def test_nothing_is_lost_in_silence(case: str) -> None:
    (found,) = boot(case)
    assert "skipped" not in found, found
    assert found["ok"], found["error"]
