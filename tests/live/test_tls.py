"""HTTPS: exactly the requests that were made, with path, status and addresses, whatever library encrypts them."""

from __future__ import annotations

import pytest

from support import truth, zoo, zoo_tls
from support.agent import Agent, wait_until

pytestmark = pytest.mark.live

REQUESTS = 1000
# A server that closes without saying so is asked once more by curl itself: the spans tell of both, the plan of one.
MODES = {"curl": ("keepalive",)}


def wait_probed(onlooker: Agent, processes: int) -> None:
    """Wait until so many processes have probes on their TLS libraries."""
    wait_until(
        lambda: onlooker.metric("onlooker_tls_processes") >= processes,
        f"{processes} processes with probes; {onlooker.log()[-500:]}",
    )


def check(made: list[truth.TrueRequest], spans: list[dict[str, object]]) -> truth.Report:
    """One span for each request, as it was.

    A library's clock counts handshakes and its own work: a span may be shorter than what the client measured, not longer.
    """
    report = truth.compare(made, spans)
    report.check(min_share=0)
    longer = [f"{true} {span}" for true, span in report.late if span["duration_ns"] > true.duration_ns]
    assert len(longer) <= len(made) // 100, longer[:3]
    return report


def check_addresses(spans: list[dict[str, object]], port: int) -> None:
    """Every span knows both ends, and that they spoke TLS."""
    for span in spans:
        ours, theirs = ("local", "remote") if span["kind"] == "server" else ("remote", "local")
        assert span[ours] == f"127.0.0.1:{port}", span
        assert str(span[theirs]).startswith("127.0.0.1:"), span
        assert span["attributes"]["url.scheme"] == "https", span  # type: ignore[index]


@pytest.mark.parametrize("name", list(zoo_tls.SERVERS))
def test_a_server_is_seen_through_its_encryption(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_tls.SERVERS[name]) as server:
        tree = server.tree()
        onlooker.wait_watched(tree)
        wait_probed(onlooker, len(server.tree()))
        onlooker.spans()
        for seed, mode in enumerate(("keepalive", "fresh")):
            count = REQUESTS if mode == "keepalive" else REQUESTS // 4
            plan = truth.plan(seed, count, pages=server.spec.pages, run=f"{mode}-{name}")
            with zoo.client(
                zoo_tls.client("python-requests"), server.port, plan, keep_alive=mode == "keepalive"
            ) as client:
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=server.spec.echoes) == []
            spans = onlooker.spans(expected=count)
            served = truth.select(spans, kind="server", pids={*tree, *server.tree()})
            print(f"{name} {mode}: {check(made, served)}")
            check_addresses(served, server.port)
            assert len(served) == len(truth.select(spans, pids={*tree, *server.tree()}))


@pytest.mark.parametrize("name", zoo_tls.CLIENTS)
def test_a_client_is_seen_before_its_encryption(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_tls.SERVERS["python-http-server"]) as server:
        onlooker.wait_watched(server.tree())
        for seed, mode in enumerate(MODES.get(name, zoo.CLIENTS[name].modes)):
            count = REQUESTS if mode == "keepalive" else REQUESTS // 4
            plan = truth.plan(seed + 10, count, pages=server.spec.pages, run=f"{mode}-{name}")
            with zoo.client(zoo_tls.client(name), server.port, plan, keep_alive=mode == "keepalive") as client:
                pids = zoo.process_tree(client.pid)
                onlooker.wait_watched([*server.tree(), *pids])
                wait_probed(onlooker, 1 + len(pids))
                onlooker.spans()
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=True) == []
            spans = onlooker.spans(expected=2 * count)
            sent = truth.select(spans, kind="client", pids=pids)
            print(f"{name} {mode}: {check(made, sent)}")
            check_addresses(sent, server.port)
            served = truth.select(spans, kind="server", pids=server.tree())
            check(made, served)
            parents = {span["span_id"] for span in sent}
            alone = [span for span in served if span["parent_span_id"] not in parents]
            print(f"{name} {mode}: {count - len(alone)} of {count} requests joined with their server's")
            assert alone == []
