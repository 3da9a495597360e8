"""HTTP/2 of a busy round: the frames of many connections at once, as columns.

Receives what the kernel kept of all transfers of a round, and the parsers of their connections.  Hands on `Calls`: the
streams that began and ended within the round, one row each, and the operations of the parsers, which are given only
those frames that belong to other streams.  A connection whose bytes are not beyond doubt, or on which something
unusual happens (a reset, padding, headers over several frames), is left alone: its parser reads it segment by segment,
and says the same.  Drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I8
from onlooker.protocols import Operation, Segment, grpc
from onlooker.protocols import _http2_frames as frames
from onlooker.protocols._hpack import Fields
from onlooker.protocols.http2 import Http2, Meaning, parent_of

Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

_LANE_SHIFT: Final = 40
"""A place in a direction is its lane, and bytes since the beginning of the round: a round has less than 2**40."""
_FAR: Final = (1 << (_LANE_SHIFT - 1)) - 1
_FRAME_BITS: Final = 24
"""Frames of a round are fewer than 2**24: each has nine bytes, and the rings hold 20 MB."""
_STREAM_SHIFT: Final = 31
_NONE: Final = -1
_LONGEST_SETTINGS: Final = frames.kept_bytes(frames.SETTINGS, 0, 1 << 20)


@dataclass(frozen=True, slots=True)
class Transfers:
    """Records of a round, the directions of a connection one after the other, each in the order of its bytes.

    Attributes:
        data: What was kept of all of them.
        place: ``(n + 1,)`` where in ``data`` each begins.
        lane: ``(n,)`` twice the number of the connection, and 1 more for what the server sent; ascending.
        sequence: ``(n,)`` order on the connection; less than 2**32.
        offset, length, mono_ns: ``(n,)`` as in `Segment`.
    """

    data: bytes
    place: I8
    lane: I8
    sequence: I8
    offset: I8
    length: I8
    mono_ns: I8


@dataclass(slots=True)
class Calls:
    """Streams that began and ended within a round.

    Attributes:
        request, response: ``(n,)`` the transfers in which the request's headers, and the response, ended.
        start, request_end, response_start, end: ``(n,)`` CLOCK_MONOTONIC.
        request_bytes, response_bytes: ``(n,)`` of DATA.
        request_messages, response_messages: ``(n,)`` of gRPC; -1: it is none.
        meaning: ``(n,)`` which of ``meanings``.
        parents: Of each meaning, trace id, span id and flags from its headers; empty if there were none.
    """

    request: I8
    response: I8
    start: I8
    request_end: I8
    response_start: I8
    end: I8
    request_bytes: I8
    response_bytes: I8
    request_messages: I8
    response_messages: I8
    meaning: I8
    meanings: list[Meaning]
    parents: list[tuple[bytes, bytes, int]]

    def take(self, rows: Places) -> Calls:
        """The chosen ones."""
        columns = {name: getattr(self, name)[rows] for name in self.__slots__[:-2]}
        return Calls(**columns, meanings=self.meanings, parents=self.parents)


@dataclass(slots=True)
class _Frames:
    """Whole frames, ``(n,)`` each, in the order of their lanes."""

    place: I8
    lane: I8
    kind: I8
    flags: I8
    stream: I8
    length: I8
    begin: I8
    """Place in the direction."""
    kept: I8
    """Bytes of the payload that are there."""

    def take(self, rows: Bools | Places) -> _Frames:
        return _Frames(*(getattr(self, name)[rows] for name in self.__slots__))


SegmentOf = Callable[[int, bytes, int, int], Segment]
"""A part of a transfer as a segment: of which, what was kept of the part, its offset, its length."""


def read_round(
    transfers: Transfers,
    parsers: Sequence[Http2],
    segment_of: SegmentOf,
    take: Callable[[int, list[Operation]], None],
    give_up: Callable[[int], None],
) -> tuple[Bools, Calls | None]:
    """Read the transfers of connections that are level, as far as they are usual.

    Args:
        transfers: All of a connection's that follow each other.
        parsers: Of the connections, each `Http2.is_level`.
        segment_of: Makes a segment of a part of a transfer.
        take: Takes the operations of a connection's parser.
        give_up: Called for a connection whose parser raised.

    Returns:
        ``(len(parsers),)`` which connections were read, and their calls.  Nothing of the others was touched.
    """
    found, low, base, starts, is_read = _find(transfers, parsers)
    if not is_read.all():
        sparse = [parser.reader(from_client=side) for parser in _those(parsers, ~is_read) for side in (True, False)]
        if not all(reader.is_sparse for reader in sparse):
            for reader in sparse:
                reader.is_sparse = True
            found, low, base, starts, is_read = _find(transfers, parsers)
    ok = is_read[found.lane >> 1]
    if not ok.all():
        found = found.take(ok)
    connections = np.flatnonzero(is_read).tolist()
    if not connections:
        return is_read, None
    work = _Work(transfers, parsers, segment_of, found, low, base, starts)
    for number in connections:
        try:
            take(number, work.begin(number))
        except Exception:  # as wherever a parser is called: its connection is given up, not the agent
            give_up(number)
    work.decode(connections)
    calls, others = work.calls()
    work.others(others, give_up)
    for number in connections:
        try:
            take(number, work.finish(number))
        except Exception:  # see above
            give_up(number)
    return is_read, calls


def _find(transfers: Transfers, parsers: Sequence[Http2]) -> tuple[_Frames, I8, I8, list[tuple[int, int]], Bools]:
    """Find the frames.

    Returns:
        All whole frames; the place of each transfer in its direction; where each lane begins; what of each lane belongs
        to a frame from before; and whose connections are beyond doubt.
    """
    data, place = transfers.data, transfers.place
    count = 2 * len(parsers)
    edge = np.searchsorted(transfers.lane, np.arange(count + 1))
    is_read = np.ones(len(parsers), np.bool_)
    places: list[int] = []
    lacking: dict[int, int] = {}
    found_before = [0]
    starts: list[tuple[int, int]] = []
    base = np.zeros(count, np.int64)
    before = np.zeros(count, np.int64)  # bytes of the direction that belong to a frame from before
    kept_before = np.zeros(count, np.int64)
    tail = np.zeros(count, np.int64)  # where what is behind the last whole frame begins
    for lane, (begin, end) in enumerate(zip(place[edge[:-1]].tolist(), place[edge[1:]].tolist(), strict=True)):
        reader = parsers[lane >> 1].reader(from_client=not lane & 1)
        # a direction of which no byte has come yet begins with what is there
        offset = reader.offset if reader.offset >= 0 or begin == end else int(transfers.offset[edge[lane]])
        base[lane] = offset
        begun = reader.begun(data, begin, end)
        if begun is None:
            is_read[lane >> 1] = False
            begun = (0, 0)
        if reader.is_sparse:
            i, j = edge[lane : lane + 2].tolist()
            if not frames.walk_transfers(
                data, place[i : j + 1].tolist(), transfers.offset[i:j].tolist(), transfers.length[i:j].tolist(),
                offset, *begun, places, lacking, may_lack=reader.is_in_data,
            ):  # fmt: skip
                is_read[lane >> 1] = False
            begun = begun[0], lacking.pop(_NONE, begun[1])
            tail[lane] = begin + begun[1]
            if len(places) > found_before[-1]:
                tail[lane] = places[-1] + frames.HEADER_BYTES + lacking.get(places[-1], _kept_at(data, places[-1]))
        else:
            tail[lane] = frames.walk(data, begin + begun[1], end, places) if begin + begun[1] <= end else begin
        starts.append(begun)
        before[lane], kept_before[lane] = begun
        found_before.append(len(places))
    bound = np.array(found_before)
    at = np.array(places, np.int64)
    lane_of = np.repeat(np.arange(count), np.diff(bound))
    if at.size:
        # eight of the nine bytes of a header in one load, wherever it stands
        word = np.ndarray((len(data) - 7,), ">u8", data, strides=(1,))[at].astype(np.uint64)
        last = np.frombuffer(data, np.uint8)[at + 8].astype(np.int64)
        length = (word >> np.uint64(40)).astype(np.int64)
        kind = (word >> np.uint64(32)).astype(np.int64) & 0xFF
        flags = (word >> np.uint64(24)).astype(np.int64) & 0xFF
        stream = (word.astype(np.int64) & 0xFFFFFF) << 8 | last
    else:
        length = kind = flags = stream = at
    size = length + frames.HEADER_BYTES
    behind = np.cumsum(size)
    first = np.concatenate(([0], behind))[bound[:-1]]
    begin_at = np.minimum(behind - size - first[lane_of] + before[lane_of], _FAR)
    # the last frame of a lane may be there only as far as it is kept
    lane_end = np.zeros(count, np.int64)
    has = np.flatnonzero(np.diff(edge) > 0)
    final = edge[1:][has] - 1
    lane_end[has] = transfers.offset[final] + transfers.length[final] - base[has]
    is_whole = begin_at + size <= lane_end[lane_of]
    filled = np.flatnonzero(np.diff(bound) > 0)
    ending = bound[1:][filled] - 1
    cut = ending[~is_whole[ending]]
    tail[lane_of[cut]] = at[cut]
    keep = np.ones(len(at), np.bool_)
    keep[cut] = False
    if cut.size:
        at, lane_of, kind, flags, stream = at[keep], lane_of[keep], kind[keep], flags[keep], stream[keep]
        length, begin_at, size = length[keep], begin_at[keep], size[keep]
    is_read[lane_of[~_is_usual(lane_of, kind, flags, stream, length)] >> 1] = False
    # what follows the last whole frame, as if it were one
    number = np.bincount(lane_of, minlength=count)
    tail_at = before.copy()
    some = np.flatnonzero(number)
    closing = np.cumsum(number)[some] - 1
    tail_at[some] = begin_at[closing] + size[closing]
    tail_kept = np.full(count, frames.HEADER_BYTES, np.int64)
    for lane, position, end in zip(range(count), tail.tolist(), place[edge[1:]].tolist(), strict=True):
        if end - position >= frames.HEADER_BYTES:
            tail_kept[lane] += lacking.get(position, _kept_at(data, position))
    # Each record must have kept what condensing keeps of its range: then none before it was missed.
    kept = np.where(kind == frames.HEADERS, length, 0)
    kept = np.where(kind == frames.DATA, np.minimum(length, frames.KEPT_DATA), kept)
    kept = np.where(kind == frames.SETTINGS, np.minimum(length, _LONGEST_SETTINGS), kept)
    kept = np.where(kind == frames.GOAWAY, np.minimum(length, 8), kept)
    if lacking and len(at):
        positions = np.array(list(lacking))
        i = np.minimum(np.searchsorted(at, positions), len(at) - 1)
        is_there = at[i] == positions  # but for a frame whose end is still to come
        kept[i[is_there]] = np.array(list(lacking.values()))[is_there]
    lanes = np.arange(count)
    start = place[edge[:-1]]
    key = np.concatenate((lanes << _LANE_SHIFT, lane_of << _LANE_SHIFT | begin_at, lanes << _LANE_SHIFT | tail_at))
    key_place = np.concatenate((start, at, tail))
    key_kept = np.concatenate((kept_before, kept + frames.HEADER_BYTES, tail_kept))
    order = np.argsort(key, kind="stable")
    key, key_place, key_kept = key[order], key_place[order], key_kept[order]
    low = transfers.offset - base[transfers.lane]
    bad = (low < 0) | (low > _FAR)
    low = np.where(bad, 0, low) | transfers.lane << _LANE_SHIFT
    for where, expected in ((low, place[:-1]), (low + transfers.length, place[1:])):
        i = np.searchsorted(key, where, "right") - 1
        bad |= key_place[i] + np.minimum(where - key[i], key_kept[i]) != expected
    is_read[transfers.lane[bad] >> 1] = False
    return _Frames(at, lane_of, kind, flags, stream, length, begin_at, kept), low, base, starts, is_read


def _kept_at(data: bytes, place: int) -> int:
    """How much is kept of the payload of the frame there."""
    return frames.kept_bytes(data[place + 3], data[place + 4], int.from_bytes(data[place : place + 3], "big"))


def _those(parsers: Sequence[Http2], which: Bools) -> list[Http2]:
    return [parsers[i] for i in np.flatnonzero(which).tolist()]


def _is_usual(lane: I8, kind: I8, flags: I8, stream: I8, length: I8) -> Bools:
    """Frames that `Http2` would take as they are, and that concern no other stream."""
    own = (stream > 0) & (stream < 1 << 31)
    padded = (flags & frames.PADDED) != 0
    least = np.where(flags & frames.HAS_PRIORITY, 6, 1)
    blocks = (kind == frames.HEADERS) & own & ~padded & (stream & 1 == 1) & (length >= least)
    blocks &= ((flags & frames.END_HEADERS) != 0) & (length <= frames.KEPT_BLOCK - frames.HEADER_BYTES)
    return np.asarray(
        ((kind == frames.DATA) & own & ~padded)
        | blocks
        | ((kind == frames.WINDOW_UPDATE) & (length == 4))
        | ((kind == frames.PING) & (length == 8) & (stream == 0))
        | ((kind == frames.PRIORITY) & (length == 5) & own)
        | ((kind == frames.SETTINGS) & (length % 6 == 0) & (length <= _LONGEST_SETTINGS) & (stream == 0))
        | ((kind == frames.GOAWAY) & (length >= 8) & (stream == 0) & (lane & 1 == 0))  # a client's refuses nothing
    )


class _Work:
    """A round, once it is known what can be read of it."""

    def __init__(
        self, transfers: Transfers, parsers: Sequence[Http2], segment_of: SegmentOf, found: _Frames, low: I8,
        base: I8, starts: list[tuple[int, int]],
    ) -> None:  # fmt: skip
        self.transfers, self.parsers, self.segment_of = transfers, parsers, segment_of
        self.all = found
        self.starts = starts
        self.edge = np.searchsorted(transfers.lane, np.arange(2 * len(parsers) + 1))
        self.base = base
        key = found.lane << _LANE_SHIFT | found.begin
        self.first_in = np.searchsorted(low, key, "right") - 1
        last = key + found.length + frames.HEADER_BYTES - 1
        last_in = np.searchsorted(low, last, "right") - 1
        # where the record is missing that had the last byte, the next one tells that it passed
        self.last_in = last_in + (last >= (low + transfers.length)[last_in])
        self.highest = self.before = np.zeros(len(parsers), np.int64)
        self.opens = np.empty(0, np.intp)
        self.blocks: list[Fields] = []
        self.bound = np.searchsorted(found.lane, np.arange(2 * len(parsers) + 1))

    # ---- the frames at the edges, which their readers put together ----

    def begin(self, number: int) -> list[Operation]:
        """Finish the frames from before."""
        done: list[Operation] = []
        for lane in (2 * number, 2 * number + 1):
            count, kept = self.starts[lane]
            if count:
                base = int(self.base[lane])
                done += self._feed(lane, int(self.transfers.place[self.edge[lane]]), base, base + count, kept)
        self.highest[number] = self.parsers[number].highest
        return done

    def finish(self, number: int) -> list[Operation]:
        """Let the readers begin the frames that are not whole, and take what is done."""
        transfers, parser = self.transfers, self.parsers[number]
        done = parser.passed(int(self.highest[number]))
        for lane in (2 * number, 2 * number + 1):
            if self.edge[lane] == self.edge[lane + 1]:
                continue
            last = int(self.edge[lane + 1]) - 1
            stop = int(transfers.offset[last] + transfers.length[last])
            reader = parser.reader(from_client=not lane & 1)
            base = int(self.base[lane])
            position, at = int(transfers.place[self.edge[lane]]) + self.starts[lane][1], base + self.starts[lane][0]
            if self.bound[lane] < self.bound[lane + 1]:
                i = int(self.bound[lane + 1]) - 1
                at = base + int(self.all.begin[i] + self.all.length[i]) + frames.HEADER_BYTES
                position = int(self.all.place[i] + self.all.kept[i]) + frames.HEADER_BYTES
                reader.passed(at)
            if at < stop:
                done += self._feed(lane, position, at, stop, int(transfers.place[last + 1]) - position)
        return done

    def _feed(self, lane: int, position: int, at: int, stop: int, kept: int) -> list[Operation]:
        """Give a parser the bytes of one direction from ``at`` to ``stop``, record by record."""
        transfers = self.transfers
        done: list[Operation] = []
        end = position + kept
        for i in range(int(self.edge[lane]), int(self.edge[lane + 1])):
            behind = int(transfers.offset[i] + transfers.length[i])
            if behind <= at:
                continue
            if at >= stop:
                break
            # A gap was found to be inside of what is left out: the reader sees that, too.
            from_ = max(at, int(transfers.offset[i]))
            to = min(behind, stop)
            last = min(int(transfers.place[i + 1]), end)
            done += self.parsers[lane >> 1].feed(self.segment_of(i, transfers.data[position:last], from_, to - from_))
            position, at = max(position, last), to
        return done

    # ---- headers ----

    def decode(self, connections: list[int]) -> None:
        """Read the header block of each HEADERS frame."""
        data, found = self.transfers.data, self.all
        is_block = found.kind == frames.HEADERS
        self.block = np.cumsum(is_block) - 1
        rows = np.flatnonzero(is_block)
        start = found.place[rows] + frames.HEADER_BYTES
        end = start + found.length[rows]
        start += np.where(found.flags[rows] & frames.HAS_PRIORITY, 5, 0)
        edge = np.searchsorted(found.lane[rows], np.arange(2 * len(self.parsers) + 1)).tolist()
        blocks = [data[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)]
        for number in connections:
            for side in (0, 1):
                mine = blocks[edge[2 * number + side] : edge[2 * number + side + 1]]
                if mine:
                    self.blocks += self.parsers[number].read_blocks(mine, from_client=not side)

        for row in np.flatnonzero((found.kind == frames.SETTINGS) & (found.length > 0)).tolist():
            lane, at = int(found.lane[row]), int(found.place[row]) + frames.HEADER_BYTES
            parser = self.parsers[lane >> 1]
            payload = data[at : at + int(found.kept[row])]
            parser.on_frame(
                parser.reader(from_client=not lane & 1), frames.SETTINGS, int(found.flags[row]), 0, payload, False
            )

    def fields(self, row: int) -> Fields:
        """Of a HEADERS frame."""
        return self.blocks[int(self.block[row])]

    # ---- streams ----

    def calls(self) -> tuple[Calls | None, Places]:
        """The streams that are whole, and the frames of all others."""
        found, transfers = self.all, self.transfers
        connection = found.lane >> 1
        is_request = found.lane & 1 == 0
        is_block, is_data = found.kind == frames.HEADERS, found.kind == frames.DATA
        relevant = is_block | is_data
        key = connection << _STREAM_SHIFT | found.stream
        # streams are opened with rising numbers (RFC 9113 section 5.1.1)
        asks = np.flatnonzero(is_block & is_request)
        known = np.arange(len(self.parsers)) << _STREAM_SHIFT | self.highest
        rising = np.maximum.accumulate(np.maximum(key[asks], known[connection[asks]]))
        is_new = (key[asks] == rising) & (key[asks] > known[connection[asks]])
        is_new[1:] &= rising[1:] > rising[:-1]
        opens = self.opens = asks[is_new]
        count = len(opens)
        if not count:
            return None, np.flatnonzero(relevant)
        opened = key[opens]
        latest = np.flatnonzero(np.concatenate((connection[opens][1:] != connection[opens][:-1], [True])))
        self.before = self.highest.copy()
        for number, row in zip(*(a.tolist() for a in np.unique(connection[opens], return_index=True)), strict=True):
            self.parsers[number].opens(int(found.stream[opens[row]]))
        self.highest[connection[opens[latest]]] = found.stream[opens[latest]]

        which = np.minimum(np.searchsorted(opened, key), count - 1)
        of_opened = relevant & (opened[which] == key)

        def each(rows: Places) -> I8:
            """How many of these frames each stream has."""
            return np.bincount(which[rows], minlength=count)

        def last(rows: Places) -> I8:
            """The last of these frames of each stream."""
            result = np.full(count, _NONE, np.int64)
            result[which[rows]] = rows
            return result

        sent, answered = np.flatnonzero(of_opened & is_request), np.flatnonzero(of_opened & ~is_request)
        ends = (found.flags & frames.END_STREAM) != 0
        sent_blocks, answer_blocks = sent[is_block[sent]], answered[is_block[answered]]
        request_last, response_last = last(sent), last(answered)
        response_first = last(answered[::-1])
        request_ends, response_ends = sent[ends[sent]], answered[ends[answered]]
        response = last(answer_blocks[::-1])
        trailers = last(answer_blocks)
        blocks = each(answer_blocks)
        whole = (each(sent_blocks) == 1) & (each(request_ends) == 1) & (each(response_ends) == 1)
        whole &= (blocks >= 1) & (blocks <= 2) & (last(request_ends) == request_last)
        whole &= (last(response_ends) == response_last) & (response_first == response)
        whole &= (blocks == 1) | (trailers == response_last)
        whole &= (blocks == 2) | (trailers == response)
        whole &= transfers.sequence[self.last_in[request_last]] <= transfers.sequence[self.last_in[response_last]]
        lost_at = np.array([parser.circumstances[2] for parser in self.parsers], np.int64)
        start = transfers.mono_ns[self.first_in[opens]]
        whole &= start > lost_at[connection[opens]]
        rows = np.flatnonzero(whole)
        if not rows.size:
            return None, np.flatnonzero(relevant)
        # messages of gRPC: one a frame, if the frame is as long as its prefix says
        body = np.flatnonzero(of_opened & is_data & (found.length > 0))
        place = found.place[body] + frames.HEADER_BYTES
        exact = found.kept[body] >= grpc.PREFIX_BYTES
        if body.size:
            bytes_of = np.frombuffer(transfers.data, np.uint8)
            at = np.where(exact, place, 0)
            size = np.zeros(len(body), np.int64)
            for i in range(1, grpc.PREFIX_BYTES):
                size = size << 8 | bytes_of[at + i]
            exact &= size + grpc.PREFIX_BYTES == found.length[body]
        odd = each(body[~exact]) > 0
        messages = each(body[is_request[body]]), each(body[~is_request[body]])

        meaning, meanings, parents, rpc, usable = self._meanings(
            opens[rows], response[rows], np.where(blocks[rows] == 2, trailers[rows], _NONE)
        )
        usable &= ~(odd[rows] & rpc.any(axis=1))
        whole[rows[~usable]] = False
        rows, meaning, rpc = rows[usable], meaning[usable], rpc[usable]
        is_part = of_opened & whole[which]
        others = np.flatnonzero(relevant & ~is_part)
        start = start[rows]
        end = np.maximum(transfers.mono_ns[self.last_in[response_last[rows]]], start)
        request_end = transfers.mono_ns[self.last_in[request_last[rows]]]
        size = np.bincount(which[body], found.length[body] * is_request[body], count)[rows]
        size_back = np.bincount(which[body], found.length[body] * ~is_request[body], count)[rows]
        return Calls(
            request=self.last_in[opens[rows]],
            response=self.last_in[response_last[rows]],
            start=start,
            request_end=np.clip(request_end, start, end),
            response_start=np.maximum(transfers.mono_ns[self.first_in[response[rows]]], start),
            end=end,
            request_bytes=size.astype(np.int64),
            response_bytes=size_back.astype(np.int64),
            request_messages=np.where(rpc[:, 0], messages[0][rows], _NONE),
            response_messages=np.where(rpc[:, 1], messages[1][rows], _NONE),
            meaning=meaning,
            meanings=meanings,
            parents=parents,
        ), others  # fmt: skip

    def _meanings(
        self, request: I8, response: I8, trailers: I8
    ) -> tuple[I8, list[Meaning], list[tuple[bytes, bytes, int]], Bools, Bools]:
        """What streams say, once for those that say the same.

        Returns:
            Which meaning; the meanings; their parents; ``(n, 2)`` whether messages of the request and of the response
            are counted; whether the headers are as usual.
        """
        # The address of an object stands for it: equal header blocks of a connection share their fields.
        address = np.fromiter(map(id, self.blocks), np.int64, len(self.blocks))
        number = self.all.lane[request] >> 1
        kinds: dict[tuple[bool, bool, bool], int] = {}
        kind_of = np.zeros(len(self.parsers), np.int64)
        for i, parser in enumerate(self.parsers):
            predates, is_client, lost_at = parser.circumstances
            kind_of[i] = kinds.setdefault((predates, is_client, lost_at >= 0), len(kinds))
        first, combined = _groups(
            address[self.block[request]], address[self.block[response]],
            np.where(trailers >= 0, address[self.block[trailers]], 0), kind_of[number],
        )  # fmt: skip
        meanings: list[Meaning] = []
        parents: list[tuple[bytes, bytes, int]] = []
        rpc = np.zeros((len(first), 2), np.bool_)
        usable = np.zeros(len(first), np.bool_)
        for i, (asked, answered, trailed, whose) in enumerate(
            zip(*(column[first].tolist() for column in (request, response, trailers, number)), strict=True)
        ):
            ask, answer = self.fields(asked), self.fields(answered)
            trail = self.fields(trailed) if trailed >= 0 else None
            meaning = self.parsers[whose].meaning(ask, answer, trail)
            meanings.append(meaning)
            is_request, is_rpc, parent = parent_of(ask)
            parents.append(parent)
            is_final = answer.status >= 200 or (not answer.status and answer.holes)
            usable[i] = is_request and is_final and (is_rpc or not meaning.is_rpc)
            rpc[i] = is_rpc
        return combined, meanings, parents, rpc[combined], usable[combined]

    # ---- frames of streams that are not whole ----

    def others(self, rows: Places, give_up: Callable[[int], None]) -> None:
        """Give the parsers the frames of streams that go on beyond the round, or are not as usual, in their order."""
        found, transfers = self.all, self.transfers
        rows = rows[np.lexsort((rows, transfers.sequence[self.last_in[rows]], found.lane[rows] >> 1))]
        place = found.place[rows] + frames.HEADER_BYTES
        columns = (
            rows, self.last_in[rows], transfers.mono_ns[self.first_in[rows]], found.kind[rows], found.flags[rows],
            found.stream[rows], found.length[rows], place, place + found.kept[rows],
            found.lane[rows] >> 1, self._highest_before(rows),
        )  # fmt: skip
        held, segment = _NONE, None
        for row, record, began_ns, kind, flags, stream, length, at, end, number, highest in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if record != held or segment is None:
                held, segment = record, self.segment_of(record, b"", 0, 0)
            fields = self.fields(row) if kind == frames.HEADERS else None
            try:
                self.parsers[number].take_frame(
                    segment, began_ns, flags, stream, fields, transfers.data[at:end], length, highest
                )
            except Exception:  # as in read_round
                give_up(number)

    def _highest_before(self, rows: Places) -> I8:
        """The latest stream that was opened before each frame."""
        found, opens, sequence = self.all, self.opens, self.transfers.sequence
        number, opened = found.lane[rows] >> 1, found.lane[opens] >> 1
        wanted = sequence[self.last_in[rows]] << _FRAME_BITS | rows
        mine = sequence[self.last_in[opens]] << _FRAME_BITS | opens
        result: I8 = self.before[number]
        for one in np.unique(number).tolist():
            here = np.flatnonzero(opened == one)
            if here.size:
                chosen = np.flatnonzero(number == one)
                i = np.searchsorted(mine[here], wanted[chosen]) - 1
                result[chosen] = np.where(i >= 0, found.stream[opens[here[np.maximum(i, 0)]]], self.before[one])
        return result


def _groups(*columns: I8) -> tuple[Places, Places]:
    """Rows that are equal in all columns: the first row of each group, and the group of each row."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    _, first, group = np.unique(mixed, return_index=True, return_inverse=True)
    if all((column == column[first][group]).all() for column in columns):
        return first, group
    # two sums happen to be equal
    _, first, group = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    return first, group.reshape(-1)
