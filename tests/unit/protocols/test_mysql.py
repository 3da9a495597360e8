from __future__ import annotations

from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.mysql import MysqlParser


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


GREETING = packet(
    0, b"\x0a8.0.36\0" + b"\1\0\0\0" + b"x" * 8 + b"\0" + b"\xff\xff\x21\2\0" + b"\xff\xff\x15" + b"\0" * 10
)
OK = b"\0\0\0\2\0\0\0"
COLUMN = b"\3def" + b"\1a" * 5 + b"\x0c" + b"\0" * 12


def login(capabilities: int = 0x0200 | 0x8000 | 8) -> bytes:
    body = capabilities.to_bytes(4, "little") + b"\0\0\0\1\x21" + b"\0" * 23 + b"marker\0" + b"\3abc" + b"shop\0"
    return packet(1, body)


class Wire:
    def __init__(self, *, started: bool = True) -> None:
        self.parser = MysqlParser(3, Options(query_text=True))
        self.now = 0
        self.offset = {True: 0, False: 0}
        if started:
            self.move(False, GREETING)
            self.move(True, login())
            self.move(False, packet(2, OK))

    def move(self, client: bool, data: bytes, head: int | None = None, tail: int = 0) -> list[Operation]:
        self.now += 1000
        kept = len(data) if head is None else head
        segment = Segment(client, client, self.now, self.offset[client], len(data), data[:kept])
        if kept < len(data) and tail:
            segment.tail = data[-tail:]
        self.offset[client] += len(data)
        return self.parser.feed(segment)

    def query(self, sql: bytes) -> None:
        assert self.move(True, packet(0, b"\3" + sql)) == []


def rows(count: int, *, more: bool = False, eof: bool = True) -> bytes:
    status = bytes([2 | 8 * more, 0])
    end = b"\xfe\0\0" + status
    out = packet(1, b"\1") + packet(2, COLUMN) + (packet(3, b"\xfe\0\0\2\0") if eof else b"")
    out += b"".join(packet(4, b"\x05value") for _ in range(count))
    return out + packet(5, end if eof else b"\xfe\0\0" + status + b"\0\0")


def test_query_results_and_errors() -> None:
    wire = Wire()
    for eof in (True, False):
        wire.query(b"SELECT a FROM orders WHERE b = 'marker'")
        (operation,) = wire.move(False, rows(3, eof=eof))
        assert (operation.name, operation.dims["db.namespace"]) == ("SELECT orders", "shop")
        assert "marker" not in repr(operation)
    wire.query(b"SELECT a FROM nowhere")
    (failed,) = wire.move(False, packet(1, b"\xff\x7a\x04#42S02marker"))
    assert (failed.error, failed.dims["db.response.status_code"]) == ("42S02", "1146")


def test_several_results_are_several_statements_but_one_procedure() -> None:
    wire = Wire()
    wire.query(b"SELECT 1; SELECT a FROM t")
    assert [o.name for o in wire.move(False, rows(1, more=True) + rows(1))] == ["SELECT", "SELECT t"]
    wire.query(b"CALL pair()")
    assert [o.name for o in wire.move(False, rows(1, more=True) + rows(1, more=True) + packet(1, OK))] == ["CALL pair"]


def test_prepared_statements() -> None:
    wire = Wire()
    wire.move(True, packet(0, b"\x16SELECT a FROM t WHERE b = ?"))
    prepared = packet(1, b"\0\7\0\0\0\1\0\1\0\0\0\0")
    assert (
        wire.move(
            False,
            prepared + packet(2, COLUMN) + packet(3, b"\xfe\0\0\2\0") + packet(4, COLUMN) + packet(5, b"\xfe\0\0\2\0"),
        )
        == []
    )
    execute = packet(0, b"\x17\7\0\0\0\0\1\0\0\0\0\1\xfd\0\6marker")
    for _ in range(2):
        wire.move(True, execute)
        assert [o.name for o in wire.move(False, rows(2))] == ["SELECT t"]
    wire.move(True, packet(0, b"\x19\7\0\0\0") + execute)
    assert [o.name for o in wire.move(False, rows(2))] == ["SQL"]
    wire.move(True, packet(0, b"\x16SELEC"))
    assert [o.error for o in wire.move(False, packet(1, b"\xff\x28\x04#42000bad"))] == ["42000"]


def test_housekeeping_gives_nothing() -> None:
    wire = Wire()
    wire.move(True, packet(0, b"\x0e"))
    assert wire.move(False, packet(1, OK)) == []
    wire.move(True, packet(0, b"\2other"))
    assert wire.move(False, packet(1, OK)) == []
    wire.query(b"SELECT 1")
    assert wire.parser._database == "other"
    assert len(wire.move(False, rows(1))) == 1


def test_rows_in_a_gap_end_with_the_packet_in_the_tail() -> None:
    wire = Wire()
    for eof in (True, False):
        wire.query(b"SELECT a FROM t")
        assert [o.name for o in wire.move(False, rows(3000, eof=eof), head=320, tail=64)] == ["SELECT t"]
    wire.query(b"SELECT a FROM t")
    assert wire.move(False, rows(3000), head=320) == []
    wire.query(b"SELECT b FROM u")
    assert [o.name for o in wire.move(False, rows(1))] == ["SELECT u"]
    assert wire.parser.lost == 1


def test_tls_and_compression_are_named() -> None:
    wire = Wire(started=False)
    wire.move(False, GREETING)
    wire.move(True, packet(1, (0x0A00).to_bytes(4, "little") + b"\0" * 28))
    assert wire.parser.note == "tls"
    wire = Wire(started=False)
    wire.move(False, GREETING)
    wire.move(True, login(0x0200 | 0x8000 | 8 | 0x20))
    wire.move(False, packet(2, OK))
    assert wire.parser.note == "compressed"
    wire.move(True, b"\x0a\0\0\0\0\0\0" + b"x" * 10)
    assert wire.parser.lost == 1
