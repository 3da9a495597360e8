"""MongoDB: one operation a command, matched to replies by request id.

Receives the segments of one connection: OP_MSG, and the legacy OP_QUERY and OP_REPLY that drivers greet with.  Of a
document only what names the command, its collection and its outcome is read.  A compressed command is named as such.

Source: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/, https://bsonspec.org/spec.html
"""

# ruff: noqa: SIM905  # words in a text read better than a list of a hundred quoted ones
from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, cast

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

SYSTEM: Final = "mongodb"
KEEP_BYTES: Final = 8192
MAX_MESSAGE: Final = 1 << 27
MAX_FIELDS: Final = 64

_REPLY, _UPDATE, _INSERT, _QUERY, _GET_MORE, _DELETE, _KILL, _COMPRESSED, _MSG = (
    1,
    2001,
    2002,
    2004,
    2005,
    2006,
    2007,
    2012,
    2013,
)
_CODES: Final = frozenset({_REPLY, _UPDATE, _INSERT, _QUERY, _GET_MORE, _DELETE, _KILL, _COMPRESSED, _MSG})
_LEGACY_WRITES: Final = {_UPDATE: "update", _INSERT: "insert", _DELETE: "delete"}
MORE_TO_COME: Final = 1 << 1
EXHAUST_ALLOWED: Final = 1 << 16

_WITH_COLLECTION: Final = frozenset(
    """aggregate clone collMod collStats compact convertToCapped count create createIndexes delete deleteIndexes
    distinct drop dropIndexes find findAndModify findandmodify insert listIndexes mapReduce mapreduce reIndex
    update validate createSearchIndexes dropSearchIndex updateSearchIndex analyze""".split()
)
"""Commands whose own value is the name of a collection.  Of others (createUser, say) it is something else."""
_NAME: Final = re.compile(r"[A-Za-z_]\w{0,47}\Z")
_HELLO: Final = frozenset({"hello", "isMaster", "ismaster"})


def _length(data: bytes | bytearray, position: int) -> int:
    total = int.from_bytes(data[position : position + 4], "little")
    code = int.from_bytes(data[position + 12 : position + 16], "little")
    return total if 16 <= total < MAX_MESSAGE and code in _CODES else -1


_FIXED: Final = {
    0x01: 8,
    0x06: 0,
    0x07: 12,
    0x08: 1,
    0x09: 8,
    0x0A: 0,
    0x10: 4,
    0x11: 8,
    0x12: 8,
    0x13: 16,
    0x7F: 0,
    0xFF: 0,
}


def _fields(data: bytes, position: int) -> Iterator[tuple[int, bytes, int, int]]:
    """Type, key, start and end of the value of each captured field of the document at ``position``."""
    size = len(data)
    if position + 4 > size:
        return
    limit = min(size, position + int.from_bytes(data[position : position + 4], "little"))
    position += 4
    for _ in range(MAX_FIELDS):
        if position >= limit or data[position] == 0:
            return
        kind = data[position]
        end = data.find(b"\0", position + 1, min(limit, position + 258))
        if end < 0:
            return
        key, start = data[position + 1 : end], end + 1
        length = _FIXED.get(kind, -1)
        if length < 0:
            number = int.from_bytes(data[start : start + 4], "little")
            if kind in (0x02, 0x0D, 0x0E):
                length = 4 + number
            elif kind in (0x03, 0x04, 0x0F):
                length = number
            elif kind == 0x05:
                length = 5 + number
            elif kind == 0x0C:
                length = 16 + number
            else:  # a regular expression: two strings
                middle = data.find(b"\0", start, limit)
                last = data.find(b"\0", middle + 1, limit) if middle >= 0 else -1
                if kind != 0x0B or last < 0:
                    return
                length = last + 1 - start
        yield kind, key, start, start + length
        position = start + length


def _text(data: bytes, start: int, end: int) -> str:
    return name_of(data[start + 4 : end - 1]) if end <= len(data) else ""


def _value(data: bytes, kind: int, start: int, end: int) -> float:
    """A number or a truth; NaN-free: 0 if it is none or was cut."""
    if end > len(data):
        return 0.0
    if kind == 0x01:
        return float(struct.unpack_from("<d", data, start)[0])
    if kind in (0x10, 0x12):
        return float(int.from_bytes(data[start:end], "little", signed=True))
    return float(kind == 0x08 and data[start] != 0)


class MongodbParser(Connection):
    """One connection."""

    def __init__(self, role: int, options: Options) -> None:
        super().__init__(role, options)
        self._requests = Frames(16, _length, KEEP_BYTES)
        self._responses = Frames(16, _length, KEEP_BYTES)
        self._open: OrderedDict[int, Pending] = OrderedDict()

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`."""
        out: list[Operation] = []
        if not self._responses.synced:
            self._lost += len(self._open)  # answered or not: that was not captured
            self._open.clear()
        for pending in self._open.values():
            self._emit(out, pending, mono_ns, "", error or ERROR_OTHER)
        self._open.clear()
        return out

    def _waiting(self) -> bool:
        return bool(self._open)

    def _request(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        self._settled = True
        for message in self._requests.feed(segment):
            if message is None:
                self._lost += 1
            elif len(message[0]) >= 16:
                self._command(out, message, segment)
        if not self._requests.synced and not segment.tail:
            self._requests.restart()  # writes begin with a message
            self._lost += not segment.head
        return out

    def _command(self, out: list[Operation], message: tuple[bytes, int, int], segment: Segment) -> None:
        data, total, start_ns = message
        number = int.from_bytes(data[4:8], "little")
        code = int.from_bytes(data[12:16], "little")
        expects = True
        stream = False
        command, collection, database = "", "", ""
        if code == _MSG:
            flags = int.from_bytes(data[16:20], "little")
            expects = not flags & MORE_TO_COME
            document = _body(data, 20)
            if document < 0:
                command = ""
            else:
                command, collection, database = _describe(data, document)
            stream = bool(flags & EXHAUST_ALLOWED) and command in _HELLO
        elif code == _QUERY:
            full, position = until_nul(data, 20)
            database, _, collection = name_of(full).partition(".")
            command = "find"
            if collection == "$cmd":
                command, collection, _ = _describe(data, position + 8)
        elif code == _GET_MORE:
            database, _, collection = name_of(until_nul(data, 20)[0]).partition(".")
            command = "getMore"
        elif code in _LEGACY_WRITES:
            database, _, collection = name_of(until_nul(data, 20)[0]).partition(".")
            command, expects = _LEGACY_WRITES[code], False
        elif code == _KILL:
            command, expects = "killCursors", False
        elif code == _COMPRESSED:
            command = "OP_COMPRESSED"
        else:
            return
        pending = Pending(command, segment, start_ns, total, value=(collection, database, stream))
        if not expects:
            self._emit(out, pending, segment.mono_ns, "", "")
            return
        if len(self._open) >= MAX_PENDING:
            self._open.popitem(last=False)
            self._lost += 1
        self._open[number] = pending

    def _response(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        for message in self._responses.feed(segment):
            # replies inside a gap are not known: what waits for them stays open until the connection ends
            if message is not None and len(message[0]) >= 16:
                self._reply(out, message[0], message[1], segment, message[2])
        return out

    def _reply(self, out: list[Operation], data: bytes, total: int, segment: Segment, start_ns: int) -> None:
        pending = self._open.pop(int.from_bytes(data[8:12], "little"), None)
        if pending is None:
            return  # a further reply of an exhausted cursor or stream, or one to a request before our time
        pending.response_ns = start_ns
        pending.response_bytes = total
        code = int.from_bytes(data[12:16], "little")
        known, status, error = True, "", ""
        if code == _MSG:
            document = _body(data, 20)
            if document >= 0:
                known, status, error = _outcome(data, document, len(data) == total)
        elif code == _REPLY and len(data) >= 36:
            flags = int.from_bytes(data[16:20], "little")
            known, status, error = _outcome(data, 36, len(data) == total)
            if flags & 2:
                error = error or ERROR_OTHER
        elif code == _COMPRESSED:
            known = True  # whether it failed is inside the compressed part: neither success nor failure is claimed
        if not known:
            self._lost += 1
            return
        self._emit(out, pending, segment.mono_ns, status, error)

    def _emit(self, out: list[Operation], pending: Pending, end_ns: int, status: str, error: str) -> None:
        collection, database, stream = cast("tuple[str, str, bool]", pending.value)
        name, dims = self.options.store_dims(SYSTEM, pending.kind or "command", collection, database, status, error)
        varying = {semconv.DB_QUERY_TEXT: name} if self.options.query_text else NO_VARYING
        out.append(pending.operation(name, dims, varying, end_ns, error, stream=stream))


def _body(data: bytes, position: int) -> int:
    """Where the body section of an OP_MSG begins; -1 if it was not captured."""
    for _ in range(8):
        if position >= len(data):
            return -1
        if data[position] == 0:
            return position + 1
        if data[position] != 1:
            return -1
        position += 1 + max(int.from_bytes(data[position + 1 : position + 5], "little"), 4)
    return -1


def _describe(data: bytes, document: int) -> tuple[str, str, str]:
    """Command, collection and database."""
    command = collection = database = ""
    for kind, key, start, end in _fields(data, document):
        if not command:
            command = key.decode("ascii", "replace")
            if command == "$query":  # OP_QUERY may wrap its command
                return _describe(data, start)
            if not _NAME.match(command):
                command = "command"
            if kind == 0x02 and command in _WITH_COLLECTION:
                collection = _text(data, start, end)
        elif key == b"$db" and kind == 0x02:
            database = _text(data, start, end)
        elif key == b"collection" and kind == 0x02 and command == "getMore":
            collection = _text(data, start, end)
    return command, collection, database


def _outcome(data: bytes, document: int, whole: bool) -> tuple[bool, str, str]:
    """Whether the outcome was captured, then code and `error.type`."""
    code = name = ""
    failed = False
    known = False
    first = b""
    for kind, key, start, end in _fields(data, document):
        first = first or key
        if key == b"ok":
            known = end <= len(data)
            failed = failed or (known and _value(data, kind, start, end) == 0)
        elif key == b"code":
            code = str(int(_value(data, kind, start, end)))
        elif key == b"codeName" and kind == 0x02:
            name = _text(data, start, end)
        elif key == b"writeErrors" and kind == 0x04:
            code = _write_error(data, start)
            failed = True
    if failed:
        return True, code, (name if _NAME.match(name) else "") or code or ERROR_OTHER
    # A failure begins with ``ok``, and never with a cursor: a large reply that was cut is a success.
    return known or first == b"cursor" or (not whole and first in (b"values", b"value")), "", ""


def _write_error(data: bytes, array: int) -> str:
    for _kind, _key, start, _end in _fields(data, array):
        for kind, key, at, end in _fields(data, start):
            if key == b"code":
                return str(int(_value(data, kind, at, end)))
        break
    return ""
