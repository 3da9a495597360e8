"""Parents: right, or none.  A wrong one is a failure, an orphan is counted."""

from __future__ import annotations

import http.client
from collections import Counter

import pytest

from support import truth, zoo
from support.agent import Agent

pytestmark = pytest.mark.live

REQUESTS = 300
SERVERS = (
    "flask-gunicorn-sync", "flask-gunicorn-gthread", "fastapi-uvicorn", "aiohttp", "node-http", "go-net-http",
    "java-httpserver", "rust-hyper", "c-threads",
)  # fmt: skip
HOPS = (("proxy server", "client"), ("proxy client", "proxy server"), ("back server", "proxy client"))


@pytest.mark.parametrize("name", SERVERS)
def test_the_client_of_the_same_host_is_the_parent(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    onlooker.spans()
    with zoo.server(name) as server:
        plan = truth.plan(11, REQUESTS, pages=("items", "echo", "sleep", "fail"), run=f"peer-{name}")
        with zoo.client("c", server.port, plan, connections=4) as client:
            onlooker.wait_watched([*server.tree(), client.pid])
            client.run()
        spans = onlooker.spans(expected=2 * REQUESTS)
    clients = {span["path"]: span for span in spans if span["kind"] == "client"}
    found: Counter[str] = Counter()
    for span in spans:
        if span["kind"] == "server" and span["path"] in clients:
            peer = clients[span["path"]]
            right = (span["parent_span_id"], span["trace_id"]) == (peer["span_id"], peer["trace_id"])
            found["right" if right else "orphan" if not span["parent_span_id"] else "wrong"] += 1
    print(f"{name}: {dict(found)}")
    assert found["wrong"] == 0
    assert found["right"] == REQUESTS


def test_a_traceparent_is_the_parent(onlooker: Agent) -> None:
    onlooker.wait_unwatched()
    onlooker.spans()
    with zoo.server("c-threads") as server:
        onlooker.wait_watched(server.tree())
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for i in range(1, 50):
            header = {"traceparent": f"00-{i:032x}-{i:016x}-{i % 2:02x}"}
            connection.request("GET", f"/items/given-{i}", headers=header)
            connection.getresponse().read()
        connection.close()
        spans = onlooker.spans(expected=25, kind="server")
    got = {span["path"]: (span["trace_id"], span["parent_span_id"], span["trace_flags"]) for span in spans}
    # what its parent has not sampled is no span (parentbased_always_on)
    assert got == {f"/items/given-{i}": (f"{i:032x}", f"{i:016x}", 1) for i in range(1, 50, 2)}


@pytest.mark.parametrize("connections", [1, 4])
def test_a_chain_over_a_proxy(onlooker: Agent, connections: int) -> None:
    """From the client through nginx, an event loop, over a UNIX socket to gunicorn."""
    onlooker.wait_unwatched()
    onlooker.spans()
    with zoo.server("nginx-gunicorn-unix") as server:
        plan = truth.plan(12, REQUESTS, pages=("items", "sleep", "missing"), run=f"chain-{connections}")
        with zoo.client("c", server.port, plan, connections=connections) as client:
            onlooker.wait_watched([*(pid for part in server.pids for pid in server.tree(part)), client.pid])
            client.run()
        spans = onlooker.spans(expected=4 * REQUESTS)
        front = set(server.tree("nginx"))
    by_path: dict[str, dict[str, dict[str, object]]] = {}
    for span in spans:
        hop = ("proxy " if span["pid"] in front else "back " if span["local"] == "unix" else "") + span["kind"]
        by_path.setdefault(span["path"], {})[hop] = span
    found: Counter[str] = Counter()
    for request in plan:
        hops = by_path[request.path]
        for hop, parent in (
            ("proxy server", "client"),
            ("proxy client", "proxy server"),
            ("back server", "proxy client"),
        ):
            above = hops[hop]["parent_span_id"]
            right = above == hops[parent]["span_id"]
            found[f"{hop}: {'right' if right else 'orphan' if not above else 'wrong'}"] += 1
    print(f"{connections} connections: {dict(found)}")
    assert not [what for what in found if what.endswith("wrong")]
    assert found["proxy server: right"] == REQUESTS
    assert found["back server: right"] == REQUESTS
    if connections == 1:  # one request at a time: the event loop has no choice
        assert found["proxy client: right"] == REQUESTS
