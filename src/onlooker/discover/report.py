"""What would be watched, what not, and why: ``onlooker processes``, and the candidates that ``run`` names.

Names, paths and titles come from other people's processes: nothing of them reaches a terminal with a control
character in it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from onlooker import __version__
from onlooker.batches import Identities
from onlooker.config.loader import Loaded
from onlooker.discover.language import Languages
from onlooker.discover.naming import Host, name_service
from onlooker.discover.proc import ProcFs
from onlooker.discover.watch import Watcher

MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Row:
    """A process of the report.

    Attributes:
        tls: What of its TLS would be seen, a sentence a library; empty if it has none.
    """

    pid: int
    watched: bool
    reason: str
    executable: str
    service: str = ""
    name_source: str = ""
    language: str = ""
    instance: int = 0
    ports: tuple[int, ...] = ()
    tls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that listens on TCP ports and could be watched with ``flag``."""

    pid: int
    name: str
    language: str
    ports: tuple[int, ...]
    flag: str


class _NoFilter:
    """A report changes nothing in the kernel."""

    def watch(self, pid: int) -> None:
        pass

    def unwatch(self, pid: int) -> None:
        pass

    def set_context(self, pid: int, trust_thread: bool) -> None:
        pass


def open_proc(root: str = "/proc") -> ProcFs:
    """The ``/proc`` of this host, with its clock."""
    boot_unix_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return ProcFs(root, boot_unix_ns=boot_unix_ns, ticks_per_second=os.sysconf("SC_CLK_TCK"))


def examine(
    proc: ProcFs, loaded: Loaded, *, own_pid: int, tls_of: Callable[[int], Sequence[str]] = lambda pid: ()
) -> list[Row]:
    """A row for every process but kernel threads; the watched ones first, then by pid.

    ``tls_of`` says of a watched process what of its TLS would be seen.
    """
    config = loaded.config
    watcher = Watcher(
        proc,
        loaded.selection,
        Identities(),
        _NoFilter(),
        Host.read(sdk_version=__version__),
        own_pid=own_pid,
        service_name=config.service_name,
        service_namespace=config.service_namespace,
        system_paths=config.discovery.excluded_linux_system_paths,
        min_age_s=config.discovery.min_process_age,
    )
    watcher.start()
    rows = []
    for known in watcher.decisions.values():
        if known.reason == "a kernel thread":
            continue
        process = proc.process(known.pid) if known.watched else None
        member = known.member
        rows.append(
            Row(
                pid=known.pid,
                watched=known.watched,
                reason=known.reason,
                executable=known.exe,
                service=member.name if member else "",
                name_source=member.name_source if member else "",
                language=member.language.name if member else "",
                instance=member.top if member else 0,
                ports=tuple(sorted(process.ports)) if process else (),
                tls=tuple(tls_of(known.pid)) if known.watched else (),
            )
        )
    return sorted(rows, key=lambda row: (not row.watched, row.pid))


def candidates(proc_root: str = "/proc", *, own_pid: int = 0) -> list[Candidate]:
    """Processes that listen on TCP ports, by port: what could be watched.  Workers that share a port count once."""
    proc = open_proc(proc_root)
    languages = Languages()
    found: dict[tuple[int, ...], Candidate] = {}
    for pid in proc.pids():
        process = proc.process(pid)
        if process is None or process.stat.is_kernel_thread or pid == own_pid:
            continue
        ports = tuple(sorted(process.ports))
        if not ports or ports in found:
            continue
        language = languages.detect(process)
        name = name_service(process, language).name
        found[ports] = Candidate(pid, name, language.name, ports, "--open-port " + ",".join(map(str, ports)))
    return sorted(found.values(), key=lambda candidate: candidate.ports)


def main(
    loaded: Loaded,
    as_json: bool,
    *,
    out: TextIO | None = None,
    tls_of: Callable[[int], Sequence[str]] = lambda pid: (),
) -> int:
    """Print the report to ``out`` (standard output by default); the exit code is 0."""
    out = out or sys.stdout
    rows = examine(open_proc(), loaded, own_pid=os.getpid(), tls_of=tls_of)
    if as_json:
        json.dump({"processes": [asdict(row) for row in rows]}, out, indent=2)
        out.write("\n")
    elif out.isatty():
        _print_table(rows, out)
    else:
        _print_plain(rows, out)
    return 0


def printable(text: str, limit: int = MAX_TEXT) -> str:
    r"""Text that a terminal takes as text: everything else is written as ``\xNN``, and long text is cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:limit])
    return shown + ("…" if len(text) > limit else "")


def _summary(rows: Sequence[Row]) -> str:
    watched = [row for row in rows if row.watched]
    services = {(row.service, row.instance) for row in watched}
    return f"{len(watched)} of {len(rows)} processes would be watched, {len(services)} service instances"


def _ports(ports: Sequence[int]) -> str:
    return ",".join(map(str, ports[:8])) + ("…" if len(ports) > 8 else "")


def _print_plain(rows: Sequence[Row], out: TextIO) -> None:
    for row in rows:
        mark = "watch" if row.watched else "leave"
        service = f"{printable(row.service)} ({row.language}) " if row.watched else ""
        ports = f"ports {_ports(row.ports)} " if row.ports else ""
        out.write(f"{mark} {row.pid} {service}{ports}{printable(row.executable)}: {printable(row.reason)}\n")
        for text in row.tls:
            out.write(f"      TLS: {printable(text)}\n")
    out.write(_summary(rows) + "\n")


def _print_table(rows: Sequence[Row], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=_summary(rows), title_justify="left", box=None, pad_edge=False)
    table.add_column("PID", justify="right", no_wrap=True)
    for column in ("SERVICE", "LANGUAGE", "PORTS"):
        table.add_column(column, no_wrap=True)
    table.add_column("EXECUTABLE", overflow="ellipsis", no_wrap=True)
    table.add_column("WHY")
    table.add_column("TLS")
    for row in rows:
        table.add_row(
            str(row.pid), Text(printable(row.service)), row.language, _ports(row.ports),
            Text(printable(row.executable)), Text(printable(row.reason)),
            Text("; ".join(map(printable, row.tls))), style="" if row.watched else "dim",
        )  # fmt: skip
    Console(file=out).print(table)
