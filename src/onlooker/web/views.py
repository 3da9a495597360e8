"""What the page shows, as plain data: made from the store, one function a view.

Numbers are plain floats; durations are in ms, rates a second, shares 0 to 1; None stands for "no value".  Series over
time have one value for each step from ``start_s`` on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker.store import blocks
from onlooker.store.blocks import BUCKETS, LOWER_NS, PER_OCTAVE, Block
from onlooker.store.reader import FINE_S, Key, Reader, ServiceRow, by_step

STEPS: Final[Mapping[int, tuple[int, int]]] = {
    300: (10, 10), 900: (20, 10), 1800: (60, 20), 3600: (60, 30), 10_800: (600, 60), 21_600: (600, 120),
    43_200: (1200, 300), 86_400: (1200, 600),
}  # fmt: skip
"""Offered ranges in seconds: step of the overview's small curves, step of one service's charts."""

FAILING: Final = 0.05
DEGRADED: Final = 0.01
_SLOWER: Final = 2.0
_TELLING_S: Final = 30.0
"""So much of the last step has to be over for its rate to mean something."""
_OPERATIONS: Final = 200
_RED: Final = ("count", "rate", "errors", "error_share", "p50_ms", "p95_ms", "p99_ms")
_KINDS: Final = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of time in whole steps that ends now."""

    start_s: int
    end_s: int
    step_s: int

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return (self.end_s - self.start_s) // self.step_s

    @classmethod
    def last(cls, seconds: int, step_s: int, now_s: float) -> Range:
        """The last seconds, with the step that has begun."""
        end = (int(now_s) // step_s + 1) * step_s
        return cls(end - max(seconds // step_s, 1) * step_s, end, step_s)


def nearest_range(seconds: float) -> int:
    """The offered range that covers so many seconds."""
    return next((offered for offered in STEPS if offered >= seconds), max(STEPS))


def number(value: float, digits: int = 3) -> float | None:
    """A float that JSON can carry."""
    if not math.isfinite(value):
        return None
    return round(float(value), digits)


def _list(values: NDArray[Any], digits: int = 3) -> list[float | None]:
    return [number(value, digits) for value in values.tolist()]


class _Groups:
    """Entries of a block put into numbered groups."""

    def __init__(self, block: Block, keys: Mapping[int, Key], group_of: Callable[[Key], object]) -> None:
        self.names: list[Any] = []
        number_of: dict[object, int] = {}
        size = int(block.key.max()) + 1 if len(block) else 1
        table = np.full(size, -1, np.int64)
        for key_id in np.unique(block.key).tolist():
            key = keys.get(key_id)
            if key is None or (name := group_of(key)) is None:
                continue
            if name not in number_of:
                number_of[name] = len(self.names)
                self.names.append(name)
            table[key_id] = number_of[name]
        self.group = table[block.key] if len(block) else np.zeros(0, np.int64)
        self.block = block

    def __len__(self) -> int:
        return len(self.names)

    def total(self, name: str) -> NDArray[np.float64]:
        """Sum of a column by group."""
        some = self.group >= 0
        weights = getattr(self.block, name)[some].astype(np.float64)
        found = np.bincount(self.group[some], weights=weights, minlength=len(self)).astype(np.float64)
        return found

    def histograms(self) -> NDArray[np.int32]:
        return blocks.histograms(self.block, self.group, len(self))

    def over_time(self, name: str, span: Range) -> NDArray[np.float64]:
        """``(groups, steps)`` sums."""
        at = by_step(self.block.t, span.start_s, span.step_s, span.steps)
        some = (self.group >= 0) & (at >= 0)
        flat = self.group[some] * span.steps + at[some]
        weights = getattr(self.block, name)[some].astype(np.float64)
        found = np.bincount(flat, weights=weights, minlength=len(self) * span.steps).astype(np.float64)
        return found.reshape(len(self), span.steps)

    def quantile_over_time(
        self, span: Range, wanted: Sequence[float], some: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """``(groups, steps, len(wanted))`` in ms; in pieces, so that memory stays small; only of some groups."""
        out = np.full((len(self), span.steps, len(wanted)), np.nan)
        at = by_step(self.block.t, span.start_s, span.step_s, span.steps)
        chosen = np.arange(len(self)) if some is None else np.flatnonzero(some)
        rank = np.full(len(self) + 1, -1, np.int64)  # the last one is for entries of no group
        piece = max(10_000 // span.steps, 1)
        for first in range(0, len(chosen), piece):
            part = chosen[first : first + piece]
            rank.fill(-1)
            rank[part] = np.arange(len(part))
            place = rank[self.group]
            flat = np.where((place >= 0) & (at >= 0), place * span.steps + at, -1)
            found = blocks.histograms(self.block, flat, len(part) * span.steps)
            out[part] = blocks.quantiles_ms(found, wanted).reshape(len(part), span.steps, len(wanted))
        return out


def _shown_sides(groups: _Groups) -> NDArray[np.bool_]:
    """The side of each service that is drawn: what it serves, or else what it calls."""
    serving = {service for service, serves in groups.names if serves}
    return np.array([serves or service not in serving for service, serves in groups.names], np.bool_)


def _covered_s(block: Block, span: Range, now_s: float) -> float:
    """Seconds that the numbers stand for: onlooker may be younger than the range."""
    first = int(block.t.min()) if len(block) else int(now_s)
    return max(now_s - max(first, span.start_s), 5.0)


def _unfinished(span: Range, now_s: float) -> float:
    """By what to multiply sums of the last step, which has only begun; NaN while too little of it is over."""
    over_s = now_s - (span.end_s - span.step_s)
    return span.step_s / (over_s - 1.0) if over_s >= _TELLING_S else math.nan  # rows are about a second late


def _steps_before(block: Block, span: Range) -> int:
    """Steps before the first one that has data."""
    return max((int(block.t.min()) - span.start_s) // span.step_s, 0) if len(block) else 0


def _red(count: float, errors: float, quantiles: Sequence[float], covered_s: float) -> dict[str, Any]:
    return {
        "count": int(count),
        "rate": number(count / covered_s, 4),
        "errors": int(errors),
        "error_share": number(errors / count, 5) if count else 0.0,
        "p50_ms": number(quantiles[0]),
        "p95_ms": number(quantiles[1]),
        "p99_ms": number(quantiles[2]),
    }


def overview(reader: Reader, seconds: int, now_s: float) -> dict[str, Any]:
    """All services, what is wrong first."""
    span = Range.last(seconds, STEPS[seconds][0], now_s)
    block = reader.metrics(span.start_s, span.end_s, span.step_s)
    keys, services = reader.keys(), reader.services()
    groups = _Groups(block, keys, lambda key: (key.service, key.serves))
    covered = _covered_s(block, span, now_s)
    count, errors = groups.total("count"), groups.total("errors")
    quantiles = blocks.quantiles_ms(groups.histograms()) if len(groups) else np.zeros((0, 3))
    rates = groups.over_time("count", span) if len(groups) else np.zeros((0, span.steps))
    failed = groups.over_time("errors", span) if len(groups) else rates
    before = _steps_before(block, span)
    rates[:, :before] = failed[:, :before] = np.nan  # onlooker was not there: that is no silence
    rates[:, -1:] *= _unfinished(span, now_s)
    failed[:, -1:] *= _unfinished(span, now_s)
    p95 = groups.quantile_over_time(span, (0.95,), _shown_sides(groups))[:, :, 0] if len(groups) else rates
    rows: dict[int, dict[str, Any]] = {}
    for i, (service_id, serves) in enumerate(groups.names):
        service = services.get(service_id)
        if service is None:
            continue
        row = rows.setdefault(service_id, {**_service(service), "server": None, "client": None})
        row["server" if serves else "client"] = {
            **_red(count[i], errors[i], quantiles[i], covered),
            "spark": {"rate": _list(rates[i] / span.step_s), "errors": _list(failed[i] / span.step_s),
                      "p95_ms": _list(p95[i])},
        }  # fmt: skip
    for service in services.values():
        if service.id not in rows and service.last_s >= span.start_s:
            rows[service.id] = {**_service(service), "server": None, "client": None}
    for row in rows.values():
        row["health"], row["why"], row["score"] = _health(row["server"] or row["client"])
    ordered = sorted(rows.values(), key=lambda row: (-row["score"], -_rate(row), row["name"]))
    return {**_times(span, now_s), "services": ordered}


def _times(span: Range, now_s: float) -> dict[str, Any]:
    return {"now_s": int(now_s), "start_s": span.start_s, "step_s": span.step_s, "steps": span.steps}


def _rate(row: Mapping[str, Any]) -> float:
    return float((row["server"] or row["client"] or {}).get("rate") or 0.0)


def _service(service: ServiceRow) -> dict[str, Any]:
    return {
        "id": service.id, "name": service.full_name, "namespace": service.namespace, "language": service.language,
        "since_s": service.first_s, "seen_s": service.last_s,
    }  # fmt: skip


def _health(side: Mapping[str, Any] | None) -> tuple[str, str, float]:
    """A word, a sentence, and a number to sort by."""
    if side is None or not side["count"]:
        return "idle", "no requests in this time", -1.0
    share = side["error_share"]
    if share >= DEGRADED:
        word = "failing" if share >= FAILING else "degraded"
        return word, f"{share * 100:.1f} % of requests fail", 10.0 * (word == "failing") + 5.0 + share
    curve = [value for value in side["spark"]["p95_ms"] if value is not None]
    recent = curve[-max(len(curve) // 5, 1) :]
    before = sorted(curve[: -len(recent)]) if len(curve) > 10 else []
    if before and (usual := before[len(before) // 2]) > 1.0:
        now = sorted(recent)[len(recent) // 2]
        if now > _SLOWER * usual:
            return "slower", f"p95 is {now / usual:.1f} times what it was before", 3.0 + min(now / usual, 100.0) / 100
    return "ok", "", 0.0


def service_map(reader: Reader, seconds: int, now_s: float) -> dict[str, Any]:
    """Services and what they talk to: nodes and edges."""
    span = Range.last(seconds, STEPS[seconds][0], now_s)
    block = reader.metrics(span.start_s, span.end_s, span.step_s)
    keys, services = reader.keys(), reader.services()
    covered = _covered_s(block, span, now_s)
    by_name = {service.full_name: service.id for service in services.values()}

    def node_of_peer(key: Key) -> str:
        if key.peer_type == "service" and key.peer in by_name:
            return f"service:{by_name[key.peer]}"
        return f"{key.peer_type}:{key.peer}" if key.peer_type != "outside" else "outside:"

    def edge_of(key: Key) -> tuple[str, str, bool] | None:
        own, peer = f"service:{key.service}", node_of_peer(key)
        return (peer, own, True) if key.serves else (own, peer, False)

    groups = _Groups(block, keys, edge_of)
    count, errors = groups.total("count"), groups.total("errors")
    quantiles = blocks.quantiles_ms(groups.histograms()) if len(groups) else np.zeros((0, 3))
    operations = _busiest_names(block, keys, groups)
    edges = []
    asked: dict[str, list[float]] = {}  # requests and failures that callers measured, by whom they asked
    callers = set()
    for i, (source, target, serving) in enumerate(groups.names):
        if serving:
            continue
        callers.add(source)
        known = asked.setdefault(target, [0.0, 0.0])
        known[0] += count[i]
        known[1] += errors[i]
        edges.append(_edge(source, target, "client", _red(count[i], errors[i], quantiles[i], covered), operations[i]))
    # What a service answered and no caller here asked came from outside.  Who it was is only believed of services whose
    # own requests are not seen: a port number may belong to two connections at once.
    outside: dict[str, list[int]] = {}
    for i, (source, target, serving) in enumerate(groups.names):
        if not serving:
            continue
        if source != "outside:" and source not in callers:
            known = asked.setdefault(target, [0.0, 0.0])
            known[0] += count[i]
            known[1] += errors[i]
            edges.append(
                _edge(source, target, "server", _red(count[i], errors[i], quantiles[i], covered), operations[i])
            )
        outside.setdefault(target, []).append(i)
    for target, rows in outside.items():
        total, failed = float(count[rows].sum()), float(errors[rows].sum())
        known = asked.get(target, [0.0, 0.0])
        rest = total - known[0]
        if rest > max(0.01 * total, 2.0) or not known[0]:
            best = next((i for i in rows if groups.names[i][0] == "outside:"), rows[0])
            red = _red(rest, max(min(failed - known[1], rest), 0.0), quantiles[best], covered)
            edges.append(_edge("outside:", target, "server", red, operations[best]))
    own = _Groups(block, keys, lambda key: key.service if key.serves else None)
    own_count, own_errors = own.total("count"), own.total("errors")
    own_quantiles = blocks.quantiles_ms(own.histograms()) if len(own) else np.zeros((0, 3))
    serving = {
        service: _red(own_count[i], own_errors[i], own_quantiles[i], covered) for i, service in enumerate(own.names)
    }
    names = {edge[end] for edge in edges for end in ("from", "to")}
    databases = reader.databases()
    nodes = [_node(str(name), services, serving, databases) for name in sorted(map(str, names))]
    return {**_times(span, now_s), "nodes": nodes, "edges": sorted(edges, key=lambda edge: -edge["count"])}


def _edge(source: str, target: str, side: str, red: dict[str, Any], operations: list[str]) -> dict[str, Any]:
    return {"from": source, "to": target, "measured_at": side, **red, "operations": operations}


def _node(
    node_id: str, services: Mapping[int, ServiceRow], serving: Mapping[int, dict[str, Any]], databases: set[int]
) -> dict[str, Any]:
    kind, _, name = node_id.partition(":")
    if kind == "service" and name.isdigit() and int(name) in services:
        service = services[int(name)]
        red = serving.get(service.id)
        share = red["error_share"] if red else 0.0
        health = "failing" if share >= FAILING else "degraded" if share >= DEGRADED else "ok"
        kind = "database" if service.id in databases else "service"
        return {"id": node_id, "type": kind, "name": service.full_name, "service": service.id,
                "language": service.language, "health": health, "red": red}  # fmt: skip
    return {"id": node_id, "type": kind, "name": name or "outside", "service": None, "language": "", "health": "ok",
            "red": None}  # fmt: skip


def _busiest_names(block: Block, keys: Mapping[int, Key], groups: _Groups, most: int = 5) -> list[list[str]]:
    found: list[dict[str, int]] = [{} for _ in range(len(groups))]
    totals = np.bincount(block.key, weights=block.count) if len(block) else np.zeros(1)
    group_of = dict(zip(block.key.tolist(), groups.group.tolist(), strict=True))
    for key_id, group in group_of.items():
        if group >= 0:
            name = keys[key_id].name
            found[group][name] = found[group].get(name, 0) + int(totals[key_id])
    return [sorted(names, key=lambda name: -names[name])[:most] for names in found]


def service(reader: Reader, service_id: int, seconds: int, now_s: float) -> dict[str, Any] | None:
    """One service: charts, heat map, operations, neighbours; None if there is no such service."""
    services = reader.services()
    row = services.get(service_id)
    if row is None:
        return None
    span = Range.last(seconds, STEPS[seconds][1], now_s)
    block = reader.metrics(span.start_s, span.end_s, span.step_s, service=service_id)
    keys = reader.keys(service_id)
    covered = _covered_s(block, span, now_s)
    has_server = any(keys[key].serves for key in np.unique(block.key).tolist() if key in keys)
    sides = {}
    for side, wanted in (("server", True), ("client", False)):
        groups = _Groups(block, keys, lambda key, wanted=wanted: 0 if key.serves is wanted else None)  # type: ignore[misc]  # bound per turn
        if len(groups):
            sides[side] = _charts(groups, block, keys, span, now_s)
    by_name = {one.full_name: one.id for one in services.values()}
    return {
        **_times(span, now_s),
        **_service(row),
        "main": "server" if has_server else "client",
        "sides": sides,
        "operations": _operations(block, keys, covered),
        "callees": _neighbours(block, keys, covered, by_name),
    }


def callers(graph: Mapping[str, Any], service_id: int) -> list[dict[str, Any]]:
    """Who calls a service, as the map has it."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    rows = []
    for edge in graph["edges"]:
        if edge["to"] == f"service:{service_id}":
            node = nodes[edge["from"]]
            figures = {name: edge[name] for name in _RED}
            rows.append({"type": node["type"], "name": node["name"], "service": node["service"], **figures})
    return rows


def _charts(groups: _Groups, block: Block, keys: Mapping[int, Key], span: Range, now_s: float) -> dict[str, Any]:
    covered = _covered_s(block, span, now_s)
    count, errors = groups.total("count"), groups.total("errors")
    histogram = groups.histograms()
    quantiles = groups.quantile_over_time(span, (0.5, 0.95, 0.99))[0]
    serves = keys[int(block.key[groups.group >= 0][0])].serves
    by_status = _Groups(block, keys, lambda key: key.status if key.serves is serves else None)
    rates = by_status.over_time("count", span) / span.step_s
    failed = groups.over_time("errors", span)[0]
    rates[:, : _steps_before(block, span)] = failed[: _steps_before(block, span)] = np.nan
    rates[:, -1:] *= _unfinished(span, now_s)
    failed[-1:] *= _unfinished(span, now_s)
    at = by_step(block.t, span.start_s, span.step_s, span.steps)
    flat = np.where((groups.group >= 0) & (at >= 0), at, -1)
    heat = blocks.histograms(block, flat, span.steps)
    used = np.flatnonzero(heat.sum(axis=0))
    low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    # two of our buckets make one row of the picture, once it would be too fine to see
    width = 1 if high - low <= 32 else 2
    low -= low % width
    high = min(high + (high - low) % width, BUCKETS)
    if (high - low) % width:
        low -= 1
    cells = heat[:, max(low, 0) : high].reshape(span.steps, -1, width).sum(axis=2)
    return {
        "total": _red(count[0], errors[0], blocks.quantiles_ms(histogram)[0], covered),
        "rate_by_status": {name: _list(rates[i]) for i, name in sorted(enumerate(by_status.names), key=lambda p: p[1])},
        "errors": _list(failed / span.step_s),
        "p50_ms": _list(quantiles[:, 0]),
        "p95_ms": _list(quantiles[:, 1]),
        "p99_ms": _list(quantiles[:, 2]),
        "heat": {
            "low_ms": [number(LOWER_NS[max(low, 0) + i * width] / 1e6, 4) for i in range(cells.shape[1])],
            "ratio": number(2.0 ** (width / PER_OCTAVE), 6),
            "cells": cells.tolist(),
        },
    }  # fmt: skip


def _operations(block: Block, keys: Mapping[int, Key], covered: float) -> list[dict[str, Any]]:
    groups = _Groups(block, keys, lambda key: (key.kind, key.name))
    if not len(groups):
        return []
    count, errors, spent = groups.total("count"), groups.total("errors"), groups.total("sum_us")
    quantiles = blocks.quantiles_ms(groups.histograms())
    sides: dict[bool, float] = {}
    for i, (kind, _) in enumerate(groups.names):
        sides[kind in (2, 5)] = sides.get(kind in (2, 5), 0.0) + spent[i]
    rows = [
        {
            "kind": _KINDS.get(kind, str(kind)), "name": name, **_red(count[i], errors[i], quantiles[i], covered),
            "mean_ms": number(spent[i] / max(count[i], 1) / 1e3),
            "time_share": number(spent[i] / (sides[kind in (2, 5)] or 1.0), 5),
        }
        for i, (kind, name) in enumerate(groups.names)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["count"])[:_OPERATIONS]


def _neighbours(
    block: Block, keys: Mapping[int, Key], covered: float, by_name: Mapping[str, int]
) -> list[dict[str, Any]]:
    groups = _Groups(block, keys, lambda key: None if key.serves else (key.peer_type, key.peer))
    if not len(groups):
        return []
    count, errors = groups.total("count"), groups.total("errors")
    quantiles = blocks.quantiles_ms(groups.histograms())
    rows = [
        {"type": kind, "name": name or "outside", "service": by_name.get(name) if kind == "service" else None,
         **_red(count[i], errors[i], quantiles[i], covered)}
        for i, (kind, name) in enumerate(groups.names)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["count"])


__all__ = ["FINE_S", "STEPS", "Range", "nearest_range", "overview", "service", "service_map"]
