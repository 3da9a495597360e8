"""Exchanges of Redis that the kernel has counted become rows, and parsers are kept in step with them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.assemble.exchanges import ROWS_MAX, Exchanges
from onlooker.assemble.segments import Segments
from onlooker.batches import SKIP_TRACES, RequestBatch, Values
from onlooker.protocols import registry
from onlooker.protocols.registry import Options
from support.records import a_redis, a_segment

CLIENT, SERVER = 3, 2
OFFSET = 10**18


class Reader:
    def __init__(self, **options: Any) -> None:
        self.values, self.options = Values(), Options(**options)
        rng = np.random.default_rng(1)
        self.exchanges = Exchanges(self.values, dim_names=registry.dim_names, rng=rng, options=self.options)
        self.segments = Segments(
            self.values, make_parser=lambda protocol, role: registry.make_parser(protocol, role, options=self.options),
            dim_names=registry.dim_names, name_of=registry.name_of, rng=rng, exchanges=self.exchanges,
        )  # fmt: skip

    def feed(self, *rows: NDArray[Any], is_part: bool = False) -> list[RequestBatch]:
        counted = [row for row in rows if "commands" in row.dtype.names]
        others = [row for row in rows if "commands" not in row.dtype.names]
        return self.segments.requests(
            [np.concatenate(others)] if others else [], np.concatenate(counted) if counted else None,
            is_part=is_part, offset_ns=OFFSET, now_mono_ns=0,
        )  # fmt: skip

    def names(self, batches: list[RequestBatch]) -> Counter[str]:
        found: Counter[str] = Counter()
        for batch in batches:
            weight = batch.weight if len(batch.weight) else np.ones(len(batch), np.int64)
            for name, count in zip(batch.name.tolist(), weight.tolist(), strict=True):
                found[str(self.values[name])] += count
        return found

    def dims(self, batch: RequestBatch, row: int) -> dict[str, object]:
        return {
            name: self.values[int(value)] for name, value in zip(batch.dim_names, batch.dims[row], strict=True) if value
        }


@pytest.mark.parametrize("role", [CLIENT, SERVER])
def test_a_command_is_a_row(role: int) -> None:
    reader = Reader(query_text=True)
    (batch,) = reader.feed(a_redis("GET", role=role, at=5_000, took=700, request_bytes=30, response_bytes=9))
    assert len(batch) == 1
    assert reader.dims(batch, 0) == {semconv.DB_SYSTEM_NAME: "redis", semconv.DB_OPERATION_NAME: "GET"}
    assert (batch.start_unix_ns[0], batch.end_unix_ns[0]) == (OFFSET + 5_000, OFFSET + 5_700)
    assert (batch.request_bytes[0], batch.response_bytes[0], batch.kind[0]) == (30, 9, role)
    assert not len(batch.weight)
    assert not len(batch.skip)
    text = batch.varying[semconv.DB_QUERY_TEXT]
    assert text[0] == b"GET"


def test_a_pipeline_is_a_row_a_command_up_to_a_cap() -> None:
    reader = Reader(pipeline_spans=3)
    (batch,) = reader.feed(a_redis("SET", commands=10, errors=2, error=b"-WRONGTYPE Operation\r\n"))
    assert reader.names([batch]) == {"SET": 10}
    assert sorted(batch.weight.tolist()) == [1, 1, 1, 1, 1, 5]
    failed = np.flatnonzero(batch.status)
    assert len(failed) == 2
    for row in failed.tolist():
        assert reader.dims(batch, row)[semconv.ERROR_TYPE] == "WRONGTYPE"
    sizes = batch.varying[semconv.DB_OPERATION_BATCH_SIZE]
    assert sorted(np.asarray(sizes).tolist()) == [-1, -1, -1, -1, -1, 5]


def test_many_operations_share_rows_and_are_counted_all_the_same() -> None:
    reader = Reader()
    per = ROWS_MAX // 10
    (batch,) = reader.feed(*(a_redis("SET", connection=n, commands=per, errors=n % 2) for n in range(20)))
    assert len(batch) == 30
    assert reader.names([batch]) == {"SET": 20 * per}
    assert int(batch.weight[batch.status == 2].sum()) == 10


def test_what_found_no_room_is_counted_and_has_no_spans() -> None:
    reader = Reader()
    (batch,) = reader.feed(
        a_redis("GET", folded_commands=40, folded_errors=4, folded_ns=40 * 900, folded_mono_ns=8_000, at=9_000,
                folded_name="SET")
    )  # fmt: skip
    assert reader.names([batch]) == {"GET": 1, "SET": 40}
    folded = batch.skip == SKIP_TRACES
    assert batch.weight[folded].tolist() == [36, 4]
    assert batch.duration_ns[folded].tolist() == [900, 900]
    assert batch.end_unix_ns[folded].tolist() == [OFFSET + 8_000] * 2
    assert (reader.exchanges.told, reader.exchanges.folded) == (41, 40)


def test_blocking_commands_are_kept_out_of_latency() -> None:
    reader = Reader()
    (batch,) = reader.feed(a_redis("BLPOP", connection=1), a_redis("GET", connection=2))
    assert dict(zip(batch.name.tolist(), batch.stream.tolist(), strict=True)) == {
        reader.values.id("BLPOP"): True, reader.values.id("GET"): False,
    }  # fmt: skip


@pytest.mark.parametrize("name", [b"\xff\xfe\x00x", b"1GET", b"GE T", b"A\nB"])
def test_a_name_that_is_none_is_not_shown(name: bytes) -> None:
    reader = Reader()
    assert reader.names(reader.feed(a_redis(name))) == {"(other)": 1}


def test_a_parent_is_taken_over() -> None:
    reader = Reader()
    (batch,) = reader.feed(
        a_redis("GET", role=CLIENT, trace_id=list(range(16)), span_id=list(range(8)), trace_flags=1, parent_source=2)
    )
    assert batch.trace_id[0].tolist() == list(range(16))
    assert batch.parent_span_id[0].tolist() == list(range(8))
    assert batch.span_id[0].any()


# ---- in the order of a connection ----------------------------------------------------------------------------------

SELECT = b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n"
PAIR = b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nTIME\r\n"
GET = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"


def half(data: bytes, number: int, offset: int, **fields: Any) -> NDArray[Any]:
    return a_segment(data, sequence=number, stream_offset=offset, connection=9, **fields)


def test_segments_and_exchanges_of_a_connection_follow_each_other() -> None:
    reader = Reader()
    found = reader.feed(
        half(SELECT, 0, 0), half(b"+OK\r\n", 1, 0, sent=True),
        a_redis("GET", sequence=2, request_end=len(SELECT) + 100, response_end=5 + 50),
        half(PAIR, 3, len(SELECT) + 100),
        half(b"+PONG\r\n*0\r\n", 4, 55, sent=True),
        a_redis("GET", sequence=5, request_end=1000, response_end=500),
    )  # fmt: skip
    assert reader.names(found) == {"SELECT": 1, "GET": 2, "PING": 1, "TIME": 1}
    assert reader.segments.lost == {}
    namespaces = [
        reader.dims(batch, row).get(semconv.DB_NAMESPACE)
        for batch in found
        for row in range(len(batch))
        if reader.values[int(batch.name[row])] != "SELECT"
    ]
    assert namespaces == ["3"] * 4


def test_exchanges_alone_keep_the_parser_in_step() -> None:
    reader = Reader()
    reader.feed(half(GET, 0, 0), half(b"$-1\r\n", 1, 0, sent=True))
    for turn in range(3):
        reader.feed(a_redis("GET", sequence=2 + turn, request_end=1000 + turn, response_end=900 + turn))
    found = reader.feed(half(PAIR, 5, 1002), half(b"+PONG\r\n*0\r\n", 6, 902, sent=True))
    assert reader.names(found) == {"PING": 1, "TIME": 1}
    assert reader.segments.lost == {}


def test_segments_wait_while_the_ring_holds_older_exchanges() -> None:
    reader = Reader()
    reader.feed(half(GET, 0, 0), half(b"$-1\r\n", 1, 0, sent=True))
    late = half(PAIR, 3, 500), half(b"+PONG\r\n*0\r\n", 4, 400, sent=True), half(b"", 5, 0, flags=4)
    assert reader.feed(*late, is_part=True) == []
    assert reader.feed(is_part=True) == []
    found = reader.feed(a_redis("GET", sequence=2, request_end=500, response_end=400))
    assert reader.names(found) == {"GET": 1, "PING": 1, "TIME": 1}
    assert reader.segments.lost == {}
    assert len(reader.segments) == 0


@pytest.mark.parametrize("replies", [0, 2])
def test_an_exchange_goes_on_as_segments(replies: int) -> None:
    """The kernel held three commands back; the client sent a fourth before all replies were there."""
    reader = Reader()
    reader.feed(half(GET, 0, 0, role=CLIENT, sent=True), half(b"$-1\r\n", 1, 0, role=CLIENT))
    answered = 5 * replies
    found = reader.feed(
        a_redis("GET", sequence=2, role=CLIENT, commands=3, replies=replies, flags=1, at=7_000,
                request_end=4 * len(GET), response_end=5 + answered),
        half(PAIR, 3, 4 * len(GET), role=CLIENT, sent=True, at=9_000),
        half(b"$-1\r\n" * (3 - replies) + b"+PONG\r\n*0\r\n", 4, 5 + answered, role=CLIENT, at=9_500),
    )  # fmt: skip
    assert reader.names(found) == {"GET": 3, "PING": 1, "TIME": 1}
    assert reader.segments.lost == {}
    starts = {int(n) - OFFSET for batch in found for n in batch.start_unix_ns}
    assert starts == {7_000, 9_000}


def test_a_command_that_is_under_way_goes_on_as_segments() -> None:
    reader = Reader()
    reader.feed(half(GET, 0, 0), half(b"$-1\r\n", 1, 0, sent=True))
    rest = b"x" * 30 + b"\r\n"
    found = reader.feed(
        a_redis("SET", sequence=2, commands=0, flags=1, skip=len(rest), request_end=500, response_end=5),
        half(rest + GET, 3, 500), half(b"+OK\r\n$-1\r\n", 4, 5, sent=True),
    )  # fmt: skip
    assert reader.names(found) == {"SET": 1, "GET": 1}
    assert reader.segments.lost == {}


def test_a_connection_that_ends_inside_an_exchange_ends_its_commands() -> None:
    reader = Reader()
    reader.feed(half(GET, 0, 0), half(b"$-1\r\n", 1, 0, sent=True))
    found = reader.feed(
        a_redis("GET", sequence=2, commands=2, replies=1, errors=1, error=b"-ERR x", flags=1, request_end=90,
                response_end=50),
        half(b"", 3, 0, flags=4 | 16),
    )  # fmt: skip
    (batch,) = found
    assert [reader.dims(batch, row)[semconv.ERROR_TYPE] for row in range(2)] == ["ERR", "connection_reset"]


def test_exchanges_of_unknown_connections_are_rows_and_leave_nothing_behind() -> None:
    reader = Reader()
    assert reader.names(reader.feed(a_redis("GET", connection=77))) == {"GET": 1}
    assert len(reader.segments) == 0


@given(
    turns=st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 3), st.integers(0, 1 << 40), st.integers(0, 1 << 32),
            st.sampled_from([SELECT, PAIR, GET, b"+OK\r\n", b"-ERR\r\n", b"$5\r\nab", b"\xff" * 30, b""]),
            st.booleans(),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_no_order_of_records_and_no_numbers_confuse_a_connection(
    turns: list[tuple[int, int, int, int, bytes, bool]],
) -> None:
    """Halves, exchanges, segments and ends in any order, with any offsets: nothing raises, nothing is kept for ever."""
    reader = Reader()
    for number, (what, connection, offset, size, data, sent) in enumerate(turns):
        if what < 2:
            record = a_redis(
                "GET", connection=connection, sequence=number, flags=what, commands=min(size, 100_000) % 5000,
                replies=size % 7, errors=size % 3, request_end=offset, response_end=offset // 2, skip=offset % 9,
                left=size % 4,
            )  # fmt: skip
        else:
            record = a_segment(
                data, connection=connection, sequence=number, sent=sent, stream_offset=offset,
                flags=0 if what == 2 else 4,
            )  # fmt: skip
        reader.feed(record)
    assert reader.segments.dropped["parser_failed"] == 0
    assert len(reader.segments) <= 4
