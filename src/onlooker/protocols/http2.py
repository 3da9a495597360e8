"""HTTP/2 (RFC 9113) and gRPC on it: segments of one connection in, one operation a request out.

Receives the bytes of both directions, whole or condensed by ``bpf/protocols/http2.h``.  Every stream that a client
opens is a request with its own four times; it ends with the response, whatever else the connection carries.  Pushed
responses answer no request and are only read to keep the header tables in step.

May drop, and counts in `Http2.lost`: requests whose header block went by unseen (the connection is older than the
agent, or bytes were lost), and requests beyond ``max_streams`` at once.  What could not be decoded is left out of an
operation: an absent path is never a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from onlooker import semconv
from onlooker.batches import AttributeValue, SpanKind
from onlooker.protocols import Operation, Segment, Upgrade, grpc
from onlooker.protocols import _http2_frames as frames
from onlooker.protocols._hpack import Fields, HeaderCache, decode
from onlooker.protocols._http2_frames import FrameReader

PREDATES_AGENT: Final = "onlooker.connection.predates_agent"
"""True on a request some of whose fields are unknown because its connection was met after it began."""
BYTES_LOST: Final = "onlooker.connection.bytes_lost"
"""True on a request some of whose fields are unknown because bytes of its connection were lost."""
REQUEST_MESSAGES: Final = "onlooker.rpc.request.messages"
RESPONSE_MESSAGES: Final = "onlooker.rpc.response.messages"
RPC_SERVICE: Final = "rpc.service"
"""Part of `rpc.method` in current semantic conventions; kept as its own attribute because people filter by it."""
RPC_TIMEOUT_NS: Final = "onlooker.rpc.timeout_ns"
CONNECT_PROTOCOL: Final = "onlooker.http.connect_protocol"
"""`:protocol` of an extended CONNECT (RFC 8441), "websocket" for one."""
REQUEST_CONTENT_TYPE: Final = semconv.HTTP_REQUEST_HEADER + ".content-type"

PARENT_HEADER: Final = 1
"""`enum parent_source` of ``bpf/records.h``."""

ERROR_CODES: Final = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip
"""RFC 9113 section 7, by number: the `error.type` of a stream that was reset."""
REFUSED_STREAM: Final = 7
CLOSED_ERROR: Final = "connection_closed"
"""`error.type` where the connection ended in good order in the middle of a request."""

_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
)
_SETTINGS_KNOWN = 16
_LONGEST_PATH = 4096
_LONGEST_BLOCK = 131_072
_LONGEST_HOST = 255
_PATIENCE_NS = 60_000_000_000
_SHARED_DIMS = 64
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class _Request:
    """What follows from the fields of a request alone; made once for equal header blocks of a connection."""

    __slots__ = (
        "connect", "dims", "flags", "grpc", "host", "is_request", "method", "parent", "port", "rpc", "scheme",
        "timeout_ns", "trace", "varying",
    )  # fmt: skip

    def __init__(self, fields: Fields) -> None:
        method = fields.get(b":method")
        path = fields.get(b":path")
        scheme = fields.get(b":scheme")
        content_type = fields.get(b"content-type")
        protocol = fields.get(b":protocol")
        self.is_request = not (method is None and path is None and scheme is None)
        self.connect = method == b"CONNECT"
        self.grpc = grpc.is_grpc(content_type)
        self.scheme = scheme.decode("latin-1") if scheme in (b"http", b"https") else ""
        self.method = "" if method is None else method.decode("latin-1") if method in _METHODS else "_OTHER"
        self.timeout_ns = grpc.timeout_ns(fields.get(b"grpc-timeout")) if self.grpc else 0
        self.rpc = _Rpc(path, self.timeout_ns)
        self.host, self.port = _authority(fields.get(b":authority") or fields.get(b"host"), self.scheme)
        self.trace, self.parent, self.flags = _traceparent(fields.get(b"traceparent"))
        self.dims: dict[tuple[str, int, str, bool], dict[str, AttributeValue]] = {}
        self.varying: dict[str, AttributeValue] = {}
        if path is not None:
            target, mark, query = path[:_LONGEST_PATH].partition(b"?")
            self.varying[semconv.URL_PATH] = target.decode("utf-8", "replace")
            if mark:
                self.varying[semconv.URL_QUERY] = query.decode("utf-8", "replace")
        if self.method == "_OTHER" and method is not None:
            self.varying[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method[:64].decode("latin-1")
        if protocol is not None:
            self.varying[CONNECT_PROTOCOL] = protocol[:64].decode("latin-1")
        if not self.grpc and content_type is not None and _is_rpc_over_http(content_type):
            self.varying[REQUEST_CONTENT_TYPE] = content_type[:64].decode("latin-1")


class _Rpc:
    """What a request means if it is a gRPC call."""

    __slots__ = ("method", "service", "varying")

    def __init__(self, path: bytes | None, timeout_ns: int) -> None:
        self.method, self.service = grpc.full_method(path) if path else ("", "")
        self.varying: dict[str, AttributeValue] = {}
        if self.service:
            self.varying[RPC_SERVICE] = self.service
        if timeout_ns:
            self.varying[RPC_TIMEOUT_NS] = timeout_ns


class Meaning(NamedTuple):
    """What streams have in common whose headers are the same, and that ended in the same way; see `Operation`."""

    name: str
    dims: Mapping[str, AttributeValue]
    varying: Mapping[str, AttributeValue]
    error: str
    stream: bool
    is_rpc: bool


class _Stream:
    """One request that is under way."""

    __slots__ = (
        "final", "flags", "number", "parent", "parent_source", "request", "request_bytes", "request_done",
        "request_end", "request_messages", "response", "response_bytes", "response_end", "response_messages",
        "response_start", "start", "tid", "trace", "trailers",
    )  # fmt: skip

    def __init__(self, number: int, start: int) -> None:
        self.number = number
        self.start = start
        self.request: Fields | None = None
        self.response: Fields | None = None
        self.trailers: Fields | None = None
        self.request_end = start
        self.request_done = False
        self.response_start = 0
        self.response_end = 0
        self.request_bytes = 0
        self.response_bytes = 0
        self.request_messages: grpc.MessageCounter | None = None
        self.response_messages: grpc.MessageCounter | None = None
        self.tid = 0
        self.trace = b""
        self.parent = b""
        self.flags = 1
        self.parent_source = 0


class _Block:
    """A header block that continues in further frames."""

    __slots__ = ("cut", "flags", "parts", "size", "start", "stream_id")

    def __init__(self, stream_id: int, flags: int, first: bytes, start: int, *, cut: bool) -> None:
        self.stream_id = stream_id
        self.flags = flags
        self.parts = [first]
        self.size = len(first)
        self.start = start
        self.cut = cut


class Http2:
    """One HTTP/2 connection; follows `onlooker.protocols.SegmentParser`.

    Args:
        from_start: The first bytes fed are the first of the connection (or the first after an upgrade).  Where that is
            not known, False: a connection preface is recognised all the same.
        condensed: Segments carry what ``bpf/protocols/http2.h`` keeps: ``head`` is the kept bytes of the ``length``
            bytes that the call moved.
        cache: Header blocks read before; best shared by all connections of a thread.
        max_streams: Requests under way at once that are told apart.
    """

    def __init__(
        self,
        *,
        from_start: bool = False,
        condensed: bool = True,
        cache: HeaderCache | None = None,
        max_streams: int = 10_000,
    ) -> None:
        self._cache = cache if cache is not None else HeaderCache()
        self._from_client = FrameReader(self, is_request=True, condensed=condensed, in_step=from_start)
        self._from_server = FrameReader(self, is_request=False, condensed=condensed, in_step=from_start)
        table = self._cache.fresh if from_start else self._cache.unknown
        self._tables = [table, table]  # of responses, of requests
        self._blocks: list[_Block | None] = [None, None]
        self.settings: tuple[dict[int, int], dict[int, int]] = ({}, {})
        """SETTINGS by number, of the server and of the client: what each of them accepts."""
        self._predates = not from_start
        self._certain = from_start
        self._swapped = False
        self._is_client = False
        self._max_streams = max_streams
        self._streams: dict[int, _Stream] = {}
        self._early: dict[int, _Stream] = {}  # answered before their request was seen, if it ever is
        self._first = 0
        self._highest = 0
        self._refused_above = 0x7FFFFFFF
        self._lost_at = -1
        self._request_lost = False
        self._lost = 0
        self._done: list[Operation] = []
        self._segment = Segment(False, False, 0, 0, 0, b"")

    def feed(self, segment: Segment) -> list[Operation]:
        """Take the next segment; give back the requests that it finished."""
        reader = self._from_client if segment.from_client else self._from_server
        self._segment = segment
        self._is_client = segment.sent == reader.is_request
        reader.read(
            segment.head, segment.tail, segment.offset, segment.length, segment.mono_ns, readable=segment.readable
        )
        done = self._done
        if done:
            self._done = []
        return done

    def upgrade(self, upgrade: Upgrade) -> None:
        """Tell the HTTP/1.1 request that asked for HTTP/2 (RFC 7540 section 3.2): its response is that of stream 1.

        To be called before anything is fed.  The server's frames begin at once, the client's with a preface.
        """
        self._certain = True
        self._predates = False
        self._tables = [self._cache.fresh, self._cache.fresh]
        self._from_server.expect_frames()
        self._from_client.expect_preface()
        stream = _Stream(1, upgrade.start_mono_ns)
        self._streams[1] = stream
        self._highest = self._first = 1
        stream.request = Fields(
            [
                (b":method", upgrade.method.encode()),
                (b":scheme", upgrade.scheme.encode()),
                (b":authority", upgrade.authority.encode()),
                (b":path", upgrade.target.encode()),
            ]
        )
        stream.request_end = upgrade.end_mono_ns
        stream.request_bytes = upgrade.request_bytes
        stream.request_done = True
        stream.tid = upgrade.tid
        stream.trace, stream.parent, stream.flags = upgrade.trace_id, upgrade.parent_span_id, upgrade.trace_flags
        stream.parent_source = upgrade.parent_source

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """The connection is over: what is still open failed, or was lost from sight."""
        self._lost += len(self._early)
        self._early = {}
        for stream in self._streams.values():
            if stream.start <= self._lost_at:
                self._lost += 1
                continue
            stream.response_end = mono_ns
            refused = stream.number > self._refused_above
            self._emit(stream, ERROR_CODES[REFUSED_STREAM] if refused else error or CLOSED_ERROR)
        self._streams = {}
        done, self._done = self._done, []
        return done

    def expire(self, mono_ns: int) -> list[Operation]:
        """Give up what was open when bytes were lost, and stayed silent since.  Whole streams may last for ever."""
        limit = mono_ns - _PATIENCE_NS
        if self._early:
            old = [number for number, stream in self._early.items() if stream.start < limit]
            for number in old:
                del self._early[number]
            self._lost += len(old)
        if 0 <= self._lost_at < limit:
            stale = [number for number, stream in self._streams.items() if stream.start <= self._lost_at]
            for number in stale:
                del self._streams[number]
            self._lost += len(stale)
            self._lost_at = -1
        return []

    @property
    def lost(self) -> int:
        """Requests known to have happened that no operation tells of, since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    @property
    def open_streams(self) -> int:
        """Requests under way."""
        return len(self._streams) + len(self._early)

    # For who reads many frames at once, see `onlooker.protocols.http2_rounds`.

    @property
    def is_level(self) -> bool:
        """Whether frames can be read without `feed`: what they depend on is known, and nothing waits for another."""
        return (
            self._certain
            and not self._swapped
            and (self._first > 0 or not self._predates)
            and not self._request_lost
            and not self._early
            and self._blocks[0] is None
            and self._blocks[1] is None
            and self._from_client.is_level
            and self._from_server.is_level
        )

    def reader(self, *, from_client: bool) -> FrameReader:
        """The reader of one direction."""
        return self._from_client if from_client else self._from_server

    @property
    def highest(self) -> int:
        """The number of the latest stream that was opened."""
        return self._highest

    @property
    def circumstances(self) -> tuple[bool, bool, int]:
        """What the `meaning` of a stream depends on beside its headers: predates the agent, is the client, lost at."""
        return self._predates, self._is_client, self._lost_at

    def read_blocks(self, blocks: Sequence[bytes], *, from_client: bool) -> list[Fields]:
        """Decode the next header blocks of one direction."""
        found, self._tables[from_client] = self._cache.read_all(self._tables[from_client], blocks)
        return found

    def opens(self, number: int) -> None:
        """A stream is opened that `take_frame` may not be told of."""
        self._first = self._first or number

    def meaning(self, request: Fields, response: Fields, trailers: Fields | None) -> Meaning:
        """What a stream says that was answered, and of which nothing was lost."""
        stream = _Stream(0, self._lost_at + 1)
        stream.request, stream.response, stream.trailers = request, response, trailers
        return self._meaning(stream, "", code=-1)

    def take_frame(
        self, segment: Segment, began_ns: int, flags: int, number: int, fields: Fields | None, shown: bytes,
        length: int, highest: int,
    ) -> None:  # fmt: skip
        """Take a frame that `feed` was not given: HEADERS, if there are ``fields``, or DATA.

        Args:
            segment: That the frame ended in.
            began_ns: When its first byte came.
            flags: Of its header.
            number: Of its stream.
            length: Of its payload.
            fields: Its header fields, decoded.
            shown: The first bytes of its payload, as far as they were kept.
            highest: Number of the latest stream that was opened before it.
        """
        reader = self._from_client if segment.from_client else self._from_server
        self._segment = segment
        self._highest = highest
        reader.frame_mono_ns, reader.now_mono_ns = began_ns, segment.mono_ns
        if fields is not None:
            if segment.from_client:
                self._request_headers(reader, number, flags, began_ns, fields)
            else:
                self._response_headers(number, flags, began_ns, fields)
            return
        counter = self.on_data(reader, number, length)
        if counter is not None and length and not counter.take_whole(shown, 0, len(shown), length):
            counter.take(shown, length)
        self.on_data_end(reader, flags, number, 0)

    def passed(self, highest: int) -> list[Operation]:
        """Streams up to ``highest`` were opened; gives back what `take_frame` finished."""
        self._highest = highest
        self._drop_early(highest, count=True)
        done, self._done = self._done, []
        return done

    # What the frame readers find.

    def on_preface(self, reader: FrameReader) -> None:
        """This direction is the client's, and the connection is seen from its beginning."""
        if not reader.is_request:
            self._swap()
        self._certain = True
        if self._predates:
            self._predates = False
            # Before the preface neither side can have sent a header block (section 3.4).
            self._tables = [self._cache.fresh, self._cache.fresh]
        other = self._from_server if reader is self._from_client else self._from_client
        if other.untouched:
            other.expect_frames()

    def on_loss(self, reader: FrameReader) -> None:
        """From here on the direction's table, and the end of its streams, are not known."""
        self._tables[reader.is_request] = self._cache.unknown
        self._blocks[reader.is_request] = None
        self._lost_at = reader.now_mono_ns
        if reader.is_request and self._highest:
            self._request_lost = True

    def on_data(self, reader: FrameReader, stream_id: int, length: int) -> grpc.MessageCounter | None:
        """Note the beginning of a DATA frame."""
        stream = self._streams.get(stream_id) or self._early.get(stream_id)
        if stream is None:
            return None
        if reader.is_request:
            stream.request_bytes += length
            return stream.request_messages
        stream.response_bytes += length
        if stream.response_start == 0:
            stream.response_start = reader.frame_mono_ns
        return stream.response_messages

    def on_data_end(self, reader: FrameReader, flags: int, stream_id: int, padding: int) -> None:
        """Note the end of a DATA frame, and of the stream's half if it says so."""
        if not (padding or reader.is_request or flags & frames.END_STREAM):
            return
        stream = self._streams.get(stream_id) or self._early.get(stream_id)
        if stream is None:
            return
        if reader.is_request:
            stream.request_bytes -= padding
            self._request_moved(stream, flags)
        else:
            stream.response_bytes -= padding
            if flags & frames.END_STREAM:
                self._response_ended(stream)

    def on_frame(
        self, reader: FrameReader, frame_type: int, flags: int, stream_id: int, payload: bytes, cut: bool
    ) -> None:
        """Take a frame that is not DATA."""
        side = reader.is_request
        block = self._blocks[side]
        if frame_type == frames.CONTINUATION:
            if block is None or block.stream_id != stream_id:
                self._blocks[side] = None
                self._tables[side] = self._cache.unknown  # the end of a block whose beginning was missed
                return
            if block.size < _LONGEST_BLOCK and not block.cut:
                block.parts.append(payload)
                block.size += len(payload)
            else:
                block.cut = True
            block.cut |= cut
            if flags & frames.END_HEADERS:
                self._blocks[side] = None
                data = b"".join(block.parts)
                self._block_ended(reader, block.stream_id, block.flags, data, block.start, cut=block.cut)
            return
        if block is not None:  # section 6.10: nothing may stand in between
            self._blocks[side] = None
            self._tables[side] = self._cache.unknown
        if frame_type == frames.HEADERS or frame_type == frames.PUSH_PROMISE:
            start = 0
            end = len(payload)
            if flags & frames.PADDED and payload:
                start = 1
                end -= 0 if cut else payload[0]
            if frame_type == frames.PUSH_PROMISE:
                start += 4
                stream_id = 0
            elif flags & frames.HAS_PRIORITY:
                start += 5
            cut |= end < start
            data = payload[start : max(start, end)]
            if flags & frames.END_HEADERS:
                self._block_ended(reader, stream_id, flags, data, reader.frame_mono_ns, cut=cut)
            else:
                self._blocks[side] = _Block(stream_id, flags, data, reader.frame_mono_ns, cut=cut)
        elif frame_type == frames.RST_STREAM:
            if not cut:
                self._reset(reader, stream_id, int.from_bytes(payload, "big"))
        elif frame_type == frames.SETTINGS:
            settings = self.settings[side]
            for at in range(0, len(payload) - 5, 6):
                number = int.from_bytes(payload[at : at + 2], "big")
                if number < _SETTINGS_KNOWN:
                    settings[number] = int.from_bytes(payload[at + 2 : at + 6], "big")
        elif frame_type == frames.GOAWAY and len(payload) >= 8 and not side:
            self._going_away(reader, int.from_bytes(payload[:4], "big") & 0x7FFFFFFF)

    def on_block(self, reader: FrameReader, flags: int, stream_id: int, block: bytes) -> None:
        """Take a HEADERS frame that is a whole header block: what most frames are."""
        side = reader.is_request
        if self._blocks[side] is not None or not self._certain or not stream_id & 1:
            self.on_frame(reader, frames.HEADERS, flags, stream_id, block, False)
            return
        fields, self._tables[side] = self._cache.read(self._tables[side], block)
        if side:
            self._request_headers(reader, stream_id, flags, reader.frame_mono_ns, fields)
        else:
            self._response_headers(stream_id, flags, reader.frame_mono_ns, fields)

    def _block_ended(
        self, reader: FrameReader, stream_id: int, flags: int, data: bytes, start: int, *, cut: bool
    ) -> None:
        side = reader.is_request
        if cut:
            fields = Fields(decode(self._tables[side], data)[0], malformed=True)
            self._tables[side] = self._cache.unknown
        else:
            fields, self._tables[side] = self._cache.read(self._tables[side], data)
        if stream_id & 1 == 0:
            return  # a promise, or a pushed response
        if not self._certain:
            self._settle_roles(reader, fields)
        if reader.is_request:
            self._request_headers(reader, stream_id, flags, start, fields)
        else:
            self._response_headers(stream_id, flags, start, fields)

    # What the frames mean.

    def _settle_roles(self, reader: FrameReader, fields: Fields) -> None:
        """Without a preface, the first block that only one side can have sent says which direction is which."""
        is_request = fields.get(b":method") is not None
        if is_request or fields.status:
            self._certain = True
            if is_request != reader.is_request and not self._streams:
                self._swap()

    def _swap(self) -> None:
        self._swapped = not self._swapped
        for reader in (self._from_client, self._from_server):
            reader.is_request = not reader.is_request
        self._tables.reverse()
        self._blocks.reverse()
        self.settings = self.settings[::-1]
        self._is_client = not self._is_client
        self._early = {}

    def _request_headers(self, reader: FrameReader, number: int, flags: int, start: int, fields: Fields) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            self._request_moved(stream, flags)  # trailers
            return
        request = _request_of(fields)
        if number <= self._highest or not request.is_request:
            return
        if self._request_lost:
            self._request_lost = False
            self._lost += max(0, (number - self._highest) // 2 - 1)
            self._drop_early(number, count=False)
        else:
            self._drop_early(number, count=True)
        self._highest = number
        self._first = self._first or number
        stream = self._early.pop(number, None)
        if stream is None:
            if len(self._streams) + len(self._early) >= self._max_streams:
                self._lost += 1
                return
            stream = _Stream(number, start)
        stream.start = start
        self._streams[number] = stream
        self._identify(stream, fields)
        segment = self._segment
        stream.tid = segment.tid
        if not stream.trace and segment.trace_id:
            stream.trace, stream.parent = segment.trace_id, segment.span_id
            stream.flags = segment.trace_flags
        if not stream.parent_source:
            stream.parent_source = segment.parent_source
        stream.request_end = reader.now_mono_ns
        self._request_moved(stream, flags)
        if stream.response_end:
            self._finish(stream, "")

    def _identify(self, stream: _Stream, fields: Fields) -> None:
        request = _request_of(fields)
        stream.request = fields
        if request.trace:
            stream.trace, stream.parent, stream.flags = request.trace, request.parent, request.flags
            stream.parent_source = PARENT_HEADER
        if request.grpc:
            stream.request_messages = grpc.MessageCounter()
            if stream.response_messages is None:
                stream.response_messages = grpc.MessageCounter()
                stream.response_messages.exact = stream.response is None

    def _drop_early(self, below: int, *, count: bool) -> None:
        """Forget responses whose request will not come any more: clients count upwards (section 5.1.1)."""
        if self._early:
            gone = [number for number in self._early if number < below]
            for number in gone:
                del self._early[number]
            if count:
                self._lost += len(gone)

    def _request_moved(self, stream: _Stream, flags: int) -> None:
        if not stream.request_done:
            stream.request_end = self._segment.mono_ns
            stream.request_done = bool(flags & frames.END_STREAM)

    def _response_headers(self, number: int, flags: int, start: int, fields: Fields) -> None:
        stream = self._streams.get(number) or self._early.get(number)
        if stream is None:
            if self._first <= number <= self._highest or len(self._early) >= self._max_streams:
                return  # finished, or counted as lost, before
            stream = self._early[number] = _Stream(number, start)
        ends = flags & frames.END_STREAM
        if 100 <= fields.status < 200 and not ends:
            return  # an interim response (RFC 9110 section 15.2) is not the response
        if stream.response is None and (fields.status or not ends or fields.holes):
            stream.response = fields
            stream.response_start = stream.response_start or start
            if stream.response_messages is None and grpc.is_grpc(fields.get(b"content-type")):
                stream.response_messages = grpc.MessageCounter()
        else:
            stream.trailers = fields
        if ends:
            self._response_ended(stream)

    def _response_ended(self, stream: _Stream) -> None:
        stream.response_end = self._segment.mono_ns
        if stream.request is not None:
            self._finish(stream, "")
        elif stream.number < self._first:  # its request went by before the connection was watched
            del self._early[stream.number]
            self._lost += 1
        # else the thread that sent the request may not have reported yet

    def _reset(self, reader: FrameReader, number: int, code: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            if self._early.pop(number, None) is not None:
                self._lost += 1
            return
        stream.response_end = reader.now_mono_ns
        error = ERROR_CODES[code] if code < len(ERROR_CODES) else "UNKNOWN_ERROR"
        self._finish(stream, error, code=code)

    def _going_away(self, reader: FrameReader, last: int) -> None:
        self._refused_above = last
        refused = [stream for number, stream in self._streams.items() if number > last]
        for stream in refused:
            stream.response_end = reader.now_mono_ns
            self._finish(stream, ERROR_CODES[REFUSED_STREAM], code=REFUSED_STREAM)

    def _finish(self, stream: _Stream, error: str, *, code: int = -1) -> None:
        del self._streams[stream.number]
        self._emit(stream, error, code=code)

    # What becomes of a stream.

    def _emit(self, stream: _Stream, error: str, *, code: int = -1) -> None:
        meaning = self._meaning(stream, error, code=code)
        varying = meaning.varying
        streaming = meaning.stream
        if meaning.is_rpc:
            varying = dict(varying)
            streaming = _count_messages(stream, varying)
        whole = stream.start > self._lost_at
        self._done.append(
            Operation(
                name=meaning.name,
                dims=meaning.dims,
                varying=varying,
                start_mono_ns=stream.start,
                request_end_mono_ns=max(stream.start, min(stream.request_end, stream.response_end)),
                response_start_mono_ns=max(stream.start, stream.response_start) if stream.response_start else 0,
                end_mono_ns=max(stream.start, stream.response_end),
                request_bytes=max(0, stream.request_bytes) if whole else -1,
                response_bytes=max(0, stream.response_bytes) if whole else -1,
                error=meaning.error,
                trace_id=stream.trace,
                parent_span_id=stream.parent,
                trace_flags=stream.flags,
                parent_source=stream.parent_source,
                tid=stream.tid,
                stream=streaming,
                kind=int(SpanKind.CLIENT if self._is_client else SpanKind.SERVER) if self._swapped else 0,
            )
        )

    def _meaning(self, stream: _Stream, error: str, *, code: int) -> Meaning:
        """What a stream says by its headers and its end: all but times, sizes and message counts."""
        fields = stream.request
        assert fields is not None
        request = _request_of(fields)
        response = stream.response
        varying: Mapping[str, AttributeValue] = request.varying
        content_type = response.get(b"content-type") if response is not None else None
        is_rpc = request.grpc or (
            fields.holes and fields.get(b"content-type") is None and _seems_grpc(request, stream, content_type)
        )
        status = response.status if response is not None else 0
        streaming = unknown = False
        if is_rpc:
            rpc = request.rpc
            text = self._rpc_status(stream, request, error, code=code)
            if text and not (error and code < 0):
                error = text if grpc.is_error(text, client=self._is_client) else ""
            unknown = not text and not error
            varying = rpc.varying  # the path says what `rpc.method` says
            name = rpc.method or "grpc"
            dims = self._rpc_dims(request, rpc.method, text, error)
        else:
            unknown = not status and not error
            if not error and status >= (400 if self._is_client else 500):
                error = str(status)
            streaming = (request.connect and 200 <= status < 300) or (
                content_type is not None and content_type.startswith(b"text/event-stream")
            )
            name = request.method if request.method and request.method != "_OTHER" else "HTTP"
            dims = self._http_dims(request, status, error)
        if (fields.holes or unknown) and (self._predates or self._lost_at >= 0):
            varying = {**varying, PREDATES_AGENT if self._predates else BYTES_LOST: True}
        return Meaning(name, dims, varying, error, streaming, is_rpc)

    def _http_dims(self, request: _Request, status: int, error: str) -> dict[str, AttributeValue]:
        key = ("", status, error, self._is_client)
        dims = request.dims.get(key)
        if dims is None:
            dims = {}
            if request.method:
                dims[semconv.HTTP_REQUEST_METHOD] = request.method
            if status:
                dims[semconv.HTTP_RESPONSE_STATUS_CODE] = status
            if request.scheme:
                dims[semconv.URL_SCHEME] = request.scheme
            dims[semconv.NETWORK_PROTOCOL_VERSION] = "2"
            self._finish_dims(request, key, dims)
        return dims

    def _rpc_dims(self, request: _Request, method: str, status: str, error: str) -> dict[str, AttributeValue]:
        key = (status, -1, error, self._is_client)
        dims = request.dims.get(key)
        if dims is None:
            dims = {semconv.RPC_SYSTEM_NAME: "grpc"}
            if method:
                dims[semconv.RPC_METHOD] = method
            if status:
                dims[semconv.RPC_RESPONSE_STATUS_CODE] = status
            self._finish_dims(request, key, dims)
        return dims

    def _finish_dims(self, request: _Request, key: tuple[str, int, str, bool], dims: dict[str, AttributeValue]) -> None:
        if self._is_client and request.host:
            dims[semconv.SERVER_ADDRESS] = request.host
            if request.port:
                dims[semconv.SERVER_PORT] = request.port
        if key[2]:
            dims[semconv.ERROR_TYPE] = key[2]
        if len(request.dims) >= _SHARED_DIMS:
            request.dims.clear()
        request.dims[key] = dims

    def _rpc_status(self, stream: _Stream, request: _Request, error: str, *, code: int) -> str:
        """The status of a call as its caller knows it; "" where that cannot be said."""
        if code >= 0:
            elapsed = stream.response_end - stream.start
            return grpc.status_of_reset(code, elapsed_ns=elapsed, timeout_ns=request.timeout_ns)
        holes = False
        for fields in (stream.trailers, stream.response):
            if fields is not None:
                value = fields.get(b"grpc-status")
                if value is not None:
                    return grpc.status_text(value)
                holes |= fields.holes
        if error or holes or stream.start <= self._lost_at:
            return ""
        if stream.response is not None and stream.response.status not in (0, 200):
            return grpc.status_of_http(stream.response.status)
        return "UNKNOWN"


def _request_of(fields: Fields) -> _Request:
    derived = fields.derived
    if not isinstance(derived, _Request):
        derived = fields.derived = _Request(fields)
    return derived


def parent_of(fields: Fields) -> tuple[bool, bool, tuple[bytes, bytes, int]]:
    """Whether these are the headers of a request, and of gRPC, and the parent that they name."""
    request = _request_of(fields)
    return request.is_request, request.grpc, (request.trace, request.parent, request.flags)


def _seems_grpc(request: _Request, stream: _Stream, content_type: bytes | None) -> bool:
    """Whether a request whose content type is not known was a gRPC call, by what came back.

    Trailers tell as well as the content type does: nothing but gRPC ends the answers to POST with them.
    """
    if content_type is not None:
        return grpc.is_grpc(content_type)
    return request.method == "POST" and (
        stream.trailers is not None or (stream.response is not None and stream.response.get(b"grpc-status") is not None)
    )


def _count_messages(stream: _Stream, varying: dict[str, AttributeValue]) -> bool:
    """Note the numbers of messages that are certain; tells whether the call streamed, that is had more than one."""
    streamed = False
    for key, counter in ((REQUEST_MESSAGES, stream.request_messages), (RESPONSE_MESSAGES, stream.response_messages)):
        if counter is not None:
            streamed |= counter.count > 1
            if counter.exact:
                varying[key] = counter.count
    return streamed


def _is_rpc_over_http(content_type: bytes) -> bool:
    """GRPC-Web and Connect: their content type tells them from other requests."""
    return content_type.startswith((b"application/grpc-web", b"application/connect+", b"application/proto"))


def _authority(value: bytes | None, scheme: str) -> tuple[str, int]:
    """Host and port of an authority (RFC 3986 section 3.2); ("", 0) if there is none."""
    if not value:
        return "", 0
    text = value[-_LONGEST_HOST - 6 :].decode("latin-1").rpartition("@")[2]
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or (":" in host and not host.endswith("]")):
        host, port = text, ""
    host = host.strip("[]")
    number = int(port) if port and len(port) <= 5 else 0
    return host, number if 0 < number < 65_536 else _DEFAULT_PORTS.get(scheme, 0)


def _traceparent(value: bytes | None) -> tuple[bytes, bytes, int]:
    """Trace id, span id and flags of a W3C traceparent; empty ids if it is none."""
    if value is None or len(value) < 55 or value[2:3] != b"-" or value[35:36] != b"-" or value[52:53] != b"-":
        return b"", b"", 1
    version = value[:2]
    if version == b"ff" or (len(value) > 55 and (version == b"00" or value[55:56] != b"-")):
        return b"", b"", 1
    digits = version + value[3:35] + value[36:52] + value[53:55]
    if digits.strip(b"0123456789abcdef"):
        return b"", b"", 1
    trace, parent = bytes.fromhex(value[3:35].decode()), bytes.fromhex(value[36:52].decode())
    if not any(trace) or not any(parent):
        return b"", b"", 1
    return trace, parent, int(value[53:55], 16)
