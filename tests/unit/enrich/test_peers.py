from __future__ import annotations

import numpy as np

from onlooker import semconv
from onlooker.batches import SpanKind, Values
from onlooker.enrich.peers import Peers
from support.request_batches import HTTP_DIMS, a_request, a_service, requests

SHOP = ("10.0.0.1", 8080)
CALLER = ("10.0.0.1", 41000)


def column(batch, values, name):
    at = batch.dim_names.index(name)
    return [values[i] for i in batch.dims[:, at].tolist()]


def a_call(client=1, server=2, caller=CALLER, listener=SHOP):
    """Both rows of one request between two services of this host."""
    return [
        a_request(service=server, kind=SpanKind.SERVER, local=listener, remote=caller),
        a_request(service=client, kind=SpanKind.CLIENT, local=caller, remote=listener),
    ]


def apply(rows, services, stage=None, values=None, **more):
    values = values or Values()
    stage = stage or Peers(values, rng=np.random.default_rng(1))
    return stage.apply(requests(values, rows, **more), services), values, stage


def test_both_ends_of_a_request_name_each_other():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop", namespace="prod")}
    batch, values, _ = apply(a_call(), services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == ["web", "shop"]
    assert column(batch, values, semconv.SERVICE_PEER_NAMESPACE) == [None, "prod"]
    assert batch.dim_names[: len(HTTP_DIMS)] == HTTP_DIMS


def test_what_was_learned_holds_for_later_batches():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop")}
    _, values, stage = apply([a_call()[0]], services)
    batch, _, _ = apply([a_call()[1]], services, stage, values)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == ["shop"]


def test_strangers_have_no_name():
    batch, values, _ = apply([a_request(kind=SpanKind.CLIENT, remote=("93.184.216.34", 443))], {1: a_service(1)})
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == [None]


def test_two_services_at_one_address_are_nobody():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop"), 3: a_service(3, "cart")}
    loopback = ("127.0.0.1", 8080)
    first, second = a_call(server=2, listener=loopback), a_call(server=3, listener=loopback)
    batch, values, stage = apply([*first, *second], services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME)[1::2] == [None, None]
    for server in (2, 3):
        batch, _, _ = apply(a_call(server=server, listener=loopback), services, stage, values)
        assert column(batch, values, semconv.SERVICE_PEER_NAME)[1] is None


def test_instances_of_one_service_may_share_an_address():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop"), 3: a_service(3, "shop")}
    batch, values, _ = apply([*a_call(server=2), *a_call(server=3)], services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME)[1::2] == ["shop", "shop"]


def test_an_address_passes_on_after_a_minute():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop"), 3: a_service(3, "cart")}
    _, values, stage = apply(a_call(server=2), services)
    later = requests(values, a_call(server=3))
    later.end_unix_ns = later.end_unix_ns + 61_000_000_000
    batch = stage.apply(later, services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME)[1] == "cart"


def test_a_service_that_is_gone_has_no_name():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop")}
    _, values, stage = apply(a_call(), services)
    batch, _, _ = apply([a_call()[1]], {1: services[1]}, stage, values)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == [None]


def test_unix_sockets_have_no_peer_by_address():
    services = {1: a_service(1, "web"), 2: a_service(2, "shop")}
    batch, values, _ = apply(a_call(caller=("0.0.0.0", 0), listener=("0.0.0.0", 0)), services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == [None, None]


def test_columns_that_are_there_are_filled_and_not_added():
    dims = (*HTTP_DIMS, semconv.SERVICE_PEER_NAME)
    services = {1: a_service(1, "web"), 2: a_service(2, "shop")}
    rows = a_call()
    rows[0]["dims"] = {semconv.SERVICE_PEER_NAME: "known-before"}
    batch, values, _ = apply(rows, services, dim_names=dims)
    assert batch.dim_names == dims
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == ["known-before", "shop"]


def test_a_missing_server_address_is_the_address_of_the_serving_side():
    no_host = {semconv.SERVER_ADDRESS: None, semconv.SERVER_PORT: None}
    rows = [
        a_request(kind=SpanKind.SERVER, local=SHOP, remote=CALLER, dims=no_host),
        a_request(kind=SpanKind.CLIENT, local=CALLER, remote=("192.0.2.7", 9090), dims=no_host),
        a_request(kind=SpanKind.CLIENT, local=CALLER, remote=("192.0.2.7", 9090)),
    ]
    batch, values, _ = apply(rows, {1: a_service(1)})
    assert column(batch, values, semconv.SERVER_ADDRESS) == ["10.0.0.1", "192.0.2.7", "shop.example"]
    assert column(batch, values, semconv.SERVER_PORT) == [8080, 9090, 8080]


def test_an_empty_batch():
    batch, _, _ = apply([], {})
    assert len(batch) == 0


UNIX = ("0.0.0.0", 0)


def a_unix_call(values, *, span=b"12345678", client=1, server=2, parent=3, connections=(5, 6), rows=(0, 1)):
    """Both rows of one request over a UNIX socket: the server's names the client's span, the kernel joined them."""
    made = [
        a_request(service=server, kind=SpanKind.SERVER, local=UNIX, remote=UNIX),
        a_request(service=client, kind=SpanKind.CLIENT, local=UNIX, remote=UNIX),
    ]
    batch = requests(values, [made[row] for row in rows])
    for at, row in enumerate(rows):
        batch.connection[at] = connections[row]
        if row == 0:
            batch.parent_span_id[at] = np.frombuffer(span, np.uint8)
            batch.parent_source[at] = parent
        else:
            batch.span_id[at] = np.frombuffer(span, np.uint8)
    return batch


def test_both_ends_of_a_unix_socket_name_each_other():
    services = {1: a_service(1, "nginx"), 2: a_service(2, "shop")}
    values = Values()
    stage = Peers(values, rng=np.random.default_rng(1))
    batch = stage.apply(a_unix_call(values), services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == ["nginx", "shop"]
    # the client's row may come with the next batch
    stage.apply(a_unix_call(values, span=b"abcdefgh", rows=(0,), connections=(7, 8)), services)
    batch = stage.apply(a_unix_call(values, span=b"abcdefgh", rows=(1,), connections=(7, 8)), services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == ["shop"]
    # and a request that could not be joined belongs to a connection that was
    batch = stage.apply(a_unix_call(values, span=b"ABCDEFGH", parent=0), services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == ["nginx", "shop"]


def test_a_unix_socket_that_was_never_joined_names_nobody():
    services = {1: a_service(1, "nginx"), 2: a_service(2, "shop")}
    values = Values()
    stage = Peers(values, rng=np.random.default_rng(1))
    batch = stage.apply(a_unix_call(values, parent=1), services)
    assert column(batch, values, semconv.SERVICE_PEER_NAME) == [None, None]
