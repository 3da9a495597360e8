"""Header blocks of one connection, beside the decoder of the hpack library: what both take has to be the same.

The input is a list of blocks, each behind two bytes of length.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    import driver

    driver.begin()

import hpack

from onlooker.protocols._hpack import HeaderCache, Table, decode


def one_input(data: bytes) -> None:
    """Decodes the blocks in turn, with the table that each leads to."""
    table, cache, known = Table(), HeaderCache(capacity=8), HeaderCache(capacity=8).fresh
    library: hpack.Decoder | None = hpack.Decoder(max_header_list_size=1 << 20)
    at = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        block = data[at + 2 : at + 2 + length]
        at += 2 + length
        pairs, after, malformed = decode(table, block)
        fields, known = cache.read(known, block)
        assert malformed <= fields.malformed or not table.complete
        assert after.size <= 1 << 20
        assert len(pairs) <= len(block)
        for name, value in pairs:
            assert name is None or isinstance(name, bytes)
            assert value is None or len(value) <= 4 * len(block) + (1 << 16)
        if library is not None:
            try:
                theirs = library.decode(block, raw=True)
            except hpack.HPACKError:
                library = None
            else:
                if not malformed and all(name is not None and value is not None for name, value in pairs):
                    assert [(bytes(name), bytes(value)) for name, value in theirs] == pairs
        if malformed:
            return
        table = after


if __name__ == "__main__":
    driver.main("hpack", one_input, sys.argv[1:])
