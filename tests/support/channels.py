"""Sockets that send and receive in awkward ways, and HTTP/1 read off them by hand.

A `Channel` has a style for each direction: one byte a call, iovecs cut in odd places, many messages a call, a peek
before each read, a socket that is never ready.  The bytes are the same; the system calls are what the tests are about.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

ODD_SIZES = (1, 2, 3, 5, 0, 7, 11, 64, 1, 400)
KEPT_BODY_BYTES = 1 << 20  # longer bodies are counted, not kept


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("iovecs", ctypes.POINTER(_Iovec)),
        ("iovec_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("padding", ctypes.c_int), ("moved", ctypes.c_uint32),
    ]  # fmt: skip


MSG_WAITFORONE = 0x10000
_libc = ctypes.CDLL(None, use_errno=True)


def _messages(buffers: list[list[ctypes.Array[ctypes.c_char]]]) -> ctypes.Array[_Message]:
    messages = (_Message * len(buffers))()
    for message, parts in zip(messages, buffers, strict=True):
        message.iovecs = (_Iovec * len(parts))(*(_Iovec(ctypes.addressof(part), len(part)) for part in parts))
        message.iovec_count = len(parts)
    return messages


def odd_parts(data: bytes) -> Iterator[bytes]:
    """The bytes in pieces of `ODD_SIZES`, again and again; some pieces are empty."""
    at = 0
    for size in itertools.cycle(ODD_SIZES):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


@dataclass(slots=True)
class Message:
    """A request or a response that was read.

    Attributes:
        start_line: Its words.
        headers: Names in lower case; the last one of a name counts.
        body: Empty if it was longer than what is kept; ``body_bytes`` counts all.
        first_ns: CLOCK_MONOTONIC when its first byte was there.
        end_ns: The same for its last byte.
    """

    start_line: list[str]
    headers: dict[str, str]
    first_ns: int
    end_ns: int = 0
    body: bytes = b""
    body_bytes: int = 0
    trailers: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        return self.start_line[0]

    @property
    def target(self) -> str:
        return self.start_line[1]

    @property
    def status(self) -> int:
        return int(self.start_line[1])


class Gone(ConnectionError):
    """The other side closed in the middle of a message."""


class Channel:
    """A connected stream socket with a style of sending and one of receiving.

    Args:
        send: ``send``, ``write``, ``bytes``, ``cut``, ``writev``, ``sendmsg``, ``sendmmsg`` or ``nonblocking``.
        receive: ``recv``, ``read``, ``bytes``, ``small``, ``readv``, ``recvmsg``, ``recvmmsg``, ``peek`` or
            ``nonblocking``.
    """

    def __init__(self, sock: socket.socket, *, send: str = "send", receive: str = "recv") -> None:
        self.socket = sock
        self._send: Callable[[bytes], None] = getattr(self, f"_send_{send}")
        self._receive: Callable[[], bytes] = getattr(self, f"_receive_{receive}")
        self._buffer = bytearray()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if "nonblocking" in (send, receive):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that it is full at times
            sock.setblocking(False)

    # ---- bytes ----

    def send(self, data: bytes) -> None:
        self._send(data)

    def fill(self) -> bool:
        """Reads once more.  False: the other side has ended."""
        data = self._receive()
        self._buffer += data
        return bool(data)

    def take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self.fill():
                raise Gone(f"closed {count - len(self._buffer)} bytes too early")
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def line(self) -> bytes:
        while b"\n" not in self._buffer:
            if not self.fill():
                raise Gone("closed in the middle of a line")
        return self.take(self._buffer.index(b"\n") + 1).rstrip(b"\r\n")

    def rest(self) -> bytes:
        """All until the other side ends."""
        while self.fill():
            pass
        return self.take(len(self._buffer))

    def reset(self) -> None:
        """Closes with a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    # ---- messages ----

    def read_head(self) -> Message | None:
        """The next message without its body; None where the connection ended between messages."""
        while not self._buffer:
            if not self.fill():
                return None
        first_ns = time.monotonic_ns()
        start_line = self.line()
        while not start_line:  # RFC 9112 section 2.2: an empty line before a request is skipped
            start_line = self.line()
        headers = {}
        while text := self.line():
            name, _, value = text.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Message(start_line.decode("latin-1").split(" ", 2), headers, first_ns, time.monotonic_ns())

    def read_body(self, message: Message, *, to_close: bool = False) -> None:
        if "chunked" in message.headers.get("transfer-encoding", "").lower():
            while size := int(self.line().split(b";")[0], 16):
                self._keep(message, size)
                self.take(2)
            while text := self.line():
                message.trailers.append(text.decode("latin-1"))
        elif "content-length" in message.headers:
            self._keep(message, int(message.headers["content-length"]))
        elif to_close:
            message.body = self.rest()
            message.body_bytes = len(message.body)
        message.end_ns = time.monotonic_ns()

    def _keep(self, message: Message, count: int) -> None:
        message.body_bytes += count
        while count:
            part = self.take(min(count, 1 << 16))
            count -= len(part)
            if message.body_bytes <= KEPT_BODY_BYTES:
                message.body += part

    def read_request(self) -> Message | None:
        message = self.read_head()
        if message is not None:
            self.read_body(message)
        return message

    def read_response(self, method: str = "GET") -> Message | None:
        """The final response; interim ones are passed over.  None where there is none."""
        message = self.read_head()
        while message is not None and 100 <= message.status < 200 and message.status != 101:
            message = self.read_head()
        if message is not None and method != "HEAD" and message.status not in (101, 204, 304):
            self.read_body(message, to_close=True)
        return message

    # ---- styles of sending ----

    def _send_send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _send_write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.socket.fileno(), data) :]

    def _send_bytes(self, data: bytes) -> None:
        for at in range(len(data)):
            self.socket.send(data[at : at + 1])

    def _send_cut(self, data: bytes) -> None:
        for part in odd_parts(data):
            if part:
                self.socket.sendall(part)

    def _send_writev(self, data: bytes) -> None:
        while data:
            parts = list(itertools.islice(odd_parts(data), 16))
            data = data[os.writev(self.socket.fileno(), parts) :]

    def _send_sendmsg(self, data: bytes) -> None:
        while data:
            parts = [b"", b"", *itertools.islice(odd_parts(data), 400)]
            data = data[self.socket.sendmsg(parts) :]

    def _send_sendmmsg(self, data: bytes) -> None:
        while data:
            third = max(len(data) // 3, 1)
            pieces = [data[:third], data[third : 2 * third], data[2 * third :]]
            parts = [
                [ctypes.create_string_buffer(half, len(half)) for half in (piece[:3], piece[3:]) if half]
                for piece in pieces
                if piece
            ]
            messages = _messages(parts)
            sent = _libc.sendmmsg(self.socket.fileno(), messages, len(messages), socket.MSG_NOSIGNAL)
            if sent < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            data = data[sum(message.moved for message in messages[:sent]) :]

    def _send_nonblocking(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                select.select([], [self.socket], [])

    # ---- styles of receiving ----

    def _receive_recv(self) -> bytes:
        return self.socket.recv(1 << 16)

    def _receive_read(self) -> bytes:
        return os.read(self.socket.fileno(), 1 << 16)

    def _receive_bytes(self) -> bytes:
        return self.socket.recv(1)

    def _receive_small(self) -> bytes:
        return self.socket.recv(7)

    def _receive_readv(self) -> bytes:
        buffers = [bytearray(size) for size in ODD_SIZES]
        received = os.readv(self.socket.fileno(), buffers)
        return b"".join(buffers)[:received]

    def _receive_recvmsg(self) -> bytes:
        buffers = [bytearray(size) for size in (0, *ODD_SIZES * 20)]
        received, *_ = self.socket.recvmsg_into(buffers)
        return b"".join(buffers)[:received]

    def _receive_recvmmsg(self) -> bytes:
        parts = [[ctypes.create_string_buffer(size) for size in (3, 50, 700)] for _ in range(3)]
        messages = _messages(parts)
        got = _libc.recvmmsg(self.socket.fileno(), messages, len(messages), MSG_WAITFORONE, None)
        if got < 0:
            raise OSError(ctypes.get_errno(), "recvmmsg")
        return b"".join(
            b"".join(part.raw for part in buffers)[: message.moved]
            for message, buffers in zip(messages[:got], parts, strict=False)
        )

    def _receive_peek(self) -> bytes:
        peeked = self.socket.recv(1 << 16, socket.MSG_PEEK)
        self.socket.recv(5, socket.MSG_PEEK)
        return self.socket.recv(len(peeked)) if peeked else b""

    def _receive_nonblocking(self) -> bytes:
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.socket.recv(1 << 12)
            select.select([self.socket], [], [])


def chunked(body: bytes, sizes: tuple[int, ...] = (1, 17, 4000), *, awkward: bool = False) -> bytes:
    """A body in chunks.

    Args:
        sizes: Of the chunks, again and again.
        awkward: Extensions behind the sizes, upper and lower case, leading zeros, and a trailer.
    """
    out = []
    at = 0
    for number, size in enumerate(itertools.cycle(sizes)):
        if at >= len(body):
            break
        part = body[at : at + size]
        at += size
        head = (f"{len(part):04X}" if number % 2 else f"{len(part):x}") if awkward else f"{len(part):x}"
        extension = f';part={number};text="a;b"' if awkward else ""
        out.append(f"{head}{extension}\r\n".encode() + part + b"\r\n")
    return b"".join(out) + (b"0;last\r\nX-Checked: yes\r\nX-More: 1\r\n\r\n" if awkward else b"0\r\n\r\n")
