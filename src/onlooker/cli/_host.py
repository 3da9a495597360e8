"""What this host and these privileges allow: the checks of ``onlooker doctor`` that need no BPF.

Each function reads below a root that it is given, so that tests can describe any host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onlooker.config import Config
from onlooker.config.sections.exports import OtelMetricsExport, OtelTracesExport

OK, DEGRADED, FAILED, INFO = "ok", "degraded", "failed", "info"
_TIME_ERROR = 5  # of adjtimex(2): not synchronised
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h

CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24, "CAP_PERFMON": 38, "CAP_BPF": 39, "CAP_CHECKPOINT_RESTORE": 40,
}  # fmt: skip
_BY_ADMIN = {"CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE"}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        group: What it is about, such as ``privileges``.
        name: What was looked at.
        state: ``ok``, ``degraded`` (works with less), ``failed`` (cannot work) or ``info``.
        detail: What was found.
        advice: What to do, or what is lost; "" where there is nothing to do.
    """

    group: str
    name: str
    state: str
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Need:
    """A capability that the configuration needs."""

    capability: str
    why: str
    loss: str
    fatal: bool


def needed_capabilities(config: Config) -> list[Need]:
    """The capabilities that the effective configuration needs, and why."""
    needs = [
        Need("CAP_BPF", "load programs and maps", "nothing can be captured", True),
        Need("CAP_PERFMON", "attach to kernel functions, read memory from programs", "nothing can be captured", True),
        Need("CAP_SYS_PTRACE", "read environment, maps and executables of other users' processes",
             "such processes cannot be named or chosen by path", False),
        Need("CAP_DAC_READ_SEARCH", "open executables and libraries whatever their permissions",
             "routes into TLS libraries of such files cannot be found", False),
        Need("CAP_CHECKPOINT_RESTORE", "open files that are mapped but deleted",
             "processes whose files were replaced since their start lose TLS", False),
    ]  # fmt: skip
    ports = (config.web.port, config.prometheus_export.port, config.health_check.port)
    if any(0 < port < 1024 for port in ports):
        needs.append(Need("CAP_NET_BIND_SERVICE", "listen on a port below 1024", "that listener cannot start", True))
    return needs


def held_capabilities(proc: Path) -> set[str]:
    """The effective capabilities of this process, of those that matter here."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", (proc / "self/status").read_text(), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return {name for name, bit in CAPABILITIES.items() if mask >> bit & 1}


def check_privileges(config: Config, proc: Path) -> list[Check]:
    """Needed capabilities against held ones."""
    held = held_capabilities(proc)
    checks = []
    for need in needed_capabilities(config):
        has = need.capability in held or (need.capability in _BY_ADMIN and "CAP_SYS_ADMIN" in held)
        by = " (by CAP_SYS_ADMIN)" if has and need.capability not in held else ""
        state = OK if has else FAILED if need.fatal else DEGRADED
        detail = f"held{by}: {need.why}" if has else f"missing: {need.why}"
        advice = "" if has else f"{need.loss}; run as root or grant it"
        checks.append(Check("privileges", need.capability, state, detail, advice))
    paranoid = _read(proc / "sys/kernel/perf_event_paranoid")
    if paranoid.lstrip("-").isdecimal() and int(paranoid) >= 3 and not held & {"CAP_SYS_ADMIN", "CAP_PERFMON"}:
        checks.append(Check("privileges", "perf_event_paranoid", DEGRADED, paranoid, "grant CAP_SYS_ADMIN"))
    return checks


def check_kernel(sys: Path, release: str, machine: str) -> list[Check]:
    """Type information and lockdown."""
    checks = [Check("kernel", "release", INFO, f"{release} {machine}")]
    if (sys / "kernel/btf/vmlinux").exists():
        checks.append(Check("kernel", "BTF", OK, "the kernel describes its own types"))
    else:
        checks.append(
            Check(
                "kernel", "BTF", FAILED, "/sys/kernel/btf/vmlinux is missing", "use a kernel with CONFIG_DEBUG_INFO_BTF"
            )
        )
    mode = re.search(r"\[(\w+)\]", _read(sys / "kernel/security/lockdown"))
    if mode is None or mode[1] == "none":
        checks.append(Check("kernel", "lockdown", OK, "off"))
    elif mode[1] == "confidentiality":
        checks.append(
            Check("kernel", "lockdown", FAILED, "confidentiality: programs may not read kernel memory",
                  "boot with lockdown=integrity or without; nothing can be captured")
        )  # fmt: skip
    else:
        checks.append(Check("kernel", "lockdown", OK, f"{mode[1]}: reading is allowed, and onlooker writes nothing"))
    return checks


def check_host(proc: Path, memlock: tuple[int, int]) -> list[Check]:
    """Mounts, namespaces and limits.

    Args:
        proc: Root of the process file system.
        memlock: Soft and hard RLIMIT_MEMLOCK in bytes; -1 for none.
    """
    checks = []
    mounts = [line.split() for line in _read(proc / "mounts").splitlines() if len(line.split()) >= 4]
    for kind, loss in (
        ("bpf", "nothing is pinned, so it is not needed"),
        ("cgroup2", "container ids come from cgroup paths; without it they are missing"),
        ("tracefs", "only kernels without trampolines need it, for entry probes"),
    ):
        where = [fields[1] for fields in mounts if fields[2] == kind]
        checks.append(Check("mounts", kind, OK if where else INFO, where[0] if where else f"not mounted; {loss}"))
    hidden = [fields for fields in mounts if fields[2] == "proc" and re.search(r"hidepid=([1-9]|inv|noac)", fields[3])]
    if hidden:
        checks.append(
            Check(
                "mounts", "hidepid", DEGRADED, "/proc hides other users' processes", "run as root, or gid= of the mount"
            )
        )
    try:
        inode = os.stat(proc / "self/ns/pid").st_ino
    except OSError:
        inode = 0
    if inode == _INITIAL_PID_NAMESPACE:
        checks.append(Check("host", "pid namespace", OK, "the host's"))
    else:
        checks.append(
            Check("host", "pid namespace", DEGRADED, "a container's: only processes inside it are seen",
                  "in Kubernetes set hostPID: true; in Docker use --pid=host")
        )  # fmt: skip
    soft = memlock[0]
    shown = "unlimited" if soft < 0 else f"{soft // 1024} KiB"
    checks.append(Check("host", "locked memory", INFO, f"{shown} (counts for maps on kernels before 5.11)"))
    return checks


def clock_error_us() -> int | None:
    """How far the kernel thinks its clock may be from the time, in µs; None if nobody keeps it."""
    timex = ctypes.create_string_buffer(256)  # struct timex is 208 bytes on 64 bits; modes 0 changes nothing
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except AttributeError:
        return None
    (error,) = struct.unpack_from("<q", timex, 24)  # maxerror, after modes, offset and freq
    return None if state in (-1, _TIME_ERROR) else int(error)


def check_clock(proc: Path, sys: Path, error_us: int | None) -> list[Check]:
    """Whether times can be believed, and cost little to take.

    Args:
        proc: Root of the process file system.
        sys: Root of sysfs.
        error_us: See `clock_error_us`.
    """
    if error_us is None:
        advice = "traces that cross hosts may look out of order; run chrony or systemd-timesyncd"
        checks = [Check("clock", "synchronised", INFO, "nobody keeps it, as far as the kernel knows", advice)]
    else:
        checks = [Check("clock", "synchronised", OK, f"within {error_us / 1000:.1f} ms, says the kernel")]
    source = _read(sys / "devices/system/clocksource/clocksource0/current_clocksource")
    slow = source in ("hpet", "acpi_pm", "jiffies", "refined-jiffies")
    checks.append(
        Check("clock", "source", DEGRADED if slow else OK, source or "unknown",
              "each reading takes microseconds, and every request is timed: use tsc or kvm-clock" if slow else "")
    )  # fmt: skip
    shifted = re.search(r"^monotonic\s+(-?[1-9]\d*)", _read(proc / "self/timens_offsets"), re.MULTILINE)
    if shifted is not None:
        checks.append(
            Check("clock", "time namespace", DEGRADED, f"its clock is {shifted[1]} s off the host's",
                  "spans would be off by as much: run onlooker in the host's time namespace")
        )  # fmt: skip
    return checks


def check_outputs(config: Config) -> list[Check]:
    """Whether the store can be written, the listeners can listen and the receivers answer."""
    checks = []
    if config.store.enabled:
        directory = Path(config.store.path).parent
        existing = next((one for one in (directory, *directory.parents) if one.exists()), Path("/"))
        if os.access(existing, os.W_OK):
            checks.append(_check_room(existing, config))
        else:
            checks.append(
                Check(
                    "outputs",
                    "store",
                    DEGRADED,
                    f"{existing} cannot be written",
                    "set store.path, or run with --no-store",
                )
            )
    listeners = (
        ("web", config.web.address, config.web.port),
        ("prometheus_export", config.prometheus_export.address, config.prometheus_export.port),
        ("health_check", config.health_check.listen_address, config.health_check.port),
    )
    checks += [_check_listener(name, address, port) for name, address, port in listeners if port]
    receivers = (
        ("otel_traces_export", config.otel_traces_export),
        ("otel_metrics_export", config.otel_metrics_export),
    )
    checks += [_check_receiver(name, section) for name, section in receivers if section.endpoint]
    return checks


def _check_room(directory: Path, config: Config) -> Check:
    room = os.statvfs(directory)
    free, path = room.f_bavail * room.f_frsize, config.store.path
    with contextlib.suppress(OSError):
        free += os.stat(path).st_size
    if free < config.store.max_bytes:
        detail = f"{path}: {free >> 20} MB are free, it may take {config.store.max_bytes >> 20} MB"
        return Check("outputs", "store", DEGRADED, detail, "set store.max_bytes lower, or store.path elsewhere")
    return Check("outputs", "store", OK, path)


def _check_listener(name: str, address: str, port: int) -> Check:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
    except OSError as err:
        advice = f"another program has it (a running onlooker?); set {name}.port"
        return Check("outputs", name, DEGRADED, f"cannot listen on {address}:{port}: {err.strerror or err}", advice)
    return Check("outputs", name, OK, f"{address}:{port} is free")


def _check_receiver(name: str, section: OtelTracesExport | OtelMetricsExport) -> Check:
    url = urlsplit(section.endpoint)
    where = url.path if url.scheme == "unix" else f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}"
    told = "answers"
    try:
        if url.scheme == "unix":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.settimeout(2)
                peer.connect(url.path)
        else:
            host, _, port = where.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=2) as peer:
                if url.scheme == "https":
                    with _trust(section).wrap_socket(peer, server_hostname=host) as secured:
                        told = f"answers by {secured.version()}, and its certificate is trusted"
    except OSError as err:  # of TLS, too
        reason = getattr(err, "verify_message", "") or err.strerror or err
        return Check("outputs", name, DEGRADED, f"{where} does not answer as it should: {reason}",
                     "what is not delivered is dropped and counted")  # fmt: skip
    return Check("outputs", name, OK, f"{where} {told}")


def _trust(section: OtelTracesExport | OtelMetricsExport) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=section.ca_file or None)
    if section.cert_file:
        context.load_cert_chain(section.cert_file, section.key_file or None)
    if section.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
