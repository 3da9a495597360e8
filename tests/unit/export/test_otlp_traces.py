"""Spans as numpy lays them out, read back by the official protobuf classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from onlooker import semconv
from onlooker.batches import AttributeValue, RequestBatch, Series, SeriesTable, Service, Text, Values
from onlooker.export.otlp_traces import MAX_VALUE_BYTES, SpanEncoder
from onlooker.export.queue import Chunk
from support.span_batches import a_batch, a_series, a_service, a_table

SERVICES = {1: a_service(1), 2: a_service(2, "stock"), 3: a_service(3, "quiet", exports=frozenset({"metrics"}))}


def an_encoder(**changes: int) -> SpanEncoder:
    return SpanEncoder(version="1.2.3", **changes)


def decode(chunks: list[Chunk]) -> list[ExportTraceServiceRequest]:
    return [ExportTraceServiceRequest.FromString(chunk.data) for chunk in chunks]


def spans_of(chunks: list[Chunk]) -> list[Span]:
    return [
        span for request in decode(chunks) for r in request.resource_spans for s in r.scope_spans for span in s.spans
    ]


def encode(batch: RequestBatch, table: SeriesTable | None = None, values: Values | None = None) -> list[Span]:
    return spans_of(an_encoder().encode(batch, table or a_table(), SERVICES, values or Values()))


def attributes(span: Span) -> dict[str, object]:
    assert len({a.key for a in span.attributes}) == len(span.attributes)
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


# The slow reference: one protobuf object a span.


def any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    out = AnyValue()
    out.array_value.values.extend(any_value(item) for item in value)
    return out


def reference_span(batch: RequestBatch, i: int, series: Series) -> Span:
    span = Span(
        trace_id=batch.trace_id[i].tobytes(),
        span_id=batch.span_id[i].tobytes(),
        parent_span_id=batch.parent_span_id[i].tobytes() if batch.parent_span_id[i].any() else b"",
        name=series.name,
        kind=series.kind,  # type: ignore[arg-type]  # the enum's number
        start_time_unix_nano=int(batch.start_unix_ns[i]),
        end_time_unix_nano=int(batch.end_unix_ns[i]),
    )
    if series.status:
        span.status.code = series.status  # type: ignore[assignment]  # the enum's number
    span.flags = int(batch.trace_flags[i]) & 3 | 1
    if batch.parent_span_id[i].any():
        span.flags |= {1: 0x300, 2: 0x100, 3: 0x300}.get(int(batch.parent_source[i]), 0)
    for key, value in series.attributes.items():
        span.attributes.add(key=key, value=any_value(value))
    for key, column in batch.varying.items():
        if isinstance(column, Text):
            text = column[i]
            if text is not None:
                span.attributes.add(key=key, value=AnyValue(string_value=text.decode("utf-8", "replace")))
        elif column[i] != -1:
            span.attributes.add(key=key, value=AnyValue(int_value=int(column[i])))
    return span


def reference(batch: RequestBatch, table: SeriesTable) -> list[tuple[int, Span]]:
    return [
        (int(batch.service[i]), reference_span(batch, i, table[int(batch.series[i])]))
        for i in range(len(batch))
        if batch.keep[i]
    ]


TEXTS = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"/", b"/" + b"x" * 30, b"x" * 32, b"x" * 33, b"/" * 127, b"/" * 128, b"p" * 300, b"q" * 17_000]
    ),
    st.text(max_size=40).map(str.encode),
)
INTS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-1, -2, 0, 1, 127, 128, 16_383, 16_384, 2**31, 2**63 - 1, -(2**63)]),
)
ATTRIBUTE_VALUES = st.one_of(
    st.text(max_size=200),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
KEYS = st.text("abcdefgh._", min_size=1, max_size=140)


@st.composite
def batches(draw: st.DrawFn) -> tuple[RequestBatch, SeriesTable]:
    n = draw(st.integers(1, 12))
    constant = st.dictionaries(KEYS.map(lambda k: "c" + k), ATTRIBUTE_VALUES, max_size=4)
    table = a_table(
        *(
            a_series(
                i,
                name=draw(st.one_of(st.text(max_size=20), st.just("n" * 600))),
                kind=draw(st.integers(1, 5)),
                status=draw(st.integers(0, 2)),
                attributes=draw(constant),
            )
            for i in range(draw(st.integers(1, 4)))
        )
    )

    def rows(values: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(values, min_size=n, max_size=n))

    varying: dict[str, object] = {}
    for key in draw(st.lists(KEYS, max_size=3, unique=True)):
        if draw(st.booleans()):
            varying["t" + key] = Text.of(rows(TEXTS))  # type: ignore[arg-type]  # bytes or None
        else:
            varying["i" + key] = np.array(rows(INTS), np.int64)
    sparse_id = st.one_of(st.just(bytes(8)), st.binary(min_size=8, max_size=8))
    batch = a_batch(
        n,
        trace_id=rows(st.binary(min_size=16, max_size=16)),
        span_id=rows(st.binary(min_size=8, max_size=8)),
        parent_span_id=rows(sparse_id),
        parent_source=rows(st.integers(0, 4)),
        trace_flags=rows(st.integers(0, 255)),
        series=rows(st.integers(0, len(table.rows) - 1)),
        service=rows(st.sampled_from([1, 2])),
        keep=rows(st.booleans()),
        start_unix_ns=rows(st.integers(0, 2**63 - 1)),
    )
    batch.varying = varying  # type: ignore[assignment]  # columns by construction
    return batch, table


@settings(max_examples=300, deadline=None)
@given(batches(), st.integers(1, 5))
def test_every_field_equals_the_reference(made: tuple[RequestBatch, SeriesTable], max_spans: int) -> None:
    batch, table = made
    encoder = an_encoder(max_spans=max_spans)
    for _ in range(2):  # the second time from the caches
        requests = decode(encoder.encode(batch, table, SERVICES, Values()))
        found = [
            (r.resource.attributes[0].value.string_value, span)
            for request in requests
            for r in request.resource_spans
            for s in r.scope_spans
            for span in s.spans
        ]
        expected = sorted(reference(batch, table), key=lambda pair: pair[0])
        assert found == [(SERVICES[service].name, span) for service, span in expected]
        for request in requests:
            assert 0 < sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans) <= max_spans


def test_the_bytes_are_canonical_protobuf() -> None:
    batch = a_batch(3, varying={"url.path": [b"/a", b"p" * 300, None], "http.response.body.size": [5, 70_000, -1]})
    (chunk,) = an_encoder().encode(batch, a_table(), SERVICES, Values())
    message = ExportTraceServiceRequest.FromString(chunk.data)
    # Same length after a round trip: no length was padded, nothing unknown was carried along.
    message.DiscardUnknownFields()
    assert message.ByteSize() == len(chunk.data)
    assert chunk.items == 3


def test_resource_scope_and_schema() -> None:
    (request,) = decode(an_encoder().encode(a_batch(1), a_table(), SERVICES, Values()))
    (resource_spans,) = request.resource_spans
    assert [(a.key, a.value.string_value) for a in resource_spans.resource.attributes] == [
        ("service.name", "shop"),
        ("service.instance.id", "host:1"),
    ]
    assert resource_spans.schema_url == semconv.SCHEMA_URL
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("onlooker", "1.2.3")
    assert scope_spans.schema_url == semconv.SCHEMA_URL


def test_services_do_not_mix() -> None:
    batch = a_batch(6, service=[2, 1, 2, 1, -1, 99], series=0)
    (request,) = decode(an_encoder().encode(batch, a_table(), SERVICES, Values()))
    by_name = {
        r.resource.attributes[0].value.string_value: [s.span_id[-1] for s in r.scope_spans[0].spans]
        for r in request.resource_spans
    }
    assert by_name["shop"] == [2, 4]
    assert by_name["stock"] == [1, 3]
    assert by_name["unknown_service"] == [6]  # -1 has its own ResourceSpans of the same name
    assert sum(len(r.scope_spans[0].spans) for r in request.resource_spans) == 6


def test_a_service_that_exports_no_traces_is_left_out_and_counted() -> None:
    encoder = an_encoder()
    chunks = encoder.encode(a_batch(4, service=[1, 3, 3, 1]), a_table(), SERVICES, Values())
    assert [s.span_id[-1] for s in spans_of(chunks)] == [1, 4]
    assert (encoder.encoded, encoder.not_exported) == (2, 2)


def test_nothing_kept_gives_no_request() -> None:
    assert an_encoder().encode(a_batch(3, keep=False), a_table(), SERVICES, Values()) == []
    assert an_encoder().encode(a_batch(0), a_table(), SERVICES, Values()) == []


def test_requests_end_to_end_are_again_a_request() -> None:
    chunks = an_encoder(max_spans=2).encode(a_batch(5), a_table(), SERVICES, Values())
    assert [chunk.items for chunk in chunks] == [2, 2, 1]
    joined = Chunk(b"".join(chunk.data for chunk in chunks), 5)
    assert [s.span_id[-1] for s in spans_of([joined])] == [1, 2, 3, 4, 5]


def test_requests_are_cut_by_bytes_even_inside_one_service() -> None:
    batch = a_batch(20, varying={"url.path": [b"p" * 1000] * 20})
    chunks = an_encoder(max_bytes=5_000).encode(batch, a_table(), SERVICES, Values())
    assert sum(chunk.items for chunk in chunks) == 20
    assert max(len(chunk.data) for chunk in chunks) < 5_000 + 200  # and the resource
    assert [s.span_id[-1] for s in spans_of(chunks)] == list(range(1, 21))


def test_a_span_larger_than_a_request_goes_alone() -> None:
    batch = a_batch(3, varying={"url.path": [b"/", b"p" * 9_000, b"/"]})
    chunks = an_encoder(max_bytes=1_000).encode(batch, a_table(), SERVICES, Values())
    assert [chunk.items for chunk in chunks] == [1, 1, 1]


def test_a_bad_byte_does_not_spoil_the_request() -> None:
    batch = a_batch(3, varying={"url.path": [b"/caf\xc3\xa9", b"/\xff\xfe/x", b"/plain"]})
    encoder = an_encoder()
    spans = spans_of(encoder.encode(batch, a_table(), SERVICES, Values()))
    assert [attributes(s)["url.path"] for s in spans] == ["/café", "/\ufffd\ufffd/x", "/plain"]
    assert encoder.replaced == 1


def test_a_character_cut_by_the_end_of_the_capture_is_replaced() -> None:
    pool = np.frombuffer("é/é".encode(), np.uint8)
    column = Text(pool, np.array([0, 3]), np.array([1, 2], np.int32))
    assert [attributes(s)["p"] for s in encode(a_batch(2, varying={"p": column}))] == ["\ufffd", "é"]


def test_a_value_longer_than_the_bound_is_cut_and_counted() -> None:
    encoder = an_encoder()
    batch = a_batch(2, varying={"db.query.text": [b"s" * (MAX_VALUE_BYTES + 5), b"t" * MAX_VALUE_BYTES]})
    spans = spans_of(encoder.encode(batch, a_table(), SERVICES, Values()))
    assert [len(str(attributes(s)["db.query.text"])) for s in spans] == [MAX_VALUE_BYTES, MAX_VALUE_BYTES]
    assert encoder.cut == 1


def test_a_string_at_the_very_end_of_the_pool() -> None:
    pool = np.frombuffer(b"0123456789" * 5, np.uint8)
    column = Text(pool, np.array([45, 0, 49, 10]), np.array([5, 50, 1, 40], np.int32))
    found = [attributes(s)["p"] for s in encode(a_batch(4, varying={"p": column}))]
    assert found == ["56789", "0123456789" * 5, "9", "0123456789" * 4]


def test_absent_values_are_left_out() -> None:
    batch = a_batch(3, varying={"url.query": [None, b"", b"a=1"], "n": [-1, 0, 7]})
    found = [attributes(s) for s in encode(batch, a_table(a_series(attributes={})))]
    assert found == [{}, {"url.query": "", "n": 0}, {"url.query": "a=1", "n": 7}]


def test_a_column_absent_everywhere() -> None:
    batch = a_batch(2, varying={"url.query": [None, None], "n": [-1, -1]})
    assert [attributes(s) for s in encode(batch, a_table(a_series(attributes={})))] == [{}, {}]


def test_a_series_id_in_its_second_life_is_encoded_anew() -> None:
    encoder = an_encoder()
    table = a_table(a_series(0, name="GET /old"))
    encoder.encode(a_batch(1), table, SERVICES, Values())
    table.rows[0] = a_series(0, name="GET /new", generation=2)
    assert [s.name for s in spans_of(encoder.encode(a_batch(1), table, SERVICES, Values()))] == ["GET /new"]


def test_a_service_that_changed_is_encoded_anew() -> None:
    encoder = an_encoder()
    for name in ("before", "after"):
        (request,) = decode(encoder.encode(a_batch(1), a_table(), {1: a_service(1, name)}, Values()))
        assert request.resource_spans[0].resource.attributes[0].value.string_value == name


@pytest.mark.parametrize("series", [0, -1])
def test_rows_beyond_the_series_cap_keep_their_own_attributes(series: int) -> None:
    values = Values()
    names = [values.id("GET /a"), values.id("GET /b")]
    dims = [[values.id("GET"), values.id(200)], [values.id("GET"), 0]]
    batch = a_batch(
        2,
        series=series,
        name=names,
        status=[0, 2],
        dims=dims,
        dim_names=("http.request.method", "http.response.status_code"),
    )
    table = a_table(a_series(0, name="overflow", overflow=True, attributes={"otel.metric.overflow": True}))
    first, second = encode(batch, table, values)
    assert (first.name, attributes(first)) == (
        "GET /a",
        {"http.request.method": "GET", "http.response.status_code": 200},
    )
    assert (second.name, second.status.code, attributes(second)) == ("GET /b", 2, {"http.request.method": "GET"})


def test_the_cache_of_constant_parts_is_bounded() -> None:
    encoder = an_encoder(cache_bytes=50_000)
    for life in range(200):
        table = a_table(*(a_series(i, generation=life, name=f"GET /{life}/{i}/" + "x" * 500) for i in range(20)))
        spans = spans_of(encoder.encode(a_batch(20, series=np.arange(20)), table, SERVICES, Values()))
        assert [s.name for s in spans] == [f"GET /{life}/{i}/" + "x" * 500 for i in range(20)]
        assert len(encoder._constants.pool) < 300_000


def test_the_batch_is_not_changed() -> None:
    batch = a_batch(4, service=[2, 1, 2, 1], varying={"p": [b"\xff", b"x", None, b""]})
    before = {k: v.copy() for k in batch.__dataclass_fields__ if isinstance(v := getattr(batch, k), np.ndarray)}
    text = batch.varying["p"]
    assert isinstance(text, Text)
    pool = text.pool.copy()
    an_encoder().encode(batch, a_table(), SERVICES, Values())
    assert all(np.array_equal(before[k], getattr(batch, k)) for k in before)
    assert np.array_equal(pool, text.pool)


def test_service_without_any_resource_attribute() -> None:
    service: Service = a_service(1, resource=())
    (request,) = decode(an_encoder().encode(a_batch(1), a_table(), {1: service}, Values()))
    assert not request.resource_spans[0].resource.attributes
