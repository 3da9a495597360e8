"""The buffer in front of the encoder: the same spans, later."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from onlooker.batches import RequestBatch, Text, Values
from onlooker.export.otlp_traces import SpanEncoder
from onlooker.export.queue import Chunk
from onlooker.export.span_buffer import SpanBuffer
from support.span_batches import a_batch, a_series, a_service, a_table

SERVICES = {1: a_service(1), 2: a_service(2, "stock")}
TABLE = a_table(a_series(0), a_series(1, name="GET /b"))


def spans(chunks: list[Chunk]) -> list[bytes]:
    found = [
        resource.resource.SerializeToString() + span.SerializeToString(deterministic=True)
        for chunk in chunks
        for resource in ExportTraceServiceRequest.FromString(chunk.data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return sorted(found)


@st.composite
def batches(draw: st.DrawFn) -> RequestBatch:
    n = draw(st.integers(0, 6))

    def rows(values: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(values, min_size=n, max_size=n))

    varying: dict[str, object] = {}
    if draw(st.booleans()):
        pool = np.frombuffer(draw(st.binary(min_size=20, max_size=60)), np.uint8)
        for key in ("url.path", "url.query"):  # two columns in one pool
            start = np.array(rows(st.integers(0, 10)), np.int64)
            varying[key] = Text(pool, start, np.array(rows(st.integers(-1, 10)), np.int32))
    if draw(st.booleans()):
        varying["n"] = np.array(rows(st.integers(-1, 5)), np.int64)
    batch = a_batch(
        n,
        span_id=rows(st.binary(min_size=8, max_size=8)),
        series=rows(st.sampled_from([0, 1])),
        service=rows(st.sampled_from([1, 2])),
        keep=rows(st.booleans()),
    )
    batch.varying = varying  # type: ignore[assignment]  # columns by construction
    return batch


@settings(deadline=None)
@given(st.lists(batches(), max_size=6))
def test_the_spans_are_those_of_the_batches(made: list[RequestBatch]) -> None:
    buffer = SpanBuffer(SpanEncoder(version="1"))
    direct: list[Chunk] = []
    for batch in made:
        direct += SpanEncoder(version="1").encode(batch, TABLE, SERVICES, Values())
        buffer.add(batch)
    assert buffer.rows == sum(int(batch.keep.sum()) for batch in made)
    assert spans(buffer.take(TABLE, SERVICES, Values(), now=True)) == spans(direct)
    assert buffer.rows == 0
    assert buffer.take(TABLE, SERVICES, Values(), now=True) == []


def test_rows_wait_until_they_are_many() -> None:
    buffer = SpanBuffer(SpanEncoder(version="1"), max_rows=10, clock=lambda: 0.0)
    for _ in range(3):
        buffer.add(a_batch(3))
        assert buffer.take(TABLE, SERVICES, Values()) == []
    buffer.add(a_batch(1))
    (chunk,) = buffer.take(TABLE, SERVICES, Values())
    assert chunk.items == 10


def test_rows_wait_until_they_are_old() -> None:
    now = [100.0]
    buffer = SpanBuffer(SpanEncoder(version="1"), max_age_s=0.2, clock=lambda: now[0])
    buffer.add(a_batch(1))
    now[0] += 0.1
    buffer.add(a_batch(1))
    assert buffer.take(TABLE, SERVICES, Values()) == []
    now[0] += 0.15
    assert [chunk.items for chunk in buffer.take(TABLE, SERVICES, Values())] == [2]


def test_the_batch_may_be_overwritten_afterwards() -> None:
    batch = a_batch(
        2, varying={"url.path": Text(np.full(8, 65, np.uint8), np.array([0, 4]), np.array([4, 4], np.int32))}
    )
    expected = spans(SpanEncoder(version="1").encode(batch, TABLE, SERVICES, Values()))
    buffer = SpanBuffer(SpanEncoder(version="1"))
    buffer.add(batch)
    for name in ("trace_id", "span_id", "start_unix_ns", "end_unix_ns", "series", "service", "status"):
        getattr(batch, name)[:] = 0
    text = batch.varying["url.path"]
    assert isinstance(text, Text)
    text.pool[:] = 0
    assert spans(buffer.take(TABLE, SERVICES, Values(), now=True)) == expected


def test_no_more_text_waits_than_the_kept_rows_have() -> None:
    pool = np.full(1_000_000, 65, np.uint8)
    paths = Text(pool, np.arange(0, 1_000_000, 1000), np.full(1000, 900, np.int32))
    buffer = SpanBuffer(SpanEncoder(version="1"))
    buffer.add(a_batch(1000, keep=np.arange(1000) % 100 == 0, varying={"url.path": paths}))
    ((slim,),) = buffer._waiting.values()
    text = slim.varying["url.path"]
    assert isinstance(text, Text)
    assert (len(slim), len(text.pool) < 10_000) == (10, True)


def test_a_batch_that_no_stage_has_identified() -> None:
    batch = a_batch(1)
    batch.series = batch.service = np.empty(0, np.int32)
    buffer = SpanBuffer(SpanEncoder(version="1"))
    buffer.add(batch)
    assert [chunk.items for chunk in buffer.take(TABLE, SERVICES, Values(), now=True)] == [1]


def test_a_large_batch_is_encoded_at_once_and_what_waited_goes_before_it() -> None:
    buffer = SpanBuffer(SpanEncoder(version="1"), max_rows=10, clock=lambda: 0.0)
    assert buffer.put(a_batch(4), TABLE, SERVICES, Values()) == []
    assert [chunk.items for chunk in buffer.put(a_batch(5), TABLE, SERVICES, Values())] == [4, 5]
    assert buffer.rows == 0


def test_only_kept_rows_make_a_batch_large() -> None:
    buffer = SpanBuffer(SpanEncoder(version="1"), max_rows=10, clock=lambda: 0.0)
    assert buffer.put(a_batch(100, keep=np.arange(100) < 2), TABLE, SERVICES, Values()) == []
    assert buffer.rows == 2
