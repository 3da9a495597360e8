"""What the agent gives up once it runs: it starts no program, mounts nothing, changes neither its user nor the host.

A seccomp filter for all threads, which nothing takes off again, and ``no_new_privs``.  It names what is forbidden: what
numpy, OpenSSL and gRPC call changes with their versions, and a forgotten call would be a crash some night.

Source: Documentation/userspace-api/seccomp_filter.rst; the numbers are those of asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

_X86: Final = {
    "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_writev": 311, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "mount": 165, "umount2": 166,
    "pivot_root": 155, "move_mount": 429, "fsopen": 430, "fsmount": 432, "open_tree": 428, "mount_setattr": 442,
    "swapon": 167, "swapoff": 168, "settimeofday": 164, "clock_settime": 227, "sethostname": 170, "setdomainname": 171,
    "iopl": 172, "ioperm": 173, "acct": 163, "quotactl": 179, "add_key": 248, "request_key": 249, "keyctl": 250,
    "unshare": 272, "setns": 308, "chroot": 161, "mknod": 133, "mknodat": 259, "setuid": 105, "setgid": 106,
    "setreuid": 113, "setregid": 114, "setresuid": 117, "setresgid": 119, "setgroups": 116, "userfaultfd": 323,
}  # fmt: skip
_ARM: Final = {
    "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_writev": 271, "init_module": 105, "finit_module": 273,
    "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "mount": 40, "umount2": 39,
    "pivot_root": 41, "move_mount": 429, "fsopen": 430, "fsmount": 432, "open_tree": 428, "mount_setattr": 442,
    "swapon": 224, "swapoff": 225, "settimeofday": 170, "clock_settime": 112, "sethostname": 161, "setdomainname": 162,
    "acct": 89, "quotactl": 60, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "setns": 268,
    "chroot": 51, "mknodat": 33, "setuid": 146, "setgid": 144, "setreuid": 145, "setregid": 143, "setresuid": 147,
    "setresgid": 149, "setgroups": 159, "userfaultfd": 282,
}  # fmt: skip
MACHINES: Final = {"x86_64": (0xC000003E, _X86), "aarch64": (0xC00000B7, _ARM)}
"""By machine: AUDIT_ARCH of linux/audit.h, and the numbers of the forbidden calls."""

_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}  # seccomp(2)
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ, |JGE, BPF_RET
_ALLOW, _ERRNO_EPERM = 0x7FFF0000, 0x00050001
_X32: Final = 0x40000000


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def filter_of(machine: str) -> bytes:
    """The filter, ``struct sock_filter`` one after the other: EPERM for what is forbidden and for foreign call tables.

    Raises:
        KeyError: There are no numbers for this machine.
    """
    architecture, calls = MACHINES[machine]
    numbers = sorted(calls.values())
    count = len(numbers)
    steps = [
        (_LOAD_WORD, 0, 0, 4),  # seccomp_data.arch
        (_JUMP_EQUAL, 0, count + 3, architecture),
        (_LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_AT_LEAST, count + 1, 0, _X32),
        *((_JUMP_EQUAL, count - at, 0, number) for at, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO_EPERM),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def confine() -> str:
    """Put the filter on all threads of this process, for good.

    Returns:
        Empty, or why it could not be done; the agent works without it.
    """
    machine = platform.machine()
    if machine not in MACHINES:
        return f"no table of system calls for {machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return f"no_new_privs: {os.strerror(ctypes.get_errno())}"
    code = filter_of(machine)
    steps = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(steps))
    if result := libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program)):
        # TSYNC gives the thread that it could not reach
        return f"seccomp: {os.strerror(ctypes.get_errno()) if result < 0 else f'thread {result} has another filter'}"
    return ""
