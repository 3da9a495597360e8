"""Records of HTTP/2 as the kernel writes them: connections made up or recorded, cut into rounds in any way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hpack import Encoder
from numpy.typing import NDArray

from onlooker.capture import _records
from onlooker.protocols import _http2_frames as frames
from support.http2_replay import Chunks, Condenser
from support.records import a_segment

SMALL, LARGE = (dtype["payload"].shape[0] for dtype in (_records.SEGMENT_RECORD, _records.SEGMENT_LONG_RECORD))
CONTINUED = 64


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Unseen(bytes):
    """Payload that is in no buffer of the program (`sendfile`)."""


@dataclass
class Wire:
    """One direction of a connection: its bytes become records."""

    from_client: bool
    condenser: Condenser
    offset: int = 0


@dataclass
class Connection:
    """One connection as one end sees it."""

    number: int
    server: bool = True
    sequence: int = 0
    wires: dict[bool, Wire] = field(
        default_factory=lambda: {True: Wire(True, Condenser(24)), False: Wire(False, Condenser())}
    )

    def records(self, from_client: bool, data: bytes, at: int, *, limit: int = LARGE) -> list[NDArray[Any]]:
        """What the kernel sends up of one call."""
        wire = self.wires[from_client]
        if isinstance(data, Unseen):
            wire.condenser.condense(data)
            rows = [self._one(wire, 0, len(data), b"", at, 0)] if not wire.condenser.left else []
            wire.offset += len(data)
            return rows
        result: list[NDArray[Any]] = []
        position = 0
        # in pieces of one byte the condenser says where each kept byte stands
        kept = bytearray()
        began = 0
        for position in range(len(data)):
            kept += wire.condenser.condense(data[position : position + 1])
            if len(kept) == limit and position + 1 < len(data):
                result.append(self._one(wire, began, position + 1, bytes(kept), at, CONTINUED))
                kept, began = bytearray(), position + 1
        if kept or not wire.condenser.left:  # else it lies inside payload that is left out
            result.append(self._one(wire, began, len(data), bytes(kept), at, 0))
        wire.offset += len(data)
        return result

    def _one(self, wire: Wire, began: int, end: int, kept: bytes, at: int, flags: int) -> NDArray[Any]:
        row = a_segment(
            b"", sent=wire.from_client != self.server, protocol=2, role=2 if self.server else 3, connection=self.number,
            sequence=self.sequence, at=at, flags=flags, length=end - began, stream_offset=wire.offset + began,
            tid=500 + self.sequence % 3, local_port=8080,
        )  # fmt: skip
        self.sequence += 1
        if len(kept) > SMALL:
            long = np.zeros(1, _records.SEGMENT_LONG_RECORD)
            for name in row.dtype.names or ():
                if name != "payload":
                    long[name] = row[name]
            long["kind"] = 6
            row = long
        row["captured_head"] = len(kept)
        row["payload"][0, : len(kept)] = np.frombuffer(kept, np.uint8)
        return row

    def close(self, at: int) -> NDArray[Any]:
        row = a_segment(
            b"",
            protocol=2,
            role=2 if self.server else 3,
            connection=self.number,
            sequence=self.sequence,
            at=at,
            flags=4,
        )
        self.sequence += 1
        return row


def of_chunks(connection: Connection, chunks: Chunks, *, limit: int = LARGE) -> list[NDArray[Any]]:
    """A recording as records; the first has the whole preface, as the kernel waits for it."""
    size = start = 0
    while size < len(frames.PREFACE):
        side, at, data = chunks[start]
        size += len(data) if side else 0
        start += 1
    first = {wanted: b"".join(data for side, _, data in chunks[:start] if side == wanted) for wanted in (True, False)}
    chunks = [*((side, at, data) for side, data in first.items() if data), *chunks[start:]]
    return [row for side, at, data in chunks for row in connection.records(side, data, at + 1_000_000, limit=limit)]


def in_rounds(connections: Sequence[Sequence[NDArray[Any]]], rounds: int, seed: int) -> Iterator[list[NDArray[Any]]]:
    """Records of connections, their order kept, in so many rounds; small records may come a round before large ones."""
    dice = random.Random(seed)
    cuts = [[*sorted(dice.randint(0, len(rows)) for _ in range(rounds - 1)), len(rows)] for rows in connections]
    before = [0] * len(connections)
    late: list[NDArray[Any]] = []
    for number in range(rounds):
        rows: list[NDArray[Any]] = []
        for i, all_rows in enumerate(connections):
            rows += all_rows[before[i] : cuts[i][number]]
            before[i] = cuts[i][number]
        dice.shuffle(rows)
        fresh, rows, late = rows, late + rows, []
        if number + 1 < rounds and rows and dice.random() < 0.4:
            # the ring of the small ones was read first, and they were written since
            small = [row for row in fresh if row.dtype == _records.SEGMENT_RECORD]
            if small:
                last = max(small, key=lambda row: int(row["mono_ns"][0]))
                late = [last]
                rows = [row for row in rows if row is not last]
        parts = [
            [row for row in rows if row.dtype == dtype]
            for dtype in (_records.SEGMENT_RECORD, _records.SEGMENT_LONG_RECORD)
        ]
        yield [np.concatenate(part) for part in parts if part]


def made_up(seed: int, calls: int, *, odd: float) -> Chunks:
    """A busy connection of gRPC and plain HTTP/2 with what can happen on it; ``odd``: how often it is unusual."""
    dice = random.Random(seed)
    asking, answering = Encoder(), Encoder()
    chunks: Chunks = []
    at = 0
    pending: list[tuple[int, bool, int]] = []
    out = {
        True: frames.PREFACE + frame(frames.SETTINGS, 0, 0, b"\0\4\0\1\0\0"),
        False: frame(frames.SETTINGS, 0, 0, b""),
    }

    def flush(side: bool, *, whole: bool = True) -> None:
        nonlocal at
        data = out[side]
        size = len(data) if whole else dice.randint(0, len(data))
        if size:
            at += dice.randint(1, 1000)
            chunks.append((side, at, data[:size]))
        out[side] = data[size:]

    def block(side: bool, stream: int, flags: int, headers: list[tuple[str, str]]) -> None:
        data = (asking if side else answering).encode(headers, huffman=dice.random() < 0.5)
        what = dice.random()
        if what < odd and len(data) > 1:
            cut = dice.randint(1, len(data) - 1)
            out[side] += frame(frames.HEADERS, flags & ~frames.END_HEADERS, stream, data[:cut])
            out[side] += frame(frames.CONTINUATION, frames.END_HEADERS, stream, data[cut:])
        elif what < 2 * odd:
            out[side] += frame(frames.HEADERS, flags | frames.PADDED, stream, b"\3" + data + b"\0\0\0")
        elif what > 0.8 and side:
            out[side] += frame(frames.HEADERS, flags | frames.HAS_PRIORITY, stream, b"\0\0\0\0\x10" + data)
        else:
            out[side] += frame(frames.HEADERS, flags, stream, data)

    def body(side: bool, stream: int, *, rpc: bool, end: bool) -> None:
        size = dice.choice((0, 4, 10, 100, 3000))
        data = (b"\0" + size.to_bytes(4, "big") if rpc else b"") + dice.randbytes(size)
        pieces = [data] if dice.random() < 0.8 or len(data) < 2 else [data[: len(data) // 2], data[len(data) // 2 :]]
        for i, piece in enumerate(pieces):
            last = end and i == len(pieces) - 1
            padded = dice.random() < odd
            flags = (frames.END_STREAM if last else 0) | (frames.PADDED if padded else 0)
            whole = frame(frames.DATA, flags, stream, b"\2" + piece + b"\0\0" if padded else piece)
            if not rpc and not side and len(piece) > 50 and dice.random() < 0.5:
                out[side] += whole[: frames.HEADER_BYTES]
                flush(side)
                for part in (whole[frames.HEADER_BYTES :][:40], whole[frames.HEADER_BYTES :][40:]):
                    chunks.append((side, at, Unseen(part)))
                continue
            out[side] += whole

    for number in range(calls):
        stream = 2 * number + 1
        rpc, post = dice.random() < 0.6, dice.random() < 0.5
        headers = [(":method", "POST" if rpc or post else dice.choice(("GET", "HEAD"))), (":scheme", "http"),
                   (":path", f"/shop.Shop/{dice.choice('ABC')}" if rpc else f"/items/{dice.randint(1, 5)}?q=1"),
                   (":authority", "shop:8080")]  # fmt: skip
        if rpc:
            headers += [("content-type", "application/grpc"), ("te", "trailers")]
        if dice.random() < 0.2:
            headers.append(("traceparent", f"00-{dice.getrandbits(127) + 1:032x}-{dice.getrandbits(63) + 1:016x}-01"))
        sends = rpc or post
        block(True, stream, frames.END_HEADERS | (0 if sends else frames.END_STREAM), headers)
        if sends:
            for left in reversed(range(dice.choice((1, 1, 1, 2)))):
                body(True, stream, rpc=rpc, end=not left)
        pending.append((stream, rpc, dice.choice((0, 0, 0, 3))))
        if dice.random() < 0.3:
            out[dice.random() < 0.5] += frame(frames.PING, frames.ACK, 0, b"12345678")
        if dice.random() < 0.3:
            out[dice.random() < 0.5] += frame(frames.WINDOW_UPDATE, 0, stream, b"\0\0\1\0")
        if dice.random() < odd:
            out[True] += frame(frames.SETTINGS, 0, 0, b"\0\4\0\1\0\0")
        if dice.random() < 0.4:
            flush(True, whole=dice.random() < 0.8)
        if dice.random() < 0.5:
            dice.shuffle(pending)
            flush(True)
            for _ in range(dice.randint(0, len(pending))):
                which, is_rpc, _ = pending.pop()
                if dice.random() < odd:
                    out[dice.random() < 0.5] += frame(frames.RST_STREAM, 0, which, b"\0\0\0\x08")
                    continue
                if dice.random() < odd:
                    block(False, which, frames.END_HEADERS, [(":status", "103")])
                status = dice.choice(("200", "200", "404", "500"))
                kind = "application/grpc" if is_rpc else dice.choice(("text/html", "text/event-stream"))
                answer = [(":status", "200" if is_rpc else status), ("content-type", kind)]
                if is_rpc and dice.random() < 0.8:
                    block(False, which, frames.END_HEADERS, answer)
                    for _ in range(dice.choice((0, 1, 1, 3))):
                        body(False, which, rpc=True, end=False)
                    trailers = [("grpc-status", dice.choice(("0", "0", "5", "13"))), ("grpc-message", "")]
                    block(False, which, frames.END_HEADERS | frames.END_STREAM, trailers)
                elif is_rpc:
                    block(False, which, frames.END_HEADERS | frames.END_STREAM, [*answer, ("grpc-status", "12")])
                elif dice.random() < 0.7:
                    block(False, which, frames.END_HEADERS, answer)
                    body(False, which, rpc=False, end=True)
                else:
                    block(False, which, frames.END_HEADERS | frames.END_STREAM, answer)
            flush(False, whole=dice.random() < 0.8)
    flush(True)
    flush(False)
    return chunks
