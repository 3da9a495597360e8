"""The description of the API (OpenAPI 3.1), made from one table."""

from __future__ import annotations

from typing import Any, Final

from onlooker import __version__
from onlooker.web.views import STEPS

_RANGE: Final = ("range", "Seconds, or such as 15m, 1h, 1d; rounded up to one of "
                 f"{', '.join(map(str, STEPS))}.", "900")  # fmt: skip
_FILTERS: Final = (
    ("service", "Number or name of a service.", ""),
    ("operation", "Span name.", ""),
    ("entry", "1: only requests that begin a trace here.", "0"),
    ("kind", "server, client, producer, consumer or internal.", ""),
    ("status", "error, ok, 5xx or a status code.", ""),
    ("min", "Shortest duration, such as 200ms.", ""),
    ("max", "Longest duration.", ""),
    ("attribute", "key=value; may be repeated; a value may end in *.", ""),
    ("q", "Text in the name or in any attribute.", ""),
    ("from", "Unix µs of the earliest start.", ""),
    ("to", "Unix µs of the latest start.", ""),
)
_PAGING: Final = (
    ("limit", "Spans wanted, at most 500.", "50"),
    ("before", "Cursor of the answer before this one.", ""),
    ("after", "Only spans with a higher number.", ""),
)

PATHS: Final[dict[str, tuple[str, tuple[tuple[str, str, str], ...]]]] = {
    "/api/v1/overview": ("Services with rate, errors and latency, what is wrong first; what is not seen.", (_RANGE,)),
    "/api/v1/map": ("The service graph: nodes and edges.", (_RANGE,)),
    "/api/v1/services": ("All services with their operations.", ()),
    "/api/v1/services/{service}": ("Charts, heat map, operations, neighbours and processes of a service.", (_RANGE,)),
    "/api/v1/traces": ("The newest spans that match, with a summary of their traces.", (*_FILTERS, *_PAGING)),
    "/api/v1/traces/{trace}": ("A trace with every attribute.", ()),
    "/api/v1/traces/{trace}/otlp": ("A trace as an OTLP/JSON export request, for any receiver's /v1/traces.", ()),
    "/api/v1/agent": ("onlooker itself: probes, losses, queues, memory, exporters, store.", ()),
    "/api/v1/config": ("The effective configuration and where each value comes from; secrets are hidden.", ()),
    "/api/v1/processes": ("Processes that are watched, and those that are not with the reason.", ()),
    "/api/v1/stream": (
        "Server-sent events: `overview` every 2 to 15 seconds, `spans` as they are stored.",
        (("topics", "overview, spans or both.", "overview,spans"), _RANGE, *_FILTERS),
    ),
    "/api/services": ("Jaeger: names of services.", ()),
    "/api/services/{service}/operations": ("Jaeger: operations of a service.", ()),
    "/api/operations": ("Jaeger: operations of a service.", (("service", "Name of a service.", ""),)),
    "/api/traces": (
        "Jaeger: search.",
        (
            ("service", "Name of a service.", ""), ("operation", "Span name.", ""), ("tags", "JSON object.", ""),
            ("minDuration", "Such as 200ms.", ""), ("maxDuration", "Such as 2s.", ""),
            ("start", "Unix µs.", ""), ("end", "Unix µs.", ""), ("limit", "Traces.", "20"),
            ("traceID", "These traces; may be repeated.", ""),
        ),
    ),
    "/api/traces/{trace}": ("Jaeger: one trace.", ()),
    "/api/dependencies": ("Jaeger: calls between services.", (("lookback", "Milliseconds.", "3600000"),)),
    "/healthz": ("200 while onlooker works, 503 after it failed.", ()),
    "/readyz": ("200 once requests are captured.", ()),
    "/metrics": ("Prometheus: metrics of the services and of onlooker.", ()),
}  # fmt: skip


def _operation(path: str, summary: str, query: tuple[tuple[str, str, str], ...]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in path.split("/")
        if part.startswith("{")
    ]
    for name, text, default in query:
        schema: dict[str, Any] = {"type": "string"}
        if default:
            schema["default"] = default
        parameters.append({"name": name, "in": "query", "description": text, "schema": schema})
    kind = {"/api/v1/stream": "text/event-stream", "/metrics": "text/plain"}.get(path, "application/json")
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": {kind: {}}}}
    if path.startswith("/api"):
        responses["400"] = {"description": "A parameter cannot be used; `error` says which and what would do."}
        responses["401"] = {"description": "A bearer token is needed."}
        responses["403"] = {"description": "The request came from another site, or by another name."}
    if "{" in path:
        responses["404"] = {"description": "There is none."}
    return {"summary": summary, "parameters": parameters, "responses": responses}


def description() -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onlooker",
            "version": __version__,
            "description": "What a running onlooker has seen. Read-only. Times are Unix time, durations ms unless a "
            "name says otherwise, rates a second, shares 0 to 1; null: no value.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {path: {"get": _operation(path, *entry)} for path, entry in PATHS.items()},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }
