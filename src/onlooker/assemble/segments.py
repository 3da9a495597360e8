"""Protocols that user space takes apart: receives segment records, hands on request columns.

One parser a connection, bounded in number; the least recently used one is given up (counted).  Segments of a
connection whose protocol is not known yet are kept for a while and replayed once it is.  May drop: those segments when
the protocol stays unknown, and whatever a parser says it could not read (counted).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.assemble.exchanges import UNANSWERED, Exchanges, names_of
from onlooker.batches import RequestBatch, SpanKind, StatusCode, Text, Values
from onlooker.protocols import Counting, Half, Operation, Segment, SegmentParser, Upgradable, Upgrade

log: Final = logging.getLogger(__name__)

# numbers of bpf/records.h
_CUT: Final = 1
_UNREADABLE: Final = 2
_CLOSE: Final = 4
_RESET: Final = 16
_EOF: Final = 32
_SENT: Final = 1
_SERVER: Final = 2
_PROTOCOL_UNKNOWN: Final = 0
_PROTOCOL_HTTP2: Final = 2

_CONNECTIONS_MAX: Final = 20_000
_EARLY_MAX: Final = 24
_UPGRADES_MAX: Final = 1024
_EXPIRE_NS: Final = 500_000_000
_HELD_MAX: Final = 20_000
_CUT_REPLY: Final = 2

MakeParser = Callable[[int, int], SegmentParser]
DimNames = Callable[[int, int], tuple[str, ...]]


class _Row(NamedTuple):
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


class _Peers(NamedTuple):
    """The addresses of a connection."""

    local_address: bytes
    remote_address: bytes
    local_port: int
    remote_port: int


@dataclass(slots=True)
class _Connection:
    """What is known of one connection."""

    key: int
    peers: _Peers
    pid: int
    parser: SegmentParser | None = None
    protocol: int = 0
    role: int = 0
    broken: bool = False
    next: int = 0
    """Number of the segment that comes next."""
    early: list[_Row] = field(default_factory=list)


@dataclass(slots=True)
class _Finished:
    operation: Operation
    connection: _Connection
    pid: int


class Segments:
    """Turns segments into batches, one batch a protocol and role.

    Args:
        make_parser, dim_names: Of ``protocols.registry``; handed in so that a test can bring its own.
        exchanges: Makes rows of what the kernel has counted itself (Redis).

    Attributes:
        lost: Operations that happened but could not be read, by protocol name.
        dropped: By reason.
    """

    def __init__(
        self,
        values: Values,
        *,
        make_parser: MakeParser,
        dim_names: DimNames,
        name_of: Callable[[int], str],
        rng: np.random.Generator,
        capacity: int = _CONNECTIONS_MAX,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.lost: dict[str, int] = {}
        self.dropped = {"connection_evicted": 0, "protocol_unknown": 0, "parser_failed": 0, "upgrade_without_answer": 0}
        self._values = values
        self._make_parser = make_parser
        self._dim_names = dim_names
        self._name_of = name_of
        self._rng = rng
        self._capacity = capacity
        self._exchanges = exchanges
        self._connections: OrderedDict[int, _Connection] = OrderedDict()
        self._held: list[_Row] = []
        self._upgrades: OrderedDict[int, Upgrade] = OrderedDict()
        self._expired_mono_ns = 0
        self._warned: set[int] = set()

    def __len__(self) -> int:
        return len(self._connections)

    def requests(
        self,
        parts: Sequence[NDArray[Any]],
        counted: NDArray[Any] | None = None,
        *,
        is_part: bool = False,
        offset_ns: int,
        now_mono_ns: int,
    ) -> list[RequestBatch]:
        """Feed one round of records to their parsers.

        Args:
            parts: Arrays of `SEGMENT_RECORD` and `SEGMENT_LONG_RECORD`.
            counted: `REDIS_RECORD`, or None.
            is_part: Older ones than some of the segments are still to come.
            offset_ns: From CLOCK_MONOTONIC to Unix time.
            now_mono_ns: CLOCK_MONOTONIC; ends what waits too long.

        Source: ``bpf/lib/segment.h``.
        """
        finished: dict[tuple[int, int], list[_Finished]] = {}
        rows, held = _in_order(parts), self._held
        waited = frozenset(row.connection for row in held)
        if held:
            self._held = []
            rows = sorted(held + rows, key=_ORDER)
        ordered: list[_Row | _Mark] = list(rows)
        database: NDArray[np.int32] = np.zeros(0 if counted is None else len(counted), np.int32)
        if counted is not None:
            marks = self._pass(counted, {row.connection for row in rows}, database)
            if marks:
                ordered = sorted([*rows, *marks], key=_ORDER)
        for row in ordered:
            if not isinstance(row, _Row):
                self._mark(row, counted, database, finished)
                continue
            connection = self._connections.get(row.connection)
            if (
                row.sequence > (connection.next if connection is not None else 0)
                and (is_part or row.connection not in waited)
                and len(self._held) < _HELD_MAX
            ):
                # The rings are read one after the other: what came before it may have been written behind the reader.
                part, i = row.where
                if i >= 0:  # the ring's memory is used again
                    row = row._replace(where=(part[i : i + 1].copy(), -1))
                self._held.append(row)
                continue
            self._feed(row, finished)
        if now_mono_ns - self._expired_mono_ns > _EXPIRE_NS:
            self._expired_mono_ns = now_mono_ns
            for connection in self._connections.values():
                if connection.parser is not None:
                    self._take(connection, connection.parser.expire(now_mono_ns), finished)
        batches = [self._columns(key, done, offset_ns) for key, done in finished.items()]
        if counted is not None and self._exchanges is not None:
            batches += self._exchanges.batches(counted, database, offset_ns=offset_ns)
        return batches

    # ---- what the kernel has counted ----

    def _pass(self, counted: NDArray[Any], busy: Set[int], database: NDArray[np.int32]) -> list[_Mark]:
        """Tell the parsers what is told without them; gives what has to wait for its turn among segments."""
        order = np.lexsort((counted["sequence"], counted["connection_id"]))
        number = counted["connection_id"][order]
        first = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
        special = np.maximum.reduceat(counted["flags"][order] & UNANSWERED, first)
        commands = np.add.reduceat(counted["commands"][order].astype(np.int64), first)
        size = np.add.reduceat(counted["request_bytes"][order].astype(np.int64), first)
        ends = np.append(first[1:], len(order))
        last = counted[order[ends - 1]]
        marks: list[_Mark] = []
        for i, (key, sequence, request_end, reply_end, mono_ns) in enumerate(
            zip(*(last[name].tolist() for name in _PASSED), strict=True)
        ):
            if special[i] or key in busy:
                mine = order[first[i] : ends[i]]
                numbers = counted["sequence"][mine].tolist()
                marks += [_Mark(key, sequence, at) for sequence, at in zip(numbers, mine.tolist(), strict=True)]
                continue
            connection = self._connections.get(key)
            if connection is None:
                continue
            connection.next = sequence + 1
            parser: object = connection.parser
            if isinstance(parser, Counting):
                parser.passed(request_end, reply_end, mono_ns, int(commands[i]), int(size[i]))
                if parser.database:
                    database[order[first[i] : ends[i]]] = self._values.id(parser.database)
        return marks

    def _mark(
        self, mark: _Mark, counted: NDArray[Any] | None, database: NDArray[np.int32],
        finished: dict[tuple[int, int], list[_Finished]],
    ) -> None:  # fmt: skip
        assert counted is not None  # it is where the mark comes from
        record = counted[mark.where]
        connection = self._connections.get(mark.connection)
        is_half = bool(record["flags"] & UNANSWERED)
        if connection is None:
            if not is_half or not record["commands"]:
                return
            connection = self._connections[mark.connection] = _Connection(
                mark.connection, _peers_of(record), int(record["tgid"]), protocol=int(record["protocol"]),
                role=int(record["role"]),
            )  # fmt: skip
            connection.parser = self._make_parser(connection.protocol, connection.role)
        connection.next = max(connection.next, mark.sequence + 1)
        parser: object = connection.parser
        if not isinstance(parser, Counting):
            return
        if is_half:
            connection.pid = int(record["tgid"])
            self._take(connection, parser.handed_over(_half(record)), finished)
        else:
            parser.passed(*(int(record[name]) for name in _PASSED[2:]))
        if parser.database:
            database[mark.where] = self._values.id(parser.database)

    def upgraded(self, upgrades: Mapping[int, Upgrade]) -> None:
        """Take in the requests that connections were upgraded to HTTP/2 with, by connection; before their segments."""
        self._upgrades.update(upgrades)
        while len(self._upgrades) > _UPGRADES_MAX:
            self._upgrades.popitem(last=False)
            self.dropped["upgrade_without_answer"] += 1

    def _feed(self, row: _Row, finished: dict[tuple[int, int], list[_Finished]]) -> None:
        connection = self._connections.get(row.connection)
        flags = row.flags
        if connection is None:
            if flags & (_CLOSE | _EOF):
                return
            connection = self._connections[row.connection] = _Connection(row.connection, _peers(row), row.tgid)
            if len(self._connections) > self._capacity:
                _, oldest = self._connections.popitem(last=False)
                self.dropped["connection_evicted"] += 1
                self._close(oldest, row.mono_ns, "", finished)
        else:
            self._connections.move_to_end(row.connection)
        connection.next = row.sequence + 1
        if row.protocol == _PROTOCOL_UNKNOWN and not flags & (_CLOSE | _EOF):
            if len(connection.early) < _EARLY_MAX:
                connection.early.append(row._replace(where=_NOWHERE))
            else:
                self.dropped["protocol_unknown"] += 1
            return
        if connection.parser is None and row.protocol != _PROTOCOL_UNKNOWN and not connection.broken:
            connection.protocol, connection.role = row.protocol, row.role
            connection.parser = parser = self._make_parser(row.protocol, row.role)
            upgrade = self._upgrades.pop(row.connection, None)
            if upgrade is not None and isinstance(parser, Upgradable):
                parser.upgrade(upgrade)
            early, connection.early = connection.early, []
            if row.protocol != _PROTOCOL_HTTP2:  # whose frames come condensed, once it is known
                for before in early:
                    self._parse(connection, before, finished)
        if flags & _CLOSE:
            self._close(connection, row.mono_ns, "connection_reset" if flags & _RESET else "", finished)
            del self._connections[row.connection]
        elif not flags & _EOF:
            self._parse(connection, row, finished)

    def _parse(self, connection: _Connection, row: _Row, finished: dict[tuple[int, int], list[_Finished]]) -> None:
        if connection.parser is None:
            return
        sent = row.direction == _SENT
        segment = Segment(
            sent, sent != (connection.role == _SERVER), row.mono_ns, row.stream_offset, row.length, row.head, row.tail,
            not row.flags & _UNREADABLE, row.tid,
        )  # fmt: skip
        segment.parent_source = row.parent_source
        if row.context:
            segment.trace_id, segment.span_id = row.context[:16], row.context[16:]
            segment.trace_flags = row.trace_flags
        try:
            operations = connection.parser.feed(segment)
        except Exception:  # a parser must not raise on bytes; if one does, its connection is given up, not the agent
            self._give_up(connection)
            return
        connection.pid = row.tgid
        self._take(connection, operations, finished)

    def _give_up(self, connection: _Connection) -> None:
        self.dropped["parser_failed"] += 1
        connection.parser, connection.broken = None, True
        if connection.protocol not in self._warned:
            self._warned.add(connection.protocol)
            log.exception(
                "the %s parser failed; that connection is not followed any more", self._name_of(connection.protocol)
            )

    def _close(
        self, connection: _Connection, mono_ns: int, error: str, finished: dict[tuple[int, int], list[_Finished]]
    ) -> None:
        if connection.parser is None:
            return
        try:
            operations = connection.parser.close(mono_ns, error)
        except Exception:  # as in _parse
            self._give_up(connection)
            return
        self._take(connection, operations, finished)

    def _take(
        self, connection: _Connection, operations: list[Operation], finished: dict[tuple[int, int], list[_Finished]]
    ) -> None:
        parser = connection.parser
        if parser is not None and (lost := parser.lost):
            name = self._name_of(connection.protocol)
            self.lost[name] = self.lost.get(name, 0) + lost
        if operations:
            rows = finished.setdefault((connection.protocol, connection.role), [])
            rows.extend(_Finished(operation, connection, connection.pid) for operation in operations)

    # ---- columns ----

    def _columns(self, key: tuple[int, int], rows: list[_Finished], offset_ns: int) -> RequestBatch:
        protocol, role = key
        count = len(rows)
        known = self._dim_names(protocol, role)
        names = (*known, *(name for name in (semconv.SERVER_ADDRESS, semconv.SERVER_PORT) if name not in known))
        place = {name: i for i, name in enumerate(names)}
        ids = self._values.id
        operations = [row.operation for row in rows]
        # Operations of a kind share their attributes: one look for all of them.
        known_dims: dict[tuple[int, str], list[int]] = {}
        dims_rows: list[list[int]] = []
        error_at = place.get(semconv.ERROR_TYPE)
        for operation in operations:
            key_of_dims = (id(operation.dims), operation.error)
            dim_ids = known_dims.get(key_of_dims)
            if dim_ids is None:
                dim_ids = [0] * len(names)
                for attribute, value in operation.dims.items():
                    at = place.get(attribute)
                    if at is not None:
                        dim_ids[at] = ids(value)
                if operation.error and error_at is not None and not dim_ids[error_at]:
                    dim_ids[error_at] = ids(operation.error)
                known_dims[key_of_dims] = dim_ids
            dims_rows.append(dim_ids)
        dims = np.array(dims_rows, np.int32).reshape(count, len(names))
        times = np.array(
            [
                (o.start_mono_ns, o.request_end_mono_ns, o.response_start_mono_ns, max(o.end_mono_ns, o.start_mono_ns))
                for o in operations
            ],
            np.int64,
        ).T
        sizes = np.array([(o.request_bytes, o.response_bytes) for o in operations], np.int64).T
        span_ids = self._rng.integers(1, 1 << 64, count, np.uint64).view(np.uint8).reshape(count, 8)
        trace_ids = self._rng.integers(1, 1 << 64, 2 * count, np.uint64).view(np.uint8).reshape(count, 16)
        parents = np.zeros((count, 8), np.uint8)
        trace_flags = np.ones(count, np.uint8)
        for i, operation in enumerate(operations):
            if operation.trace_id:
                trace_ids[i] = np.frombuffer(operation.trace_id, np.uint8)
                trace_flags[i] = operation.trace_flags
            if operation.parent_span_id:
                parents[i] = np.frombuffer(operation.parent_span_id, np.uint8)
        parent_source = np.array([o.parent_source for o in operations], np.uint8)
        failed, unset = int(StatusCode.ERROR), int(StatusCode.UNSET)
        status = np.array([failed if o.error else unset for o in operations], np.uint8)
        stream = np.array([o.stream for o in operations], np.bool_)
        usual = role if role in (SpanKind.SERVER, SpanKind.CLIENT) else SpanKind.CLIENT
        kind = np.array([o.kind or usual for o in operations], np.uint8)
        tids = np.array([o.tid for o in operations], np.int32)
        name_ids = np.array([ids(o.name) for o in operations], np.int32)
        texts: dict[str, list[bytes | None]] = {}
        numbers: dict[str, NDArray[np.int64]] = {}
        for i, operation in enumerate(operations):
            for attribute, value in operation.varying.items():
                if type(value) is str:
                    column = texts.get(attribute)
                    if column is None:
                        column = texts[attribute] = [None] * count
                    column[i] = value.encode()
                elif isinstance(value, int) and not isinstance(value, bool):
                    known_numbers = numbers.get(attribute)
                    if known_numbers is None:
                        known_numbers = numbers[attribute] = np.full(count, -1, np.int64)
                    known_numbers[i] = value
                else:
                    shown = (
                        ",".join(value)
                        if isinstance(value, tuple)
                        else str(value).lower()
                        if value in (True, False)
                        else str(value)
                    )
                    texts.setdefault(attribute, [None] * count)[i] = shown.encode()
        peers = [row.connection.peers for row in rows]
        times[:, :] = np.where(times != 0, times + offset_ns, 0)
        many = numbers.get(semconv.DB_OPERATION_BATCH_SIZE)
        return RequestBatch(
            protocol=np.full(count, protocol, np.uint8),
            kind=kind,
            pid=np.array([row.pid for row in rows], np.int32),
            tid=tids,
            connection=np.array([row.connection.key for row in rows], np.uint64),
            start_unix_ns=times[0],
            request_end_unix_ns=times[1],
            response_start_unix_ns=times[2],
            end_unix_ns=times[3],
            request_bytes=sizes[0],
            response_bytes=sizes[1],
            local_address=_addresses([p.local_address for p in peers]),
            remote_address=_addresses([p.remote_address for p in peers]),
            local_port=np.array([p.local_port for p in peers], np.uint16),
            remote_port=np.array([p.remote_port for p in peers], np.uint16),
            trace_id=trace_ids,
            span_id=span_ids,
            parent_span_id=parents,
            trace_flags=trace_flags,
            parent_source=parent_source,
            status=status,
            stream=stream,
            dims=dims,
            dim_names=names,
            name=name_ids,
            varying={
                **{attribute: Text.of(column) for attribute, column in texts.items()},
                **numbers,
            },
            weight=np.empty(0, np.int64) if many is None else np.maximum(many, 1),
        )


class _Mark(NamedTuple):
    """Where in the order of a connection's records one stands that the kernel has counted."""

    connection: int
    sequence: int
    where: int


_PASSED: Final = ("connection_id", "sequence", "request_offset", "response_offset", "response_end_mono_ns")


def _half(record: Any) -> Half:
    context = record["span_id"].any()
    return Half(
        name=names_of(record["name"][None, :])[0][0],
        request=Segment(
            record["role"] != _SERVER, True, int(record["request_end_mono_ns"]), 0, int(record["request_bytes"]), b"",
            tid=int(record["tid"]), trace_id=record["trace_id"].tobytes() if context else b"",
            span_id=record["span_id"].tobytes() if context else b"", trace_flags=int(record["trace_flags"]),
            parent_source=int(record["parent_source"]),
        ),
        start_ns=int(record["request_start_mono_ns"]),
        commands=int(record["commands"]),
        replies=int(record["replies"]),
        errors=int(record["errors"]),
        error=record["error"].tobytes(),
        request_end=int(record["request_offset"]),
        reply_end=int(record["response_offset"]),
        mono_ns=int(record["response_end_mono_ns"]),
        skip=int(record["skip"]),
        left=int(record["left"]),
        is_cut=bool(record["flags"] & _CUT_REPLY),
    )  # fmt: skip


_NOWHERE: Final[tuple[NDArray[Any], int]] = (np.empty(0, np.uint8), 0)
_COLUMNS: Final = (
    "connection_id", "sequence", "protocol", "role", "direction", "flags", "captured_head", "captured_tail", "tid",
    "tgid", "mono_ns", "stream_offset", "length", "trace_flags", "parent_source",
)  # fmt: skip


def _peers(row: _Row) -> _Peers:
    part, i = row.where
    return _peers_of(part[i])


def _peers_of(record: Any) -> _Peers:
    return _Peers(
        record["local_address"].tobytes(), record["remote_address"].tobytes(), int(record["local_port"]),
        int(record["remote_port"]),
    )  # fmt: skip


def _addresses(addresses: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, 16)


def _in_order(parts: Sequence[NDArray[Any]]) -> list[_Row]:
    """The records of all rings, those of one connection in the order in which the kernel made them."""
    rows: list[_Row] = []
    for part in parts:
        width = part.dtype["payload"].shape[0]
        payload = part["payload"].tobytes()
        has_context: list[bool] = np.any(part["span_id"], axis=1).tolist()
        for i, values in enumerate(zip(*(part[name].tolist() for name in _COLUMNS), strict=True)):
            start, head, tail = i * width, values[6], values[7]
            context = part["trace_id"][i].tobytes() + part["span_id"][i].tobytes() if has_context[i] else b""
            last = payload[start + width - tail : start + width] if tail else b""
            rows.append(_Row._make((*values, payload[start : start + head], last, context, (part, i))))
    rows.sort(key=_ORDER)
    return rows


_ORDER: Final = itemgetter(0, 1)
