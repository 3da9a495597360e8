"""Hosts that are not as a host should be: made on this machine by namespaces and privileges, no other kernel needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from kernels import run

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and privileges are for root to give and take"),
]
INSIDE = (sys.executable, str(run.HERE / "inside.py"), "auto", str(run.SERVER))
NEW_PIDS = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    run.build()


def report(*before: str) -> dict[str, Any]:
    """What `inside.py` says when it is run by another command."""
    done = subprocess.run([*before, *INSIDE], capture_output=True, text=True, cwd=run.ROOT, timeout=250)
    assert done.stdout.startswith("{"), done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def shell(script: str) -> tuple[str, ...]:
    """A mount namespace in which a script runs before the rest."""
    return "unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh"


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_pid_namespace_hides_nothing_that_is_inside(depth: int) -> None:
    found = report(*(NEW_PIDS * depth))
    assert (found["seen"], found["extra"]) == (found["made"], []), found


@pytest.mark.usefixtures("live")
def test_a_network_namespace_changes_nothing() -> None:
    found = report("unshare", "--net", "sh", "-ec", 'PATH=$PATH:/sbin:/usr/sbin; ip link set lo up; exec "$@"', "sh")
    assert (found["seen"], found["extra"]) == (found["made"], []), found


@pytest.mark.usefixtures("live")
def test_two_capabilities_are_enough_to_capture() -> None:
    found = report("setpriv", "--bounding-set", "-all,+bpf,+perfmon", "--inh-caps", "-all")
    assert (found["seen"], found["extra"]) == (found["made"], []), found


@pytest.mark.parametrize("kept", ["+bpf", "+perfmon"])
def test_one_of_them_is_not(kept: str) -> None:
    found = report("setpriv", "--bounding-set", f"-all,{kept}", "--inh-caps", "-all")
    assert "CAP_BPF and CAP_PERFMON" in found["error"] or "Operation not permitted" in found["error"]


@pytest.mark.usefixtures("live")
def test_without_sysfs_mounts_of_its_own_nothing_is_missed() -> None:
    """Neither bpffs nor tracefs nor cgroup2 has to be there."""
    found = report(*shell("umount -lR /sys/fs/cgroup /sys/fs/bpf /sys/kernel/tracing /sys/kernel/debug || true"))
    assert (found["seen"], found["extra"]) == (found["made"], []), found


def test_a_kernel_without_types_is_named() -> None:
    found = report(*shell("mount -t tmpfs none /sys/kernel/btf"))
    assert "type information" in found["error"]
    assert "CONFIG_DEBUG_INFO_BTF" in found["error"]


def test_lockdown_for_confidentiality_is_named() -> None:
    script = """mount -t tmpfs none /sys/kernel/security
echo 'none integrity [confidentiality]' >/sys/kernel/security/lockdown"""
    found = report(*shell(script))
    assert "locked down for confidentiality" in found["error"]
