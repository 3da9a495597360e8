"""MySQL and MariaDB: one operation a statement, from its command to the last packet of its result.

Receives the segments of one connection.  Hands on operations of COM_QUERY and COM_STMT_EXECUTE (and of commands that
failed to prepare); the housekeeping commands (ping, close, statistics ...) give none.  Names a connection that goes on
in TLS or compressed, and reads it no further; what is asked on a compressed one is counted as lost.

Source: https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html and
https://mariadb.com/kb/en/clientserver-protocol/
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

KEEP_BYTES: Final = 8192
CONTINUED: Final = 0xFFFFFF
"""Payload length of a packet that the next one carries on."""

CLIENT_CONNECT_WITH_DB: Final = 1 << 3
CLIENT_COMPRESS: Final = 1 << 5
CLIENT_SSL: Final = 1 << 11
CLIENT_SECURE_CONNECTION: Final = 1 << 15
CLIENT_LENENC_AUTH: Final = 1 << 21
CLIENT_ZSTD: Final = 1 << 26
CLIENT_QUERY_ATTRIBUTES: Final = 1 << 27
STATUS_MORE_RESULTS: Final = 0x0008
STATUS_NO_BACKSLASH: Final = 0x0200

_QUIT, _INIT_DB, _QUERY, _FIELD_LIST, _STATISTICS, _CHANGE_USER = 0x01, 0x02, 0x03, 0x04, 0x09, 0x11
_PREPARE, _EXECUTE, _LONG_DATA, _CLOSE, _RESET, _FETCH, _BULK = 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1C, 0xFA
_DUMPS: Final = frozenset({0x12, 0x1E})
_COMMANDS: Final = frozenset(range(0x20)) | {0xFA, 0xFE}
_NO_REPLY: Final = frozenset({_QUIT, _LONG_DATA, _CLOSE})
_LAST_PREPARED: Final = 0xFFFFFFFF

# What the next packet of a response is.
_FIRST, _COLUMNS, _AFTER_COLUMNS, _ROWS, _PREPARED, _FILE = range(6)


def _length(data: bytes | bytearray, position: int) -> int:
    return 4 + (data[position] | data[position + 1] << 8 | data[position + 2] << 16)


def _lenenc(data: bytes, position: int) -> tuple[int, int]:
    """A length-encoded integer and the position behind it; -1 if it is cut or none."""
    if position >= len(data):
        return -1, position
    first = data[position]
    if first < 0xFB:
        return first, position + 1
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    if not size or position + 1 + size > len(data):
        return -1, position
    return int.from_bytes(data[position + 1 : position + 1 + size], "little"), position + 1 + size


def _error(payload: bytes) -> tuple[str, str]:
    """Code and SQLSTATE of an ERR packet."""
    code = int.from_bytes(payload[1:3], "little")
    state = payload[4:9] if payload[3:4] == b"#" else b""
    return str(code), state.decode("ascii", "replace") if len(state) == 5 and state.isalnum() else "HY000"


class MysqlParser(Connection):
    """One connection."""

    def __init__(self, role: int, options: Options) -> None:
        super().__init__(role, options)
        self._requests = Frames(4, _length, KEEP_BYTES)
        self._responses = Frames(4, _length, 512)
        self._system = "mysql"
        self._sql = options.statements("mysql")
        self._database = ""
        self._authenticating = False
        self._greeted = False
        self._offered = -1  # capabilities of the server; all while its greeting is not known
        self._capabilities = -1
        self._compress = False
        self._statements: OrderedDict[int, tuple[Statement, ...]] = OrderedDict()
        self._last_prepared: tuple[Statement, ...] = ()
        self._queue: deque[Pending] = deque()
        self._state = _FIRST
        self._left = 0  # packets until the state changes
        self._continued = {True: False, False: False}
        self._last_response_ns = 0
        self._first = True

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`."""
        out: list[Operation] = []
        if not self._responses.synced:
            self._abandon()
        for pending in self._queue:
            if pending.kind in ("query", "execute"):
                self._emit(out, pending, mono_ns, "", error or ERROR_OTHER)
        self._queue.clear()
        return out

    def _noted(self, segment: Segment) -> list[Operation]:
        # A compressed packet begins with its length (3 bytes) and a number that is 0 for a new command.
        head = segment.head
        if self.note == "compressed" and segment.from_client and head[3:4] == b"\0":
            self._lost += head[4:12] != b"\0\0\0\1\0\0\0\1"  # COM_QUIT is too short to be compressed
        return []

    def _waiting(self) -> bool:
        return bool(self._queue)

    def _unasked(self) -> bool:
        return self._authenticating

    # requests

    def _request(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        if not self._responses.synced and self._queue and self._queue[0].response_ns:
            self._abandon()
        for message in self._requests.feed(segment):
            if message is not None:
                self._packet(message, segment)
            if self.note:
                break
        if not self._requests.synced:
            # The next call begins with a packet: nothing is sent before the response is read.
            self._requests.restart()
        return out

    def _abandon(self) -> None:
        """A new command ends the response before it, whose end was not captured."""
        self._lost += sum(p.kind in ("query", "execute") for p in self._queue)
        self._queue.clear()
        self._responses.restart()
        self._state = _FIRST

    def _packet(self, message: tuple[bytes, int, int], segment: Segment) -> None:
        data, total, start_ns = message
        continued, self._continued[True] = self._continued[True], total - 4 == CONTINUED
        if self._authenticating:
            self._login(data, total)
            return
        if continued or len(data) < 5 or data[3] != 0 or data[4] not in _COMMANDS:
            return
        self._settled = True
        command = data[4]
        if command in _NO_REPLY:
            if command == _CLOSE:
                self._statements.pop(int.from_bytes(data[5:9], "little"), None)
            return
        if command in _DUMPS:
            self.note = "replication"
            return
        if command == _QUERY:
            pending = Pending(
                "query", segment, start_ns, total, self._sql.describe(self._query_text(data), cut=len(data) < total)
            )
            pending.value = self._used(data, pending.statements)
        elif command == _PREPARE:
            statements = self._sql.describe(data[5:], cut=len(data) < total)
            self._last_prepared = statements
            pending = Pending("prepare", segment, start_ns, total, statements)
        elif command in (_EXECUTE, _BULK, _FETCH):
            pending = self._execution(command, data, total, segment, start_ns)
        elif command == _INIT_DB:
            pending = Pending("command", segment, start_ns, total, (), name_of(data[5:]))
        elif command == _CHANGE_USER:
            self._change_user(data)
            pending = Pending("command", segment, start_ns, total)
        else:
            pending = Pending(
                "statistics" if command in (_STATISTICS, _FIELD_LIST) else "command", segment, start_ns, total
            )
            pending.value = None
            if command == _FIELD_LIST:
                pending.kind = "fields"
        if len(self._queue) >= MAX_PENDING:
            self._abandon()
        if not self._queue:
            self._state = _FIRST
            if not self._responses.between:
                self._responses.restart()
        self._queue.append(pending)

    def _execution(self, command: int, data: bytes, total: int, segment: Segment, start_ns: int) -> Pending:
        number = int.from_bytes(data[5:9], "little")
        statements = self._last_prepared if number == _LAST_PREPARED else self._statements.get(number, ())
        if number in self._statements:
            self._statements.move_to_end(number)
        if command == _FETCH and statements:
            first = statements[0]
            statements = (Statement(first.text, "FETCH", first.collection, f"FETCH {first.collection}".rstrip()),)
        return Pending("fetch" if command == _FETCH else "execute", segment, start_ns, total, statements)

    def _query_text(self, data: bytes) -> bytes:
        """The text of COM_QUERY, behind the attributes that MySQL 8 may put before it."""
        known = self._capabilities >= 0
        if (known and not self._capabilities & CLIENT_QUERY_ATTRIBUTES) or (not known and data[5:7] != b"\0\1"):
            return data[5:]
        count, position = _lenenc(data, 5)
        if count == 0:
            return data[position + 1 :]
        return b""  # attributes with values: not taken apart

    def _used(self, data: bytes, statements: tuple[Statement, ...]) -> object:
        """The database that ``USE name`` asks for: an identifier, no literal."""
        if len(statements) == 1 and statements[0].operation == "USE":
            words = statements[0].text.split(None, 1)
            return words[1].strip("` ") if len(words) == 2 else None
        return None

    def _change_user(self, data: bytes) -> None:
        _user, position = until_nul(data, 5)
        if position < len(data):
            position += 1 + data[position]
            database, _ = until_nul(data, position)
            self._database = name_of(database)
        self._statements.clear()

    def _login(self, data: bytes, total: int) -> None:
        """HandshakeResponse41 or SSLRequest.  The user and what proves them are stepped over."""
        if self._capabilities >= 0 or len(data) < 12:
            return  # a later step of the authentication
        capabilities = int.from_bytes(data[4:8], "little")
        if capabilities & CLIENT_SSL and total == 36:
            self.note = "tls"
            return
        self._capabilities = capabilities & self._offered  # a client may ask for what the server has not
        self._compress = bool(self._capabilities & (CLIENT_COMPRESS | CLIENT_ZSTD))
        _user, position = until_nul(data, 36)
        if capabilities & CLIENT_LENENC_AUTH:
            size, position = _lenenc(data, position)
            position += max(size, 0)
        elif capabilities & CLIENT_SECURE_CONNECTION and position < len(data):
            position += 1 + data[position]
        else:
            _secret, position = until_nul(data, position)
        if capabilities & CLIENT_CONNECT_WITH_DB and position < len(data):
            database, _ = until_nul(data, position)
            self._database = name_of(database)

    # responses

    def _response(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        for message in self._responses.feed(segment):
            if message is None:
                continue
            data, total, _start_ns = message
            continued, self._continued[False] = self._continued[False], total - 4 == CONTINUED
            if len(data) < 5 or continued:
                continue
            if not self._greeted and not self._settled and data[3] == 0 and data[4] in (0x0A, 0xFF):
                self._greet(data)
            elif self._authenticating:
                self._authenticated(data)
                if self.note:
                    return out
            else:
                self._answer(out, data, total, segment)
        if self._queue:
            self._last_response_ns = segment.mono_ns
            current = self._queue[0]
            if not current.response_ns:
                current.response_ns = segment.mono_ns
            if not self._responses.synced:
                self._resync(out, segment)
        return out

    def _greet(self, data: bytes) -> None:
        self._greeted = True
        if data[4] == 0xFF:  # too many connections, host blocked
            return
        version, position = until_nul(data, 5)
        if b"MariaDB" in version:
            self._system = "mariadb"
        low, high = data[position + 13 : position + 15], data[position + 18 : position + 20]
        if len(low) == len(high) == 2:  # around the character set and the status
            self._offered = int.from_bytes(low + high, "little")
        self._authenticating = True

    def _authenticated(self, data: bytes) -> None:
        if data[4] in (0x00, 0xFF):
            self._authenticating = False
            self._settled = True
            if self._compress and data[4] == 0x00:
                self.note = "compressed"

    def _answer(self, out: list[Operation], data: bytes, total: int, segment: Segment) -> None:
        if not self._queue:
            return
        current = self._queue[0]
        current.response_bytes += total
        if not current.response_ns:
            current.response_ns = segment.mono_ns
        payload = data[4:]
        size = total - 4
        kind = payload[0]
        state = self._state
        if kind == 0xFF and state != _COLUMNS and size >= 3:
            self._finish(out, current, segment.mono_ns, error=_error(payload))
        elif state == _FIRST:
            self._first_packet(out, current, payload, size, segment.mono_ns)
        elif state == _COLUMNS:
            self._left -= 1
            if self._left <= 0:
                self._state = _AFTER_COLUMNS
        elif state == _AFTER_COLUMNS:
            self._state = _ROWS
            if kind == 0xFE and size == 5:  # the EOF packet of the old form
                if int.from_bytes(payload[3:5], "little") & 0x40:  # a cursor: rows come with COM_STMT_FETCH
                    self._finish(out, current, segment.mono_ns)
                return
            self._row(out, current, payload, size, segment.mono_ns)
        elif state == _ROWS:
            self._row(out, current, payload, size, segment.mono_ns)
        elif state == _PREPARED:
            self._left -= 1
            if self._left <= 0:
                self._done(current)
        # _FILE: nothing but OK or ERR may come; OK is taken by the first-packet rule below

    def _first_packet(self, out: list[Operation], current: Pending, payload: bytes, size: int, mono_ns: int) -> None:
        kind = payload[0]
        if current.kind == "statistics":
            self._done(current)
        elif current.kind == "fields":
            if kind == 0xFE:
                self._done(current)
        elif current.kind == "fetch":
            self._state = _ROWS
            self._row(out, current, payload, size, mono_ns)
        elif kind == 0x00 and current.kind == "prepare":
            self._prepared(current, payload)
        elif kind == 0x00 and size >= 5:
            self._finish(out, current, mono_ns, status=self._ok_status(payload))
        elif kind == 0xFE:  # authentication goes on after COM_CHANGE_USER
            return
        elif kind == 0xFB:
            return  # the client sends a file; OK or ERR follows
        else:
            count, position = _lenenc(payload, 0)
            if count <= 0:
                return
            self._state, self._left = _COLUMNS, count
            if position + 1 == size and payload[position : position + 1] == b"\0":  # MariaDB: columns as before
                self._state = _AFTER_COLUMNS

    def _row(self, out: list[Operation], current: Pending, payload: bytes, size: int, mono_ns: int) -> None:
        """A row, or the packet that ends the rows: EOF (5 bytes), or OK with the header of EOF."""
        if payload[0] != 0xFE or size >= CONTINUED:
            return
        if size == 5:
            status = int.from_bytes(payload[3:5], "little")
        elif size < 7 or (status := self._ok_status(payload)) < 0:
            return
        self._finish(out, current, mono_ns, status=status)

    def _ok_status(self, payload: bytes) -> int:
        """Status flags of an OK packet; -1 if it is none."""
        affected, position = _lenenc(payload, 1)
        _last, position = _lenenc(payload, position)
        if affected < 0 or position + 2 > len(payload):
            return -1
        return int.from_bytes(payload[position : position + 2], "little")

    def _prepared(self, current: Pending, payload: bytes) -> None:
        number = int.from_bytes(payload[1:5], "little")
        if len(self._statements) >= self.options.prepared_statements:
            self._statements.popitem(last=False)
        self._statements[number] = current.statements
        columns = int.from_bytes(payload[5:7], "little")
        parameters = int.from_bytes(payload[7:9], "little")
        deprecate_eof = self._capabilities >= 0 and bool(self._capabilities & (1 << 24))
        self._left = columns + parameters
        if not deprecate_eof:
            self._left += (columns > 0) + (parameters > 0)
        if self._left:
            self._state = _PREPARED
        else:
            self._done(current)

    def _finish(
        self,
        out: list[Operation],
        current: Pending,
        mono_ns: int,
        *,
        status: int = 0,
        error: tuple[str, str] | None = None,
    ) -> None:
        """A result is over; with it the command, unless more results follow."""
        if error is None and status >= 0:
            self._sql = self.options.statements("mysql-plain" if status & STATUS_NO_BACKSLASH else "mysql")
        more = error is None and bool(status & STATUS_MORE_RESULTS) and status >= 0
        several = len(current.statements) > 1 and not any(s.operation == "CALL" for s in current.statements)
        self._state = _FIRST
        if more and not several:
            return  # results of one procedure
        code, state = error or ("", "")
        if current.kind in ("query", "execute", "fetch") or (current.kind == "prepare" and error):
            self._emit(out, current, mono_ns, code, state)
        if not error and isinstance(current.value, str):
            self._database = current.value
        current.index += 1
        current.response_bytes = 0
        if not more:
            self._done(current)

    def _done(self, current: Pending) -> None:
        self._state = _FIRST
        if self._queue and self._queue[0] is current:
            self._queue.popleft()

    def _resync(self, out: list[Operation], segment: Segment) -> None:
        """After a gap in the rows: the packet that ends them is the last of the segment."""
        end = segment.tail or segment.head
        status = -1
        if end[-9:-6] == b"\5\0\0" and end[-5:-4] == b"\xfe":
            status = int.from_bytes(end[-2:], "little")
        elif end[-11:-8] == b"\7\0\0" and end[-7:-4] == b"\xfe\0\0":
            status = int.from_bytes(end[-4:-2], "little")
        if status < 0 or status & STATUS_MORE_RESULTS or status & 0x8000:
            return
        self._responses.restart()
        if len(self._queue) > 1:
            self._abandon()
            return
        current = self._queue[0]
        skipped = max(len(current.statements) - 1 - current.index, 0)
        self._lost += skipped
        current.index += skipped
        current.response_bytes = -1
        self._finish(out, current, segment.mono_ns, status=status)

    def _emit(self, out: list[Operation], current: Pending, end_ns: int, code: str, error: str) -> None:
        statements = current.statements
        statement = statements[min(current.index, len(statements) - 1)] if statements else NOTHING
        name, dims = self.options.sql_dims(self._system, statement, self._database, code, error)
        varying = {semconv.DB_QUERY_TEXT: statement.text} if self.options.query_text and statement.text else NO_VARYING
        out.append(current.operation(name, dims, varying, end_ns, error))
