"""HTTP/2: one span for each request with its own path, status and time, however many streams run at once."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from support import truth, zoo, zoo_http2
from support.agent import Agent, wait_until

pytestmark = pytest.mark.live

REQUESTS = 300
SLACK_NS = 150_000_000
GETS = ("items", "fail", "missing", "big")
"""Pages that h2load can ask for."""


def wait_probed(onlooker: Agent, processes: int) -> None:
    """Wait until so many processes have probes on their TLS libraries."""
    wait_until(lambda: onlooker.metric("onlooker_tls_processes") >= processes, f"{processes} probed", 40)


def check(made: list[truth.TrueRequest], spans: list[dict[str, object]]) -> None:
    """Each request has its span: its path, method, status, and a time inside the client's own."""
    report = truth.compare(made, spans)
    report.check(min_share=0)
    starts = {request.path: request for request in made}
    for span in spans:
        true = starts[str(span["path"]).partition("?")[0]]
        assert span["attributes"].get("network.protocol.version") == "2", (true, span)  # type: ignore[attr-defined]
        assert span["duration_ns"] <= true.duration_ns + SLACK_NS, (true, span)
        if true.path.startswith("/sleep/"):
            least = int(true.path.split("/")[2]) - 1
            assert span["duration_ns"] >= least * 1_000_000, (true, span)


def run(onlooker: Agent, server: zoo.Server, client: str, *, seed: int, streams: int, tls: bool = False) -> None:
    """Let a client carry a plan out over one connection; check the spans of both ends."""
    # curl 7.88 turns in circles when a server answers by HTTP/2 before it has taken the whole body
    unwanted = {"echo_chunked", "echo"} if client == "curl" else {"echo_chunked"}
    pages = tuple(page for page in server.spec.pages if page not in unwanted)
    plan = truth.plan(seed, REQUESTS, pages=pages, run=f"{client}-{streams}-{server.spec.name}")
    spec = zoo_http2.client(client, tls=tls)
    with zoo.client(spec, server.port, plan, connections=streams if spec.concurrent else 1) as started:
        pids = zoo.process_tree(started.pid)
        onlooker.wait_watched([*server.tree(), *pids])
        if tls:
            wait_probed(onlooker, len(server.tree()) + len(pids))
        onlooker.spans()
        made = started.run()
    assert zoo.wrong_answers(plan, made, echoes=server.spec.echoes) == []
    spans = onlooker.spans(expected=2 * REQUESTS)
    for kind, tree in (("server", server.tree()), ("client", pids)):
        seen = truth.select(spans, kind=kind, pids=tree)
        print(f"{server.spec.name} {client} x{streams} {kind}: {len(seen)} spans of {REQUESTS} requests")
        check(made, seen)
    assert len(spans) == 2 * REQUESTS


@pytest.mark.parametrize("name", list(zoo_http2.SERVERS))
def test_a_server_is_seen_whole_at_a_hundred_streams(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_http2.SERVERS[name]) as server:
        run(onlooker, server, "go", seed=1, streams=100)
        load(onlooker, server)


def load(onlooker: Agent, server: zoo.Server, *, tls: bool = False) -> None:
    """``h2load -c 10 -m 100``: as many spans as requests, on both ends, each with the status of its path."""
    plan = [one for one in truth.plan(5, 400, pages=GETS, run=f"h2load-{tls}") if one.method == "GET"][:200]
    requests = 10 * len(plan)
    onlooker.spans()
    with tempfile.TemporaryDirectory() as directory:
        loading = zoo_http2.h2load(
            server.port, plan, Path(directory), connections=10, streams=100, requests=requests, tls=tls
        )
        with loading as program:
            done, _ = zoo_http2.answered(program)
    assert done == requests
    # the client ends as soon as it has its answers: what it did is seen if it lived long enough to be noticed
    spans = truth.select(onlooker.spans(expected=requests, kind="server"), kind="server", pids=server.tree())
    told = Counter((str(span["path"]), span["method"], span["status"]) for span in spans)
    print(f"{server.spec.name} h2load -c 10 -m 100: {len(spans) / requests:.3f} spans a request")
    assert told == {(one.path, "GET", one.status): 10 for one in plan}


@pytest.mark.parametrize("name", zoo_http2.CLIENTS)
def test_a_client_is_seen_whole(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_http2.SERVERS["node"]) as server:
        # httpx asks for one thing at a time on a connection
        run(onlooker, server, name, seed=2, streams=100 if name in ("go", "node") else 1)


@pytest.mark.parametrize("name", list(zoo_http2.OVER_TLS))
def test_a_server_is_seen_through_its_encryption(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_http2.OVER_TLS[name]) as server:
        client = {"nginx": "curl", "hypercorn": "httpx", "go": "node"}.get(name, "go")
        run(onlooker, server, client, seed=3, streams=1 if client in ("curl", "httpx") else 100, tls=True)


def test_a_connection_upgraded_from_http1_is_followed(onlooker: Agent) -> None:
    client = "curl-upgrade"
    onlooker.wait_unwatched()
    with zoo.server(zoo_http2.SERVERS["hypercorn"]) as server:
        plan = truth.plan(4, 120, pages=("items", "fail", "missing", "big", "sleep"), run=f"{client}-upgrade")
        with zoo.client(zoo_http2.client(client), server.port, plan) as started:
            pids = zoo.process_tree(started.pid)
            onlooker.wait_watched([*server.tree(), *pids])
            onlooker.spans()
            made = started.run()
        assert zoo.wrong_answers(plan, made, echoes=True) == []
        spans = onlooker.spans(expected=2 * len(plan))
        for kind, tree in (("server", server.tree()), ("client", pids)):
            seen = truth.select(spans, kind=kind, pids=tree)
            print(f"{client} {kind}: {len(seen)} spans of {len(plan)} requests")
            check(made, seen)


@pytest.mark.parametrize("table", [0, 4096, 65536])
def test_unusual_frames(onlooker: Agent, table: int) -> None:
    """Padding, CONTINUATION, tables of any size, resets of either side, refused streams."""
    onlooker.wait_unwatched()
    with (
        zoo.server(zoo_http2.node_with_table(table)) as server,
        tempfile.TemporaryDirectory() as text,
    ):
        script = Path(text) / "http2_odd_client.py"
        script.write_text((zoo.SOURCES / "python/http2_odd_client.py").read_text())
        client = zoo.Program(
            [zoo.PYTHON, str(script), str(server.port), str(table), "220"], Path(text), name="odd", pipes=True
        )
        try:
            assert next(client.lines()) == "ready\n"
            onlooker.wait_watched([*server.tree(), client.pid])
            onlooker.spans()
            client.tell("go\n")
            lines = [json.loads(line) for line in client.lines()]
        finally:
            client.stop()
        assert len(lines) == 220, client.log()
        spans = onlooker.spans(expected=440)
        for kind, pids in (("server", server.tree()), ("client", [client.pid])):
            seen = {str(span["path"]): span for span in truth.select(spans, kind=kind, pids=pids)}
            wrong = []
            for line in lines:
                span = seen.pop(line["path"], None)
                told = span and (span["method"], span["status"] or 0, span["attributes"].get("error.type", ""))
                failed = line["status"] >= (400 if kind == "client" else 500)
                error = line["error"] or (str(line["status"]) if failed else "")
                if told != (line["method"], line["status"], error):
                    wrong.append((line, told))
            print(f"table of {table} bytes, {kind}: {len(lines) - len(wrong)} of {len(lines)} right")
            assert not wrong, wrong[:3]
            assert not seen
        assert len(spans) == 440


def test_an_agent_that_comes_late_says_nothing_wrong(place: object, tmp_path: Path) -> None:
    """Attached in the middle: what is said is right, and the tables repair themselves."""
    from support import agent

    with zoo.server(zoo_http2.SERVERS["node"]) as server:
        plan = truth.plan(6, 6000, pages=("items", "fail", "missing"), run="late")
        with zoo.client(zoo_http2.client("httpx"), server.port, plan) as client:
            import concurrent.futures

            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                running = pool.submit(client.run)
                time.sleep(1)
                with agent.running(tmp_path, agent.selecting(pids=server.tree())) as late:
                    assert not running.done(), "the load ended before the agent was there"
                    made = running.result(240)
                    spans = late.spans(timeout_s=30)
        known = [span for span in spans if span["path"]]
        report = truth.compare(made, known)
        assert (report.invented, report.repeated, report.wrong) == ([], [], [])
        print(f"late: {len(spans)} of {len(made)} requests seen, {len(known)} with their path")
        assert spans
