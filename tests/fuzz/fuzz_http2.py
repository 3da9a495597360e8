"""Random and hostile bytes for `onlooker.protocols.http2`: ``python tests/fuzz/fuzz_http2.py``, see `driver`.

The first byte chooses how the connection was met; then come records: a byte of choices (direction, condensed gap,
unreadable, cut short), two of length, that many bytes.  Unit tests call `one_input`, too:
that needs no atheris.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    import driver

    driver.begin()

from onlooker.protocols import Operation, Segment
from onlooker.protocols.http2 import Http2

MOST_STREAMS = 16


def one_input(data: bytes) -> list[Operation]:
    """Feed one made-up connection; raises if a promise of the parser is broken."""
    if not data:
        return []
    parser = Http2(from_start=bool(data[0] & 1), condensed=bool(data[0] & 2), max_streams=MOST_STREAMS)
    offsets = [0, 0]
    operations: list[Operation] = []
    position, clock = 1, 0
    while position + 3 <= len(data):
        choices = data[position]
        length = int.from_bytes(data[position + 1 : position + 3], "big") & 0x3FF
        payload = data[position + 3 : position + 3 + length]
        position += 3 + length
        clock += 1000
        side = choices & 1
        if choices & 0x30 == 0x30:
            offsets[side] += choices
        moved = len(payload) + (choices if choices & 2 else 0)
        tail = payload[-(choices & 7) :] if choices & 0x0C == 0x0C and choices & 7 else b""
        head = payload[: len(payload) - len(tail)]
        segment = Segment(
            bool(choices & 0x40), bool(side), clock, offsets[side], moved, head, tail, readable=choices & 0x88 != 0x88
        )
        offsets[side] += moved
        operations += parser.feed(segment)
        if choices == 0xFE:
            operations += parser.expire(clock + 10**12)
        assert parser.open_streams <= 2 * MOST_STREAMS
    operations += parser.close(clock, "")
    assert parser.open_streams == 0
    assert parser.lost >= 0
    for one in operations:
        assert 0 <= one.start_mono_ns <= one.request_end_mono_ns <= one.end_mono_ns
        assert one.response_start_mono_ns == 0 or one.response_start_mono_ns >= one.start_mono_ns
        assert one.name
    return operations


if __name__ == "__main__":
    driver.main("http2", one_input, sys.argv[1:])
