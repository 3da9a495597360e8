"""Who is let in: rebinding, other sites, tokens, odd requests; over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from onlooker.store import MEMORY
from onlooker.web.guard import is_loopback
from support.page_server import Traffic, serve


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    made = Traffic(MEMORY)
    made.put(made.a_trace(1))
    made.store.writer.round(0.0)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def url(traffic: Traffic) -> Iterator[str]:
    with serve(traffic.store) as found:
        yield found


def ask(url: str, path: str = "/api/v1/overview", method: str = "GET", **fields: str) -> tuple[int, dict[str, str]]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    for name, value in {"Host": f"127.0.0.1:{parts.port}", **named}.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, dict(response.headers)


def raw(url: str, data: bytes) -> bytes:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=2) as connection:
        connection.sendall(data)
        out = b""
        while part := connection.recv(65536):
            out += part
    return out


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9700", "127.0.0.1", "127.8.9.1:1", "[::1]:9700", "LOCALHOST", "localhost."]
)
def test_loopback_names_are_let_in(url: str, host: str) -> None:
    assert ask(url, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1", "0.0.0.0", "[::]", "[",
     "a@b:c", "evil.example:9700", "localhost@evil.example", "127.0.0.1:1@evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/api/v1/overview", "/api/traces", "/nothing"])
def test_a_rebound_name_is_turned_away(url: str, host: str, path: str) -> None:
    status, fields = ask(url, path, Host=host)
    assert status in (400, 403)
    assert "Access-Control-Allow-Origin" not in fields


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"])
def test_another_site_is_turned_away(url: str, origin: str) -> None:
    status, fields = ask(url, Origin=origin)
    assert status == 403
    assert "Access-Control-Allow-Origin" not in fields


def test_a_browser_tells_that_it_comes_from_elsewhere(url: str) -> None:
    assert ask(url, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(url, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 403
    assert ask(url, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200  # a link may lead here
    assert ask(url, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/api/v1/overview"])
def test_nothing_can_be_changed(url: str, method: str, path: str) -> None:
    assert ask(url, path, method)[0] == 405


def test_every_answer_has_the_policy(url: str) -> None:
    for path, fields in (("/", {}), ("/api/v1/overview", {}), ("/none", {}), ("/", {"Host": "evil.example"})):
        found = ask(url, path, **fields)[1]
        policy = found["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert found["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/assets/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/assets/%2e%2e%2fapi.py",
     "/assets//etc/passwd", "/static/index.html", "/index.html%00.js", "//etc/passwd", "/..%5c..%5cetc"],
)  # fmt: skip
def test_paths_do_not_reach_the_disk(url: str, path: str) -> None:
    head, _, body = raw(url, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"404")
    assert b"root:" not in body
    assert b"import " not in body


@pytest.mark.parametrize(
    "data",
    [
        b"GET /api/v1/traces?q=" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ],
)
def test_oversized_and_odd_requests_do_no_harm(url: str, data: bytes) -> None:
    with contextlib.suppress(ConnectionError, TimeoutError):  # being cut off is an answer too
        raw(url, data)
    assert ask(url)[0] == 200


def test_slow_and_silent_visitors_hold_up_nobody(url: str) -> None:
    parts = urlsplit(url)
    slow = [socket.create_connection((parts.hostname, parts.port), timeout=5) for _ in range(50)]
    for connection in slow:
        connection.sendall(b"GET /api/v1/overview HTTP/1.1\r\nHost: loc")
    assert ask(url)[0] == 200
    for connection in slow:
        connection.close()


def test_streams_are_bounded_and_unread_ones_do_no_harm(url: str) -> None:
    parts = urlsplit(url)
    streams = []
    for _ in range(20):
        connection = socket.create_connection((parts.hostname, parts.port), timeout=5)
        connection.sendall(b"GET /api/v1/stream?topics=spans HTTP/1.1\r\nHost: localhost\r\n\r\n")
        streams.append(connection)
    heads = [connection.recv(12) for connection in streams]
    assert heads.count(b"HTTP/1.1 200") == 16
    assert heads.count(b"HTTP/1.1 503") == 4
    assert ask(url)[0] == 200
    for connection in streams:
        connection.close()
    for _ in range(50):  # places become free once the server notices
        connection = socket.create_connection((parts.hostname, parts.port), timeout=5)
        connection.sendall(b"GET /api/v1/stream?topics=spans HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = connection.recv(12)
        connection.close()
        if head == b"HTTP/1.1 200":
            break
        time.sleep(0.2)
    assert head == b"HTTP/1.1 200"


def test_a_token_is_asked_for_everything_that_holds_data(traffic: Traffic) -> None:
    with serve(traffic.store, token="s3cret", address="192.0.2.1") as url:
        assert ask(url, "/")[0] == 200  # the page holds none, and asks for the token
        for path in ("/api/v1/overview", "/api/v1/stream", "/api/traces", "/api/v1/openapi.json", "/none"):
            assert ask(url, path)[0] == 401, path
            assert ask(url, path, Authorization="Bearer wrong")[0] == 401
            assert ask(url, path, Authorization="Basic s3cret")[0] == 401
            assert ask(url, path, Authorization="Bearer s3cret\u00e9")[0] == 401
        assert ask(url, Authorization="Bearer s3cret")[0] == 200
        assert ask(url, Authorization="Bearer s3cret", Origin="https://evil.example")[0] == 403
        assert ask(url, Authorization="Bearer s3cret", Host="shop.example", Origin="https://shop.example")[0] == 200


def test_what_loopback_means() -> None:
    assert [is_loopback(name) for name in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "x", "")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


def test_errors_are_json_where_a_program_asked(url: str) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", "/api/v1/traces?min=soon")
    response = connection.getresponse()
    assert response.status == 400
    assert "min" in json.loads(response.read())["error"]
    connection.close()
