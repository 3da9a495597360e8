"""SQL Server (TDS 7): one operation a batch or remote procedure call.

Receives the segments of one connection.  Messages consist of packets; of a request the beginning is kept (the
statement), of a response the beginning and the end (errors, handles of prepared statements, the last DONE).  The login
is stepped over.  A connection that goes on in TLS is named and read no further; TLS for the login alone is
stepped over.

Source: [MS-TDS] Tabular Data Stream Protocol, sections 2.2.3 (packets), 2.2.6 (requests) and 2.2.7 (tokens)
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from typing import Final

from onlooker import semconv
from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import ERROR_OTHER, MAX_PENDING, NO_VARYING, Connection, Frames, Options, Pending, name_of
from onlooker.protocols._sql import NOTHING, Statement

SYSTEM: Final = "microsoft.sql_server"
KEEP_BYTES: Final = 8192
KEEP_END: Final = 128
HEADER: Final = 8
END_OF_MESSAGE: Final = 1

_BATCH, _RPC, _RESPONSE, _ATTENTION, _BULK, _TRANSACTION, _LOGIN, _SSPI, _PRELOGIN = (
    0x01,
    0x03,
    0x04,
    0x06,
    0x07,
    0x0E,
    0x10,
    0x11,
    0x12,
)
_TYPES: Final = frozenset(
    {_BATCH, 0x02, _RPC, _RESPONSE, _ATTENTION, _BULK, 0x08, _TRANSACTION, _LOGIN, _SSPI, _PRELOGIN}
)
_TLS: Final = frozenset({0x14, 0x15, 0x16, 0x17})
MAX_TLS_RECORDS_OF_LOGIN: Final = 4

_PROCEDURES: Final = {
    1: "sp_cursor", 2: "sp_cursoropen", 3: "sp_cursorprepare", 4: "sp_cursorexecute", 5: "sp_cursorprepexec",
    6: "sp_cursorunprepare", 7: "sp_cursorfetch", 8: "sp_cursoroption", 9: "sp_cursorclose", 10: "sp_executesql",
    11: "sp_prepare", 12: "sp_execute", 13: "sp_prepexec", 14: "sp_prepexecrpc", 15: "sp_unprepare",
}  # fmt: skip
# Which of the parameters that are texts is the statement.
_STATEMENT_AT: Final = {
    "sp_executesql": 0, "sp_prepare": 1, "sp_prepexec": 1, "sp_cursoropen": 0, "sp_cursorprepare": 1,
    "sp_cursorprepexec": 1,
}  # fmt: skip
_PREPARES: Final = frozenset({"sp_prepare", "sp_prepexec", "sp_prepexecrpc", "sp_cursorprepare", "sp_cursorprepexec"})
_WITH_HANDLE: Final = frozenset({"sp_execute", "sp_cursorexecute", "sp_unprepare", "sp_cursorunprepare"})
_QUIET: Final = frozenset({"sp_unprepare", "sp_cursorunprepare", "sp_prepare", "sp_cursorprepare"})
"""Housekeeping: no operation unless it fails."""
_TRANSACTIONS: Final = {5: "BEGIN", 7: "COMMIT", 8: "ROLLBACK", 9: "SAVE"}

# RETURNVALUE: ordinal, name, status, user type, flags, INTN of 4 bytes with a value (the handle)
_HANDLE: Final = re.compile(rb"\xac..(?:\x00|.{1,128}?)[\x01\x02]\x00\x00\x00\x00..\x26\x04\x04(.{4})", re.DOTALL)
DONE_ERROR: Final = 0x0002
DONE_ATTENTION: Final = 0x0020
DONE_SERVER_ERROR: Final = 0x0100


def _length(data: bytes | bytearray, position: int) -> int:
    kind = data[position]
    if kind in _TYPES:
        return data[position + 2] << 8 | data[position + 3]
    if kind in _TLS and data[position + 1] == 3:
        return 5 + (data[position + 3] << 8 | data[position + 4])
    return -1


class _Message:
    """A message under way: its beginning, its end, and when it began."""

    __slots__ = ("begin", "end", "kind", "size", "start_ns")

    def __init__(self, kind: int, start_ns: int) -> None:
        self.kind = kind
        self.start_ns = start_ns
        self.begin = bytearray()
        self.end = b""
        self.size = 0

    def add(self, data: bytes, total: int) -> None:
        payload = data[HEADER:]
        if len(self.begin) < KEEP_BYTES and self.size == len(self.begin):
            self.begin += payload[: KEEP_BYTES - len(self.begin)]
        self.end = (self.end + payload)[-KEEP_END:]
        self.size += total - HEADER


class TdsParser(Connection):
    """One connection."""

    def __init__(self, role: int, options: Options) -> None:
        super().__init__(role, options)
        self._requests = Frames(HEADER, _length, KEEP_BYTES)
        self._responses = Frames(HEADER, _length, KEEP_BYTES)
        self._sql = options.statements("mssql")
        self._database = ""
        self._prepared: OrderedDict[int, tuple[Statement, ...]] = OrderedDict()
        self._queue: deque[Pending] = deque()
        self._asking: _Message | None = None
        self._answering: _Message | None = None
        self._tls_records = 0
        self._attention = False  # an attention waits for its acknowledgement
        self._before_attention = 0  # requests that were open when it was sent

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`."""
        out: list[Operation] = []
        for pending in self._queue:
            if not self._responses.synced:
                self._lost += pending.kind != "login"
            elif pending.kind not in ("login", *_QUIET):
                self._emit(out, pending, mono_ns, error or ERROR_OTHER)
        self._queue.clear()
        return out

    def _waiting(self) -> bool:
        return bool(self._queue) or self._attention

    # requests

    def _request(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        if self._queue and not self._responses.synced and not self._is_attention(segment):
            # a new request ends the response before it, whose end was not captured
            self._lost += sum(p.kind != "login" for p in self._queue)
            self._queue.clear()
            self._responses.restart()
            self._answering = None
        for message in self._requests.feed(segment):
            if message is None:
                self._asking = None
                continue
            data, total, start_ns = message
            kind = data[0]
            if kind in _TLS:
                self._tls_records += 1
                if self._tls_records > MAX_TLS_RECORDS_OF_LOGIN:
                    self.note = "tls"
                    self._queue.clear()
                    return out
                continue
            if self._asking is None or self._asking.kind != kind:
                self._asking = _Message(kind, start_ns)
            self._asking.add(data, total)
            if data[1] & END_OF_MESSAGE:
                asked, self._asking = self._asking, None
                self._ask(asked, segment)
        if not self._requests.synced:
            if self._asking is not None:
                self._ask(self._asking, segment)  # the request is known from its beginning
                self._asking = None
            self._requests.restart()
        return out

    @staticmethod
    def _is_attention(segment: Segment) -> bool:
        return segment.head[:1] == b"\x06"

    def _ask(self, message: _Message, segment: Segment) -> None:
        self._settled = True
        kind = message.kind
        body = bytes(message.begin)
        size = message.size
        if kind == _ATTENTION:
            self._attention = True
            self._before_attention = len(self._queue)
            return
        if kind in (_LOGIN, _PRELOGIN, _SSPI, 0x02, 0x08):
            pending = Pending("login", segment, message.start_ns, size)
            if kind == _PRELOGIN and body[:1] == b"\x16":
                return  # the TLS handshake, wrapped
        elif kind == _BATCH:
            text = _decode(body[_headers(body) :])
            pending = Pending(
                "batch", segment, message.start_ns, size, self._sql.describe_text(text, cut=len(body) < size)
            )
        elif kind == _RPC:
            pending = self._call(body, size, segment, message.start_ns)
        elif kind == _TRANSACTION:
            at = _headers(body)
            verb = _TRANSACTIONS.get(int.from_bytes(body[at : at + 2], "little"), "TRANSACTION")
            pending = Pending("transaction", segment, message.start_ns, size, (Statement("", verb, "", verb),))
        elif kind == _BULK:
            pending = Pending(
                "bulk", segment, message.start_ns, size, (Statement("", "BULK INSERT", "", "BULK INSERT"),)
            )
        else:
            return
        if len(self._queue) >= MAX_PENDING:
            self._queue.popleft()
            self._lost += 1
        if not self._queue:
            self._answering = None
        self._queue.append(pending)

    def _call(self, body: bytes, size: int, segment: Segment, start_ns: int) -> Pending:
        at = _headers(body)
        length = int.from_bytes(body[at : at + 2], "little")
        if length == 0xFFFF:
            name = _PROCEDURES.get(int.from_bytes(body[at + 2 : at + 4], "little"), "procedure")
            at += 4
        else:
            name = _decode(body[at + 2 : at + 2 + 2 * length])
            at += 2 + 2 * length
        at += 2  # option flags
        lower = name.lower()
        if lower in _STATEMENT_AT:
            texts, _numbers = _parameters(body, at)
            index = _STATEMENT_AT[lower]
            statements = self._sql.describe_text(texts[index], cut=len(body) < size) if index < len(texts) else ()
            return Pending(lower, segment, start_ns, size, statements or (_called(lower),))
        if lower in _WITH_HANDLE:
            _texts, numbers = _parameters(body, at)
            handle = numbers[0] if numbers else -1
            if lower in ("sp_unprepare", "sp_cursorunprepare"):
                self._prepared.pop(handle, None)
                return Pending(lower, segment, start_ns, size)
            return Pending(lower, segment, start_ns, size, self._prepared.get(handle, (_called(lower),)))
        return Pending("procedure", segment, start_ns, size, (_called(name_of(name.encode())),))

    # responses

    def _response(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        if self._queue and not self._queue[0].response_ns:
            self._queue[0].response_ns = segment.mono_ns
        for message in self._responses.feed(segment):
            if message is None:
                continue
            data, total, start_ns = message
            if data[0] in _TLS:
                continue
            if data[0] not in (_RESPONSE, _PRELOGIN):
                self._answering = None
                continue
            if self._answering is None:
                self._answering = _Message(data[0], start_ns)
            self._answering.add(data, total)
            if data[1] & END_OF_MESSAGE:
                answered, self._answering = self._answering, None
                if len(data) < total:  # the middle of the last packet was not captured; the tail may show its end
                    answered.end = segment.tail if segment.tail and self._responses.between else b""
                self._answer(out, answered, segment.mono_ns)
        if not self._responses.synced and self._queue and _done_status(segment.tail or segment.head) >= 0:
            # after a gap: DONE without a MORE flag at the very end of a transfer ends the response
            answered = self._answering or _Message(_RESPONSE, segment.mono_ns)
            self._answering = None
            answered.end = (segment.tail or segment.head)[-KEEP_END:]
            answered.size = 0
            self._responses.restart()
            self._answer(out, answered, segment.mono_ns)
        return out

    def _answer(self, out: list[Operation], message: _Message, mono_ns: int) -> None:
        begin, end = bytes(message.begin), message.end
        whole = message.size == len(begin)
        self._database_change(begin)
        if self._attention and _done_status(end) & DONE_ATTENTION and _done_status(end) >= 0:
            self._attention = False
            if not self._before_attention:
                return  # what it was to cancel had been answered already
        if not self._queue:
            return
        pending = self._queue.popleft()
        self._before_attention = max(self._before_attention - 1, 0)
        if pending.kind == "login":
            return
        pending.response_bytes = message.size or -1
        if pending.kind in _PREPARES:
            self._learn(pending, begin if whole else end)
        status = _done_status(end)
        if status < 0 and begin:
            status = _done_status(begin[-13:]) if whole else -1
        if status < 0:
            self._lost += pending.kind not in _QUIET
            return
        error = ""
        if status & (DONE_ERROR | DONE_SERVER_ERROR) or b"\xaa" in begin[:1]:
            error = _error_number(begin) or _error_number(end) or ERROR_OTHER
        elif status & DONE_ATTENTION:
            error = "cancelled"
        else:
            error = _error_number(begin)
        if error or pending.kind not in _QUIET:
            self._emit(out, pending, mono_ns, error)

    def _learn(self, pending: Pending, data: bytes) -> None:
        matches = _HANDLE.findall(data)
        if not matches:
            return
        if len(self._prepared) >= self.options.prepared_statements:
            self._prepared.popitem(last=False)
        self._prepared[int.from_bytes(matches[-1], "little")] = pending.statements

    def _database_change(self, data: bytes) -> None:
        """ENVCHANGE of type 1 (database) is among the first tokens: of the login, or of USE."""
        at = data.find(b"\xe3")
        while 0 <= at < 256:
            size = int.from_bytes(data[at + 1 : at + 3], "little")
            new = data[at + 4] if at + 4 < len(data) else 0
            if (
                data[at + 3 : at + 4] == b"\x01"
                and at + 5 + 2 * new < len(data)
                and size == 3 + 2 * new + 2 * data[at + 5 + 2 * new]
            ):
                self._database = name_of(_decode(data[at + 5 : at + 5 + 2 * new]).encode())
                return
            at = data.find(b"\xe3", at + 1)

    def _emit(self, out: list[Operation], pending: Pending, end_ns: int, error: str) -> None:
        # A batch is one request with one answer: its first statement that touches a table names it.
        statement = next((s for s in pending.statements if s.collection), None)
        statement = statement or (pending.statements[0] if pending.statements else NOTHING)
        code = error if error.isdigit() else ""
        name, dims = self.options.sql_dims(SYSTEM, statement, self._database, code, error)
        text = "; ".join(s.text for s in pending.statements) if self.options.query_text else ""
        varying = {semconv.DB_QUERY_TEXT: text[:2048]} if text else NO_VARYING
        out.append(pending.operation(name, dims, varying, end_ns, error))


def _called(name: str) -> Statement:
    return Statement("", "EXEC", "", f"EXEC {name}", name)


def _decode(data: bytes) -> str:
    return data[: len(data) & ~1].decode("utf-16-le", "replace")


def _headers(body: bytes) -> int:
    """Length of ALL_HEADERS, which TDS 7.2 and newer put before a request; 0 if there are none."""
    total = int.from_bytes(body[:4], "little")
    first = int.from_bytes(body[4:8], "little")
    return total if 4 <= total <= 512 and 6 <= first <= total - 4 and body[8:10] in (b"\1\0", b"\2\0", b"\3\0") else 0


def _parameters(body: bytes, at: int) -> tuple[list[str], list[int]]:
    """The texts and the integers among the first parameters of a call, as far as they were captured."""
    texts: list[str] = []
    numbers: list[int] = []
    for _ in range(4):
        if at >= len(body):
            break
        at += 1 + 2 * body[at] + 1  # name, status
        kind = body[at] if at < len(body) else 0
        at += 1
        if kind in (0xE7, 0xA7, 0xEF, 0xAF):  # NVARCHAR, VARCHAR, NCHAR, CHAR
            longest = int.from_bytes(body[at : at + 2], "little")
            at += 7  # maximum length, collation
            data, at = _chunks(body, at) if longest == 0xFFFF else _short(body, at)
        elif kind in (0x63, 0x23):  # NTEXT, TEXT
            at += 9
            size = int.from_bytes(body[at : at + 4], "little")
            data, at = body[at + 4 : at + 4 + size], at + 4 + size
        elif kind == 0x26:  # INTN
            size = body[at + 1] if at + 1 < len(body) else 0
            if size:
                numbers.append(int.from_bytes(body[at + 2 : at + 2 + size], "little", signed=True))
            at += 2 + size
            continue
        elif kind in (0x30, 0x34, 0x38, 0x7F):  # INT1, INT2, INT4, INT8
            size = {0x30: 1, 0x34: 2, 0x38: 4, 0x7F: 8}[kind]
            numbers.append(int.from_bytes(body[at : at + size], "little", signed=True))
            at += size
            continue
        else:
            break
        texts.append(_decode(data) if kind in (0xE7, 0xEF, 0x63) else data.decode("utf-8", "replace"))
    return texts, numbers


def _short(body: bytes, at: int) -> tuple[bytes, int]:
    size = int.from_bytes(body[at : at + 2], "little")
    if size == 0xFFFF:
        return b"", at + 2
    return body[at + 2 : at + 2 + size], at + 2 + size


def _chunks(body: bytes, at: int) -> tuple[bytes, int]:
    """A value in chunks (PLP)."""
    at += 8
    parts: list[bytes] = []
    while at + 4 <= len(body):
        size = int.from_bytes(body[at : at + 4], "little")
        at += 4
        if not size:
            break
        parts.append(body[at : at + size])
        at += size
    return b"".join(parts), at


def _done_status(data: bytes) -> int:
    """Status of the DONE, DONEPROC or DONEINPROC token that a response ends with; -1 if there is none."""
    if len(data) >= 13 and data[-13] in (0xFD, 0xFE) and not data[-12] & 1 and data[-11] <= 1:
        return data[-12] | data[-11] << 8
    return -1


def _error_number(data: bytes) -> str:
    """Number of the first ERROR token, found by the lengths inside it, which have to agree."""
    at = data.find(b"\xaa")
    while at >= 0:
        size = int.from_bytes(data[at + 1 : at + 3], "little")
        text = int.from_bytes(data[at + 9 : at + 11], "little")
        server = at + 11 + 2 * text
        if server < len(data) and size >= 16:
            procedure = server + 1 + 2 * data[server]
            if procedure < len(data) and at + 3 + size == procedure + 1 + 2 * data[procedure] + 4:
                return str(int.from_bytes(data[at + 3 : at + 7], "little"))
        at = data.find(b"\xaa", at + 1)
    return ""
