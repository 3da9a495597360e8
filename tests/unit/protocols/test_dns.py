from __future__ import annotations

import struct

from onlooker.batches import SpanKind
from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.dns import RESENDS, DnsParser, read_name


def name(text: str) -> bytes:
    return b"".join(bytes([len(p)]) + p.encode() for p in text.split(".")) + b"\0"


def query(text: str, kind: int = 1, number: int = 7) -> bytes:
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + name(text) + struct.pack(">HH", kind, 1)


def answer(text: str, kind: int = 1, number: int = 7, code: int = 0, records: bytes = b"", count: int = 0) -> bytes:
    return (
        struct.pack(">HHHHHH", number, 0x8180 | code, 1, count, 0, 0)
        + name(text)
        + struct.pack(">HH", kind, 1)
        + records
    )


def feed(parser: DnsParser, sent: bool, data: bytes, now: int) -> list[Operation]:
    return parser.feed(Segment(sent, sent, now, 0, len(data), data))


RECORD = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 1])


def test_answer_by_udp() -> None:
    parser = DnsParser(3, Options())
    assert feed(parser, True, query("A.example"), 1000) == []
    (operation,) = feed(parser, False, answer("a.example", records=RECORD * 2, count=2), 5000)
    assert operation.name == "DNS A"
    assert operation.varying == {"dns.question.name": "a.example", "dns.answers": ("192.0.2.1", "192.0.2.1")}
    assert "dns.question.name" not in operation.dims
    assert (operation.start_mono_ns, operation.end_mono_ns, operation.error) == (1000, 5000, "")
    assert operation.kind == SpanKind.CLIENT


def test_a_server_sees_it_from_the_other_side() -> None:
    parser = DnsParser(2, Options())
    feed(parser, False, query("a.example"), 1000)
    (operation,) = feed(parser, True, answer("a.example", code=3), 2000)
    assert (operation.error, operation.kind) == ("NXDOMAIN", SpanKind.SERVER)


def test_resends_are_one_lookup() -> None:
    parser = DnsParser(3, Options())
    for now in (1000, 2000, 3000):
        feed(parser, True, query("a.example"), now)
    (operation,) = feed(parser, False, answer("a.example"), 9000)
    assert operation.varying[RESENDS] == 2
    assert operation.start_mono_ns == 1000
    assert feed(parser, False, answer("a.example"), 9500) == []


def test_no_answer_is_a_timeout_at_the_limit() -> None:
    parser = DnsParser(3, Options(dns_timeout_ns=1000))
    feed(parser, True, query("a.example"), 500)
    assert parser.expire(1499) == []
    (operation,) = parser.expire(99_999)
    assert (operation.error, operation.end_mono_ns, operation.response_start_mono_ns) == ("timeout", 1500, 0)
    assert feed(parser, False, answer("a.example"), 100_000) == []


def test_two_questions_of_one_id_are_kept_apart() -> None:
    parser = DnsParser(3, Options())
    feed(parser, True, query("a.example", 1), 1)
    feed(parser, True, query("a.example", 28), 2)
    assert [o.name for o in feed(parser, False, answer("a.example", 28), 3)] == ["DNS AAAA"]
    assert [o.name for o in feed(parser, False, answer("a.example", 1), 4)] == ["DNS A"]


def test_tcp_with_its_length_read_alone() -> None:
    parser = DnsParser(3, Options())
    asked, said = query("a.example"), answer("a.example")
    feed(parser, True, len(asked).to_bytes(2, "big") + asked, 1)
    assert feed(parser, False, len(said).to_bytes(2, "big"), 2) == []
    (operation,) = feed(parser, False, said, 3)
    assert operation.name == "DNS A"


def test_hostile_names() -> None:
    assert read_name(b"\xc0\x00", 0) == ("", -1)
    assert read_name(b"\x3fabc", 0) == ("", -1)
    assert read_name((b"\x3f" + b"a" * 63) * 5 + b"\0", 0) == ("", -1)
    assert read_name(b"\x03a\x00b\0", 0)[0] == "a\\000b"


def test_bounded() -> None:
    parser = DnsParser(3, Options())
    for number in range(5000):
        feed(parser, True, query("a.example", number=number), 1)
        feed(parser, False, answer("b.example", number=number), 1)
    assert len(parser._open) <= 1024
    assert len(parser._early) <= 64
    assert parser.lost == 5000 - 1024
