"""gRPC: every call of every kind, exactly once, with its own status, times and messages; from both ends."""

from __future__ import annotations

import pytest

from support import truth, zoo, zoo_grpc
from support.agent import Agent, wait_until

pytestmark = pytest.mark.live

CALLS = 150


def run(onlooker: Agent, server: zoo.Server, client: str, *, seed: int, concurrency: int, tls: bool = False) -> None:
    """Let a client carry a plan out, and hold the spans of both ends against it."""
    calls = zoo_grpc.plan(seed, CALLS)
    with zoo_grpc.client(client, server.port, calls, concurrency=concurrency, tls=tls) as started:
        pids = zoo.process_tree(started.pid)
        onlooker.wait_watched([*server.tree(), *pids])
        if tls:
            wait_until(lambda: onlooker.metric("onlooker_tls_processes") >= 2, "both ends are looked into", 40)
        onlooker.spans()
        made = started.run()
    assert not (wrong := zoo_grpc.wrong_answers(calls, made)), "\n".join(wrong[:12])
    spans = onlooker.spans(expected=2 * CALLS)
    problems = []
    for kind, tree in (("client", pids), ("server", server.tree())):
        seen = truth.select(spans, kind=kind, pids=tree)
        told = zoo_grpc.compare(calls, made, seen, kind=kind, lenient=server.spec.language == "rust")
        print(f"{server.spec.name} {client} x{concurrency} {kind}: {CALLS} calls, {len(told)} differences")
        problems += told
    assert not problems, "\n".join(problems[:12])
    assert len(spans) == 2 * CALLS


@pytest.mark.parametrize("name", list(zoo_grpc.SERVERS))
def test_a_server_is_seen_whole(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_grpc.SERVERS[name]) as server:
        for seed, concurrency in enumerate((1, 20)):
            run(onlooker, server, "go", seed=seed, concurrency=concurrency)


@pytest.mark.parametrize("name", [name for name in zoo_grpc.CLIENTS if name != "go"])
def test_a_client_is_seen_whole(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_grpc.SERVERS["go"]) as server:
        for seed, concurrency in enumerate((1, 20), 10):
            run(onlooker, server, name, seed=seed, concurrency=concurrency)


@pytest.mark.parametrize("name", ["go", "node"])
def test_a_call_is_seen_through_its_encryption(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_grpc.over_tls(name)) as server:
        run(onlooker, server, "node" if name == "go" else "go", seed=20, concurrency=8, tls=True)
