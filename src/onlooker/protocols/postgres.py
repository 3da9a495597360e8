"""PostgreSQL, protocol 3: one operation an executed statement, from its request to CommandComplete or ErrorResponse.

Receives the segments of one connection.  Hands on operations with the shape of their statement; Parse is remembered,
and Bind and Execute are joined to it.  Declares as lost the executions whose end lies in bytes that were not captured.

Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from onlooker import semconv
from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import (
    ERROR_OTHER,
    MAX_PENDING,
    NO_VARYING,
    Connection,
    Frames,
    Options,
    Pending,
    name_of,
    until_nul,
)
from onlooker.protocols._sql import NOTHING, Statement

SYSTEM: Final = "postgresql"
KEEP_BYTES: Final = 8192
MAX_MESSAGE: Final = 1 << 30
IDLE_NS: Final = 50_000_000
"""After this much silence no answer is under way."""
MAX_PORTALS: Final = 256
MAX_STARTUP: Final = 10_000
"""As the server has it."""

_FRONTEND: Final = frozenset(b"QPBEDCSHXFpdcf")
_BACKEND: Final = frozenset(b"RKSZTDC12n3tEINAsGHWdcVv")
_CODE_TLS: Final = b"\x04\xd2\x16\x2f"
_CODE_GSS: Final = b"\x04\xd2\x16\x30"
_CODE_CANCEL: Final = b"\x04\xd2\x16\x2e"
_SYNC: Final = b"S\0\0\0\4"
_READY: Final = b"Z\0\0\0\5"

_EXECUTES: Final = frozenset({"execute", "query", "unknown", "function"})
_ENDS_GROUP: Final = frozenset({"sync", "query", "function"})
_STEP: Final = {ord("1"): "parse", ord("2"): "bind", ord("3"): "close"}


def _frontend_length(data: bytes | bytearray, position: int) -> int:
    length = int.from_bytes(data[position + 1 : position + 5], "big")
    return 1 + length if data[position] in _FRONTEND and 4 <= length < MAX_MESSAGE else -1


def _backend_length(data: bytes | bytearray, position: int) -> int:
    length = int.from_bytes(data[position + 1 : position + 5], "big")
    return 1 + length if data[position] in _BACKEND and 4 <= length < MAX_MESSAGE else -1


def _error_code(message: bytes) -> str:
    """SQLSTATE of an ErrorResponse."""
    position = 5
    while position < len(message) and message[position]:
        value, after = until_nul(message, position + 1)
        if message[position] == ord("C"):
            return value.decode("ascii", "replace") if len(value) == 5 and value.isalnum() else ERROR_OTHER
        position = after
    return ERROR_OTHER


class _Portal:
    __slots__ = ("executed", "statements")

    def __init__(self, statements: tuple[Statement, ...]) -> None:
        self.statements = statements
        self.executed = False


class PostgresParser(Connection):
    """One connection."""

    def __init__(self, role: int, options: Options) -> None:
        super().__init__(role, options)
        self._requests = Frames(5, _frontend_length, KEEP_BYTES, b"dc")
        self._responses = Frames(5, _backend_length, 1024, b"Dd")
        self._sql = options.statements("postgresql")
        self._database = ""
        self._starting = True
        self._hello = b""
        self._wants_tls = False
        self._statements: OrderedDict[bytes, tuple[Statement, ...]] = OrderedDict()
        self._portals: OrderedDict[bytes, _Portal] = OrderedDict()
        self._queue: deque[Pending] = deque()
        self._ambiguous = False  # a gap may hold the end of several executions
        self._skipping = False  # a step failed before its Sync was sent
        self._overlapped = False  # the client asks on before it is answered
        self._blind = False  # it did so across a gap: which answer is whose is not known until all is quiet
        self._last_response_ns = 0

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`."""
        out: list[Operation] = []
        if not self._responses.synced:
            self._give_up()  # answered or not: that was not captured
        for pending in self._queue:
            over = pending.kind == "query" and pending.index >= max(len(pending.statements), 1)
            if pending.kind in ("execute", "query", "function") and not pending.value and not over:
                statement = pending.statements[pending.index] if pending.index < len(pending.statements) else NOTHING
                self._emit(out, pending, statement, mono_ns, "", error or ERROR_OTHER)
        self._queue.clear()
        return out

    def _waiting(self) -> bool:
        return bool(self._queue)

    def _unasked(self) -> bool:
        return self._blind

    # requests

    def _request(self, segment: Segment) -> list[Operation]:
        skip = self._start(segment) if self._starting else 0
        if self.note or skip < 0:
            return []
        out: list[Operation] = []
        if self._queue or self._blind:
            self._look_back(segment)
        for message in self._requests.feed(segment, skip):
            if message is None:
                self._push(Pending("unknown", segment, segment.mono_ns, -1))
            else:
                self._ask(message, segment)
        if not self._requests.synced and (segment.tail or segment.head).endswith(_SYNC):
            self._push(Pending("sync", segment, segment.mono_ns, 5))
            self._requests.restart()
        return out

    def _look_back(self, segment: Segment) -> None:
        """The client asks on: decide what becomes of requests whose response, or part of it, was not captured."""
        idle = self._last_response_ns and segment.mono_ns - self._last_response_ns > IDLE_NS
        if idle and not any(p.request_end_ns > self._last_response_ns for p in self._queue):
            self._blind = self._overlapped = False
        if not self._responses.synced:
            self._give_up()
            self._blind = self._overlapped
        elif self._queue and self._requests.between:
            self._overlapped = True

    def _start(self, segment: Segment) -> int:
        """Handle the messages without a type; gives the bytes to skip, or -1 if all were used."""
        before = len(self._hello)
        hello = self._hello = self._hello + segment.head[: MAX_STARTUP - before]
        code = hello[4:8]
        length = int.from_bytes(hello[:4], "big")
        if hello[:2] == b"\x16\x03":
            self.note = "tls"
        elif hello[:2] not in (b"\0\0", b"\0", b""):
            self._starting = False
            self._settled = True
            return 0
        elif len(hello) < 8 or (
            code[:3] == b"\0\3\0" and len(hello) < length <= MAX_STARTUP and len(segment.head) == segment.length
        ):
            return self._skip_all(segment)  # more of it comes with the next transfer
        elif code in (_CODE_TLS, _CODE_GSS) and length == 8:
            self._wants_tls = True
            self._hello = b""
            return 8 - before if before + segment.length > 8 else self._skip_all(segment)
        elif code == _CODE_CANCEL:
            self.note = "cancel"
        elif code[:3] == b"\0\3\0" and 8 <= length <= MAX_STARTUP:
            self._starting = self._wants_tls = False
            self._hello = b""
            self._parameters(hello[8:length])
            return length - before if before + segment.length > length else self._skip_all(segment)
        elif hello:
            self._starting = False
        return self._skip_all(segment)

    def _skip_all(self, segment: Segment) -> int:
        self._requests.feed(segment, segment.length)
        return -1

    def _parameters(self, data: bytes) -> None:
        position = 0
        while position < len(data) and data[position]:
            key, position = until_nul(data, position)
            value, position = until_nul(data, position)
            if key == b"database":
                self._database = name_of(value)
            elif key == b"replication" and value.lower() not in (b"false", b"off", b"no", b"0"):
                self.note = "replication"

    def _push(self, pending: Pending) -> None:
        self._settled = True
        if self._skipping:
            if pending.kind != "sync":
                return  # the server skips all up to the next Sync
            self._skipping = False
        if self._blind:
            self._lost += pending.kind in _EXECUTES
            return
        if len(self._queue) >= MAX_PENDING:
            if self._queue.popleft().kind in _EXECUTES:
                self._lost += 1
            self._ambiguous = True
        self._queue.append(pending)

    def _ask(self, message: tuple[bytes, int, int], segment: Segment) -> None:
        data, total, start_ns = message
        kind = data[0]
        if kind == 0x51:  # Query
            text = data[5 : total - 1]
            self._push(Pending("query", segment, start_ns, total, self._sql.describe(text, cut=len(data) < total)))
        elif kind == 0x50:  # Parse
            name, position = until_nul(data, 5)
            text, _ = until_nul(data, position)
            statements = self._sql.describe(text, cut=len(data) < total)
            self._remember(name, statements)
            self._push(Pending("parse", segment, start_ns, total, statements))
        elif kind == 0x42:  # Bind
            portal, position = until_nul(data, 5)
            name, _ = until_nul(data, position)
            statements = self._statements.get(name, ())
            if statements:
                self._statements.move_to_end(name)
            if len(self._portals) >= MAX_PORTALS:
                self._portals.popitem(last=False)
            self._portals[portal] = _Portal(statements)
            self._push(Pending("bind", segment, start_ns, total, statements))
        elif kind == 0x44:  # Describe
            self._push(Pending("describe", segment, start_ns, total, self._described(data)))
        elif kind == 0x45:  # Execute
            name, _ = until_nul(data, 5)
            self._push(Pending("execute", segment, start_ns, total, self._executed(name)))
        elif kind == 0x43:  # Close
            name, _ = until_nul(data, 6)
            (self._statements if data[5:6] == b"S" else self._portals).pop(name, None)
            self._push(Pending("close", segment, start_ns, total))
        elif kind == 0x53:  # Sync
            self._push(Pending("sync", segment, start_ns, total))
        elif kind == 0x46:  # FunctionCall
            self._push(Pending("function", segment, start_ns, total, (_FUNCTION,)))

    def _remember(self, name: bytes, statements: tuple[Statement, ...]) -> None:
        if name in self._statements:
            self._statements.move_to_end(name)
        elif len(self._statements) >= self.options.prepared_statements:
            self._statements.popitem(last=False)
        self._statements[name] = statements

    def _described(self, data: bytes) -> tuple[Statement, ...]:
        name, _ = until_nul(data, 6)
        if data[5:6] == b"S":
            return self._statements.get(name, ())
        portal = self._portals.get(name)
        return portal.statements if portal else ()

    def _executed(self, name: bytes) -> tuple[Statement, ...]:
        portal = self._portals.get(name)
        if portal is None or not portal.statements:
            return ()
        if portal.executed:  # more rows of the same execution: a statement of its own would count it twice
            first = portal.statements[0]
            return (Statement(first.text, "FETCH", first.collection, f"FETCH {first.collection}".rstrip()),)
        portal.executed = True
        return portal.statements

    # responses

    def _response(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        self._last_response_ns = segment.mono_ns
        if self._starting and self._wants_tls:
            self._wants_tls = False
            if segment.head[:1] in (b"S", b"G") and segment.length == 1:
                self.note = "tls"
                return out
            if segment.length == 1:
                self._responses.feed(segment, 1)
                return out
        for message in self._responses.feed(segment):
            if message is None:
                self._gap()
            else:
                self._answer(out, message[0], message[1], segment)
                if self.note:
                    return out
        if not self._responses.synced:
            self._resync(out, segment)
        elif self._queue:
            current = self._queue[0]
            if not current.response_ns and not self._responses.between:
                current.response_ns = segment.mono_ns
        return out

    def _answer(self, out: list[Operation], data: bytes, total: int, segment: Segment) -> None:
        kind = data[0]
        if kind in b"ANKRv":
            return
        if kind == 0x53:  # ParameterStatus
            if data[5:] == b"standard_conforming_strings\0off\0":
                self._sql = self.options.statements("postgresql-escapes")
            return
        if kind == 0x57:  # CopyBothResponse
            self.note = "replication"
            self._queue.clear()
            return
        if self._queue:
            current = self._queue[0]
            current.response_bytes += total
            if not current.response_ns:
                current.response_ns = segment.mono_ns
        if kind == 0x43:  # CommandComplete
            self._complete(out, data, segment)
        elif kind == 0x5A:
            self._ready()
        elif kind == 0x45:
            self._fail(out, data, segment)
        elif kind in (0x73, 0x56, 0x49):  # PortalSuspended, FunctionCallResponse, EmptyQueryResponse
            self._complete(out, b"", segment, empty=kind == 0x49)
        elif self._queue:
            step = _STEP.get(kind)
            head = self._queue[0].kind
            if (step and head == step) or (kind in (0x54, 0x6E) and head == "describe"):
                self._queue.popleft()

    def _current(self) -> Pending | None:
        """The execution that a completion belongs to."""
        queue = self._queue
        while queue and queue[0].kind not in _EXECUTES:
            if queue[0].kind == "sync":
                return None
            queue.popleft()
        return queue[0] if queue else None

    def _complete(self, out: list[Operation], data: bytes, segment: Segment, *, empty: bool = False) -> None:
        if self._ambiguous:
            return
        current = self._current()
        if current is None:
            if not empty and not self._blind:
                self._lost += 1
            return
        if empty:
            if current.kind == "execute":
                self._queue.popleft()
            return
        statements, index = current.statements, current.index
        statement = statements[index] if index < len(statements) else _of_tag(data)
        self._emit(out, current, statement, segment.mono_ns, "", "")
        current.index += 1
        if current.kind == "execute":
            self._queue.popleft()
        else:
            current.response_bytes = 0

    def _fail(self, out: list[Operation], data: bytes, segment: Segment) -> None:
        if not self._queue or self._ambiguous:
            return
        code = _error_code(data)
        current = self._queue[0]
        if current.kind == "sync":
            # Deferred work of the implicit transaction failed: the commit that Sync makes.
            self._emit(out, current, _COMMIT, segment.mono_ns, code, code)
            return
        statement = current.statements[current.index] if current.index < len(current.statements) else NOTHING
        self._emit(out, current, statement, segment.mono_ns, code, code)
        if current.kind in ("query", "function"):
            current.value = True  # the statements behind it do not run
            return
        while self._queue and self._queue[0].kind not in _ENDS_GROUP:
            self._queue.popleft()
        self._skipping = not self._queue

    def _ready(self) -> None:
        """The end of a group: of a simple query, or of all up to a Sync; the first one ends the login."""
        self._settled = True
        self._ambiguous = self._ambiguous and sum(p.kind in _ENDS_GROUP for p in self._queue) > 1
        while self._queue:
            pending = self._queue.popleft()
            if pending.kind == "execute":
                self._lost += 1
            if pending.kind == "query" and not pending.value:
                # rules and empty statements complete less than was counted; nothing completed means unseen
                self._lost += 1 if pending.index == 0 and pending.statements else 0
            if pending.kind in _ENDS_GROUP:
                break

    def _gap(self) -> None:
        if self._executions() > 1:
            self._ambiguous = True

    def _executions(self) -> int:
        count = 0
        for pending in self._queue:
            if pending.kind in ("query", "function"):
                count += 0 if pending.value else max(1, len(pending.statements) - pending.index)
            elif pending.kind == "execute":
                count += 1
            elif pending.kind == "unknown":
                count += 2
        return count

    def _give_up(self) -> None:
        """Nothing of what waits can be told apart any more."""
        self._lost += sum(p.kind in _EXECUTES for p in self._queue)
        self._queue.clear()
        self._ambiguous = False

    def _resync(self, out: list[Operation], segment: Segment) -> None:
        """After a gap: a segment that ends with ReadyForQuery ends a group."""
        end = segment.tail or segment.head
        if end[-6:-1] != _READY or end[-1] not in b"ITE":
            if self._queue and not self._queue[0].response_ns:
                self._queue[0].response_ns = segment.mono_ns
            return
        self._responses.restart()
        before = end[:-6]
        last = self._last_execution()
        ends = sum(p.kind in _ENDS_GROUP for p in self._queue)
        if last is not None and ends == 1:
            data = _message_at_end(before, b"C")
            error = b"" if data else _message_at_end(before, b"E")
            if data and last.kind != "unknown":
                index = max(len(last.statements) - 1, 0)
                self._lost += max(index - last.index, 0)
                statement = last.statements[index] if last.statements else _of_tag(data)
                last.response_ns = last.response_ns or segment.mono_ns
                last.response_bytes = -1
                self._emit(out, last, statement, segment.mono_ns, "", "")
                self._forget(last)
            elif error and self._executions() == 1:
                code = _error_code(error)
                statement = last.statements[last.index] if last.index < len(last.statements) else NOTHING
                last.response_ns = last.response_ns or segment.mono_ns
                last.response_bytes = -1
                self._emit(out, last, statement, segment.mono_ns, code, code)
                self._forget(last)
            self._lost += sum(
                p.kind in ("execute", "unknown") or (p.kind == "query" and not p.value) for p in self._queue
            )
            self._queue.clear()
            self._ambiguous = False
        elif ends > 1:
            self._ambiguous = True  # which of the groups ended is not known
            self._responses.synced = False
        else:
            self._ready()

    def _last_execution(self) -> Pending | None:
        return next((p for p in reversed(self._queue) if p.kind in _EXECUTES and not p.value), None)

    def _forget(self, pending: Pending) -> None:
        if pending.kind == "execute":
            self._queue.remove(pending)
        else:
            pending.value = True

    def _emit(
        self, out: list[Operation], pending: Pending, statement: Statement, end_ns: int, code: str, error: str
    ) -> None:
        name, dims = self.options.sql_dims(SYSTEM, statement, self._database, code, error)
        varying = {semconv.DB_QUERY_TEXT: statement.text} if self.options.query_text and statement.text else NO_VARYING
        out.append(pending.operation(name, dims, varying, end_ns, error))


_FUNCTION: Final = Statement("", "CALL", "", "CALL")
_COMMIT: Final = Statement("", "COMMIT", "", "COMMIT")


def _of_tag(data: bytes) -> Statement:
    """What a command tag tells of a statement whose text was not seen: ``INSERT 0 1`` is an INSERT."""
    tag = data[5:]
    word = tag.split(b" ", 1)[0].rstrip(b"\0").decode("ascii", "replace")
    if not (tag.endswith(b"\0") or b" " in tag) or not word.isalpha() or not word.isupper() or len(word) > 32:
        return NOTHING
    return Statement("", word, "", word)


def _message_at_end(data: bytes, kind: bytes) -> bytes:
    """The message of this kind that ends exactly where ``data`` ends."""
    position = len(data)
    while (position := data.rfind(kind, 0, position)) >= 0:
        if int.from_bytes(data[position + 1 : position + 5], "big") + 1 == len(data) - position >= 6:
            return data[position:]
    return b""
