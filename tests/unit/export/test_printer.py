"""The printer: what a person reads, and what a hostile path cannot do."""

from __future__ import annotations

import io
import json
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.batches import RequestBatch, SeriesTable, Values
from onlooker.export.printer import Printer, PrintFormat, escape
from support.span_batches import START, a_batch, a_series, a_service, a_table

SERVICES = {1: a_service(1, namespace="prod")}
ROUTED = a_series(
    attributes={"http.request.method": "GET", "http.response.status_code": 200, "http.route": "/users/{id}"}
)


def printed(
    batch: RequestBatch,
    kind: PrintFormat = PrintFormat.TEXT,
    table: SeriesTable | None = None,
    values: Values | None = None,
) -> str:
    stream = io.StringIO()
    Printer(kind, stream).print(batch, table or a_table(ROUTED), SERVICES, values or Values())
    return stream.getvalue()


def parsed(batch: RequestBatch, **others: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(batch, PrintFormat.JSON, **others).splitlines()]


def test_one_line_a_request() -> None:
    batch = a_batch(
        1,
        start_unix_ns=START,
        response_start_unix_ns=START + 1_500_000,
        end_unix_ns=START + 2_340_000,
        request_bytes=0,
        response_bytes=612,
        varying={"url.path": [b"/users/42"]},
    )
    assert printed(batch) == (
        "2023-11-14T22:13:20.000000+00:00 2.34ms(1.50ms) SERVER 200 GET /users/42(/users/{id}) "
        "[127.0.0.2:50000->127.0.0.1:8080] 0B/612B svc=[prod/shop go] "
        "traceparent=[00-a0000000000000000000000000000001-b000000000000001-01]\n"
    )


def test_a_client_goes_the_other_way() -> None:
    line = printed(a_batch(1), table=a_table(a_series(kind=3)))
    assert "CLIENT" in line
    assert "[127.0.0.1:8080->127.0.0.2:50000]" in line


def test_a_request_without_an_answer() -> None:
    batch = a_batch(1, response_start_unix_ns=0, end_unix_ns=START + 5_000_000_001)
    line = printed(batch, table=a_table(a_series(name="GET /x", status=2, attributes={})))
    assert " 5.000s SERVER error error GET /x [" in line
    assert " -/- " in line


def test_a_database_request() -> None:
    attributes = {"db.system.name": "postgresql", "db.operation.name": "SELECT", "db.query.summary": "SELECT users"}
    assert " SELECT SELECT users " in printed(a_batch(1), table=a_table(a_series(attributes=attributes)))


def test_only_kept_rows() -> None:
    assert [r["span_id"][-2:] for r in parsed(a_batch(4, keep=[True, False, False, True]))] == ["01", "04"]
    assert printed(a_batch(4, keep=False)) == ""


def test_json_has_everything() -> None:
    batch = a_batch(
        2,
        parent_span_id=[bytes(8), b"\x01" * 8],
        varying={"url.path": [b"/a", None], "http.response.body.size": [-1, 9]},
    )
    first, second = parsed(batch)
    assert first["attributes"]["url.path"] == "/a"
    assert "http.response.body.size" not in first["attributes"]
    assert second["attributes"]["http.response.body.size"] == 9
    assert (first["parent_span_id"], second["parent_span_id"]) == ("", "01" * 8)
    assert (first["kind"], first["status"], first["service"], first["language"]) == ("server", "unset", "shop", "go")


def test_indented_json_holds_the_same() -> None:
    text = printed(a_batch(1), PrintFormat.JSON_INDENT)
    assert "\n  " in text
    assert json.loads(text) == parsed(a_batch(1))[0]


def test_counter() -> None:
    stream = io.StringIO()
    printer = Printer(PrintFormat.COUNTER, stream)
    for _ in range(2):
        printer.print(a_batch(3), a_table(), SERVICES, Values())
    assert stream.getvalue() == "3\n6\n"


def test_addresses() -> None:
    six = a_batch(1, remote_address=[bytes(15) + b"\x01"], local_address=[bytes(16)])
    assert "[[::1]:50000->unix]" in printed(six)


@pytest.mark.parametrize("overflow", [True, False])
def test_rows_outside_any_series_show_their_own_attributes(overflow: bool) -> None:
    values = Values()
    batch = a_batch(
        1,
        name=values.id("GET /a"),
        series=0 if overflow else -1,
        dims=[[values.id("GET"), 0]],
        dim_names=("http.request.method", "http.route"),
    )
    (row,) = parsed(batch, table=a_table(a_series(overflow=True, name="overflow")), values=values)
    assert (row["name"], row["attributes"]) == ("GET /a", {"http.request.method": "GET"})


def test_a_service_that_is_not_known() -> None:
    assert "svc=[ ]" in printed(a_batch(1, service=-1))


def test_control_characters_do_not_reach_the_terminal() -> None:
    line = printed(a_batch(1, varying={"url.path": [b"/\x1b[2J\r\n\x07\xc2\x9b\xe2\x80\xae\xff\\"]}))
    assert r"/\x1b[2J\x0d\x0a\x07\x9b\u202e" in line
    assert line.count("\n") == 1


@given(st.binary(max_size=60))
def test_a_line_stays_a_line(path: bytes) -> None:
    line = printed(a_batch(1, varying={"url.path": [path]}))
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)
    text = printed(a_batch(1, varying={"url.path": [path]}), PrintFormat.JSON)
    assert text.isascii()
    assert json.loads(text)["attributes"]["url.path"] == path.decode("utf-8", "replace")


@given(st.text(), st.text())
def test_escaping_keeps_texts_apart(a: str, b: str) -> None:
    assert (escape(a) == escape(b)) == (a == b)


def test_a_reader_that_went_away_disturbs_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    printer = Printer(PrintFormat.TEXT, stream)
    for _ in range(3):
        printer.print(a_batch(2), a_table(), SERVICES, Values())
    assert (printer.printed, printer.lost) == (0, 6)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_closed_stream_disturbs_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    printer = Printer(PrintFormat.TEXT, stream)
    printer.print(a_batch(2), a_table(), SERVICES, Values())
    assert printer.lost == 2


def test_a_stream_without_unicode_disturbs_nothing() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    printer = Printer(PrintFormat.TEXT, stream)
    printer.print(a_batch(1, varying={"url.path": ["/café".encode()]}), a_table(), SERVICES, Values())
    assert printer.printed == 1
    assert rb"/caf\xe9" in raw.getvalue()
