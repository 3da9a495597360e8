"""Builders of request batches for stages after ``assemble``: a test states only what matters to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onlooker import semconv
from onlooker.batches import (
    AttributeValue,
    Identities,
    Process,
    RequestBatch,
    Service,
    SpanKind,
    StatusCode,
    Text,
    Values,
)

HTTP_DIMS = (
    semconv.HTTP_REQUEST_METHOD,
    semconv.URL_SCHEME,
    semconv.HTTP_RESPONSE_STATUS_CODE,
    semconv.HTTP_ROUTE,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
    semconv.ERROR_TYPE,
)
START_UNIX_NS = 1_700_000_000_000_000_000


def a_service(service_id: int, name: str = "shop", **more: Any) -> Service:
    namespace = more.pop("namespace", "")
    instance = more.pop("instance_id", f"host:{service_id}")
    resource = (
        (semconv.SERVICE_NAME, name),
        *(((semconv.SERVICE_NAMESPACE, namespace),) if namespace else ()),
        (semconv.SERVICE_INSTANCE_ID, instance),
        *more.pop("resource", ()),
    )
    return Service(service_id, name, namespace, instance, more.pop("language", "python"), resource, **more)


def identities_of(*services: Service) -> Identities:
    """Each service has one process, with the pid 1000 plus the service's id."""
    identities = Identities()
    for service in services:
        identities.add_service(service)
        identities.add_process(
            Process(service.id + 100, 1000 + service.id, START_UNIX_NS, "/bin/x", "x", service.language, service.id)
        )
    return identities


def address(text: str) -> bytes:
    return bytes(10) + b"\xff\xff" + bytes(int(part) for part in text.split("."))


def a_request(**fields: Any) -> dict[str, Any]:
    """One HTTP request; see `requests` for the fields."""
    return fields


def requests(
    values: Values, rows: Sequence[Mapping[str, Any]], *, dim_names: Sequence[str] = HTTP_DIMS
) -> RequestBatch:
    """A batch of rows, each with: path, query, method, code, service, kind, duration_ns, request_bytes,
    response_bytes, stream, status, name, route, protocol, local, remote (address, port), dims (more attributes).
    """
    n = len(rows)

    def column(key: str, default: Any, dtype: Any) -> Any:
        return np.array([row.get(key, default) for row in rows], dtype)

    dims = np.zeros((n, len(dim_names)), np.int32)
    for i, row in enumerate(rows):
        attributes: dict[str, AttributeValue | None] = {}
        if "protocol" not in row or row["protocol"] == 1:
            attributes = {
                semconv.HTTP_REQUEST_METHOD: row.get("method", "GET"),
                semconv.URL_SCHEME: "http",
                semconv.HTTP_RESPONSE_STATUS_CODE: row.get("code", 200),
                semconv.HTTP_ROUTE: row.get("route"),
                semconv.SERVER_ADDRESS: "shop.example",
                semconv.SERVER_PORT: 8080,
            }
        attributes.update(row.get("dims", {}))
        for j, name in enumerate(dim_names):
            dims[i, j] = values.id(attributes.get(name))
    status = [row.get("status", StatusCode.ERROR if row.get("code", 200) >= 500 else StatusCode.UNSET) for row in rows]
    starts = START_UNIX_NS + np.arange(n, dtype=np.int64)
    local = [row.get("local", ("10.0.0.1", 8080)) for row in rows]
    remote = [row.get("remote", ("10.0.0.2", 40000)) for row in rows]
    return RequestBatch(
        protocol=column("protocol", 1, np.uint8),
        kind=column("kind", SpanKind.SERVER, np.uint8),
        pid=np.array([row.get("pid", 1000 + row.get("service", 1)) for row in rows], np.int32),
        tid=np.zeros(n, np.int32),
        connection=np.arange(n, dtype=np.uint64),
        start_unix_ns=starts,
        request_end_unix_ns=starts,
        response_start_unix_ns=starts,
        end_unix_ns=starts + column("duration_ns", 1_000_000, np.int64),
        request_bytes=column("request_bytes", 0, np.int64),
        response_bytes=column("response_bytes", 100, np.int64),
        local_address=np.frombuffer(b"".join(address(a) for a, _ in local), np.uint8).reshape(n, 16),
        remote_address=np.frombuffer(b"".join(address(a) for a, _ in remote), np.uint8).reshape(n, 16),
        local_port=np.array([port for _, port in local], np.uint16),
        remote_port=np.array([port for _, port in remote], np.uint16),
        trace_id=np.arange(n * 16, dtype=np.uint8).reshape(n, 16),
        span_id=np.arange(n * 8, dtype=np.uint8).reshape(n, 8),
        parent_span_id=np.zeros((n, 8), np.uint8),
        trace_flags=np.ones(n, np.uint8),
        parent_source=np.zeros(n, np.uint8),
        status=np.array(status, np.uint8),
        stream=column("stream", False, np.bool_),
        dims=dims,
        dim_names=tuple(dim_names),
        name=np.array([values.id(row.get("name")) for row in rows], np.int32),
        varying={
            semconv.URL_PATH: Text.of([row.get("path", b"/") for row in rows]),
            semconv.URL_QUERY: Text.of([row.get("query") for row in rows]),
        },
        service=column("service", 1, np.int32),
        process=column("service", 1, np.int32) + 100,
    )
