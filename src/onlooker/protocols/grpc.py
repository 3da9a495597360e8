"""gRPC on HTTP/2: what content types, trailers, resets and message prefixes mean.

Pure functions and one counter, used by `onlooker.protocols.http2`.  gRPC-Web and Connect are HTTP with their own
content types, and stay HTTP.

Source: "gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" of the gRPC documentation.
"""

from __future__ import annotations

from typing import Final

STATUS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""Status texts by number."""

SERVER_ERRORS: Final = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""What counts as an error of the server; the rest is the caller's doing."""

_BY_HTTP_STATUS: Final = {
    400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED", 429: "UNAVAILABLE",
    502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE",
}  # fmt: skip
_BY_RESET: Final = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
_TIMEOUT_UNITS: Final = {
    ord("H"): 3_600_000_000_000, ord("M"): 60_000_000_000, ord("S"): 1_000_000_000, ord("m"): 1_000_000,
    ord("u"): 1_000, ord("n"): 1,
}  # fmt: skip
_LONGEST_METHOD = 256
_DEADLINE_SLACK_NS: Final = (2_000_000, 10_000_000)
"""How much of a time limit may be missing when it passes, at least and at most: the header is written some time before
its frame is sent, and read some time after, while the timer runs."""
PREFIX_BYTES: Final = 5
"""Of each message: one byte of flags, four of length."""


def is_grpc(content_type: bytes | None) -> bool:
    """Whether a content type is gRPC's own: not gRPC-Web, which is HTTP."""
    if content_type is None or not content_type.startswith(b"application/grpc"):
        return False
    return content_type[16:17] in (b"", b"+", b";", b" ")


def full_method(path: bytes) -> tuple[str, str]:
    """``/package.Service/Method`` as the full method ``package.Service/Method``, and the service."""
    text = path[1 : _LONGEST_METHOD + 1] if path.startswith(b"/") else path[:_LONGEST_METHOD]
    method = text.decode("utf-8", "replace")
    return method, method.rpartition("/")[0]


def status_text(value: bytes | None) -> str:
    """`grpc-status` as text; what is no known number is UNKNOWN; absent is ""."""
    if value is None:
        return ""
    if len(value) <= 2 and value.isdigit() and int(value) < len(STATUS):
        return STATUS[int(value)]
    return "UNKNOWN"


def status_of_http(status: int) -> str:
    """What a client makes of a response that is not gRPC's."""
    return _BY_HTTP_STATUS.get(status, "UNKNOWN")


def status_of_reset(code: int, *, elapsed_ns: int, timeout_ns: int) -> str:
    """What a call ended as that was reset with an HTTP/2 error code.

    Who sees the deadline pass, the client or a server that keeps an eye on it too (Go's and Java's do), resets with
    CANCEL, as a client that gave up does: the clock tells them apart.
    """
    status = _BY_RESET.get(code, "INTERNAL")
    if status == "CANCELLED" and timeout_ns > 0:
        least, most = _DEADLINE_SLACK_NS
        slack = max(timeout_ns // 100, min(most, max(least, timeout_ns // 5)))
        if elapsed_ns >= timeout_ns - slack:
            return "DEADLINE_EXCEEDED"
    return status


def is_error(status: str, *, client: bool) -> bool:
    """Whether a status makes the span an error one, for the client or for the server."""
    if client:
        return status not in ("OK", "")
    return status in SERVER_ERRORS


def timeout_ns(value: bytes | None) -> int:
    """`grpc-timeout` in ns; 0 if absent or not well-formed (at most 8 digits and a unit)."""
    if value is None or not 2 <= len(value) <= 9 or not value[:-1].isdigit():
        return 0
    return int(value[:-1]) * _TIMEOUT_UNITS.get(value[-1], 0)


class MessageCounter:
    """Counts the messages of one direction of a stream by their length prefixes.

    Attributes:
        count: Messages begun; a lower bound unless ``exact``.
        exact: False once a prefix could not be seen.
    """

    __slots__ = ("_left", "_prefix", "count", "exact")

    def __init__(self) -> None:
        self.count = 0
        self.exact = True
        self._left = 0
        self._prefix = b""

    def take_whole(self, data: bytes, start: int, shown: int, length: int) -> bool:
        """Take ``length`` bytes that are one message or a part of one, as nearly always; False: they are not.

        ``data`` holds the first ``shown`` of them, from ``start`` on.
        """
        left = self._left
        if left >= length:
            self._left = left - length
            return True
        if left or self._prefix or shown < PREFIX_BYTES or not self.exact:
            return False
        rest = int.from_bytes(data[start + 1 : start + PREFIX_BYTES], "big") + PREFIX_BYTES - length
        if rest < 0:
            return False
        self.count += 1
        self._left = rest
        return True

    def take(self, visible: bytes, length: int) -> None:
        """Take the next ``length`` bytes of the stream, of which only ``visible``, the first ones, are known."""
        if not self.exact:
            return
        position = 0
        while position < length:
            if self._left:
                step = min(self._left, length - position)
                self._left -= step
                position += step
                continue
            wanted = min(PREFIX_BYTES - len(self._prefix), length - position)
            piece = visible[position : position + wanted]
            if len(piece) < wanted:
                self.count += 1
                self.exact = False
                return
            position += wanted
            self._prefix += piece
            if len(self._prefix) == PREFIX_BYTES:
                self.count += 1
                self._left = int.from_bytes(self._prefix[1:], "big")
                self._prefix = b""
