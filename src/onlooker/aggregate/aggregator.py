"""Receives identified requests, gives each its series and adds it up; hands on snapshots of all metrics.

Requests are summed by *span series* (everything that spans share).  A metric is coarser: when somebody looks, the sums
of the span series since the last look are folded into the series of each metric.  So the price of a request does not
depend on how many metrics are on.

May drop: attributes of series beyond the cap (they count in an overflow series), and series idle for longer than the
time to live.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.aggregate import graph
from onlooker.aggregate.definitions import (
    DEFINITIONS,
    DURATION_BOUNDS,
    GEN_AI_DURATION_BOUNDS,
    GEN_AI_TOKEN_BOUNDS,
    IN_NS,
    INFO_METRICS,
    NS,
    SIZE_BOUNDS,
    Definition,
    Measure,
    Shape,
    family_of,
    has_feature,
    measures_of,
)
from onlooker.aggregate.own import OwnMetrics
from onlooker.aggregate.selection import AttributeSelection, Selection
from onlooker.aggregate.store import OVERFLOW_ATTRIBUTE, MetricStore, PointRow, Sums, Taken, key_of, overflow_limit
from onlooker.aggregate.windows import WindowRow, Windows
from onlooker.batches import (
    I4,
    I8,
    OTHER_SERVICES,
    SKIP_METRICS,
    U8,
    AttributeValue,
    Identities,
    RequestBatch,
    Series,
    SeriesTable,
    Service,
    SpanKind,
    StatusCode,
    Text,
    Values,
)
from onlooker.columns import HashCache, TextHasher, distinct_in_order, mix
from onlooker.snapshot import (
    HOST_SERVICE_ID,
    Exemplar,
    HistogramPoint,
    LazyPoints,
    Metric,
    MetricKind,
    MetricSnapshot,
    NumberPoint,
)

AGGREGATED: Final = "AGGREGATED"
SOURCE_NAME: Final = "onlooker"

_NAMED_WINDOWS: Final = 256
_OTHER_WINDOWS: Final = 128
"""Rows of the last minute, 10 KB each: by name, and one a service and kind for the names that find no room."""


@dataclass(frozen=True, slots=True)
class AggregateOptions:
    """What of the configuration concerns metrics.

    Attributes:
        features: ``metrics.features``.
        instrumentations: ``instrumentations`` of the exporters, all of them together.
        select: ``attributes.select``.
        limit: ``limits.series``.
        ttl_s: Idle series are forgotten after that; 0: never.
        exemplars: Whether the latest kept span of each bucket is remembered.
        duration_bounds, request_size_bounds, response_size_bounds: Ascending, in the unit of the metric.
        host_id: For ``traces.host.info``; "" leaves it out.
    """

    features: frozenset[str] = frozenset({"application"})
    instrumentations: frozenset[str] = frozenset({"*"})
    select: Mapping[str, Selection] = field(default_factory=dict)
    limit: int = 10_000
    ttl_s: float = 300.0
    span_names_limit: int = 100
    exemplars: bool = False
    duration_bounds: tuple[float, ...] = DURATION_BOUNDS
    request_size_bounds: tuple[float, ...] = SIZE_BOUNDS
    response_size_bounds: tuple[float, ...] = SIZE_BOUNDS
    graph: graph.GraphOptions = field(default_factory=graph.GraphOptions)
    host_id: str = ""


@dataclass(slots=True)
class _Layout:
    """What is fixed for batches with the same attributes."""

    multipliers: I8
    salt: np.uint64
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class LiveLine:
    """A service, or one kind of request of it, over the last seconds."""

    service: str
    namespace: str
    kind: int
    name: str
    window: WindowRow


class Aggregator:
    """Sums of requests.  `observe` is for the capture thread, the rest for any thread.

    Attributes:
        table: All live span series.
        overflowed: Requests counted in an overflow series.
        streams: Rows kept out of the latency histograms.
        uncounted: Requests that no metric counts because of ignored routes.
    """

    def __init__(
        self,
        options: AggregateOptions,
        identities: Identities,
        values: Values,
        *,
        rng: np.random.Generator,
        clock_unix_ns: Callable[[], int],
    ) -> None:
        self.table = SeriesTable()
        self.overflowed = self.streams = self.uncounted = 0
        self._options = options
        self._identities = identities
        self._values = values
        self._rng = rng
        self._clock = clock_unix_ns
        self._lock = threading.Lock()
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._salt = rng.integers(0, 1 << 64, 3, np.uint64, endpoint=False)
        self._cache = HashCache(32_768)
        self._ids: dict[int, int] = {}
        self._overflow_ids: dict[tuple[int, int, int, int], int] = {}
        self._free: list[int] = []
        self._retired: list[int] = []
        self._capacity = 256
        self._calls: I8 = np.zeros(self._capacity, np.int64)
        self._seen_unix_ns: I8 = np.zeros(self._capacity, np.int64)
        self._window_of: I4 = np.zeros(self._capacity, np.int32)
        self._is_overflow = np.zeros(self._capacity, np.bool_)
        self._measured: dict[Measure, Sums] = {}
        self._services: dict[int, Service] = {}
        self._span_names: dict[int, set[str]] = {}
        self._hasher = TextHasher(rng)
        self._text_cache = HashCache(8_192)
        self._texts = Values()  # of its own: paths would fill the table that all stages share
        self._windows = Windows(_NAMED_WINDOWS + _OTHER_WINDOWS)
        self._window_keys: dict[tuple[int, int, str], int] = {}
        self._windows.row()  # row 0 takes what finds no room
        self._exemplars: _Exemplars | None = _Exemplars(self._capacity, options) if options.exemplars else None
        self._swept_unix_ns = 0
        selection = AttributeSelection(options.select)
        self._stores = [self._store(definition, selection) for definition in DEFINITIONS]
        chosen = {key for store in self._stores for key in store.attributes}
        self._varying = tuple(sorted(chosen & {semconv.URL_PATH, semconv.CLIENT_ADDRESS, semconv.DNS_QUESTION_NAME}))

    def describe(self, own: OwnMetrics) -> None:
        """Let onlooker's own metrics tell what this stage counted."""
        own.gauge("series", "Live series of requests.", read=lambda: sum(1 for _ in list(self.table)))
        own.counter("overflowed_requests", "Requests in overflow series.", read=lambda: self.overflowed)
        own.counter("stream_requests", "Requests kept out of latency histograms.", read=lambda: self.streams)
        own.counter("uncounted_requests", "Requests that ignored routes keep out.", read=lambda: self.uncounted)
        own.counter("overflowed_values", "Values beyond the interning table.", read=lambda: self._values.overflowed)

    # -- requests in ------------------------------------------------------------------------------------------------

    def observe(self, batch: RequestBatch) -> RequestBatch:
        """Set ``series`` and count the rows.

        Args:
            batch: ``service`` is set, ``dims`` and ``name`` are final.

        Returns:
            The same batch.
        """
        if not len(batch):
            batch.series = np.empty(0, np.int32)
            return batch
        now = self._clock()
        with self._lock:
            layout = self._layouts.get(batch.dim_names) or self._new_layout(batch.dim_names)
            series = batch.series = self._series(batch, layout)
            self._count(batch, series, layout, now)
        return batch

    def observe_kept(self, batch: RequestBatch) -> None:
        """Remember exemplars among the rows with ``keep``; call it after sampling.  Does nothing unless they are on."""
        if self._exemplars is None or not len(batch.keep):
            return
        rows = np.flatnonzero(batch.keep & ~batch.stream)
        if rows.size:
            with self._lock:
                self._exemplars.add(batch, rows)

    def _count(self, batch: RequestBatch, series: I4, layout: _Layout, now: int) -> None:
        stream = batch.stream
        weight = batch.weight if len(batch.weight) else None
        counted: NDArray[np.intp] | None = None
        if len(batch.skip):
            kept = (batch.skip & SKIP_METRICS) == 0
            if not kept.all():
                counted = np.flatnonzero(kept)
                self.uncounted += batch.requests() - batch.requests(counted)
        at = series.astype(np.int64)
        duration = batch.end_unix_ns - batch.start_unix_ns
        failed = batch.status == StatusCode.ERROR
        if counted is not None:
            at, duration, stream, failed = at[counted], duration[counted], stream[counted], failed[counted]
            weight = None if weight is None else weight[counted]
            if not at.size:
                return
        np.maximum(duration, 0, out=duration)
        np.add.at(self._calls, at, 1 if weight is None else weight)
        self._seen_unix_ns[at] = now
        self._windows.add(self._window_of[at], duration, stream, failed, now, weight)
        streaming = bool(stream.any())
        if streaming:
            self.streams += int(np.count_nonzero(stream) if weight is None else weight[stream].sum())
        for measure in layout.measures:
            if measure in IN_NS:
                rows = np.flatnonzero(~stream) if streaming else None
                values = duration
            else:
                column = _column(batch, measure)
                if column is None:
                    continue
                values = column if counted is None else column[counted]
                rows = np.flatnonzero(values >= 0) if values.min() < 0 else None
            sums = self._sums_of(measure)
            if rows is None:
                sums.add(at, values, weight)
            elif rows.size:
                sums.add(at[rows], values[rows], None if weight is None else weight[rows])

    # -- series -----------------------------------------------------------------------------------------------------

    def _series(self, batch: RequestBatch, layout: _Layout) -> I4:
        hashes: U8 = (batch.dims @ layout.multipliers[: batch.dims.shape[1]]).view(np.uint64)
        hashes += batch.name.astype(np.uint64) * self._salt[0]
        hashes += batch.service.astype(np.uint64) * self._salt[1]
        kinds = batch.kind.astype(np.uint64)
        kinds += batch.status.astype(np.uint64) << np.uint64(8)
        kinds += batch.protocol.astype(np.uint64) << np.uint64(16)
        kinds *= self._salt[2]
        hashes += kinds
        hashes += layout.salt
        extra: list[I4] = []
        for i, key in enumerate(self._varying):
            column = batch.varying.get(key)
            if isinstance(column, Text):
                ids = self._intern(column)
                extra.append(ids)
                hashes += ids.astype(np.uint64) * layout.multipliers.view(np.uint64)[batch.dims.shape[1] + i]
            else:
                extra.append(np.zeros(len(batch), np.int32))
        mix(hashes)
        found = self._cache.lookup(hashes)
        if found.min() < 0:
            missing = np.flatnonzero(found < 0)
            distinct, first, inverse = distinct_in_order(hashes[missing])
            made = np.array(
                [
                    self._series_of_row(key, batch, row, extra)
                    for key, row in zip(distinct.tolist(), missing[first].tolist(), strict=True)
                ],
                np.int32,
            )
            self._cache.insert(distinct, made)
            found[missing] = made[inverse]
        if self._overflow_ids:
            self.overflowed += batch.requests(self._is_overflow[found])
        return found

    def _intern(self, column: Text) -> I4:
        hashes = self._hasher(column)
        ids = self._text_cache.lookup(hashes)
        if ids.min() < 0:
            missing = np.flatnonzero(ids < 0)
            distinct, first, inverse = distinct_in_order(hashes[missing])
            texts = [column[row] for row in missing[first].tolist()]
            made = np.array(
                [0 if text is None else self._texts.id(text.decode("utf-8", "replace")) for text in texts], np.int32
            )
            self._text_cache.insert(distinct, made)
            ids[missing] = made[inverse]
        return ids

    def _series_of_row(self, key: int, batch: RequestBatch, row: int, extra: Sequence[I4]) -> int:
        found = self._ids.get(key)
        if found is not None:
            return found
        service_id, protocol = int(batch.service[row]), int(batch.protocol[row])
        kind, status = int(batch.kind[row]), int(batch.status[row])
        if len(self._ids) >= self._options.limit:
            return self._overflow_series(service_id, protocol, kind, status)
        attributes: dict[str, AttributeValue] = {}
        for name, value_id in zip(batch.dim_names, batch.dims[row].tolist(), strict=True):
            value = self._values[value_id]
            if value is not None:
                attributes[name] = value
        selected = {
            key: value
            for key, ids in zip(self._varying, extra, strict=True)
            if (value := self._texts[int(ids[row])]) is not None
        }
        name = str(self._values[int(batch.name[row])] or "")
        new = self._new_series(service_id, protocol, kind, status, name, attributes, selected)
        self._ids[key] = new
        return new

    def _overflow_series(self, service_id: int, protocol: int, kind: int, status: int) -> int:
        """One of the service; of all services together once these are an eighth of what ``limit`` allows."""
        found = self._overflow_ids.get((service_id, protocol, kind, status))
        if found is None and len(self._overflow_ids) >= overflow_limit(self._options.limit):
            service = self._identities.service(service_id)
            counts = service is not None and "metrics" in service.exports
            service_id = OTHER_SERVICES.id if counts else 0
            found = self._overflow_ids.get((service_id, protocol, kind, status))
        if found is None:
            found = self._overflow_ids[(service_id, protocol, kind, status)] = self._new_series(
                service_id, protocol, kind, status, AGGREGATED, {OVERFLOW_ATTRIBUTE: True}, {}, overflow=True
            )
        return found

    def _new_series(
        self,
        service_id: int,
        protocol: int,
        kind: int,
        status: int,
        name: str,
        attributes: dict[str, AttributeValue],
        selected: dict[str, AttributeValue],
        *,
        overflow: bool = False,
    ) -> int:
        new = self._free.pop() if self._free else len(self.table.rows)
        if new == len(self.table.rows):
            self.table.rows.append(None)
        if new >= self._capacity:
            self._grow(2 * self._capacity)
        series = self.table.rows[new] = Series(
            new, self.table.generation, service_id, protocol, kind, name, status, attributes, overflow
        )
        now = self._clock()
        self._seen_unix_ns[new] = now
        self._is_overflow[new] = overflow
        self._window_of[new] = self._window(series)
        self._map(series, {**attributes, **selected}, now)
        return new

    def _window(self, series: Series) -> int:
        key = (series.service_id, series.kind, series.name)
        found = self._window_keys.get(key)
        if found is None and len(self._window_keys) >= _NAMED_WINDOWS:
            key = (series.service_id, series.kind, AGGREGATED)
            found = self._window_keys.get(key)
        if found is None:
            found = self._windows.row()
            if found < 0:
                return 0
            self._window_keys[key] = found
        return found

    def _grow(self, capacity: int) -> None:
        more = np.zeros(capacity - self._capacity, np.int64)
        self._calls = np.concatenate([self._calls, more])
        self._seen_unix_ns = np.concatenate([self._seen_unix_ns, more])
        self._window_of = np.concatenate([self._window_of, more.astype(np.int32)])
        self._is_overflow = np.concatenate([self._is_overflow, more.astype(np.bool_)])
        for sums in self._measured.values():
            sums.grow(capacity)
        if self._exemplars is not None:
            self._exemplars.grow(capacity)
        self._capacity = capacity

    def _new_layout(self, dim_names: tuple[str, ...]) -> _Layout:
        count = len(dim_names) + len(self._varying)
        multipliers = self._rng.integers(-(1 << 63), (1 << 63) - 1, count, np.int64, endpoint=True)
        salt = self._rng.integers(0, 1 << 64, 1, np.uint64, endpoint=False)[0]
        layout = self._layouts[dim_names] = _Layout(multipliers, salt, measures_of(dim_names))
        return layout

    def _sums_of(self, measure: Measure) -> Sums:
        found = self._measured.get(measure)
        if found is None:
            scale = NS if measure in IN_NS else 1
            found = self._measured[measure] = Sums(np.array(self._bounds(measure)), scale, self._capacity)
        return found

    def _bounds(self, measure: Measure) -> tuple[float, ...]:
        options = self._options
        return {
            Measure.CALLS: (),
            Measure.DURATION: options.duration_bounds,
            Measure.REQUEST_SIZE: options.request_size_bounds,
            Measure.RESPONSE_SIZE: options.response_size_bounds,
            Measure.GEN_AI_DURATION: GEN_AI_DURATION_BOUNDS,
            Measure.GEN_AI_INPUT_TOKENS: GEN_AI_TOKEN_BOUNDS,
            Measure.GEN_AI_OUTPUT_TOKENS: GEN_AI_TOKEN_BOUNDS,
        }[measure]

    # -- metrics ----------------------------------------------------------------------------------------------------

    def _store(self, definition: Definition, selection: AttributeSelection) -> MetricStore:
        attributes: tuple[str, ...] = ()
        if definition.shape is Shape.ATTRIBUTES:
            section = definition.section or definition.name
            attributes = selection.attributes(section, definition.attributes, definition.optional)
        buckets = len(self._bounds(definition.measure)) + 1
        return MetricStore(definition, attributes, buckets, self._options.limit, OTHER_SERVICES.id)

    def _map(self, series: Series, attributes: Mapping[str, AttributeValue], now: int) -> None:
        """Say for a new span series in which series of which metrics it counts."""
        service = self._identities.service(series.service_id)
        wanted = service is not None and "metrics" in service.exports
        family = family_of(series.protocol, series.attributes)
        shared: dict[tuple[str, ...], tuple[Mapping[str, AttributeValue], Hashable]] = {}
        for store in self._stores:
            row = -1
            if service is not None and wanted and self._counts_in(store.definition, series, family, service):
                plain = store.definition.shape is Shape.ATTRIBUTES and not store.definition.constant
                known = shared.get(store.attributes) if plain else None
                made = known[0] if known else self._attributes(store, series, attributes, service)
                if made is not None:
                    key = known[1] if known else key_of(series.service_id, made)
                    if plain:
                        shared[store.attributes] = (made, key)
                    row = store.row(series.service_id, made, now, key)
                    self._note_owner(store, row, service)
            store.map_series(series.id, row)

    def _note_owner(self, store: MetricStore, row: int, service: Service) -> None:
        """Remember the service of a row for as long as there are rows of it."""
        point = store.rows[row]
        if point is not None:
            other = point.service_id == OTHER_SERVICES.id
            self._services[point.service_id] = OTHER_SERVICES if other else service

    def _counts_in(self, definition: Definition, series: Series, family: str, service: Service) -> bool:
        features = self._options.features if service.features is None else service.features
        instrumentations = self._options.instrumentations
        if series.kind not in definition.kinds or not has_feature(definition.feature, features):
            return False
        if series.overflow and definition.family:
            # Its attributes are gone, so only what the protocol alone tells can be said.
            return definition.family == self._overflow_family(series)
        if definition.family:
            return definition.family == family and (
                not definition.instrumentations
                or "*" in instrumentations
                or bool(instrumentations & definition.instrumentations)
            )
        return not (definition.shape is Shape.SPAN and family == "dns")

    def _overflow_family(self, series: Series) -> str:
        for other in self.table:
            if other.protocol == series.protocol and not other.overflow:
                return family_of(other.protocol, other.attributes)
        return ""

    def _attributes(
        self, store: MetricStore, series: Series, attributes: Mapping[str, AttributeValue], service: Service
    ) -> dict[str, AttributeValue] | None:
        definition = store.definition
        if definition.shape is Shape.GRAPH:
            return graph.edge(definition.name, series, service, self._options.graph, self._identities.services.values())
        if definition.shape is Shape.SPAN:
            return {
                semconv.SPAN_NAME: self._span_name(series),
                semconv.STATUS_CODE: f"STATUS_CODE_{StatusCode(series.status).name}",
                semconv.SPAN_KIND: f"SPAN_KIND_{SpanKind(series.kind).name}",
                semconv.SOURCE: SOURCE_NAME,
            }
        if series.overflow:
            return {OVERFLOW_ATTRIBUTE: True}
        return {key: attributes[key] for key in store.attributes if key in attributes} | dict(definition.constant)

    def _span_name(self, series: Series) -> str:
        """The name, or `AGGREGATED` once a service has too many."""
        limit = self._options.span_names_limit
        if limit <= 0:
            return series.name
        names = self._span_names.setdefault(series.service_id, set())
        if len(names) > limit:
            return AGGREGATED
        names.add(series.name)
        if len(names) <= limit:
            return series.name
        # One too many: from now on all of them count in one.
        now = self._clock()
        self._fold(now)
        for store in self._stores:
            if store.definition.shape is Shape.SPAN:
                for other in self.table:
                    if other.service_id == series.service_id and other.id < len(store.of_series):
                        row = int(store.of_series[other.id])
                        point = store.rows[row] if row >= 0 else None
                        if point is not None:
                            made = {**point.attributes, semconv.SPAN_NAME: AGGREGATED}
                            row = store.row(series.service_id, made, now)
                            store.map_series(other.id, row)
                            if (service := self._identities.service(series.service_id)) is not None:
                                self._note_owner(store, row, service)
        return AGGREGATED

    def _fold(self, now: int) -> None:
        """Add what the span series gathered since the last time to the metrics."""
        series = np.flatnonzero(self._calls)
        if not series.size:
            return
        calls = self._calls[series]
        self._calls[series] = 0
        taken: dict[Measure, Taken] = {}
        for measure, sums in self._measured.items():
            taken[measure] = Taken(sums.counts[series], sums.sums[series])
            sums.counts[series] = 0
            sums.sums[series] = 0
        for store in self._stores:
            if store.measure is Measure.CALLS:
                store.fold(series, calls, None, now)
            elif store.measure in taken:
                store.fold(series, calls, taken[store.measure], now)
        if self._exemplars is not None:
            self._exemplars.fold(self._stores)

    def snapshot(self) -> MetricSnapshot:
        """All metrics now; series without a single value are left out."""
        now = self._clock()
        with self._lock:
            self._fold(now)
            self._sweep(now)
            copies = [
                (
                    store,
                    [(row, point) for row, point in enumerate(store.rows) if point is not None],
                    store.counts.copy(),
                    store.sums.copy(),
                    store.calls.copy(),
                )
                for store in self._stores
                if len(store)
            ]
            services = dict(self._services)
        metrics: dict[str, Metric] = {}
        for store, rows, counts, sums, calls in copies:
            metric = self._metric(store, rows, counts, sums, calls, now)
            if not metric.points:
                continue
            known = metrics.get(metric.name)
            if known is not None:  # input and output tokens are one metric
                metric = Metric(
                    metric.name, metric.unit, metric.description, metric.kind,
                    [*known.points, *metric.points], metric.bounds, metric.monotonic,
                )  # fmt: skip
            metrics[metric.name] = metric
        return MetricSnapshot(now, [*metrics.values(), *self._infos(services, now)], services)

    def _metric(
        self, store: MetricStore, rows: list[tuple[int, PointRow]], counts: I8, sums: I8, calls: I8, now: int
    ) -> Metric:
        definition = store.definition
        scale = 1 / NS if definition.measure in IN_NS else 1
        if not definition.histogram:
            values = calls if definition.measure is Measure.CALLS else sums
            rows = [(row, point) for row, point in rows if calls[row]]

            def number(i: int) -> NumberPoint:
                row, point = rows[i]
                return NumberPoint(point.service_id, point.attributes, point.start_unix_ns, now, int(values[row]))

            numbers = LazyPoints(len(rows), number)
            return Metric(definition.name, definition.unit, definition.description, MetricKind.SUM, numbers)
        totals = counts.sum(axis=1)
        rows = [(row, point) for row, point in rows if totals[row]]

        def histogram(i: int) -> HistogramPoint:
            row, point = rows[i]
            return HistogramPoint(
                point.service_id,
                point.attributes,
                point.start_unix_ns,
                now,
                int(totals[row]),
                int(sums[row]) * scale,
                counts[row].tolist(),
                exemplars=tuple(point.exemplars.values()) if point.exemplars else (),
            )

        return Metric(
            definition.name, definition.unit, definition.description, MetricKind.HISTOGRAM,
            LazyPoints(len(rows), histogram), self._bounds(definition.measure),
        )  # fmt: skip

    def _infos(self, services: Mapping[int, Service], now: int) -> list[Metric]:
        infos = []
        for name, feature in INFO_METRICS:
            points = [
                NumberPoint(service.id, dict(service.resource), now, now, 1)
                for service in services.values()
                if has_feature(feature, self._options.features if service.features is None else service.features)
            ]
            if points:
                infos.append(Metric(name, "", "Attributes of the service.", MetricKind.GAUGE, points))
        if self._options.host_id and has_feature("application_host", self._options.features):
            attributes: dict[str, AttributeValue] = {semconv.GRAFANA_HOST_ID: self._options.host_id}
            host = NumberPoint(HOST_SERVICE_ID, attributes, now, now, 1)
            infos.append(
                Metric(semconv.METRIC_TRACES_HOST_INFO, "", "A host that is watched.", MetricKind.GAUGE, [host])
            )
        return infos

    def _sweep(self, now: int) -> None:
        """Forget what was idle for too long.

        An id is given away again only one sweep after it was retired, so that requests on their way to an exporter
        still find their series.
        """
        ttl = int(self._options.ttl_s * NS)
        if ttl <= 0 or now - self._swept_unix_ns < max(ttl // 10, NS):
            return
        self._swept_unix_ns = now
        for series_id in self._retired:
            self.table.rows[series_id] = None
            self._free.append(series_id)
        self._retired = []
        before = now - ttl
        idle = [series.id for series in self.table if self._seen_unix_ns[series.id] < before]
        if idle:
            gone = set(idle)
            self._ids = {key: i for key, i in self._ids.items() if i not in gone}
            self._overflow_ids = {key: i for key, i in self._overflow_ids.items() if i not in gone}
            self._cache.clear()
            for store in self._stores:
                known = np.array([i for i in idle if i < len(store.of_series)], np.intp)
                store.of_series[known] = -1
            self._retired = idle
            self.table.generation += 1
            self._release(gone)
        for store in self._stores:
            store.expire(before)
        used = {point.service_id for store in self._stores for point in store.rows if point is not None}
        self._services = {key: service for key, service in self._services.items() if key in used}

    def _release(self, gone: set[int]) -> None:
        alive = [series for series in self.table if series.id not in gone]
        windows = {int(self._window_of[series.id]) for series in alive}
        for key, row in list(self._window_keys.items()):
            if row not in windows:
                del self._window_keys[key]
                self._windows.release(row)
        services = {series.service_id for series in alive}
        for service_id in [key for key in self._span_names if key not in services]:
            del self._span_names[service_id]

    # -- the last minute --------------------------------------------------------------------------------------------

    def live_services(self, window_s: int = 10) -> list[LiveLine]:
        """One line a service and kind, over the last ``window_s`` seconds (10 to 60)."""
        return self._live(window_s, by_name=False)

    def live_routes(self, window_s: int = 10) -> list[LiveLine]:
        """One line a service, kind and span name."""
        return self._live(window_s, by_name=True)

    def _live(self, window_s: int, *, by_name: bool) -> list[LiveLine]:
        with self._lock:
            groups: dict[tuple[int, int, str], list[int]] = {}
            for (service_id, kind, name), row in self._window_keys.items():
                groups.setdefault((service_id, kind, name if by_name else ""), []).append(row)
            rows = self._windows.read(list(groups.values()), window_s, self._clock())
        lines = []
        for (service_id, kind, name), window in zip(groups, rows, strict=True):
            service = self._identities.service(service_id) or self._services.get(service_id)
            if service is not None and window.requests:
                lines.append(LiveLine(service.name, service.namespace, kind, name, window))
        return lines


class _Exemplars:
    """The latest kept span of each bucket of each span series."""

    def __init__(self, capacity: int, options: AggregateOptions) -> None:
        self._bounds = (np.array(options.duration_bounds) * NS).round().astype(np.int64)
        self._buckets = len(self._bounds) + 1
        self._ids = np.zeros((capacity * self._buckets, 24), np.uint8)
        self._value_ns: I8 = np.zeros(capacity * self._buckets, np.int64)
        self._time_unix_ns: I8 = np.zeros(capacity * self._buckets, np.int64)

    def grow(self, capacity: int) -> None:
        more = capacity * self._buckets - len(self._value_ns)
        self._ids = np.concatenate([self._ids, np.zeros((more, 24), np.uint8)])
        self._value_ns = np.concatenate([self._value_ns, np.zeros(more, np.int64)])
        self._time_unix_ns = np.concatenate([self._time_unix_ns, np.zeros(more, np.int64)])

    def add(self, batch: RequestBatch, rows: NDArray[np.intp]) -> None:
        duration = (batch.end_unix_ns - batch.start_unix_ns)[rows]
        at = batch.series[rows].astype(np.int64) * self._buckets + np.searchsorted(self._bounds, duration)
        self._ids[at, :16] = batch.trace_id[rows]
        self._ids[at, 16:] = batch.span_id[rows]
        self._value_ns[at] = duration
        self._time_unix_ns[at] = batch.end_unix_ns[rows]

    def fold(self, stores: Sequence[MetricStore]) -> None:
        wanted = [store for store in stores if store.measure is Measure.DURATION and store.definition.histogram]
        for at in np.flatnonzero(self._time_unix_ns).tolist():
            series, bucket = divmod(at, self._buckets)
            found = Exemplar(
                int(self._value_ns[at]) / NS,
                int(self._time_unix_ns[at]),
                self._ids[at, :16].tobytes(),
                self._ids[at, 16:].tobytes(),
            )
            for store in wanted:
                row = int(store.of_series[series]) if series < len(store.of_series) else -1
                point = store.rows[row] if row >= 0 else None
                if point is not None:
                    # A new dict: a snapshot on its way out may be reading the old one.
                    known = point.exemplars or {}
                    if bucket not in known or known[bucket].time_unix_ns <= found.time_unix_ns:
                        point.exemplars = {**known, bucket: found}
        self._time_unix_ns.fill(0)


def _column(batch: RequestBatch, measure: Measure) -> I8 | None:
    if measure is Measure.REQUEST_SIZE:
        return batch.request_bytes
    if measure is Measure.RESPONSE_SIZE:
        return batch.response_bytes
    key = {
        Measure.GEN_AI_INPUT_TOKENS: semconv.GEN_AI_USAGE_INPUT_TOKENS,
        Measure.GEN_AI_OUTPUT_TOKENS: semconv.GEN_AI_USAGE_OUTPUT_TOKENS,
    }[measure]
    column = batch.varying.get(key)
    return column if isinstance(column, np.ndarray) else None
