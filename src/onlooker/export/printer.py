"""Prints requests to a terminal or a log: ``trace_printer``.

Receives batches, writes text; one write for each batch.  Foreign text is escaped, so that no path can move the cursor.
When the reader of a pipe goes away, printing ends and is counted; nothing else is disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from ipaddress import IPv6Address
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import RequestBatch, Series, SeriesTable, Service, SpanKind, StatusCode, Text, Values

_TARGETS = (semconv.URL_PATH, semconv.URL_FULL, semconv.DB_QUERY_SUMMARY, semconv.RPC_METHOD)
_STATUSES = (semconv.HTTP_RESPONSE_STATUS_CODE, semconv.RPC_RESPONSE_STATUS_CODE, semconv.DB_RESPONSE_STATUS_CODE)
_METHODS = (semconv.HTTP_REQUEST_METHOD, semconv.DB_OPERATION_NAME, semconv.RPC_SYSTEM_NAME)
_ESCAPES = {c: f"\\x{c:02x}" for c in (*range(0x20), *range(0x7F, 0xA0))} | {0x5C: "\\\\"}
_INVISIBLE = (
    0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF,
    *range(0xFFF9, 0xFFFC),
)  # fmt: skip
_ESCAPES |= {c: f"\\u{c:04x}" for c in _INVISIBLE}


class PrintFormat(Enum):
    """What a request looks like."""

    TEXT = "text"
    JSON = "json"
    JSON_INDENT = "json_indent"
    COUNTER = "counter"


def escape(text: str) -> str:
    """Text without control and invisible characters, ends of lines and marks of direction; backslashes are doubled."""
    return text.translate(_ESCAPES)


class Printer:
    """Prints the kept rows of batches.

    Attributes:
        printed: Requests so far.
        lost: Requests that came after the stream was gone.
    """

    def __init__(self, format: PrintFormat, stream: IO[str]) -> None:
        self.printed = 0
        self.lost = 0
        self._format = format
        self._stream = stream
        self._gone = False

    def print(self, batch: RequestBatch, series: SeriesTable, services: Mapping[int, Service], values: Values) -> None:
        """Write one batch.

        Args:
            batch: ``keep`` chooses the rows; all if it was never set.
            series: The table that ``batch.series`` points into.
            services: By id, for names and languages.
            values: The table of ``batch.name`` and ``batch.dims``, for rows outside any series or in the overflow one.
        """
        rows: NDArray[np.intp] = np.flatnonzero(batch.keep) if len(batch.keep) == len(batch) else np.arange(len(batch))
        if not len(rows):
            return
        if self._gone:
            self.lost += len(rows)
            return
        if self._format is PrintFormat.COUNTER:
            text = f"{self.printed + len(rows)}\n"
        else:
            view = _View(batch, series, services, values)
            if self._format is PrintFormat.TEXT:
                text = "".join(_line(view.row(i)) for i in rows.tolist())
            else:
                indent = 2 if self._format is PrintFormat.JSON_INDENT else None
                text = "".join(json.dumps(view.row(i), indent=indent) + "\n" for i in rows.tolist())
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream object itself is closed
            self._gone = True
            self.lost += len(rows)
        else:
            self.printed += len(rows)


class _View:
    """A batch read row by row.  Printing is for people: they cannot read faster than this."""

    def __init__(
        self, batch: RequestBatch, series: SeriesTable, services: Mapping[int, Service], values: Values
    ) -> None:
        self._batch, self._series, self._services, self._values = batch, series, services, values

    def row(self, i: int) -> dict[str, Any]:
        """One request as a dict that JSON can hold."""
        batch = self._batch
        service_id = int(batch.service[i]) if len(batch.service) == len(batch) else -1
        service = self._services.get(service_id)
        name, kind, status, attributes = self._constant(i)
        for key, column in batch.varying.items():
            if isinstance(column, Text):
                text = column[i]
                if text is not None:
                    attributes[key] = text.decode("utf-8", "replace")
            elif column[i] != -1:
                attributes[key] = int(column[i])
        start, first = int(batch.start_unix_ns[i]), int(batch.response_start_unix_ns[i])
        parent = batch.parent_span_id[i].tobytes()
        return {
            "time": datetime.fromtimestamp(start // 1000 / 1e6, UTC).isoformat(timespec="microseconds"),
            "duration_us": (int(batch.end_unix_ns[i]) - start) / 1e3,
            "first_byte_us": (first - start) / 1e3 if first else None,
            "kind": _name_of(SpanKind, kind),
            "name": name,
            "status": _name_of(StatusCode, status),
            "service": service.name if service else "",
            "namespace": service.namespace if service else "",
            "language": service.language if service else "",
            "pid": int(batch.pid[i]),
            "tid": int(batch.tid[i]),
            "local": _address(batch.local_address[i], int(batch.local_port[i])),
            "remote": _address(batch.remote_address[i], int(batch.remote_port[i])),
            "request_bytes": _known(int(batch.request_bytes[i])),
            "response_bytes": _known(int(batch.response_bytes[i])),
            "trace_id": batch.trace_id[i].tobytes().hex(),
            "span_id": batch.span_id[i].tobytes().hex(),
            "parent_span_id": parent.hex() if any(parent) else "",
            "trace_flags": int(batch.trace_flags[i]),
            "attributes": attributes,
        }

    def _constant(self, i: int) -> tuple[str, int, int, dict[str, Any]]:
        batch = self._batch
        series: Series | None = None
        if len(batch.series) == len(batch) and 0 <= batch.series[i] < len(self._series.rows):
            series = self._series.rows[int(batch.series[i])]
        if series is not None and not series.overflow:
            return series.name, series.kind, series.status, dict(series.attributes)
        pairs = zip(batch.dim_names, batch.dims[i].tolist(), strict=True)
        attributes = {key: value for key, d in pairs if (value := self._values[d]) is not None}
        return str(self._values[int(batch.name[i])] or ""), int(batch.kind[i]), int(batch.status[i]), attributes


def _name_of(kind: type[SpanKind] | type[StatusCode], number: int) -> str:
    try:
        return kind(number).name.lower()
    except ValueError:
        return str(number)


def _known(size: int) -> int | None:
    return None if size < 0 else size


def _address(raw: NDArray[np.uint8], port: int) -> str:
    address = IPv6Address(raw.tobytes())
    if address.ipv4_mapped is not None:
        return f"{address.ipv4_mapped}:{port}"
    return f"[{address}]:{port}" if int(address) else "unix"


def _pick(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((str(attributes[key]) for key in keys if key in attributes), "")


def _line(row: dict[str, Any]) -> str:
    """One request in one line."""
    attributes = row["attributes"]
    route = attributes.get(semconv.HTTP_ROUTE)
    target = _pick(attributes, _TARGETS)
    what = " ".join(part for part in (_pick(attributes, _METHODS), target) if part) or row["name"]
    if route is not None:
        what += f"({route})"
    client = row["kind"] in ("client", "producer")
    peer, host = (row["local"], row["remote"]) if client else (row["remote"], row["local"])
    first = "" if row["first_byte_us"] is None else f"({_duration(row['first_byte_us'])})"
    sizes = "/".join("-" if size is None else f"{size}B" for size in (row["request_bytes"], row["response_bytes"]))
    service = f"{row['namespace']}/{row['service']}" if row["namespace"] else row["service"]
    parts = (
        row["time"],
        f"{_duration(row['duration_us'])}{first}",
        row["kind"].upper(),
        _pick(attributes, _STATUSES) or row["status"],
        *(("error",) if row["status"] == "error" else ()),
        what,
        f"[{peer}->{host}]",
        sizes,
        f"svc=[{service} {row['language']}]",
        f"traceparent=[00-{row['trace_id']}-{row['span_id']}-{row['trace_flags']:02x}]",
    )
    return escape(" ".join(parts)) + "\n"


def _duration(microseconds: float) -> str:
    if microseconds < 1_000:
        return f"{microseconds:.0f}µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1e3:.2f}ms"
    return f"{microseconds / 1e6:.3f}s"
