"""What the parsers of databases, caches and names share: options, framing of a cut stream, making of operations.

Receives `Segment` objects in the order of the kernel.  `Frames` cuts one direction into messages by their lengths and
steps over bytes that were not captured; where a gap hides the edge of a message it says so instead of guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from onlooker import semconv
from onlooker.batches import AttributeValue
from onlooker.protocols import Operation, Segment
from onlooker.protocols._sql import Statement, Statements

if TYPE_CHECKING:
    from onlooker.protocols._hpack import HeaderCache

MAX_EARLY: Final = 8
"""Responses kept for a request whose record comes later: another thread may read before the sender's hook ran."""
MAX_PENDING: Final = 1024
MAX_DIMS: Final = 4096
ERROR_OTHER: Final = "_OTHER"
"""`error.type` where the outcome is an error whose code was not captured."""

SQL_DIMS: Final = (
    semconv.DB_SYSTEM_NAME,
    semconv.DB_OPERATION_NAME,
    semconv.DB_COLLECTION_NAME,
    semconv.DB_NAMESPACE,
    semconv.DB_QUERY_SUMMARY,
    semconv.DB_STORED_PROCEDURE_NAME,
    semconv.DB_RESPONSE_STATUS_CODE,
    semconv.ERROR_TYPE,
)
STORE_DIMS: Final = (
    semconv.DB_SYSTEM_NAME,
    semconv.DB_OPERATION_NAME,
    semconv.DB_COLLECTION_NAME,
    semconv.DB_NAMESPACE,
    semconv.DB_RESPONSE_STATUS_CODE,
    semconv.ERROR_TYPE,
)


@dataclass(slots=True)
class Options:
    """Settings of the parsers and the caches that connections share.  One object an agent.

    Attributes:
        query_text: Fill `db.query.text` (obfuscated); off by default.
        prepared_statements: Prepared statements remembered a connection.
        pipeline_spans: Spans a burst of pipelined Redis commands gives before the rest becomes one batch.
        dns_timeout_ns: A lookup without an answer is an error after this time.
        statement_cache: Statement shapes remembered a dialect.
    """

    query_text: bool = False
    prepared_statements: int = 1024
    pipeline_spans: int = 32
    dns_timeout_ns: int = 5_000_000_000
    statement_cache: int = 1024
    _statements: dict[str, Statements] = field(default_factory=dict, repr=False)
    _named: dict[object, tuple[str, Mapping[str, AttributeValue]]] = field(default_factory=dict, repr=False)
    _headers: HeaderCache | None = field(default=None, repr=False)

    def header_cache(self) -> HeaderCache:
        """The cache of HTTP/2 header blocks."""
        if self._headers is None:
            from onlooker.protocols._hpack import HeaderCache  # with the first connection that needs it

            self._headers = HeaderCache()
        return self._headers

    def statements(self, dialect: str) -> Statements:
        """The cache of one SQL dialect."""
        found = self._statements.get(dialect)
        if found is None:
            found = self._statements[dialect] = Statements(dialect, self.statement_cache)
        return found

    def sql_dims(
        self, system: str, statement: Statement, namespace: str, code: str, error: str
    ) -> tuple[str, Mapping[str, AttributeValue]]:
        """Span name and dims of a SQL statement, one shared mapping a combination."""
        key = (system, statement.summary, statement.operation, statement.collection, namespace, code, error)
        found = self._named.get(key)
        if found is None:
            name = statement.summary or statement.operation or "SQL"
            found = self._remember(
                key,
                name,
                {
                    semconv.DB_SYSTEM_NAME: system,
                    semconv.DB_OPERATION_NAME: statement.operation,
                    semconv.DB_COLLECTION_NAME: statement.collection,
                    semconv.DB_NAMESPACE: namespace,
                    semconv.DB_QUERY_SUMMARY: statement.summary,
                    semconv.DB_STORED_PROCEDURE_NAME: statement.procedure,
                    semconv.DB_RESPONSE_STATUS_CODE: code,
                    semconv.ERROR_TYPE: error,
                },
            )
        return found

    def store_dims(
        self, system: str, operation: str, collection: str, namespace: str, code: str, error: str
    ) -> tuple[str, Mapping[str, AttributeValue]]:
        """Span name and dims of a command to a store without SQL."""
        key = (system, operation, collection, namespace, code, error)
        found = self._named.get(key)
        if found is None:
            found = self._remember(
                key,
                f"{operation} {collection}" if collection else operation,
                {
                    semconv.DB_SYSTEM_NAME: system,
                    semconv.DB_OPERATION_NAME: operation,
                    semconv.DB_COLLECTION_NAME: collection,
                    semconv.DB_NAMESPACE: namespace,
                    semconv.DB_RESPONSE_STATUS_CODE: code,
                    semconv.ERROR_TYPE: error,
                },
            )
        return found

    def _remember(
        self, key: object, name: str, dims: dict[str, AttributeValue]
    ) -> tuple[str, Mapping[str, AttributeValue]]:
        if len(self._named) >= MAX_DIMS:
            self._named.clear()  # rare; the mappings in flight stay valid
        found = self._named[key] = (name, {k: v for k, v in dims.items() if v != ""})
        return found


class Frames:
    """Cuts one direction of a stream into messages.

    Args:
        header: Bytes that tell the length of a message.
        measure: ``(data, position)`` to the whole length of the message there, or -1 if none can start so.
        keep: Bytes of a message that are handed on at most.
        boring: First bytes of messages that are counted and not handed on.

    A message is handed on as ``(bytes, total, start_ns)``: fewer bytes than ``total`` if it was cut.  None among the
    messages stands for an unknown number of them.
    """

    __slots__ = (
        "_boring",
        "_contiguous",
        "_expected",
        "_header",
        "_keep",
        "_measure",
        "_part",
        "_seen",
        "_start_ns",
        "_total",
        "synced",
    )

    def __init__(
        self, header: int, measure: Callable[[bytes | bytearray, int], int], keep: int, boring: bytes = b""
    ) -> None:
        self._header = header
        self._measure = measure
        self._keep = keep
        self._boring = boring
        self._expected = -1
        self.synced = True
        self._part = bytearray()
        self._total = 0  # of the message that is not whole yet; 0: between messages, or its header is not whole
        self._seen = 0
        self._contiguous = True
        self._start_ns = 0

    @property
    def between(self) -> bool:
        """Whether the stream is known to stand between two messages."""
        return self.synced and not self._total and not self._part

    def restart(self) -> None:
        """The next byte starts a message."""
        self.synced = True
        self._part.clear()
        self._total = self._seen = 0

    def feed(self, segment: Segment, skip: int = 0) -> list[tuple[bytes, int, int] | None]:
        """The messages that end in ``segment``; the first ``skip`` bytes of it are left out."""
        out: list[tuple[bytes, int, int] | None] = []
        head = segment.head
        if self._expected >= 0 and segment.offset != self._expected:
            missing = segment.offset - self._expected
            if missing > 0:
                self._pass(missing, out)
            else:
                self._break(out)
        self._expected = segment.offset + segment.length
        if skip:
            head = head[skip:]
        if not self.synced and head and self._plausible(head):
            self.restart()
        if head and self.synced:
            self._take(head, segment.mono_ns, out)
        gap = segment.length - skip - len(head) - len(segment.tail)
        if gap > 0:
            self._pass(gap, out)
        if segment.tail and self.synced:
            self._take(segment.tail, segment.mono_ns, out)
        return out

    def _plausible(self, data: bytes) -> bool:
        """Whether ``data`` looks like a run of messages from its first byte on: two, or exactly one."""
        position = count = 0
        while position + self._header <= len(data):
            total = self._measure(data, position)
            if total < self._header:
                return False
            count += 1
            position += total
            if position == len(data) or count == 3:
                return True
        return count >= 2

    def _break(self, out: list[tuple[bytes, int, int] | None]) -> None:
        if self.synced:
            out.append(None)
        self.synced = False
        self._part.clear()
        self._total = self._seen = 0

    def _pass(self, count: int, out: list[tuple[bytes, int, int] | None]) -> None:
        """Step over ``count`` bytes that were not captured."""
        if not self.synced:
            return
        rest = self._total - self._seen
        if not self._total or count > rest:
            if self._total:
                self._end(out)
            self._break(out)
            return
        self._contiguous = False
        self._seen += count
        if count == rest:
            self._end(out)

    def _end(self, out: list[tuple[bytes, int, int] | None]) -> None:
        if not self._part or self._part[0] not in self._boring:
            out.append((bytes(self._part), self._total, self._start_ns))
        self._part.clear()
        self._total = self._seen = 0
        self._contiguous = True

    def _take(self, data: bytes, mono_ns: int, out: list[tuple[bytes, int, int] | None]) -> None:
        size = len(data)
        header = self._header
        position = 0
        if not self._total and self._part:  # a header that was split
            position = min(header - len(self._part), size)
            self._part += data[:position]
            if len(self._part) < header:
                return
            total = self._measure(self._part, 0)
            if total < header:
                self._break(out)
                return
            self._total, self._seen = total, header
        if self._total:
            rest = self._total - self._seen
            piece = data[position : position + rest]
            if self._contiguous and len(self._part) < self._keep:
                self._part += piece[: self._keep - len(self._part)]
            self._seen += len(piece)
            position += len(piece)
            if self._seen < self._total:
                return
            self._end(out)
        measure, keep, boring = self._measure, self._keep, self._boring
        while position + header <= size:
            total = measure(data, position)
            if total < header:
                self._break(out)
                return
            end = position + total
            if end > size:
                self._total, self._seen = total, size - position
                self._part += data[position : position + keep]
                self._contiguous = True
                self._start_ns = mono_ns
                return
            if data[position] not in boring:
                out.append((data[position : min(end, position + keep)], total, mono_ns))
            position = end
        if position < size:
            self._part += data[position:]
            self._contiguous = True
            self._start_ns = mono_ns


class Pending:
    """A request that waits for its response."""

    __slots__ = (
        "index",
        "kind",
        "parent_source",
        "request_bytes",
        "request_end_ns",
        "response_bytes",
        "response_ns",
        "span_id",
        "start_ns",
        "statements",
        "tid",
        "trace_flags",
        "trace_id",
        "value",
    )

    def __init__(
        self,
        kind: str,
        segment: Segment,
        start_ns: int,
        request_bytes: int,
        statements: tuple[Statement, ...] = (),
        value: object = None,
    ) -> None:
        self.kind = kind
        self.statements = statements
        self.index = 0  # of the statement whose result is awaited
        self.start_ns = start_ns
        self.request_end_ns = segment.mono_ns
        self.request_bytes = request_bytes
        self.response_ns = 0
        self.response_bytes = 0
        self.value = value
        self.tid = segment.tid
        self.trace_id = segment.trace_id
        self.span_id = segment.span_id
        self.trace_flags = segment.trace_flags if segment.trace_id else 1
        self.parent_source = segment.parent_source

    def operation(
        self,
        name: str,
        dims: Mapping[str, AttributeValue],
        varying: Mapping[str, AttributeValue],
        end_ns: int,
        error: str,
        *,
        stream: bool = False,
    ) -> Operation:
        """The finished operation.  Times never run backwards, though records of two threads may."""
        request_end = self.request_end_ns
        response = self.response_ns
        return Operation(
            name,
            dims,
            self.start_ns,
            request_end,
            (response if response > request_end else request_end) if response else 0,
            end_ns if end_ns > request_end else request_end,
            varying,
            self.request_bytes,
            self.response_bytes,
            error,
            self.trace_id,
            self.span_id,
            self.trace_flags,
            self.parent_source,
            self.tid,
            stream,
        )


NO_VARYING: Final[Mapping[str, AttributeValue]] = {}


class Connection:
    """What all connections have: the count of what was lost, and responses that overtook their request.

    Attributes:
        note: Why nothing more is told of this connection: "tls", "compressed", "replication" ...; "" while it is read.
    """

    def __init__(self, role: int, options: Options) -> None:
        self.role = role
        self.options = options
        self.note = ""
        self._lost = 0
        self._early: list[Segment] = []
        self._settled = False  # a request was seen, and all that came before is answered

    @property
    def lost(self) -> int:
        """See `SegmentParser.lost`."""
        count, self._lost = self._lost, 0
        return count

    def feed(self, segment: Segment) -> list[Operation]:
        """See `SegmentParser.feed`."""
        if self.note:
            return self._noted(segment)
        if segment.from_client:
            out = self._request(segment)
            if self._early and self._waiting():
                early, self._early = self._early, []
                for response in early:
                    out += self._response(response)
            return out
        if self._settled and not self._waiting() and not self._unasked():
            if len(self._early) < MAX_EARLY:
                self._early.append(segment)
                return []
            early, self._early = self._early, []
            out = []
            for response in early:
                out += self._response(response)
            return out + self._response(segment)
        return self._response(segment)

    def expire(self, mono_ns: int) -> list[Operation]:
        """See `SegmentParser.expire`: only names have a limit of their own."""
        return []

    def _noted(self, segment: Segment) -> list[Operation]:
        return []

    def _waiting(self) -> bool:
        """Whether a request waits for its response."""
        raise NotImplementedError

    def _unasked(self) -> bool:
        """Whether the server may speak unasked now."""
        return False

    def _request(self, segment: Segment) -> list[Operation]:
        raise NotImplementedError

    def _response(self, segment: Segment) -> list[Operation]:
        raise NotImplementedError


def until_nul(data: bytes, start: int) -> tuple[bytes, int]:
    """The bytes up to the next NUL (or the end, in a cut message) and the position behind it."""
    end = data.find(b"\0", start)
    return (data[start:], len(data)) if end < 0 else (data[start:end], end + 1)


def name_of(data: bytes, limit: int = 128) -> str:
    """A name from the wire: bounded, and printable."""
    text = data[:limit].decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
