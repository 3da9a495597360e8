"""The Prometheus endpoint: receives snapshots, hands on a scrape.

Names follow the standard translation from OpenTelemetry: dots become underscores, the unit becomes a suffix, counters
end in ``_total``.  The text is made here and not by ``prometheus_client``, whose objects take a second of Python for
10,000 series with 15 buckets, and whose import brings an HTTP server and a megabyte; its parsers read every scrape in
the tests.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final, TypeAlias

from aiohttp import web

from onlooker import semconv
from onlooker.batches import AttributeValue, Service
from onlooker.snapshot import (
    HOST_SERVICE_ID,
    Exemplar,
    ExponentialPoint,
    HistogramPoint,
    Metric,
    MetricKind,
    MetricSnapshot,
    NumberPoint,
    Point,
)

APP_GROUP: Final = (
    "container.name", "k8s.namespace.name", "k8s.pod.name", "k8s.container.name", "k8s.deployment.name",
    "k8s.replicaset.name", "k8s.daemonset.name", "k8s.job.name", "k8s.cronjob.name", "k8s.statefulset.name",
    "k8s.node.name", "k8s.pod.uid", "k8s.pod.start_time", "k8s.cluster.name", "k8s.owner.name", "k8s.kind",
)  # fmt: skip
"""Resource attributes that are labels of application metrics wherever a service has them."""

_SPAN_METRICS: Final = ("traces_spanmetrics_", "traces.span.metrics.")
_GRAPH_METRICS: Final = "traces_service_graph_"
_UNITS: Final = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "min": "minutes", "h": "hours",
    "d": "days", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "%": "percent", "Hz": "hertz",
    "Cel": "celsius",
}  # fmt: skip
CONTENT_TYPE_PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPE_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_CHUNK_BYTES: Final = 65_536

_Labels: TypeAlias = dict[tuple[str, int, int], tuple[Mapping[str, AttributeValue], Service | None, str]]
"""Label texts by scheme, service and identity of the attributes; those stand beside so that the id stays theirs."""


@dataclass(frozen=True, slots=True)
class PrometheusOptions:
    """The section ``prometheus_export``, as far as it concerns the text.

    Attributes:
        extra_resource_attributes: Resource attributes that become labels of application metrics.
        extra_span_resource_attributes: The same for span metrics.
    """

    extra_resource_attributes: tuple[str, ...] = ()
    extra_span_resource_attributes: tuple[str, ...] = ()


def accepts_openmetrics(accept_header: str | None) -> bool:
    """Whether OpenMetrics is asked for and at least as welcome as the older text."""
    openmetrics = plain = 0.0
    for item in (accept_header or "").split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if media == "application/openmetrics-text":
            openmetrics = max(openmetrics, quality)
        elif media in ("text/plain", "text/*", "*/*"):
            plain = max(plain, quality)
    return openmetrics > 0 and openmetrics >= plain


@lru_cache(maxsize=1024)
def metric_name(name: str, unit: str, kind: MetricKind, *, monotonic: bool = True) -> str:
    """The Prometheus name, without ``_total``.

    >>> metric_name("http.server.request.duration", "s", MetricKind.HISTOGRAM)
    'http_server_request_duration_seconds'
    """
    base = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_:]", "_", name))
    if base[:1].isdigit():
        base = f"_{base}"
    base = base.removesuffix("_total")
    suffix = _UNITS.get(unit, "" if unit.startswith("{") or unit == "1" else re.sub(r"[^a-zA-Z0-9]+", "_", unit))
    if unit == "1" and kind is MetricKind.GAUGE:
        suffix = "ratio"
    if suffix and not base.endswith(f"_{suffix}"):
        base = f"{base}_{suffix}"
    return base


@lru_cache(maxsize=1024)
def label_name(name: str) -> str:
    """An attribute key as a label."""
    label = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    if label[:1].isdigit() or label in ("le", "quantile"):  # the formats' own labels
        label = f"key_{label}"
    return f"key{label}" if label.startswith("__") else label or "_"


def label_value(value: AttributeValue) -> str:
    """An attribute value as a label, escaped; nothing in it can end the label or the line."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, tuple):
        text = json.dumps(list(value), ensure_ascii=False)
    else:
        text = str(value)
    if not text.isprintable() or "\\" in text or '"' in text:
        # A carriage return ends a line for some parsers; a lone surrogate is no UTF-8.
        text = text.encode("utf-8", "replace").decode()
        text = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text


def _go(value: float) -> str:
    """A number as both text formats have it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def _number(value: float) -> str:
    return str(value) if value.__class__ is int else _go(value)


class PrometheusRenderer:
    """Makes scrapes.  Label texts are kept between scrapes, at most one for each series."""

    def __init__(self, options: PrometheusOptions | None = None) -> None:
        self._options = options or PrometheusOptions()
        self._labels: _Labels = {}

    def render(self, snapshots: Sequence[MetricSnapshot], accept_header: str | None = None) -> tuple[bytes, str]:
        """A whole scrape and its content type."""
        openmetrics = accepts_openmetrics(accept_header)
        body = b"".join(self.chunks(snapshots, openmetrics=openmetrics))
        return body, CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN

    def chunks(self, snapshots: Sequence[MetricSnapshot], *, openmetrics: bool) -> Iterator[bytes]:
        """The scrape in pieces of about 64 KiB, so that a large one never stands in memory as a whole."""
        kept: _Labels = {}
        lines: list[str] = []
        size = 0
        for name, parts in _families(snapshots).items():
            for line in self._family(name, parts, kept, openmetrics=openmetrics):
                lines.append(line)
                size += len(line)
                if size >= _CHUNK_BYTES:
                    yield "".join(lines).encode("utf-8", "replace")
                    lines, size = [], 0
        if openmetrics:
            lines.append("# EOF\n")
        self._labels = kept
        yield "".join(lines).encode("utf-8", "replace")

    def _family(
        self,
        name: str,
        parts: list[tuple[Metric, MetricSnapshot]],
        kept: _Labels,
        *,
        openmetrics: bool,
    ) -> Iterator[str]:
        first = parts[0][0]
        counter = first.kind is MetricKind.SUM and first.monotonic
        histogram = first.kind in (MetricKind.HISTOGRAM, MetricKind.EXPONENTIAL_HISTOGRAM)
        kind = "counter" if counter else "histogram" if histogram else "gauge"
        sample = f"{name}_total" if counter else name
        family = name if openmetrics else sample
        help_text = first.description.replace("\\", r"\\").replace("\n", r"\n").replace("\r", " ")
        if openmetrics:
            help_text = help_text.replace('"', r"\"")
        yield f"# HELP {family} {help_text}\n# TYPE {family} {kind}\n"
        if openmetrics and (unit := _UNITS.get(first.unit)) and name.endswith(f"_{unit}"):
            yield f"# UNIT {family} {unit}\n"
        # Two services that carry the same labels are one series to Prometheus, which refuses a series given twice.
        # Points are made one at a time when they are asked for, so they are asked for twice and never all kept.
        seen: set[str] = set()
        twice: dict[str, Point | None] = {}
        for metric, snapshot in parts:
            for point in metric.points:
                labels = self._text(metric, point, snapshot, kept)
                if labels in seen:
                    twice[labels] = None
                seen.add(labels)
        del seen
        edges = [f'le="{_go(bound)}"}} ' for bound in (*first.bounds, float("inf"))]

        def lines(labels: str, point: Point) -> str:
            if isinstance(point, NumberPoint):
                text = f"{sample}{{{labels}}} {_number(point.value)}" if labels else f"{sample} {_number(point.value)}"
                if openmetrics and counter and point.exemplars:
                    text += _exemplar(point.exemplars[-1])
                return text + "\n"
            if isinstance(point, HistogramPoint):
                return _histogram(name, labels, point, first.bounds, edges, openmetrics=openmetrics)
            return _exponential(name, labels, point)

        for metric, snapshot in parts:
            for point in metric.points:
                labels = self._text(metric, point, snapshot, kept)
                if labels in twice:
                    other = twice[labels]
                    twice[labels] = point if other is None else _merge(other, point, kind)
                else:
                    yield lines(labels, point)
        for labels, merged in twice.items():
            if merged is not None:
                yield lines(labels, merged)

    def _text(
        self,
        metric: Metric,
        point: Point,
        snapshot: MetricSnapshot,
        kept: _Labels,
    ) -> str:
        key = (_scheme(metric.name), point.service_id, id(point.attributes))
        service = snapshot.services.get(point.service_id)
        known = kept.get(key) or self._labels.get(key)
        if known is None or known[1] is not service:
            known = (point.attributes, service, self._make_text(metric.name, point, service))
        kept[key] = known
        return known[2]

    def _make_text(self, name: str, point: Point, service: Service | None) -> str:
        labels: dict[str, str] = {}
        if service is not None and point.service_id != HOST_SERVICE_ID and not name.startswith(_GRAPH_METRICS):
            resource = dict(service.resource)
            labels["instance"] = label_value(service.instance_id)
            labels["job"] = label_value(f"{service.namespace}/{service.name}" if service.namespace else service.name)
            labels["service_name"] = label_value(service.name)
            if service.namespace:
                labels["service_namespace"] = label_value(service.namespace)
            if name.startswith(_SPAN_METRICS):
                labels[label_name(semconv.TELEMETRY_SDK_LANGUAGE)] = label_value(service.language)
                wanted: Iterable[str] = self._options.extra_span_resource_attributes
            else:
                wanted = (*APP_GROUP, *self._options.extra_resource_attributes)
            for key in wanted:
                if (value := resource.get(key)) is not None:
                    labels[label_name(key)] = label_value(value)
        for key, value in point.attributes.items():
            label = label_name(key)
            text = label_value(value)
            # Two keys that become one label: both values stay readable, as the specification asks.
            if label in labels and labels[label] != text and key not in _RESOURCE_LABELS:
                text = f"{labels[label]};{text}"
            labels[label] = text
        return ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()) if value)


def _scheme(name: str) -> str:
    """Metrics with the same scheme and the same attributes have the same labels."""
    for prefix in (*_SPAN_METRICS, _GRAPH_METRICS):
        if name.startswith(prefix):
            return prefix
    return ""


_RESOURCE_LABELS: Final = frozenset({semconv.SERVICE_NAME, semconv.SERVICE_NAMESPACE, *APP_GROUP})


def _families(snapshots: Sequence[MetricSnapshot]) -> dict[str, list[tuple[Metric, MetricSnapshot]]]:
    """Metrics by Prometheus name: lines of one family have to stand together.  The first one's type and bounds win."""
    families: dict[str, list[tuple[Metric, MetricSnapshot]]] = {}
    for snapshot in snapshots:
        for metric in snapshot.metrics:
            if not metric.points:
                continue
            parts = families.setdefault(metric_name(metric.name, metric.unit, metric.kind), [])
            if not parts or (parts[0][0].kind, parts[0][0].bounds) == (metric.kind, metric.bounds):
                parts.append((metric, snapshot))
    return families


def _merge(a: Point, b: Point, kind: str) -> Point:
    start = min(a.start_unix_ns, b.start_unix_ns)
    if isinstance(a, NumberPoint) and isinstance(b, NumberPoint):
        value = a.value + b.value if kind == "counter" else b.value
        return NumberPoint(a.service_id, a.attributes, start, b.time_unix_ns, value, (*a.exemplars, *b.exemplars))
    if isinstance(a, HistogramPoint) and isinstance(b, HistogramPoint):
        counts = [x + y for x, y in zip(a.bucket_counts, b.bucket_counts, strict=True)]
        return HistogramPoint(
            a.service_id, a.attributes, start, b.time_unix_ns, a.count + b.count, a.sum + b.sum, counts,
            exemplars=(*a.exemplars, *b.exemplars),
        )  # fmt: skip
    return b


def _histogram(
    name: str, labels: str, point: HistogramPoint, bounds: Sequence[float], edges: list[str], *, openmetrics: bool
) -> str:
    head = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    totals = list(accumulate(point.bucket_counts))
    lines = [f"{head}{edge}{total}" for edge, total in zip(edges, totals, strict=True)]
    if openmetrics and point.exemplars:
        latest: dict[int, Exemplar] = {}
        for exemplar in point.exemplars:
            bucket = bisect_left(bounds, exemplar.value)
            if bucket not in latest or latest[bucket].time_unix_ns < exemplar.time_unix_ns:
                latest[bucket] = exemplar
        for bucket, exemplar in latest.items():
            lines[bucket] += _exemplar(exemplar)
    tail = f"{{{labels}}}" if labels else ""
    return "\n".join(lines) + f"\n{name}_sum{tail} {_number(point.sum)}\n{name}_count{tail} {totals[-1]}\n"


def _exponential(name: str, labels: str, point: ExponentialPoint) -> str:
    """The text formats know no exponential histograms: its buckets become ordinary ones."""
    base = 2.0 ** (2.0**-point.scale)
    head = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    tail = f"{{{labels}}}" if labels else ""
    total = point.zero_count
    lines = [f'{head}le="0.0"}} {total}']
    for i, count in enumerate(point.bucket_counts):
        total += count
        if count:
            lines.append(f'{head}le="{_go(base ** (point.offset + i + 1))}"}} {total}')
    lines.append(f'{head}le="+Inf"}} {total}')
    return "\n".join(lines) + f"\n{name}_sum{tail} {_number(point.sum)}\n{name}_count{tail} {total}\n"


def _exemplar(exemplar: Exemplar) -> str:
    ids = f'{{trace_id="{exemplar.trace_id.hex()}",span_id="{exemplar.span_id.hex()}"}}'
    return f" # {ids} {_go(exemplar.value)} {exemplar.time_unix_ns / 1e9:.3f}"


def handler(
    take_snapshots: Callable[[], Sequence[MetricSnapshot]],
    options: PrometheusOptions | None = None,
    *,
    on_scrape: Callable[[int], None] | None = None,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """An aiohttp handler for the metrics path.  Tokens and the Host header are the server's business.

    Args:
        options: What the labels are made of.
        take_snapshots: The snapshots at this moment: of requests, and of onlooker itself.
        on_scrape: Told the size of each scrape in bytes, before compression.
    """
    renderer = PrometheusRenderer(options)

    async def metrics(request: web.Request) -> web.StreamResponse:
        openmetrics = accepts_openmetrics(request.headers.get("Accept"))
        packed = "gzip" in request.headers.get("Accept-Encoding", "").lower()
        response = web.StreamResponse()
        response.headers["Content-Type"] = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN
        response.headers["Cache-Control"] = "no-store"
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(request)
        compressor = zlib.compressobj(1, zlib.DEFLATED, 31) if packed else None
        size = 0
        if request.method != "HEAD":
            for chunk in renderer.chunks(take_snapshots(), openmetrics=openmetrics):
                size += len(chunk)
                data = compressor.compress(chunk) if compressor is not None else chunk
                if data:
                    await response.write(data)
            if compressor is not None:
                await response.write(compressor.flush())
        await response.write_eof()
        if on_scrape is not None:
            on_scrape(size)
        return response

    return metrics
