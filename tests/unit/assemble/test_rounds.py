"""What is read of HTTP/2 in columns is what its parser says, whatever the records are and however they come."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onlooker.assemble.rounds import Rounds
from onlooker.assemble.segments import Segments
from onlooker.batches import RequestBatch, Text, Values
from onlooker.protocols import registry
from onlooker.protocols._db import Options
from support.byte_recording import Capture
from support.http2_records import LARGE, Connection, in_rounds, made_up, of_chunks
from support.http2_replay import cut, split_upgrade

GOLDEN = Path(__file__).parents[2] / "golden" / "http2"
CAPTURES = [split_upgrade(Capture.load(path)) for path in sorted(GOLDEN.glob("*.capture.json"))]
PLAIN = [chunks for chunks, upgrade in CAPTURES if upgrade is None]
NEVER = 1 << 60


class Rig:
    """A `Segments` that reads in columns all that it can, or nothing."""

    def __init__(self, least_bytes: int) -> None:
        self.values = Values()
        self.rounds = Rounds(least_bytes=least_bytes)
        options = Options()
        self.segments = Segments(
            self.values, make_parser=lambda protocol, role: registry.make_parser(protocol, role, options=options),
            dim_names=registry.dim_names, name_of=registry.name_of, rng=np.random.default_rng(1), rounds=self.rounds,
        )  # fmt: skip
        self.rows: Counter[str] = Counter()
        self.now = 0

    def run(self, rounds: Iterable[list[NDArray[Any]]]) -> Counter[str]:
        for parts in (*rounds, [], []):
            for batch in self.segments.requests(parts, offset_ns=7, now_mono_ns=self.now):
                self.rows.update(as_rows(batch, self.values))
        return self.rows


def as_rows(batch: RequestBatch, values: Values) -> list[str]:
    """Each row as a line: all that does not come from dice."""
    own_trace = (batch.parent_span_id.any(axis=1)).tolist()
    rows = []
    for i in range(len(batch)):
        dims = {
            name: values[int(number)]
            for name, number in zip(batch.dim_names, batch.dims[i].tolist(), strict=True)
            if number
        }
        varying = {}
        for name, column in batch.varying.items():
            value = column[i] if isinstance(column, Text) else int(column[i])
            if value is not None and value != -1:
                varying[name] = value
        rows.append(
            repr(
                (
                    int(batch.connection[i]), int(batch.start_unix_ns[i]), int(batch.request_end_unix_ns[i]),
                    int(batch.response_start_unix_ns[i]), int(batch.end_unix_ns[i]), int(batch.request_bytes[i]),
                    int(batch.response_bytes[i]), values[int(batch.name[i])], sorted(dims.items(), key=str),
                    sorted(varying.items()), int(batch.status[i]), bool(batch.stream[i]), int(batch.kind[i]),
                    int(batch.pid[i]), int(batch.tid[i]), int(batch.parent_source[i]), int(batch.trace_flags[i]),
                    batch.parent_span_id[i].tobytes().hex(),
                    batch.trace_id[i].tobytes().hex() if own_trace[i] else "",
                    batch.local_address[i].tobytes().hex(), int(batch.local_port[i]), int(batch.remote_port[i]),
                )
            )
        )  # fmt: skip
    return rows


def compare(
    connections: list[list[NDArray[Any]]], rounds: int, seed: int, *, is_damaged: bool = False
) -> tuple[Rig, Rig]:
    """The same rounds, one way and the other."""
    fast, slow = Rig(0), Rig(NEVER)
    found = fast.run(in_rounds(connections, rounds, seed))
    expected = slow.run(in_rounds(connections, rounds, seed))
    assert found - expected == Counter()
    assert expected - found == Counter()
    if not is_damaged:  # how many requests were made is a guess where numbers of streams are wrong
        assert fast.segments.lost == slow.segments.lost
    assert fast.segments.dropped == slow.segments.dropped
    return fast, slow


@pytest.mark.parametrize("seed", range(60))
def test_made_up_connections(seed: int) -> None:
    rounds, odd = 1 + seed % 12, (0, 0.001, 0.03)[seed % 3]
    connections = [
        of_chunks(Connection(number, server=bool(number & 1)), made_up(seed + number, 60, odd=odd))
        for number in range(1, 4)
    ]
    compare(connections, rounds, seed)


@pytest.mark.parametrize("limit", [LARGE, 40])
def test_recordings(limit: int) -> None:
    told = set()
    for seed in range(6):
        connections = [
            of_chunks(Connection(i + 1), cut(chunks, seed) if seed else chunks, limit=limit)
            for i, chunks in enumerate(PLAIN)
        ]
        fast, _ = compare(connections, 3 + seed, seed)
        assert fast.segments.lost == {}
        told.add(sum(fast.rows.values()))
    assert len(told) == 1
    assert told.pop() > 50


def test_most_of_a_busy_connection_is_read_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from onlooker.protocols.http2 import Http2

    fed = Counter[str]()
    feed = Http2.feed

    def counted(self: Http2, *args: Any) -> Any:
        fed["segments"] += 1
        return feed(self, *args)

    monkeypatch.setattr(Http2, "feed", counted)
    rows = of_chunks(Connection(1), made_up(3, 1000, odd=0))
    rig = Rig(0)
    rig.run(in_rounds([rows], 6, 1))
    assert sum(rig.rows.values()) > 900
    assert fed["segments"] < len(rows) / 8


@pytest.mark.parametrize("seed", range(60))
def test_lost_and_damaged_records(seed: int) -> None:
    """Records that the ring had no room for, and bytes that are no frames: nothing wrong, nothing twice, no crash."""
    dice = random.Random(seed)
    connections = []
    is_damaged = False
    for number in range(1, 3):
        rows = of_chunks(Connection(number), made_up(seed + number, 60, odd=0.03 * (seed % 2)))
        for _ in range(dice.randint(1, 3)):
            if dice.random() < 0.5:
                gone = dice.randrange(len(rows))
                del rows[gone]
                for row in rows[gone:]:  # what finds no room has no number
                    row["sequence"] -= 1
            else:
                is_damaged = True
                row = rows[dice.randrange(len(rows))]
                size = int(row["captured_head"][0])
                if size:
                    row["payload"][0, dice.randrange(size)] = dice.randrange(256)
        connections.append(rows)
    compare(connections, dice.randint(1, 8), seed, is_damaged=is_damaged)
