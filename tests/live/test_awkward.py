"""The awkward cases of HTTP/1, each side of the connection held against its own diary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from support import agent, traffic, truth, zoo
from support.agent import Agent
from support.cases import CASES
from support.traffic import Exchange

pytestmark = pytest.mark.live

OLDER = ("opened-before", "used-before")
MS = 1_000_000
LONGEST_KEPT = 4000


@pytest.mark.parametrize("name", [name for name in CASES if name not in OLDER])
def test_each_request_of_both_sides_is_seen(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    onlooker.spans()
    with traffic.pair(name) as pair:
        onlooker.wait_watched([pair.server_pid, pair.client_pid])
        outcome = pair.run()
    check(onlooker, outcome)


@pytest.mark.parametrize("name", OLDER)
def test_a_connection_that_is_older_than_the_agent(place: object, tmp_path, name: str) -> None:
    with traffic.pair(name) as pair:
        configuration = agent.selecting(pids=[pair.server_pid, pair.client_pid])
        with agent.running(tmp_path, configuration) as onlooker:
            onlooker.wait_watched([pair.server_pid, pair.client_pid])
            check(onlooker, pair.run())
            assert onlooker.losses() == {}


def check(onlooker: Agent, outcome: traffic.Outcome) -> None:
    expected = [one for one in (*outcome.server, *outcome.client) if "before" not in one.flags]
    spans = onlooker.spans(expected=len(expected), settle_s=1.5)
    problems = [
        *differences("server", [one for one in outcome.server if one in expected], spans),
        *differences("client", [one for one in outcome.client if one in expected], spans),
    ]
    assert not problems, "\n".join(problems)


def differences(role: str, diary: Sequence[Exchange], spans: Sequence[dict[str, object]]) -> list[str]:
    """What the spans of one side say otherwise than its diary."""
    found = []
    # an authority is no path
    diary = [replace(one, target="") if one.method == "CONNECT" else one for one in diary]
    of_role = [span for span in spans if span["kind"] == role]
    rest = list(of_role)
    for exchange in diary:
        same = [span for span in rest if is_path(str(span["path"]), exchange.path) and span["pid"] == exchange.pid]
        if not same:
            elsewhere = [span["pid"] for span in rest if span["path"] == exchange.path]
            found.append(f"{role}: no span for {short(exchange)} of pid {exchange.pid} (others' pids: {elsewhere})")
            continue
        rest.remove(same[0])
        found += [f"{role} {short(exchange)}: {what}" for what in wrong(exchange, same[0])]
    found += [
        f"{role}: a span too many: {span['method']} {str(span['path'])[:80]} -> {span['status']} {span['error']} "
        f"of pid {span['pid']}"
        for span in rest
    ]
    return found


def is_path(path: str, target: str) -> bool:
    """Whether this is the target's path, of which a record holds four thousand bytes at least."""
    return path == target or (len(path) >= LONGEST_KEPT and target.startswith(path))


def short(exchange: Exchange) -> str:
    return f"{exchange.method} {exchange.target[:60]} -> {exchange.status} {exchange.error}"


def wrong(exchange: Exchange, span: dict[str, object]) -> list[str]:
    found = []
    if span["method"] != exchange.method:
        found.append(f"method {span['method']}")
    if span["status"] != exchange.status:
        found.append(f"status {span['status']}")
    if span["error"] not in exchange.error.split("|"):
        found.append(f"error {span['error']!r}, expected {exchange.error!r}")
    # what a broken connection carried is a matter of when one looks; so is what an early answer left unread
    if not exchange.error and "early" not in exchange.flags:
        for name, bytes_ in (("request_bytes", exchange.request_bytes), ("response_bytes", exchange.response_bytes)):
            if bytes_ and span[name] != bytes_:
                found.append(f"{name} {span[name]}, expected {bytes_}")
    if exchange.traceparent:
        _, trace_id, parent, flags = exchange.traceparent.split("-")
        if (span["trace_id"], span["parent_span_id"], span["trace_flags"]) != (trace_id, parent, int(flags, 16)):
            found.append(f"trace {span['trace_id']} below {span['parent_span_id']!r}, expected {exchange.traceparent}")
    tolerance = max(exchange.duration_ns // 50, 20 * MS)
    if abs(int(span["duration_ns"]) - exchange.duration_ns) > tolerance:
        found.append(f"took {int(span['duration_ns']) / MS:.1f} ms, expected {exchange.duration_ns / MS:.1f}")
    if exchange.first_byte_ns and span["first_byte_ns"]:
        first = exchange.first_byte_ns - exchange.start_ns
        if abs(int(span["first_byte_ns"]) - first) > max(first // 50, 20 * MS):
            found.append(f"first byte after {int(span['first_byte_ns']) / MS:.1f} ms, expected {first / MS:.1f}")
    return found


def test_waiting_for_a_busy_server_is_part_of_the_request(onlooker: Agent) -> None:
    onlooker.wait_unwatched()
    with zoo.server("php-builtin") as server:  # one at a time: the others wait to be accepted
        onlooker.wait_watched(server.tree())
        onlooker.spans()
        plan = truth.plan(1, 40, pages=("sleep",), run="waiting")
        with zoo.client("c", server.port, plan, keep_alive=False, connections=4) as client:
            onlooker.wait_watched([*server.tree(), client.pid])
            made = client.run()
        served = truth.select(onlooker.spans(expected=len(plan), kind="server"), kind="server", pids=server.tree())
    asked_ms = [int(one.path.split("/")[2]) for one in plan]
    waited = [one.duration_ns / MS - asked for one, asked in zip(made, asked_ms, strict=True)]
    assert max(waited) > 10  # some did wait
    report = truth.compare(made, served, duration_abs_ms=20, same_clock=True)
    print(f"waited {max(waited):.0f} ms at most; {report}")
    report.check()
