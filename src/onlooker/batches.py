"""What travels between the stages: batches of requests as columns, and the tables they point into.

Stages import this module and never each other.  A request is a row; its columns are numpy arrays of the same length.
Strings that repeat are interned once in a `Values` table and travel as int32 ids; text that rarely repeats (paths,
queries) travels as a `Text` column, which points into one byte pool and owns nothing per row.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv

U1: TypeAlias = NDArray[np.uint8]
U2: TypeAlias = NDArray[np.uint16]
U8: TypeAlias = NDArray[np.uint64]
I4: TypeAlias = NDArray[np.int32]
I8: TypeAlias = NDArray[np.int64]

AttributeValue: TypeAlias = str | int | float | bool | tuple[str, ...]


class SpanKind(enum.IntEnum):
    """OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class StatusCode(enum.IntEnum):
    """OTLP's numbers of a span's status."""

    UNSET = 0
    OK = 1
    ERROR = 2


SKIP_METRICS = 1
"""Bit of `RequestBatch.skip`: the row is in no metric."""
SKIP_TRACES = 2
"""Bit of `RequestBatch.skip`: the row becomes no span."""


class Values:
    """An interning table: hashable value to a small int id and back.  Id 0 is "absent".

    Bounded: past ``capacity`` distinct values each new one becomes the overflow value and is counted, so that a
    hostile peer cannot grow it.  Types are kept apart (the int 200 is not the string "200").
    """

    OVERFLOW = "(overflow)"

    def __init__(self, capacity: int = 65_536) -> None:
        self.capacity = capacity
        self.overflowed = 0
        self._ids: dict[Hashable, int] = {}
        self._values: list[AttributeValue | None] = [None]
        self._overflow_id = self.id(self.OVERFLOW)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, value_id: int) -> AttributeValue | None:
        return self._values[value_id]

    def id(self, value: AttributeValue | None) -> int:
        """The id of ``value``, made if it is new."""
        if value is None:
            return 0
        # most are strings, and a string is equal to nothing else
        key: Hashable = value if value.__class__ is str else (value.__class__, value)
        found = self._ids.get(key)
        if found is not None:
            return found
        if len(self._values) >= self.capacity:
            self.overflowed += 1
            return self._overflow_id
        self._ids[key] = new = len(self._values)
        self._values.append(value)
        return new


@dataclass(frozen=True, slots=True)
class Text:
    """A column of byte strings in one pool: row i is ``pool[start[i] : start[i] + length[i]]``.

    Attributes:
        pool: ``(m,)`` uint8, shared by all the columns of a batch.
        start: ``(n,)`` int64 offsets into the pool.
        length: ``(n,)`` int32 lengths in bytes; -1 where the row has no value.
    """

    pool: U1
    start: I8
    length: I4

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, row: int) -> bytes | None:
        """The bytes of one row, or None.  For tests, printers and rare rows: not for the hot path."""
        length = int(self.length[row])
        start = int(self.start[row])
        return None if length < 0 else self.pool[start : start + length].tobytes()

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Text:
        """The column of the chosen rows; the pool is shared."""
        return Text(self.pool, self.start[rows], self.length[rows])

    def own(self) -> Text:
        """The same column over a pool with nothing but its own bytes, for rows that outlive their batch."""
        size = np.maximum(self.length, 0).astype(np.int64)
        ends = np.cumsum(size)
        start = ends - size
        total = int(ends[-1]) if len(ends) else 0
        return Text(self.pool[np.repeat(self.start - start, size) + np.arange(total)], start, self.length.copy())

    @classmethod
    def of(cls, values: list[bytes | None]) -> Text:
        """A column from Python values.  For tests and rare rows."""
        length = np.array([-1 if v is None else len(v) for v in values], np.int32)
        start = np.zeros(len(values), np.int64)
        if len(values) > 1:
            np.cumsum(np.maximum(length[:-1], 0), out=start[1:])
        return cls(np.frombuffer(b"".join(v or b"" for v in values), np.uint8), start, length)


Column: TypeAlias = Text | I8


@dataclass(slots=True)
class RequestBatch:
    """Finished requests, one row each, in no promised order.

    ``assemble`` fills the upper block, ``enrich`` the ids of process and service, ``aggregate`` the series,
    ``sample`` the mask.  Times are Unix ns, int64; ids are raw bytes as on the wire.

    Attributes:
        protocol: ``(n,)`` uint8, `enum protocol` of ``bpf/records.h``.
        kind: ``(n,)`` uint8, `SpanKind`.
        pid, tid: ``(n,)`` int32.
        connection: ``(n,)`` uint64, unique on this host since boot.
        start_unix_ns: First byte of the request.
        request_end_unix_ns: Last byte of the request.
        response_start_unix_ns: First byte of the response; 0 where there was none.
        end_unix_ns: Last byte of the response, or the moment it was given up.  Never before the start.
        request_bytes, response_bytes: ``(n,)`` int64 body sizes; -1 where unknown.
        local_address, remote_address: ``(n, 16)`` uint8, IPv4 mapped into IPv6; zero for UNIX sockets.
        local_port, remote_port: ``(n,)`` uint16.
        trace_id: ``(n, 16)`` uint8.  span_id, parent_span_id: ``(n, 8)`` uint8; parent zero: none.
        trace_flags: ``(n,)`` uint8, of the W3C traceparent.
        parent_source: ``(n,)`` uint8, `enum parent_source`.
        status: ``(n,)`` uint8, `StatusCode`.
        stream: ``(n,)`` bool; True keeps the row out of latency histograms of requests (its end is a stream's life).
        dims: ``(n, d)`` int32 ids into `values`: the low-cardinality attributes that make a series, named by
            ``dim_names`` (OpenTelemetry attribute keys).  0: the row lacks that attribute.
        dim_names: ``d`` attribute keys.
        name: ``(n,)`` int32 id into `values`: the span name.
        varying: Attributes that differ from span to span: key to `Text` or int64 column (-1: absent).
        process, service: ``(n,)`` int32 ids into the `Identities`; -1: not known.
        series: ``(n,)`` int32 ids into the `SeriesTable`.
        keep: ``(n,)`` bool, which rows become spans.
        weight: ``(n,)`` int64, how many operations a row stands for, or empty: one each.
        skip: ``(n,)`` uint8 of `SKIP_METRICS` and `SKIP_TRACES`, or empty: nothing is skipped (ignored routes).
    """

    protocol: U1
    kind: U1
    pid: I4
    tid: I4
    connection: U8
    start_unix_ns: I8
    request_end_unix_ns: I8
    response_start_unix_ns: I8
    end_unix_ns: I8
    request_bytes: I8
    response_bytes: I8
    local_address: U1
    remote_address: U1
    local_port: U2
    remote_port: U2
    trace_id: U1
    span_id: U1
    parent_span_id: U1
    trace_flags: U1
    parent_source: U1
    status: U1
    stream: NDArray[np.bool_]
    dims: I4
    dim_names: tuple[str, ...]
    name: I4
    varying: dict[str, Column] = field(default_factory=dict)
    process: I4 = field(default_factory=lambda: np.empty(0, np.int32))
    service: I4 = field(default_factory=lambda: np.empty(0, np.int32))
    series: I4 = field(default_factory=lambda: np.empty(0, np.int32))
    keep: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    skip: U1 = field(default_factory=lambda: np.empty(0, np.uint8))
    weight: I8 = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.kind)

    def requests(self, rows: NDArray[np.intp] | NDArray[np.bool_] | None = None) -> int:
        """How many requests the batch stands for, or the chosen rows of it."""
        if len(self.weight):
            return int((self.weight if rows is None else self.weight[rows]).sum())
        if rows is None:
            return len(self)
        return int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows)

    @property
    def duration_ns(self) -> I8:
        """From the first byte of the request to the last of the response."""
        return self.end_unix_ns - self.start_unix_ns

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> RequestBatch:
        """A batch of the chosen rows."""
        columns: dict[str, object] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                columns[name] = value[rows] if len(value) == len(self) else value
            elif name == "varying":
                columns[name] = {
                    key: column.take(rows) if isinstance(column, Text) else column[rows]
                    for key, column in value.items()
                }
            else:
                columns[name] = value
        return RequestBatch(**columns)  # type: ignore[arg-type]  # built from this class's own fields


@dataclass(frozen=True, slots=True)
class Service:
    """One instance of a service: what OpenTelemetry calls a resource.

    Attributes:
        name, namespace, instance_id: `service.name`, `service.namespace` ("" if none), `service.instance.id`.
        language: `telemetry.sdk.language`, or "generic".
        resource: All resource attributes, these four included, in a stable order.
        exports: Which signals this service gives; a selector's ``exports`` can narrow it.
    """

    id: int
    name: str
    namespace: str
    instance_id: str
    language: str
    resource: tuple[tuple[str, AttributeValue], ...]
    exports: frozenset[str] = frozenset({"metrics", "traces"})
    sampler: tuple[str, str] | None = None
    routes_incoming: tuple[str, ...] = ()
    routes_outgoing: tuple[str, ...] = ()
    features: frozenset[str] | None = None


OTHER_SERVICES: Final = Service(-2, "other_services", "", "", "generic", ((semconv.SERVICE_NAME, "other_services"),))
"""Whose overflow series take what comes when there are too many of those too: each short-lived process is a service."""


@dataclass(slots=True)
class Process:
    """A process that is, or was, watched."""

    id: int
    pid: int
    start_unix_ns: int
    executable: str
    command: str
    language: str
    service_id: int
    ended: bool = False


class Identities:
    """Who the watched processes are: filled by discovery, read by the later stages.

    Writes come from the discovery loop, reads from the capture thread; both hold the GIL for one dict operation, so
    no lock is needed: entries are replaced, never changed.  Ended processes are kept for ``linger`` further ones so
    that their last records still find them.
    """

    def __init__(self, linger: int = 1024) -> None:
        self.services: dict[int, Service] = {}
        self.processes: dict[int, Process] = {}
        self.by_pid: dict[int, int] = {}
        self.version = 0
        self._linger = linger
        self._ended: collections.deque[int] = collections.deque()
        self._members: collections.Counter[int] = collections.Counter()
        self._next = 1

    def next_id(self) -> int:
        """A fresh id, for a process or a service."""
        self._next += 1
        return self._next - 1

    def service(self, service_id: int) -> Service | None:
        """Of that id, `OTHER_SERVICES` included."""
        return OTHER_SERVICES if service_id == OTHER_SERVICES.id else self.services.get(service_id)

    def add_service(self, service: Service) -> None:
        self.services = {**self.services, service.id: service}
        self.version += 1

    def add_process(self, process: Process) -> None:
        self.processes[process.id] = process
        self.by_pid[process.pid] = process.id
        self._members[process.service_id] += 1
        self.version += 1

    def end_process(self, process_id: int) -> list[int]:
        """Mark a process as ended; gives the ids of the services that nothing refers to any more."""
        process = self.processes[process_id]
        self.processes[process_id] = Process(
            process.id, process.pid, process.start_unix_ns, process.executable, process.command, process.language,
            process.service_id, ended=True,
        )  # fmt: skip
        self._ended.append(process_id)
        gone: list[int] = []
        while len(self._ended) > self._linger:
            old = self.processes.pop(self._ended.popleft())
            if self.by_pid.get(old.pid) == old.id:
                del self.by_pid[old.pid]
            self._members[old.service_id] -= 1
            if not self._members[old.service_id]:
                del self._members[old.service_id]
                self.services = {k: v for k, v in self.services.items() if k != old.service_id}
                gone.append(old.service_id)
        self.version += 1
        return gone


@dataclass(frozen=True, slots=True)
class Series:
    """What all requests of one series share.  Spans of a series differ only in `RequestBatch.varying`, ids and times.

    Attributes:
        id: Row of the table; reused after the series expired, with another ``generation``.
        generation: Counts the lives of ``id``.
        service_id: Key into `Identities.services`.
        protocol: `enum protocol` of ``bpf/records.h``.
        kind: `SpanKind`.
        name: The span name.
        status: `StatusCode`.
        attributes: Constant span attributes by OpenTelemetry key, in the order of the batch's ``dim_names``.
        overflow: True for the one series that takes everything beyond the cap.
    """

    id: int
    generation: int
    service_id: int
    protocol: int
    kind: int
    name: str
    status: int
    attributes: Mapping[str, AttributeValue]
    overflow: bool = False


class SeriesTable:
    """All live series.  ``aggregate`` adds and expires, exporters read."""

    def __init__(self) -> None:
        self.rows: list[Series | None] = []
        self.generation = 0

    def __getitem__(self, series_id: int) -> Series:
        row = self.rows[series_id]
        if row is None:
            raise KeyError(series_id)
        return row

    def __iter__(self) -> Iterator[Series]:
        return (row for row in self.rows if row is not None)
