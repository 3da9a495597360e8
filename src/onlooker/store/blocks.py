"""Metrics as blocks: counts, errors, time and a histogram of latency for many (bucket of time, key) pairs at once.

A block is a set of columns in memory and one compressed blob on disk.  Histograms are sparse: a block lists only the
buckets that hold something.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I8
from onlooker.errors import StoreError

PER_OCTAVE: Final = 4
"""Buckets a doubling: 19 % wide, so the middle of one is within 9 % of all its values."""
FIRST_OCTAVE: Final = 13  # 8.192 µs
OCTAVES: Final = 24  # to 137 s
BUCKETS: Final = PER_OCTAVE * OCTAVES
STREAM: Final = BUCKETS
"""The bucket of what has no latency: streams."""
CODES: Final = 128
"""Bucket numbers that one key takes in a combined code; a power of two above `STREAM`."""

_ENTRY: Final = np.dtype(
    [("t", "<u4"), ("key", "<u4"), ("count", "<u4"), ("errors", "<u4"), ("sum_us", "<u8"), ("pairs", "<u2")]
)
_PAIR: Final = np.dtype([("bucket", "u1"), ("count", "<u4")])
_HEAD: Final = struct.Struct("<4sII")
_MAGIC: Final = b"olb1"
_MAX_ENTRIES: Final = 4_000_000
_CHUNK: Final = 200_000

LOWER_NS: Final[NDArray[np.float64]] = 2.0 ** (FIRST_OCTAVE + np.arange(BUCKETS + 1) / PER_OCTAVE)
"""Lower bounds of the buckets, and the upper one of the last."""


@dataclass(frozen=True, slots=True)
class Block:
    """Sums by time and key.

    Attributes:
        t: ``(n,)`` int64 Unix seconds, where a bucket of time begins.
        key: ``(n,)`` int64 rows of the table ``keys``.
        count, errors, sum_us: ``(n,)`` int64.
        entry: ``(m,)``, to which of the n entries a pair belongs; ascending.
        bucket: ``(m,)`` number of a latency bucket.
        hits: ``(m,)`` requests in it.  These three are of any integer dtype: there may be a million of them.
    """

    t: I8
    key: I8
    count: I8
    errors: I8
    sum_us: I8
    entry: NDArray[Any]
    bucket: NDArray[Any]
    hits: NDArray[Any]

    def __len__(self) -> int:
        return len(self.t)

    def where(self, mask: NDArray[np.bool_]) -> Block:
        """The entries that the mask chooses."""
        place = np.cumsum(mask) - 1
        pairs = mask[self.entry]
        return Block(
            self.t[mask], self.key[mask], self.count[mask], self.errors[mask], self.sum_us[mask],
            place[self.entry[pairs]], self.bucket[pairs], self.hits[pairs],
        )  # fmt: skip


_NOTHING: Final[I8] = np.zeros(0, np.int64)
EMPTY: Final = Block(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING)


def bucket_of(duration_ns: I8, stream: NDArray[np.bool_]) -> NDArray[np.int32]:
    """``(n,)`` bucket numbers."""
    octave = np.log2(np.maximum(duration_ns, 1).astype(np.float32))
    bucket = ((octave - FIRST_OCTAVE) * PER_OCTAVE).astype(np.int32)
    np.clip(bucket, 0, BUCKETS - 1, out=bucket)
    if stream.any():
        bucket[stream] = STREAM
    return bucket


def from_rows(
    t: int, key: I8, bucket: NDArray[np.int32], duration_ns: I8, failed: NDArray[np.bool_], weight: I8 | None = None
) -> Block:
    """One block of single requests, all in the bucket of time that begins at ``t``; each counts ``weight`` times."""
    if not len(key):
        return EMPTY
    if weight is None:
        codes, hits = np.unique(key * CODES + bucket, return_counts=True)
    else:
        codes, where = np.unique(key * CODES + bucket, return_inverse=True)
        hits = np.zeros(len(codes), np.int64)
        np.add.at(hits, where, weight)
    keys = codes // CODES
    distinct, entry = np.unique(keys, return_inverse=True)
    at = np.searchsorted(distinct, key)
    n = len(distinct)
    if weight is None:
        count = np.bincount(at, minlength=n)
        errors = np.bincount(at[failed], minlength=n)
        sum_us = np.bincount(at, weights=duration_ns / 1e3, minlength=n).astype(np.int64)
    else:
        count, errors = np.zeros(n, np.int64), np.zeros(n, np.int64)
        np.add.at(count, at, weight)
        np.add.at(errors, at[failed], weight[failed])
        sum_us = np.bincount(at, weights=duration_ns / 1e3 * weight, minlength=n).astype(np.int64)
    return Block(np.full(n, t, np.int64), distinct, count, errors, sum_us, entry, codes % CODES, hits)


def merge(blocks: Sequence[Block], step: int = 1) -> Block:
    """One block with an entry for each (multiple of ``step``, key)."""
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        return EMPTY
    if len(blocks) == 1 and step == 1:
        return blocks[0]
    t = np.concatenate([block.t for block in blocks])
    t -= t % step
    key = np.concatenate([block.key for block in blocks])
    offsets = np.cumsum([0, *(len(block) for block in blocks[:-1])])
    entry = np.concatenate([block.entry + at for block, at in zip(blocks, offsets, strict=True)])
    bucket = np.concatenate([block.bucket for block in blocks])
    hits = np.concatenate([block.hits for block in blocks])
    codes, inverse = np.unique((t << 32) + key, return_inverse=True)
    n = len(codes)

    def total(name: str) -> I8:
        values = np.concatenate([getattr(block, name) for block in blocks])
        summed: I8 = np.zeros(n, np.int64)
        np.add.at(summed, inverse, values)
        return summed

    pairs, place = np.unique(inverse[entry] * CODES + bucket, return_inverse=True)
    merged: I8 = np.zeros(len(pairs), np.int64)
    np.add.at(merged, place, hits.astype(np.int64))
    return Block(
        codes >> 32, codes & 0xFFFFFFFF, total("count"), total("errors"), total("sum_us"),
        pairs // CODES, pairs % CODES, merged,
    )  # fmt: skip


def joined(blocks: Sequence[Block], step: int) -> Block:
    """One block with the entries of all, in steps; what belongs together is not added up, which would cost a sort."""
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        return EMPTY
    t = np.concatenate([block.t for block in blocks])
    t -= t % step
    offsets = np.cumsum([0, *(len(block) for block in blocks[:-1])])
    entry = np.concatenate([block.entry + np.int32(at) for block, at in zip(blocks, offsets, strict=True)])
    rest = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("key", "count", "errors", "sum_us", "bucket", "hits")
    }
    return Block(t=t, entry=entry, **rest)


def encode(block: Block) -> bytes:
    """The block as a blob."""
    entries = np.zeros(len(block), _ENTRY)
    for name in ("t", "key", "count", "errors", "sum_us"):
        entries[name] = getattr(block, name)
    entries["pairs"] = np.bincount(block.entry, minlength=len(block)) if len(block) else 0
    pairs = np.zeros(len(block.bucket), _PAIR)
    pairs["bucket"], pairs["count"] = block.bucket, block.hits
    # column by column: equal bytes stand together, which a quick deflate likes
    raw = b"".join(np.ascontiguousarray(entries[name]).tobytes() for name in entries.dtype.names or ())
    raw += pairs["bucket"].tobytes() + pairs["count"].tobytes()
    return _HEAD.pack(_MAGIC, len(entries), len(pairs)) + zlib.compress(raw, 1)


def decode(blob: bytes) -> Block:
    """The block of a blob.

    Raises:
        StoreError: it is none.
    """
    if len(blob) < _HEAD.size:
        raise StoreError("a block of metrics is cut off")
    magic, n, m = _HEAD.unpack_from(blob)
    size = n * _ENTRY.itemsize + m * _PAIR.itemsize
    if magic != _MAGIC or n > _MAX_ENTRIES or m > n * CODES:
        raise StoreError("a block of metrics has no proper head")
    try:
        decoder = zlib.decompressobj()
        raw = decoder.decompress(blob[_HEAD.size :], size + 1)
    except zlib.error as err:
        raise StoreError(f"a block of metrics cannot be read: {err}") from err
    if len(raw) != size:
        raise StoreError("a block of metrics has another size than it says")
    at = 0

    def column(dtype: Any, count: int) -> I8:
        nonlocal at
        values: NDArray[Any] = np.frombuffer(raw, dtype, count, at)
        at += values.nbytes
        return values.astype(np.int64)

    t, key, count, errors, sum_us, pairs = (column(_ENTRY[name], n) for name in _ENTRY.names or ())
    if int(pairs.sum()) != m:
        raise StoreError("a block of metrics contradicts itself")
    entry = np.repeat(np.arange(n, dtype=np.int32), pairs)
    bucket = np.frombuffer(raw, np.uint8, m, at)
    hits = np.frombuffer(raw, "<u4", m, at + m)
    return Block(t, key, count, errors, sum_us, entry, np.minimum(bucket, np.uint8(STREAM)), hits)


def histograms(block: Block, group: NDArray[np.integer[Any]], groups: int) -> NDArray[np.int32]:
    """``(groups, BUCKETS)`` sums of the histograms; ``group`` says for each entry where it belongs, -1: nowhere."""
    found = np.zeros(groups * BUCKETS, np.int32)
    for first in range(0, len(block.entry), _CHUNK):  # in pieces: a day of many services is a million pairs
        part = slice(first, first + _CHUNK)
        bucket = block.bucket[part]
        codes = group[block.entry[part]] * BUCKETS
        codes += bucket
        pairs = (codes >= 0) & (bucket < STREAM)
        np.add.at(found, codes[pairs], block.hits[part][pairs].astype(np.int32))
    return found.reshape(groups, BUCKETS)


def quantiles_ms(histogram: NDArray[np.int32], wanted: Sequence[float] = (0.5, 0.95, 0.99)) -> NDArray[np.float64]:
    """``(groups, len(wanted))`` quantiles in ms, interpolated inside the bucket; NaN without values."""
    cumulative = np.cumsum(histogram, axis=1, dtype=np.int32)
    total = cumulative[:, -1]
    out = np.full((len(histogram), len(wanted)), np.nan)
    some = np.flatnonzero(total)
    if not some.size:
        return out
    cumulative = cumulative[some]
    rows = np.arange(some.size)
    for i, q in enumerate(wanted):
        rank = q * cumulative[:, -1]
        reached = cumulative >= np.maximum(rank, 1)[:, None]
        at = np.where(reached[:, -1], reached.argmax(axis=1), BUCKETS - 1)
        before = np.where(at > 0, cumulative[rows, np.maximum(at - 1, 0)], 0)
        inside = np.clip((rank - before) / np.maximum(histogram[some, at], 1), 0.0, 1.0)
        out[some, i] = LOWER_NS[at] * 2.0 ** (inside / PER_OCTAVE) / 1e6
    return out
