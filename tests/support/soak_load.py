"""One protocol at a steady rate, every answer looked at.

    python -m support.soak_load KIND PORT RATE CONNECTIONS PLACE

Runs until a line comes on standard input, finishes what is under way, closes its connections, and prints
``{"sent": n}``: every one of them was answered as it has to be, else it ends with an error.  PLACE is the directory of
the run, by which the agent selects this process too; certificates lie in it.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

TICK_S = 0.05
EPOCH_S = 30.0
"""How long the same paths, statements and keys are asked for."""


class Kind(Protocol):
    """What a protocol has to do."""

    def exchange(self, number: int, count: int) -> None:
        """``count`` requests and their answers, the first of them the ``number``-th."""

    def close(self) -> None:
        """As a well-behaved client does."""


class WrongAnswerError(RuntimeError):
    """Not what the server has to answer."""


def epoch() -> int:
    return int(time.monotonic() / EPOCH_S)


def _whole(connection: socket.socket, ends: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not ends(data):
        part = connection.recv(65536)
        if not part:
            raise WrongAnswerError(f"closed in the middle of {data!r}")
        data += part
    return data


def _is_response(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return False
    length = next(line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return len(body) >= int(length)


def target(number: int) -> bytes:
    """A path of an API whose releases add new ones: of users, of orders, and some that fail."""
    if number % 1000 == 7:
        return b"/missing/%d" % (number % 5000)
    if number % 100 == 3:
        return b"/fail/%d" % (number % 300)
    if number % 7 == 0:
        return b"/items/season-%d/%d" % (epoch(), number % 50)
    return b"/items/%d?page=%d" % (number % 100_000, number % 7)


def _in_turn(connections: list[socket.socket], number: int, count: int) -> Iterator[list[tuple[int, socket.socket]]]:
    """Requests and their connections, each of which has its turn: a server closes those that are idle for long."""
    size = len(connections)
    for first in range(number, number + count, size):
        yield [(i, connections[i % size]) for i in range(first, min(first + size, number + count))]


class Http:
    """HTTP/1.1 over kept connections, one request at a time on each."""

    def __init__(self, port: int, connections: int, place: Path) -> None:
        self._host = b" HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\n" % port
        self._connections = [self._connect(port, place) for _ in range(connections)]

    def _connect(self, port: int, _place: Path) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", port), timeout=60)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def exchange(self, number: int, count: int) -> None:
        for used in _in_turn(self._connections, number, count):
            for i, one in used:
                one.sendall(b"GET " + target(i) + self._host + b"\r\n")
            for i, one in used:
                head = _whole(one, _is_response)[:12]
                expected = b"404" if i % 1000 == 7 else b"500" if i % 100 == 3 else b"200"
                if head != b"HTTP/1.1 " + expected:
                    raise WrongAnswerError(f"{head!r} for {target(i)!r}")

    def close(self) -> None:
        for one in self._connections:
            one.close()


class Https(Http):
    """The same over TLS."""

    def _connect(self, port: int, place: Path) -> socket.socket:
        trust = ssl.create_default_context(cafile=str(place / "certificate.pem"))
        return trust.wrap_socket(super()._connect(port, place), server_hostname="localhost")


class Fresh:
    """HTTP/1.1, a connection for each request."""

    def __init__(self, port: int, _connections: int, _place: Path) -> None:
        self._port = port

    def exchange(self, number: int, count: int) -> None:
        for i in range(number, number + count):
            with socket.create_connection(("127.0.0.1", self._port), timeout=60) as one:
                one.sendall(
                    b"GET /items/fresh/%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n"
                    % (i % 1000, self._port)
                )
                if not _whole(one, _is_response).startswith(b"HTTP/1.1 200"):
                    raise WrongAnswerError("not 200")
                while one.recv(4096):
                    pass

    def close(self) -> None:
        pass


class Lines:
    """A protocol of a question and an answer whose bytes are known."""

    def __init__(self, port: int, connections: int, _place: Path) -> None:
        self._connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(connections)]

    def question(self, number: int) -> tuple[bytes, bytes]:
        """Bytes to send, bytes to get."""
        raise NotImplementedError

    def exchange(self, number: int, count: int) -> None:
        for used in _in_turn(self._connections, number, count):
            under_way = []
            for i, one in used:
                question, answer = self.question(i)
                one.sendall(question)
                under_way.append((one, answer))
            for one, answer in under_way:
                if (got := _whole(one, lambda data, due=answer: len(data) >= len(due))) != answer:  # type: ignore[misc]
                    raise WrongAnswerError(f"{got!r} and not {answer!r}")

    def close(self) -> None:
        for one in self._connections:
            one.close()


class Redis(Lines):
    def question(self, number: int) -> tuple[bytes, bytes]:
        command: tuple[str, ...]
        match number % 4:
            case 0:
                command, answer = ("SET", f"season:{epoch()}:{number % 40}", "value"), b"+OK\r\n"
            case 1:
                text = "x" * (number % 200 + 1)
                command, answer = ("ECHO", text), f"${len(text)}\r\n{text}\r\n".encode()
            case 2:
                command, answer = ("EXPIRE", "nothing-is-called-so", "5"), b":0\r\n"
            case _:
                command, answer = ("GET", "nothing-is-called-so"), b"$-1\r\n"
        return (f"*{len(command)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in command)).encode(), answer


class Memcached(Lines):
    def question(self, number: int) -> tuple[bytes, bytes]:
        if number % 2:
            return b"get nothing-is-called-so-%d\r\n" % (number % 50), b"END\r\n"
        return b"set season-%d-%d 0 60 5\r\nhello\r\n" % (epoch(), number % 50), b"STORED\r\n"


class Dns:
    """One question a datagram, over one socket."""

    def __init__(self, port: int, _connections: int, _place: Path) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(30)
        self._socket.connect(("127.0.0.1", port))

    def exchange(self, number: int, count: int) -> None:
        for i in range(number, number + count):
            name = "a.example.test" if i % 3 else f"season-{epoch()}.example.test"
            labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
            self._socket.send(struct.pack(">6H", i & 0xFFFF, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1")
            answer = self._socket.recv(4096)
            if answer[:2] != struct.pack(">H", i & 0xFFFF) or answer[3] & 15 != (0 if i % 3 else 3):
                raise WrongAnswerError(f"{answer!r} for {name}")

    def close(self) -> None:
        self._socket.close()


class Sql:
    """Either of the two databases, by its driver: statements of every release are new."""

    def __init__(self, open_one: Callable[[], object], connections: int) -> None:
        self._connections = [open_one() for _ in range(connections)]
        self.opening = 0
        """Statements that the driver sent on its own."""

    def exchange(self, number: int, count: int) -> None:
        for i in range(number, number + count):
            cursor = self._connections[i % len(self._connections)].cursor()  # type: ignore[attr-defined]
            if i % 5 == 0:
                cursor.execute(f"SELECT {i % 100} AS season_{epoch()}")
                expected = i % 100
            else:
                cursor.execute("SELECT 1 + %s, 'a literal'", (i % 9,))
                expected = 1 + i % 9
            if int(cursor.fetchone()[0]) != expected:
                raise WrongAnswerError("another number")
            cursor.close()

    def close(self) -> None:
        for one in self._connections:
            one.close()  # type: ignore[attr-defined]


def postgres(port: int, connections: int, _place: Path) -> Sql:
    import psycopg  # of the tests of databases

    return Sql(
        lambda: psycopg.connect(
            host="127.0.0.1", port=port, user="postgres", autocommit=True, prepare_threshold=None, gssencmode="disable",
            sslmode="disable",
        ),
        connections,
    )  # fmt: skip


def mysql(port: int, connections: int, _place: Path) -> Sql:
    import pymysql

    made = Sql(
        lambda: pymysql.connect(
            host="127.0.0.1", port=port, user="onlooker", password="onlooker", autocommit=None, ssl_disabled=True
        ),
        connections,
    )
    made.opening = connections  # SET NAMES
    return made


class Grpc:
    """Unary calls, several at a time over one connection, and streams now and then."""

    def __init__(self, port: int, _connections: int, _place: Path) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(self._channel).result(60)
        self._unary = self._channel.unary_unary("/zoo.Zoo/Unary")
        self._listen = self._channel.unary_stream("/zoo.Zoo/Listen")

    def exchange(self, number: int, count: int) -> None:
        under_way = []
        for i in range(number, number + count):
            said = (("zoo-bytes", str(i % 300)), ("zoo-responses", "3"))
            if i % 10 == 0:
                if [len(part) for part in self._listen(b"q", metadata=said, timeout=60)] != [i % 300] * 3:
                    raise WrongAnswerError("not three messages")
            else:
                under_way.append((i, self._unary.future(b"q", metadata=said, timeout=60)))
        for i, one in under_way:
            if len(one.result()) != i % 300:
                raise WrongAnswerError("another message")

    def close(self) -> None:
        self._channel.close()


KINDS: dict[str, Callable[[int, int, Path], Kind]] = {
    "http": Http, "https": Https, "fresh": Fresh, "redis": Redis, "memcached": Memcached, "dns": Dns,
    "postgres": postgres, "mysql": mysql, "grpc": Grpc,
}  # fmt: skip


def run(kind: Kind, rate: float, over: Callable[[], bool]) -> int:
    """At this rate until it is over; how many were made."""
    sent, due, began = 0, 0.0, time.monotonic()
    while not over():
        now = time.monotonic() - began
        due = max(due, (now - 3.0) * rate)  # after a standstill of the machine: not all of it at once
        count = int(now * rate - due)
        if count:
            kind.exchange(sent, count)
            sent += count
            due += count
        time.sleep(max(TICK_S - (time.monotonic() - began - now), 0.001))
    return sent


def main() -> None:
    name, port, rate, connections, place = sys.argv[1:]
    kind = KINDS[name](int(port), int(connections), Path(place))
    print("ready", flush=True)
    sent = run(kind, float(rate), lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
    kind.close()
    print(json.dumps({"sent": sent + getattr(kind, "opening", 0)}), flush=True)


if __name__ == "__main__":
    main()
