"""Builds request batches as exporters get them, with their series: a builder states only what matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onlooker.batches import (
    RequestBatch,
    Series,
    SeriesTable,
    Service,
    SpanKind,
    StatusCode,
    Text,
)

START = 1_700_000_000_000_000_000


def a_service(service_id: int = 1, name: str = "shop", **changes: object) -> Service:
    fields: dict[str, object] = {
        "id": service_id,
        "name": name,
        "namespace": "",
        "instance_id": f"host:{service_id}",
        "language": "go",
        "resource": (("service.name", name), ("service.instance.id", f"host:{service_id}")),
    }
    return Service(**(fields | changes))  # type: ignore[arg-type]  # a builder


def a_series(series_id: int = 0, **changes: object) -> Series:
    fields: dict[str, object] = {
        "id": series_id,
        "generation": 1,
        "service_id": 1,
        "protocol": 1,
        "kind": SpanKind.SERVER,
        "name": "GET /cart",
        "status": StatusCode.UNSET,
        "attributes": {"http.request.method": "GET", "http.response.status_code": 200},
    }
    return Series(**(fields | changes))  # type: ignore[arg-type]  # a builder


def a_table(*series: Series) -> SeriesTable:
    table = SeriesTable()
    table.rows.extend(series or (a_series(),))
    return table


def a_batch(
    n: int = 1,
    *,
    varying: Mapping[str, Text | Sequence[int] | Sequence[bytes | None]] | None = None,
    dims: Sequence[Sequence[int]] | None = None,
    dim_names: tuple[str, ...] = (),
    **columns: object,
) -> RequestBatch:
    """A batch of ``n`` rows; columns may be given as one value for all rows or as a sequence."""
    rows = np.arange(1, n + 1)

    def ids(width: int, first: int) -> np.ndarray:
        out = np.zeros((n, width), np.uint8)
        out[:, 0] = first
        out[:, -4:] = rows.astype(">u4").view(np.uint8).reshape(n, 4)
        return out

    defaults: dict[str, tuple[object, type]] = {
        "protocol": (1, np.uint8),
        "kind": (SpanKind.SERVER, np.uint8),
        "pid": (100, np.int32),
        "tid": (100, np.int32),
        "connection": (rows, np.uint64),
        "start_unix_ns": (START + rows, np.int64),
        "request_end_unix_ns": (START + rows + 1_000, np.int64),
        "response_start_unix_ns": (START + rows + 2_000_000, np.int64),
        "end_unix_ns": (START + rows + 3_000_000, np.int64),
        "request_bytes": (-1, np.int64),
        "response_bytes": (-1, np.int64),
        "local_port": (8080, np.uint16),
        "remote_port": (50000, np.uint16),
        "trace_flags": (1, np.uint8),
        "parent_source": (0, np.uint8),
        "status": (StatusCode.UNSET, np.uint8),
        "stream": (False, np.bool_),
        "name": (0, np.int32),
        "process": (1, np.int32),
        "service": (1, np.int32),
        "series": (0, np.int32),
        "keep": (True, np.bool_),
    }
    wide: dict[str, np.ndarray] = {
        "local_address": np.tile(np.frombuffer(bytes(10) + b"\xff\xff\x7f\x00\x00\x01", np.uint8), (n, 1)),
        "remote_address": np.tile(np.frombuffer(bytes(10) + b"\xff\xff\x7f\x00\x00\x02", np.uint8), (n, 1)),
        "trace_id": ids(16, 0xA0),
        "span_id": ids(8, 0xB0),
        "parent_span_id": np.zeros((n, 8), np.uint8),
    }
    made: dict[str, object] = {}
    for key, (value, kind) in defaults.items():
        made[key] = np.broadcast_to(np.asarray(columns.pop(key, value), kind), (n,)).copy()
    for key, matrix in wide.items():
        value = columns.pop(key, matrix)
        if isinstance(value, list):
            value = np.frombuffer(b"".join(value), np.uint8).reshape(matrix.shape)
        made[key] = value
    if "skip" in columns:
        made["skip"] = np.asarray(columns.pop("skip"), np.uint8)
    if columns:
        raise TypeError(f"no such columns: {', '.join(columns)}")
    made["dims"] = np.asarray(dims, np.int32) if dims is not None else np.zeros((n, len(dim_names)), np.int32)
    made["dim_names"] = dim_names
    made["varying"] = {
        key: column
        if isinstance(column, Text)
        else np.asarray(column, np.int64)
        if all(isinstance(value, int) for value in column)
        else Text.of(list(column))  # type: ignore[arg-type]  # told apart above
        for key, column in (varying or {}).items()
    }
    return RequestBatch(**made)  # type: ignore[arg-type]  # a builder
