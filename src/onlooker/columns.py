"""Work on columns that several stages share: hashes of text, and bounded caches that are asked for many rows at once.

Python never sees a row whose hash is known already, so the price of a request does not depend on how its strings look.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I4, U1, U8, Text

HASHED_BYTES: Final = 4096
"""Bytes of a value that count; `TEXT_RECORD_SIZE` of ``bpf/records.h`` is less."""

_CHUNK: Final = 32
"""Bytes that one step of the hash takes: most paths fit into one."""

_MASKS: Final = np.array(
    [[(1 << (8 * min(max(n - 8 * w, 0), 8))) - 1 for w in range(_CHUNK // 8)] for n in range(_CHUNK + 1)], np.uint64
)
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def mix(hashes: U8) -> U8:
    """Spread what differs over all 64 bits, in place; `HashCache` takes the upper ones."""
    hashes ^= hashes >> _HALF
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> _HALF
    return hashes


def secret_odd(rng: np.random.Generator, count: int) -> U8:
    """``count`` odd 64-bit multipliers."""
    return rng.integers(0, 1 << 64, count, np.uint64, endpoint=False) | np.uint64(1)


def distinct_in_order(hashes: U8) -> tuple[U8, NDArray[np.intp], NDArray[np.intp]]:
    """The distinct hashes in the order they first appear, where that is, and which of them each row has."""
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return distinct[order], first[order], rank[inverse]


class TextHasher:
    """A keyed hash over the rows of a `Text`.

    Two given values collide with a probability of at most 2**-32 over the choice of the key, also when a peer chose
    them: a pairwise multilinear hash, 32 bits by 64-bit keys (Lemire and Kaser, "Strongly universal string hashing is
    fast", 2013).  The key never leaves the process.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        chunks = HASHED_BYTES // _CHUNK
        self._keys = rng.integers(0, 1 << 64, (chunks, 2, _CHUNK // 8), np.uint64, endpoint=False)
        self._length_multiplier = secret_odd(rng, 1)[0]

    def __call__(self, text: Text) -> U8:
        """``(n,)`` uint64 hashes; absent rows (length -1) share one."""
        hashes = text.length.astype(np.uint64)
        hashes *= self._length_multiplier
        if not len(text) or text.pool.size == 0:
            return mix(hashes)
        pool = np.ascontiguousarray(text.pool)
        longest = min(int(text.length.max()), HASHED_BYTES)
        if int((text.start + text.length).max()) + _CHUNK > pool.size:
            pool = np.concatenate([pool, np.zeros(_CHUNK, np.uint8)])
        # Every position of the pool as the beginning of a chunk, unaligned: one copy a row instead of one a word.
        chunks: NDArray[np.void] = np.ndarray((pool.size - _CHUNK + 1,), f"V{_CHUNK}", buffer=pool, strides=(1,))
        rows: NDArray[np.intp] | None = None
        position, left = text.start, text.length
        for k in range((longest + _CHUNK - 1) // _CHUNK):
            if k or longest <= 0:
                alive = np.flatnonzero(left > 0)
                rows = alive if rows is None else rows[alive]
                position, left = position[alive], left[alive]
            words: U8 = chunks[position].view(np.uint64).reshape(-1, _CHUNK // 8)
            words &= _MASKS.take(left, axis=0, mode="clip")
            low = words & _LOW
            low += self._keys[k, 0]
            words >>= _HALF
            words += self._keys[k, 1]
            words *= low
            total = words[:, 0] + words[:, 1]
            total += words[:, 2]
            total += words[:, 3]
            if rows is None:
                hashes += total
            else:
                hashes[rows] += total
            position = position + _CHUNK
            left = left - _CHUNK
        return mix(hashes)


class AddressHasher:
    """A keyed hash over (address, port) pairs."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._a, self._b, self._c = rng.integers(0, 1 << 64, 3, np.uint64, endpoint=False)

    def __call__(self, address: U1, port: NDArray[np.generic] | None = None) -> U8:
        """``(n,)`` hashes of ``(n, 16)`` addresses and ``(n,)`` ports."""
        words = np.ascontiguousarray(address).view(np.uint64)
        hashes: U8 = words[:, 0] * self._a
        hashes += words[:, 1] * self._b
        if port is not None:
            hashes += port.astype(np.uint64) * self._c
        return mix(hashes)


class HashCache:
    """64-bit hash to a non-negative int32, for whole columns.

    Two ways a set, so memory is fixed: what was inserted earlier falls out.
    """

    def __init__(self, capacity: int = 16_384) -> None:
        bits = max(int(capacity // 2 - 1).bit_length(), 4)
        self._shift = np.uint64(64 - bits)
        self._keys = np.zeros((2, 1 << bits), np.uint64)
        self._values = np.full((2, 1 << bits), -1, np.int32)

    def lookup(self, hashes: U8) -> I4:
        """The values, -1 where a hash is not known."""
        sets = (hashes >> self._shift).astype(np.intp)
        found: I4 = np.where(self._keys[0][sets] == hashes, self._values[0][sets], np.int32(-1))
        missing = np.flatnonzero(found < 0)
        if missing.size:
            sets, wanted = sets[missing], hashes[missing]
            found[missing] = np.where(self._keys[1][sets] == wanted, self._values[1][sets], np.int32(-1))
        return found

    def insert(self, hashes: U8, values: I4) -> None:
        """Remember; of several hashes for one way the last stays."""
        sets = (hashes >> self._shift).astype(np.intp)
        fresh = self._keys[0][sets] != hashes  # a known hash gets its new value in place
        moved = sets[fresh]
        self._keys[1][moved] = self._keys[0][moved]
        self._values[1][moved] = self._values[0][moved]
        self._keys[0][sets] = hashes
        self._values[0][sets] = values

    def clear(self) -> None:
        """Forget everything."""
        self._values.fill(-1)
