from __future__ import annotations

import struct

from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.postgres import PostgresParser


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", 4 + len(body)) + body


PARAMETERS = b"user\0marker\0database\0shop\0client\0x\0\0"
STARTUP = struct.pack(">II", 8 + len(PARAMETERS), 196608) + PARAMETERS
READY = message(b"Z", b"I")
DONE = message(b"C", b"SELECT 1\0")


def error(code: bytes) -> bytes:
    return message(b"E", b"SERROR\0VERROR\0C" + code + b"\0Mmarker\0\0")


class Wire:
    """A connection under test: every call is a transfer, a millisecond after the one before."""

    def __init__(self, *, started: bool = True) -> None:
        self.parser = PostgresParser(3, Options(query_text=True))
        self.now = 0
        self.offset = {True: 0, False: 0}
        if started:
            self.ask(STARTUP)
            self.answer(message(b"R", b"\0\0\0\0") + READY)

    def move(self, client: bool, data: bytes, head: int | None = None, tail: int = 0) -> list[Operation]:
        self.now += 1_000_000
        kept = len(data) if head is None else head
        segment = Segment(client, client, self.now, self.offset[client], len(data), data[:kept])
        if kept < len(data) and tail:
            segment.tail = data[-tail:]
        self.offset[client] += len(data)
        return self.parser.feed(segment)

    def ask(self, data: bytes, head: int | None = None, tail: int = 0) -> list[Operation]:
        return self.move(True, data, head, tail)

    def answer(self, data: bytes, head: int | None = None, tail: int = 0) -> list[Operation]:
        return self.move(False, data, head, tail)


def prepared(name: bytes, sql: bytes) -> bytes:
    return message(b"P", name + b"\0" + sql + b"\0\0\0") + message(b"D", b"S" + name + b"\0") + message(b"S")


def execute(name: bytes, value: bytes = b"marker") -> bytes:
    bind = b"\0" + name + b"\0\0\0\0\1" + struct.pack(">I", len(value)) + value + b"\0\0"
    return message(b"B", bind) + message(b"D", b"P\0") + message(b"E", b"\0\0\0\0\0")


EXECUTED = message(b"2") + message(b"T", b"\0\0") + message(b"D", b"\0\0") + DONE


def test_simple_query_ends_with_its_completion_and_not_with_ready() -> None:
    wire = Wire()
    wire.ask(message(b"Q", b"SELECT a FROM t\0"))
    (operation,) = wire.answer(message(b"T", b"\0\0") + DONE)
    assert wire.answer(READY) == []
    assert (operation.name, operation.dims["db.namespace"], operation.error) == ("SELECT t", "shop", "")
    assert operation.end_mono_ns - operation.start_mono_ns == 1_000_000
    assert "marker" not in repr(operation)


def test_a_named_statement_is_remembered_replaced_and_closed() -> None:
    wire = Wire()
    wire.ask(prepared(b"s", b"SELECT 1 FROM a"))
    wire.answer(message(b"1") + message(b"t", b"\0\0") + message(b"n") + READY)
    wire.ask(execute(b"s") + message(b"S"))
    assert [o.name for o in wire.answer(EXECUTED + READY)] == ["SELECT a"]
    wire.ask(prepared(b"s", b"SELECT 1 FROM b"))
    wire.answer(message(b"1") + message(b"t", b"\0\0") + message(b"n") + READY)
    wire.ask(execute(b"s") * 3 + message(b"S"))
    assert [o.name for o in wire.answer(EXECUTED * 3 + READY)] == ["SELECT b"] * 3
    wire.ask(message(b"C", b"Ss\0") + message(b"S"))
    wire.answer(message(b"3") + READY)
    wire.ask(execute(b"s") + message(b"S"))
    assert [o.name for o in wire.answer(EXECUTED + READY)] == ["SELECT"]  # of the command tag
    assert wire.parser.lost == 0


def test_an_error_skips_the_rest_up_to_sync_also_of_messages_sent_later() -> None:
    wire = Wire()
    wire.ask(prepared(b"", b"SELECT 1 FROM a"))
    wire.answer(message(b"1") + message(b"t", b"\0\0") + message(b"n") + READY)
    wire.ask(execute(b""))
    (failed,) = wire.answer(message(b"2") + error(b"22012"))
    assert (failed.error, failed.dims["db.response.status_code"], failed.name) == ("22012", "22012", "SELECT a")
    wire.ask(execute(b"") + message(b"S") + execute(b"") + message(b"S"))
    assert len(wire.answer(READY + EXECUTED + READY)) == 1
    assert wire.parser.lost == 0


def test_a_large_parameter_is_stepped_over_and_the_tail_read_on() -> None:
    wire = Wire()
    wire.ask(prepared(b"s", b"INSERT INTO a VALUES ($1)"), None)
    wire.answer(message(b"1") + message(b"t", b"\0\0") + message(b"n") + READY)
    wire.ask(execute(b"s", b"x" * 100_000) + message(b"S"), head=3900, tail=64)
    (operation,) = wire.answer(message(b"2") + message(b"n") + message(b"C", b"INSERT 0 1\0") + READY)
    assert operation.name == "INSERT a"
    assert wire.parser.lost == 0


def test_rows_in_a_gap_end_with_the_ready_in_the_tail() -> None:
    rows = message(b"D", b"\0\1\0\0\0\4data") * 2000
    wire = Wire()
    wire.ask(message(b"Q", b"SELECT a FROM t\0"))
    assert wire.answer(message(b"T", b"\0\0") + rows, head=320, tail=64) == []
    (operation,) = wire.answer(rows + DONE + READY, head=320, tail=64)
    assert (operation.name, operation.error) == ("SELECT t", "")
    wire.ask(message(b"Q", b"SELECT a FROM t\0"))
    assert wire.answer(message(b"T", b"\0\0") + rows, head=320, tail=64) == []
    (failed,) = wire.answer(rows + error(b"57014") + READY, head=320, tail=64)
    assert failed.error == "57014"
    wire.ask(message(b"Q", b"SELECT b FROM u\0"))
    assert [o.name for o in wire.answer(DONE + READY)] == ["SELECT u"]
    assert wire.parser.lost == 0


def test_completions_in_a_gap_are_lost() -> None:
    wire = Wire()
    wire.ask(message(b"Q", b"SELECT 1; SELECT a FROM t; SELECT 3\0"))
    assert wire.answer(message(b"T", b"\0\0") + message(b"D", b"x" * 50) * 100, head=100) == []
    operations = wire.answer(
        DONE + message(b"D", b"x" * 500) + DONE + message(b"D", b"x" * 500) + DONE + READY, head=10, tail=30
    )
    assert len(operations) + wire.parser.lost == 3


def test_what_another_thread_read_before_the_request_was_seen() -> None:
    wire = Wire()
    assert wire.answer(DONE + READY) == []
    (operation,) = wire.ask(message(b"Q", b"SELECT a FROM t\0"))
    assert operation.name == "SELECT t"
    assert operation.start_mono_ns <= operation.end_mono_ns


def test_tls_cancel_and_replication_are_named() -> None:
    wire = Wire(started=False)
    wire.ask(struct.pack(">II", 8, 80877103))
    wire.answer(b"S")
    assert wire.parser.note == "tls"
    wire = Wire(started=False)
    wire.ask(struct.pack(">II", 8, 80877103))
    wire.answer(b"N")
    wire.ask(STARTUP)
    assert wire.parser.note == ""
    wire = Wire(started=False)
    wire.ask(struct.pack(">IIII", 16, 80877102, 1, 2))
    assert wire.parser.note == "cancel"
    wire = Wire(started=False)
    wire.ask(struct.pack(">II", 26, 196608) + b"replication\0true\0\0")
    assert wire.parser.note == "replication"


def test_an_unanswered_statement_is_an_error_when_the_connection_ends() -> None:
    wire = Wire()
    wire.ask(message(b"Q", b"SELECT a FROM t\0"))
    (operation,) = wire.parser.close(wire.now + 5, "reset")
    assert (operation.name, operation.error) == ("SELECT t", "reset")
