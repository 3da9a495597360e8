"""Questions to the store.  Everything is bounded: rows looked at, rows given, time spent."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I8, SpanKind
from onlooker.errors import StoreError
from onlooker.store import blocks
from onlooker.store.blocks import Block
from onlooker.store.spans import Blob, Span, decode

FINE_S, MINUTE_S, COARSE_S = 10, 60, 600
_SEARCH_S: Final = 0.08
"""Time that one search may take; it then says how far it came."""
_WINDOW: Final = 4_000
_TRACE_SPANS: Final = 5_000
_SPAN_COLUMNS: Final = (
    "spans.id, trace, start_us, duration_us, spans.service, class, data, "
    "series.kind, series.protocol, series.name, series.status, series.code, series.attributes, series.instance"
)
# two questions: asked as one, SQLite reads the whole table
_ENDS: Final = "SELECT (SELECT min(id) FROM spans), (SELECT max(id) FROM spans)"
SERVING: Final = (int(SpanKind.SERVER), int(SpanKind.CONSUMER))


@dataclass(frozen=True, slots=True)
class Key:
    """A row of the table ``keys``: what a metric is about."""

    id: int
    service: int
    kind: int
    name: str
    status: str
    peer_type: str
    peer: str

    @property
    def serves(self) -> bool:
        """Whether the service answers here, rather than asks."""
        return self.kind in SERVING


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A row of the table ``services``."""

    id: int
    namespace: str
    name: str
    language: str
    first_s: int
    last_s: int

    @property
    def full_name(self) -> str:
        """As people write it."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class SpanFilter:
    """What a search wants; None and "" mean anything.

    Attributes:
        status: ``error``, ``ok``, or a status code such as ``404`` or ``5xx``.
        attributes: Key and value pairs that must all hold; a value ending in ``*`` is a prefix.
        text: Found in the name or in any attribute, whatever its case.
        from_us, to_us: Unix µs of the start.
        before_id: Only spans with a lower number: the cursor.
        entry: Only spans without a parent on this host.
    """

    service: int | None = None
    operation: str = ""
    kind: int | None = None
    status: str = ""
    min_us: int | None = None
    max_us: int | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    text: str = ""
    from_us: int | None = None
    to_us: int | None = None
    before_id: int | None = None
    after_id: int | None = None
    limit: int = 50
    entry: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        cursor: Give it as ``before_id`` to go on; None: there is no more.
        complete: False if time ran out before the limit was reached.
    """

    spans: list[Span]
    cursor: int | None
    complete: bool


class Reader:
    """A consistent view of the store, for one question."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    # ---- what there is ----

    def services(self) -> dict[int, ServiceRow]:
        """All services by number."""
        rows = self._db.execute("SELECT id, namespace, name, language, first_s, last_s FROM services").fetchall()
        return {row[0]: ServiceRow(*row) for row in rows}

    def databases(self) -> set[int]:
        """Services that answer as databases or caches, and as nothing else."""
        rows = self._db.execute(
            "SELECT service FROM series WHERE kind=? GROUP BY service HAVING min(instr(attributes, ?)) > 0",
            (int(SpanKind.SERVER), f'"{semconv.DB_SYSTEM_NAME}":'),
        )
        return {row[0] for row in rows}

    def keys(self, service: int | None = None) -> dict[int, Key]:
        """Metric keys by number."""
        where, values = ("", ()) if service is None else (" WHERE service=?", (service,))
        rows = self._db.execute(
            f"SELECT id, service, kind, name, status, peer_type, peer FROM keys{where}", values
        ).fetchall()
        return {row[0]: Key(*row) for row in rows}

    def service_id(self, name: str) -> int | None:
        """The number of a service by ``name`` or ``namespace/name``."""
        namespace, _, bare = name.rpartition("/")
        row = self._db.execute(
            "SELECT id FROM services WHERE (namespace=? AND name=?) OR name=? ORDER BY namespace=? DESC LIMIT 1",
            (namespace, bare, name, namespace),
        ).fetchone()
        return int(row[0]) if row else None

    def last_span_id(self) -> int:
        """The number of the newest span, 0 if there is none."""
        row = self._db.execute("SELECT max(id) FROM spans").fetchone()
        return int(row[0] or 0)

    def span_count(self) -> tuple[int, int]:
        """About how many spans there are, and the start of the oldest in Unix s."""
        row = self._db.execute(_ENDS).fetchone()
        if row is None or row[0] is None:
            return 0, 0
        oldest = self._db.execute("SELECT start_us FROM spans WHERE id=?", (row[0],)).fetchone()[0]
        (count,) = self._db.execute("SELECT count(*) FROM spans").fetchone()
        return int(count), int(oldest) // 1_000_000

    # ---- metrics ----

    def metrics(self, start_s: int, end_s: int, step_s: int, *, service: int | None = None) -> Block:
        """Sums by key in steps; an entry may come several times, to be added up.

        Args:
            start_s: First second, a multiple of the step.
            end_s: First second that no longer counts.
            step_s: A multiple of ten seconds; of 600 beyond three hours without a service.
            service: Only this one: then minutes are there for as long as anything.
        """
        if step_s < MINUTE_S:
            return blocks.joined(list(self._read(FINE_S, 0, start_s, end_s, service)), step_s)
        if service is not None and end_s - start_s > 2 * 3600:
            tiers: tuple[tuple[int, int, int], ...] = (
                (MINUTE_S, service, COARSE_S), (MINUTE_S, 0, MINUTE_S), (FINE_S, 0, FINE_S)
            )  # fmt: skip
        elif end_s - start_s > 2 * 3600:
            tiers = ((COARSE_S, 0, COARSE_S), (MINUTE_S, 0, MINUTE_S), (FINE_S, 0, FINE_S))
        else:
            tiers = ((MINUTE_S, 0, MINUTE_S), (FINE_S, 0, FINE_S))
        found: list[Block] = []
        at = start_s
        for tier, owner, width in tiers:
            until = end_s
            if tier is not FINE_S or width is not FINE_S:
                row = self._db.execute("SELECT value FROM meta WHERE name=?", (f"folded_{width}",)).fetchone()
                until = min(end_s, int(row[0]) if row else at)
            if until > at:
                found.extend(self._read(tier, owner, at, until, service))
                at = until
        return blocks.joined(found, step_s)

    def _read(self, tier: int, owner: int, start_s: int, end_s: int, service: int | None) -> Iterable[Block]:
        wanted: NDArray[np.int64] | None = None
        if service is not None and not owner:
            wanted = np.array(sorted(self.keys(service)), np.int64)
        width = COARSE_S if owner else tier
        rows = self._db.execute(
            "SELECT data FROM blocks WHERE tier=? AND service=? AND t>? AND t<? ORDER BY t",
            (tier, owner, start_s - width, end_s),
        )
        for (data,) in rows:
            try:
                block = blocks.decode(data)
            except StoreError:
                continue
            mask = (block.t >= start_s) & (block.t < end_s)
            if wanted is not None:
                mask &= np.isin(block.key, wanted)
            yield block if mask.all() else block.where(mask)

    # ---- spans ----

    def search(self, want: SpanFilter, *, clock: Any = time.monotonic) -> Found:
        """The newest spans that match, newest first."""
        began = clock()
        where, values = self._where(want)
        row = self._db.execute(_ENDS).fetchone()
        if row is None or row[0] is None:
            return Found([], None, True)
        lowest = max(int(row[0]), (want.after_id or 0) + 1)
        high = min(int(row[1]) + 1, want.before_id or 1 << 62)
        sql = (
            f"SELECT {_SPAN_COLUMNS} FROM spans JOIN series ON series.id = spans.series "
            f"WHERE spans.id>=? AND spans.id<?{where} ORDER BY spans.id DESC"
        )
        found: list[Span] = []
        window = _WINDOW
        names = {row.id: row.full_name for row in self.services().values()}
        while high > lowest and len(found) < want.limit:
            low = max(high - window, lowest)
            started = clock()
            for row in self._db.execute(sql, (low, high, *values)):
                span = self._span(row, names)
                if span is not None and _matches(span, want):
                    found.append(span)
                    if len(found) >= want.limit:
                        low = span.id
                        break
                elif clock() - began > _SEARCH_S:
                    return Found(found, row[0], False)
            high = low
            now = clock()
            if now - started < 0.02:
                window *= 2
            if now - began > _SEARCH_S and high > lowest and len(found) < want.limit:
                return Found(found, high, False)
            if want.from_us is not None and self._is_before(high, want.from_us):
                high = lowest
        return Found(found, high if high > lowest else None, True)

    def _is_before(self, span_id: int, from_us: int) -> bool:
        row = self._db.execute("SELECT start_us FROM spans WHERE id<? ORDER BY id DESC LIMIT 1", (span_id,)).fetchone()
        return row is None or int(row[0]) < from_us - 120_000_000  # spans are stored when they end

    def _where(self, want: SpanFilter) -> tuple[str, list[Any]]:
        parts: list[str] = []
        values: list[Any] = []
        series: list[str] = []
        series_values: list[Any] = []
        if want.service is not None:
            parts.append("spans.service=?")
            values.append(want.service)
        if want.status == "error":
            parts.append("series.status=2")
            # all failed spans were kept as such, but for those over the quota: no shortcut by class
        elif want.status == "ok":
            parts.append("series.status<>2")
        elif want.status[1:] == "xx" and want.status[:1].isdigit():
            series.append("code LIKE ?")
            series_values.append(f"{want.status[0]}__")
        elif want.status:
            series.append("code=?")
            series_values.append(want.status)
        if want.operation:
            series.append("name=?")
            series_values.append(want.operation)
        if want.kind is not None:
            series.append("kind=?")
            series_values.append(want.kind)
        if want.min_us is not None:
            parts.append("duration_us>=?")
            values.append(want.min_us)
        if want.max_us is not None:
            parts.append("duration_us<=?")
            values.append(want.max_us)
        if want.from_us is not None:
            parts.append("start_us>=?")
            values.append(want.from_us)
        if want.to_us is not None:
            parts.append("start_us<=?")
            values.append(want.to_us)
        if series:
            if want.service is not None:
                series.append("service=?")
                series_values.append(want.service)
            parts.append(f"series IN (SELECT id FROM series WHERE {' AND '.join(series)})")
            values.extend(series_values)
        return "".join(f" AND {part}" for part in parts), values

    def trace(self, trace_id: bytes) -> list[Span]:
        """All stored spans of a trace, by start; attributes and resource filled."""
        names = {row.id: row.full_name for row in self.services().values()}
        rows = self._db.execute(
            f"SELECT {_SPAN_COLUMNS} FROM spans JOIN series ON series.id = spans.series WHERE trace=? "
            "ORDER BY start_us, spans.id LIMIT ?",
            (trace_id, _TRACE_SPANS),
        ).fetchall()
        spans = [span for row in rows if (span := self._span(row, names)) is not None]
        resources: dict[int, list[tuple[str, Any]]] = {}
        for row, span in zip(rows, spans, strict=False):
            instance = int(row[13])
            if instance not in resources:
                found = self._db.execute("SELECT resource FROM instances WHERE id=?", (instance,)).fetchone()
                resources[instance] = [(k, v) for k, v in json.loads(found[0])] if found else []
            span.resource = resources[instance]
        return spans

    def summaries(self, trace_ids: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
        """For each trace: how many spans, which services, failed ones, start and end."""
        out: dict[bytes, dict[str, Any]] = {}
        for trace_id in trace_ids:
            rows = self._db.execute(
                "SELECT spans.service, start_us, duration_us, series.status, series.name, series.kind FROM spans "
                "JOIN series ON series.id=spans.series WHERE trace=? ORDER BY start_us LIMIT ?",
                (trace_id, 500),
            ).fetchall()
            if rows:
                out[trace_id] = {
                    "spans": len(rows),
                    "services": list(dict.fromkeys(row[0] for row in rows)),
                    "errors": sum(row[3] == 2 for row in rows),
                    "start_us": rows[0][1],
                    "duration_us": max(row[1] + row[2] for row in rows) - rows[0][1],
                    "root_name": rows[0][4],
                    "root_service": rows[0][0],
                    "root_kind": rows[0][5],
                }
        return out

    def _span(self, row: Sequence[Any], names: dict[int, str]) -> Span | None:
        blob: Blob | None = decode(row[6])
        if blob is None:
            return None
        start = row[2] * 1000 + blob.start_rest_ns
        return Span(
            id=row[0], trace_id=row[1].hex(), span_id=blob.span_id.hex(), parent_span_id=blob.parent.hex(),
            service=row[4], service_name=names.get(row[4], ""), name=row[9], kind=row[7], protocol=row[8],
            status=row[10], code=row[11], start_unix_ns=start, duration_ns=blob.duration_ns,
            request_end_ns=blob.request_end_us * 1000 if blob.request_end_us >= 0 else -1,
            response_start_ns=blob.response_start_us * 1000 if blob.response_start_us >= 0 else -1,
            cls=row[5], blob=blob, attributes={**json.loads(row[12]), **blob.varying},
        )  # fmt: skip


_PARENT_HEADER: Final = 1
_DATABASES: Final = range(3, 9)
"""Of enum protocol: PostgreSQL to MongoDB."""


def _begins_trace(span: Span) -> bool:
    if span.parent_span_id:
        return span.blob.parent_source == _PARENT_HEADER
    # what a database was asked by somebody on this host began there, joined or not
    if span.protocol not in _DATABASES or span.kind != SpanKind.SERVER:
        return True
    asked_here = span.blob.remote[:-2] == span.blob.local[:-2]
    return not asked_here and semconv.SERVICE_PEER_NAME not in span.attributes


def _matches(span: Span, want: SpanFilter) -> bool:
    if want.entry and not _begins_trace(span):
        return False
    for key, value in want.attributes:
        found = span.attributes.get(key)
        if found is None:
            return False
        text = str(found)
        if not (text.startswith(value[:-1]) if value.endswith("*") else text == value):
            return False
    if want.text:
        needle = want.text.casefold()
        if needle not in span.name.casefold() and not any(
            needle in str(value).casefold() for value in span.attributes.values()
        ):
            return False
    return True


def by_step(t: I8, start_s: int, step_s: int, steps: int) -> I8:
    """Index of each bucket of time in a chart, -1 outside."""
    at = (t - start_s) // step_s
    return np.where((at >= 0) & (at < steps), at, -1)
