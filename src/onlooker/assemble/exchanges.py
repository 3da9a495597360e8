"""Columns for the plain exchanges of Redis: a command in one segment, its reply in the next.

Receives the segment records of a round and the connections that `Segments` follows, hands on one batch a role, and says
which records it used up; the others go to their parsers, one by one.  Nothing is decided here that the parser would
decide otherwise: a connection takes part as far as its parser stands between exchanges and nothing is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I8, RequestBatch, SpanKind, Text, Values
from onlooker.protocols import _redis_columns as columns
from onlooker.protocols import redis
from onlooker.protocols._db import Options

PROTOCOL: Final = 6
"""`PROTOCOL_REDIS` of ``bpf/records.h``."""

ROWS_MIN: Final = 48
"""Fewer records of Redis in a round are read one by one: numpy's price is paid a call, not a row."""

_SENT: Final = 1
_SERVER: Final = 2


class Followed(Protocol):
    """A connection, as `Segments` knows it."""

    parser: Any
    pid: int
    next: int


class PlainExchanges:
    """Reads the plain exchanges of one round.

    Args:
        options: Of the parsers: whether the text of a command is wanted.

    Attributes:
        exchanges: How many were read in this way.
    """

    def __init__(
        self, values: Values, *, dim_names: Callable[[int, int], tuple[str, ...]], rng: np.random.Generator,
        options: Options,
    ) -> None:  # fmt: skip
        self.exchanges = 0
        self._values = values
        self._dim_names = dim_names
        self._rng = rng
        self._options = options

    def take(
        self, part: NDArray[Any], connections: Mapping[int, Followed], held: Set[int], *, offset_ns: int
    ) -> tuple[list[RequestBatch], NDArray[np.bool_] | None]:
        """Make batches of what can be read; parsers are moved on.

        Args:
            part: `SEGMENT_RECORD`.
            connections: By number; those that take part have their parser, ``pid`` and ``next`` moved on.
            held: Connections of which an earlier segment is still missing: they are left alone.
            offset_ns: From CLOCK_MONOTONIC to Unix time.

        Returns:
            The batches, and which records are used up (None: none are).
        """
        mine = np.flatnonzero(part["protocol"] == PROTOCOL)
        if mine.size < ROWS_MIN:
            return [], None
        order = np.lexsort((part["sequence"][mine], part["connection_id"][mine]))
        rows = mine[order]
        number, sequence = part["connection_id"][rows], part["sequence"][rows].astype(np.int64)
        first = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
        sizes = np.diff(np.append(first, len(rows)))
        length, offset = part["length"][rows].astype(np.int64), part["stream_offset"][rows].astype(np.int64)
        payload = part["payload"][rows]
        asks = (part["direction"][rows] == _SENT) != (part["role"][rows] == _SERVER)
        whole = (part["flags"][rows] == 0) & (part["captured_head"][rows] == length)
        commands = columns.read_commands(payload, length)
        names, which = columns.names_of(commands.name)
        plain = np.array([name not in redis.SPECIAL and name not in redis.BLOCKING for name in names], np.bool_)
        request = asks & whole & commands.whole & plain[which]
        reply = ~asks & whole & columns.read_replies(payload, length)
        good = np.zeros(len(rows), np.bool_)
        good[:-1] = request[:-1] & reply[1:] & (sequence[1:] == sequence[:-1] + 1) & (number[1:] == number[:-1])
        # what came before, of the same direction, ends where this begins: two rows back
        joined = np.ones(len(rows), np.bool_)
        joined[2:] = (offset[2:] == offset[:-2] + length[:-2]) & (sequence[2:] == sequence[:-2] + 2)
        begins = np.zeros(len(rows), np.bool_)
        begins[first] = True
        after = np.roll(begins, 1)
        after[0] = False
        good[:-1] &= (joined[:-1] | begins[:-1]) & (joined[1:] | after[1:])
        begin = self._ready(first, sizes, number, sequence, offset, connections, held)
        good[first] &= begin
        pairs = columns.chains(good, first, sizes)
        if not pairs.any():
            return [], None
        starts = np.repeat(first, pairs) + 2 * (np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs))
        databases = self._move_on(first, pairs, number, sequence, offset, length, part, rows, connections)
        used = np.zeros(len(part), np.bool_)
        used[rows[starts]] = used[rows[starts + 1]] = True
        self.exchanges += len(starts)
        database = np.repeat(databases, pairs)
        batches = []
        roles = part["role"][rows[starts]]
        for role in np.unique(roles).tolist():
            chosen = starts[roles == role]
            batches.append(
                self._batch(part, rows[chosen], rows[chosen + 1], names, which[chosen], database[roles == role], role,
                            offset_ns)
            )  # fmt: skip
        return batches, used

    @staticmethod
    def _ready(
        first: NDArray[np.intp], sizes: NDArray[np.intp], number: NDArray[Any], sequence: I8, offset: I8,
        connections: Mapping[int, Followed], held: Set[int],
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Connections whose first rows are what their parser waits for."""
        found = np.zeros(len(first), np.bool_)
        for i, (at, size) in enumerate(zip(first.tolist(), sizes.tolist(), strict=True)):
            key = int(number[at])
            connection = connections.get(key)
            parser = connection.parser if connection is not None else None
            found[i] = (
                size >= 2
                and isinstance(parser, redis.RedisParser)
                and connection is not None
                and key not in held
                and connection.next == sequence[at]
                and parser.is_steady
                and parser.due == (offset[at], offset[at + 1])
            )
        return found

    def _move_on(
        self, first: NDArray[np.intp], pairs: NDArray[np.int64], number: NDArray[Any], sequence: I8, offset: I8,
        length: I8, part: NDArray[Any], rows: NDArray[np.intp], connections: Mapping[int, Followed],
    ) -> NDArray[np.int32]:  # fmt: skip
        """Tell parsers what was read; gives the database of each connection, as a number of `Values`."""
        databases = np.zeros(len(first), np.int32)
        for i in np.flatnonzero(pairs).tolist():
            at = int(first[i])
            last = at + 2 * int(pairs[i]) - 2
            connection = connections[int(number[at])]
            connection.next = int(sequence[last]) + 2
            connection.pid = int(part["tgid"][rows[last + 1]])
            name = connection.parser.advance(
                int(offset[last] + length[last]), int(offset[last + 1] + length[last + 1]),
                int(part["mono_ns"][rows[last + 1]]), int(pairs[i]),
            )  # fmt: skip
            databases[i] = self._values.id(name) if name else 0
        return databases

    def _batch(
        self, part: NDArray[Any], asked: NDArray[np.intp], answered: NDArray[np.intp], names: Sequence[str],
        which: NDArray[np.intp], database: NDArray[np.int32], role: int, offset_ns: int,
    ) -> RequestBatch:  # fmt: skip
        count = len(asked)
        known = self._dim_names(PROTOCOL, role)
        dim_names = (*known, *(n for n in (semconv.SERVER_ADDRESS, semconv.SERVER_PORT) if n not in known))
        dims = np.zeros((count, len(dim_names)), np.int32)
        name_ids = np.array([self._values.id(name) for name in names], np.int32)[which]
        dims[:, dim_names.index(semconv.DB_SYSTEM_NAME)] = self._values.id(redis.SYSTEM)
        dims[:, dim_names.index(semconv.DB_OPERATION_NAME)] = name_ids
        dims[:, dim_names.index(semconv.DB_NAMESPACE)] = database
        start = part["mono_ns"][asked].astype(np.int64)
        end = np.maximum(part["mono_ns"][answered].astype(np.int64), start)
        span_id = self._rng.integers(1, 1 << 64, count, np.uint64).view(np.uint8).reshape(count, 8)
        trace_id = self._rng.integers(1, 1 << 64, 2 * count, np.uint64).view(np.uint8).reshape(count, 16)
        parents = part["span_id"][asked]
        inherits: NDArray[np.bool_] = np.asarray(parents.any(axis=1))
        trace_id = np.where(inherits[:, None], part["trace_id"][asked], trace_id)
        varying: dict[str, Any] = {}
        if self._options.query_text:
            texts = [name.encode() for name in names]
            varying[semconv.DB_QUERY_TEXT] = Text.of([texts[i] for i in which.tolist()])
        return RequestBatch(
            protocol=np.full(count, PROTOCOL, np.uint8),
            kind=np.full(count, role if role in (SpanKind.SERVER, SpanKind.CLIENT) else SpanKind.CLIENT, np.uint8),
            pid=part["tgid"][answered].astype(np.int32),
            tid=part["tid"][asked].astype(np.int32),
            connection=part["connection_id"][asked],
            start_unix_ns=start + offset_ns,
            request_end_unix_ns=start + offset_ns,
            response_start_unix_ns=end + offset_ns,
            end_unix_ns=end + offset_ns,
            request_bytes=part["length"][asked].astype(np.int64),
            response_bytes=part["length"][answered].astype(np.int64),
            local_address=part["local_address"][asked],
            remote_address=part["remote_address"][asked],
            local_port=part["local_port"][asked],
            remote_port=part["remote_port"][asked],
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=np.where(inherits[:, None], parents, 0).astype(np.uint8),
            trace_flags=np.where(inherits, part["trace_flags"][asked], 1).astype(np.uint8),
            parent_source=part["parent_source"][asked].astype(np.uint8),
            status=np.zeros(count, np.uint8),
            stream=np.zeros(count, np.bool_),
            dims=dims,
            dim_names=dim_names,
            name=name_ids,
            varying=varying,
        )
