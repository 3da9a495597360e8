"""What is known of a connection whose messages user space takes apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from onlooker.protocols import SegmentParser


class Row(NamedTuple):
    """One record as plain Python values: a structured row costs as much for one field as this for all."""

    connection: int
    sequence: int
    protocol: int
    role: int
    direction: int
    flags: int
    captured_head: int
    captured_tail: int
    tid: int
    tgid: int
    mono_ns: int
    stream_offset: int
    length: int
    trace_flags: int
    parent_source: int
    head: bytes
    tail: bytes
    context: bytes
    """Trace id and span id, or nothing."""
    where: tuple[NDArray[Any], int]
    """Array and index of the record, for what is needed once a connection."""


class Peers(NamedTuple):
    """The addresses of a connection."""

    local_address: bytes
    remote_address: bytes
    local_port: int
    remote_port: int

    @classmethod
    def of(cls, record: Any) -> Peers:
        """As a record of any kind says."""
        return cls(
            record["local_address"].tobytes(), record["remote_address"].tobytes(), int(record["local_port"]),
            int(record["remote_port"]),
        )  # fmt: skip


@dataclass(slots=True)
class Connection:
    """What is known of one connection."""

    key: int
    peers: Peers
    pid: int
    parser: SegmentParser | None = None
    protocol: int = 0
    role: int = 0
    broken: bool = False
    next: int = 0
    """Number of the segment that comes next."""
    early: list[Row] = field(default_factory=list)
