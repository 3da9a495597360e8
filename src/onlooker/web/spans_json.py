"""Stored spans as JSON of three kinds: for the page, for OTLP and for Jaeger's query clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from onlooker import __version__, semconv
from onlooker.batches import StatusCode
from onlooker.store.spans import Span, endpoint_text

KINDS: Final = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
KEPT_AS: Final = ("sample", "rare", "slow", "error")
PARENTS: Final = ("none", "header", "thread", "peer", "ambiguous")
PROTOCOLS: Final = (
    "unknown", "http", "http2", "postgresql", "mysql", "tds", "redis", "memcached", "mongodb", "dns", "tls", "other",
)  # fmt: skip


def _named(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def row(span: Span) -> dict[str, Any]:
    """A span in a list."""
    return {
        "id": span.id,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "service": span.service,
        "service_name": span.service_name,
        "name": span.name,
        "kind": KINDS.get(span.kind, str(span.kind)),
        "protocol": _named(PROTOCOLS, span.protocol),
        "error": span.status == StatusCode.ERROR,
        "code": span.code,
        "start_unix_ns": str(span.start_unix_ns),
        "start_ms": span.start_unix_ns / 1e6,
        "duration_ms": span.duration_ns / 1e6,
        "kept_as": _named(KEPT_AS, span.cls),
        "target": target(span),
    }


def target(span: Span) -> str:
    """What was asked for, more exactly than the name says."""
    for key in (semconv.URL_PATH, semconv.URL_FULL, semconv.DB_QUERY_TEXT, semconv.DNS_QUESTION_NAME):
        if (found := span.attributes.get(key)) is not None:
            return str(found)
    return ""


def whole(span: Span) -> dict[str, Any]:
    """A span with everything that is known."""
    blob = span.blob
    local, remote = endpoint_text(blob.local), endpoint_text(blob.remote)
    queued = span.request_end_ns >= 0 and span.response_start_ns >= 0
    return {
        **row(span),
        "parent_span_id": span.parent_span_id,
        "parent_source": _named(PARENTS, blob.parent_source),
        # the request as it came in, the work on it, and the answer as it went out
        "request_ms": span.request_end_ns / 1e6 if span.request_end_ns >= 0 else None,
        "response_start_ms": span.response_start_ns / 1e6 if span.response_start_ns >= 0 else None,
        "processing_ms": max(span.response_start_ns - span.request_end_ns, 0) / 1e6 if queued else None,
        "request_bytes": blob.request_bytes if blob.request_bytes >= 0 else None,
        "response_bytes": blob.response_bytes if blob.response_bytes >= 0 else None,
        "local": {"address": local[0], "port": local[1]},
        "remote": {"address": remote[0], "port": remote[1]},
        "pid": blob.pid,
        "tid": blob.tid,
        "connection": f"{blob.connection:016x}",
        "stream": blob.stream,
        "attributes": span.attributes,
        "resource": dict(span.resource),
    }


def trace(spans: Sequence[Span]) -> dict[str, Any]:
    """A trace for the waterfall: spans in order of the tree, with depth and the other side of each connection."""
    rows = [whole(span) for span in spans]
    by_id = {one["span_id"]: one for one in rows}
    children: dict[str, list[dict[str, Any]]] = {}
    roots = []
    for one in rows:
        parent = one["parent_span_id"]
        if parent and parent in by_id and parent != one["span_id"]:
            children.setdefault(parent, []).append(one)
        else:
            roots.append(one)
    ordered: list[dict[str, Any]] = []
    placed: set[int] = set()
    stack = [(one, 0) for one in reversed(roots)]
    while stack:
        one, depth = stack.pop()
        if id(one) in placed:
            continue
        placed.add(id(one))
        one["depth"] = depth
        one["missing_parent"] = bool(one["parent_span_id"]) and one["parent_span_id"] not in by_id
        ordered.append(one)
        stack.extend((child, depth + 1) for child in reversed(children.get(one["span_id"], [])))
    # parents in a circle: shown all the same
    ordered.extend({**one, "depth": 0, "missing_parent": True} for one in rows if id(one) not in placed)
    _link_other_sides(ordered)
    start = min((span.start_unix_ns for span in spans), default=0)
    end = max((span.start_unix_ns + span.duration_ns for span in spans), default=0)
    for one in ordered:
        one["offset_ms"] = (int(one["start_unix_ns"]) - start) / 1e6
    return {
        "trace_id": spans[0].trace_id if spans else "",
        "start_unix_ns": str(start),
        "start_ms": start / 1e6,
        "duration_ms": (end - start) / 1e6,
        "services": list(dict.fromkeys(span.service_name for span in spans)),
        "errors": sum(span.status == StatusCode.ERROR for span in spans),
        "spans": ordered,
    }


def _link_other_sides(rows: Sequence[dict[str, Any]]) -> None:
    """Where both ends of a connection were seen, each span names the one at the other end."""
    for one in rows:
        one["other_side"] = one["queue_ms"] = None
    clients = {one["span_id"]: one for one in rows if one["kind"] == "client"}
    for one in rows:
        caller = clients.get(one["parent_span_id"])
        if one["kind"] == "server" and caller is not None and one["remote"] == caller["local"]:
            one["other_side"], caller["other_side"] = caller["span_id"], one["span_id"]
            # on one host there is one clock: from the caller's first byte to the first that was read here
            waited_ns = int(one["start_unix_ns"]) - int(caller["start_unix_ns"])
            one["queue_ms"] = max(waited_ns, 0) / 1e6


def _otlp_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_otlp_value(one) for one in value]}}
    return {"stringValue": str(value)}


def _otlp_attributes(values: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    pairs = values.items() if isinstance(values, Mapping) else values
    return [{"key": key, "value": _otlp_value(value)} for key, value in pairs]


def otlp(spans: Sequence[Span]) -> dict[str, Any]:
    """An OTLP/JSON ``ExportTraceServiceRequest``: what any OTLP/HTTP receiver takes at ``/v1/traces``."""
    by_resource: dict[str, list[Span]] = {}
    for span in spans:
        by_resource.setdefault(repr(span.resource), []).append(span)
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _otlp_attributes(group[0].resource)},
                "scopeSpans": [
                    {
                        "scope": {"name": "onlooker", "version": __version__},
                        "spans": [_otlp_span(span) for span in group],
                        "schemaUrl": semconv.SCHEMA_URL,
                    }
                ],
            }
            for group in by_resource.values()
        ]
    }


def _otlp_span(span: Span) -> dict[str, Any]:
    out: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "flags": span.blob.trace_flags & 0xFF,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_unix_ns),
        "endTimeUnixNano": str(span.start_unix_ns + span.duration_ns),
        "attributes": _otlp_attributes(span.attributes),
        "status": {"code": span.status} if span.status else {},
    }
    if span.parent_span_id:
        out["parentSpanId"] = span.parent_span_id
    return out


def _jaeger_tag(key: str, value: Any) -> dict[str, Any]:
    kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
    return {"key": key, "type": kind, "value": value if kind != "string" else str(value)}


def jaeger(spans: Sequence[Span]) -> dict[str, Any]:
    """A trace as Jaeger's query service gives it."""
    processes: dict[str, dict[str, Any]] = {}
    numbers: dict[str, str] = {}
    rows = []
    for span in spans:
        name = repr((span.service_name, span.resource))
        if name not in numbers:
            numbers[name] = f"p{len(numbers) + 1}"
            processes[numbers[name]] = {
                "serviceName": span.service_name,
                "tags": [_jaeger_tag(k, v) for k, v in span.resource if k != semconv.SERVICE_NAME],
            }
        tags = [_jaeger_tag(key, value) for key, value in span.attributes.items()]
        tags.append(_jaeger_tag("span.kind", KINDS.get(span.kind, "unspecified")))
        if span.status == StatusCode.ERROR:
            tags.append(_jaeger_tag("error", True))
        parent = (
            [{"refType": "CHILD_OF", "traceID": span.trace_id, "spanID": span.parent_span_id}]
            if span.parent_span_id
            else []
        )
        rows.append(
            {
                "traceID": span.trace_id, "spanID": span.span_id, "operationName": span.name, "references": parent,
                "startTime": span.start_unix_ns // 1000, "duration": span.duration_ns // 1000, "tags": tags,
                "logs": [], "processID": numbers[name], "warnings": None, "flags": span.blob.trace_flags,
            }
        )  # fmt: skip
    return {"traceID": spans[0].trace_id if spans else "", "spans": rows, "processes": processes, "warnings": None}
