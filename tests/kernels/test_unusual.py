"""The whole agent on unusual hosts: in namespaces where these do, else in machines of the kernel lab; see `unusual`."""

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


IN_NAMESPACES = ("pids_that_are_used_again", "a_hidden_proc", "a_root_that_is_read_only", "a_container")
OWN = ("unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")


def reports(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stderr[-3000:]
    return found


def boot(*cases: str) -> list[dict[str, Any]]:
    """Runs cases in a machine of their own; two processors, so that one can go."""
    done = subprocess.run(
        [sys.executable, str(run.ROOT / "kernel-lab/vmrun"), "--kernel", "6.12", "--cpus", "2", "--mem", "3G",
         "--timeout", "1800", "--append", "no_timer_check", "--append", "lsm=lockdown,capability,yama,apparmor,bpf",
         "--", sys.executable, "-B", str(run.HERE / "unusual.py"), "--only", ",".join(cases)],
        capture_output=True, text=True, cwd=run.ROOT, check=False,
    )  # fmt: skip
    return reports(done)


@pytest.mark.parametrize("case", IN_NAMESPACES)
def test_nothing_is_lost_in_silence(case: str) -> None:
    done = subprocess.run(
        [*OWN, sys.executable, "-B", str(run.HERE / "unusual.py"), "--only", case], capture_output=True, text=True,
        cwd=run.ROOT, check=False, timeout=300,
    )  # fmt: skip
    (found,) = reports(done)
    assert found["ok"], found["error"]


@pytest.mark.parametrize("case", [case for case in unusual.CASES if case not in IN_NAMESPACES])
def test_nothing_is_lost_in_silence_in_a_machine_of_its_own(case: str) -> None:
    (found,) = boot(case)
    assert "skipped" not in found, found
    assert found["ok"], found["error"]
