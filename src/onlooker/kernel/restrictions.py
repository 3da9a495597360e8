"""What keeps every rung of the ladder from working, said once and with what to do about it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from onlooker.errors import UnsupportedKernelError
from onlooker.kernel.uprobe import load_nothing

_SYS: Final = Path("/sys")


def lockdown(sys: Path = _SYS) -> str:
    """``none``, ``integrity`` or ``confidentiality``; "" where the kernel does not say.

    Args:
        sys: Root of sysfs.
    """
    try:
        found = re.search(r"\[(\w+)\]", (sys / "kernel/security/lockdown").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def has_type_information(sys: Path = _SYS, release: str = "") -> bool:
    """Whether libbpf will find the kernel's BTF: in sysfs, or beside the kernel's image."""
    release = release or os.uname().release
    places = (
        sys / "kernel/btf/vmlinux",
        Path(f"/boot/vmlinux-{release}"),
        Path(f"/lib/modules/{release}/vmlinux-{release}"),
        Path(f"/lib/modules/{release}/build/vmlinux"),
        Path(f"/usr/lib/debug/boot/vmlinux-{release}"),
    )
    return any(place.exists() for place in places)


def refuse_hopeless(sys: Path = _SYS) -> None:
    """Say what cannot work before it is tried.

    Raises:
        UnsupportedKernelError: with what still works, and what to do.
    """
    if lockdown(sys) == "confidentiality":
        raise UnsupportedKernelError(
            "the kernel is locked down for confidentiality, so programs may not read memory: no request can be seen. "
            "Boot with lockdown=integrity (or none), which takes nothing away from onlooker; `onlooker doctor`, "
            "`config` and stored data still work"
        )
    if not has_type_information(sys):
        raise UnsupportedKernelError(
            f"the kernel {os.uname().release} has no type information (/sys/kernel/btf/vmlinux is missing), so the "
            "places of its fields are not known: no request can be seen. Use a kernel with CONFIG_DEBUG_INFO_BTF, as "
            "those of Debian 11, Ubuntu 20.10, RHEL 8.2, Fedora 31, Amazon Linux 2023 and newer are; stored data still "
            "works"
        )


def may_trace() -> bool:
    """Whether this process may load tracing programs at all, by loading the smallest."""
    try:
        os.close(load_nothing())
    except PermissionError:
        return False
    except OSError:
        pass  # another reason, which the first rung will tell
    return True


def refuse_unprivileged() -> None:
    """Say that the privileges are missing, before every rung says it.

    Raises:
        UnsupportedKernelError: they are.
    """
    if not may_trace():
        raise UnsupportedKernelError(
            "the kernel does not let this process load BPF programs (EPERM); run as root, or with CAP_BPF "
            "and CAP_PERFMON; `onlooker doctor` tells more"
        )
