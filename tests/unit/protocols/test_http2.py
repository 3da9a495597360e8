from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker import semconv
from onlooker.batches import SpanKind
from onlooker.protocols import Operation
from onlooker.protocols._http2_frames import PREFACE, believable
from onlooker.protocols.http2 import (
    BYTES_LOST,
    CONNECT_PROTOCOL,
    PREDATES_AGENT,
    REQUEST_CONTENT_TYPE,
    REQUEST_MESSAGES,
    RESPONSE_MESSAGES,
    RPC_TIMEOUT_NS,
    Http2,
)
from support.http2_replay import Replay, plain

Headers = list[tuple[str, str]]


def request(path: str = "/", method: str = "GET", **more: str) -> Headers:
    fields = [(":method", method), (":scheme", "http"), (":authority", "shop.example:8080"), (":path", path)]
    return fields + [(key.replace("_", "-"), value) for key, value in more.items()]


class Pair:
    """A real client and server state machine with an `Http2` looking on, raw and condensed at once."""

    def __init__(
        self, *, server: bool = True, client_settings: dict[int, int] | None = None, watch: bool = True
    ) -> None:
        config = {"header_encoding": None, "validate_inbound_headers": False, "validate_outbound_headers": False}
        self.client = H2Connection(H2Configuration(client_side=True, **config))
        self.server = H2Connection(H2Configuration(client_side=False, **config))
        self.watched = watch
        self.is_server = server
        self.replays: list[Replay] = []
        if watch:
            self.begin(from_start=True)
        self.client.initiate_connection()
        self.server.initiate_connection()
        if client_settings:
            self.client.update_settings(client_settings)
        self.exchange()
        self.exchange()

    def begin(self, *, from_start: bool) -> None:
        self.replays = [
            Replay(Http2(from_start=from_start, condensed=condensed), self.is_server, condensed)
            for condensed in (False, True)
        ]
        if not from_start:
            for one in self.replays:
                for condenser in one.condensers.values():
                    condenser.preface = 0

    @property
    def parser(self) -> Http2:
        return self.replays[0].parser

    def feed(self, from_client: bool, data: bytes, **extra: object) -> list[Operation]:
        raw, condensed = ([plain(one) for one in replay.feed(from_client, data, **extra)] for replay in self.replays)
        for ours, true in zip(condensed, raw, strict=True):
            for key in (REQUEST_MESSAGES, RESPONSE_MESSAGES):
                if key not in ours["varying"]:
                    true["varying"].pop(key, None)
            assert ours == true
        return self.replays[0].operations[len(self.replays[0].operations) - len(raw) :]

    def exchange(self, *, lose: bool = False) -> list[Operation]:
        found: list[Operation] = []
        for from_client, sender, receiver in (
            (True, self.client, self.server),
            (False, self.server, self.client),
        ):
            data = sender.data_to_send()
            if data:
                receiver.receive_data(data)
                for one in self.replays if lose else ():
                    one.skip(from_client, len(data))
                    one.condensers[from_client].condense(data)
                if self.replays and not lose:
                    found += self.feed(from_client, data)
        return found

    def ask(self, headers: Headers, body: bytes | None = None, **options: int) -> int:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, headers, end_stream=body is None, **options)
        if body is not None:
            self.client.send_data(stream, body, end_stream=True)
        return stream

    def answer(self, stream: int, status: str = "200", body: bytes | None = None, **fields: str) -> None:
        headers = [(":status", status)] + [(key.replace("_", "-"), value) for key, value in fields.items()]
        self.server.send_headers(stream, headers, end_stream=body is None)
        if body is not None:
            self.server.send_data(stream, body, end_stream=True)

    def grpc(self, path: str = "/p.S/M", **fields: str) -> int:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(
            stream, request(path, "POST", content_type="application/grpc", te="trailers", **fields)
        )
        return stream

    def message(self, stream: int, *, server: bool = False, size: int = 3, end: bool = False) -> None:
        side = self.server if server else self.client
        side.send_data(stream, b"\0" + size.to_bytes(4, "big") + b"m" * size, end_stream=end)

    def end_call(self, stream: int, status: str = "0") -> None:
        self.server.send_headers(stream, [("grpc-status", status)], end_stream=True)


def only(operations: Iterable[Operation]) -> Operation:
    (operation,) = operations
    return operation


def test_a_request_has_its_four_times_and_sizes() -> None:
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, request("/cart?item=7", "POST"))
    pair.exchange()
    pair.client.send_data(stream, b"abc", end_stream=True)
    pair.exchange()
    pair.server.send_headers(stream, [(":status", "201")])
    pair.exchange()
    pair.server.send_data(stream, b"hello", end_stream=True)
    begin = pair.replays[0].clock - 3000
    one = only(pair.exchange())
    times = (one.start_mono_ns, one.request_end_mono_ns, one.response_start_mono_ns, one.end_mono_ns)
    assert [at - begin for at in times] == [1000, 2000, 3000, 4000]
    assert (one.request_bytes, one.response_bytes) == (3, 5)
    assert one.name == "POST"
    assert one.dims == {
        semconv.HTTP_REQUEST_METHOD: "POST", semconv.HTTP_RESPONSE_STATUS_CODE: 201, semconv.URL_SCHEME: "http",
        semconv.NETWORK_PROTOCOL_VERSION: "2",
    }  # fmt: skip
    assert one.varying == {semconv.URL_PATH: "/cart", semconv.URL_QUERY: "item=7"}
    assert (one.error, one.kind, one.stream) == ("", 0, False)


def test_a_client_knows_the_server_by_its_authority() -> None:
    pair = Pair(server=False)
    stream = pair.ask(request())
    pair.exchange()
    pair.answer(stream, "404")
    one = only(pair.exchange())
    assert one.dims[semconv.SERVER_ADDRESS] == "shop.example"
    assert one.dims[semconv.SERVER_PORT] == 8080
    assert one.error == one.dims[semconv.ERROR_TYPE] == "404"


@pytest.mark.parametrize(("status", "error"), [("404", ""), ("500", "500"), ("503", "503")])
def test_a_server_blames_itself_from_500_on(status: str, error: str) -> None:
    pair = Pair()
    stream = pair.ask(request())
    pair.exchange()
    pair.answer(stream, status)
    assert only(pair.exchange()).error == error


def test_a_hundred_streams_at_once_keep_apart() -> None:
    pair = Pair()
    streams = [pair.ask(request(f"/item/{number}"), b"x" * number) for number in range(100)]
    pair.exchange()
    random.Random(7).shuffle(streams)
    found = []
    for number, stream in enumerate(streams):
        pair.answer(stream, str(200 + number % 5), b"y" * stream)
        found += pair.exchange()
    assert [one.varying[semconv.URL_PATH] for one in found] == [f"/item/{stream // 2}" for stream in streams]
    assert [one.request_bytes for one in found] == [stream // 2 for stream in streams]
    assert [one.response_bytes for one in found] == streams
    assert [one.dims[semconv.HTTP_RESPONSE_STATUS_CODE] for one in found] == [200 + n % 5 for n in range(100)]
    assert len({one.end_mono_ns for one in found}) == 100
    assert (pair.parser.open_streams, pair.parser.lost) == (0, 0)


def test_traceparent_is_the_parent() -> None:
    pair = Pair()
    stream = pair.ask(request(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"))
    pair.exchange()
    pair.answer(stream)
    one = only(pair.exchange())
    assert one.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert one.parent_span_id.hex() == "b7ad6b7169203331"
    assert (one.trace_flags, one.parent_source) == (0, 1)


@pytest.mark.parametrize(
    "value",
    [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "",
    ],
)
def test_a_broken_traceparent_is_none(value: str) -> None:
    pair = Pair()
    stream = pair.ask(request(traceparent=value))
    pair.exchange()
    pair.answer(stream)
    one = only(pair.exchange())
    assert (one.trace_id, one.parent_span_id, one.parent_source) == (b"", b"", 0)


def test_without_a_header_the_thread_tells_the_parent() -> None:
    pair = Pair(server=False)
    stream = pair.ask(request())
    pair.feed(True, pair.client.data_to_send(), trace_id=b"t" * 16, span_id=b"s" * 8, parent_source=2, tid=9)
    pair.server.receive_data(b"")
    frame = HeadersFrame(stream, data=b"\x88", flags=["END_HEADERS", "END_STREAM"])
    one = only(pair.feed(False, frame.serialize()))
    assert (one.trace_id, one.parent_span_id, one.parent_source, one.tid) == (b"t" * 16, b"s" * 8, 2, 9)


def test_interim_responses_are_not_the_response() -> None:
    pair = Pair()
    stream = pair.ask(request())
    pair.exchange()
    pair.server.send_headers(stream, [(":status", "103"), ("link", "</a.css>")])
    assert pair.exchange() == []
    pair.answer(stream, "200", b"x")
    one = only(pair.exchange())
    assert one.dims[semconv.HTTP_RESPONSE_STATUS_CODE] == 200
    assert one.response_start_mono_ns == one.end_mono_ns


def test_trailers_end_requests_and_responses() -> None:
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, request(method="PUT"))
    pair.client.send_data(stream, b"abc")
    pair.client.send_headers(stream, [("x-sum", "1")], end_stream=True)
    pair.exchange()
    pair.server.send_headers(stream, [(":status", "200")])
    pair.server.send_data(stream, b"abc")
    assert pair.exchange() == []
    pair.server.send_headers(stream, [("x-sum", "1")], end_stream=True)
    assert only(pair.exchange()).dims[semconv.HTTP_RESPONSE_STATUS_CODE] == 200


def test_headers_of_many_frames() -> None:
    pair = Pair()
    big = "".join(random.Random(1).choices('abcdefghijklmnop!"#$%&', k=60_000))
    stream = pair.ask([*request("/behind"), ("x-big", big), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")])
    pair.exchange()
    pair.answer(stream)
    one = only(pair.exchange())
    assert one.varying[semconv.URL_PATH] == "/behind"
    assert one.trace_id == b"\xaa" * 16


def test_a_header_block_without_end_is_bounded_and_lost() -> None:
    pair = Pair()
    frame = HeadersFrame(1, data=b"\x82\x86\x84")
    pair.feed(True, frame.serialize())
    for _ in range(400):
        pair.feed(True, ContinuationFrame(1, data=b"\x00\x01x" + b"\x7f\x80\x7f" + b"v" * 16_000).serialize())
    block = pair.parser._blocks[1]
    assert block is not None
    assert block.size < 200_000


@pytest.mark.parametrize("pad", [0, 1, 255])
def test_padding_is_no_data(pad: int) -> None:
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, request(method="POST"), priority_weight=3, priority_depends_on=0)
    pair.client.send_data(stream, b"abc", end_stream=True, pad_length=pad)
    pair.exchange()
    headers = HeadersFrame(stream, data=pair.server.encoder.encode([(":status", "200")]), pad_length=pad)
    headers.flags |= {"END_HEADERS", "PADDED"}
    data = DataFrame(stream, data=b"hello", pad_length=pad, flags=["END_STREAM", "PADDED"])
    one = only(pair.feed(False, headers.serialize() + data.serialize()))
    assert (one.request_bytes, one.response_bytes) == (3, 5)
    assert one.dims[semconv.HTTP_RESPONSE_STATUS_CODE] == 200


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 65_536])
def test_table_sizes(size: int) -> None:
    pair = Pair(client_settings={SettingCodes.HEADER_TABLE_SIZE: size})
    pair.server.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})  # the library's encoders follow both
    pair.exchange()
    pair.exchange()
    for number in range(40):
        stream = pair.ask(request(f"/{number % 7}", x_id="i" * (number * 20)))
        pair.exchange()
        pair.answer(stream, str(200 + number % 3), x_other="o" * (number * 20))
        one = only(pair.exchange())
        assert one.varying == {semconv.URL_PATH: f"/{number % 7}"}
        assert one.dims[semconv.HTTP_RESPONSE_STATUS_CODE] == 200 + number % 3
    assert pair.parser.settings[1][1] == size


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (ErrorCodes.CANCEL, "CANCEL"), (ErrorCodes.INTERNAL_ERROR, "INTERNAL_ERROR"),
        (ErrorCodes.REFUSED_STREAM, "REFUSED_STREAM"), (77, "UNKNOWN_ERROR"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_client", [True, False])
def test_a_reset_is_an_error(code: int, error: str, by_client: bool) -> None:
    pair = Pair()
    stream = pair.ask(request())
    pair.exchange()
    one = only(pair.feed(by_client, RstStreamFrame(stream, error_code=int(code)).serialize()))
    assert one.error == one.dims[semconv.ERROR_TYPE] == error
    assert semconv.HTTP_RESPONSE_STATUS_CODE not in one.dims


def test_a_reset_after_the_response_is_none() -> None:
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, request(method="POST"))
    pair.exchange()
    pair.answer(stream)
    pair.server.reset_stream(stream, ErrorCodes.NO_ERROR)
    assert only(pair.exchange()).error == ""
    assert pair.parser.close(10**9, "") == []


def test_going_away_refuses_what_came_later() -> None:
    pair = Pair()
    streams = [pair.ask(request(f"/{number}")) for number in range(4)]
    pair.exchange()
    found = pair.feed(False, GoAwayFrame(last_stream_id=streams[1]).serialize())
    assert [(one.varying[semconv.URL_PATH], one.error) for one in found] == [
        ("/2", "REFUSED_STREAM"), ("/3", "REFUSED_STREAM"),
    ]  # fmt: skip
    assert pair.parser.open_streams == 2


def test_what_is_open_at_the_end_failed() -> None:
    pair = Pair()
    pair.ask(request("/open"))
    pair.exchange()
    one = only(pair.parser.close(10**9, "ECONNRESET"))
    assert (one.error, one.varying[semconv.URL_PATH], one.end_mono_ns) == ("ECONNRESET", "/open", 10**9)
    assert pair.parser.close(10**9, "") == []


def test_a_pushed_response_is_no_request_but_keeps_the_table_in_step() -> None:
    pair = Pair()
    stream = pair.ask(request())
    pair.exchange()
    pair.server.push_stream(stream, 2, [*request("/pushed"), ("x-new", "value")])
    pair.server.send_headers(2, [(":status", "200"), ("x-other", "value")], end_stream=True)
    assert pair.exchange() == []
    pair.answer(stream, "207", x_other="value")
    assert only(pair.exchange()).dims[semconv.HTTP_RESPONSE_STATUS_CODE] == 207


def test_a_websocket_lasts_as_long_as_its_stream() -> None:
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, [*request("/chat", "CONNECT"), (":protocol", "websocket")])
    pair.exchange()
    pair.server.send_headers(stream, [(":status", "200")])
    assert pair.exchange() == []
    pair.server.send_data(stream, b"bye", end_stream=True)
    one = only(pair.exchange())
    assert one.stream
    assert one.varying == {semconv.URL_PATH: "/chat", CONNECT_PROTOCOL: "websocket"}


def test_an_unknown_method_is_other() -> None:
    pair = Pair()
    stream = pair.ask(request(method="BREW"))
    pair.exchange()
    pair.answer(stream)
    one = only(pair.exchange())
    assert one.name == "HTTP"
    assert one.dims[semconv.HTTP_REQUEST_METHOD] == "_OTHER"
    assert one.varying[semconv.HTTP_REQUEST_METHOD_ORIGINAL] == "BREW"


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/connect+json", "application/proto"])
def test_grpc_web_and_connect_are_http(kind: str) -> None:
    pair = Pair()
    stream = pair.ask(request("/p.S/M", "POST", content_type=kind), b"")
    pair.exchange()
    pair.answer(stream)
    one = only(pair.exchange())
    assert one.name == "POST"
    assert one.varying[REQUEST_CONTENT_TYPE] == kind


# gRPC


def test_a_unary_call() -> None:
    pair = Pair()
    stream = pair.grpc(grpc_timeout="5S")
    pair.message(stream, end=True)
    pair.exchange()
    pair.server.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    pair.message(stream, server=True)
    pair.end_call(stream, "5")
    one = only(pair.exchange())
    assert one.name == "p.S/M"
    assert one.dims == {
        semconv.RPC_SYSTEM_NAME: "grpc", semconv.RPC_METHOD: "p.S/M", semconv.RPC_RESPONSE_STATUS_CODE: "NOT_FOUND",
    }  # fmt: skip
    assert one.varying == {
        "rpc.service": "p.S", REQUEST_MESSAGES: 1, RESPONSE_MESSAGES: 1, RPC_TIMEOUT_NS: 5 * 10**9,
    }  # fmt: skip
    assert (one.error, one.stream) == ("", False)


def test_a_stream_lasts_until_its_trailers() -> None:
    pair = Pair(server=False)
    stream = pair.grpc()
    pair.exchange()
    pair.server.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    for _ in range(5):
        pair.message(stream)
        pair.message(stream, server=True)
        assert pair.exchange() == []
    pair.end_call(stream, "13")
    one = only(pair.exchange())
    assert (one.stream, one.error) == (True, "INTERNAL")
    assert (one.varying[REQUEST_MESSAGES], one.varying[RESPONSE_MESSAGES]) == (5, 5)


def test_trailers_only() -> None:
    pair = Pair()
    stream = pair.grpc()
    pair.exchange()
    pair.answer(stream, "200", content_type="application/grpc", grpc_status="12")
    assert only(pair.exchange()).error == "UNIMPLEMENTED"


def test_a_proxy_answered_in_place_of_the_server() -> None:
    pair = Pair(server=False)
    stream = pair.grpc()
    pair.exchange()
    pair.answer(stream, "503", b"<html>")
    assert only(pair.exchange()).dims[semconv.RPC_RESPONSE_STATUS_CODE] == "UNAVAILABLE"


def test_no_status_is_unknown() -> None:
    pair = Pair()
    stream = pair.grpc()
    pair.exchange()
    pair.answer(stream, "200", b"", content_type="application/grpc")
    assert only(pair.exchange()).dims[semconv.RPC_RESPONSE_STATUS_CODE] == "UNKNOWN"


def test_cancelled_and_refused_calls() -> None:
    for server, error in ((True, ""), (False, "CANCELLED")):
        pair = Pair(server=server)
        stream = pair.grpc()
        pair.exchange()
        pair.client.reset_stream(stream, ErrorCodes.CANCEL)
        one = only(pair.exchange())
        assert (one.dims[semconv.RPC_RESPONSE_STATUS_CODE], one.error) == ("CANCELLED", error)
    pair = Pair()
    stream = pair.grpc()
    pair.exchange()
    pair.server.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
    assert only(pair.exchange()).error == "UNAVAILABLE"


def test_a_call_cut_off_has_no_status() -> None:
    pair = Pair(server=False)
    pair.grpc()
    pair.exchange()
    one = only(pair.parser.close(10**9, ""))
    assert one.error == "connection_closed"
    assert semconv.RPC_RESPONSE_STATUS_CODE not in one.dims


# Coming late, and losing bytes


def warmed_up() -> Pair:
    """A connection that was busy before anybody looked: paths and headers are in the tables."""
    pair = Pair(watch=False)
    for number in range(10):
        stream = pair.ask(request(f"/old/{number}", x_tenant="blue"))
        pair.exchange()
        pair.answer(stream, "418", x_pod="one")
        pair.exchange()
    pair.begin(from_start=False)
    return pair


def test_a_late_comer_leaves_out_what_it_cannot_know() -> None:
    pair = warmed_up()
    stream = pair.ask(request("/old/9", x_tenant="blue"))
    pair.exchange()
    pair.answer(stream, "418", x_pod="one")
    one = only(pair.exchange())
    assert one.varying == {PREDATES_AGENT: True}
    assert one.dims[semconv.HTTP_REQUEST_METHOD] == "GET"
    assert semconv.HTTP_RESPONSE_STATUS_CODE not in one.dims
    stream = pair.ask(request("/new", x_tenant="blue"))
    pair.exchange()
    pair.answer(stream, "200")
    one = only(pair.exchange())
    assert one.varying == {semconv.URL_PATH: "/new", PREDATES_AGENT: True}
    stream = pair.ask(request("/new"))  # now an index: to an entry that was seen
    pair.exchange()
    pair.answer(stream, "500")
    one = only(pair.exchange())
    assert one.varying[semconv.URL_PATH] == "/new"
    assert one.error == "500"


def test_answers_to_requests_before_the_agent_are_counted() -> None:
    pair = Pair(watch=False)
    old = pair.ask(request("/slow"))
    pair.exchange()
    pair.begin(from_start=False)
    new = pair.ask(request("/new"))
    pair.exchange()
    pair.answer(old)
    pair.answer(new)
    assert only(pair.exchange()).varying[semconv.URL_PATH] == "/new"
    assert pair.parser.lost == 1
    assert pair.parser.lost == 0


def test_roles_are_told_by_the_first_headers() -> None:
    pair = warmed_up()
    stream = pair.ask(request("/mine"))
    for one in pair.replays:
        one.condensers[True], one.condensers[False] = one.condensers[False], one.condensers[True]
    pair.feed(False, pair.client.data_to_send())
    found = pair.feed(True, HeadersFrame(stream, data=b"\x88", flags=["END_HEADERS", "END_STREAM"]).serialize())
    one = only(found)
    assert one.varying[semconv.URL_PATH] == "/mine"
    assert one.kind == SpanKind.CLIENT


def test_lost_requests_are_counted_and_nothing_wrong_is_said_after() -> None:
    pair = Pair()
    stream = pair.ask(request("/seen", x_a="1"))
    pair.exchange()
    pair.answer(stream)
    pair.exchange()
    for number in range(3):
        stream = pair.ask(request(f"/unseen/{number}", x_a="2"))
    pair.exchange(lose=True)
    for late in (stream - 4, stream - 2, stream):
        pair.answer(late)
    assert pair.exchange() == []
    stream = pair.ask(request("/unseen/2", x_a="2"))
    pair.exchange()
    pair.answer(stream)
    one = only(pair.exchange())
    assert one.varying == {BYTES_LOST: True}
    assert pair.parser.lost == 3


def test_bytes_lost_inside_a_body_change_nothing() -> None:
    pair = Pair()
    stream = pair.ask(request("/big"))
    pair.exchange()
    head = HeadersFrame(stream, data=b"\x88", flags=["END_HEADERS"]).serialize()
    body = DataFrame(stream, data=b"x" * 10_000, flags=["END_STREAM"]).serialize()
    raw = pair.replays[0]
    raw.feed(False, head + body[:100])
    raw.skip(False, 5000)
    one = only(raw.feed(False, body[5100:]))
    assert (one.response_bytes, one.dims[semconv.HTTP_RESPONSE_STATUS_CODE]) == (10_000, 200)
    assert pair.parser.lost == 0


def test_what_was_open_when_bytes_were_lost_is_no_error() -> None:
    pair = Pair()
    pair.ask(request("/open"))
    pair.exchange()
    raw = pair.replays[0]
    raw.skip(False, 1000)
    raw.feed(False, b"\xff" * 50)
    assert raw.parser.expire(raw.clock + 10**9) == []
    assert raw.parser.lost == 0
    assert raw.parser.expire(raw.clock + 61 * 10**9) == []
    assert raw.parser.lost == 1
    assert raw.parser.close(10**15, "") == []


def test_unreadable_bytes_are_a_loss() -> None:
    pair = Pair()
    raw = pair.replays[0]
    stream = pair.ask(request("/hidden"))
    raw.feed(True, pair.client.data_to_send(), readable=False)
    assert raw.feed(False, HeadersFrame(stream, data=b"\x88", flags=["END_HEADERS", "END_STREAM"]).serialize()) == []
    raw.parser.close(10**9, "")
    assert raw.parser.lost == 1


def test_streams_at_once_are_bounded() -> None:
    parser = Http2(from_start=True, condensed=False, max_streams=10)
    run = Replay(parser)
    run.feed(True, PREFACE + SettingsFrame().serialize())
    frames = [HeadersFrame(n * 2 + 1, data=b"\x82\x86\x84", flags=["END_HEADERS", "END_STREAM"]) for n in range(25)]
    for frame in frames:
        run.feed(True, frame.serialize())
    assert (parser.open_streams, parser.lost) == (10, 15)
    for frame in frames:
        run.feed(False, HeadersFrame(frame.stream_id, data=b"\x88", flags=["END_HEADERS", "END_STREAM"]).serialize())
    assert len(run.operations) == 10
    assert parser.lost == 0


def test_an_answer_reported_before_its_request_waits_for_it() -> None:
    pair = Pair(server=False)
    stream = pair.ask(request("/raced"))
    data = pair.client.data_to_send()
    answer = HeadersFrame(stream, data=b"\x88", flags=["END_HEADERS", "END_STREAM"]).serialize()
    assert pair.feed(False, answer) == []
    one = only(pair.feed(True, data))
    assert one.varying[semconv.URL_PATH] == "/raced"
    assert one.dims[semconv.HTTP_RESPONSE_STATUS_CODE] == 200
    assert one.start_mono_ns <= one.end_mono_ns
    assert pair.parser.lost == 0


def test_text_is_not_taken_for_frames() -> None:
    for text in (
        b"GET / HTTP/1.1\r\n",
        b'{"a": 1, "b": 2}',
        b"\0" * 16,
        b"\0\0\0\0\x05\x0a\x03abcdef",
        b"<html><body>",
    ):
        length, kind, flags = int.from_bytes(text[:3], "big"), text[3], text[4]
        assert not believable(length, kind, flags, int.from_bytes(text[5:9], "big"))


frame_bytes = st.builds(
    lambda kind, flags, stream, payload: (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    ),
    st.one_of(st.integers(0, 10), st.integers(0, 255)),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x2C, 0x2D, 0xFF]),
    st.integers(0, 9),
    st.binary(max_size=60),
)  # fmt: skip


@given(
    st.lists(
        st.tuples(st.booleans(), st.one_of(frame_bytes, st.binary(max_size=40)), st.integers(0, 30), st.booleans()),
        max_size=30,
    ),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_hostile_frames_never_raise_and_stay_bounded(script: list, from_start: bool, condensed: bool) -> None:
    parser = Http2(from_start=from_start, condensed=condensed, max_streams=8)
    run = Replay(parser)  # bytes go in as they are: to a condensed parser they are nonsense
    if from_start:
        run.feed(True, PREFACE)
    for from_client, data, gap, readable in script:
        if gap > 25:
            run.skip(from_client, gap)
        run.feed(from_client, data, readable=readable or gap < 20)
        assert parser.open_streams <= 16
    run.operations += parser.close(run.clock, "")
    parser.expire(run.clock + 10**12)
    for one in run.operations:
        assert 0 <= one.start_mono_ns <= one.request_end_mono_ns <= one.end_mono_ns
        assert one.name
    assert parser.open_streams == 0
    assert parser.lost >= 0


def test_frames_of_unknown_types_are_passed_over() -> None:
    pair = Pair()
    unknown = b"\0\0\x03\xfa\0\0\0\0\0abc"
    stream = pair.ask(request("/x"))
    pair.feed(True, unknown + pair.client.data_to_send() + unknown)
    answer = HeadersFrame(stream, data=b"\x88", flags=["END_HEADERS", "END_STREAM"]).serialize()
    assert only(pair.feed(False, unknown + answer)).varying[semconv.URL_PATH] == "/x"
