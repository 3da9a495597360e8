"""Frames built by hand; `golden/mongodb` has a real driver (against a scripted peer: no registry has a server)."""

from __future__ import annotations

import struct

import pytest

from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.mongodb import EXHAUST_ALLOWED, MORE_TO_COME, MongodbParser


def document(*fields: bytes) -> bytes:
    body = b"".join(fields) + b"\0"
    return struct.pack("<i", 4 + len(body)) + body


def text(key: str, value: str) -> bytes:
    return b"\2" + key.encode() + b"\0" + struct.pack("<i", len(value) + 1) + value.encode() + b"\0"


def number(key: str, value: int) -> bytes:
    return b"\x10" + key.encode() + b"\0" + struct.pack("<i", value)


def real(key: str, value: float) -> bytes:
    return b"\1" + key.encode() + b"\0" + struct.pack("<d", value)


def inner(key: str, value: bytes, kind: bytes = b"\3") -> bytes:
    return kind + key.encode() + b"\0" + value


def message(body: bytes, request: int, answers: int = 0, flags: int = 0, code: int = 2013) -> bytes:
    payload = struct.pack("<I", flags) + b"\0" + body if code == 2013 else body
    return struct.pack("<iiii", 16 + len(payload), request, answers, code) + payload


class Wire:
    def __init__(self) -> None:
        self.parser = MongodbParser(3, Options(query_text=True))
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


FIND = document(text("find", "orders"), inner("filter", document(text("a", "marker"))), text("$db", "shop"))
OK = document(real("ok", 1.0))


def test_answers_are_matched_by_id_in_any_order() -> None:
    wire = Wire()
    wire.move(True, message(FIND, 1) + message(document(text("insert", "orders"), text("$db", "shop")), 2))
    assert [o.name for o in wire.move(False, message(OK, 9, 2) + message(OK, 10, 1))] == [
        "insert orders",
        "find orders",
    ]
    assert "marker" not in repr(wire.parser.__dict__)


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (document(real("ok", 0.0), text("errmsg", "marker"), number("code", 26), text("codeName", "NamespaceNotFound")),
         "NamespaceNotFound", "26"),
        (document(real("ok", 0.0), number("code", 8000)), "8000", "8000"),
        (document(number("n", 0), inner("writeErrors", document(inner("0", document(number("code", 11000)))), b"\4"),
                  real("ok", 1.0)), "11000", "11000"),
        (OK, "", None),
    ],
)  # fmt: skip
def test_outcomes(reply: bytes, error: str, code: str | None) -> None:
    wire = Wire()
    wire.move(True, message(FIND, 1))
    (operation,) = wire.move(False, message(reply, 9, 1))
    assert (operation.error, operation.dims.get("db.response.status_code")) == (error, code)
    assert operation.dims["db.namespace"] == "shop"
    assert "marker" not in repr(operation)


def test_a_name_that_is_no_collection_is_not_kept() -> None:
    wire = Wire()
    wire.move(True, message(document(text("createUser", "marker"), text("pwd", "marker"), text("$db", "admin")), 1))
    (operation,) = wire.move(False, message(OK, 9, 1))
    assert operation.name == "createUser"
    assert "marker" not in repr(operation)


def test_no_answer_wanted_and_streams() -> None:
    wire = Wire()
    assert [o.name for o in wire.move(True, message(FIND, 1, flags=MORE_TO_COME))] == ["find orders"]
    wire.move(True, message(document(number("hello", 1), text("$db", "admin")), 2, flags=EXHAUST_ALLOWED))
    (hello,) = wire.move(False, message(OK, 9, 2, flags=MORE_TO_COME))
    assert hello.stream
    assert wire.move(False, message(OK, 10, 9, flags=MORE_TO_COME)) == []


def test_compressed_is_named_as_such() -> None:
    wire = Wire()
    wire.move(True, message(struct.pack("<iiB", 2013, 40, 2) + b"x" * 20, 1, code=2012))
    (operation,) = wire.move(False, message(struct.pack("<iiB", 2013, 40, 2) + b"x" * 20, 9, 1, code=2012))
    assert (operation.name, operation.error) == ("OP_COMPRESSED", "")


def test_large_replies() -> None:
    rows = inner("firstBatch", document(*(text(str(n), "marker" * 10) for n in range(500))), b"\4")
    wire = Wire()
    wire.move(True, message(FIND, 1))
    reply = message(document(inner("cursor", document(rows)), real("ok", 1.0)), 9, 1)
    assert [o.error for o in wire.move(False, reply, head=320, tail=64)] == [""]
    wire.move(True, message(FIND, 2))
    assert wire.move(False, message(document(rows, real("ok", 1.0)), 9, 2), head=320, tail=64) == []
    assert wire.parser.lost == 1


def test_bounded_while_nothing_is_answered() -> None:
    wire = Wire()
    for request in range(3000):
        wire.move(True, message(FIND, request))
    assert len(wire.parser._open) == 1024
    assert wire.parser.lost == 3000 - 1024
