"""Packets built by hand; `golden/tds` has a real driver (against a scripted peer: no registry has a server)."""

from __future__ import annotations

import struct

from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.tds import TdsParser

HEADERS = struct.pack("<IIHQI", 22, 18, 2, 0, 1)


def packets(kind: int, body: bytes, size: int = 4096) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    last = len(parts) - 1
    return b"".join(struct.pack(">BBHHBB", kind, n == last, 8 + len(p), 0, n & 255, 0) + p for n, p in enumerate(parts))


def wide(text: str) -> bytes:
    return text.encode("utf-16-le")


def done(status: int = 0x10, token: int = 0xFD) -> bytes:
    return struct.pack("<BHHQ", token, status, 0xC1, 1)


def nvarchar(text: str) -> bytes:
    return b"\0\0\xe7" + struct.pack("<H", 8000) + b"\0" * 5 + struct.pack("<H", 2 * len(text)) + wide(text)


def handle(number: int, status: int = 0) -> bytes:
    return b"\0" + bytes([status]) + b"\x26\4" + (b"\4" + struct.pack("<i", number) if number else b"\0")


def call(procedure: int, *parameters: bytes) -> bytes:
    return packets(3, HEADERS + struct.pack("<HHH", 0xFFFF, procedure, 0) + b"".join(parameters))


def error(number: int) -> bytes:
    text = wide("marker")
    body = struct.pack("<IBBH", number, 1, 16, 6) + text + b"\0\0" + struct.pack("<I", 1)
    return b"\xaa" + struct.pack("<H", len(body)) + body


class Wire:
    def __init__(self) -> None:
        self.parser = TdsParser(3, Options(query_text=True))
        self.now = 0
        self.offset = {True: 0, False: 0}

    def move(self, client: bool, data: bytes, head: int | None = None, tail: int = 0) -> list[Operation]:
        self.now += 1000
        kept = len(data) if head is None else head
        segment = Segment(client, client, self.now, self.offset[client], len(data), data[:kept])
        if kept < len(data) and tail:
            segment.tail = data[-tail:]
        self.offset[client] += len(data)
        return self.parser.feed(segment)


def test_batches_and_errors() -> None:
    wire = Wire()
    wire.move(True, packets(1, HEADERS + wide("SELECT a FROM [dbo].[orders] WHERE b = N'marker'")))
    (operation,) = wire.move(False, packets(4, done()))
    assert operation.name == "SELECT dbo.orders"
    assert "marker" not in repr(operation)
    wire.move(True, packets(1, HEADERS + wide("SELECT a FROM nowhere")))
    (failed,) = wire.move(False, packets(4, error(208) + done(2)))
    assert (failed.error, failed.dims["db.response.status_code"]) == ("208", "208")


def test_prepared_handles() -> None:
    wire = Wire()
    wire.move(True, call(13, handle(0, 1), nvarchar("@p int"), nvarchar("SELECT a FROM t WHERE b = @p"), handle(5)))
    value = b"\xac\0\0\0\1\0\0\0\0\0\0\x26\4\4" + struct.pack("<i", 42)
    answer = done(0x11, 0xFF) + b"\x79\0\0\0\0" + value + done(0, 0xFE)
    assert [o.name for o in wire.move(False, packets(4, answer))] == ["SELECT t"]
    wire.move(True, call(12, handle(42), handle(6)))
    assert [o.name for o in wire.move(False, packets(4, done(0, 0xFE)))] == ["SELECT t"]
    wire.move(True, call(15, handle(42)))
    assert wire.move(False, packets(4, done(0, 0xFE))) == []
    wire.move(True, call(12, handle(42)))
    assert [o.name for o in wire.move(False, packets(4, done(0, 0xFE)))] == ["EXEC sp_execute"]


def test_a_result_of_many_packets_with_gaps() -> None:
    wire = Wire()
    wire.move(True, packets(1, HEADERS + wide("SELECT a FROM t")))
    rows = b"\x81" + b"row" * 20_000
    data = packets(4, rows + done())
    assert wire.move(False, data[:30_000], head=320, tail=64) == []
    assert [o.name for o in wire.move(False, data[30_000:], head=320, tail=64)] == ["SELECT t"]
    wire.move(True, packets(1, HEADERS + wide("UPDATE t SET a = 1")))
    assert [o.name for o in wire.move(False, packets(4, done()))] == ["UPDATE t"]
    assert wire.parser.lost == 0


def test_attention_cancels_what_runs_and_nothing_else() -> None:
    wire = Wire()
    wire.move(True, packets(1, HEADERS + wide("WAITFOR DELAY '1'")))
    wire.move(True, packets(6, b""))
    assert [o.error for o in wire.move(False, packets(4, done(0x20)))] == ["cancelled"]
    wire.move(True, packets(1, HEADERS + wide("SELECT 1")))
    assert len(wire.move(False, packets(4, done()))) == 1
    wire.move(True, packets(6, b""))
    assert wire.move(False, packets(4, done(0x20))) == []
    wire.move(True, packets(1, HEADERS + wide("SELECT a FROM t")))
    assert [(o.name, o.error) for o in wire.move(False, packets(4, done()))] == [("SELECT t", "")]


def test_tls_for_everything_is_named() -> None:
    wire = Wire()
    for _ in range(6):
        wire.move(True, b"\x17\3\3\0\x10" + b"x" * 16)
    assert wire.parser.note == "tls"
