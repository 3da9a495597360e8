"""Routes: receives requests with paths, hands on ``http.route`` and span names; may drop what is to be ignored.

A row's path becomes a 64-bit hash; hashes that were seen before give their answer from a table, all rows at once.
Python looks at new paths only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I4, SKIP_METRICS, SKIP_TRACES, RequestBatch, Service, SpanKind, Text, Values
from onlooker.columns import HashCache, TextHasher, distinct_in_order, mix
from onlooker.enrich.heuristic import RouteTrie, cluster_path
from onlooker.enrich.patterns import PathPatterns

Unmatched = Literal["unset", "path", "wildcard", "heuristic", "low-cardinality"]
IgnoreMode = Literal["all", "metrics", "traces"]

OTHER_METHOD: Final = "_OTHER"
OTHER_METHOD_NAME: Final = "HTTP"
"""What a span of an unknown method is called: semantic conventions, HTTP spans, "Name"."""

_MAX_TRIES: Final = 1_024
_ANY_ROUTE: Final = "/**"
_MAX_PATH_CHARACTERS: Final = 1_024


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """The section ``routes`` of the configuration.

    Attributes:
        max_routes: Distinct routes; with ``unmatched: path`` a crawler would fill the table that all stages share.
            Each makes a series at least, so ``limits.series`` bounds them, too.
    """

    patterns: tuple[str, ...] = ()
    ignored_patterns: tuple[str, ...] = ()
    ignore_mode: IgnoreMode = "all"
    unmatched: Unmatched = "low-cardinality"
    wildcard_char: str = "*"
    max_path_segment_cardinality: int = 10
    max_routes: int = 10_000


class Routes:
    """Gives each HTTP row its route and its span name.

    Attributes:
        ignored: Rows dropped because of ``ignored_patterns`` with mode ``all``.
        new_paths: Paths that Python had to look at.
        capped: Paths that became ``/**`` because there are too many routes.
    """

    def __init__(self, options: RouteOptions, values: Values, *, rng: np.random.Generator) -> None:
        self.ignored = 0
        self.new_paths = 0
        self.capped = 0
        self._routes: set[str] = set()
        self._options = options
        self._values = values
        self._patterns = PathPatterns(options.patterns)
        self._ignored_patterns = PathPatterns(options.ignored_patterns, place="routes.ignored_patterns")
        self._service_patterns: dict[tuple[tuple[str, ...], ...], tuple[PathPatterns, PathPatterns]] = {}
        self._harvested: Callable[[int, str], str | None] | None = None
        self._tries: dict[tuple[int, int], RouteTrie] = {}
        self._hash = TextHasher(rng)
        self._multipliers = rng.integers(0, 1 << 64, 2, np.uint64, endpoint=False)
        self._cache = HashCache(65_536)
        self._generic_name = values.id(OTHER_METHOD_NAME)
        self._outcomes: dict[tuple[int, int, int], int] = {}  # bounded by the capacity of `Values`
        self._table = np.zeros((3, 256), np.int32)  # route id, name id, skip bits

    def use_harvested(self, find: Callable[[int, str], str | None] | None) -> None:
        """Ask ``find(service_id, path)`` for routes that were read out of the service itself (server side)."""
        self._harvested = find
        self._cache.clear()

    def apply(self, batch: RequestBatch, services: Mapping[int, Service]) -> RequestBatch:
        """Fill ``http.route`` and ``name`` in place; rows of other protocols stay as they are.

        Args:
            batch: ``service`` is set; ``varying`` has ``url.path``.
            services: `Identities.services`, for the routes that a selector gave to one service.

        Returns:
            The same batch, or one without the ignored rows.
        """
        paths = batch.varying.get(semconv.URL_PATH)
        names = batch.dim_names
        if not isinstance(paths, Text) or semconv.HTTP_REQUEST_METHOD not in names or semconv.HTTP_ROUTE not in names:
            return batch
        if not len(batch):
            return batch
        methods = batch.dims[:, names.index(semconv.HTTP_REQUEST_METHOD)]
        routes = batch.dims[:, names.index(semconv.HTTP_ROUTE)]
        keys = self._hash(paths)
        # Ids are below 2**24 (`Values` and services are bounded), so that both words hold their parts apart.
        who = batch.service.astype(np.uint64)
        who <<= np.uint64(8)
        who += batch.kind
        who *= self._multipliers[0]
        keys += who
        what = routes.astype(np.uint64)
        what <<= np.uint64(32)
        what += methods.view(np.uint32)
        what *= self._multipliers[1]
        keys += what
        mix(keys)
        outcome = self._cache.lookup(keys)
        if outcome.min() < 0:
            missing = np.flatnonzero(outcome < 0)
            distinct, first, inverse = distinct_in_order(keys[missing])
            made = self._classify(batch, paths, methods, routes, missing[first], services)
            self._cache.insert(distinct, made)
            outcome[missing] = made[inverse]
        return self._write(batch, methods, routes, outcome)

    def forget_service(self, service_id: int) -> None:
        """Free what was learned about a service that is gone."""
        for key in [key for key in self._tries if key[0] == service_id]:
            del self._tries[key]

    def _write(self, batch: RequestBatch, methods: I4, routes: I4, outcome: I4) -> RequestBatch:
        route, name = self._table[0].take(outcome), self._table[1].take(outcome)
        http = methods != 0
        bare = (batch.name == 0) | (batch.name == methods) | (batch.name == self._generic_name)
        if http.all():
            routes[:] = route  # a view of `dims`
            batch.name = name if bare.all() else np.where(bare, name, batch.name)
        else:
            routes[:] = np.where(http, route, routes)
            batch.name = np.where(bare & http, name, batch.name)
        if not self._ignored_patterns:
            return batch
        skip = np.where(http, self._table[2].take(outcome), 0).astype(np.uint8)
        batch.skip = skip if len(batch.skip) != len(batch) else batch.skip | skip
        drop = skip == SKIP_METRICS | SKIP_TRACES
        if not drop.any():
            return batch
        self.ignored += int(drop.sum())
        return batch.take(~drop)

    def _outcome(self, route: int, name: int, skip: int) -> int:
        found = self._outcomes.get((route, name, skip))
        if found is not None:
            return found
        new = self._outcomes[route, name, skip] = len(self._outcomes)
        if new >= self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._table[:, new] = (route, name, skip)
        return new

    def _classify(
        self,
        batch: RequestBatch,
        paths: Text,
        methods: I4,
        routes: I4,
        rows: NDArray[np.intp],
        services: Mapping[int, Service],
    ) -> I4:
        """The outcomes of rows that differ in path, method, service or kind."""
        self.new_paths += len(rows)
        collapses = sum(trie.collapses for trie in self._tries.values()) if self._tries else 0
        pool = np.ascontiguousarray(paths.pool).data
        start = paths.start[rows].tolist()
        length = np.minimum(paths.length[rows], _MAX_PATH_CHARACTERS).tolist()
        method_ids, route_ids = methods[rows].tolist(), routes[rows].tolist()
        service_ids, kinds = batch.service[rows].tolist(), batch.kind[rows].tolist()
        made = np.empty(len(rows), np.int32)
        for i, (at, size, method, route, service, kind) in enumerate(
            zip(start, length, method_ids, route_ids, service_ids, kinds, strict=True)
        ):
            path = str(pool[at : at + max(size, 0)], "utf-8", "replace")
            made[i] = self._classify_one(path, method, route, services.get(service), service, kind)
        if self._tries and sum(trie.collapses for trie in self._tries.values()) != collapses:
            self._cache.clear()  # answers given before a place collapsed name its children one by one
        return made

    def _classify_one(
        self, path: str, method_id: int, route_id: int, service: Service | None, service_id: int, kind: int
    ) -> int:
        if method_id == 0:
            return self._outcome(route_id, 0, 0)
        skip = 0
        if self._ignored_patterns.match(path) is not None:
            mode = self._options.ignore_mode
            skip = {"all": SKIP_METRICS | SKIP_TRACES, "metrics": SKIP_METRICS, "traces": SKIP_TRACES}[mode]
            if mode == "all":
                return self._outcome(0, 0, skip)
        if route_id == 0:
            route_id = self._values.id(self._bounded(self._route(path, service, service_id, kind)))
        method = str(self._values[method_id])
        if method == OTHER_METHOD:
            method = OTHER_METHOD_NAME
        name = method if route_id == 0 else f"{method} {self._values[route_id]}"
        return self._outcome(route_id, self._values.id(name), skip)

    def _bounded(self, route: str | None) -> str | None:
        if route is None or route in self._routes:
            return route
        if len(self._routes) >= self._options.max_routes:
            self.capped += 1
            return _ANY_ROUTE
        self._routes.add(route)
        return route

    def _route(self, path: str, service: Service | None, service_id: int, kind: int) -> str | None:
        if (found := self._patterns.match(path)) is not None:
            return found
        if service is not None and (service.routes_incoming or service.routes_outgoing):
            own = self._patterns_of(service)[kind == SpanKind.CLIENT]
            if (found := own.match(path)) is not None:
                return found
        if (
            self._harvested is not None
            and kind == SpanKind.SERVER
            and (found := self._harvested(service_id, path)) is not None
        ):
            return found
        unmatched = self._options.unmatched
        if unmatched == "unset":
            return None
        if unmatched == "path":
            return path or "/"
        if unmatched == "wildcard":
            return _ANY_ROUTE
        route = cluster_path(path, self._options.wildcard_char) or "/"
        if unmatched == "heuristic":
            return route
        trie = self._tries.get((service_id, kind))
        if trie is None:
            if len(self._tries) >= _MAX_TRIES:
                del self._tries[next(iter(self._tries))]
            trie = self._tries[service_id, kind] = RouteTrie(
                self._options.max_path_segment_cardinality, self._options.wildcard_char
            )
        return trie.add(route)

    def _patterns_of(self, service: Service) -> tuple[PathPatterns, PathPatterns]:
        key = (service.routes_incoming, service.routes_outgoing)
        found = self._service_patterns.get(key)
        if found is None:
            found = self._service_patterns[key] = (
                PathPatterns(service.routes_incoming, place="routes.incoming of a selector"),
                PathPatterns(service.routes_outgoing, place="routes.outgoing of a selector"),
            )
        return found
