from __future__ import annotations

import struct

import pytest

from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.memcached import MemcachedParser


class Wire:
    def __init__(self) -> None:
        self.parser = MemcachedParser(3, Options(query_text=True))
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


@pytest.mark.parametrize(
    ("request_", "reply", "name", "error"),
    [
        (b"get marker\r\n", b"END\r\n", "get", ""),
        (b"get marker b\r\n", b"VALUE marker 0 5\r\nEND\r\n\r\nEND\r\n", "get", ""),
        (b"set marker 0 0 6\r\nmarker\r\n", b"STORED\r\n", "set", ""),
        (b"cas marker 0 0 6 9\r\nmarker\r\n", b"EXISTS\r\n", "cas", ""),
        (b"incr marker 1\r\n", b"6\r\n", "incr", ""),
        (b"incr marker 1\r\n", b"CLIENT_ERROR cannot marker\r\n", "incr", "CLIENT_ERROR"),
        (b"set marker 0 0 1\r\nx\r\n", b"SERVER_ERROR out of memory\r\n", "set", "SERVER_ERROR"),
        (b"stats\r\n", b"STAT pid 1\r\nSTAT version 2\r\nEND\r\n", "stats", ""),
        (b"mg marker v\r\n", b"VA 6\r\nmarker\r\n", "mg", ""),
        (b"ms marker 6\r\nmarker\r\n", b"NS\r\n", "ms", ""),
        (b"marker\r\n", b"ERROR\r\n", "unknown", "ERROR"),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_text(request_: bytes, reply: bytes, name: str, error: str, step: int) -> None:
    wire = Wire()
    wire.move(True, b"version\r\n")
    wire.move(False, b"VERSION 1\r\n")
    out = [o for at in range(0, len(request_), step) for o in wire.move(True, request_[at : at + step])]
    out += [o for at in range(0, len(reply), step) for o in wire.move(False, reply[at : at + step])]
    (operation,) = out
    assert (operation.name, operation.error) == (name, error)
    assert "marker" not in repr(operation)


def test_noreply_ends_with_its_request() -> None:
    wire = Wire()
    (operation,) = wire.move(True, b"set k 0 0 1 noreply\r\nx\r\n")
    assert (operation.name, operation.response_start_mono_ns) == ("set", 0)


def test_values_are_stepped_over() -> None:
    wire = Wire()
    wire.move(True, b"set k 0 0 90000\r\n" + b"v" * 90_000 + b"\r\n", head=3900, tail=64)
    assert [o.name for o in wire.move(False, b"STORED\r\n")] == ["set"]
    wire.move(True, b"get k\r\n")
    reply = b"VALUE k 0 90000\r\n" + b"v" * 90_000 + b"\r\nEND\r\n"
    assert [o.name for o in wire.move(False, reply, head=320, tail=64)] == ["get"]
    assert wire.parser.lost == 0


def packet(magic: int, code: int, opaque: int, status: int = 0, key: bytes = b"", value: bytes = b"") -> bytes:
    return struct.pack(">BBHBBHIIQ", magic, code, len(key), 0, 0, status, len(key + value), opaque, 0) + key + value


def test_binary_and_its_quiet_commands() -> None:
    wire = Wire()
    wire.move(True, packet(0x80, 9, 1, key=b"marker") + packet(0x80, 9, 2, key=b"b") + packet(0x80, 10, 3))
    out = wire.move(False, packet(0x81, 9, 2, value=b"x") + packet(0x81, 10, 3))
    assert [(o.name, o.error) for o in out] == [("get", ""), ("get", ""), ("noop", "")]
    wire.move(True, packet(0x80, 5, 4, key=b"marker"))
    assert [o.error for o in wire.move(False, packet(0x81, 5, 4, status=6))] == ["non_numeric"]
    wire.move(True, packet(0x80, 0, 5, key=b"marker"))
    assert [o.error for o in wire.move(False, packet(0x81, 0, 5, status=1))] == [""]
