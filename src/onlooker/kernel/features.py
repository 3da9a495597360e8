"""What the running kernel lets this process do, found by trying: tiny programs are loaded and attached, maps made.

Receives nothing, hands on one `Feature` for each thing that onlooker can make use of, with what is lost without it.
Whatever is made for a trial is gone when the trial ends.  No version number is looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from onlooker.errors import AgentError
from onlooker.kernel import uprobe
from onlooker.kernel._libbpf import last_messages, library
from onlooker.kernel.restrictions import has_type_information, lockdown

_MAP_CREATE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 5, 17
_MAP_RINGBUF = 27
_PROG_TRACING = 26
_TRACE_RAW_TP, _TRACE_FEXIT = 23, 25
_SK_STORAGE_GET, _TASK_STORAGE_GET, _TASK_PT_REGS = 107, 156, 175
_LOG_SIZE = 1 << 14
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
_RETURN_ZERO = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was tried.

    Attributes:
        name: What it is called in reports.
        available: Whether it works here.
        detail: What was found.
        consequence: What is lost without it, and what to do; "" if it works, or nothing is lost.
        required: Whether onlooker sees nothing without it.
    """

    name: str
    available: bool
    detail: str
    consequence: str
    required: bool = False


class _Trials:
    """The system calls, and what the trials share."""

    def __init__(self) -> None:
        self.kernel = uprobe._Kernel()

    def load(self, code: bytes, kind: int, attach_type: int = 0, target: int = 0) -> tuple[int, str]:
        """Load a program: descriptor or negative error number, and the verifier's words."""
        text, log = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(_LOG_SIZE)
        instructions = ctypes.create_string_buffer(code, len(code))
        attributes = struct.pack(
            "<IIQQIIQII16sII36xI4x", kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(text),
            1, _LOG_SIZE, ctypes.addressof(log), 0, 0, b"onlooker_try", 0, attach_type, target,
        )  # fmt: skip
        try:
            return self.kernel.bpf(_PROG_LOAD, attributes), ""
        except OSError as err:
            return -(err.errno or errno.EINVAL), log.value.decode(errors="replace").strip()

    def map_error(self, kind: int, key: int, value: int, entries: int) -> str:
        """Make a map; gives why not, or ""."""
        try:
            os.close(self.kernel.bpf(_MAP_CREATE, struct.pack("<IIIII52x", kind, key, value, entries, 0)))
        except OSError as err:
            return err.strerror or str(err)
        return ""

    def attach_tracing(self, name: str, attach_type: int) -> str:
        """Load and attach a program that does nothing to a function or tracepoint; gives why not, or ""."""
        target = kernel_type_id(name, attach_type)
        if target <= 0:
            return f"the kernel has no {name}"
        program, log = self.load(_RETURN_ZERO, _PROG_TRACING, attach_type, target)
        if program < 0:
            return log.splitlines()[-1] if log else os.strerror(-program)
        with ExitStack() as stack:
            stack.callback(os.close, program)
            try:
                link = self.kernel.bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", 0, program))
            except OSError as err:
                return err.strerror or str(err)
            stack.callback(os.close, link)
        return ""

    def lacks_helper(self, number: int) -> str:
        """Whether tracing programs may call a helper; gives why not, or "".

        The call has no arguments, so it is refused in any case: the reason tells.
        """
        target = kernel_type_id("sched_process_exit", _TRACE_RAW_TP)
        code = struct.pack("<BBhi", 0x85, 0, 0, number) + _RETURN_ZERO
        program, log = self.load(code, _PROG_TRACING, _TRACE_RAW_TP, target)
        if program >= 0:
            os.close(program)
            return ""
        for line in log.splitlines():
            if "unknown func" in line or "invalid func" in line or "cannot use helper" in line:
                return line
        return "" if log else os.strerror(-program)

    def kprobe_error(self) -> str:
        """Probe the entry of a function; gives why not, or ""."""
        try:
            pmu = int(_KPROBE_PMU.read_text())
        except (OSError, ValueError):
            return "the kernel was built without kprobes"
        name = ctypes.create_string_buffer(b"inet_sendmsg")
        attributes = bytearray(128)
        struct.pack_into("<IIQ", attributes, 0, pmu, 128, 0)
        struct.pack_into("<QQ", attributes, 56, ctypes.addressof(name), 0)
        try:
            os.close(self.kernel.perf_event_open(bytes(attributes), os.getpid()))
        except OSError as err:
            return err.strerror or str(err)
        return ""

    def uprobe_error(self, found: uprobe.Features) -> str:
        """Put a probe on a function of the C library, in this process alone; gives why not, or ""."""
        address = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value or 0
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, offset, *_, path = (*line.split(None, 5), "")[:6]
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end:
                break
        else:
            return "the C library is in no mapping"
        program = uprobe.load_nothing(found.attach_type)
        try:
            with uprobe.attach(
                program, path, [address - start + int(offset, 16)], pid=os.getpid(), features=found, cookies=[0]
            ):
                return ""
        except AgentError as err:
            return str(err)
        finally:
            os.close(program)


def kernel_type_id(name: str, attach_type: int) -> int:
    """Id of a function or tracepoint in the kernel's type information; 0 or less if there is none."""
    find = library().libbpf_find_vmlinux_btf_id
    find.restype, find.argtypes = ctypes.c_int, [ctypes.c_char_p, ctypes.c_int]
    found = int(find(name.encode(), attach_type))
    last_messages()
    return found


def probe(*, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> list[Feature]:
    """Try everything.

    Args:
        sys: Root of sysfs.
        proc: Root of the process file system.

    Raises:
        AgentError: libbpf is missing.
    """
    library()
    found = [_type_information(sys), _lockdown(sys)]
    try:
        os.close(uprobe.load_nothing())
    except OSError as err:
        advice = "run as root, or grant CAP_BPF and CAP_PERFMON; the configuration can be checked, and stored data read"
        return [*found, Feature("programs", False, f"cannot be loaded: {err.strerror}", advice, required=True)]
    except AgentError as err:
        return [*found, Feature("programs", False, str(err), "use x86-64 or arm64", required=True)]
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with contextlib.suppress(ValueError, OSError):  # maps count against it before 5.11, and the loader lifts it too
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        found += [Feature("programs", True, "can be loaded", ""), *_tried(), *_settings(proc, lockdown(sys))]
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
    return found


def _tried() -> list[Feature]:
    trials = _Trials()
    found = []

    def tell(name: str, error: str, consequence: str, *, required: bool = False) -> bool:
        found.append(Feature(name, not error, error or "works", consequence if error else "", required))
        return not error

    tell("ring buffer", trials.map_error(_MAP_RINGBUF, 0, 0, 4096), "records cannot be handed on (5.8 has it)",
         required=True)  # fmt: skip
    tell("memory for maps", trials.map_error(_MAP_RINGBUF, 0, 0, 16 << 20),
         "rings of 16 MB cannot be had: lift RLIMIT_MEMLOCK, grant CAP_SYS_RESOURCE, or give the cgroup more",
         required=True)  # fmt: skip
    hooked = tell("socket tracepoints", trials.attach_tracing("sock_send_length", _TRACE_RAW_TP),
                  "fexit is taken instead: the first request of threads that wait at the start is missed")  # fmt: skip
    # what stands further down the ladder is only missed where nothing above it works
    lost = "" if hooked else "kprobes are taken instead, which see TCP only"
    hooked = tell("fexit", trials.attach_tracing("inet_sendmsg", _TRACE_FEXIT), lost) or hooked
    lost = "" if hooked else "use Linux 5.10 or newer with kprobes or a BPF trampoline; nothing can be captured"
    tell("kprobes", trials.kprobe_error(), lost, required=not hooked)
    tell("process tracepoints", trials.attach_tracing("sched_process_exec", _TRACE_RAW_TP),
         "processes cannot be followed", required=True)  # fmt: skip
    tell("storage in sockets", trials.lacks_helper(_SK_STORAGE_GET),
         "at most 8,192 connections are followed at once, in a table of 16 MB")  # fmt: skip
    tell("storage in tasks", trials.lacks_helper(_TASK_STORAGE_GET), "")
    tell("user registers", trials.lacks_helper(_TASK_PT_REGS), "")
    uprobes = uprobe.detect()
    tell("uprobes", trials.uprobe_error(uprobes), "TLS cannot be seen through")
    tell("uprobes in groups", "" if uprobes.multi else "one link for each place", "")
    tell("uprobe sessions", "" if uprobes.session else "entry and return are two programs", "")
    tell("uprobe cookies", "" if uprobes.cookies else "probes carry no number", "TLS cannot be seen through")
    return found


def _type_information(sys: Path) -> Feature:
    if has_type_information(sys):
        return Feature("type information", True, "the kernel describes its own types (BTF)", "")
    return Feature(
        "type information", False, f"{sys}/kernel/btf/vmlinux is missing",
        "nothing can be captured: use a kernel with CONFIG_DEBUG_INFO_BTF", required=True,
    )  # fmt: skip


def _lockdown(sys: Path) -> Feature:
    mode = lockdown(sys)
    if mode == "confidentiality":
        return Feature("lockdown", False, "confidentiality: programs may not read memory",
                       "nothing can be captured: boot with lockdown=integrity, or without", required=True)  # fmt: skip
    detail = {"": "the kernel has none", "none": "off"}.get(mode, f"{mode}: reading is allowed")
    return Feature("lockdown", True, detail, "")


def _settings(proc: Path, mode: str) -> list[Feature]:
    jit = _read(proc / "sys/net/core/bpf_jit_enable")
    paranoid = _read(proc / "sys/kernel/perf_event_paranoid")
    unprivileged = _read(proc / "sys/kernel/unprivileged_bpf_disabled")
    return [
        Feature("compiler for programs", jit != "0", f"net.core.bpf_jit_enable = {jit or 'unknown'}",
                "programs are interpreted, several times slower, and fexit is not there: set it to 1" * (jit == "0")),
        Feature("perf_event_paranoid", True, f"{paranoid or 'unknown'}; what it forbids was tried above", ""),
        Feature("unprivileged programs", True,
                f"kernel.unprivileged_bpf_disabled = {unprivileged or 'unknown'}; onlooker has no use for them", ""),
        Feature("writing user memory", mode in ("", "none"),
                "not tried, because the kernel would log a warning; lockdown decides", ""),
    ]  # fmt: skip


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
