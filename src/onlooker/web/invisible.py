"""TLS that is not seen into, as rows of "not seen": which processes, why, and how much went by.

Receives what `attach` found out about processes and what the kernel side counted of their connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from onlooker.attach.prober import Outlook
    from onlooker.capture.tls import OpaqueTls

_NAMED: Final = 5
"""Processes of a row that are named; the others are counted."""


@dataclass
class _Group:
    pids: list[int] = field(default_factory=list)
    connections: int = 0
    traffic: int = 0


def invisible_tls(
    outlook: Sequence[Outlook], opaque: Mapping[int, OpaqueTls], names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """One row for each library and reason.

    Args:
        outlook: What of the TLS of each process is seen.
        opaque: Ended TLS connections that nobody saw into, by process.
        names: Of running processes.
    """
    seen = {one.pid for one in outlook if one.visible}
    groups: dict[tuple[str, str], _Group] = {}
    told = set()
    for one in outlook:
        # a second library beside one that is seen into is only worth a word if something went by
        if one.visible or one.pid in told or (one.pid in seen and one.pid not in opaque):
            continue
        told.add(one.pid)
        _add(groups.setdefault((one.library, one.reason), _Group()), one.pid, opaque)
    for pid in sorted(opaque.keys() - told):
        reason = "the connections began before its library was found" if pid in seen else "its TLS library is not known"
        _add(groups.setdefault(("", reason), _Group()), pid, opaque)
    return [_row(library, reason, group, names) for (library, reason), group in groups.items()]


def _add(group: _Group, pid: int, opaque: Mapping[int, OpaqueTls]) -> None:
    group.pids.append(pid)
    if (counted := opaque.get(pid)) is not None:
        group.connections += counted.connections
        group.traffic += counted.sent + counted.received


def _row(library: str, reason: str, group: _Group, names: Mapping[int, str]) -> dict[str, Any]:
    named = [f"{names[pid]} (pid {pid})" if pid in names else f"pid {pid}" for pid in group.pids[:_NAMED]]
    if (more := len(group.pids) - len(named)) > 0:
        named.append(f"{more} more")
    by = f" by {library}" if library else ""
    why = f"TLS of {', '.join(named)}{by}: {reason}"
    if group.connections:
        why += f"; {_size(group.traffic)} went by in connections that ended"
    return {"what": "tls_connections" if group.connections else "tls", "count": group.connections, "why": why,
            "pids": group.pids[:100]}  # fmt: skip


def _size(value: int) -> str:
    for limit, unit in ((1 << 10, "B"), (1 << 20, "KB"), (1 << 30, "MB")):
        if value < limit:
            return f"{value / (limit >> 10):.0f} {unit}"
    return f"{value / (1 << 30):.1f} GB"
