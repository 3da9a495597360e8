from __future__ import annotations

import collections

import numpy as np
import pytest

from onlooker import semconv
from onlooker.aggregate.aggregator import AggregateOptions, Aggregator
from onlooker.aggregate.graph import GraphOptions
from onlooker.batches import SpanKind, Values
from support.request_batches import HTTP_DIMS, a_request, a_service, identities_of, requests

DIMS = (*HTTP_DIMS, semconv.SERVICE_PEER_NAME, semconv.SERVICE_PEER_NAMESPACE, semconv.DB_SYSTEM_NAME)
TOTAL = "traces_service_graph_request_total"
FAILED = "traces_service_graph_request_failed_total"


def edges(rows, **options):
    values = Values()
    identities = identities_of(a_service(1, "web"), a_service(2, "shop", namespace="prod"))
    aggregator = Aggregator(
        AggregateOptions(features=frozenset({"application_service_graph"}), graph=GraphOptions(**options)),
        identities,
        values,
        rng=np.random.default_rng(1),
        clock_unix_ns=lambda: 1_700_000_000_000_000_000,
    )
    aggregator.observe(requests(values, rows, dim_names=DIMS))
    found = collections.defaultdict(collections.Counter)
    for metric in aggregator.snapshot().metrics:
        if metric.name.startswith("traces_service_graph"):
            for point in metric.points:
                a = point.attributes
                assert a["source"] == "onlooker"
                key = (a["client"], a["server"], a.get("connection_type"))
                found[metric.name][key] += getattr(point, "value", None) or getattr(point, "count", 0)
    return {name: dict(counter) for name, counter in found.items()}


def server(peer=None, **more):
    return a_request(service=2, kind=SpanKind.SERVER, dims={semconv.SERVICE_PEER_NAME: peer}, **more)


def client(peer=None, namespace="prod", **more):
    dims = {
        semconv.SERVICE_PEER_NAME: peer,
        semconv.SERVICE_PEER_NAMESPACE: namespace if peer else None,
        **more.pop("dims", {}),
    }
    return a_request(service=1, kind=SpanKind.CLIENT, dims=dims, **more)


def test_a_call_between_two_watched_services_counts_once():
    found = edges([server("web"), client("shop")])
    assert found == {
        TOTAL: {("web", "shop", None): 1},
        "traces_service_graph_request_server": {("web", "shop", None): 1},
        "traces_service_graph_request_client": {("web", "shop", None): 1},
    }


def test_a_server_counts_failures():
    assert edges([server("web", code=500), server("web")])[FAILED] == {("web", "shop", None): 1}


def test_strangers_have_the_configured_names():
    found = edges([server(), client(dims={semconv.SERVER_ADDRESS: "192.0.2.1"}), client()])
    assert found[TOTAL] == {
        ("incoming", "shop", "virtual_node"): 1,
        ("web", "outgoing", "virtual_node"): 1,
        ("web", "shop.example", "virtual_node"): 1,
    }
    found = edges([client(dims={semconv.SERVER_ADDRESS: "192.0.2.1"})], outgoing="")
    assert found[TOTAL] == {("web", "192.0.2.1", "virtual_node"): 1}


def test_databases_are_a_connection_type():
    row = client(protocol=3, dims={semconv.DB_SYSTEM_NAME: "postgresql", semconv.SERVER_ADDRESS: "db.internal"})
    assert edges([row])[TOTAL] == {("web", "db.internal", "database"): 1}


@pytest.mark.parametrize(("allowed", "count"), [(False, 0), (True, 1)])
def test_references_to_oneself(allowed, count):
    found = edges([client("web", namespace="")], allow_self_references=allowed)
    assert sum(found.get("traces_service_graph_request_client", {}).values()) == count


def test_a_peer_with_a_name_that_is_not_watched_is_counted_by_its_client():
    assert edges([client("legacy", namespace="")])[TOTAL] == {("web", "legacy", "virtual_node"): 1}
