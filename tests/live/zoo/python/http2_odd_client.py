"""HTTP/2 as it may be and seldom is: padding, header blocks of many frames, tables of any size, resets.

http2_odd_client.py PORT TABLE_SIZE COUNT; waits for a line, then prints one JSON line a request
"""

import json
import socket
import sys
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
from hpack import Decoder
from hyperframe.frame import HeadersFrame

PORT, TABLE, COUNT = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ERRORS = {2: "INTERNAL_ERROR", 7: "REFUSED_STREAM", 8: "CANCEL"}


class Patient(Decoder):
    """Takes tables of any size: Node makes its own smaller a little after it was told to."""

    max_allowed_table_size = property(lambda self: 1 << 20, lambda self, size: None)


class Connection:
    """One connection with one request at a time."""

    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", PORT))
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.local_settings[h2.settings.SettingCodes.HEADER_TABLE_SIZE] = TABLE
        self.h2.local_settings[h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE] = 1 << 20
        self.h2.decoder = Patient()
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def events(self):
        while True:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            yield from self.h2.receive_data(data)
            self.flush()

    def headers(self, method, path, extra=()):
        return [(":method", method), (":scheme", "http"), (":authority", f"127.0.0.1:{PORT}"), (":path", path), *extra]

    def answer(self, number):
        """Status, bytes and error of the response."""
        status = size = 0
        for event in self.events():
            if getattr(event, "stream_id", None) != number:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                status = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                size += len(event.data)
                self.h2.acknowledge_received_data(event.flow_controlled_length, number)
                self.flush()
            elif isinstance(event, h2.events.StreamReset):
                return status, size, ERRORS.get(event.error_code, str(event.error_code))
            elif isinstance(event, h2.events.StreamEnded):
                return status, size, ""
        raise AssertionError


def padded(connection, path):
    """DATA with padding; twice, so that the end is seen behind padding."""
    number = connection.h2.get_next_available_stream_id()
    connection.h2.send_headers(number, connection.headers("POST", path))
    connection.h2.send_data(number, b"x" * 700, pad_length=200)
    connection.h2.send_data(number, b"x" * 300, pad_length=0, end_stream=True)
    return number


def padded_headers(connection, path):
    """HEADERS with padding and a priority, which the library does not make."""
    number = connection.h2.get_next_available_stream_id()
    connection.h2.send_headers(number, connection.headers("GET", path), end_stream=True)
    made = connection.h2.data_to_send()
    length = int.from_bytes(made[:3], "big")
    frame = HeadersFrame(number, made[9 : 9 + length])
    for flag in ("END_HEADERS", "END_STREAM", "PADDED", "PRIORITY"):
        frame.flags.add(flag)
    frame.pad_length, frame.depends_on, frame.stream_weight = 33, 0, 15
    connection.socket.sendall(frame.serialize() + made[9 + length :])
    return number


def plain(connection, path):
    number = connection.h2.get_next_available_stream_id()
    connection.h2.send_headers(number, connection.headers("GET", path), end_stream=True)
    return number


def much(connection, path):
    """16 KB of headers: HEADERS and CONTINUATION; cut by the socket as it likes."""
    number = connection.h2.get_next_available_stream_id()
    extra = [(f"x-word-{i}", f"{i:04d}-{path[-6:]}-" + "w" * 330) for i in range(48)]
    connection.h2.send_headers(number, connection.headers("GET", path, extra), end_stream=True)
    return number


def given_up(connection, path):
    """A request that is reset before its answer."""
    number = plain(connection, path)
    connection.flush()
    time.sleep(0.002)
    connection.h2.reset_stream(number, 8)
    return number


KINDS = {
    "items": plain, "missing": plain, "header/20000": plain, "echo": padded, "items/padded": padded_headers,
    "items/much": much, "sleep/200": given_up, "refused": plain, "broken": plain, "stream": plain, "big/100000": plain,
}  # fmt: skip


def main():
    connection = Connection()
    print("ready", flush=True)
    sys.stdin.readline()
    lines = []
    for n in range(COUNT):
        kind = list(KINDS)[n % len(KINDS)]
        path = f"/{kind}/{TABLE}-{n}"
        method = "POST" if kind == "echo" else "GET"
        start = time.monotonic_ns()
        number = KINDS[kind](connection, path)
        connection.flush()
        status, size, error = (0, 0, "CANCEL") if KINDS[kind] is given_up else connection.answer(number)
        lines.append(
            {"n": n, "method": method, "path": path, "status": status, "start_ns": start, "end_ns": time.monotonic_ns(),
             "bytes": size, "error": error}
        )  # fmt: skip
    connection.h2.close_connection()
    connection.flush()
    print("\n".join(map(json.dumps, lines)))


main()
