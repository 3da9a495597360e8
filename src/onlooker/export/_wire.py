"""Pieces of the protobuf wire format, and copies of many short byte strings at once.

Spans are laid out by numpy, not by protobuf objects: those cost 14 µs a span, all of this below one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I8, U1, AttributeValue

_LIMITS = [1 << (7 * i) for i in range(1, 10)]  # a value from the i-th on needs one byte more


def varint(value: int) -> bytes:
    """A base-128 varint; negative values as their 64-bit two's complement, as protobuf has it."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def any_value(value: AttributeValue) -> bytes:
    """The content of an ``opentelemetry.proto.common.v1.AnyValue``."""
    if isinstance(value, bool):  # before int: a bool is one
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, str):
        return field(1, value.encode("utf-8", "replace"))
    if isinstance(value, int):
        return b"\x18" + varint(value)
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    return field(5, b"".join(field(1, any_value(item)) for item in value))


def key_value(key: str, value: AttributeValue) -> bytes:
    """The content of an ``opentelemetry.proto.common.v1.KeyValue``."""
    return field(1, key.encode()) + field(2, any_value(value))


def varint_lengths(values: NDArray[np.uint64]) -> I8:
    """How many bytes the varint of each value takes: 1 to 10."""
    out = np.ones(len(values), np.int64)
    if not len(values):
        return out
    largest = int(values.max())
    for limit in _LIMITS:
        if largest < limit:
            break
        out += values >= np.uint64(limit)
    return out


def varints(values: NDArray[np.uint64], lengths: I8) -> NDArray[np.uint8]:
    """``(n, max(lengths))`` bytes; row i holds the varint of value i in its first ``lengths[i]`` bytes."""
    width = int(lengths.max(initial=1))
    out = np.empty((len(values), width), np.uint8)
    rest = values.copy()
    for i in range(width):
        out[:, i] = rest & np.uint64(0x7F)
        rest >>= np.uint64(7)
        if i + 1 < width:
            out[:, i] |= (lengths > i + 1).astype(np.uint8) << np.uint8(7)
    return out


def _windows(pool: U1, width: int) -> NDArray[np.void]:
    """Every stretch of ``width`` bytes of the pool as one element: a fancy index then moves whole stretches."""
    return np.ndarray((len(pool) - width + 1,), f"V{width}", pool, 0, (1,))


def scatter(out: U1, to: I8, rows: NDArray[np.uint8]) -> None:
    """Write row i of the ``(n, w)`` array to ``out[to[i] : to[i] + w]``."""
    width = rows.shape[1]
    _windows(out, width)[to] = rows.view(f"V{width}")[:, 0]


def copy_ragged(out: U1, to: I8, pool: U1, start: I8, length: I8, piece: int) -> None:
    """Copy ``pool[start[i] : start[i] + length[i]]`` to ``out[to[i]:]`` for every i, in pieces of equal width.

    The last piece of a string is as wide as the others: up to ``piece - 1`` bytes behind the end of each target are
    overwritten with garbage.  The caller writes those later, and gives ``to`` in ascending order.

    Args:
        out: Has at least ``piece`` bytes behind the last target.
        to: ``(n,)`` offsets into ``out``, ascending.
        pool: May end right behind a string.
        start: ``(n,)`` offsets into ``pool``.
        length: ``(n,)`` lengths, 0 or more.
        piece: Width of a piece; less if all strings are shorter.
    """
    longest = int(length.max(initial=0))
    if not longest:
        return
    width = min(piece, longest)
    if longest > width:
        count = (length + (width - 1)) // width
        step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        step *= width
        to = np.repeat(to, count) + step
        start = np.repeat(start, count) + step
    elif not length.all():
        some = np.flatnonzero(length)
        to, start = to[some], start[some]
    if int(start.max()) + width > len(pool):
        inside = start + width <= len(pool)
        if inside.any():
            _windows(out, width)[to[inside]] = _windows(pool, width)[start[inside]]
        # A piece that begins in the last bytes of the pool would read behind it.
        base = max(len(pool) - width, 0)
        tail = np.zeros(2 * width, np.uint8)
        tail[: len(pool) - base] = pool[base:]
        _windows(out, width)[to[~inside]] = _windows(tail, width)[start[~inside] - base]
    else:
        _windows(out, width)[to] = _windows(pool, width)[start]


def fields(data: bytes, limit: int = 1000) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, as far as it makes sense: answers of a receiver are not to be trusted.

    Yields:
        Field number, and an int (varint) or bytes; fixed-width fields as bytes.  Ends silently at the first nonsense.
    """
    place = 0
    for _ in range(limit):
        tag, place = _read_varint(data, place)
        if place < 0:
            return
        kind = tag & 7
        if kind == 0:
            value, place = _read_varint(data, place)
            if place < 0:
                return
            yield tag >> 3, value
            continue
        width, place = _read_varint(data, place) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), place)
        if place < 0 or width < 0 or place + width > len(data):
            return
        yield tag >> 3, data[place : place + width]
        place += width


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Value and the place behind it; the place is -1 if there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            return 0, -1
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place
    return 0, -1
