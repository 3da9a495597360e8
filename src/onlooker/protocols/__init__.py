"""Protocols: what the bytes of a connection mean.

HTTP/1 arrives as finished exchanges (`http1`, columns).  Every other protocol arrives as *segments*: bounded pieces of
what each call moved, in order.  Its module has one class that follows `SegmentParser`: one object a connection, fed by
``assemble.segments``, which turns the `Operation` objects it gives back into the columns of a `RequestBatch`.

Parsers never trust a length, never raise on bytes, and say "not mine" quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from onlooker.batches import AttributeValue


@dataclass(slots=True)
class Segment:
    """Bytes that one call moved, as far as they were captured.

    Attributes:
        sent: True: the watched process sent them; False: it received them.
        from_client: True: they go from the client of the connection to its server.
        mono_ns: CLOCK_MONOTONIC, after the call.
        offset: Of the first byte in its direction, since the connection is watched.
        length: Bytes that the call moved; ``head`` and ``tail`` may be less.
        head: The first bytes.
        tail: The last bytes, when ``len(head) < length``; disjoint from ``head``.
        readable: False: only the length is known.
        trace_id, span_id: Of the server request that the calling thread was serving; empty if none or not certain.
        parent_source: `enum parent_source` of ``bpf/records.h``.
    """

    sent: bool
    from_client: bool
    mono_ns: int
    offset: int
    length: int
    head: bytes
    tail: bytes = b""
    readable: bool = True
    tid: int = 0
    trace_id: bytes = b""
    span_id: bytes = b""
    trace_flags: int = 0
    parent_source: int = 0

    @property
    def whole(self) -> bool:
        """Whether all bytes are there."""
        return len(self.head) == self.length


@dataclass(slots=True)
class Operation:
    """One finished request of a segment protocol, before it becomes a row.

    Attributes:
        name: Span name, of low cardinality.
        dims: Low-cardinality attributes by OpenTelemetry key: they make the series.
        varying: Attributes of this span only, by OpenTelemetry key.
        start_mono_ns, request_end_mono_ns, response_start_mono_ns, end_mono_ns: CLOCK_MONOTONIC; response 0: none.
        request_bytes, response_bytes: Message sizes, -1 where unknown.
        error: `error.type`, or "" for success.
        trace_id, parent_span_id: Parent if one is certain, as raw bytes; empty: a new root.
        stream: True keeps the duration out of latency histograms (it is a stream's life).
    """

    name: str
    dims: Mapping[str, AttributeValue]
    start_mono_ns: int
    request_end_mono_ns: int
    response_start_mono_ns: int
    end_mono_ns: int
    varying: Mapping[str, AttributeValue] = field(default_factory=dict)
    request_bytes: int = -1
    response_bytes: int = -1
    error: str = ""
    trace_id: bytes = b""
    parent_span_id: bytes = b""
    trace_flags: int = 1
    parent_source: int = 0
    tid: int = 0
    stream: bool = False
    kind: int = 0
    """`SpanKind` if it differs from the connection's role (a consumer, say); 0: by role."""


class SegmentParser(Protocol):
    """The state of one connection of one protocol.  Bounded memory whatever is fed."""

    def feed(self, segment: Segment) -> list[Operation]:
        """Take the next segment, in order; give back the operations that it finished (mostly none or one)."""

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """The connection is over; ``error`` is an `error.type` or "".  Gives back what was still open, as errors."""

    def expire(self, mono_ns: int) -> list[Operation]:
        """Give back, as errors, operations that wait longer than the protocol's limit (DNS timeouts, say)."""

    @property
    def lost(self) -> int:
        """Operations known to have happened whose details could not be read, since the last call; resets to 0."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The HTTP/1.1 request that a connection was upgraded from (h2c): stream 1, whose request half is over.

    Attributes:
        target: As in the request line.
        start_mono_ns, end_mono_ns: CLOCK_MONOTONIC, of the request's first and last byte.
        trace_id, parent_span_id, trace_flags, parent_source: Parent if one is certain, else empty.
    """

    method: str
    target: str
    authority: str
    start_mono_ns: int
    end_mono_ns: int
    scheme: str = "http"
    request_bytes: int = 0
    tid: int = 0
    trace_id: bytes = b""
    parent_span_id: bytes = b""
    trace_flags: int = 1
    parent_source: int = 0


@runtime_checkable
class Upgradable(Protocol):
    """A parser whose connection may have begun as HTTP/1.1."""

    def upgrade(self, upgrade: Upgrade) -> None:
        """Tell the request that the connection was upgraded with, before anything is fed."""


@dataclass(frozen=True, slots=True)
class Half:
    """What the kernel had counted of an exchange when it left it to the segments that follow.

    Attributes:
        name: Of its commands.
        request: Times, ids and sizes of its bytes so far; no bytes.
        start_ns: First byte.
        commands, replies, errors: How many have passed.
        error: The first error, as a line.
        request_end, reply_end: Stream offsets behind it.
        mono_ns: When it was left.
        skip, left: A command is under way: bytes of its string, and values, that are still to come.
        is_cut: A reply is under way, of which part has passed.
    """

    name: str
    request: Segment
    start_ns: int
    commands: int
    replies: int
    errors: int
    error: bytes
    request_end: int
    reply_end: int
    mono_ns: int
    skip: int = 0
    left: int = 0
    is_cut: bool = False


@runtime_checkable
class Counting(Protocol):
    """A parser of a protocol whose plain exchanges the kernel counts itself."""

    @property
    def database(self) -> str:
        """What is selected on the connection; "" if nothing is."""

    def passed(self, request_end: int, reply_end: int, mono_ns: int, commands: int = 0, size: int = 0) -> None:
        """Exchanges were told without this parser: the streams stand behind them, and nothing is under way.

        Args:
            request_end: Stream offset behind the last command.
            reply_end: And behind the last reply.
            mono_ns: When the last of them ended.
            commands: How many there were.
            size: Bytes of their commands.
        """

    def handed_over(self, half: Half) -> list[Operation]:
        """One began without this parser and goes on here."""


Operations: TypeAlias = list[Operation]
