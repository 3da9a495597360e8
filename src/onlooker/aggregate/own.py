"""onlooker's own metrics: what was lost and why, and what the agent costs.

A small registry: parts make their counters and gauges at start, add to them from any thread, and every exporter gets
them as one more snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from onlooker.batches import AttributeValue
from onlooker.errors import AgentError
from onlooker.snapshot import HOST_SERVICE_ID, Metric, MetricKind, MetricSnapshot, NumberPoint

PREFIX: Final = "onlooker_"
MAX_LABEL_SETS: Final = 1_000
"""Of one metric; further ones count under the label value ``other``."""

Read = Callable[[], float | Mapping[str, float]]


class OwnMetric:
    """A counter or a gauge with at most one label.

    Attributes:
        name: With the prefix, without ``_total``.
        label: Name of the label, or "".
    """

    def __init__(self, name: str, description: str, unit: str, kind: MetricKind, label: str, read: Read | None) -> None:
        self.name = name
        self.description = description
        self.unit = unit
        self.kind = kind
        self.label = label
        self._read = read
        self._values: dict[str, float] = {} if label else {"": 0}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, label_value: str = "") -> None:
        """Count ``amount`` more."""
        with self._lock:
            key = self._key(label_value)
            self._values[key] = self._values.get(key, 0) + amount

    def set(self, value: float, label_value: str = "") -> None:
        """Replace the value: for gauges, and for counters that somebody else keeps (the kernel, say)."""
        with self._lock:
            self._values[self._key(label_value)] = value

    def values(self) -> dict[str, float]:
        """Values by label value; by "" if there is no label."""
        if self._read is not None:
            read = self._read()
            return dict(read) if isinstance(read, Mapping) else {"": read}
        with self._lock:
            return dict(self._values)

    def _key(self, label_value: str) -> str:
        if bool(self.label) != bool(label_value):
            raise AgentError(f"{self.name} takes {'one label value' if self.label else 'no label value'}")
        if label_value in self._values or len(self._values) < MAX_LABEL_SETS:
            return label_value
        return "other"


class OwnMetrics:
    """All of onlooker's own metrics.

    Args:
        version: For ``onlooker_build_info``.
        start_unix_ns: Since when counters count.
        build_info: ``prometheus_export.disable_build_info`` turned round.
    """

    def __init__(self, *, version: str, start_unix_ns: int, build_info: bool = True) -> None:
        self._start_unix_ns = start_unix_ns
        self._metrics: dict[str, OwnMetric] = {}
        self._info: dict[str, AttributeValue] | None = (
            {"version": version, "target_lang": "python"} if build_info else None
        )

    def counter(
        self, name: str, description: str, *, unit: str = "", label: str = "", read: Read | None = None
    ) -> OwnMetric:
        """A value that only grows; ``read`` gives it (by label value, if there is a label) when somebody looks."""
        return self._add(name, description, unit, MetricKind.SUM, label, read)

    def gauge(
        self, name: str, description: str, *, unit: str = "", label: str = "", read: Read | None = None
    ) -> OwnMetric:
        """A value that goes up and down."""
        return self._add(name, description, unit, MetricKind.GAUGE, label, read)

    def _add(
        self, name: str, description: str, unit: str, kind: MetricKind, label: str, read: Read | None
    ) -> OwnMetric:
        if not name.startswith(PREFIX):
            name = PREFIX + name
        known = self._metrics.get(name)
        if known is not None:
            if (known.kind, known.label) != (kind, label):
                raise AgentError(f"{name} exists already as a {known.kind.value} with label {known.label!r}")
            return known
        new = self._metrics[name] = OwnMetric(name, description, unit, kind, label, read)
        return new

    def __iter__(self) -> Iterator[OwnMetric]:
        return iter(self._metrics.values())

    def snapshot(self, now_unix_ns: int) -> MetricSnapshot:
        """All values now, as points of `HOST_SERVICE_ID`."""
        metrics = []
        if self._info is not None:
            point = NumberPoint(HOST_SERVICE_ID, self._info, now_unix_ns, now_unix_ns, 1)
            description = "The version of onlooker."
            metrics.append(Metric(f"{PREFIX}build_info", "", description, MetricKind.GAUGE, [point]))
        for metric in list(self._metrics.values()):
            start = self._start_unix_ns if metric.kind is MetricKind.SUM else now_unix_ns
            points = [
                NumberPoint(HOST_SERVICE_ID, {metric.label: key} if metric.label else {}, start, now_unix_ns, value)
                for key, value in metric.values().items()
            ]
            metrics.append(Metric(metric.name, metric.unit, metric.description, metric.kind, points))
        return MetricSnapshot(now_unix_ns, metrics)
