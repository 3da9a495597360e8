"""Protocols that user space takes apart: receives segment records, hands on request columns.

One parser a connection, bounded in number; the least recently used one is given up (counted).  Segments of a
connection whose protocol is not known yet are kept for a while and replayed once it is.  May drop: those segments when
the protocol stays unknown, and whatever a parser says it could not read (counted).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.assemble.connections import Connection, Peers, Row
from onlooker.assemble.described import Telling, described
from onlooker.assemble.exchanges import UNANSWERED, Exchanges, names_of
from onlooker.assemble.rounds import PROTOCOL as PROTOCOL_HTTP2
from onlooker.assemble.rounds import RoundCalls, Rounds
from onlooker.batches import RequestBatch, SpanKind, Values
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

_CONNECTIONS_MAX: Final = 20_000
_EARLY_MAX: Final = 24
_UPGRADES_MAX: Final = 1024
_EXPIRE_NS: Final = 500_000_000
_HELD_MAX: Final = 20_000
_CUT_REPLY: Final = 2

MakeParser = Callable[[int, int], SegmentParser]
DimNames = Callable[[int, int], tuple[str, ...]]


@dataclass(slots=True)
class _Finished:
    operation: Operation
    connection: Connection
    pid: int


class Segments:
    """Turns segments into batches, one batch a protocol and role.

    Args:
        make_parser, dim_names: Of ``protocols.registry``; handed in so that a test can bring its own.
        exchanges: Makes rows of what the kernel has counted itself (Redis).
        rounds: Reads what is plain of HTTP/2 in columns.

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
        rounds: Rounds | None = None,
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
        self._connections: OrderedDict[int, Connection] = OrderedDict()
        self._held: list[Row] = []
        self._missing: dict[int, int] = {}
        self._upgrades: OrderedDict[int, Upgrade] = OrderedDict()
        self._rounds = rounds if rounds is not None else Rounds()
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
        parts, calls = self._rounds.take(
            parts, self._connections, {row.connection for row in self._held},
            lambda connection, operations: self._take(connection, operations, finished), self._give_up,
            self._connections.move_to_end, lambda part: self._feed(_in_order([part])[0], finished),
        )  # fmt: skip
        rows, held = _in_order(parts), self._held
        missed, self._missing = self._missing, {}
        if held:
            self._held = []
            rows = sorted(held + rows, key=_ORDER)
        ordered: list[Row | _Mark] = list(rows)
        database: NDArray[np.int32] = np.zeros(0 if counted is None else len(counted), np.int32)
        if counted is not None:
            marks = self._pass(counted, {row.connection for row in rows}, database)
            if marks:
                ordered = sorted([*rows, *marks], key=_ORDER)
        for row in ordered:
            if not isinstance(row, Row):
                self._mark(row, counted, database, finished)
                continue
            connection = self._connections.get(row.connection)
            expected = connection.next if connection is not None else 0
            if (
                row.sequence > expected
                and (is_part or missed.get(row.connection) != expected)
                and len(self._held) < _HELD_MAX
            ):
                # The rings are read one after the other: what came before it may have been written behind the reader,
                # who finds it in the next round.
                self._missing[row.connection] = expected
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
        of_role = {(PROTOCOL_HTTP2, role): some for role, some in calls}
        batches = [
            self._columns(key, finished.get(key, []), of_role.get(key), offset_ns) for key in {**finished, **of_role}
        ]
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
            connection = self._connections[mark.connection] = Connection(
                mark.connection, Peers.of(record), int(record["tgid"]), protocol=int(record["protocol"]),
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

    def _feed(self, row: Row, finished: dict[tuple[int, int], list[_Finished]]) -> None:
        connection = self._connections.get(row.connection)
        flags = row.flags
        if connection is None:
            if flags & (_CLOSE | _EOF):
                return
            connection = self._connections[row.connection] = Connection(row.connection, _peers(row), row.tgid)
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
            if row.protocol != PROTOCOL_HTTP2:  # whose frames come condensed, once it is known
                for before in early:
                    self._parse(connection, before, finished)
        if flags & _CLOSE:
            self._close(connection, row.mono_ns, "connection_reset" if flags & _RESET else "", finished)
            del self._connections[row.connection]
        elif not flags & _EOF:
            self._parse(connection, row, finished)

    def _parse(self, connection: Connection, row: Row, finished: dict[tuple[int, int], list[_Finished]]) -> None:
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

    def _give_up(self, connection: Connection) -> None:
        self.dropped["parser_failed"] += 1
        connection.parser, connection.broken = None, True
        if connection.protocol not in self._warned:
            self._warned.add(connection.protocol)
            log.exception(
                "the %s parser failed; that connection is not followed any more", self._name_of(connection.protocol)
            )

    def _close(
        self, connection: Connection, mono_ns: int, error: str, finished: dict[tuple[int, int], list[_Finished]]
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
        self, connection: Connection, operations: list[Operation], finished: dict[tuple[int, int], list[_Finished]]
    ) -> None:
        parser = connection.parser
        if parser is not None and (lost := parser.lost):
            name = self._name_of(connection.protocol)
            self.lost[name] = self.lost.get(name, 0) + lost
        if operations:
            rows = finished.setdefault((connection.protocol, connection.role), [])
            rows.extend(_Finished(operation, connection, connection.pid) for operation in operations)

    # ---- columns ----

    def _columns(
        self, key: tuple[int, int], rows: list[_Finished], found: RoundCalls | None, offset_ns: int
    ) -> RequestBatch:
        """One batch: what parsers made, and behind it the calls of a round, which have the columns of their meaning."""
        protocol, role = key
        operations = [row.operation for row in rows]
        own = len(operations)
        telling: list[Telling] = [*operations, *(found.calls.meanings if found is not None else ())]
        what = described(telling, self._values, self._dim_names(protocol, role))
        count = own
        if found is not None:
            what = what.take(np.concatenate((np.arange(own), own + found.calls.meaning)))
            found.count_messages(what, own)
            count += len(found.calls.meaning)
        peers = [row.connection.peers for row in rows]
        columns: dict[str, NDArray[Any]] = {
            "times": np.array(
                [(o.start_mono_ns, o.request_end_mono_ns, o.response_start_mono_ns, o.end_mono_ns) for o in operations],
                np.int64,
            ).reshape(own, 4),
            "sizes": np.array([(o.request_bytes, o.response_bytes) for o in operations], np.int64).reshape(own, 2),
            "trace_id": _ids([o.trace_id for o in operations], 16),
            "parent_span_id": _ids([o.parent_span_id for o in operations], 8),
            "trace_flags": np.array([o.trace_flags if o.trace_id else 1 for o in operations], np.uint8),
            "parent_source": np.array([o.parent_source for o in operations], np.uint8),
            "kind": np.array([o.kind for o in operations], np.uint8),
            "pid": np.array([row.pid for row in rows], np.int32),
            "tid": np.array([o.tid for o in operations], np.int32),
            "connection": np.array([row.connection.key for row in rows], np.uint64),
            "local_address": _ids([p.local_address for p in peers], 16),
            "remote_address": _ids([p.remote_address for p in peers], 16),
            "local_port": np.array([p.local_port for p in peers], np.uint16),
            "remote_port": np.array([p.remote_port for p in peers], np.uint16),
        }
        if found is not None:
            columns = {name: np.concatenate((columns[name], more)) for name, more in found.columns().items()}
        times = columns["times"]
        times[:, 3] = np.maximum(times[:, 3], times[:, 0])
        times = np.where(times != 0, times + offset_ns, 0)
        trace_ids = self._rng.integers(1, 1 << 64, 2 * count, np.uint64).view(np.uint8).reshape(count, 16)
        inherits = np.any(columns["trace_id"], axis=1, keepdims=True)
        usual = role if role in (SpanKind.SERVER, SpanKind.CLIENT) else SpanKind.CLIENT
        many = what.varying.get(semconv.DB_OPERATION_BATCH_SIZE)
        return RequestBatch(
            protocol=np.full(count, protocol, np.uint8),
            kind=np.where(columns["kind"], columns["kind"], np.uint8(usual)),
            pid=columns["pid"],
            tid=columns["tid"],
            connection=columns["connection"],
            start_unix_ns=times[:, 0].copy(),
            request_end_unix_ns=times[:, 1].copy(),
            response_start_unix_ns=times[:, 2].copy(),
            end_unix_ns=times[:, 3].copy(),
            request_bytes=columns["sizes"][:, 0].copy(),
            response_bytes=columns["sizes"][:, 1].copy(),
            local_address=columns["local_address"],
            remote_address=columns["remote_address"],
            local_port=columns["local_port"],
            remote_port=columns["remote_port"],
            trace_id=np.where(inherits, columns["trace_id"], trace_ids),
            span_id=self._rng.integers(1, 1 << 64, count, np.uint64).view(np.uint8).reshape(count, 8),
            parent_span_id=columns["parent_span_id"],
            trace_flags=columns["trace_flags"],
            parent_source=columns["parent_source"],
            status=what.status,
            stream=what.stream,
            dims=what.dims,
            dim_names=what.dim_names,
            name=what.name,
            varying=what.varying,
            weight=np.maximum(many, 1) if isinstance(many, np.ndarray) else np.empty(0, np.int64),
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


def _peers(row: Row) -> Peers:
    part, i = row.where
    return Peers.of(part[i])


def _ids(ids: list[bytes], width: int) -> NDArray[np.uint8]:
    """Raw bytes as rows; zero where there are none."""
    nothing = bytes(width)
    return np.frombuffer(b"".join([one or nothing for one in ids]), np.uint8).reshape(-1, width)


def _in_order(parts: Sequence[NDArray[Any]]) -> list[Row]:
    """The records of all rings, those of one connection in the order in which the kernel made them."""
    rows: list[Row] = []
    for part in parts:
        width = part.dtype["payload"].shape[0]
        payload = part["payload"].tobytes()
        has_context: list[bool] = np.any(part["span_id"], axis=1).tolist()
        for i, values in enumerate(zip(*(part[name].tolist() for name in _COLUMNS), strict=True)):
            start, head, tail = i * width, values[6], values[7]
            context = part["trace_id"][i].tobytes() + part["span_id"][i].tobytes() if has_context[i] else b""
            last = payload[start + width - tail : start + width] if tail else b""
            rows.append(Row._make((*values, payload[start : start + head], last, context, (part, i))))
    rows.sort(key=_ORDER)
    return rows


_ORDER: Final = itemgetter(0, 1)
