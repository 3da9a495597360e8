from __future__ import annotations

import pytest

from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import Options
from onlooker.protocols.redis import RedisParser


class Wire:
    def __init__(self, role: int = 3, **options: int) -> None:
        self.parser = RedisParser(role, Options(**options))  # type: ignore[arg-type]
        self.now = 0
        self.offset = {True: 0, False: 0}

    def move(
        self, client: bool, data: bytes, head: int | None = None, tail: int = 0, later: int = 1000
    ) -> list[Operation]:
        self.now += later
        kept = len(data) if head is None else head
        segment = Segment(client, client, self.now, self.offset[client], len(data), data[:kept])
        if kept < len(data) and tail:
            segment.tail = data[-tail:]
        self.offset[client] += len(data)
        return self.parser.feed(segment)

    def ask(self, data: bytes, head: int | None = None, tail: int = 0, later: int = 1000) -> list[Operation]:
        return self.move(True, data, head, tail, later)

    def answer(self, data: bytes, head: int | None = None, tail: int = 0) -> list[Operation]:
        return self.move(False, data, head, tail)


def command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"+OK\r\n", ""),
        (b"$-1\r\n", ""),
        (b"$6\r\nmarker\r\n", ""),
        (b":5\r\n", ""),
        (b"*2\r\n$1\r\na\r\n*1\r\n:5\r\n", ""),
        (b"%1\r\n$1\r\na\r\n$1\r\nb\r\n", ""),
        (b"_\r\n", ""),
        (b"#t\r\n", ""),
        (b"-WRONGTYPE marker\r\n", "WRONGTYPE"),
        (b"-marker went wrong\r\n", "ERR"),
        (b"!10\r\nERR marker\r\n", "ERR"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2, 100])
def test_one_command_one_reply(reply: bytes, error: str, pieces: int) -> None:
    wire = Wire()
    for _ in range(3):  # the second and third take the short way
        assert wire.ask(command("get", "marker")) == []
        step = max(1, len(reply) // pieces)
        out = [o for at in range(0, len(reply), step) for o in wire.answer(reply[at : at + step])]
        (operation,) = out
        assert (operation.name, operation.error) == ("GET", error)
        assert "marker" not in repr(operation)
    assert wire.parser.lost == 0


def test_a_burst_is_spans_up_to_the_cap_and_one_batch() -> None:
    wire = Wire(pipeline_spans=4)
    wire.ask(command("GET", "a") * 10)
    out = wire.answer(b"$1\r\nx\r\n" * 9) + wire.answer(b"-ERR no\r\n")
    assert [o.name for o in out] == ["GET"] * 4 + ["PIPELINE"]
    assert out[-1].varying["db.operation.batch.size"] == 6
    assert out[-1].error == "ERR"


def test_select_gives_the_database_once_it_worked() -> None:
    wire = Wire()
    wire.ask(command("SELECT", "3"))
    assert wire.answer(b"+OK\r\n")[0].dims["db.namespace"] == "3"
    wire.ask(command("SELECT", "99"))
    assert wire.answer(b"-ERR DB index is out of range\r\n")[0].dims["db.namespace"] == "3"
    wire.ask(command("GET", "a"))
    assert wire.answer(b"$-1\r\n")[0].dims["db.namespace"] == "3"


@pytest.mark.parametrize("first", [b"*", b">"])
def test_pushed_messages_are_no_replies(first: bytes) -> None:
    wire = Wire()
    wire.ask(command("SUBSCRIBE", "news", "more"))
    push = first + b"3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
    (operation,) = wire.answer(push + push)
    assert operation.stream
    for _ in range(20):
        assert wire.answer(first + b"3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$6\r\nmarker\r\n") == []
    wire.ask(command("PING"))
    (ping,) = wire.answer(b"+PONG\r\n" if first == b">" else b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert ping.name == "PING"


def test_blocking_commands_stay_out_of_latency() -> None:
    wire = Wire()
    wire.ask(command("BLPOP", "list", "0"))
    assert wire.answer(b"*-1\r\n")[0].stream
    wire.ask(command("XREAD", "BLOCK", "0", "STREAMS", "s", "0"))
    assert wire.answer(b"*-1\r\n")[0].stream
    wire.ask(command("XREAD", "STREAMS", "s", "0"))
    assert not wire.answer(b"*-1\r\n")[0].stream


def test_a_large_value_is_stepped_over() -> None:
    wire = Wire()
    wire.ask(command("SET", "k", "v" * 50_000), head=3900, tail=64)
    assert wire.answer(b"+OK\r\n")[0].name == "SET"
    wire.ask(command("GET", "k"))
    assert wire.answer(b"$50000\r\n" + b"v" * 50_000 + b"\r\n", head=320, tail=64)[0].name == "GET"
    assert wire.parser.lost == 0


def test_a_reply_whose_end_was_not_captured_ends_with_the_next_command() -> None:
    wire = Wire()
    wire.ask(command("LRANGE", "k", "0", "-1"))
    assert wire.answer(b"*1000\r\n" + b"$2\r\nab\r\n" * 1000, head=320, tail=64) == []
    end = wire.now
    (operation,) = wire.ask(command("GET", "k"))
    assert (operation.name, operation.end_mono_ns) == ("LRANGE", end)
    assert wire.answer(b"$1\r\na\r\n")[0].name == "GET"


def test_replies_in_a_gap_of_a_pipeline_are_lost() -> None:
    wire = Wire()
    wire.ask(command("GET", "k") * 20)
    out = wire.answer(b"$20\r\n" + b"v" * 20 + b"\r\n" + (b"$20\r\n" + b"v" * 20 + b"\r\n") * 19, head=60, tail=10)
    out += wire.ask(command("PING"), later=100_000_000)
    assert len(out) + wire.parser.lost == 20
    assert wire.answer(b"+PONG\r\n")[0].name == "PING"


def test_credentials_are_never_kept() -> None:
    wire = Wire()
    wire.parser.options.query_text = True
    for words in (("AUTH", "marker"), ("HELLO", "3", "AUTH", "marker", "marker")):
        wire.ask(command(*words))
        assert "marker" not in repr(wire.answer(b"+OK\r\n")).lower()


def test_monitor_and_replication_end_the_reading() -> None:
    wire = Wire()
    wire.ask(command("MONITOR"))
    assert wire.parser.note == "monitor"
    wire = Wire()
    wire.ask(command("PSYNC", "?", "-1"))
    assert wire.parser.note == "replication"


def test_silenced_commands_are_lost_and_shift_nothing() -> None:
    wire = Wire()
    wire.ask(command("CLIENT", "REPLY", "SKIP") + command("SET", "a", "b") + command("GET", "a"))
    assert [o.name for o in wire.answer(b"$1\r\nb\r\n")] == ["GET"]
    wire.ask(command("CLIENT", "REPLY", "OFF") + command("SET", "a", "b"))
    wire.ask(command("CLIENT", "REPLY", "ON"))
    assert [o.name for o in wire.answer(b"+OK\r\n")] == ["CLIENT"]
    assert wire.parser.lost == 4
