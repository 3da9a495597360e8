"""Fuzzes the parsers of databases, caches and names: mutated captures, any borders, any cuts.

``python tests/fuzz/fuzz_db.py [seconds] [seed]`` (with ``src`` and ``tests`` on the path).  Fails on an exception, on
state that grows beyond its bounds, and on a run of operations longer than the bytes allow.  With atheris installed,
``--atheris`` lets its coverage choose the bytes.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from onlooker.protocols import Segment
from onlooker.protocols.registry import Options, by_name, make_parser
from support.recorder import load, segments

PROTOCOLS = ("postgres", "mysql", "tds", "redis", "memcached", "mongodb", "dns")
GOLDEN = Path(__file__).parents[1] / "golden"
MAX_STATE_BYTES = 4_000_000


def size_of(value: Any, depth: int = 4) -> int:
    """Bytes that a parser holds, roughly."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if isinstance(value, Options) or depth == 0:
        return 0
    if isinstance(value, dict):
        return sum(size_of(k, depth - 1) + size_of(v, depth - 1) + 100 for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset) or hasattr(value, "popleft"):
        return sum(size_of(v, depth - 1) + 50 for v in value)
    names = list(getattr(value, "__dict__", {})) + [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ())]
    return sum(size_of(getattr(value, n, None), depth - 1) + 50 for n in names)


def feed(protocol: str, pieces: list[Segment], role: int) -> int:
    """Feed a fresh parser; gives the number of operations."""
    parser = make_parser(by_name(protocol).number, role, options=Options(query_text=True))
    count = bytes_fed = 0
    for segment in pieces:
        bytes_fed += len(segment.head) + len(segment.tail)
        count += len(parser.feed(segment))
    count += len(parser.expire(1 << 61)) + len(parser.close(1 << 62, ""))
    held = size_of(parser)
    assert held < MAX_STATE_BYTES, f"{protocol}: {held} bytes held"
    assert count <= bytes_fed + 1100, f"{protocol}: {count} operations of {bytes_fed} bytes"
    assert parser.lost >= 0
    return count


def mutate(data: bytes, dice: random.Random) -> bytes:
    buffer = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 8))):
        at = dice.randrange(len(buffer) + 1)
        action = dice.randrange(4)
        if action == 0 and buffer:
            buffer[at % len(buffer)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif action == 1:
            buffer[at:at] = dice.randbytes(dice.randrange(1, 9))
        elif action == 2:
            del buffer[at : at + dice.randrange(1, 9)]
        else:
            buffer[at:at] = buffer[: dice.randrange(1, 200)]
    return bytes(buffer)


def one(corpus: dict[str, list[list[Segment]]], dice: random.Random) -> None:
    source = dice.choice(PROTOCOLS)
    target = source if dice.random() < 0.8 else dice.choice(PROTOCOLS)
    offsets = {True: 0, False: 0}
    pieces: list[Segment] = []
    for old in dice.choice(corpus[source]):
        if dice.random() < 0.03:
            offsets[old.from_client] += dice.randrange(200)  # a record that was lost
        data = mutate(old.head, dice)
        length = len(data) + (dice.randrange(5000) if dice.random() < 0.1 else 0)
        head = data[: dice.randrange(len(data) + 1)] if dice.random() < 0.2 else data
        segment = Segment(old.sent, old.from_client, old.mono_ns, offsets[old.from_client], length, head)
        if len(head) < length and dice.random() < 0.7:
            segment.tail = data[-min(64, length - len(head)) :] if data else b""
        offsets[old.from_client] += length
        if length:
            pieces.append(segment)
    feed(target, pieces, dice.choice((2, 3)))


def load_corpus() -> dict[str, list[list[Segment]]]:
    corpus: dict[str, list[list[Segment]]] = {}
    for protocol in PROTOCOLS:
        for path in sorted((GOLDEN / protocol).glob("*.jsonl")):
            connections: dict[int, list[Segment]] = {}
            for number, segment in segments(load(path)):
                connections.setdefault(number, []).append(segment)
            corpus.setdefault(protocol, []).extend(pieces[:120] for pieces in connections.values())
    return corpus


def main(arguments: list[str]) -> None:
    if "--atheris" in arguments:
        import atheris

        def case(data: bytes) -> None:
            if len(data) > 4:
                protocol, cut = PROTOCOLS[data[0] % len(PROTOCOLS)], 1 + data[1]
                pieces, offset = [], {True: 0, False: 0}
                for at in range(2, len(data), cut):
                    side = bool(data[at] & 1)
                    piece = data[at : at + cut]
                    pieces.append(Segment(side, side, at, offset[side], len(piece), piece))
                    offset[side] += len(piece)
                feed(protocol, pieces, 3)

        atheris.instrument_all()
        atheris.Setup([sys.argv[0]], case)
        atheris.Fuzz()
    seconds = float(arguments[0]) if arguments else 30.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    corpus = load_corpus()
    end = time.monotonic() + seconds
    cases = 0
    while time.monotonic() < end:
        number = seed + cases
        try:
            one(corpus, random.Random(number))
        except Exception:
            print(f"failed with seed {number}")
            raise
        cases += 1
    print(f"{cases} cases from seed {seed}, no failure")


if __name__ == "__main__":
    main(sys.argv[1:])
