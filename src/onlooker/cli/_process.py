"""A process under ``onlooker doctor --pid``: would its requests be seen, which, and if not, why."""

from __future__ import annotations

import os
from pathlib import Path

from onlooker.attach.prober import outlook_of
from onlooker.attach.tls import TlsCatalog, TlsLibrary
from onlooker.cli._host import DEGRADED, INFO, OK, Check
from onlooker.config import Loaded
from onlooker.discover import report
from onlooker.protocols.registry import PROTOCOLS

_PLAIN_PROTOCOLS = ", ".join(["http", *(info.name for info in PROTOCOLS.values() if info.dims)])
_UNSEEN_PROTOCOLS = "HTTP/3 (QUIC), Kafka and other messaging"


def check_process(pid: int, loaded: Loaded, proc: Path = Path("/proc")) -> list[Check]:
    """Everything about one process; the last line is the verdict."""
    group = f"process {pid}"
    try:
        exe = os.readlink(proc / str(pid) / "exe")
    except FileNotFoundError:
        return [Check(group, "process", DEGRADED, "there is no such process")]
    except OSError as err:
        return [Check(group, "process", DEGRADED, f"cannot be looked at: {err.strerror}", "run as root")]
    checks = [Check(group, "executable", INFO, exe), *_surroundings(group, pid, proc)]
    rows = report.examine(report.open_proc(str(proc)), loaded, own_pid=os.getpid())
    row = next((row for row in rows if row.pid == pid), None)
    if row is None:
        return [*checks, Check(group, "process", DEGRADED, "it is gone, or a kernel thread")]
    named = f"watched as {row.service} ({row.language}): " if row.watched else "not watched: "
    checks.append(Check(group, "selection", OK if row.watched else DEGRADED, named + row.reason))
    if row.ports:
        checks.append(Check(group, "listens on", INFO, ", ".join(map(str, row.ports))))
    libraries = TlsCatalog(proc=str(proc)).libraries(pid)
    for library in libraries:
        checks += _tls(group, pid, library)
    checks.append(_verdict(group, pid, row, libraries))
    return checks


def _surroundings(group: str, pid: int, proc: Path) -> list[Check]:
    """Its container, and the namespaces that are not onlooker's own."""
    process = report.open_proc(str(proc)).process(pid)
    container = process.container_id if process is not None else ""
    other = [name for name in ("pid", "net", "mnt", "user", "cgroup") if _differs(proc, pid, name)]
    apart = f"other namespaces than onlooker's: {', '.join(other)}" if other else "the namespaces of onlooker"
    return [Check(group, "container", INFO, f"{container or 'none'}; {apart}")]


def _differs(proc: Path, pid: int, name: str) -> bool:
    try:
        own, its = ((proc / which / "ns" / name).readlink() for which in ("self", str(pid)))
    except OSError:
        return False
    return own != its


def _tls(group: str, pid: int, library: TlsLibrary) -> list[Check]:
    (row,) = outlook_of(pid, [library])
    shown = f"{row.library} ({row.path}): {'its plaintext is seen' if row.visible else 'not seen into'}"
    advice = "" if row.visible else "its encrypted connections are counted, what they say is not seen"
    detail = f"{shown}{': ' if row.reason else ''}{row.reason}"
    checks = [Check(group, "TLS", OK if row.visible else DEGRADED, detail, advice)]
    for function in library.probes():
        site = function.arguments
        covered = ", ".join(name for name in function.covers if name != function.name)
        checks.append(
            Check(
                group, "probe site", INFO,
                f"{function.name}{f' (for {covered})' if covered else ''} at {site.offset:#x}: {site.explanation}; "
                f"about {function.expected_price_us} µs a call",
                "" if site.is_cheap else "the kernel steps through this instruction, which costs about 1 µs on bare "
                "metal and more in a virtual machine",
            )
        )  # fmt: skip
    return checks


def _verdict(group: str, pid: int, row: report.Row, libraries: list[TlsLibrary]) -> Check:
    name = "would be seen"
    if not row.watched:
        return Check(
            group, name, DEGRADED, f"nothing of it: {row.reason}", "select it, say with --pid, or lift the rule"
        )
    outlook = outlook_of(pid, libraries)
    seen = [one.library for one in outlook if one.visible]
    blind = [one.library for one in outlook if not one.visible]
    if blind and not seen:
        return Check(
            group, name, DEGRADED, f"{_PLAIN_PROTOCOLS} in plain text; nothing that goes through {', '.join(blind)}",
            "see the lines on TLS",
        )  # fmt: skip
    encrypted = f"by {', '.join(seen)}" if seen else "as soon as it loads a library that is known"
    return Check(
        group, name, OK, f"{_PLAIN_PROTOCOLS} in plain text, and through TLS {encrypted}; not {_UNSEEN_PROTOCOLS}"
    )
