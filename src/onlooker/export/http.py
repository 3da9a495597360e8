"""OTLP over HTTP, as protobuf or JSON, by urllib3.

Redirects are not followed: they would carry the headers, hence secrets, elsewhere.  Of an answer at most 64 KB are
read, and it is never decompressed.
"""

from __future__ import annotations

import gzip
import logging
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from onlooker.errors import ExportError
from onlooker.export.endpoint import Connection, Protocol
from onlooker.export.tls import client_context
from onlooker.export.transport import (
    MAX_RESPONSE_BYTES,
    Answer,
    clean,
    read_answer,
    read_json_answer,
    status_message,
)

log = logging.getLogger(__name__)

RETRYABLE_STATUS = frozenset({429, 502, 503, 504})  # OTLP specification, "Retryable Response Codes"


class _UnixConnection(HTTPConnection):
    """HTTP over a UNIX socket; the host is only for the Host field."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def _new_conn(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock


class _UnixPool(urllib3.HTTPConnectionPool):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", maxsize=1, block=False)
        self._path = path
        self._timeout_s = timeout_s

    def _new_conn(self) -> _UnixConnection:
        return _UnixConnection(self._path, self._timeout_s)


class _CarelessPool(urllib3.HTTPSConnectionPool):
    """Without urllib3's warning for each request: ``insecure_skip_verify`` was asked for, and is logged once."""

    def _validate_conn(self, conn: Any) -> None:
        if conn.is_closed:
            conn.connect()


class HttpTransport:
    """Posts requests to one URL over one kept connection."""

    def __init__(self, connection: Connection, *, version: str, clock: Callable[[], float] = time.time) -> None:
        endpoint = connection.endpoint
        self._connection = connection
        self._clock = clock
        self._json = endpoint.protocol is Protocol.HTTP_JSON
        self._gzip = connection.gzip
        self._headers = {
            "user-agent": f"onlooker/{version}",
            **connection.headers,
            "content-type": "application/json" if self._json else "application/x-protobuf",
        }
        if self._gzip:
            self._headers["content-encoding"] = "gzip"
        self._timeout = Timeout(total=connection.timeout_s)
        self._pool: urllib3.HTTPConnectionPool
        if endpoint.unix_path:
            self._pool = _UnixPool(endpoint.unix_path, connection.timeout_s)
        elif endpoint.secure:
            careless = connection.tls.insecure_skip_verify
            if careless:
                log.warning("the certificate of %s is not verified: insecure_skip_verify is set", endpoint)
            pool = _CarelessPool if careless else urllib3.HTTPSConnectionPool
            self._pool = pool(
                endpoint.host,
                endpoint.port,
                maxsize=1,
                ssl_context=client_context(connection.tls),
                assert_hostname=False if careless else None,
                cert_reqs="CERT_NONE" if careless else "CERT_REQUIRED",
            )
        else:
            self._pool = urllib3.HTTPConnectionPool(endpoint.host, endpoint.port, maxsize=1)

    def send(self, data: bytes) -> Answer:
        """Post one request; see `Transport`."""
        endpoint = self._connection.endpoint
        if self._json:
            from onlooker.export.otlp_json import to_json

            data = to_json(data, endpoint.signal)
        if self._gzip:
            data = gzip.compress(data, compresslevel=1, mtime=0)
        try:
            response = self._pool.request(
                "POST", endpoint.path, body=data, headers=self._headers, timeout=self._timeout,
                retries=False, redirect=False, preload_content=False, decode_content=False,
            )  # fmt: skip
        except (HTTPError, OSError, ValueError) as err:  # ValueError: an answer that http.client cannot parse
            raise ExportError(f"cannot send to {endpoint}: {clean(str(err))}", retryable=True) from err
        body, whole = self._read(response)
        if whole:
            response.release_conn()
        else:
            response.close()
        return self._judge(response, body)

    def close(self) -> None:
        """Give up the connection."""
        self._pool.close()

    def _read(self, response: urllib3.BaseHTTPResponse) -> tuple[bytes, bool]:
        """At most `MAX_RESPONSE_BYTES` of the body, within the timeout, and whether that was all."""
        body = bytearray()
        deadline = time.monotonic() + self._connection.timeout_s
        try:
            while len(body) < MAX_RESPONSE_BYTES and time.monotonic() < deadline:
                piece = response.read1(min(4096, MAX_RESPONSE_BYTES - len(body)), decode_content=False)
                if not piece:
                    return bytes(body), True
                body += piece
        except (HTTPError, OSError, ValueError):
            pass  # the status has arrived and says all that matters
        return bytes(body), False

    def _judge(self, response: urllib3.BaseHTTPResponse, body: bytes) -> Answer:
        endpoint, status = self._connection.endpoint, response.status
        as_json = response.headers.get("content-type", "").startswith("application/json")
        if 200 <= status < 300:
            return read_json_answer(body) if as_json else read_answer(body)
        message = f"{endpoint} answered {status}"
        if 300 <= status < 400:
            place = clean(response.headers.get("location", ""))
            raise ExportError(f"{message}: redirects are not followed ({place})", retryable=False)
        said = clean(body[:2048].decode("utf-8", "replace")) if as_json else status_message(body)
        if said:
            message += f": {said}"
        if status == 404 and endpoint.path == "/":
            message += f" (the endpoint of one signal is used as it is; was …/v1/{endpoint.signal.value} meant?)"
        raise ExportError(
            message,
            retryable=status in RETRYABLE_STATUS,
            retry_after_s=self._retry_after(response.headers.get("retry-after", "")),
        )

    def _retry_after(self, text: str) -> float:
        """Seconds of a Retry-After field, RFC 9110 section 10.2.3; 0 if it cannot be read."""
        text = text.strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(parsedate_to_datetime(text).timestamp() - self._clock(), 0.0)
        except (ValueError, TypeError, OverflowError):
            return 0.0
