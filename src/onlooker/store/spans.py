"""A span as the store keeps it: what a series shares stands in ``series``, the rest in one small blob."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from onlooker.batches import I4, Text
from onlooker.store.intake import Rows

MAX_VALUE: Final = 8192
"""Bytes of one varying attribute; longer ones are cut and say so."""
CUT: Final = "…"


class Blob(msgspec.Struct, array_like=True):
    """The rest of a span.  Times are µs after the start; -1: absent.  Fields are only ever added at the end."""

    span_id: bytes
    parent: bytes
    duration_ns: int
    request_end_us: int
    response_start_us: int
    request_bytes: int
    response_bytes: int
    local: bytes
    remote: bytes
    pid: int
    tid: int
    connection: int
    trace_flags: int
    parent_source: int
    stream: bool
    varying: dict[str, str | int]
    start_rest_ns: int = 0


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Blob)


def endpoint_bytes(address: bytes, port: int) -> bytes:
    """Address and port in at most 18 bytes; IPv4 in 6; b"" for a UNIX socket."""
    if not port and not any(address):
        return b""
    if address[:12] == bytes(10) + b"\xff\xff":
        address = address[12:]
    return address + port.to_bytes(2, "big")


def endpoint_text(data: bytes) -> tuple[str, int]:
    """The opposite; ("", 0) for a UNIX socket."""
    if len(data) not in (6, 18):
        return "", 0
    return str(ipaddress.ip_address(data[:-2])), int.from_bytes(data[-2:], "big")


def encode_rows(rows: Rows, series: I4, service: I4, cls: Sequence[int]) -> list[tuple[Any, ...]]:
    """Rows for the table ``spans``, without their number."""
    varying: list[dict[str, str | int]] = [{} for _ in range(len(rows))]
    for key, column in rows.varying.items():
        if isinstance(column, Text):
            for i, (start, length) in enumerate(zip(column.start.tolist(), column.length.tolist(), strict=True)):
                if length >= 0:
                    raw = column.pool[start : start + min(length, MAX_VALUE)].tobytes()
                    shown = raw.decode("utf-8", "replace")
                    varying[i][key] = shown + CUT if length > MAX_VALUE else shown
        else:
            for i, value in enumerate(column.tolist()):
                if value != -1:
                    varying[i][key] = value
    trace, span, parent = rows.trace_id.tobytes(), rows.span_id.tobytes(), rows.parent_span_id.tobytes()
    local, remote = rows.local_address.tobytes(), rows.remote_address.tobytes()
    starts = rows.start_unix_ns
    request_end = ((rows.request_end_unix_ns - starts) // 1000).clip(-1).tolist()
    response_start = rows.response_start_unix_ns
    first = [
        -1 if at == 0 else max((at - start) // 1000, 0)
        for at, start in zip(response_start.tolist(), starts.tolist(), strict=True)
    ]
    duration = (rows.end_unix_ns - starts).clip(0).tolist()
    columns = zip(
        starts.tolist(), duration, request_end, first, rows.request_bytes.tolist(), rows.response_bytes.tolist(),
        rows.local_port.tolist(), rows.remote_port.tolist(), rows.pid.tolist(), rows.tid.tolist(),
        rows.connection.tolist(), rows.trace_flags.tolist(), rows.parent_source.tolist(), rows.stream.tolist(),
        series.tolist(), service.tolist(), cls, strict=True,
    )  # fmt: skip
    out = []
    for i, (
        start, took, sent, answered, request_bytes, response_bytes, local_port, remote_port, pid, tid, connection,
        flags, source, stream, series_row, service_row, kept_as,
    ) in enumerate(columns):  # fmt: skip
        if not series_row:
            continue
        up = parent[8 * i : 8 * i + 8]
        blob = Blob(
            span[8 * i : 8 * i + 8], up if any(up) else b"", took, sent, answered, request_bytes, response_bytes,
            endpoint_bytes(local[16 * i : 16 * i + 16], local_port),
            endpoint_bytes(remote[16 * i : 16 * i + 16], remote_port),
            pid, tid, connection, flags, source, stream, varying[i], start % 1000,
        )  # fmt: skip
        out.append(
            (trace[16 * i : 16 * i + 16], start // 1000, took // 1000, service_row, series_row, kept_as,
             _encoder.encode(blob))
        )  # fmt: skip
    return out


def decode(data: bytes) -> Blob | None:
    """The blob, or None if it is broken."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError):
        return None


@dataclass(slots=True)
class Span:
    """A stored span with all that is known about it.  Times are Unix ns."""

    id: int
    trace_id: str
    span_id: str
    parent_span_id: str
    service: int
    service_name: str
    name: str
    kind: int
    protocol: int
    status: int
    code: str
    start_unix_ns: int
    duration_ns: int
    request_end_ns: int
    response_start_ns: int
    cls: int
    blob: Blob
    attributes: dict[str, Any] = field(default_factory=dict)
    resource: list[tuple[str, Any]] = field(default_factory=list)
