"""Where the core hooks into the kernel: a ladder, of which the first rung that loads and attaches is taken.

Receives the wish of the configuration, hands on rungs in the order in which they are to be tried.  No rung is chosen by
a version: a kernel has what it accepts.  What each rung sees is measured in ``docs/reference/kernels.md``.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onlooker.errors import LoadError
from onlooker.kernel._libbpf import last_messages, library
from onlooker.kernel.object import Object, built_object

AUTO: Final = "auto"
CHOICES: Final = (AUTO, "tracepoint", "fexit", "kprobe", "raw_syscalls")

_BPF_TRACE_FEXIT = 25
_HOST_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_GETPPID = {"x86_64": 110, "aarch64": 173}
_REGISTERS_MAX = 1 << 20  # no kernel has larger stacks

_BLOCKED: Final = "the first request of a thread that was waiting for it before onlooker started is missed"


@dataclass(frozen=True, slots=True)
class Rung:
    """A set of hooks.

    Attributes:
        name: As in status, logs and tests.
        choice: Value of ``ebpf.capture_hook`` that asks for it.
        old: Whether the object for older kernels has it.
        programs: All of them are needed.
        optional: Programs with the kernel function that each needs; a kernel without the function does without.
        degraded: What is not seen, for the one who reads the status.
    """

    name: str
    choice: str
    old: bool
    programs: tuple[str, ...]
    optional: tuple[tuple[str, str], ...] = ()
    degraded: tuple[str, ...] = ()


_FEXIT: Final = ("fexit_inet_send", "fexit_inet_recv")
_FEXIT_OPTIONAL: Final = (
    ("fexit_ine6_send", "inet6_sendmsg"),
    ("fexit_ine6_recv", "inet6_recvmsg"),
    ("fexit_unix_send", "unix_stream_sendmsg"),
    ("fexit_unix_recv", "unix_stream_recvmsg"),
    ("fexit_sendpage", "inet_sendpage"),
)

LADDER: Final = (
    Rung("tracepoint", "tracepoint", False, ("tp_sock_send", "tp_sock_recv")),
    Rung("fexit", "fexit", False, _FEXIT, _FEXIT_OPTIONAL, (_BLOCKED,)),
    Rung(
        "fexit-hash",
        "fexit",
        True,
        _FEXIT,
        _FEXIT_OPTIONAL,
        (_BLOCKED, "at most 8,192 connections are followed at once"),
    ),
    Rung(
        "kprobe",
        "kprobe",
        True,
        ("kprobe_inet_snd", "kprobe_tcp_recv"),
        (("kprobe_ine6_snd", "inet6_sendmsg"), ("kprobe_sendpage", "inet_sendpage")),
        (
            "UNIX sockets, UDP (DNS) and kernel TLS are not seen",
            "at most 8,192 connections are followed at once",
        ),
    ),
    Rung(
        "raw_syscalls",
        "raw_syscalls",
        True,
        ("raw_sys_exit",),
        (),
        (
            "every system call of every process is taxed",
            "of sendmmsg and recvmmsg only the first message is seen",
            "at most 8,192 connections are followed at once",
        ),
    ),
)


def rungs(choice: str = AUTO) -> tuple[Rung, ...]:
    """The rungs to try, in order.  The tax on all system calls is for those who ask for it.

    Args:
        choice: Value of ``ebpf.capture_hook``, or the name of a rung.
    """
    if choice == AUTO:
        return tuple(rung for rung in LADDER if rung.choice != "raw_syscalls")
    return tuple(rung for rung in LADDER if choice in (rung.choice, rung.name))


def programs_of(rung: Rung) -> tuple[str, ...]:
    """What to load of a rung: all that is needed, and of the rest what has its function in this kernel."""
    return (*rung.programs, *(program for program, function in rung.optional if has_function(function)))


def has_function(name: str) -> bool:
    """Whether the kernel's type information knows a function, its own or one of the module that it may stand in."""
    lib = library()
    find = lib.libbpf_find_vmlinux_btf_id
    find.restype, find.argtypes = ctypes.c_int, [ctypes.c_char_p, ctypes.c_int]
    found = int(find(name.encode(), _BPF_TRACE_FEXIT)) > 0
    last_messages()
    return found or (name.startswith("inet6_") and Path("/sys/kernel/btf/ipv6").exists())


def calibrate(loaded: Object, word: int) -> int:
    """Let ``bpf/calibrate.bpf.c`` find the registers of a system call; gives their offset on the kernel stack.

    Args:
        loaded: The object for older kernels.
        word: What its constant ``calibration_word`` was set to.

    Raises:
        LoadError: the call was not seen, or what was found cannot be.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    loaded.attach("calibrate")
    try:
        libc.syscall(ctypes.c_long(_GETPPID[os.uname().machine]), ctypes.c_ulong(word))
    finally:
        loaded.detach("calibrate")
    offset = _number(loaded, "registers_offset")
    if not 0 < offset < _REGISTERS_MAX or offset % 8:
        raise LoadError("cannot find the registers of a system call on this kernel's stacks; no payload could be read")
    return offset


def namespace() -> tuple[int, int]:
    """Level and inode number of the pid namespace that this process is in; ``(0, 0)`` for the host's.

    Raises:
        LoadError: the kernel does not tell the level.
    """
    inode = os.stat("/proc/self/ns/pid").st_ino
    if inode == _HOST_NAMESPACE:
        return 0, 0
    with Object(built_object(old=True)) as tried:
        tried.only_programs({"calibrate"})
        for name in tried.maps:
            if name.startswith("ring_"):
                tried.set_max_entries(name, 4096)
        tried.set_max_entries("connections", 1)
        word = calibration_word()
        tried.set_constant("calibration_word", word)
        tried.load()
        calibrate(tried, word)
        return _number(tried, "namespace_level"), inode


def _number(loaded: Object, name: str) -> int:
    cells = loaded.global_bytes(name)
    return int.from_bytes(bytes(cells[at] for at in range(8)), "little")


def calibration_word() -> int:
    """A first argument that no other process passes by chance."""
    return secrets.randbits(63) | 1 << 62
