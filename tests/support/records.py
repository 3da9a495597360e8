"""Kernel records for tests: only what matters is said, the rest is plausible."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onlooker.capture import _records as records

LOOPBACK = np.frombuffer(b"\0" * 10 + b"\xff\xff\x7f\0\0\1", np.uint8)
METHODS = {"GET": 1, "HEAD": 2, "POST": 3, "PUT": 4, "DELETE": 5, "CONNECT": 6, "OPTIONS": 7}


def a_record(
    target: bytes = b"/items/1", *, method: str = "GET", host: bytes = b"shop:8080", status: int = 200, role: int = 2,
    start: int = 1_000_000, took: int = 5_000_000, flags: int = 0, error: int = 0, connection: int = 7,
    sequence: int = 0, pid: int = 100, long: bool = False, **fields: Any,
) -> NDArray[Any]:  # fmt: skip
    """One exchange as the kernel writes it: ``(1,)`` `HTTP_RECORD` (or `HTTP_LONG_RECORD`)."""
    dtype = records.HTTP_LONG_RECORD if long else records.HTTP_RECORD
    row = np.zeros(1, dtype)
    line = method.encode() + b" " + target
    text = (line + host)[: dtype["text"].shape[0]]
    row["kind"], row["role"], row["method"] = 3 if long else 2, role, METHODS.get(method, 0)
    row["status"], row["error"], row["flags"] = status, error, flags
    row["tgid"], row["tid"], row["connection_id"], row["sequence"] = pid, pid, connection, sequence
    row["target_start"], row["target_length"], row["host_length"] = len(method) + 1, len(target), len(host)
    row["text_length"] = len(text)
    row["text"][0, : len(text)] = np.frombuffer(text, np.uint8)
    row["request_start_mono_ns"], row["request_end_mono_ns"] = start, start + 1000
    row["response_start_mono_ns"] = start + took // 2 if status else 0
    row["response_end_mono_ns"] = start + took
    row["local_address"], row["remote_address"] = LOOPBACK, LOOPBACK
    row["local_port"], row["remote_port"] = (8080, 50_000) if role == 2 else (50_000, 8080)
    row["family"] = 2
    row["trace_id"], row["span_id"] = np.arange(16), np.arange(8) + sequence + 1
    row["trace_flags"] = 1
    for name, value in fields.items():
        row[name] = value
    return row


def a_text_record(line: bytes, *, connection: int = 7, sequence: int = 0) -> NDArray[Any]:
    """The whole request line of a long one: ``(1,)`` `HTTP_TEXT_RECORD`."""
    row = np.zeros(1, records.HTTP_TEXT_RECORD)
    row["kind"], row["connection_id"], row["sequence"], row["text_length"] = 4, connection, sequence, len(line)
    row["text"][0, : len(line)] = np.frombuffer(line, np.uint8)
    return row


def a_segment(
    payload: bytes, *, sent: bool = False, protocol: int = 6, role: int = 2, connection: int = 9, sequence: int = 0,
    at: int = 1_000_000, flags: int = 0, length: int | None = None, tail: bytes = b"", **fields: Any,
) -> NDArray[Any]:  # fmt: skip
    """One transfer of a segment protocol: ``(1,)`` `SEGMENT_RECORD`."""
    row = np.zeros(1, records.SEGMENT_RECORD)
    row["kind"], row["protocol"], row["role"], row["direction"] = 5, protocol, role, int(sent)
    row["flags"], row["connection_id"], row["sequence"], row["mono_ns"] = flags, connection, sequence, at
    row["captured_head"], row["captured_tail"] = len(payload), len(tail)
    row["length"] = len(payload) if length is None else length
    row["payload"][0, : len(payload)] = np.frombuffer(payload, np.uint8)
    if tail:
        row["payload"][0, -len(tail) :] = np.frombuffer(tail, np.uint8)
    row["local_address"], row["remote_address"] = LOOPBACK, LOOPBACK
    row["local_port"], row["remote_port"], row["tgid"] = 6379, 50_001, 100
    for name, value in fields.items():
        row[name] = value
    return row


def a_redis(
    name: str | bytes, *, role: int = 2, connection: int = 9, sequence: int = 0, at: int = 1_000_000, took: int = 1_000,
    commands: int = 1, replies: int | None = None, flags: int = 0, error: bytes = b"", request_end: int = 100,
    response_end: int = 100, folded_name: str = "", **fields: Any,
) -> NDArray[Any]:  # fmt: skip
    """An exchange of Redis that the kernel has counted: ``(1,)`` `REDIS_RECORD`."""
    row = np.zeros(1, records.REDIS_RECORD)
    row["kind"], row["protocol"], row["role"], row["flags"] = 7, 6, role, flags
    row["connection_id"], row["sequence"], row["tgid"], row["tid"] = connection, sequence, 100, 100
    row["commands"], row["replies"] = commands, commands if replies is None else replies
    row["request_start_mono_ns"] = row["request_end_mono_ns"] = at
    row["response_start_mono_ns"] = row["response_end_mono_ns"] = at + took
    row["request_offset"], row["response_offset"] = request_end, response_end
    for field, text in (("name", name), ("folded_name", folded_name), ("error", error)):
        data = (text.encode() if isinstance(text, str) else text)[:16]
        row[field][0, : len(data)] = np.frombuffer(data, np.uint8)
    row["local_address"], row["remote_address"] = LOOPBACK, LOOPBACK
    row["local_port"], row["remote_port"] = 6379, 50_001
    for field, value in fields.items():
        row[field] = value
    return row
