"""A receiver that is dead, slow, refusing, and back: memory stays, what is lost is counted, and it goes on."""

from __future__ import annotations

import pytest

from support import agent, truth, zoo
from support.otlp_receiver import Misbehaviour, OtlpReceiver

pytestmark = pytest.mark.live

REQUESTS = 20_000
QUEUE_BYTES = 1 << 20
GROWTH_BYTES = 16 << 20


@pytest.mark.parametrize("fault", ["dead", "slow", "refusing"])
def test_a_receiver_that_fails_and_comes_back(place, tmp_path, fault: str) -> None:
    with OtlpReceiver(grpc_port=None) as receiver, zoo.server("c-threads") as server:
        sections = {
            "otel_traces_export": {
                "endpoint": f"{receiver.endpoint()}/v1/traces", "protocol": "http/protobuf", "batch_timeout": "100ms",
                "timeout": "2s", "backoff_initial_interval": "200ms", "backoff_max_interval": "500ms",
                "backoff_max_elapsed_time": "5s",
            },
            "limits": {"span_queue_bytes": QUEUE_BYTES},
        }  # fmt: skip
        configuration = agent.selecting(pids=server.tree(), **sections)
        with agent.running(tmp_path, configuration, prints=False) as onlooker:
            onlooker.wait_watched(server.tree())
            _requests(server, 1000, f"{fault}-before")
            agent.wait_until(lambda: len(receiver.spans()) == 1000, "all spans before the fault are received")
            rss = onlooker.rss_bytes
            match fault:
                case "dead":
                    receiver.refuse()
                case "slow":
                    receiver.always(Misbehaviour(delay_s=30))
                case "refusing":
                    receiver.always(Misbehaviour(status=503))
            _requests(server, REQUESTS, f"{fault}-during")
            agent.wait_until(
                lambda: onlooker.metric("http_server_request_duration_seconds_count") == 1000 + REQUESTS,
                "all requests are counted in the metrics",
            )
            assert onlooker.metric("onlooker_export_queue_bytes") <= QUEUE_BYTES
            if fault != "slow":
                agent.wait_until(lambda: onlooker.metric("onlooker_export_failures_total") > 0, "a failure is counted")
            grown = onlooker.rss_bytes - rss
            assert grown < GROWTH_BYTES
            if fault == "dead":
                receiver.listen()
            receiver.always(None)
            _requests(server, 1000, f"{fault}-after")
            agent.wait_until(
                lambda: sum(f"{fault}-after" in span["attributes"]["url.path"] for span in receiver.spans()) == 1000,
                "all spans behind the fault are received", 40, 0.2,
            )  # fmt: skip
            agent.wait_until(lambda: onlooker.metric("onlooker_export_queue_bytes") == 0, "the queue is empty", 40, 0.2)
            lost = {reason: count for reason, count in onlooker.losses().items() if reason.startswith("traces_")}
            received = len({span["span_id"] for span in receiver.spans()})
            other = set(onlooker.losses()) - set(lost)
        print(f"{fault}: {received} of {REQUESTS + 2000} received, lost {lost}, grown by {grown >> 10} KiB")
        assert other == set()
        assert received + sum(lost.values()) >= REQUESTS + 2000
        # a slow receiver has taken what the sender had given up: at most that is counted twice
        assert fault == "slow" or received + sum(lost.values()) == REQUESTS + 2000


def _requests(server: zoo.Server, count: int, run: str) -> None:
    plan = truth.plan(5, count, pages=("items", "missing"), run=run)
    with zoo.client("c", server.port, plan, connections=4) as client:
        assert zoo.wrong_answers(plan, client.run(), echoes=True) == []
