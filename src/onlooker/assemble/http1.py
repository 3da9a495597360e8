"""HTTP/1: receives exchange records, hands on request columns.

Python looks at rows only where they are rare: pipelined requests (two halves to join), request lines longer than a
record, absolute targets.  May drop: halves whose other half never came (counted).
"""

from __future__ import annotations

import functools
import re
import socket
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I4, I8, U1, RequestBatch, SpanKind, StatusCode, Text, Values
from onlooker.columns import HashCache, TextHasher
from onlooker.protocols import Upgrade

# numbers of bpf/records.h; capture/_records.py has them, but stages do not import each other
_REQUEST_HALF: Final = 1
_RESPONSE_HALF: Final = 2
_TEXT_TRUNCATED: Final = 16
_RESPONSE_LINGERS: Final = 64
_OF_RESPONSE: Final = ("status", "error", "response_start_mono_ns", "response_end_mono_ns", "response_body_bytes")
_REQUEST_STREAM: Final = 256
_REQUESTS_OVER: Final = 1024
_REQUEST_TO_HTTP2: Final = 2048
_PROTOCOL_HTTP1: Final = 1

METHODS: Final = (
    "_OTHER", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
)  # fmt: skip
"""By `enum http_method`."""

ERRORS: Final = ("", "connection_reset", "connection_closed_by_peer", "connection_closed", "timeout")
"""``error.type`` by `enum request_error`."""

DIM_NAMES: Final = (
    semconv.HTTP_REQUEST_METHOD,
    semconv.URL_SCHEME,
    semconv.HTTP_RESPONSE_STATUS_CODE,
    semconv.HTTP_ROUTE,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
    semconv.ERROR_TYPE,
)
_METHOD, _SCHEME, _STATUS, _ROUTE, _ADDRESS, _PORT, _ERROR = range(len(DIM_NAMES))

_QUESTION: Final = np.uint8(ord("?"))
_SLASH: Final = np.uint8(ord("/"))
_LINGER_NS: Final = 1_000_000_000
_HALVES_MAX: Final = 16_384
_TEXTS_MAX: Final = 256
_ABSOLUTE: Final = re.compile(rb"(?i)https?://([^/?#]*)")

_SHARED: Final = (
    "method", "error", "status", "flags", "tgid", "tid", "connection_id", "sequence", "target_length", "target_start",
    "host_length", "role", "tls", "text_length", "local_address", "remote_address", "local_port", "remote_port",
    "trace_id", "span_id", "parent_span_id", "trace_flags", "parent_source",
)  # fmt: skip
_NUMBERS: Final = (
    "request_start_mono_ns", "request_end_mono_ns", "response_start_mono_ns", "response_end_mono_ns",
    "request_body_bytes", "response_body_bytes",
)  # fmt: skip
"""Neighbours in a record, so that one copy takes all six."""


class Http1:
    """Turns records into batches; keeps what waits for its other half.

    Attributes:
        dropped: Halves given up, by reason.
        upgrades: Requests whose response comes by HTTP/2, by connection; for `Segments.upgraded` to take.
    """

    def __init__(self, values: Values, *, rng: np.random.Generator) -> None:
        self.dropped = {"half_without_request": 0, "half_without_response": 0}
        self.upgrades: dict[int, Upgrade] = {}
        self._values = values
        self._hash = TextHasher(rng)
        self._hosts = HashCache(8192)
        # by the whole byte: what no table knows is like its last entry
        self._methods = _table([values.id(name) for name in METHODS])
        self._errors = _table([values.id(name or None) for name in ERRORS])
        self._schemes = _table([values.id("http"), values.id("https")])
        self._statuses: I4 = np.zeros(1 << 16, np.int32)
        self._status_errors: I4 = np.zeros(1 << 16, np.int32)
        self._ports: I4 = np.zeros(1 << 16, np.int32)
        self._halves: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lingering: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._texts: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Records that wait for another one."""
        return len(self._halves) + len(self._lingering)

    def requests(
        self,
        http: NDArray[Any] | None,
        http_long: NDArray[Any] | None,
        http_text: NDArray[Any] | None,
        *,
        offset_ns: int,
        now_mono_ns: int,
    ) -> RequestBatch | None:
        """Join what belongs together and lay it out as columns.

        Args:
            http: ``(n,)`` `HTTP_RECORD`, in ring order.
            http_long: ``(n,)`` `HTTP_LONG_RECORD`.
            http_text: ``(n,)`` `HTTP_TEXT_RECORD`.
            offset_ns: From CLOCK_MONOTONIC to Unix time.
            now_mono_ns: CLOCK_MONOTONIC; ends what lingers.

        Returns:
            The finished requests, or None if there are none.

        Source: ``bpf/lib/exchange.h``.
        """
        if http_text is not None:
            for row in http_text:
                key = (int(row["connection_id"]), int(row["sequence"]))
                self._texts[key] = row["text"][: int(row["text_length"])].tobytes()
                if len(self._texts) > _TEXTS_MAX:
                    self._texts.popitem(last=False)
        parts = [part for part in (http, http_long) if part is not None]
        for i, part in enumerate(parts):
            upgraded = (part["flags"] & _REQUEST_TO_HTTP2) != 0
            if upgraded.any():
                for row in part[upgraded]:
                    self.upgrades[int(row["connection_id"])] = self._upgrade(row)
                parts[i] = part[~upgraded]
        special = [((part["flags"] & (_REQUEST_HALF | _RESPONSE_HALF | _RESPONSE_LINGERS)) != 0) for part in parts]
        if any(mask.any() for mask in special) or self._lingering:
            joined = self._join(parts, special, now_mono_ns)
            parts = [part[~mask] for part, mask in zip(parts, special, strict=True)]
            parts.extend(joined)
        parts = [part for part in parts if len(part)]
        if not parts:
            return None
        return self._columns(parts, offset_ns)

    # ---- rare rows ----

    def _join(self, parts: list[NDArray[Any]], special: list[NDArray[np.bool_]], now: int) -> list[NDArray[Any]]:
        rows = [part[mask] for part, mask in zip(parts, special, strict=True)]
        joined, rows = _join_at_once(rows)
        finished: list[Any] = []
        responses: list[Any] = []
        for part in rows:
            for row in part:
                key = (int(row["connection_id"]), int(row["sequence"]))
                flags = int(row["flags"])
                if flags & _RESPONSE_LINGERS:
                    self._lingering[key] = row
                    self._lingering.move_to_end(key)
                elif flags & _RESPONSE_HALF:
                    responses.append(row)
                else:
                    self._halves[key] = row
        for row in responses:
            connection, sequence = int(row["connection_id"]), int(row["sequence"])
            keys = [(connection, sequence)]
            if int(row["flags"]) & _REQUESTS_OVER:
                keys = [key for key in self._halves if key[0] == connection and key[1] <= sequence] or keys
            for key in keys:
                request = self._halves.pop(key, None)
                if request is None:
                    self.dropped["half_without_request"] += 1
                    continue
                whole = request.copy()
                for name in _OF_RESPONSE:
                    whole[name] = row[name]
                whole["flags"] = int(request["flags"]) | int(row["flags"])
                finished.append(whole)
        while len(self._halves) > _HALVES_MAX:
            self._halves.popitem(last=False)
            self.dropped["half_without_response"] += 1
        for key, row in list(self._lingering.items()):
            if now - int(row["response_end_mono_ns"]) > _LINGER_NS or len(self._lingering) > _HALVES_MAX:
                finished.append(self._lingering.pop(key))
        by_type: dict[np.dtype[Any], list[Any]] = {}
        for row in finished:
            by_type.setdefault(row.dtype, []).append(row)
        return [*joined, *(np.array(some, dtype) for dtype, some in by_type.items())]

    def _upgrade(self, row: Any) -> Upgrade:
        text = row["text"][: int(row["text_length"])].tobytes()
        begin, host = int(row["target_start"]), int(row["host_length"])
        line = self._texts.pop((int(row["connection_id"]), int(row["sequence"])), b"").split(b"\n", 1)[0]
        target = line[begin:].rpartition(b" ")[0] or text[begin : len(text) - host]
        return Upgrade(
            method=METHODS[min(int(row["method"]), len(METHODS) - 1)],
            target=target[: int(row["target_length"])].decode("latin-1"),
            authority=text[len(text) - host :].decode("latin-1") if host else "",
            start_mono_ns=int(row["request_start_mono_ns"]),
            end_mono_ns=int(row["request_end_mono_ns"]),
            scheme="https" if row["tls"] else "http",
            request_bytes=int(row["request_body_bytes"]),
            tid=int(row["tid"]),
            trace_id=row["trace_id"].tobytes(),
            parent_span_id=row["parent_span_id"].tobytes() if row["parent_span_id"].any() else b"",
            trace_flags=int(row["trace_flags"]),
            parent_source=int(row["parent_source"]),
        )

    # ---- all rows ----

    def _columns(self, parts: list[NDArray[Any]], offset_ns: int) -> RequestBatch:
        column = {
            name: parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts])
            for name in _SHARED
        }
        count = len(column["role"])
        kind: U1 = column["role"]  # enum role has OTLP's numbers
        server = kind == SpanKind.SERVER
        serving = int(np.count_nonzero(server))
        pool, text_start, target_start, target_length, path_length, has_question = self._texts_of(parts, column)
        start, request_end, response_start, end, request_bytes, response_bytes = _numbers(parts, offset_ns)

        status = column["status"]
        dims = np.zeros((count, len(DIM_NAMES)), np.int32)
        dims[:, _METHOD] = self._methods.take(column["method"])
        dims[:, _SCHEME] = self._schemes.take(column["tls"])
        dims[:, _STATUS] = self._ids_of(self._statuses, status, int)
        if serving == count:
            ports = column["local_port"]
        else:
            ports = np.where(server, column["local_port"], column["remote_port"])
        dims[:, _PORT] = self._ids_of(self._ports, ports, int)
        failed = self._failed(column, server, dims)

        path = Text(pool, target_start, path_length.astype(np.int32))
        varying: dict[str, Text | I8] = {semconv.URL_PATH: path}
        if has_question:
            query_length = target_length - path_length - 1
            has_query = (query_length >= 0) & (path_length >= 0)
            if has_query.any():
                lengths = np.where(has_query, query_length, -1).astype(np.int32)
                varying[semconv.URL_QUERY] = Text(pool, target_start + path_length + 1, lengths)
        batch = RequestBatch(
            protocol=np.full(count, _PROTOCOL_HTTP1, np.uint8),
            kind=kind,
            pid=column["tgid"].astype(np.int32),
            tid=column["tid"].astype(np.int32),
            connection=column["connection_id"],
            start_unix_ns=start,
            request_end_unix_ns=request_end,
            response_start_unix_ns=response_start,
            end_unix_ns=end,
            request_bytes=request_bytes,
            response_bytes=response_bytes,
            local_address=column["local_address"],
            remote_address=column["remote_address"],
            local_port=column["local_port"],
            remote_port=column["remote_port"],
            trace_id=column["trace_id"],
            span_id=column["span_id"],
            parent_span_id=column["parent_span_id"],
            trace_flags=column["trace_flags"],
            parent_source=column["parent_source"],
            status=failed,
            stream=(column["flags"] & _REQUEST_STREAM) != 0,
            dims=dims,
            dim_names=DIM_NAMES,
            name=np.zeros(count, np.int32),
            varying=varying,
        )
        if serving:
            varying[semconv.CLIENT_ADDRESS] = _address_text(
                column["remote_address"], server & (column["remote_port"] != 0)
            )
        if serving < count:
            self._client_columns(batch, column, pool, text_start, target_start, target_length)
        return batch

    def _failed(self, column: dict[str, NDArray[Any]], server: NDArray[np.bool_], dims: I4) -> U1:
        """`StatusCode` of each row; failed ones get their ``error.type``."""
        status, error = column["status"], column["error"]
        if int(status.min()) > 0 and int(status.max()) < 400 and not np.count_nonzero(error):
            return np.zeros(len(status), np.uint8)  # StatusCode.UNSET
        failed = (status == 0) | (error != 0) | (status >= np.where(server, 500, 400))
        by_status = self._ids_of(self._status_errors, np.where(failed, status, 0), str)
        dims[:, _ERROR] = np.where(failed, np.where(error != 0, self._errors.take(error), by_status), 0)
        return np.where(failed, np.uint8(StatusCode.ERROR), np.uint8(StatusCode.UNSET))

    def _texts_of(
        self, parts: list[NDArray[Any]], column: dict[str, NDArray[Any]]
    ) -> tuple[U1, I8, I8, NDArray[np.int64], NDArray[np.int64], bool]:
        """Where the texts are.

        Returns:
            The pool of all texts, the offset of each row's text and target, the lengths of target and path, and
            whether there may be a query.
        """
        pools, starts, questions = [], [], []
        has_question = False
        base = 0
        for part in parts:
            text = part["text"]
            width = text.shape[1]
            flat = text.copy().reshape(-1)  # the batch may outlive the records, whose memory is used again
            pools.append(flat)
            starts.append(np.arange(base, base + len(part) * width, width, dtype=np.int64))
            base += len(part) * width
            # a method has no question mark, and behind the target's end the comparison below cuts it off
            question_of = np.full(len(part), width, np.int64)
            hits = np.flatnonzero(flat == _QUESTION)[::-1]
            if hits.size:
                has_question = True
                # backwards, so that of several the first of a row is written last, and stays
                question_of[hits // width] = hits % width
            questions.append(question_of)
        pool = pools[0] if len(pools) == 1 else np.concatenate(pools)
        text_start = starts[0] if len(starts) == 1 else np.concatenate(starts)
        question = questions[0] if len(questions) == 1 else np.concatenate(questions)
        begin = np.minimum(column["target_start"], column["text_length"]).astype(np.int64)
        available = np.maximum(column["text_length"].astype(np.int64) - begin - column["host_length"], 0)
        target_length = np.minimum(column["target_length"].astype(np.int64), available)
        path_length = target_length.copy()
        if has_question:
            np.minimum(np.maximum(question - begin, 0), target_length, out=path_length)
        target_start = text_start + begin
        if self._texts:
            pool = self._long_lines(column, pool, target_start, target_length, path_length)
            has_question = True
        # the rare targets that do not begin with a path
        odd = (pool.take(target_start, mode="clip") != _SLASH) & (target_length > 0)
        for row in np.flatnonzero(odd):
            start, length = int(target_start[row]), int(target_length[row])
            target = pool[start : start + length].tobytes()
            if found := _ABSOLUTE.match(target):
                target_start[row] += found.end()
                target_length[row] -= found.end()
                path_length[row] = max(int(path_length[row]) - found.end(), 0)
            elif target != b"*":
                path_length[row] = -1  # CONNECT: an authority is no path
        return pool, text_start, target_start, target_length, path_length, has_question

    def _long_lines(
        self,
        column: dict[str, NDArray[Any]],
        pool: U1,
        target_start: I8,
        target_length: NDArray[np.int64],
        path_length: NDArray[np.int64],
    ) -> U1:
        extra: list[bytes] = []
        end = pool.size
        for row in np.flatnonzero(column["flags"] & _TEXT_TRUNCATED):
            text = self._texts.pop((int(column["connection_id"][row]), int(column["sequence"][row])), None)
            if text is None:
                continue
            line = text.split(b"\n", 1)[0].rstrip(b"\r")
            begin = int(column["target_start"][row])
            target = line[begin:]
            if target[-9:-1] == b" HTTP/1.":
                target = target[:-9]
            target_start[row], target_length[row] = end, len(target)
            mark = target.find(b"?")
            path_length[row] = len(target) if mark < 0 else mark
            extra.append(target)
            end += len(target)
        return np.concatenate([pool, np.frombuffer(b"".join(extra), np.uint8)]) if extra else pool

    def _client_columns(
        self,
        batch: RequestBatch,
        column: dict[str, NDArray[Any]],
        pool: U1,
        text_start: I8,
        target_start: I8,
        target_length: NDArray[np.int64],
    ) -> None:
        """``server.address``, ``server.port`` and ``url.full`` of client rows, from the Host field."""
        client = batch.kind == SpanKind.CLIENT
        host_length = np.minimum(column["host_length"], column["text_length"]).astype(np.int32)
        host_start = text_start + column["text_length"].astype(np.int64) - host_length
        rows = np.flatnonzero(client & (host_length > 0))
        if rows.size:
            hosts = Text(pool, host_start[rows], host_length[rows])
            keys = self._hash(hosts)
            ids = self._hosts.lookup(keys)
            missing = np.flatnonzero(ids < 0)
            if missing.size:
                distinct, first, inverse = np.unique(keys[missing], return_index=True, return_inverse=True)
                made = np.array([self._values.id(_host_name(hosts[int(missing[i])])) for i in first], np.int32)
                self._hosts.insert(distinct, made)
                ids[missing] = made[inverse]
            batch.dims[rows, _ADDRESS] = ids
        full = (
            client & (host_length > 0) & (target_length > 0) & (pool[np.minimum(target_start, pool.size - 1)] == _SLASH)
        )
        rows = np.flatnonzero(full)
        if rows.size:
            batch.varying[semconv.URL_FULL] = _join_urls(
                pool, rows, len(batch), column["tls"][rows] != 0, host_start[rows], host_length[rows].astype(np.int64),
                target_start[rows], target_length[rows],
            )  # fmt: skip

    def _ids_of(self, table: I4, numbers: NDArray[Any], kind: type[int] | type[str]) -> I4:
        """Interned ids of small numbers, by a table filled on demand; 0 stays 0."""
        ids: I4 = table.take(numbers)
        if int(ids.min()) > 0:
            return ids
        missing = (ids == 0) & (numbers != 0)
        if missing.any():
            for number in np.unique(numbers[missing]):
                table[number] = self._values.id(kind(number))
            ids = table[numbers]
        return ids


def _join_at_once(parts: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Join the halves whose other half is in the same round, as most are.

    Returns:
        Whole records, and what is left of each part.
    """
    whole: list[NDArray[Any]] = []
    left = list(parts)
    half = _REQUEST_HALF | _RESPONSE_HALF | _RESPONSE_LINGERS
    for at in range(len(left)):
        for other in range(len(left)):
            requests = np.flatnonzero((left[at]["flags"] & half) == _REQUEST_HALF)
            responses = np.flatnonzero((left[other]["flags"] & (half | _REQUESTS_OVER)) == _RESPONSE_HALF)
            if not (requests.size and responses.size):
                continue
            first, second = _pairs(left[at][requests], left[other][responses])
            asked, answered = requests[first], responses[second]
            made, ends = left[at][asked], left[other][answered]
            for name in _OF_RESPONSE:
                made[name] = ends[name]
            made["flags"] |= ends["flags"]
            whole.append(made)
            if other == at:
                left[at] = np.delete(left[at], np.concatenate([asked, answered]))
            else:
                left[at], left[other] = np.delete(left[at], asked), np.delete(left[other], answered)
    return whole, left


def _pairs(requests: NDArray[Any], responses: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of both that are halves of one exchange."""
    keys, wanted = (
        rows["connection_id"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + rows["sequence"].astype(np.uint64)
        for rows in (requests, responses)
    )
    order = np.argsort(keys, kind="stable")
    at = np.searchsorted(keys[order], wanted)
    row = order[np.minimum(at, len(order) - 1)]
    same = (requests["connection_id"][row] == responses["connection_id"]) & (
        requests["sequence"][row] == responses["sequence"]
    )
    second = np.flatnonzero(same)
    first, once = np.unique(row[second], return_index=True)
    return first, second[once]


def _table(ids: list[int]) -> I4:
    """Ids by byte."""
    return np.array([ids[min(i, len(ids) - 1)] for i in range(256)], np.int32)


def _numbers(parts: list[NDArray[Any]], offset_ns: int) -> NDArray[np.int64]:
    """``(6, n)``: the `_NUMBERS` of all rows, times as Unix time; a response that never began stays 0."""
    block = np.concatenate([part.view(_numbers_of(part.dtype))["numbers"] for part in parts]).T.copy()
    never = block[2] == 0
    block[:4] += offset_ns
    if never.any():
        block[2][never] = 0
    np.maximum(block[3], block[0], out=block[3])
    return block


@functools.cache
def _numbers_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A record seen as one array of `_NUMBERS`."""
    fields: Mapping[str, Any] = dtype.fields or {}
    first = int(fields[_NUMBERS[0]][1])
    assert [fields[name][1] for name in _NUMBERS] == [first + 8 * i for i in range(len(_NUMBERS))]
    return np.dtype({"names": ["numbers"], "formats": [("<i8", (6,))], "offsets": [first], "itemsize": dtype.itemsize})


def _host_name(host: bytes | None) -> str | None:
    text = (host or b"").decode("ascii", "replace").strip().lower()
    if text.startswith("["):
        return text[1:].split("]", 1)[0] or None
    return text.rsplit(":", 1)[0] if text.count(":") == 1 else text or None


def _address_text(addresses: U1, present: NDArray[np.bool_]) -> Text:
    """Addresses as text, for the rows that have one."""
    count = len(addresses)
    length: I4 = np.full(count, -1, np.int32)
    start = np.zeros(count, np.int64)
    rows = np.flatnonzero(present)
    if not rows.size:
        return Text(np.empty(0, np.uint8), start, length)
    words = np.ascontiguousarray(addresses if rows.size == count else addresses[rows]).view(np.uint64)
    if (words == words[0]).all():
        text = _address(words[0].tobytes())
        length[rows] = len(text)
        return Text(np.frombuffer(text, np.uint8), start, length)
    distinct, inverse = np.unique(words.view("V16")[:, 0], return_inverse=True)
    texts = [_address(word.tobytes()) for word in distinct]
    lengths = np.array([len(text) for text in texts], np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    length[rows], start[rows] = lengths[inverse], starts[inverse]
    return Text(np.frombuffer(b"".join(texts), np.uint8), start, length)


def _address(raw: bytes) -> bytes:
    if raw[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:]).encode()
    return socket.inet_ntop(socket.AF_INET6, raw).encode()


def _join_urls(
    pool: U1,
    rows: NDArray[np.intp],
    count: int,
    tls: NDArray[np.bool_],
    host_start: I8,
    host_length: I8,
    target_start: I8,
    target_length: I8,
) -> Text:
    """``scheme://host target`` of the given rows, as one column of ``count`` rows."""
    scheme = np.frombuffer(b"https://http://", np.uint8)
    scheme_length = np.where(tls, 8, 7)
    joined = np.concatenate([pool, scheme])
    starts = np.stack([pool.size + np.where(tls, 0, 8), host_start, target_start], axis=1).reshape(-1)
    lengths = np.stack([scheme_length, host_length, target_length], axis=1).reshape(-1)
    # byte i of the result comes from the start of its piece plus its place in the piece
    ends = np.cumsum(lengths)
    source = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]))
    total = lengths.reshape(-1, 3).sum(axis=1)
    length: I4 = np.full(count, -1, np.int32)
    start = np.zeros(count, np.int64)
    length[rows] = total
    start[rows] = np.cumsum(total) - total
    return Text(joined[source], start, length)
