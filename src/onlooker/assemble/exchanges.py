"""Columns for the exchanges of Redis that the kernel has counted: commands of one name and the replies to all of them.

Receives the exchange records of a round, hands on one batch a role.  While few operations come, each has its own row,
up to `Options.pipeline_spans` of an exchange; when many come, the operations of an exchange share a row, whose
``weight`` says how many they are.  What the kernel added up because its ring was full becomes rows that no span is made
of.  Drops nothing.

Source: ``bpf/lib/redis.h``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I4, I8, SKIP_TRACES, RequestBatch, SpanKind, StatusCode, Text, Values
from onlooker.protocols import redis
from onlooker.protocols._db import Options

PROTOCOL: Final = 6
"""`PROTOCOL_REDIS` of ``bpf/records.h``."""

UNANSWERED: Final = 1
"""`REDIS_UNANSWERED`: the parser of the connection tells this one."""

ROWS_MAX: Final = 4096
"""With more operations in a round, those of an exchange share a row."""

UNNAMED: Final = "(other)"

_NAME: Final = re.compile(r"[A-Z][\w.:|-]*\Z")


def names_of(name: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.intp]]:
    """Distinct names, and which of them each row has.

    Args:
        name: ``(n, 16)``, padded with NUL.
    """
    words = np.ascontiguousarray(name).view(np.uint64)
    mixed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    _, at, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    found = [name[i].tobytes().rstrip(b"\0").decode("ascii", "replace") for i in at]
    return [text if _NAME.match(text) else UNNAMED for text in found], inverse


class Exchanges:
    """Makes batches of exchange records.

    Attributes:
        told: Operations that were told.
        folded: Those among them that are counted, but without their own times: the ring was full.
    """

    def __init__(
        self, values: Values, *, dim_names: Callable[[int, int], tuple[str, ...]], rng: np.random.Generator,
        options: Options,
    ) -> None:  # fmt: skip
        self.told = self.folded = 0
        self._values = values
        self._dim_names = dim_names
        self._rng = rng
        self._options = options

    def batches(self, part: NDArray[Any], database: I4, *, offset_ns: int) -> list[RequestBatch]:
        """Make rows of the exchanges that are over, and of the sums of those that found no room.

        Args:
            part: ``(n,)`` `REDIS_RECORD`.
            database: ``(n,)`` numbers of `Values`, 0 where none is selected.
            offset_ns: From CLOCK_MONOTONIC to Unix time.
        """
        over = np.where(part["flags"] & UNANSWERED, 0, part["commands"]).astype(np.int64)
        failed = np.minimum(part["errors"], over)
        folded = part["folded_commands"].astype(np.int64)
        folded_failed = np.minimum(part["folded_errors"], folded)
        total, total_folded = int(over.sum()), int(folded.sum())
        self.told += total + total_folded
        self.folded += total_folded
        cap = max(self._options.pipeline_spans, 1) if total <= ROWS_MAX else 0
        pieces = [
            _rows(over - failed, cap, failed=False, folded=False), _rows(failed, cap, failed=True, folded=False),
        ]  # fmt: skip
        if total_folded:
            pieces += [
                _rows(folded - folded_failed, 0, failed=False, folded=True),
                _rows(folded_failed, 0, failed=True, folded=True),
            ]
        row = np.concatenate([piece[0] for piece in pieces])
        if not row.size:
            return []
        weight = np.concatenate([piece[1] for piece in pieces])
        has_failed = np.concatenate([piece[2] for piece in pieces])
        is_folded = np.concatenate([piece[3] for piece in pieces])
        role = part["role"][row]
        return [
            self._batch(part, row[mine], weight[mine], has_failed[mine], is_folded[mine], database, number, offset_ns)
            for number in np.unique(role).tolist()
            for mine in (np.flatnonzero(role == number),)
        ]

    def _batch(
        self, part: NDArray[Any], row: NDArray[np.intp], weight: I8, failed: NDArray[np.bool_],
        folded: NDArray[np.bool_], database: I4, role: int, offset_ns: int,
    ) -> RequestBatch:  # fmt: skip
        count = len(row)
        mine = part[row]
        name = mine["name"]
        any_folded = bool(folded.any())
        start, end = mine["request_start_mono_ns"].astype(np.int64), mine["response_end_mono_ns"].astype(np.int64)
        request_end = mine["request_end_mono_ns"].astype(np.int64)
        response = mine["response_start_mono_ns"].astype(np.int64)
        commands = np.maximum(mine["commands"], 1).astype(np.int64)
        request_bytes, response_bytes = mine["request_bytes"] // commands, mine["response_bytes"] // commands
        if any_folded:
            name = np.where(folded[:, None], mine["folded_name"], name)
            each = mine["folded_ns"].astype(np.int64) // np.maximum(mine["folded_commands"], 1)
            end = np.where(folded, mine["folded_mono_ns"], end).astype(np.int64)
            start = np.where(folded, end - each, start)
            request_end, response = np.where(folded, start, request_end), np.where(folded, end, response)
            request_bytes, response_bytes = np.where(folded, -1, request_bytes), np.where(folded, -1, response_bytes)
        end = np.maximum(end, start)
        names, which = names_of(name)
        known = self._dim_names(PROTOCOL, role)
        dim_names = (*known, *(n for n in (semconv.SERVER_ADDRESS, semconv.SERVER_PORT) if n not in known))
        dims = np.zeros((count, len(dim_names)), np.int32)
        name_ids = np.array([self._values.id(one) for one in names], np.int32)[which]
        dims[:, dim_names.index(semconv.DB_SYSTEM_NAME)] = self._values.id(redis.SYSTEM)
        dims[:, dim_names.index(semconv.DB_OPERATION_NAME)] = name_ids
        dims[:, dim_names.index(semconv.DB_NAMESPACE)] = database[row]
        status = np.zeros(count, np.uint8)
        if failed.any():
            status[failed] = int(StatusCode.ERROR)
            lines, of_line = np.unique(
                np.ascontiguousarray(mine["error"][failed]).view("V16").reshape(-1), return_inverse=True
            )
            codes = [redis.error_code(line.tobytes()) for line in lines]
            code = np.array([self._values.id(one) for one in codes], np.int32)[of_line]
            dims[failed, dim_names.index(semconv.DB_RESPONSE_STATUS_CODE)] = code
            dims[failed, dim_names.index(semconv.ERROR_TYPE)] = code
        blocking = np.array([one in redis.BLOCKING for one in names], np.bool_)
        span_id = self._rng.integers(1, 1 << 64, count, np.uint64).view(np.uint8).reshape(count, 8)
        trace_id = self._rng.integers(1, 1 << 64, 2 * count, np.uint64).view(np.uint8).reshape(count, 16)
        parents = mine["span_id"]
        inherits: NDArray[np.bool_] = np.asarray(parents.any(axis=1))
        varying: dict[str, Any] = {}
        if self._options.query_text:
            texts = [one.encode() for one in names]
            varying[semconv.DB_QUERY_TEXT] = Text.of([texts[i] for i in which.tolist()])
        if weight.max() > 1:
            varying[semconv.DB_OPERATION_BATCH_SIZE] = np.where(weight > 1, weight, -1)
        return RequestBatch(
            protocol=np.full(count, PROTOCOL, np.uint8),
            kind=np.full(count, role if role in (SpanKind.SERVER, SpanKind.CLIENT) else SpanKind.CLIENT, np.uint8),
            pid=mine["tgid"].astype(np.int32),
            tid=mine["tid"].astype(np.int32),
            connection=mine["connection_id"],
            start_unix_ns=start + offset_ns,
            request_end_unix_ns=np.clip(request_end, start, end) + offset_ns,
            response_start_unix_ns=np.where(response > 0, np.clip(response, start, end) + offset_ns, 0),
            end_unix_ns=end + offset_ns,
            request_bytes=request_bytes.astype(np.int64),
            response_bytes=response_bytes.astype(np.int64),
            local_address=mine["local_address"],
            remote_address=mine["remote_address"],
            local_port=mine["local_port"],
            remote_port=mine["remote_port"],
            trace_id=np.where(inherits[:, None], mine["trace_id"], trace_id),
            span_id=span_id,
            parent_span_id=np.where(inherits[:, None], parents, 0).astype(np.uint8),
            trace_flags=np.where(inherits, mine["trace_flags"], 1).astype(np.uint8),
            parent_source=mine["parent_source"].astype(np.uint8),
            status=status,
            stream=blocking[which],
            dims=dims,
            dim_names=dim_names,
            name=name_ids,
            varying=varying,
            weight=weight if weight.max() > 1 else np.empty(0, np.int64),
            skip=np.where(folded, SKIP_TRACES, 0).astype(np.uint8) if any_folded else np.empty(0, np.uint8),
        )


def _rows(
    count: I8, cap: int, *, failed: bool, folded: bool
) -> tuple[NDArray[np.intp], I8, NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows for ``count`` operations of each record: ``cap`` by themselves, the others together.

    Returns:
        Record, weight, whether the operations failed, whether they were folded.
    """
    single = np.repeat(np.arange(len(count)), np.minimum(count, cap)) if cap else np.zeros(0, np.intp)
    more = np.flatnonzero(count > cap)
    row = np.concatenate([single, more])
    weight = np.concatenate([np.ones(len(single), np.int64), count[more] - cap])
    return row, weight, np.full(len(row), failed), np.full(len(row), folded)
