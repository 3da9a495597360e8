"""Records what a client and a server say: a proxy that keeps chunk borders, directions and times, and golden files."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onlooker.protocols import Operation, Segment, SegmentParser


@dataclass(frozen=True)
class Chunk:
    connection: int
    from_client: bool
    mono_ns: int
    data: bytes


@dataclass
class Recorder:
    """A TCP proxy on the loopback.  ``chunks`` are in the order in which they passed."""

    port: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, connection: int, from_client: bool, data: bytes) -> None:
        with self._lock:
            self.chunks.append(Chunk(connection, from_client, time.monotonic_ns(), data))


@contextlib.contextmanager
def recording(target: int) -> Iterator[Recorder]:
    """A recorder in front of ``127.0.0.1:target``."""
    recorder = Recorder()
    listener = socket.create_server(("127.0.0.1", 0))
    recorder.port = listener.getsockname()[1]
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, connection: int, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                recorder.add(connection, from_client, data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.extend((client, server))
            for pair in ((client, server, number, True), (server, client, number, False)):
                thread = threading.Thread(target=pump, args=pair)
                thread.start()
                threads.append(thread)
            number += 1

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield recorder
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(2)
        for end in sockets:
            end.close()
        for thread in threads:
            thread.join()


def save(path: Path, chunks: Iterable[Chunk], limit: int = 60_000) -> None:
    """Write a golden capture; refuses one that is too large to be kept."""
    chunks = list(chunks)
    start = chunks[0].mono_ns
    lines = [
        json.dumps(
            {
                "connection": c.connection,
                "from": "client" if c.from_client else "server",
                "us": (c.mono_ns - start) // 1000,
                "bytes": base64.b64encode(c.data).decode(),
            }
        )
        for c in chunks
    ]
    text = "\n".join(lines) + "\n"
    if len(text) > limit:
        raise ValueError(f"{path.name}: {len(text)} bytes are too many for a golden file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(path: Path) -> list[Chunk]:
    rows = map(json.loads, path.read_text().splitlines())
    return [
        Chunk(r["connection"], r["from"] == "client", 1_000_000_000 + r["us"] * 1000, base64.b64decode(r["bytes"]))
        for r in rows
    ]


def cut(segment: Segment, head: int, tail: int) -> Segment:
    """As the kernel captures a large transfer: the beginning and the end."""
    if len(segment.head) > head + tail:
        data = segment.head
        segment.head, segment.tail = data[:head], data[-tail:] if tail else b""
    return segment


def segments(
    chunks: Iterable[Chunk], *, client_role: bool = True, head: int = 1 << 30, tail: int = 0, server_head: int = 0
) -> Iterator[tuple[int, Segment]]:
    """Chunks as the segments of their connections."""
    offsets: dict[tuple[int, bool], int] = {}
    for chunk in chunks:
        key = (chunk.connection, chunk.from_client)
        offset = offsets.get(key, 0)
        offsets[key] = offset + len(chunk.data)
        segment = Segment(
            sent=chunk.from_client == client_role,
            from_client=chunk.from_client,
            mono_ns=chunk.mono_ns,
            offset=offset,
            length=len(chunk.data),
            head=chunk.data,
        )
        yield chunk.connection, cut(segment, head if chunk.from_client or not server_head else server_head, tail)


@dataclass
class Replay:
    operations: list[Operation]
    lost: int
    notes: list[str]
    parsers: list[SegmentParser]


def replay(chunks: Iterable[Chunk], make: Callable[[], SegmentParser], **how: int) -> Replay:
    """Feed a capture to fresh parsers, one a connection."""
    parsers: dict[int, SegmentParser] = {}
    out: list[Operation] = []
    lost = 0
    for connection, segment in segments(chunks, **how):  # type: ignore[arg-type]
        parser = parsers.get(connection)
        if parser is None:
            parser = parsers[connection] = make()
        out += parser.feed(segment)
        lost += parser.lost
    for parser in parsers.values():
        out += parser.close(1 << 62, "")
        lost += parser.lost
    return Replay(out, lost, [getattr(p, "note", "") for p in parsers.values()], list(parsers.values()))


def rechunk(chunks: list[Chunk], sizes: Callable[[int], int], *, merge: bool) -> list[Chunk]:
    """The same bytes with other borders.  Turns of the conversation stay in order, so that causes precede effects.

    Args:
        sizes: From the bytes left of a turn to the size of the next piece.
        merge: Join neighbouring chunks of one direction first.
    """
    turns: list[Chunk] = []
    last: dict[int, int] = {}
    for chunk in chunks:
        at = last.get(chunk.connection)
        if merge and at is not None and turns[at].from_client == chunk.from_client:
            old = turns[at]
            turns[at] = Chunk(old.connection, old.from_client, old.mono_ns, old.data + chunk.data)
        else:
            last[chunk.connection] = len(turns)
            turns.append(chunk)
    out: list[Chunk] = []
    for turn in turns:
        position = 0
        while position < len(turn.data):
            size = max(1, sizes(len(turn.data) - position))
            out.append(Chunk(turn.connection, turn.from_client, turn.mono_ns, turn.data[position : position + size]))
            position += size
    return out
