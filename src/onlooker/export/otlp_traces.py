"""Turns the kept rows of a batch into OTLP trace requests, bytes at once.

Receives a `RequestBatch` with its series, hands on `Chunk`s: serialized ``ExportTraceServiceRequest`` messages.  Drops
nothing but rows of services that export no traces (counted).

A span is laid out in three parts; protobuf leaves the order of fields to the writer:

- the *head*: ids, times and flags, of fixed width but for the parent;
- the *constant part* of its series, encoded once and cached: name, kind, status, attributes;
- the *varying* attributes: a header that depends on key and length only, then the value.

Each part is written for all rows by one indexed copy of equally wide stretches, which may spill garbage behind their
end.  So the parts are written in the order constant, varying, head: every spill falls into bytes written later.  A
spill of varying bytes ends within the head of the next row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I4, I8, U1, RequestBatch, Series, SeriesTable, Service, Text, Values
from onlooker.export._wire import (
    copy_ragged,
    field,
    key_value,
    scatter,
    varint,
    varint_lengths,
    varints,
)
from onlooker.export.queue import Chunk

SCOPE_NAME = "onlooker"
MAX_VALUE_BYTES = 65_535  # of one varying attribute; longer ones are cut
UNKNOWN_SERVICE = "unknown_service"  # what the specification of resources asks for

# What of a batch becomes part of a span, beside the varying attributes.
COLUMNS = (
    "kind", "start_unix_ns", "end_unix_ns", "trace_id", "span_id", "parent_span_id", "trace_flags", "parent_source",
    "status", "dims", "name", "service", "series",
)  # fmt: skip
_OTHERS = tuple(n for n in RequestBatch.__dataclass_fields__ if n not in (*COLUMNS, "dim_names", "varying"))

_PARENT_REMOTE = (1, 3)  # enum parent_source: PARENT_HEADER, PARENT_PEER
_PARENT_THREAD = 2
_W3C_FLAGS = 0x03
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200

_VALUE_PIECE = 32  # less than the narrowest head, which takes the spill
_CONSTANT_PIECE = 512
_NO_PARENT = b"\x0a\x10" + bytes(16) + b"\x12\x08" + bytes(8) + b"\x39" + bytes(8) + b"\x41" + bytes(8)
_WITH_PARENT = _NO_PARENT[:28] + b"\x22\x08" + bytes(8) + _NO_PARENT[28:]
_FLAGS = b"\x85\x01" + bytes(4)
_HEADS = (_NO_PARENT + _FLAGS, _WITH_PARENT + _FLAGS)


def constant_part(name: str, kind: int, status: int, attributes: Mapping[str, object]) -> bytes:
    """The fields of a span that all spans of a series share."""
    parts = [field(5, name.encode("utf-8", "replace")), b"\x30" + varint(kind)]
    parts += [field(9, key_value(key, value)) for key, value in attributes.items()]  # type: ignore[arg-type]  # checked
    if status:
        parts.append(field(15, b"\x18" + varint(status)))
    return b"".join(parts)


class _Constants:
    """Encoded constant parts in one pool, by slot."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        self.pool = np.zeros(65_536, np.uint8)
        self.used = 0
        self.start = np.zeros(1024, np.int64)
        self.length = np.zeros(1024, np.int64)
        self.generation: dict[int, int] = {}  # of each known series
        self.loose: dict[tuple[object, ...], tuple[int, int]] = {}  # of rows outside any series

    def add(self, data: bytes) -> tuple[int, int]:
        """Append to the pool; gives start and length."""
        start = self.used
        end = start + len(data)
        if end + _CONSTANT_PIECE > len(self.pool):
            grown = np.zeros(max(2 * len(self.pool), end + _CONSTANT_PIECE), np.uint8)
            grown[:start] = self.pool[:start]
            self.pool = grown
        self.pool[start:end] = np.frombuffer(data, np.uint8)
        self.used = end
        return start, len(data)

    def set(self, series: Series) -> None:
        """Encode a series that is new, or whose id has begun another life."""
        if series.id >= len(self.start):
            grow = max(len(self.start), series.id + 1 - len(self.start))
            self.start = np.append(self.start, np.zeros(grow, np.int64))
            self.length = np.append(self.length, np.zeros(grow, np.int64))
        self.start[series.id], self.length[series.id] = self.add(
            constant_part(series.name, series.kind, series.status, series.attributes)
        )
        self.generation[series.id] = series.generation


class _Headers:
    """What stands in front of the value of one varying attribute: by length of a text, by varint length of a number.

    The longest header of a key is `width`; others are at most 8 bytes shorter, which bounds what a copy spills.
    """

    def __init__(self, key: str, text: bool) -> None:
        self._key = field(1, key.encode())
        self._tag = b"\x0a" if text else b"\x18"
        self._text = text
        limit = MAX_VALUE_BYTES if text else 10
        self.width = len(self.of(limit))
        self.pool = np.zeros(4 * self.width, np.uint8)
        self.used = 0
        # by length; grown to the longest value, which mostly is short
        self.start = np.full(65, -1, np.int64)
        self.length = np.zeros(65, np.int64)

    def of(self, length: int) -> bytes:
        """The header of a value of ``length`` bytes."""
        inner = self._tag + varint(length) if self._text else self._tag
        value = b"\x12" + varint(len(inner) + length) + inner
        return b"\x4a" + varint(len(self._key) + len(value) + length) + self._key + value

    def prepare(self, lengths: I8) -> None:
        """Make sure that the headers for these lengths are there."""
        known = np.bincount(lengths)
        if len(known) > len(self.start):
            more = max(len(known), 2 * len(self.start)) - len(self.start)
            self.start = np.append(self.start, np.full(more, -1, np.int64))
            self.length = np.append(self.length, np.zeros(more, np.int64))
        for length in np.flatnonzero(known):
            if self.start[length] >= 0:
                continue
            data = self.of(int(length))
            if self.used + self.width > len(self.pool):
                self.pool = np.append(self.pool, np.zeros(len(self.pool), np.uint8))
            self.pool[self.used : self.used + len(data)] = np.frombuffer(data, np.uint8)
            self.start[length] = self.used
            self.length[length] = len(data)
            self.used += self.width


class _Varying:
    """One varying column, ready to be written."""

    def __init__(self, headers: _Headers, pool: U1, start: I8, length: I8, present: NDArray[np.bool_]) -> None:
        self.headers, self.pool, self.start = headers, pool, start
        self.rows = None if present.all() else np.flatnonzero(present)
        self.length = length if self.rows is None else length[self.rows]
        if self.rows is not None:
            self.start = start[self.rows]
        headers.prepare(self.length)
        self.header_length = headers.length[self.length]
        self.size = self.header_length + self.length
        if self.rows is not None:
            self.size = np.zeros(len(present), np.int64)
            self.size[self.rows] = self.header_length + self.length

    def write(self, out: U1, to: I8) -> None:
        """Write the attribute of row i to ``out[to[i]:]``."""
        if self.rows is not None:
            to = to[self.rows]
        if not len(to):
            return
        headers = self.headers
        copy_ragged(out, to, headers.pool, headers.start[self.length], self.header_length, headers.width)
        copy_ragged(out, to + self.header_length, self.pool, self.start, self.length, _VALUE_PIECE)


class SpanEncoder:
    """Encodes batches; one per exporter thread, not thread-safe.

    Attributes:
        encoded: Spans so far.
        not_exported: Rows left out because their service exports no traces.
        cut: Attribute values cut to `MAX_VALUE_BYTES`.
        replaced: Attribute values that were no UTF-8.
    """

    def __init__(
        self, *, version: str, max_spans: int = 4096, max_bytes: int = 4 << 20, cache_bytes: int = 1 << 20
    ) -> None:
        self.max_spans = max_spans
        self.max_bytes = max_bytes
        self.encoded = 0
        self.not_exported = 0
        self.cut = 0
        self.replaced = 0
        self._constants = _Constants(cache_bytes)
        self._headers: dict[tuple[str, bool], _Headers] = {}
        self._resources: dict[int, tuple[Service | None, bytes]] = {}
        schema = field(3, semconv.SCHEMA_URL.encode())
        self._scope = field(1, field(1, SCOPE_NAME.encode()) + field(2, version.encode())) + schema
        self._schema = schema

    def encode(
        self,
        batch: RequestBatch,
        series: SeriesTable,
        services: Mapping[int, Service],
        values: Values,
    ) -> list[Chunk]:
        """The kept rows of a batch as requests of at most ``max_spans`` spans and about ``max_bytes`` bytes.

        Args:
            batch: ``keep`` chooses the rows; all if it was never set.
            series: The table that ``batch.series`` points into.
            services: By id; a row of an unknown service gets the resource of `UNKNOWN_SERVICE`.
            values: The table of ``batch.name`` and ``batch.dims``, for rows outside any series or in the overflow one.
        """
        rows = self._rows(batch, services)
        if rows is not None:
            if not len(rows):
                return []
            batch = _take(batch, rows)
        if not len(batch):
            return []
        out, ends = self._spans(batch, series, values)
        self.encoded += len(batch)
        return list(self._chunks(_service(batch), out, ends, services))

    def _rows(self, batch: RequestBatch, services: Mapping[int, Service]) -> NDArray[np.intp] | None:
        """The rows to encode, ordered by service; None for all as they are."""
        n = len(batch)
        keep = batch.keep if len(batch.keep) == n else np.ones(n, np.bool_)
        service = _service(batch)
        ids = [int(i) for i in np.flatnonzero(np.bincount(service + 1)) - 1] if n else []
        silent = [i for i in ids if i in services and "traces" not in services[i].exports]
        if silent:
            quiet = keep & np.isin(service, silent)
            self.not_exported += int(quiet.sum())
            keep = keep & ~quiet
        if len(ids) <= 1 or bool((service[1:] >= service[:-1]).all()):
            return None if keep.all() else np.flatnonzero(keep)
        rows = np.flatnonzero(keep)
        return rows[np.argsort(service[rows], kind="stable")]

    def _spans(self, batch: RequestBatch, series: SeriesTable, values: Values) -> tuple[U1, I8]:
        """All spans as fields of a ScopeSpans, one after the other, and where each ends."""
        constant_start, constant_length = self._constant(batch, series, values)
        varying = [self._column(key, column) for key, column in batch.varying.items()]
        parent: NDArray[np.bool_] = np.any(batch.parent_span_id != 0, axis=1)
        head_length = np.where(parent, len(_HEADS[1]), len(_HEADS[0]))
        body = head_length + constant_length
        for column in varying:
            body += column.size
        unsigned = body.view(np.uint64)
        prefix = varint_lengths(unsigned)
        prefix += 1
        ends = np.cumsum(body + prefix)
        total = int(ends[-1])
        out = np.empty(total + _CONSTANT_PIECE + max((c.headers.width for c in varying), default=0), np.uint8)

        at = ends - body - prefix
        place = at + prefix + head_length
        copy_ragged(out, place, self._constants.pool, constant_start, constant_length, _CONSTANT_PIECE)
        place += constant_length
        for column in varying:
            column.write(out, place)
            place += column.size
        self._write_heads(out, at, batch, parent, unsigned, prefix)
        return out[:total], ends

    def _write_heads(
        self, out: U1, at: I8, batch: RequestBatch, parent: NDArray[np.bool_], body: NDArray[np.uint64], prefix: I8
    ) -> None:
        flags = _flags(batch, parent)
        lengths = varints(body, prefix - 1)
        shape = prefix * 2 + parent  # few combinations: with or without parent, two or three bytes of length
        for combination in np.flatnonzero(np.bincount(shape)):
            width, has_parent = int(combination) >> 1, bool(combination & 1)
            chosen = np.flatnonzero(shape == combination)
            some: NDArray[np.intp] | slice = slice(None) if len(chosen) == len(batch) else chosen
            template = np.frombuffer(b"\x12" + bytes(width - 1) + _HEADS[has_parent], np.uint8)
            block = np.empty((len(chosen), len(template)), np.uint8)
            block[:] = template
            block[:, 1:width] = lengths[some, : width - 1]
            place = width + 2
            _put(block, place, batch.trace_id[some])
            place += 18
            _put(block, place, batch.span_id[some])
            place += 10
            if has_parent:
                _put(block, place, batch.parent_span_id[some])
                place += 10
            place -= 1
            _put(block, place, _bytes(batch.start_unix_ns[some].astype("<i8", copy=False)))
            place += 9
            _put(block, place, _bytes(batch.end_unix_ns[some].astype("<i8", copy=False)))
            place += 10
            _put(block, place, _bytes(flags[some].astype("<u4", copy=False)))
            scatter(out, at[some], block)

    def _constant(self, batch: RequestBatch, table: SeriesTable, values: Values) -> tuple[I8, I8]:
        """Where the constant part of each row lies in the pool, and how long it is."""
        constants = self._constants
        if constants.used > constants.max_bytes:
            constants.clear()
        n = len(batch)
        ids = batch.series if len(batch.series) == n else np.full(n, -1, np.int32)
        loose = ids < 0
        any_loose = bool(loose.any())
        for found in np.flatnonzero(np.bincount(ids + 1)):
            series_id = int(found) - 1
            row = table.rows[series_id] if 0 <= series_id < len(table.rows) else None
            if row is None or row.overflow:  # the overflow series says nothing about the row, its own dims do
                if series_id >= 0:
                    loose |= ids == series_id
                    any_loose = True
            elif constants.generation.get(series_id) != row.generation:
                constants.set(row)
        if not any_loose:
            return constants.start[ids], constants.length[ids]
        start, length = np.empty(n, np.int64), np.empty(n, np.int64)
        safe = np.where(loose, 0, ids)
        start[:] = constants.start[safe]
        length[:] = constants.length[safe]
        rare = np.flatnonzero(loose)
        columns = (batch.name, batch.kind, batch.status, *batch.dims.T)
        for i, key in zip(rare.tolist(), zip(*(c[rare].tolist() for c in columns), strict=True), strict=True):
            place = constants.loose.get(key)
            if place is None:
                attributes = {
                    k: value for k, d in zip(batch.dim_names, key[3:], strict=True) if (value := values[d]) is not None
                }
                name = values[key[0]]
                place = constants.add(constant_part("" if name is None else str(name), key[1], key[2], attributes))
                constants.loose[key] = place
            start[i], length[i] = place
        return start, length

    def _column(self, key: str, column: Text | I8) -> _Varying:
        if not isinstance(column, Text):
            headers = self._header(key, text=False)
            unsigned = column.astype(np.int64, copy=False).view(np.uint64)
            length = varint_lengths(unsigned)
            data = varints(unsigned, length)
            start = np.arange(len(column), dtype=np.int64) * data.shape[1]
            return _Varying(headers, data.reshape(-1), start, length, column != -1)
        headers = self._header(key, text=True)
        pool, start, length = self._utf8(column)
        return _Varying(headers, pool, start, np.maximum(length, 0), length >= 0)

    def _header(self, key: str, text: bool) -> _Headers:
        headers = self._headers.get((key, text))
        if headers is None:
            headers = self._headers[key, text] = _Headers(key, text)
        return headers

    def _utf8(self, column: Text) -> tuple[U1, I8, I8]:
        """The column with every value as valid UTF-8 of bounded length: one bad byte makes a whole request invalid."""
        pool, start, length = column.pool, column.start, column.length.astype(np.int64)
        start = np.where(length > 0, start, 0)
        if int(length.max(initial=0)) > MAX_VALUE_BYTES:
            self.cut += int((length > MAX_VALUE_BYTES).sum())
            length = np.minimum(length, MAX_VALUE_BYTES)
        if not len(pool) or int(pool.max()) < 0x80:
            return pool, start, length
        before = np.zeros(len(pool) + 1, np.int64)
        np.cumsum(pool >= 0x80, out=before[1:])
        wide = np.flatnonzero(before[start + np.maximum(length, 0)] > before[start])
        if not len(wide):
            return pool, start, length
        extra, end = [], len(pool)
        start = start.copy()
        for i in wide.tolist():
            data = pool[start[i] : start[i] + length[i]].tobytes()
            text = data.decode("utf-8", "replace").encode()
            if text == data:
                continue
            self.replaced += 1
            while len(text) > MAX_VALUE_BYTES:
                text = text[:MAX_VALUE_BYTES].decode("utf-8", "ignore").encode()
            extra.append(text)
            start[i], length[i] = end, len(text)
            end += len(text)
        if extra:
            pool = np.append(pool, np.frombuffer(b"".join(extra), np.uint8))
        return pool, start, length

    def _chunks(self, service: I4, out: U1, ends: I8, services: Mapping[int, Service]) -> Iterator[Chunk]:
        """Wrap runs of spans into their resource and scope, cut into requests."""
        borders = [0, *(np.flatnonzero(np.diff(service)) + 1).tolist(), len(service)]
        view = out.data
        parts: list[bytes | memoryview] = []
        spans = size = 0
        for first, last in pairwise(borders):
            while first < last:
                begin = int(ends[first - 1]) if first else 0
                fit = int(np.searchsorted(ends, begin + self.max_bytes - size, side="right"))
                stop = min(last, first + self.max_spans - spans, fit)
                if stop <= first:
                    if parts:
                        yield Chunk(b"".join(parts), spans)
                        parts, spans, size = [], 0, 0
                        continue
                    stop = first + 1  # one span larger than a whole request: send it alone
                end = int(ends[stop - 1])
                head = self._resource_head(int(service[first]), services, end - begin)
                parts += (head, view[begin:end])
                spans += stop - first
                size += len(head) + end - begin
                first = stop
        if parts:
            yield Chunk(b"".join(parts), spans)

    def _resource_head(self, service_id: int, services: Mapping[int, Service], size: int) -> bytes:
        """Everything of a ResourceSpans up to its spans, which take ``size`` bytes."""
        service = services.get(service_id)
        known = self._resources.get(service_id)
        if known is None or known[0] is not service:
            if len(self._resources) >= 4096:
                self._resources.clear()
            pairs = service.resource if service else ((semconv.SERVICE_NAME, UNKNOWN_SERVICE),)
            resource = field(1, b"".join(field(1, key_value(key, value)) for key, value in pairs)) + self._schema
            known = self._resources[service_id] = (service, resource)
        scope = b"\x12" + varint(len(self._scope) + size) + self._scope
        return b"\x0a" + varint(len(known[1]) + len(scope) + size) + known[1] + scope


def other_columns(batch: RequestBatch) -> dict[str, Any]:
    """The columns that make no part of a span, empty."""
    return {name: getattr(batch, name)[:0] for name in _OTHERS}


def _take(batch: RequestBatch, rows: NDArray[np.intp]) -> RequestBatch:
    """`RequestBatch.take` of `COLUMNS` alone: half of its cost."""
    columns = other_columns(batch)
    for name in COLUMNS:
        column = getattr(batch, name)
        columns[name] = column[rows] if len(column) == len(batch) else column
    columns["varying"] = {
        key: column.take(rows) if isinstance(column, Text) else column[rows] for key, column in batch.varying.items()
    }
    return replace(batch, **columns)


def _service(batch: RequestBatch) -> I4:
    return batch.service if len(batch.service) == len(batch) else np.full(len(batch), -1, np.int32)


def _bytes(column: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)


def _put(block: NDArray[np.uint8], place: int, data: NDArray[np.uint8]) -> None:
    """``block[:, place : place + w] = data``, as one element a row where that is faster."""
    width = data.shape[1]
    target = np.ndarray((len(block),), f"V{width}", block, place, (block.shape[1],))
    target[:] = np.ascontiguousarray(data).view(f"V{width}")[:, 0]


def _flags(batch: RequestBatch, parent: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """W3C flags, and whether the parent is in another process.  A span that is exported was sampled."""
    flags = (batch.trace_flags & _W3C_FLAGS | 1).astype(np.uint32)
    source = batch.parent_source
    remote = (source == _PARENT_REMOTE[0]) | (source == _PARENT_REMOTE[1])
    flags[parent & remote] |= _HAS_IS_REMOTE | _IS_REMOTE
    flags[parent & (source == _PARENT_THREAD)] |= _HAS_IS_REMOTE
    return flags
