"""Redis over columns: one plain command in one segment and its plain reply in the next, many at once.

Receives the segments of a round as a structured array, sorted by connection and sequence.  Hands on which rows are
such pairs, with the command's name; everything else (pipelines, errors, pushes, cut segments, special commands) is left
to `redis.RedisParser`, which knows them all.  Drops nothing.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ARGUMENTS_MAX: Final = 6
"""Bulk strings of a command that are stepped over here; each costs a pass over the rows."""

NAME_BYTES: Final = 16
_LINE: Final = 16
"""Where the first line of a reply must end: a number of so many digits is no length of what fits into a segment."""

_STAR, _DOLLAR, _MINUS, _CR, _LF = b"*$-\r\n"
_ONE_LINE: Final = np.isin(np.arange(256), list(b"+:_#,("))
_LETTER: Final = np.isin(np.arange(256), list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))

Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Commands:
    """What `read_commands` found.

    Attributes:
        whole: ``(n,)``: the row is exactly one command of few arguments.
        name: ``(n, NAME_BYTES)`` uint8: its name in upper case, padded with NUL; only where ``whole``.
    """

    whole: Flags
    name: NDArray[np.uint8]


def read_commands(payload: NDArray[np.uint8], length: NDArray[np.int64]) -> Commands:
    """Find the rows that are one whole command.

    Args:
        payload: ``(n, width)`` bytes.
        length: ``(n,)`` valid bytes of each row, at most ``width``.
    """
    count, width = payload.shape
    flat = np.ascontiguousarray(payload).reshape(-1)
    base = np.arange(count, dtype=np.int64) * width
    last = np.int64(width - 1)

    def at(position: NDArray[np.int64]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = flat[base + np.minimum(position, last)]
        return found

    # "*3\r\n": one digit; longer commands take the other way
    arguments = payload[:, 1].astype(np.int64) - 48
    whole = (payload[:, 0] == _STAR) & (arguments > 0) & (arguments <= ARGUMENTS_MAX)
    whole &= (payload[:, 2] == _CR) & (payload[:, 3] == _LF)
    position = np.full(count, 4, np.int64)
    name_at = position
    name_length = np.zeros(count, np.int64)
    for argument in range(int(arguments[whole].max(initial=0))):
        active = whole & (arguments > argument)
        is_bulk = at(position) == _DOLLAR
        size = np.zeros(count, np.int64)
        digits = np.zeros(count, np.int64)
        ended = np.zeros(count, np.bool_)
        for place in range(1, 5):
            byte = at(position + place)
            digit = (byte >= 48) & (byte <= 57) & ~ended
            size = np.where(digit, size * 10 + (byte.astype(np.int64) - 48), size)
            digits += digit
            ended |= ~digit
        after = position + 1 + digits
        ok = is_bulk & (digits > 0) & (at(after) == _CR) & (at(after + 1) == _LF)
        end = after + 2 + size
        ok &= (end + 2 <= length) & (at(end) == _CR)
        if argument == 0:
            name_at, name_length = after + 2, size
            ok &= (size > 0) & (size <= NAME_BYTES)
        whole &= ok | ~active
        position = np.where(active, end + 2, position)
    whole &= position == length
    places = np.minimum(name_at[:, None] + np.arange(NAME_BYTES), last)
    name = flat[base[:, None] + places]
    name = np.where(_LETTER[name], name & 0xDF, name)
    name[np.arange(NAME_BYTES) >= name_length[:, None]] = 0
    return Commands(whole & _LETTER[name[:, 0]], name.astype(np.uint8))


def read_replies(payload: NDArray[np.uint8], length: NDArray[np.int64]) -> Flags:
    """Which rows are one whole plain reply: a line that is no error, or a bulk string.

    Args:
        payload: ``(n, width)`` bytes, ``width`` at least 16.
        length: ``(n,)`` valid bytes of each row.
    """
    line = payload[:, :_LINE]
    is_end = line == _CR
    end = is_end.argmax(axis=1).astype(np.int64)
    found: Flags = (end > 0) & (end < _LINE - 1) & (payload[np.arange(len(payload)), end + 1] == _LF)
    kind = payload[:, 0]
    one_line = _ONE_LINE[kind] & (end + 2 == length)
    digit = (line >= 48) & (line <= 57)
    inside = (np.arange(_LINE) >= 1) & (np.arange(_LINE) < end[:, None])
    number = np.zeros(len(payload), np.int64)
    for place in range(1, 5):  # of what fits into a segment
        number = np.where(inside[:, place], number * 10 + (line[:, place].astype(np.int64) - 48), number)
    bulk = (kind == _DOLLAR) & (digit | ~inside).all(axis=1) & (end <= 5) & (end + 2 + number + 2 == length)
    nothing = (kind == _DOLLAR) & (line[:, 1] == _MINUS) & (length == 5)
    found &= one_line | bulk | nothing
    return found


def chains(good: Flags, first: Rows, sizes: Rows) -> NDArray[np.int64]:
    """How many pairs each group begins with.

    Args:
        good: ``(n,)``: row ``i`` and ``i + 1`` are a pair that follows what stands before it in its group.
        first: ``(g,)`` where each group begins, ascending; the groups are all there is.
        sizes: ``(g,)`` rows of each group.
    """
    within = np.arange(len(good)) - np.repeat(first, sizes)
    stops = np.where((within % 2 == 0) & ~good, within, len(good))
    found: NDArray[np.int64] = np.minimum(np.minimum.reduceat(stops, first), sizes // 2 * 2) // 2
    return found


def names_of(name: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.intp]]:
    """Distinct names, and which of them each row has."""
    keys: NDArray[Any] = np.ascontiguousarray(name).view(f"V{NAME_BYTES}").reshape(-1)
    words = np.ascontiguousarray(name).view(np.uint64)
    mixed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    _, at, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    return [bytes(keys[i]).rstrip(b"\0").decode("ascii", "replace") for i in at], inverse
