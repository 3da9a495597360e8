from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.assemble.http1 import DIM_NAMES, Http1
from onlooker.batches import RequestBatch, SpanKind, StatusCode, Text, Values
from support.records import a_record, a_text_record

OFFSET = 1_700_000_000_000_000_000
REQUEST_HALF, RESPONSE_HALF, TRUNCATED, TO_CLOSE, LINGERS, STREAM, OVER = 1, 2, 16, 32, 64, 256, 1024


def assemble(
    *rows: NDArray[Any], long: list[NDArray[Any]] | None = None, text: NDArray[Any] | None = None, now: int = 0,
    http1: Http1 | None = None,
) -> tuple[RequestBatch | None, Values]:  # fmt: skip
    values = http1._values if http1 else Values()
    http1 = http1 or Http1(values, rng=np.random.default_rng(1))
    batch = http1.requests(
        np.concatenate(rows) if rows else None,
        np.concatenate(long) if long else None,
        text,
        offset_ns=OFFSET,
        now_mono_ns=now,
    )
    return batch, values


def one(*rows: NDArray[Any], **more: Any) -> tuple[RequestBatch, Values]:
    batch, values = assemble(*rows, **more)
    assert batch is not None
    return batch, values


def dim(batch: RequestBatch, values: Values, name: str, row: int = 0) -> object:
    return values[int(batch.dims[row, DIM_NAMES.index(name)])]


def text(batch: RequestBatch, name: str, row: int = 0) -> bytes | None:
    column = batch.varying[name]
    assert isinstance(column, Text)
    return column[row]


def test_a_server_request() -> None:
    batch, values = one(a_record(b"/items/1?q=2", request_body_bytes=3, response_body_bytes=4))
    assert batch.kind.tolist() == [SpanKind.SERVER]
    assert dim(batch, values, semconv.HTTP_REQUEST_METHOD) == "GET"
    assert dim(batch, values, semconv.HTTP_RESPONSE_STATUS_CODE) == 200
    assert dim(batch, values, semconv.URL_SCHEME) == "http"
    assert dim(batch, values, semconv.SERVER_PORT) == 8080
    assert dim(batch, values, semconv.ERROR_TYPE) is None
    assert text(batch, semconv.URL_PATH) == b"/items/1"
    assert text(batch, semconv.URL_QUERY) == b"q=2"
    assert text(batch, semconv.CLIENT_ADDRESS) == b"127.0.0.1"
    assert batch.status.tolist() == [StatusCode.UNSET]
    assert batch.start_unix_ns.tolist() == [OFFSET + 1_000_000]
    assert batch.duration_ns.tolist() == [5_000_000]
    assert (batch.request_bytes.tolist(), batch.response_bytes.tolist()) == ([3], [4])


def test_a_client_request_has_the_host_that_was_asked() -> None:
    batch, values = one(a_record(b"/v1/pay?x=1", role=3, host=b"Pay.Example:8443", tls=1))
    assert dim(batch, values, semconv.SERVER_ADDRESS) == "pay.example"
    assert dim(batch, values, semconv.SERVER_PORT) == 8080  # of the connection
    assert text(batch, semconv.URL_FULL) == b"https://Pay.Example:8443/v1/pay?x=1"


@pytest.mark.parametrize(
    ("role", "status", "error", "failed", "error_type"),
    [
        (2, 500, 0, True, "500"),
        (2, 404, 0, False, None),
        (3, 404, 0, True, "404"),
        (3, 399, 0, False, None),
        (2, 0, 1, True, "connection_reset"),
        (3, 0, 2, True, "connection_closed_by_peer"),
        (2, 200, 3, True, "connection_closed"),
        (2, 0, 4, True, "timeout"),
    ],
)
def test_what_is_an_error(role: int, status: int, error: int, failed: bool, error_type: str | None) -> None:
    batch, values = one(a_record(role=role, status=status, error=error))
    assert batch.status.tolist() == [StatusCode.ERROR if failed else StatusCode.UNSET]
    assert dim(batch, values, semconv.ERROR_TYPE) == error_type
    assert dim(batch, values, semconv.HTTP_RESPONSE_STATUS_CODE) == (status or None)


def test_an_unknown_method() -> None:
    batch, values = one(a_record(b"/x", method="PURGE"))
    assert dim(batch, values, semconv.HTTP_REQUEST_METHOD) == "_OTHER"
    assert text(batch, semconv.URL_PATH) == b"/x"


@pytest.mark.parametrize(
    ("method", "target", "path", "query"),
    [
        ("GET", b"http://other:1/a/b?c=d", b"/a/b", b"c=d"),
        ("GET", b"HTTPS://other", b"", None),
        ("OPTIONS", b"*", b"*", None),
        ("CONNECT", b"db:5432", None, None),
        ("GET", b"/?", b"/", b""),
        ("GET", b"/a?b?c", b"/a", b"b?c"),
    ],
)
def test_forms_of_targets(method: str, target: bytes, path: bytes | None, query: bytes | None) -> None:
    batch, _ = one(a_record(target, method=method))
    assert text(batch, semconv.URL_PATH) == path
    assert (text(batch, semconv.URL_QUERY) if semconv.URL_QUERY in batch.varying else None) == query


def test_records_of_both_sizes_share_a_batch() -> None:
    long_path = b"/" + b"a" * 200
    batch, _ = one(a_record(b"/short?x"), long=[a_record(long_path + b"?y=1", long=True)])
    assert [text(batch, semconv.URL_PATH, i) for i in range(2)] == [b"/short", long_path]
    assert [text(batch, semconv.URL_QUERY, i) for i in range(2)] == [b"x", b"y=1"]


def test_a_line_longer_than_a_record_is_taken_from_its_own() -> None:
    target = b"/" + b"b" * 1000 + b"?q=1"
    record = a_record(target, long=True, flags=TRUNCATED, host=b"")
    batch, _ = one(long=[record], text=a_text_record(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n"))
    assert text(batch, semconv.URL_PATH) == target[:-4]
    assert text(batch, semconv.URL_QUERY) == b"q=1"


def test_a_cut_line_without_its_text_keeps_what_there_is() -> None:
    batch, _ = one(long=[a_record(b"/" + b"c" * 1000, long=True, flags=TRUNCATED, host=b"")])
    assert text(batch, semconv.URL_PATH) == b"/" + b"c" * 339


def test_halves_of_pipelined_requests_are_joined_in_any_split() -> None:
    requests = [a_record(b"/%d" % i, sequence=i, status=0, took=0, flags=REQUEST_HALF) for i in range(1, 4)]
    responses = [
        a_record(b"", host=b"", sequence=i, status=200 + i, start=2_000_000, took=i, flags=RESPONSE_HALF)
        for i in range(1, 4)
    ]
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    first, _ = assemble(*requests, responses[0], http1=http1)
    assert first is not None
    assert http1.waiting == 2
    second, values = assemble(*responses[1:], http1=http1)
    assert second is not None
    assert [text(first, semconv.URL_PATH)] + [text(second, semconv.URL_PATH, i) for i in range(2)] == [
        b"/1",
        b"/2",
        b"/3",
    ]
    assert [dim(second, values, semconv.HTTP_RESPONSE_STATUS_CODE, i) for i in range(2)] == [202, 203]
    assert second.end_unix_ns.tolist() == [OFFSET + 2_000_002, OFFSET + 2_000_003]
    assert http1.waiting == 0


@given(st.integers(1, 60), st.integers(1, 8), st.randoms(use_true_random=False))
def test_halves_are_joined_once_whichever_rounds_they_come_in(count: int, rounds: int, chance: random.Random) -> None:
    halves = []
    for i in range(count):
        key = {"connection": 1 + i % 3, "sequence": i // 3}
        is_long, at = chance.random() < 0.3, chance.randrange(rounds)
        halves.append((at, is_long, a_record(b"/%d" % i, status=0, took=0, flags=REQUEST_HALF, long=is_long, **key)))
        ended = a_record(b"", host=b"", status=200 + i, took=i, flags=RESPONSE_HALF, **key)
        halves.append((chance.randrange(at, rounds), False, ended))
    chance.shuffle(halves)
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    seen: dict[bytes | None, object] = {}
    for now in range(rounds):
        here = [(is_long, row) for at, is_long, row in halves if at == now]
        short, long = ([row for is_long, row in here if is_long is wanted] for wanted in (False, True))
        batch, values = assemble(*short, long=long or None, http1=http1)
        for i in range(len(batch) if batch is not None else 0):
            assert batch is not None
            assert text(batch, semconv.URL_PATH, i) not in seen
            seen[text(batch, semconv.URL_PATH, i)] = dim(batch, values, semconv.HTTP_RESPONSE_STATUS_CODE, i)
    assert seen == {b"/%d" % i: 200 + i for i in range(count)}
    assert http1.waiting == 0
    assert not any(http1.dropped.values())


def test_the_end_of_a_connection_ends_all_that_waits_on_it() -> None:
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    halves = [a_record(sequence=i, status=0, flags=REQUEST_HALF) for i in range(1, 5)]
    other = a_record(connection=8, sequence=1, status=0, flags=REQUEST_HALF)
    batch, values = assemble(*halves, other, http1=http1)
    assert batch is None
    end = a_record(b"", host=b"", sequence=4, status=0, error=1, flags=RESPONSE_HALF | OVER)
    batch, _ = assemble(end, http1=http1)
    assert batch is not None
    assert len(batch) == 4
    assert {dim(batch, values, semconv.ERROR_TYPE, i) for i in range(4)} == {"connection_reset"}
    assert http1.waiting == 1


def test_a_response_half_without_its_request_is_counted() -> None:
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    batch, _ = assemble(a_record(flags=RESPONSE_HALF), http1=http1)
    assert batch is None
    assert http1.dropped["half_without_request"] == 1


def test_a_response_that_lingers_is_finished_by_silence() -> None:
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    end = 6_000_000
    batch, _ = assemble(a_record(flags=LINGERS | TO_CLOSE), http1=http1, now=end)
    assert batch is None
    more = a_record(flags=LINGERS | TO_CLOSE, took=8_000_000, response_body_bytes=99)
    assert assemble(more, http1=http1, now=end + 1)[0] is None
    batch, _ = assemble(http1=http1, now=9_000_000 + 1_000_000_001)
    assert batch is not None
    assert batch.duration_ns.tolist() == [8_000_000]
    assert batch.response_bytes.tolist() == [99]


def test_streams_are_marked() -> None:
    batch, _ = one(a_record(flags=STREAM), a_record())
    assert batch.stream.tolist() == [True, False]


def test_halves_are_bounded() -> None:
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    rows = [a_record(connection=i, sequence=1, status=0, flags=REQUEST_HALF) for i in range(200)]
    for start in range(0, 20_000, 200):
        for row in rows:
            row["connection_id"] += 200
        assemble(*rows, http1=http1)
        del start
    assert http1.waiting <= 16_384
    assert http1.dropped["half_without_response"] == 20_000 - http1.waiting


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=400), st.binary(max_size=60), st.sampled_from([2, 3]), st.integers(0, 999),
            st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF),
        ),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_no_record_can_break_it(rows: list[tuple[bytes, bytes, int, int, int, int, int, int]]) -> None:
    http1 = Http1(Values(), rng=np.random.default_rng(1))
    records = []
    for target, host, role, status, flags, start, target_length, text_length in rows:
        record = a_record(target[:80], host=host[:5], role=role, status=status, flags=flags)
        record["target_start"], record["target_length"] = start, target_length
        record["text_length"], record["host_length"] = text_length % 89, host[0] if host else 0
        records.append(record)
    batch, _ = assemble(*records, http1=http1)
    if batch is not None:
        for column in batch.varying.values():
            assert isinstance(column, Text)
            for i in range(len(batch)):
                value = column[i]
                assert value is None or len(value) == column.length[i]
