"""The awkward cases that `support.traffic` runs: what HTTP/1 allows, what sockets allow, and what goes wrong.

A case is a function of the server and one of the client.  The standard script of `_talk` is carried over every style of
`Channel` and every family; the others do one thing that a tap on the socket could get wrong.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from support.channels import Channel, Gone, Message, chunked
from support.traffic import Case, Side, request_bytes, response_bytes

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_A_REQUEST = b"GET /not-a-request HTTP/1.1\r\nHost: zoo.test\r\n\r\n"
NOT_A_RESPONSE = b"HTTP/1.1 404 Not a response\r\nContent-Length: 0\r\n\r\n"
WORK_S = 0.3  # how long a server works where somebody leaves meanwhile

# ---- the standard script ---------------------------------------------------------------------------------------------


def _answer(request: Message) -> tuple[int, bytes, int]:
    """Status, response and the size of its body, as the zoo's servers answer."""
    page, _, argument = request.target.lstrip("/").partition("/")
    status, headers, body = 200, "", b'{"item": 1}\n'
    match page:
        case "missing":
            status, body = 404, b"no such page\n"
        case "fail":
            status, body = 500, b"failed\n"
        case "echo":
            body = request.body
        case "big":
            body = b"x" * int(argument.partition("/")[0])
        case "empty":
            return 204, response_bytes(204, length=False), 0
        case "unchanged":
            return 304, response_bytes(304, headers="Content-Length: 1000\r\n", length=False), 0
        case "stream":
            headers = "Transfer-Encoding: chunked\r\n"
            return 200, response_bytes(200, headers=headers, length=False) + chunked(b"piece\n" * 50, (6, 100)), 300
    whole = response_bytes(status, body, headers)
    if request.method == "HEAD":
        return status, whole[: len(whole) - len(body)], 0
    return status, whole, len(body)


def _serve_connection(side: Side, channel: Channel) -> None:
    while (request := channel.read_request()) is not None:
        status, response, body_bytes = _answer(request)
        channel.send(response)
        side.record_request(request, status, response_bytes=body_bytes)
    channel.close()


def _serve(side: Side) -> None:
    _serve_connection(side, side.accept_channel())


def _talk(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    side.exchange(channel, "GET", "/items/1")
    side.exchange(channel, "POST", "/echo/2", body=b"b" * 3000)
    body = b"c" * 5000
    head = b"POST /echo/3 HTTP/1.1\r\nHost: zoo.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    side.exchange(channel, "POST", "/echo/3", message=head + chunked(body), body=body)
    side.exchange(channel, "GET", "/missing/4")
    side.exchange(channel, "HEAD", "/big/1000/5")
    side.exchange(channel, "GET", "/fail/6")
    side.exchange(channel, "GET", "/stream/7", headers=f"traceparent: {TRACEPARENT}\r\n")
    side.exchange(channel, "DELETE", "/empty/8")
    side.exchange(channel, "GET", "/unchanged/9")
    side.exchange(channel, "PUT", "/echo/10?page=2", body=b"d")
    side.exchange(channel, "GET", "/items/11")
    channel.close()


def _requests(*requests: tuple[str, str]) -> Callable[[Side], None]:
    """A client that makes these requests on one connection."""

    def talk(side: Side) -> None:
        side.wait_for_start()
        channel = side.connect_channel()
        for method, target in requests:
            side.exchange(channel, method, target)
        channel.close()

    return talk


# ---- messages --------------------------------------------------------------------------------------------------------


def _serve_joined(side: Side) -> None:
    """Reads all requests before it answers, and answers in one send."""
    channel = side.accept_channel()
    requests = [request for _ in range(side.amount) if (request := channel.read_request()) is not None]
    answers = [_answer(request) for request in requests]
    channel.send(b"".join(response for _, response, _ in answers))
    for request, (status, _, body_bytes) in zip(requests, answers, strict=True):
        side.record_request(request, status, response_bytes=body_bytes)
    channel.rest()
    channel.close()


def _pipeline(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    pages = ("items", "missing", "fail", "empty")
    targets = [f"/{pages[i % 4]}/{i}" for i in range(side.amount)]
    start_ns = time.monotonic_ns()
    channel.send(b"".join(request_bytes("GET", target) for target in targets))
    for target in targets:
        response = channel.read_response()
        assert response is not None
        side.record_response("GET", target, response, start_ns)
    channel.close()


def _many_cookies(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    cookies = "Cookie: " + "; ".join(f"c{i}={'v' * 60}" for i in range(side.amount * 1024 // 66)) + "\r\n"
    trace = f"traceparent: {TRACEPARENT}\r\n"
    for i in range(3):
        start_ns = time.monotonic_ns()
        whole = request_bytes("GET", f"/items/{i}", cookies + trace)
        for at in range(0, len(whole), (1 << 20, 1448, 4096)[i]):
            channel.send(whole[at : at + (1 << 20, 1448, 4096)[i]])
        response = channel.read_response()
        assert response is not None
        side.record_response("GET", f"/items/{i}", response, start_ns, traceparent=TRACEPARENT)
    channel.close()


def _serve_chunked(side: Side) -> None:
    """Answers with the awkward forms: extensions, trailers, sizes cut in two by writes."""
    channel = side.accept_channel()
    while (request := channel.read_request()) is not None:
        head = response_bytes(200, headers="Transfer-Encoding: chunked\r\nTrailer: X-Checked\r\n", length=False)
        _send_in_pieces(channel, head + chunked(request.body or b"none", (1, 300, 16), awkward=True))
        side.record_request(request, 200, response_bytes=len(request.body or b"none"))
    channel.close()


def _send_in_pieces(channel: Channel, data: bytes) -> None:
    """Two bytes, then seven, and so on: sizes and ends of chunks are cut; pauses let each leave alone."""
    at, step = 0, 0
    while at < len(data):
        size = (2, 7, 31, 100)[step % 4]
        channel.send(data[at : at + size])
        at, step = at + size, step + 1
        if step % 16 == 0:
            time.sleep(0.0005)


def _talk_chunked(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    for i, size in enumerate((1, 26, 4000)):
        body = b"abcdefghijklmnopqrstuvwxyz"[:size] if size < 27 else b"0\r\n\r\n" * (size // 5)
        head = f"POST /echo/{i} HTTP/1.1\r\nHost: zoo.test\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        start_ns = time.monotonic_ns()
        _send_in_pieces(channel, head + chunked(body, (5, 1, 255), awkward=True))
        response = channel.read_response("POST")
        assert response is not None
        assert response.body == body
        side.record_response("POST", f"/echo/{i}", response, start_ns, request_bytes=len(body))
    channel.close()


def _serve_expect(side: Side) -> None:
    channel = side.accept_channel()
    while (request := channel.read_head()) is not None:
        if request.target.startswith("/refused"):
            channel.send(response_bytes(417, b"no\n"))
            side.record_request(request, 417, response_bytes=3, flags=("early",))
            break
        channel.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
        channel.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        channel.read_body(request)
        status, response, body_bytes = _answer(request)
        channel.send(response)
        side.record_request(request, status, response_bytes=body_bytes)
    channel.close()


def _expect(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    for target, wait in (("/echo/1", True), ("/echo/2", False), ("/refused/3", True)):
        body = b"e" * 2000
        start_ns = time.monotonic_ns()
        channel.send(request_bytes("POST", target, "Expect: 100-continue\r\n", body)[: -len(body)])
        if wait:
            select.select([channel.socket], [], [], 10)
        refused = target.startswith("/refused")
        if not refused:
            channel.send(body)
        response = channel.read_response("POST")
        assert response is not None
        flags = ("early",) if refused else ()
        sent = 0 if refused else len(body)
        side.record_response("POST", target, response, start_ns, request_bytes=sent, flags=flags)
    channel.close()


def _serve_upgrade(side: Side) -> None:
    channel = side.accept_channel()
    first = channel.read_request()
    assert first is not None
    status, response, body_bytes = _answer(first)
    channel.send(response)
    side.record_request(first, status, response_bytes=body_bytes)
    request = channel.read_head()
    assert request is not None
    if request.method == "CONNECT":
        status, response = 200, b"HTTP/1.1 200 Connected\r\n\r\n"
    else:
        status, response = 101, response_bytes(101, headers="Connection: Upgrade\r\nUpgrade: zoo\r\n", length=False)
    channel.send(response)
    side.record_request(request, status, flags=("upgraded",))
    while channel.fill():  # no HTTP from here on, however it looks
        channel.take(1)
        channel.send(NOT_A_RESPONSE)
        channel.send(NOT_A_REQUEST)
    channel.close()


def _upgrade(method: str, target: str, headers: str) -> Callable[[Side], None]:
    def talk(side: Side) -> None:
        side.wait_for_start()
        channel = side.connect_channel()
        side.exchange(channel, "GET", "/items/1")
        start_ns = time.monotonic_ns()
        channel.send(request_bytes(method, target, headers))
        response = channel.read_head()
        assert response is not None
        side.record_response(method, target, response, start_ns, flags=("upgraded",))
        for _ in range(5):
            channel.send(NOT_A_REQUEST)
            channel.fill()
        channel.socket.shutdown(socket.SHUT_WR)
        channel.rest()
        channel.close()

    return talk


def _serve_to_close(side: Side) -> None:
    """Each connection's response has no length: it ends with the connection."""
    for version in ("1.0", "1.1"):
        channel = side.accept_channel()
        request = channel.read_request()
        assert request is not None
        channel.send(f"HTTP/{version} 200 OK\r\nContent-Type: text/plain\r\n\r\n".encode())
        for _ in range(10):
            channel.send(b"y" * 1000)
            time.sleep(0.002)
        channel.close()
        side.record_request(request, 200, response_bytes=10_000)


def _to_close(side: Side) -> None:
    side.wait_for_start()
    for version in ("1.0", "1.1"):
        channel = side.connect_channel()
        message = f"GET /items/{version} HTTP/{version}\r\nHost: zoo.test\r\nConnection: close\r\n\r\n".encode()
        side.exchange(channel, "GET", f"/items/{version}", message=message)
        channel.close()


def _http10(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    for i in range(5):
        message = f"GET /items/{i} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode()
        side.exchange(channel, "GET", f"/items/{i}", message=message)
    channel.close()


def _odd_lines(side: Side) -> None:
    """What RFC 9112 lets a recipient take: bare LF, empty lines before a request, odd case and spaces, many fields."""
    side.wait_for_start()
    channel = side.connect_channel()
    many = "".join(f"x-field-{i}: {i}\r\n" for i in range(90))
    for target, message in (
        ("/items/1", "GET /items/1 HTTP/1.1\nHost: zoo.test\n\n"),
        ("/items/2", "\r\nGET /items/2 HTTP/1.1\r\nhOsT:zoo.test\r\n\r\n"),
        ("/items/3", f"GET /items/3 HTTP/1.1\r\nHost:\t zoo.test \t\r\n{many}\r\n"),
        ("/echo/4", "POST /echo/4 HTTP/1.1\r\nHost: zoo.test\r\nCONTENT-LENGTH:   3  \r\n\r\nabc"),
        (
            "/echo/5",
            "POST /echo/5 HTTP/1.1\r\nHost: zoo.test\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
    ):
        method = message.lstrip().split(" ")[0]
        body = b"abc" if target == "/echo/4" else b"ab" if target == "/echo/5" else b""
        side.exchange(channel, method, target, message=message.encode(), body=body)
    channel.close()


def _http_in_bodies(side: Side) -> None:
    """A body that looks like requests, its lines at the beginning of a write, is a body."""
    side.wait_for_start()
    channel = side.connect_channel()
    for i in range(3):
        body = NOT_A_REQUEST * 4 + NOT_A_RESPONSE
        start_ns = time.monotonic_ns()
        channel.send(request_bytes("POST", f"/echo/{i}", body=body)[: -len(body)])
        for at in range(0, len(body), len(NOT_A_REQUEST)):
            time.sleep(0.001)
            channel.send(body[at : at + len(NOT_A_REQUEST)])
        response = channel.read_response("POST")
        assert response is not None
        side.record_response("POST", f"/echo/{i}", response, start_ns, request_bytes=len(body))
    channel.close()


def _serve_early(side: Side) -> None:
    """Answers after the head, then reads the body all the same."""
    channel = side.accept_channel()
    while (request := channel.read_head()) is not None:
        channel.send(response_bytes(413, b"too much\n"))
        end_ns = time.monotonic_ns()
        channel.read_body(request)
        side.record_request(request, 413, end_ns=end_ns, response_bytes=9, flags=("early",))
    channel.close()


def _early(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    for i in range(3):
        body = b"z" * 300_000
        start_ns = time.monotonic_ns()
        whole = request_bytes("POST", f"/upload/{i}", body=body)
        channel.send(whole[:1000])
        response = channel.read_response("POST")
        channel.send(whole[1000:])
        assert response is not None
        side.record_response("POST", f"/upload/{i}", response, start_ns, request_bytes=len(body), flags=("early",))
        time.sleep(0.01)
    channel.close()


# ---- bytes that no buffer of the process holds, and long ones --------------------------------------------------------


def _serve_file(side: Side) -> None:
    channel = side.accept_channel()
    while (request := channel.read_request()) is not None:
        size = side.amount << 20
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            channel.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
            sent = 0
            while sent < size:
                sent += os.sendfile(channel.socket.fileno(), file.fileno(), sent, size - sent)
        side.record_request(request, 200, response_bytes=size)
    channel.close()


def _serve_spliced(side: Side) -> None:
    channel = side.accept_channel()
    out, into = os.pipe()
    while (request := channel.read_request()) is not None:
        size = side.amount << 20
        channel.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size // 65_536):
            os.write(into, b"s" * 65_536)
            moved = 0
            while moved < 65_536:
                moved += os.splice(out, channel.socket.fileno(), 65_536 - moved)
        side.record_request(request, 200, response_bytes=size)
    channel.close()


def _download(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    for i in range(2):
        start_ns = time.monotonic_ns()
        channel.send(request_bytes("GET", f"/download/{i}"))
        response = channel.read_head()
        assert response is not None
        # by a large buffer of its own: the reader is not to be what is measured
        left = int(response.headers["content-length"]) - len(channel.take(len(channel._buffer)))
        buffer = bytearray(1 << 20)
        while left:
            left -= channel.socket.recv_into(buffer, min(left, len(buffer)))
        response.end_ns = time.monotonic_ns()
        response.body_bytes = int(response.headers["content-length"])
        side.record_response("GET", f"/download/{i}", response, start_ns)
    channel.close()


def _serve_events(side: Side) -> None:
    """Server-sent events: the first bytes at once, then one event each 100 ms; once chunked, once to the close."""
    for encoding in ("Transfer-Encoding: chunked\r\n", ""):
        channel = side.accept_channel()
        request = channel.read_request()
        assert request is not None
        channel.send(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{encoding}\r\n".encode())
        total = 0
        end = time.monotonic() + side.amount
        while time.monotonic() < end:
            event = b"data: tick\n\n"
            total += len(event)
            channel.send(b"%x\r\n%s\r\n" % (len(event), event) if encoding else event)
            time.sleep(0.1)
        if encoding:
            channel.send(b"0\r\n\r\n")
        channel.close()
        side.record_request(request, 200, response_bytes=total, flags=("stream",))


def _events(side: Side) -> None:
    side.wait_for_start()
    for i in range(2):
        channel = side.connect_channel()
        side.exchange(channel, "GET", f"/events/{i}", headers="Accept: text/event-stream\r\n", flags=("stream",))
        channel.close()


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def _serve_unanswered(leave: Callable[[Channel], None], error: str) -> Callable[[Side], None]:
    """Serves one request well, then leaves in the middle of the next one, without a word or inside the response."""

    def serve(side: Side) -> None:
        for words in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"):
            channel = side.accept_channel()
            request = channel.read_request()
            assert request is not None
            status, response, body_bytes = _answer(request)
            channel.send(response)
            side.record_request(request, status, response_bytes=body_bytes)
            request = channel.read_request()
            assert request is not None
            if words:
                channel.send(words)
                time.sleep(0.05)  # a reset must not overtake them
            leave(channel)
            details = {"response_bytes": 4} if words else {}
            side.record_request(request, 200 if words else 0, error=error, **details)

    return serve


def _unanswered(error: str) -> Callable[[Side], None]:
    def talk(side: Side) -> None:
        side.wait_for_start()
        for i in range(2):
            channel = side.connect_channel()
            side.exchange(channel, "GET", f"/items/{i}")
            start_ns = time.monotonic_ns()
            channel.send(request_bytes("GET", f"/lost/{i}"))
            head = None
            with contextlib.suppress(Gone, ConnectionResetError):
                head = channel.read_head()
                if head is not None:
                    channel.take(1000)
            status = head.status if head is not None else 0
            side.record("GET", f"/lost/{i}", status, start_ns, error=error, first_byte_ns=head.first_ns if head else 0)
            channel.close()

    return talk


def _serve_slowly(error: str) -> Callable[[Side], None]:
    """Works for `WORK_S`, then answers, whoever is still there; twice, because the first send after an end succeeds."""

    def serve(side: Side) -> None:
        channel = side.accept_channel()
        request = channel.read_request()
        assert request is not None
        time.sleep(WORK_S)
        status, response, body_bytes = _answer(request)
        try:
            channel.send(response)
            side.record_request(request, status, response_bytes=body_bytes)
        except (BrokenPipeError, ConnectionResetError):
            side.record_request(request, 0, error=error)
        channel.close()

    return serve


def _leave(how: str, error: str) -> Callable[[Side], None]:
    def talk(side: Side) -> None:
        side.wait_for_start()
        channel = side.connect_channel()
        start_ns = time.monotonic_ns()
        channel.send(request_bytes("GET", "/items/1"))
        channel.socket.settimeout(WORK_S / 3)
        with contextlib.suppress(TimeoutError):
            channel.fill()
        if how == "reset":
            channel.reset()
        else:
            channel.close()
        side.record("GET", "/items/1", 0, start_ns, error=error)
        time.sleep(WORK_S)

    return talk


def _serve_until_reset(side: Side) -> None:
    """Sends a large response to a client that goes away in the middle of it."""
    channel = side.accept_channel()
    request = channel.read_request()
    assert request is not None
    sent = 0
    channel.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    try:
        while True:
            channel.send(b"q" * 100_000)
            sent += 100_000
    except (BrokenPipeError, ConnectionResetError):
        side.record_request(request, 200, error="reset", response_bytes=sent)
    channel.close()


def _reset_inside(side: Side) -> None:
    side.wait_for_start()
    channel = side.connect_channel()
    start_ns = time.monotonic_ns()
    channel.send(request_bytes("GET", "/big/1"))
    response = channel.read_head()
    assert response is not None
    channel.take(200_000)
    channel.reset()
    side.record("GET", "/big/1", 200, start_ns, error="local_closed|reset", first_byte_ns=response.first_ns)


def _half_close(side: Side) -> None:
    """An end of sending is no end of the connection: the answer still comes."""
    side.wait_for_start()
    channel = side.connect_channel()
    start_ns = time.monotonic_ns()
    channel.send(request_bytes("GET", "/items/1"))
    channel.socket.shutdown(socket.SHUT_WR)
    response = channel.read_response()
    assert response is not None
    side.record_response("GET", "/items/1", response, start_ns)
    channel.close()


def _serve_echo(side: Side) -> None:
    channel = side.accept_channel()
    while channel.fill():
        channel.send(channel.take(1) + b"\x00\x01 not HTTP\r\n")
    channel.close()


def _not_http(side: Side) -> None:
    """Other protocols on the connection: nothing of this is a request."""
    side.wait_for_start()
    channel = side.connect_channel()
    for words in (
        b"\x16\x03\x01\x02\x00\x01",
        b"*1\r\n$4\r\nPING\r\n",
        b"GETTING /on HTTP\r\n",
        b"HTTP/1.1\r\n",
        b"GET",
    ):
        channel.send(words)
        channel.fill()
    channel.close()


# ---- who serves ------------------------------------------------------------------------------------------------------


def _serve_by_fork(side: Side) -> None:
    """The parent accepts, a child serves."""
    for _ in range(3):
        connection = side.accept()
        child = os.fork()
        if child == 0:
            _serve_connection(side, Channel(connection))
            os._exit(0)
        connection.close()
        os.waitpid(child, 0)


def _serve_by_passing(side: Side) -> None:
    """One process accepts and passes the connection to another over a UNIX socket."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        while True:
            message, descriptors, _, _ = socket.recv_fds(there, 1, 1)
            if not message:
                os._exit(0)
            _serve_connection(side, Channel(socket.socket(fileno=descriptors[0])))
            there.send(b".")
    there.close()
    for _ in range(3):
        connection = side.accept()
        socket.send_fds(here, [b"x"], [connection.fileno()])
        connection.close()
        here.recv(1)
    here.close()
    os.waitpid(child, 0)


def _talk_thrice(side: Side) -> None:
    side.wait_for_start()
    for connection in range(3):
        channel = side.connect_channel()
        for i in range(3):
            side.exchange(channel, "GET", f"/items/{connection}-{i}")
        channel.close()


def _serve_by_threads(side: Side) -> None:
    """One thread reads the request, another answers it."""
    channel = side.accept_channel()
    while (request := channel.read_request()) is not None:
        status, response, body_bytes = _answer(request)
        thread = threading.Thread(target=channel.send, args=(response,))
        thread.start()
        thread.join()
        side.record_request(request, status, response_bytes=body_bytes)
    channel.close()


def _opened_before(used: bool) -> Callable[[Side], None]:
    """The connection is older than the agent; maybe requests passed over it already."""

    def talk(side: Side) -> None:
        channel = side.connect_channel()
        if used:
            for i in range(3):
                side.exchange(channel, "GET", f"/before/{i}")
        else:
            time.sleep(0.1)  # so that the server sits in its read
        side.wait_for_start()
        for i in range(5):
            side.exchange(channel, "GET", f"/items/{i}")
        side.exchange(channel, "POST", "/echo/5", body=b"o" * 500)
        channel.close()

    return talk


# ---- the list --------------------------------------------------------------------------------------------------------

_RESET = Channel.reset
_CLOSE = Channel.close

_PLAIN = Case("plain", "send and recv (the system calls sendto and recvfrom)", _serve, _talk)
_STYLES = (
    replace(_PLAIN, name="read-write", about="read and write", server_send="write", server_receive="read",
            client_send="write", client_receive="read"),
    replace(_PLAIN, name="one-byte-requests", about="requests written byte by byte", client_send="bytes"),
    replace(_PLAIN, name="one-byte-responses", about="responses written byte by byte", server_send="bytes"),
    replace(_PLAIN, name="one-byte-reads", about="read byte by byte", server_receive="bytes", client_receive="bytes"),
    replace(_PLAIN, name="small-reads", about="seven bytes a read", server_receive="small", client_receive="small"),
    replace(_PLAIN, name="cut-writes", about="written in odd pieces", server_send="cut", client_send="cut"),
    replace(_PLAIN, name="writev-readv", about="iovecs cut in odd places, some empty", server_send="writev",
            server_receive="readv", client_send="writev", client_receive="readv"),
    replace(_PLAIN, name="sendmsg-recvmsg", about="200 and more iovecs a call, the first ones empty",
            server_send="sendmsg", server_receive="recvmsg", client_send="sendmsg", client_receive="recvmsg"),
    replace(_PLAIN, name="sendmmsg-recvmmsg", about="several messages a call on TCP", server_send="sendmmsg",
            server_receive="recvmmsg", client_send="sendmmsg", client_receive="recvmmsg"),
    replace(_PLAIN, name="peek", about="MSG_PEEK twice before each read", server_receive="peek", client_receive="peek"),
    replace(_PLAIN, name="nonblocking", about="EAGAIN on both sides, a small send buffer", server_send="nonblocking",
            server_receive="nonblocking", client_send="nonblocking", client_receive="nonblocking"),
    replace(_PLAIN, name="ipv6", about="IPv6", family="ipv6"),
    replace(_PLAIN, name="v4-mapped", about="an IPv4 client of an IPv6 socket", family="mapped"),
    replace(_PLAIN, name="unix", about="a UNIX stream socket", family="unix"),
)  # fmt: skip

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        _PLAIN,
        *_STYLES,
        Case("pipelining", "50 requests in one write, answered one by one", _serve, _pipeline, amount=50),
        Case("pipelining-joined", "50 requests in one write, 50 responses in one write", _serve_joined, _pipeline,
             amount=50),
        Case("pipelining-cut", "50 requests in odd pieces, answered one by one", _serve, _pipeline, amount=50,
             client_send="cut"),
        Case("cookies", "16 KB of cookies before traceparent, in one write and many", _serve, _many_cookies, amount=16),
        Case("chunked", "extensions, trailers and cut sizes, both ways", _serve_chunked, _talk_chunked),
        Case("expect", "100-continue waited for and not, 103 before it, and 417", _serve_expect, _expect),
        Case("head", "HEAD with a Content-Length, then GET", _serve,
             _requests(("HEAD", "/big/1000/1"), ("GET", "/items/2"), ("HEAD", "/items/3"), ("GET", "/big/9/4"))),
        Case("no-content", "204 and 304 (with a Content-Length), then GET", _serve,
             _requests(("GET", "/empty/1"), ("GET", "/items/2"), ("GET", "/unchanged/3"), ("GET", "/items/4"))),
        Case("absolute-form", "targets as a proxy gets them, and the asterisk", _serve,
             _requests(("GET", "http://zoo.test/items/1?page=2"), ("GET", "http://zoo.test:8080/items/2"),
                       ("OPTIONS", "*"), ("GET", "/items/4"))),
        Case("long-target", "a target of 6 KB", _serve,
             _requests(("GET", "/items/" + "long" * 1500), ("GET", "/items/2?" + "q=1&" * 1000), ("GET", "/items/3"))),
        Case("to-close", "HTTP/1.0 and 1.1 responses that end with the connection", _serve_to_close, _to_close),
        Case("http10-keepalive", "HTTP/1.0 with keep-alive", _serve, _http10),
        Case("odd-lines", "bare LF, empty lines first, odd case, 90 fields", _serve, _odd_lines),
        Case("http-in-bodies", "bodies that look like requests and responses", _serve, _http_in_bodies),
        Case("early-response", "answered before the request's body is read", _serve_early, _early),
        Case("upgrade", "101, then bytes that look like HTTP", _serve_upgrade,
             _upgrade("GET", "/socket/2", "Connection: Upgrade\r\nUpgrade: zoo\r\n")),
        Case("connect", "CONNECT, then bytes that look like HTTP", _serve_upgrade,
             _upgrade("CONNECT", "zoo.test:443", "")),
        Case("sendfile", "a file of AMOUNT MB (200) by sendfile, twice", _serve_file, _download, amount=200),
        Case("splice", "AMOUNT MB (16) spliced from a pipe, twice", _serve_spliced, _download, amount=16),
        Case("sse", "server-sent events for AMOUNT seconds (10), chunked and to the close", _serve_events, _events,
             amount=10),
        Case("server-resets", "the server resets before and inside the response",
             _serve_unanswered(_RESET, "local_closed|reset"), _unanswered("reset|peer_closed")),
        Case("server-closes", "the server closes before and inside the response",
             _serve_unanswered(_CLOSE, "local_closed"), _unanswered("peer_closed")),
        Case("client-resets", "the client resets in the middle of the response", _serve_until_reset, _reset_inside),
        Case("client-gone", "the client closes while the server works; the answer still leaves",
             _serve_slowly("reset"), _leave("close", "local_closed")),
        Case("client-gone-by-reset", "the client resets while the server works", _serve_slowly("reset"),
             _leave("reset", "local_closed|reset")),
        Case("half-close", "the client ends its sending after the request", _serve, _half_close),
        Case("not-http", "other protocols: no request at all", _serve_echo, _not_http),
        Case("opened-before", "the connection is older than the agent", _serve, _opened_before(used=False)),
        Case("used-before", "as before, after three requests of no agent's time", _serve, _opened_before(used=True)),
        Case("fork-after-accept", "the parent accepts, a child serves", _serve_by_fork, _talk_thrice),
        Case("passed-descriptor", "one process accepts, another serves (SCM_RIGHTS)", _serve_by_passing, _talk_thrice),
        Case("two-threads", "one thread reads, another answers", _serve_by_threads, _requests(
             *(("GET", f"/items/{i}") for i in range(9)))),
    )
}  # fmt: skip
