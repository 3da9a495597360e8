"""Edges of the service graph: who calls whom, as far as one side can tell."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from onlooker import semconv
from onlooker.aggregate.definitions import family_of
from onlooker.batches import AttributeValue, Series, Service, SpanKind, StatusCode

_SERVING: Final = frozenset({int(SpanKind.SERVER), int(SpanKind.CONSUMER)})
_CONNECTION_TYPES: Final = {"db": "database", "messaging": "messaging_system"}


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """Names of peers that nobody knows: ``attributes.rename_unresolved_hosts*``; "" keeps the address."""

    unresolved: str = "unresolved"
    incoming: str = "incoming"
    outgoing: str = "outgoing"
    allow_self_references: bool = False


def edge(
    metric: str, series: Series, service: Service, options: GraphOptions, services: Collection[Service]
) -> dict[str, AttributeValue] | None:
    """The attributes of the edge that a series belongs to, or None if ``metric`` does not count it.

    The side that serves counts requests; a client counts them where the other side is not watched.
    """
    serving = series.kind in _SERVING
    peer = str(series.attributes.get(semconv.SERVICE_PEER_NAME, ""))
    peer_namespace = str(series.attributes.get(semconv.SERVICE_PEER_NAMESPACE, ""))
    watched = bool(peer) and any(s.name == peer and s.namespace == peer_namespace for s in services)
    if metric in (
        semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_TOTAL,
        semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_FAILED_TOTAL,
    ):
        if not serving and watched:
            return None
        failed = metric == semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_FAILED_TOTAL
        if failed and series.status != StatusCode.ERROR:
            return None
    name = peer or _unresolved(series, options, serving=serving)
    if name == service.name and peer_namespace == service.namespace and not options.allow_self_references:
        return None
    here, there = (service.name, service.namespace), (name, peer_namespace)
    (client, client_namespace), (server, server_namespace) = (there, here) if serving else (here, there)
    attributes: dict[str, AttributeValue] = {
        semconv.CLIENT: client,
        semconv.CLIENT_SERVICE_NAMESPACE: client_namespace,
        semconv.SERVER: server,
        semconv.SERVER_SERVICE_NAMESPACE: server_namespace,
        semconv.SOURCE: "onlooker",
    }
    kind = None if serving else _CONNECTION_TYPES.get(family_of(series.protocol, series.attributes))
    if kind is None and not watched:
        kind = "virtual_node"
    if kind is not None:
        attributes[semconv.CONNECTION_TYPE] = kind
    return attributes


def _unresolved(series: Series, options: GraphOptions, *, serving: bool) -> str:
    if serving:
        return options.incoming or options.unresolved
    address = str(series.attributes.get(semconv.SERVER_ADDRESS, ""))
    try:
        ipaddress.ip_address(address)
    except ValueError:
        if address:
            return address
    return options.outgoing or address or options.unresolved
