"""Real servers: exactly the requests that were made, each with its method, path, status and duration."""

from __future__ import annotations

import pytest

from support import truth, zoo
from support.agent import Agent
from support.scheduling import undisturbed

pytestmark = pytest.mark.live

REQUESTS = 1000


@pytest.mark.parametrize("name", list(zoo.SERVERS))
def test_a_server_is_seen_as_it_is(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(name) as server:
        tree = server.tree()
        onlooker.wait_watched(_all(server))
        onlooker.spans()  # of the probes of the test's own start
        for seed, mode in enumerate(("keepalive", "fresh")):
            plan = truth.plan(seed, REQUESTS, pages=server.spec.pages, run=f"{mode}-{name}")
            with (
                zoo.client("c", server.port, plan, keep_alive=mode == "keepalive") as client,
                undisturbed([*_all(server), client.pid]),
            ):
                onlooker.wait_watched([*_all(server), client.pid])
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=server.spec.echoes) == []
            behind_it = REQUESTS if name == "nginx-gunicorn-unix" else 0
            spans = onlooker.spans(expected=REQUESTS + behind_it, kind="server")
            served = truth.select(spans, kind="server", pids={*tree, *server.tree()})
            report = truth.compare(made, served, same_clock=True)
            watched = int(onlooker.metric("onlooker_instrumented_processes"))
            print(f"{name} {mode}: {report}; {watched} processes are watched, lost {onlooker.losses()}")
            report.check()
            if name == "nginx-gunicorn-unix":
                behind = truth.select(spans, kind="server", pids=set(server.tree("gunicorn")))
                report = truth.compare(made, behind)
                print(f"{name} {mode}, behind nginx: {report}")
                report.check(min_share=0)  # the client's clock does not time what is behind nginx
                assert {span["local"] for span in behind} == {"unix"}


def _all(server: zoo.Server) -> list[int]:
    return [pid for program in server.pids for pid in server.tree(program)]
