"""The measuring instruments of the live tests: they must find every difference, and move every byte."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import traffic, truth, zoo
from support.cases import CASES
from support.channels import Channel, Gone, chunked, odd_parts
from support.truth import PAGES, TrueRequest, compare, plan, truth_of

MS = 1_000_000


def a_request(
    n: int = 0, *, status: int = 200, duration_ms: float = 10, error: str = "", start_ns: int = 0
) -> TrueRequest:
    return TrueRequest(n, "GET", f"/items/{n}", status, round(duration_ms * MS), start_ns, error=error)


def a_span(n: int = 0, *, duration_ms: float = 10, start_ns: int = 0, **other: object) -> dict[str, object]:
    span = {"kind": "server", "pid": 7, "method": "GET", "path": f"/items/{n}", "status": 200, "error": None}
    return {**span, "duration_ns": round(duration_ms * MS), "start_ns": start_ns, **other}


# ---- plan ----


def test_a_plan_depends_on_its_seed_alone():
    assert plan(5, 300) == plan(5, 300)
    assert plan(5, 300) != plan(6, 300)


@given(seed=st.integers(0, 2**32), n=st.integers(0, 300), pages=st.sets(st.sampled_from(list(PAGES)), min_size=1))
@settings(max_examples=30, deadline=None)
def test_each_planned_request_has_a_path_of_its_own_and_a_page_that_was_allowed(seed, n, pages):
    requests = plan(seed, n, pages=pages)
    assert len(requests) == n
    assert len({request.path for request in requests}) == n
    asked = {request.path.split("/")[1] + ("_chunked" if request.chunked else "") for request in requests}
    assert asked <= pages
    for request in requests:
        assert (
            request.line()
            == f"{request.n}\t{request.method}\t{request.target}\t{request.body_bytes}\t{int(request.chunked)}\n"
        )
        assert (request.method == "POST") == (request.body_bytes > 0)


def test_a_long_plan_has_every_page_errors_included():
    requests = plan(1, 1000)
    assert {request.status for request in requests} == {200, 404, 500}
    assert {request.path.split("/")[1] for request in requests} == {p for p in PAGES if p != "echo_chunked"}
    assert [request.judged for request in requests].count(False) == 20


def test_a_page_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="no such pages"):
        plan(1, 10, pages=["items", "cakes"])


# ---- truth ----


def test_a_program_that_reports_too_little_or_twice_is_not_believed():
    requests = plan(3, 2)
    lines = [{"n": n, "status": 200, "start_ns": 5, "end_ns": 9, "bytes": 1, "error": ""} for n in range(2)]
    assert [true.duration_ns for true in truth_of(requests, reversed(lines))] == [4, 4]
    with pytest.raises(ValueError, match="1 planned requests are not reported, the first is 1"):
        truth_of(requests, lines[:1])
    with pytest.raises(ValueError, match="request 0 is reported twice"):
        truth_of(requests, [*lines, lines[0]])


# ---- compare ----


def test_spans_that_tell_the_truth_pass():
    made = [a_request(n) for n in range(50)]
    report = compare(made, [a_span(n, duration_ms=11.9) for n in range(50)])
    assert report.problems() == []
    report.check()
    assert (report.judged, report.share_within) == (50, 1.0)


def test_every_kind_of_lie_is_found_and_named():
    made = [a_request(n) for n in range(6)]
    spans = [
        a_span(0),
        a_span(1, status=500),
        a_span(2, method="POST"),
        a_span(3),
        a_span(3),
        a_span(4, duration_ms=30),
        a_span(77),
    ]
    report = compare(made, spans)
    assert [true.n for true in report.missing] == [5]
    assert [span["path"] for span in report.invented] == ["/items/77"]
    assert [span["path"] for span in report.repeated] == ["/items/3"]
    assert [(what, true.n) for what, true, _ in report.wrong] == [("status", 1), ("method", 2)]
    assert [true.n for true, _ in report.late] == [4]
    with pytest.raises(AssertionError) as failure:
        report.check()
    text = str(failure.value)
    for words in (
        "1 of 6 requests have no span:\n  #5 GET /items/5 -> 200 in 10.00 ms",
        "1 reported requests were never made:\n  GET /items/77 -> 200 in 10.00 ms (pid 7)",
        "1 reported requests are reported more than once",
        "1 spans have a wrong status:\n  #1 GET /items/1 -> 200 in 10.00 ms, but the span says GET /items/1 -> 500",
        "1 spans have a wrong method",
        "only 80.00% of 5 durations are right (wanted 99.00%):\n  #4 GET /items/4 -> 200 in 10.00 ms, but",
    ):
        assert words in text


def test_declared_losses_excuse_exactly_as_many_missing_requests():
    report = compare([a_request(n) for n in range(3)], [a_span(0)])
    assert report.problems(declared_lost=2) == []
    assert report.problems(declared_lost=1)
    assert report.problems(declared_lost=3)


@pytest.mark.parametrize(
    ("took_ms", "span_ms", "right"),
    [(10, 12, True), (10, 12.1, False), (10, 8, True), (10, 7.9, False), (1000, 1020, True), (1000, 1021, False)],
)
def test_a_duration_is_right_within_2_ms_or_2_percent_whichever_is_more(took_ms, span_ms, right):
    report = compare([a_request(duration_ms=took_ms)], [a_span(duration_ms=span_ms)])
    assert report.share_within == right


def test_warm_up_requests_count_but_their_durations_do_not():
    made = [TrueRequest(0, "GET", "/items/0", 200, 500 * MS, judged=False)]
    report = compare(made, [a_span(0)])
    assert (report.judged, report.problems()) == (0, [])
    assert compare(made, []).problems()


def test_a_request_without_a_response_wants_an_error_and_no_status():
    made = [a_request(status=0, error="reset")]
    assert compare(made, [a_span(status=None, error="connection_reset")]).problems() == []
    assert "wrong error" in compare(made, [a_span(status=0)]).problems()[0]
    assert "wrong status" in compare(made, [a_span(status=200)]).problems()[0]


def test_on_one_clock_a_span_must_lie_inside_its_request():
    made = [a_request(start_ns=100 * MS)]
    assert compare(made, [a_span(start_ns=101 * MS)], same_clock=True).problems() == []
    for start_ns in (97 * MS, 103 * MS):
        assert "do not lie inside" in compare(made, [a_span(start_ns=start_ns)], same_clock=True).problems()[0]


def test_a_query_is_no_part_of_the_path():
    assert compare([a_request()], [a_span(path="/items/0?page=3")]).problems() == []


def test_requests_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="same path"):
        compare([a_request(1), a_request(1)], [])


@given(made=st.sets(st.integers(0, 40)), reported=st.lists(st.integers(0, 60), max_size=80), lost=st.integers(0, 3))
def test_missing_invented_and_repeated_add_up(made, reported, lost):
    report = compare([a_request(n) for n in sorted(made)], [a_span(n) for n in reported])
    assert len(report.missing) + len(set(reported) & made) == len(made)
    assert len(report.invented) == sum(n not in made for n in reported)
    assert len(report.invented) + len(report.repeated) + len(set(reported) & made) == len(reported)


# ---- channels ----

STYLES = [
    ("send", "recv"), ("write", "read"), ("bytes", "bytes"), ("cut", "small"), ("writev", "readv"),
    ("sendmsg", "recvmsg"), ("sendmmsg", "recvmmsg"), ("send", "peek"), ("nonblocking", "nonblocking"),
]  # fmt: skip


@pytest.mark.parametrize(("send", "receive"), STYLES)
def test_each_style_moves_every_byte(send, receive):
    data = bytes(i * 7 % 251 for i in range(20_000))
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as one:
        other, _ = listener.accept()
        with other:
            sender, receiver = Channel(one, send=send), Channel(other, receive=receive)

            def talk() -> None:
                sender.send(data)
                one.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=talk)
            thread.start()
            received = receiver.rest()
            thread.join()
    assert received == data


def test_odd_parts_are_the_whole_and_some_are_empty():
    data = bytes(range(200))
    parts = list(odd_parts(data))
    assert b"".join(parts) == data
    assert b"" in parts


@given(
    body=st.binary(max_size=3000), sizes=st.lists(st.integers(1, 500), min_size=1, max_size=4), awkward=st.booleans()
)
@settings(max_examples=30, deadline=None)
def test_chunked_bodies_come_back(body, sizes, awkward):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, tuple(sizes), awkward=awkward)
        )
        response = Channel(other).read_response()
    assert response is not None
    assert (response.body, response.body_bytes) == (body, len(body))
    assert bool(response.trailers) == awkward


def test_a_message_that_breaks_off_is_no_message():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        one.close()
        with pytest.raises(Gone):
            Channel(other).read_response()


# ---- cases, with real processes ----


@pytest.mark.parametrize(
    ("name", "requests"),
    [("plain", 11), ("one-byte-requests", 11), ("sendmmsg-recvmmsg", 11), ("unix", 11), ("pipelining", 50),
     ("chunked", 3), ("expect", 3), ("upgrade", 2), ("connect", 2), ("not-http", 0), ("passed-descriptor", 9)],
)  # fmt: skip
def test_both_sides_of_a_case_tell_the_same(name, requests):
    with traffic.pair(name) as pair:
        outcome = pair.run()
    assert traffic.disagreements(outcome) == []
    assert (len(outcome.server), len(outcome.client)) == (requests, requests)
    assert all(exchange.duration_ns > 0 for exchange in outcome.client)


def test_requests_made_before_the_start_signal_are_marked():
    with traffic.pair("used-before") as pair:
        assert os.path.exists(f"/proc/{pair.server_pid}")
        outcome = pair.run()
    for diary in (outcome.server, outcome.client):
        assert ["before" in exchange.flags for exchange in diary] == [True] * 3 + [False] * 6


def test_a_child_that_serves_is_named_by_its_own_pid():
    with traffic.pair("fork-after-accept") as pair:
        outcome = pair.run()
        root = pair.server_pid
    pids = {exchange.pid for exchange in outcome.server}
    assert len(pids) == 3
    assert root not in pids


def test_broken_connections_are_errors_on_both_sides():
    with traffic.pair("server-closes") as pair:
        outcome = pair.run()
    assert [(e.status, e.error) for e in outcome.client] == [
        (200, ""),
        (0, "peer_closed"),
        (200, ""),
        (200, "peer_closed"),
    ]
    assert [(e.status, e.error) for e in outcome.server] == [
        (200, ""),
        (0, "local_closed"),
        (200, ""),
        (200, "local_closed"),
    ]


def test_an_exchange_goes_over_into_truth_with_its_bare_path():
    exchange = traffic.Exchange("client", 1, "GET", "http://zoo.test:80/items/1?page=2", 200, start_ns=5, end_ns=9)
    assert (exchange.as_truth(0).path, exchange.as_truth(0).duration_ns) == ("/items/1", 4)
    assert traffic.Exchange("client", 1, "CONNECT", "zoo.test:443", 200).path == "zoo.test:443"


def test_every_awkward_case_of_the_foundation_is_there():
    assert CASES.keys() >= {
        "one-byte-requests", "one-byte-responses", "pipelining", "cookies", "chunked", "expect", "sendfile", "sse",
        "upgrade", "head", "server-resets", "client-resets", "opened-before", "fork-after-accept", "passed-descriptor",
    }  # fmt: skip


# ---- the zoo ----


def test_a_program_takes_its_whole_process_group_with_it(tmp_path):
    code = "import os, time; os.fork(); os.write(1, b'up\\n'); time.sleep(60)"
    program = zoo.Program([sys.executable, "-c", code], tmp_path, name="family", pipes=True)
    assert [next(program.lines()), next(program.lines())] == ["up\n", "up\n"]
    tree = zoo.process_tree(program.pid)
    assert len(tree) == 2
    program.stop()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in tree):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_fails_shows_what_it_said(tmp_path):
    program = zoo.Program([sys.executable, "-c", "raise SystemExit('no luck')"], tmp_path, name="unlucky")
    program.process.wait(10)
    assert "unlucky" in str(program.failure("it ended"))
    assert "exit code 1): it ended; its output was:\nno luck" in str(program.failure("it ended"))
    program.stop()


def test_what_is_missing_fails_on_ci(monkeypatch):
    spec = zoo.ClientSpec("ghost", "cpp", ("ghost",), ("/no/such/ghost",))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(zoo.ZooError, match=r"ghost of the zoo lacks /no/such/ghost: run scripts/setup_zoo\.sh"):
        zoo.require(spec)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="lacks"):
        zoo.require(spec)


def test_the_zoo_has_what_the_foundation_asks_for():
    assert len(zoo.SERVERS) == 21
    assert {spec.language for spec in zoo.SERVERS.values()} == {
        "cpp", "go", "java", "nodejs", "php", "python", "ruby", "rust",
    }  # fmt: skip
    for spec in zoo.SERVERS.values():
        assert {"items", "fail", "missing"} <= set(spec.pages) <= set(PAGES)


def test_wrong_answers_are_told():
    requests = [truth.PlannedRequest(0, "POST", "/echo/0", 3, False, 200, True)]
    short = [TrueRequest(0, "POST", "/echo/0", 200, MS, bytes=2)]
    assert zoo.wrong_answers(requests, short, echoes=False) == []
    assert zoo.wrong_answers(requests, short, echoes=True) == [
        "#0 POST /echo/0 -> 200 in 1.00 ms with 2 bytes, expected 3"
    ]
