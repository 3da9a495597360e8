"""Feeds recorded or made-up HTTP/2 bytes to the parser, whole or condensed, cut in any way."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onlooker.protocols import Operation, Segment, Upgrade
from onlooker.protocols import _http2_frames as frames
from onlooker.protocols.http2 import Http2
from support.byte_recording import Capture

Chunks = list[tuple[bool, int, bytes]]


def split_upgrade(capture: Capture) -> tuple[Chunks, Upgrade | None]:
    """The HTTP/2 part of a recording, and the HTTP/1.1 request that led to it."""
    if capture.bytes_of(True).startswith(b"PRI"):
        return capture.chunks, None
    head, _, _ = capture.bytes_of(True).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    host = next(line[6:] for line in lines if line.lower().startswith("host: "))
    started = capture.chunks[0][1]
    upgrade = Upgrade(method, target, host, started, started)
    left = {True: len(head) + 4, False: capture.bytes_of(False).index(b"\r\n\r\n") + 4}
    rest: Chunks = []
    for side, at, data in capture.chunks:
        dropped = min(left[side], len(data))
        left[side] -= dropped
        if data[dropped:]:
            rest.append((side, at, data[dropped:]))
    return rest, upgrade


def cut(chunks: Chunks, seed: int, *, merge: bool = False, largest: int = 64) -> Chunks:
    """The same bytes in other pieces; pieces keep their time, and the order of the directions."""
    dice = random.Random(seed)
    if merge:
        merged: Chunks = []
        for side, at, data in chunks:
            if merged and merged[-1][0] == side:
                merged[-1] = (side, at, merged[-1][2] + data)
            else:
                merged.append((side, at, data))
        chunks = merged
    pieces: Chunks = []
    for side, at, data in chunks:
        position = 0
        while position < len(data):
            step = dice.choice((1, 3, 9, dice.randint(1, largest), dice.randint(1, 20_000)))
            pieces.append((side, at, data[position : position + step]))
            position += step
    return pieces


@dataclass
class Condenser:
    """What ``bpf/protocols/http2.h`` does, written down again for one direction that is in step."""

    preface: int = 0
    header: bytes = b""
    left: int = 0
    keep: int = 0

    def condense(self, data: bytes) -> bytes:
        kept = bytearray()
        while data:
            if self.preface:
                step = min(self.preface, len(data))
                self.preface -= step
                kept += data[:step]
            elif self.left:
                step = min(self.left, len(data))
                kept += data[: min(step, self.keep)]
                self.left -= step
                self.keep = max(0, self.keep - step)
            else:
                step = min(9 - len(self.header), len(data))
                self.header += data[:step]
                kept += data[:step]
                if len(self.header) == 9:
                    self.left = int.from_bytes(self.header[:3], "big")
                    self.keep = frames.kept_bytes(self.header[3], self.header[4], self.left)
                    self.header = b""
            data = data[step:]
        return bytes(kept)


@dataclass
class Replay:
    """One connection under test."""

    parser: Http2
    server: bool = True
    condensed: bool = False
    offsets: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    clock: int = 0
    operations: list[Operation] = field(default_factory=list)
    condensers: dict[bool, Condenser] = field(default_factory=lambda: {True: Condenser(24), False: Condenser()})

    def feed(self, from_client: bool, data: bytes, mono_ns: int | None = None, **extra: Any) -> list[Operation]:
        self.clock = self.clock + 1000 if mono_ns is None else mono_ns
        head = self.condensers[from_client].condense(data) if self.condensed else data
        segment = Segment(
            sent=from_client != self.server, from_client=from_client, mono_ns=self.clock,
            offset=self.offsets[from_client], length=len(data), head=head, **extra,
        )  # fmt: skip
        self.offsets[from_client] += len(data)
        found = self.parser.feed(segment)
        self.operations += found
        return found

    def skip(self, from_client: bool, count: int) -> None:
        """Bytes of which no record came."""
        self.offsets[from_client] += count

    def run(self, chunks: Iterable[tuple[bool, int, bytes]]) -> list[Operation]:
        for side, at, data in chunks:
            self.feed(side, data, at)
        return self.operations


def replay(
    chunks: Chunks, *, server: bool = True, condensed: bool = False, upgrade: Upgrade | None = None, **options: Any
) -> list[Operation]:
    parser = Http2(from_start=upgrade is None, condensed=condensed, **options)
    if upgrade is not None:
        parser.upgrade(upgrade)
    return Replay(parser, server, condensed).run(chunks)


def plain(operation: Operation, *, times: bool = True) -> dict[str, Any]:
    """An operation as JSON would have it."""
    result: dict[str, Any] = {
        "name": operation.name,
        "dims": dict(operation.dims),
        "varying": dict(operation.varying),
        "error": operation.error,
        "bytes": [operation.request_bytes, operation.response_bytes],
        "stream": operation.stream,
        "parent": [operation.trace_id.hex(), operation.parent_span_id.hex(), operation.parent_source],
    }
    if times:
        result["ns"] = [
            operation.start_mono_ns, operation.request_end_mono_ns, operation.response_start_mono_ns,
            operation.end_mono_ns,
        ]  # fmt: skip
    return result
