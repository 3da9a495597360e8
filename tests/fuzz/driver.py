"""How the targets in Python are driven: by atheris, whose coverage chooses the bytes, or by mutations of the corpus.

    python tests/fuzz/fuzz_elf.py SECONDS [SEED]            # with src and tests on the path
    python tests/fuzz/fuzz_elf.py --atheris -max_total_time=60 DIRECTORY

What the first prints of a failure, the number of the case, is the seed that repeats it alone.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
LONGEST = 1 << 16


def begin() -> None:
    """Before a target imports what it drives: so that atheris sees where its bytes lead."""
    if sys.argv[1:2] == ["--atheris"]:
        import atheris

        atheris.instrument_imports(include=["onlooker"]).__enter__()


def seeds(name: str) -> list[bytes]:
    """The committed corpus of a target, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutated(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """Bytes flipped, put in, taken out, doubled; numbers made extreme; ends cut; parts of others."""
    buffer = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(buffer) + 1)
        match dice.randrange(7):
            case 0 if buffer:
                buffer[at % len(buffer)] = dice.choice((*INTERESTING, dice.randrange(256)))
            case 1:
                buffer[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 2:
                del buffer[at : at + dice.choice((1, 2, 8, 64))]
            case 3:
                buffer[at:at] = buffer[max(at - dice.randrange(1, 200), 0) : at]
            case 4:
                size = dice.choice((2, 4, 8))
                value = dice.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), len(buffer), len(buffer) - at))
                buffer[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, dice.choice(("little", "big")))
            case 5 if dice.random() < 0.2:
                del buffer[at:]
            case _:
                other = dice.choice(others)
                start = dice.randrange(len(other) + 1)
                buffer[at:at] = other[start : start + dice.randrange(1, 100)]
    return bytes(buffer[:LONGEST])


def main(name: str, one_input: Callable[[bytes], object], arguments: Sequence[str]) -> None:
    """Runs a target."""
    corpus = seeds(name)
    if arguments[:1] == ["--atheris"]:
        import atheris

        atheris.Setup([sys.argv[0], *arguments[1:], str(CORPUS / name)], lambda data: one_input(data) and None)
        atheris.Fuzz()
        return
    seconds = float(arguments[0]) if arguments else 30.0
    first = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    for data in corpus:
        one_input(data)
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end:
        dice = random.Random(number)
        try:
            one_input(mutated(dice.choice(corpus), corpus, dice))
        except Exception:
            print(f"{name}: failed with seed {number}")
            raise
        number += 1
    print(f"{name}: {number - first} cases from seed {first}, no failure")
