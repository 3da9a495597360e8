"""What is read over columns is what the parser makes of it, one segment after the other."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.assemble.exchanges import PlainExchanges
from onlooker.assemble.segments import Segments
from onlooker.batches import RequestBatch, Values
from onlooker.protocols import registry
from onlooker.protocols._redis_columns import read_commands, read_replies
from onlooker.protocols.registry import Options
from support.records import a_segment

CLIENT, SERVER = 3, 2


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


EXCHANGES = (
    (command(b"GET", b"key"), b"$5\r\nvalue\r\n"),
    (command(b"get", b"key"), b"$-1\r\n"),
    (command(b"SET", b"key", b"\r\n*2\r\n$3\r\nGET\r\n"), b"+OK\r\n"),
    (command(b"INCR", b"n"), b":17\r\n"),
    (command(b"PING"), b"+PONG\r\n"),
    (command(b"LPUSH", b"list", b""), b":1\r\n"),
    (command(b"HGETALL", b"hash"), b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
    (command(b"GET", b"list"), b"-WRONGTYPE no\r\n"),
    (command(b"SELECT", b"3"), b"+OK\r\n"),
    (command(b"BLPOP", b"list", b"0"), b"*-1\r\n"),
    (command(b"EXISTS", b"a") + command(b"EXISTS", b"b"), b":1\r\n:0\r\n"),
    (command(b"SET", b"big", b"x" * 900), b"+OK\r\n"),
    (command(b"MGET", *[b"k%d" % n for n in range(9)]), b"*1\r\n$-1\r\n"),
    (command(b"ECHO", b"$5"), b"$2\r\n$5\r\n"),
)


def traffic(choices: list[int], *, connections: int, role: int, lose: set[int] = frozenset()) -> list[NDArray[Any]]:  # type: ignore[assignment]
    """Segments of exchanges on connections in turn; those in ``lose`` found no room in the ring."""
    rows: list[NDArray[Any]] = []
    offsets = [[0, 0] for _ in range(connections)]
    sequences = [0] * connections
    for turn, choice in enumerate(choices):
        at = turn % connections
        for reply, data in enumerate(EXCHANGES[choice]):
            sent = (role == CLIENT) != bool(reply)
            offset = offsets[at][reply]
            offsets[at][reply] += len(data)
            if 2 * turn + reply in lose:
                continue
            cut = {"flags": 1, "length": len(data)} if len(data) > 400 else {}
            rows.append(
                a_segment(
                    data[:340] if cut else data, sent=sent, role=role, connection=50 + at, sequence=sequences[at],
                    at=1_000_000 + 2000 * turn + 1000 * reply, stream_offset=offset, tid=7,
                    tail=data[-64:] if cut else b"", **cut,
                )
            )  # fmt: skip
            sequences[at] += 1
    return rows


class Reader:
    def __init__(self, *, plain: bool, query_text: bool = False) -> None:
        self.values, options = Values(), Options(query_text=query_text)
        rng = np.random.default_rng(1)
        self.plain = PlainExchanges(self.values, dim_names=registry.dim_names, rng=rng, options=options)
        self.segments = Segments(
            self.values, make_parser=lambda protocol, role: registry.make_parser(protocol, role, options=options),
            dim_names=registry.dim_names, name_of=registry.name_of, rng=rng, plain=self.plain if plain else None,
        )  # fmt: skip
        self.found: list[tuple[Any, ...]] = []

    def feed(self, rows: list[NDArray[Any]]) -> None:
        for batch in self.segments.requests([np.concatenate(rows)], offset_ns=10**18, now_mono_ns=0):
            self.found += map(tuple, self._told(batch))

    def _told(self, batch: RequestBatch) -> list[tuple[Any, ...]]:
        rows = []
        for i in range(len(batch)):
            dims = {
                name: self.values[int(value)]
                for name, value in zip(batch.dim_names, batch.dims[i], strict=True)
                if value
            }
            many = batch.varying.get(semconv.DB_OPERATION_BATCH_SIZE)
            rows.append((
                int(batch.connection[i]), int(batch.start_unix_ns[i]), int(batch.end_unix_ns[i]),
                self.values[int(batch.name[i])], tuple(sorted(dims.items())), int(batch.kind[i]),
                int(batch.status[i]), bool(batch.stream[i]), int(batch.request_bytes[i]), int(batch.response_bytes[i]),
                int(batch.pid[i]), int(batch.tid[i]), batch.remote_port[i], batch.parent_span_id[i].tobytes(),
                None if many is None else int(many[i]),
            ))  # fmt: skip
        return rows


@pytest.mark.parametrize("role", [CLIENT, SERVER])
@given(seed=st.integers(0, 2**32), connections=st.sampled_from([1, 3, 20]), rare=st.sampled_from([0.0, 0.02, 0.3]))
@settings(max_examples=6)
def test_columns_and_parsers_tell_the_same(role: int, seed: int, connections: int, rare: float) -> None:
    chance = random.Random(seed)
    choices = [chance.randrange(len(EXCHANGES)) if chance.random() < rare else chance.randrange(6) for _ in range(240)]
    rows = traffic(choices, connections=connections, role=role)
    told = []
    for plain in (True, False):
        reader = Reader(plain=plain)
        at = 0
        while at < len(rows):
            step = chance.randrange(1, 300) if plain else 200
            reader.feed(rows[at : at + step])
            at += step
        assert reader.segments.lost == {}
        told.append(sorted(reader.found))
    assert told[0] == told[1]


def test_busy_connections_are_read_over_columns() -> None:
    rows = traffic([turn % 6 for turn in range(400)], connections=4, role=SERVER)
    reader = Reader(plain=True)
    for at in range(0, len(rows), 200):
        reader.feed(rows[at : at + 200])
    assert len(reader.found) == 400
    assert reader.plain.exchanges == 300  # the first round makes the parsers


@pytest.mark.parametrize("role", [CLIENT, SERVER])
@given(seed=st.integers(0, 2**32), connections=st.sampled_from([1, 8]), share=st.sampled_from([0.01, 0.2, 0.6]))
@settings(max_examples=6)
def test_what_did_not_fit_the_ring_is_counted_in_commands(role: int, seed: int, connections: int, share: float) -> None:
    chance = random.Random(seed)
    turns = 600
    choices = [3] * turns  # commands of one size: bytes tell their number exactly
    # the first and the last exchanges of each connection are there: they show where the stream stands
    inner = range(2 * 4 * connections, 2 * (turns - 3 * connections))
    lose = {n for n in inner if chance.random() < share}
    rows = traffic(choices, connections=connections, role=role, lose=lose)
    reader = Reader(plain=True)
    for at in range(0, len(rows), 200):
        reader.feed(rows[at : at + 200])
    seen = sum(row[-1] if row[-1] and row[-1] > 0 else 1 for row in reader.found)
    accounted = seen + reader.segments.lost.get("redis", 0)
    # where request and reply of different exchanges are missing side by side, an answer may be counted to its neighbour
    assert abs(accounted - turns) <= (3 if share < 0.1 else turns // 20)


@given(
    data=st.binary(max_size=60) | st.sampled_from([x for pair in EXCHANGES[:9] for x in pair]), cut=st.integers(0, 5)
)
def test_no_bytes_confuse_the_readers(data: bytes, cut: int) -> None:
    data = data[: max(len(data) - cut, 1)] or b"\0"
    payload = np.zeros((3, 440), np.uint8)
    payload[:, : len(data)] = np.frombuffer(data, np.uint8)
    length = np.full(3, len(data), np.int64)
    commands, replies = read_commands(payload, length), read_replies(payload, length)
    assert len(set(commands.whole.tolist())) == len(set(replies.tolist())) == 1
    if commands.whole[0]:
        assert data.startswith(b"*")
        assert data.endswith(b"\r\n")
    if replies[0]:
        assert data[0] in b"+:_#,($"
        assert data.endswith(b"\r\n")
