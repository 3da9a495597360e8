"""Real clients: exactly the requests that they made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import truth, zoo
from support.agent import Agent

pytestmark = pytest.mark.live

REQUESTS = 1000
SEND_AGAIN = ("curl", "java-httpclient")


@pytest.fixture(scope="module")
def server(place: object) -> Iterator[zoo.Server]:
    with zoo.server("c-threads") as running:
        yield running


@pytest.mark.parametrize(("name", "mode"), [(spec.name, mode) for spec in zoo.CLIENTS.values() for mode in spec.modes])
def test_a_client_is_seen_as_it_is(onlooker: Agent, server: zoo.Server, name: str, mode: str) -> None:
    pages = server.spec.pages
    if (name, mode) == ("java-httpclient", "fresh"):
        # Watched or not, it fails one of a thousand POSTs, sent on a connection that is closing; it repeats GETs only.
        pages = tuple(page for page in pages if not page.startswith("echo"))
    plan = truth.plan(len(name), REQUESTS, pages=pages, run=f"{mode}-{name}")
    with zoo.client(name, server.port, plan, keep_alive=mode == "keepalive") as client:
        onlooker.wait_watched([*server.tree(), client.pid])
        made = client.run()
    assert zoo.wrong_answers(plan, made, echoes=True) == []
    spans = onlooker.spans(expected=REQUESTS, kind="client")
    # some may send on a connection that the server is closing, and again on another when it is reset: both took place
    answered = {span["path"] for span in spans if span["kind"] == "client" and span["status"]}
    again = [span for span in spans if span["kind"] == "client" and not span["status"] and span["path"] in answered]
    assert not again or (name in SEND_AGAIN and len(again) < REQUESTS // 20), again[:3]
    spans = [span for span in spans if span not in again]
    for kind in ("client", "server"):
        # a library's clock counts its own work: only the counts, the contents and the order of the times are judged
        report = truth.compare(made, truth.select(spans, kind=kind), same_clock=True)
        print(f"{name} {mode}, {kind}: {report}")
        report.check(min_share=0)
        longer = [f"{true} {span}" for true, span in report.late if span["duration_ns"] > true.duration_ns]
        assert len(longer) <= REQUESTS // 100, longer[:3]
