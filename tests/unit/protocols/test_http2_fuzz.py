"""The fuzzer's entry, with random bytes and with recordings that were damaged."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.fuzz_http2 import one_input
from support.byte_recording import Capture

GOLDEN = Path(__file__).parents[2] / "golden" / "http2"
CAPTURES = [Capture.load(path) for path in sorted(GOLDEN.glob("*.capture.json"))]


def as_input(capture: Capture, mode: int) -> bytes:
    """A recording in the fuzzer's own format."""
    result = bytearray([mode])
    for side, _, data in capture.chunks:
        for at in range(0, len(data), 1000):
            piece = data[at : at + 1000]
            result += bytes([int(side)]) + len(piece).to_bytes(2, "big") + piece
    return bytes(result)


def test_the_format_reaches_the_parser() -> None:
    assert sum(len(one_input(as_input(capture, 1))) for capture in CAPTURES) > 100


@given(st.binary(max_size=2000))
@settings(deadline=None)
def test_random_bytes(data: bytes) -> None:
    one_input(data)


@given(st.integers(0, len(CAPTURES) - 1), st.integers(0, 3), st.integers(0, 1 << 32))
@settings(deadline=None, max_examples=150)
def test_damaged_recordings(which: int, mode: int, seed: int) -> None:
    dice = random.Random(seed)
    data = bytearray(as_input(CAPTURES[which], mode)[:20_000])
    for _ in range(dice.randint(1, 20)):
        at = dice.randrange(1, len(data))
        match dice.randrange(3):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randint(1, 30)]
            case _:
                data[at:at] = dice.randbytes(dice.randint(1, 12))
        if len(data) < 2:
            return
    one_input(bytes(data))
