"""Peers that answer real drivers by script, for servers that no registry has: MongoDB and SQL Server.

They say what the protocol's documents say a server says, for the few commands that the tests use.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from support.recorder import Chunk, recording


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


@contextlib.contextmanager
def _peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(EOFError, OSError):
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=one, args=(connection,))
                thread.start()
                threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(5)


def mongodb_peer() -> contextlib.AbstractContextManager[int]:
    """A scripted MongoDB on a port of its own."""
    return _peer(_serve_mongodb)


def tds_peer() -> contextlib.AbstractContextManager[int]:
    """A scripted SQL Server on a port of its own."""
    return _peer(_serve_tds)


def _mongo_answer(command: dict[str, Any]) -> dict[str, Any]:
    name = next(iter(command))
    if name in ("hello", "isMaster", "ismaster"):
        return {
            "ismaster": True, "isWritablePrimary": True, "helloOk": True, "maxBsonObjectSize": 16 << 20,
            "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21,
            "ok": 1.0,
        }  # fmt: skip
    collection = command.get(name)
    if name == "find" and collection == "nowhere":
        return {"ok": 0.0, "errmsg": "no marker here", "code": 26, "codeName": "NamespaceNotFound"}
    if name in ("find", "aggregate"):
        rows = [{"_id": n, "note": "marker" * 40} for n in range(20)]
        return {
            "cursor": {"id": 77 if name == "find" else 0, "ns": f"shop.{collection}", "firstBatch": rows},
            "ok": 1.0,
        }
    if name == "getMore":
        return {"cursor": {"id": 0, "ns": "shop.orders", "nextBatch": [{"_id": 99}]}, "ok": 1.0}
    if name == "insert" and any(d.get("_id") == "twice" for d in command["documents"]):
        return {"n": 0, "writeErrors": [{"index": 0, "code": 11000, "errmsg": "twice: marker"}], "ok": 1.0}
    if name in ("insert", "update", "delete"):
        return {"n": 1, "nModified": 1, "ok": 1.0}
    if name in ("ping", "endSessions", "killCursors"):
        return {"ok": 1.0}
    return {"ok": 0.0, "errmsg": "no such command", "code": 59, "codeName": "CommandNotFound"}


def _serve_mongodb(connection: socket.socket) -> None:
    import bson

    number = 1000
    while True:
        size, request, _answers, code = struct.unpack("<iiii", _exactly(connection, 16))
        body = _exactly(connection, size - 16)
        number += 1
        if code == 2004:  # OP_QUERY
            end = body.index(b"\0", 4)
            answer = bson.encode(_mongo_answer(bson.decode(body[end + 9 :])))
            payload = struct.pack("<iqii", 8, 0, 0, 1) + answer
            connection.sendall(struct.pack("<iiii", 16 + len(payload), number, request, 1) + payload)
            continue
        length = struct.unpack_from("<i", body, 5)[0]
        command = bson.decode(body[5 : 5 + length])
        rest = body[5 + length :]
        if rest[:1] == b"\1":
            end = rest.index(b"\0", 5)
            command["documents"] = bson.decode_all(rest[end + 1 :])
        if body[0] & 2:  # moreToCome: no answer is wanted
            continue
        payload = b"\0\0\0\0\0" + bson.encode(_mongo_answer(command))
        connection.sendall(struct.pack("<iiii", 16 + len(payload), number, request, 2013) + payload)


def mongodb() -> list[Chunk]:
    """pymongo against a scripted MongoDB."""
    import pymongo
    from pymongo.errors import PyMongoError

    with (
        mongodb_peer() as port,
        recording(port) as recorder,
        pymongo.MongoClient(
            "127.0.0.1", recorder.port, directConnection=True, heartbeatFrequencyMS=100_000, serverMonitoringMode="poll"
        ) as client,
    ):
        shop = client["shop"]
        list(shop["orders"].find({"note": "marker"}))
        shop["orders"].insert_one({"note": "marker"})
        shop["orders"].update_one({"note": "marker"}, {"$set": {"note": "marker"}})
        shop["orders"].delete_many({"note": "marker"})
        list(shop["orders"].aggregate([{"$match": {"note": "marker"}}]))
        for bad in (
            lambda: list(shop["nowhere"].find({})),
            lambda: shop["orders"].insert_one({"_id": "twice"}),
            lambda: shop.command("createUser", "marker-user", pwd="marker-password", roles=[]),
        ):
            with contextlib.suppress(PyMongoError):
                bad()
        shop.get_collection("orders", write_concern=pymongo.WriteConcern(w=0)).insert_one({"note": "marker"})
    return recorder.chunks


def _tds_packet(tokens: bytes) -> bytes:
    return struct.pack(">BBHHBB", 4, 1, 8 + len(tokens), 60, 1, 0) + tokens


def _tds_text(text: str) -> bytes:
    return text.encode("utf-16-le")


def _tds_done(token: int, status: int, rows: int = 0) -> bytes:
    return struct.pack("<BHHQ", token, status, 0xC1, rows)


def _tds_error(number: int, text: str) -> bytes:
    body = struct.pack("<IBB", number, 1, 16) + struct.pack("<H", len(text)) + _tds_text(text)
    body += bytes([4]) + _tds_text("SRV1") + bytes([0]) + struct.pack("<I", 1)
    return b"\xaa" + struct.pack("<H", len(body)) + body


def _tds_rows(count: int) -> bytes:
    columns = b"\x81" + struct.pack("<HIHBB", 1, 0, 0x0009, 0x26, 4) + bytes([2]) + _tds_text("id")
    return columns + b"".join(b"\xd1\x04" + struct.pack("<i", n) for n in range(count))


def _tds_message(connection: socket.socket) -> tuple[int, bytes]:
    body = b""
    while True:
        kind, status, size = struct.unpack(">BBH", _exactly(connection, 8)[:4])
        body += _exactly(connection, size - 8)
        if status & 1:
            return kind, body


def _serve_tds(connection: socket.socket) -> None:
    handle = 0
    while True:
        kind, body = _tds_message(connection)
        if kind == 0x12:
            options = struct.pack(">BHHBHHB", 0, 11, 6, 1, 17, 1, 0xFF)
            connection.sendall(_tds_packet(options + b"\x0f\0\0\0\0\0" + b"\x02"))
        elif kind == 0x10:
            change = b"\1" + bytes([4]) + _tds_text("shop") + bytes([6]) + _tds_text("master")
            name = _tds_text("Script")
            acknowledge = b"\1\x74\0\0\4" + bytes([6]) + name + b"\x0f\0\0\0"
            connection.sendall(
                _tds_packet(
                    b"\xe3" + struct.pack("<H", len(change)) + change
                    + b"\xad" + struct.pack("<H", len(acknowledge)) + acknowledge + _tds_done(0xFD, 0)
                )
            )  # fmt: skip
        elif kind == 1:
            text = body[22:].decode("utf-16-le")
            if "nowhere" in text:
                connection.sendall(_tds_packet(_tds_error(208, "Invalid object name 'marker'.") + _tds_done(0xFD, 2)))
            elif "SELECT" in text:
                connection.sendall(_tds_packet(_tds_rows(300) + _tds_done(0xFD, 0x10, 300)))
            else:
                connection.sendall(_tds_packet(_tds_done(0xFD, 0x10, 1)))
        elif kind == 3:
            number = struct.unpack_from("<HH", body, 22)
            end = b"\x79\0\0\0\0" + _tds_done(0xFE, 0)
            if number == (0xFFFF, 13) or number == (0xFFFF, 11):
                handle += 1
                value = b"\xac\0\0\0\1\0\0\0\0\0\0\x26\4\4" + struct.pack("<i", handle)
                connection.sendall(
                    _tds_packet(_tds_rows(2) + _tds_done(0xFF, 0x11, 2) + b"\x79\0\0\0\0" + value + _tds_done(0xFE, 0))
                )
            elif b"d\0u\0p\0" in body:
                connection.sendall(
                    _tds_packet(_tds_error(2627, "Violation: marker") + b"\x79\1\0\0\0" + _tds_done(0xFE, 2))
                )
            else:
                connection.sendall(_tds_packet(_tds_rows(2) + _tds_done(0xFF, 0x11, 2) + end))
        else:
            connection.sendall(_tds_packet(_tds_done(0xFD, 0x20 if kind == 6 else 0)))


def tds() -> list[Chunk]:
    """python-tds against a scripted SQL Server."""
    import pytds

    with (
        tds_peer() as port,
        recording(port) as recorder,
        pytds.connect("127.0.0.1", "shop", "marker-user", "marker-password", port=recorder.port, autocommit=True) as c,
    ):
        cursor = c.cursor()
        cursor.execute("SELECT id FROM [dbo].[orders] WHERE note = N'marker'")
        cursor.fetchall()
        cursor.execute("SELECT id FROM orders WHERE note = %s", ("marker",))
        cursor.fetchall()
        cursor.execute("UPDATE orders SET note = N'marker'")
        for bad, parameters in (("SELECT * FROM nowhere", ()), ("INSERT INTO dup VALUES (%s)", ("marker",))):
            with contextlib.suppress(pytds.Error):
                cursor.execute(bad, parameters)
        cursor.callproc("dbo.settle", (5,))
    return recorder.chunks
