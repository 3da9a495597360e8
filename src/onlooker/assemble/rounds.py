"""HTTP/2 records of a busy round, as columns.

Receives segment records, hands on `RoundCalls`, and the records that are left to be fed to their parsers one by one.
A record whose predecessor stands in a ring that was read before it was written waits for one round.  Drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker.assemble.connections import Connection
from onlooker.assemble.described import Described
from onlooker.protocols import Operation, Segment

if TYPE_CHECKING:
    from onlooker.protocols.http2_rounds import Calls

PROTOCOL: Final = 2
"""`PROTOCOL_HTTP2` of ``bpf/records.h``."""

PARENT_HEADER: Final = 1
"""`enum parent_source`."""
REQUEST_MESSAGES: Final = "onlooker.rpc.request.messages"
RESPONSE_MESSAGES: Final = "onlooker.rpc.response.messages"
_CONTINUED: Final = 64
_SENT: Final = 1
_SERVER: Final = 2
_LEAST_BYTES: Final = 4096
"""Less than this is read as fast one by one: columns have a price of their own, of some thirty requests."""
_WAITING_MAX: Final = 20_000
_BEGIN_RECORDS: Final = 16
"""A new connection with so many records in one round is begun at once..."""
_BEGIN_STEPS: Final = 4
"""...with at most so many of them: the preface, and what either side sends first."""

_OF_CONNECTION: Final = ("local_address", "remote_address", "local_port", "remote_port")

Take = Callable[[Connection, list[Operation]], None]
GiveUp = Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class RoundCalls:
    """Requests that began and ended within a round; see `onlooker.protocols.http2_rounds.Calls`.

    Attributes:
        calls: Of connections of one role.
        request, response: ``(n,)`` heads of the records in which the headers, and the response, ended.
    """

    calls: Calls
    request: NDArray[Any]
    response: NDArray[Any]

    def count_messages(self, what: Described, before: int) -> None:
        """Fill in how many messages the calls of gRPC had, in the rows behind the first ``before``."""
        calls = self.calls
        for attribute, counts in (
            (REQUEST_MESSAGES, calls.request_messages),
            (RESPONSE_MESSAGES, calls.response_messages),
        ):
            if (counts >= 0).any():
                column = what.varying.get(attribute)
                if not isinstance(column, np.ndarray):
                    column = what.varying[attribute] = np.full(len(what.name), -1, np.int64)
                column[before:] = counts
        what.stream[before:] |= (calls.request_messages > 1) | (calls.response_messages > 1)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns, named as those of `RequestBatch`; ``times`` and ``sizes`` are several."""
        calls, request, response = self.calls, self.request, self.response
        traces, parents, flags = zip(*calls.parents, strict=True)
        by_header = np.array([bool(trace) for trace in traces], np.bool_)[calls.meaning]
        chosen = by_header[:, None]
        has_context = request["span_id"].any(axis=1)
        source = request["parent_source"]
        return {
            "times": np.stack((calls.start, calls.request_end, calls.response_start, calls.end), axis=1),
            "sizes": np.stack((calls.request_bytes, calls.response_bytes), axis=1),
            "trace_id": np.where(chosen, _table(traces, 16)[calls.meaning], request["trace_id"]),
            "parent_span_id": np.where(chosen, _table(parents, 8)[calls.meaning], request["span_id"]),
            "trace_flags": np.where(
                by_header, np.array(flags, np.uint8)[calls.meaning], np.where(has_context, request["trace_flags"], 1)
            ).astype(np.uint8),
            "parent_source": np.where(by_header, np.uint8(PARENT_HEADER), source),
            "kind": np.zeros(len(request), np.uint8),
            "pid": response["tgid"].astype(np.int32),
            "tid": request["tid"].astype(np.int32),
            **{name: request[name] for name in _OF_CONNECTION},
            "connection": request["connection_id"],
        }


class Rounds:
    """Takes what it can of each round.

    Attributes:
        least_bytes: Rounds with less of HTTP/2 are left alone.
    """

    def __init__(self, *, least_bytes: int = _LEAST_BYTES) -> None:
        self.least_bytes = least_bytes
        self._waiting: list[NDArray[Any]] = []
        self._missing: dict[int, int] = {}

    def take(
        self,
        parts: Sequence[NDArray[Any]],
        connections: Mapping[int, Connection],
        busy: Set[int],
        take: Take,
        give_up: GiveUp,
        touch: Callable[[int], None],
        feed: Callable[[NDArray[Any]], None],
    ) -> tuple[list[NDArray[Any]], list[tuple[int, RoundCalls]]]:
        """Read what is plain.

        Args:
            parts: Arrays of `SEGMENT_RECORD` and `SEGMENT_LONG_RECORD`.
            connections: By number.
            busy: Numbers of connections that have records elsewhere.
            take: Takes the operations of a parser.
            give_up: Called within the handling of an exception of a parser.
            touch: Called with the number of each connection that was read.
            feed: Feeds a record to its parser at once.

        Returns:
            The records that are left; calls, with the role of their connections.
        """
        parts = [part for part in parts if len(part)]
        waiting, self._waiting = self._waiting, []
        missed, self._missing = self._missing, {}
        if not waiting and not (parts and self._is_much(parts)):
            return parts, []
        parts = waiting + parts
        heads = np.concatenate([_heads(part) for part in parts])
        mine = np.flatnonzero(heads["protocol"] == PROTOCOL)
        if not mine.size:
            return parts, []
        order = mine[np.lexsort((heads["sequence"][mine], heads["connection_id"][mine]))]
        number, sequence = heads["connection_id"][order], heads["sequence"][order].astype(np.int64)
        first = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
        behind = np.append(first[1:], len(order))
        group = np.repeat(np.arange(len(first)), behind - first)
        found = [connections.get(one) if one not in busy else None for one in number[first].tolist()]
        level = [one if one is not None and _is_level(one) else None for one in found]
        usual = (heads["flags"][order] & ~np.uint16(_CONTINUED)) == 0
        # A connection is level once it has begun: a burst on a new one is not read record by record.
        begun = np.zeros(len(first), np.int64)
        for i in np.flatnonzero(behind - first >= _BEGIN_RECORDS).tolist():
            if level[i] is None and (key := int(number[first[i]])) not in busy:
                for at in range(int(first[i]), int(first[i]) + _BEGIN_STEPS):
                    known = connections.get(key)
                    if known is not None and _is_level(known):
                        level[i] = known
                        break
                    if not usual[at] or sequence[at] != (known.next if known is not None else 0):
                        break
                    part, row = _where(parts, int(order[at]))
                    feed(part[row : row + 1])
                    begun[i] += 1
        rank = np.arange(len(order))
        start = first + begun
        expected = np.array([-1 if one is None else one.next for one in level], np.int64)[group] + rank - start[group]
        is_level = np.array([one is not None for one in level], np.bool_)
        is_begun = rank < start[group]
        good = is_begun | (is_level[group] & usual & (sequence == expected))
        stop = np.minimum(np.minimum.reduceat(np.where(good, len(order), rank), first), behind)
        chosen = (rank < stop[group]) & ~is_begun

        late = np.zeros(len(order), np.bool_)
        gap = np.minimum(stop, len(order) - 1)
        # The rings are read one after the other: what came before it may have been written behind the reader.
        is_gap = is_level & (stop < behind) & (sequence[gap] > expected[gap])
        if is_gap.any():
            awaited = [missed.get(one, -1) for one in number[first].tolist()]
            is_gap &= expected[gap] != np.array(awaited, np.int64)
            late = is_gap[group] & ~chosen & ~is_begun
            if np.count_nonzero(late) > _WAITING_MAX:
                late[:] = False
        result: list[tuple[int, RoundCalls]] = []
        if chosen.any():
            read = self._read(parts, heads, order[chosen], group[chosen], level, take, give_up, result)
            chosen &= read[group]
            for i, one in enumerate(level):
                if one is not None and read[i]:
                    count = int(np.count_nonzero(chosen[first[i] : stop[i]]))
                    if count:
                        one.next += count
                        one.pid = int(heads["tgid"][order[int(stop[i]) - 1]])
                        touch(one.key)
            late &= (read | (stop == start))[group]  # what comes behind records that are left is left, too
        if late.any():
            groups = np.unique(group[late])
            self._missing = dict(zip(number[first[groups]].tolist(), expected[gap[groups]].tolist(), strict=True))
        gone, held = np.zeros(len(heads), np.bool_), np.zeros(len(heads), np.bool_)
        gone[order[chosen | is_begun]] = True
        held[order[late]] = True
        left: list[NDArray[Any]] = []
        at = 0
        for part in parts:
            there, wait = gone[at : at + len(part)], held[at : at + len(part)]
            at += len(part)
            if wait.any():
                self._waiting.append(part[wait])
            kept = ~(there | wait)
            if kept.all():
                left.append(part)
            elif kept.any():
                left.append(part[kept])
        return left, result

    def _is_much(self, parts: Sequence[NDArray[Any]]) -> bool:
        size = sum(int(part["captured_head"][part["protocol"] == PROTOCOL].sum(dtype=np.int64)) for part in parts)
        return size >= self.least_bytes

    def _read(
        self, parts: Sequence[NDArray[Any]], heads: NDArray[Any], rows: NDArray[np.intp], group: NDArray[np.intp],
        level: Sequence[Connection | None], take: Take, give_up: GiveUp, result: list[tuple[int, RoundCalls]],
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Read these records, sorted by connection and sequence; tells which groups were read."""
        from onlooker.protocols import http2_rounds  # with the first round that needs it

        groups, number = np.unique(group, return_inverse=True)
        mine = [one for one in (level[i] for i in groups.tolist()) if one is not None]
        roles = np.array([one.role for one in mine], np.uint8)
        from_client = (heads["direction"][rows] == _SENT) != (roles[number] == _SERVER)
        lane = 2 * number.astype(np.int64) + ~from_client
        order = np.argsort(lane, kind="stable")
        rows, lane = rows[order], lane[order]
        head = heads[rows]
        kept = head["captured_head"].astype(np.int64)
        transfers = http2_rounds.Transfers(
            data=_join(parts, rows, kept),
            place=np.concatenate(([0], np.cumsum(kept))),
            lane=lane,
            sequence=head["sequence"].astype(np.int64),
            offset=head["stream_offset"].astype(np.int64),
            length=head["length"].astype(np.int64),
            mono_ns=head["mono_ns"].astype(np.int64),
        )
        is_read, calls = http2_rounds.read_round(
            transfers,
            [one.parser for one in mine],
            _SegmentsOf(head, lane),
            lambda i, operations: take(mine[i], operations),
            lambda i: give_up(mine[i]),
        )
        if calls is not None:
            role = roles[lane[calls.request] >> 1]
            for one in np.unique(role).tolist():
                of_role = np.flatnonzero(role == one)
                some = calls if len(of_role) == len(role) else calls.take(of_role)
                result.append((one, RoundCalls(some, head[some.request], head[some.response])))
        read = np.zeros(len(level), np.bool_)
        read[groups[is_read]] = True
        return read


class _SegmentsOf:
    """Makes segments of parts of records."""

    def __init__(self, head: NDArray[Any], lane: NDArray[np.int64]) -> None:
        self._head, self._lane = head, lane
        self._rows: list[tuple[int, int, int, int, int, bool]] = []

    def __call__(self, i: int, kept: bytes, offset: int, length: int) -> Segment:
        head = self._head
        if not self._rows:
            names = ("direction", "mono_ns", "tid", "trace_flags", "parent_source")
            columns: list[list[Any]] = [head[name].tolist() for name in names]
            columns.append(np.any(head["span_id"], axis=1).tolist())
            self._rows = list(zip(*columns, strict=True))
        direction, mono_ns, tid, trace_flags, parent_source, has_context = self._rows[i]
        segment = Segment(
            direction == _SENT, not self._lane[i] & 1, mono_ns, offset, length, kept, tid=tid,
            parent_source=parent_source,
        )  # fmt: skip
        if has_context:
            segment.trace_id, segment.span_id = head["trace_id"][i].tobytes(), head["span_id"][i].tobytes()
            segment.trace_flags = trace_flags
        return segment


def _table(ids: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    """``(n, width)``; zero where there is none."""
    nothing = bytes(width)
    return np.frombuffer(b"".join(one or nothing for one in ids), np.uint8).reshape(-1, width)


def _is_level(connection: Connection) -> bool:
    return connection.protocol == PROTOCOL and bool(getattr(connection.parser, "is_level", False))


@lru_cache(maxsize=4)
def _head_dtype(record: np.dtype[Any]) -> np.dtype[Any]:
    """A record without its payload, which is the last field of both kinds."""
    fields = record.fields
    assert fields is not None
    names = [name for name in record.names or () if name != "payload"]
    return np.dtype(
        {
            "names": names,
            "formats": [fields[name][0] for name in names],
            "offsets": [fields[name][1] for name in names],
            "itemsize": fields["payload"][1],
        }
    )


def _where(parts: Sequence[NDArray[Any]], row: int) -> tuple[NDArray[Any], int]:
    """The part and the place in it of a row that counts through all parts."""
    for part in parts:
        if row < len(part):
            return part, row
        row -= len(part)
    raise IndexError(row)


def _bytes_of(part: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1)


def _heads(part: NDArray[Any]) -> NDArray[Any]:
    dtype = _head_dtype(part.dtype)
    return np.ascontiguousarray(_bytes_of(part)[:, : dtype.itemsize]).view(dtype)[:, 0]


def _join(parts: Sequence[NDArray[Any]], rows: NDArray[np.intp], kept: NDArray[np.int64]) -> bytes:
    """What was kept, of one record after the other; ``rows`` count through all parts."""
    views, starts, before = [], [], 0
    for part in parts:
        views.append(_bytes_of(part).reshape(-1).data)
        starts.append(before)
        before += len(part)
    which = np.searchsorted(np.array(starts), rows, "right") - 1
    stride = np.array([part.dtype.itemsize for part in parts])
    payload = np.array([_head_dtype(part.dtype).itemsize for part in parts])
    begin = (rows - np.array(starts)[which]) * stride[which] + payload[which]
    return b"".join(
        [views[i][a:b] for i, a, b in zip(which.tolist(), begin.tolist(), (begin + kept).tolist(), strict=True)]
    )
