"""OTLP/JSON from serialized requests.

JSON is for receivers that take nothing else: requests are decoded again and written by the protobuf library, with the
exceptions of OTLP: ids in hexadecimal, enums as numbers.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from onlooker.export.endpoint import Signal

_IDS = ("traceId", "spanId", "parentSpanId")


def to_json(data: bytes, signal: Signal) -> bytes:
    """A serialized export request of that signal as OTLP/JSON."""
    from google.protobuf.json_format import MessageToDict  # imported late: only JSON needs it
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    kind = ExportTraceServiceRequest if signal is Signal.TRACES else ExportMetricsServiceRequest
    message: dict[str, Any] = MessageToDict(kind.FromString(data), use_integers_for_enums=True)
    if signal is Signal.TRACES:
        for resource in message.get("resourceSpans", ()):
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    _hexadecimal(span)
    else:
        for resource in message.get("resourceMetrics", ()):
            for scope in resource.get("scopeMetrics", ()):
                for metric in scope.get("metrics", ()):
                    for value in metric.values():
                        if isinstance(value, dict):
                            for point in value.get("dataPoints", ()):
                                for exemplar in point.get("exemplars", ()):
                                    _hexadecimal(exemplar)
    return json.dumps(message, separators=(",", ":")).encode()


def _hexadecimal(holder: dict[str, Any]) -> None:
    for key in _IDS:
        if key in holder:
            holder[key] = base64.b64decode(holder[key]).hex()
