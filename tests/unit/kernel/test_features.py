"""What the kernel allows is found by trying; what makes every try hopeless is said once, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onlooker.capture import hooks
from onlooker.errors import UnsupportedKernelError
from onlooker.kernel import features, restrictions

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="trying needs root")


def a_sysfs(root: Path, *, lockdown: str | None = None, btf: bool = True) -> Path:
    """A root of sysfs that says only what is asked for."""
    if lockdown is not None:
        (root / "kernel/security").mkdir(parents=True)
        (root / "kernel/security/lockdown").write_text(lockdown)
    (root / "kernel/btf").mkdir(parents=True)
    if btf:
        (root / "kernel/btf/vmlinux").touch()
    return root


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        (None, ""),
    ],
)
def test_lockdown_is_read_from_securityfs(tmp_path: Path, text: str | None, mode: str) -> None:
    assert restrictions.lockdown(a_sysfs(tmp_path, lockdown=text)) == mode


def test_confidentiality_is_refused_with_what_still_works(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedKernelError, match=r"lockdown=integrity.*still work") as raised:
        restrictions.refuse_hopeless(a_sysfs(tmp_path, lockdown="none integrity [confidentiality]"))
    assert raised.value.exit_code == 3


def test_integrity_is_not_refused(tmp_path: Path) -> None:
    restrictions.refuse_hopeless(a_sysfs(tmp_path, lockdown="none [integrity] confidentiality"))


def test_a_kernel_without_types_is_refused(tmp_path: Path) -> None:
    assert not restrictions.has_type_information(a_sysfs(tmp_path, btf=False), "0.0.0-none")
    assert restrictions.has_type_information(a_sysfs(tmp_path / "other"), "0.0.0-none")


@AS_ROOT
def test_what_was_tried_agrees_with_the_hook_that_is_taken() -> None:
    found = {feature.name: feature for feature in features.probe()}
    assert all(found[name].available for name in ("programs", "ring buffer", "process tracepoints"))
    assert not [feature for feature in found.values() if feature.required and not feature.available]
    assert all(feature.consequence == "" for feature in found.values() if feature.available)
    assert hooks.has_function("inet_sendmsg")
    assert not hooks.has_function("no_such_function_of_any_kernel")


@AS_ROOT
def test_a_helper_that_no_kernel_has_is_found_missing() -> None:
    trials = features._Trials()
    assert "unknown" in trials.lacks_helper(9_999) or "invalid func" in trials.lacks_helper(9_999)
    assert trials.lacks_helper(5) == ""  # bpf_ktime_get_ns


@AS_ROOT
def test_a_hook_that_no_kernel_has_is_found_missing() -> None:
    assert features._Trials().attach_tracing("no_such_tracepoint", features._TRACE_RAW_TP) != ""


@AS_ROOT
def test_a_map_that_no_kernel_has_is_found_missing() -> None:
    assert features._Trials().map_error(9_999, 4, 4, 1) != ""


@AS_ROOT
def test_nobody_is_told_what_to_grant() -> None:
    """Without privileges the first trial fails, and the rest is not tried."""
    code = "import os; from onlooker.kernel.features import probe; probe(); os.setgid(65534); os.setuid(65534)\n"
    code += "f = probe()[-1]; print(f.name, f.available, f.required); print(f.consequence)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0] == "programs False True"
    assert "CAP_BPF" in out[1]


def test_the_tax_on_all_calls_is_for_those_who_ask() -> None:
    assert [rung.name for rung in hooks.rungs()] == ["tracepoint", "fexit", "fexit-hash", "kprobe"]
    assert [rung.name for rung in hooks.rungs("raw_syscalls")] == ["raw_syscalls"]
    assert all(hooks.rungs(choice) for choice in hooks.CHOICES)
