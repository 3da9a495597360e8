from __future__ import annotations

import grpc as real
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.protocols import grpc
from onlooker.protocols.grpc import MessageCounter


def test_statuses_are_those_of_the_library() -> None:
    for status in real.StatusCode:
        number, _ = status.value
        assert grpc.status_text(b"%d" % number) == status.name
    assert len(grpc.STATUS) == len(real.StatusCode)


@pytest.mark.parametrize("value", [b"17", b"-1", b"", b"0x", b"999", "²".encode("latin-1")])
def test_what_is_no_status_is_unknown(value: bytes) -> None:
    assert grpc.status_text(value) == "UNKNOWN"


def test_an_absent_status_is_nothing() -> None:
    assert grpc.status_text(None) == ""


@pytest.mark.parametrize(
    ("content_type", "is_grpc"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True), (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False), (b"application/grpc-web+proto", False), (b"application/connect+json", False),
        (b"application/json", False), (None, False), (b"", False),
    ],
)  # fmt: skip
def test_content_types(content_type: bytes | None, is_grpc: bool) -> None:
    assert grpc.is_grpc(content_type) is is_grpc


@pytest.mark.parametrize(
    ("status", "client", "server"),
    [
        ("OK", False, False), ("", False, False), ("CANCELLED", True, False), ("NOT_FOUND", True, False),
        ("UNKNOWN", True, True), ("DEADLINE_EXCEEDED", True, True), ("UNIMPLEMENTED", True, True),
        ("INTERNAL", True, True), ("UNAVAILABLE", True, True), ("DATA_LOSS", True, True),
        ("RESOURCE_EXHAUSTED", True, False), ("UNAUTHENTICATED", True, False),
    ],
)  # fmt: skip
def test_whose_error_a_status_is(status: str, client: bool, server: bool) -> None:
    assert grpc.is_error(status, client=True) is client
    assert grpc.is_error(status, client=False) is server


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (b"1S", 10**9), (b"250m", 250 * 10**6), (b"99999999u", 99_999_999_000), (b"7n", 7), (b"2M", 120 * 10**9),
        (b"1H", 3600 * 10**9), (b"123456789n", 0), (b"S", 0), (b"1x", 0), (b"-1S", 0), (None, 0), (b"", 0),
    ],
)  # fmt: skip
def test_timeouts(value: bytes | None, nanoseconds: int) -> None:
    assert grpc.timeout_ns(value) == nanoseconds


@pytest.mark.parametrize(
    ("code", "elapsed_ms", "timeout_ms", "status"),
    [
        (8, 10, 0, "CANCELLED"), (8, 200, 200, "DEADLINE_EXCEEDED"), (8, 100, 200, "CANCELLED"),
        (8, 199, 200, "DEADLINE_EXCEEDED"), (8, 300, 0, "CANCELLED"), (7, 1, 0, "UNAVAILABLE"), (2, 1, 0, "INTERNAL"),
        (11, 1, 0, "RESOURCE_EXHAUSTED"), (12, 1, 0, "PERMISSION_DENIED"), (99, 1, 0, "INTERNAL"),
    ],
)  # fmt: skip
def test_resets(code: int, elapsed_ms: int, timeout_ms: int, status: str) -> None:
    assert status == grpc.status_of_reset(code, elapsed_ns=elapsed_ms * 10**6, timeout_ns=timeout_ms * 10**6)


def test_http_statuses_in_place_of_grpc() -> None:
    assert [grpc.status_of_http(code) for code in (401, 404, 503, 418)] == [
        "UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "UNKNOWN",
    ]  # fmt: skip


def test_methods() -> None:
    assert grpc.full_method(b"/shop.v1.Orders/Get") == ("shop.v1.Orders/Get", "shop.v1.Orders")
    assert grpc.full_method(b"Get") == ("Get", "")
    assert len(grpc.full_method(b"/" + b"x" * 10_000)[0]) == 256


@given(st.lists(st.integers(0, 40), max_size=20), st.data())
def test_messages_are_counted_however_they_are_cut(sizes: list[int], data: st.DataObject) -> None:
    stream = b"".join(b"\0" + size.to_bytes(4, "big") + b"m" * size for size in sizes)
    counter = MessageCounter()
    position = 0
    while position < len(stream):
        step = data.draw(st.integers(1, len(stream) - position))
        counter.take(stream[position : position + step], step)
        position += step
    assert (counter.count, counter.exact) == (len(sizes), True)


def test_one_message_over_many_frames_needs_only_the_first_bytes() -> None:
    counter = MessageCounter()
    counter.take(b"\0\0\0\x80\0", 16_384)
    counter.take(b"zzzzz", 16_384)
    counter.take(b"zzzzz", 5)
    counter.take(b"\0\0\0\0\1", 6)
    assert (counter.count, counter.exact) == (2, True)


def test_a_second_message_in_a_frame_that_was_cut_makes_the_count_a_lower_bound() -> None:
    counter = MessageCounter()
    counter.take(b"\0\0\0\0\1", 100)
    assert (counter.count, counter.exact) == (2, False)
