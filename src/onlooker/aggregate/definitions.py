"""Every metric of requests, as a table: from which requests, of which measure, with which attributes.

Nothing else in this package knows a protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from onlooker import semconv
from onlooker.batches import AttributeValue, SpanKind

NS: Final = 1_000_000_000

DURATION_BOUNDS: Final = (0.0, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
SIZE_BOUNDS: Final = (0.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
GEN_AI_DURATION_BOUNDS: Final = tuple(0.01 * 2**n for n in range(14))
GEN_AI_TOKEN_BOUNDS: Final = tuple(float(4**n) for n in range(14))


class Measure(enum.Enum):
    """What is summed over a series."""

    CALLS = "calls"
    DURATION = "duration"
    REQUEST_SIZE = "request_size"
    RESPONSE_SIZE = "response_size"
    GEN_AI_DURATION = "gen_ai_duration"
    GEN_AI_INPUT_TOKENS = "gen_ai_input_tokens"
    GEN_AI_OUTPUT_TOKENS = "gen_ai_output_tokens"


IN_NS: Final = frozenset({Measure.DURATION, Measure.GEN_AI_DURATION})
"""Measures kept as int64 ns and exported in seconds."""


class Shape(enum.Enum):
    """Where the attributes of a point come from."""

    ATTRIBUTES = "attributes"  # the dims of the series, as selected
    SPAN = "span"  # name, kind and status of the span
    GRAPH = "graph"  # the two ends


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        feature: Of ``metrics.features``; several with ``|``.
        family: Of `family_of`; "" takes all.
        kinds: Span kinds that count.
        instrumentations: Of ``instrumentations``; empty: always on.
        histogram: False: a counter, of calls or of the sum of the measure.
        attributes: On by default.
        optional: On when selected.
        constant: Attributes that every point has.
        section: Name in ``attributes.select`` where it is not the metric's own.
    """

    name: str
    unit: str
    description: str
    measure: Measure
    family: str
    kinds: frozenset[int]
    feature: str = "application"
    instrumentations: frozenset[str] = frozenset()
    histogram: bool = True
    shape: Shape = Shape.ATTRIBUTES
    attributes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    constant: tuple[tuple[str, AttributeValue], ...] = ()
    section: str = ""


_SERVER: Final = frozenset({int(SpanKind.SERVER)})
_CLIENT: Final = frozenset({int(SpanKind.CLIENT)})
_PUBLISH: Final = frozenset({int(SpanKind.PRODUCER), int(SpanKind.CLIENT)})
_PROCESS: Final = frozenset({int(SpanKind.CONSUMER), int(SpanKind.SERVER)})
_ALL: Final = frozenset({int(kind) for kind in SpanKind})

_HTTP: Final = frozenset({"http"})
_RPC: Final = frozenset({"grpc", "sunrpc"})
_DB: Final = frozenset({"sql", "redis", "mongo", "memcached", "couchbase", "aerospike"})
_MESSAGING: Final = frozenset({"kafka", "mqtt", "nats", "amqp"})

_HTTP_ATTRIBUTES: Final = (
    semconv.HTTP_REQUEST_METHOD,
    semconv.URL_SCHEME,
    semconv.HTTP_RESPONSE_STATUS_CODE,
    semconv.HTTP_ROUTE,
    semconv.ERROR_TYPE,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
)
_HTTP_OPTIONAL: Final = (semconv.URL_PATH, semconv.NETWORK_PROTOCOL_VERSION)
_RPC_ATTRIBUTES: Final = (
    semconv.RPC_METHOD,
    semconv.RPC_SYSTEM_NAME,
    semconv.RPC_RESPONSE_STATUS_CODE,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
)
_DB_ATTRIBUTES: Final = (
    semconv.SERVER_ADDRESS,
    semconv.DB_OPERATION_NAME,
    semconv.DB_SYSTEM_NAME,
    semconv.ERROR_TYPE,
)
_MESSAGING_ATTRIBUTES: Final = (
    semconv.MESSAGING_SYSTEM,
    semconv.MESSAGING_DESTINATION_NAME,
    semconv.MESSAGING_OPERATION_NAME,
    semconv.SERVER_ADDRESS,
)
_GEN_AI_ATTRIBUTES: Final = (
    semconv.GEN_AI_OPERATION_NAME,
    semconv.GEN_AI_PROVIDER_NAME,
    semconv.GEN_AI_REQUEST_MODEL,
    semconv.GEN_AI_RESPONSE_MODEL,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
)
_SPAN_FEATURES: Final = "application_span|application_span_otel|application_span_sizes"


def _http(side: str, kinds: frozenset[int], optional: tuple[str, ...]) -> tuple[Definition, ...]:
    rows = (
        ("request.duration", "s", "Duration of HTTP {} requests.", Measure.DURATION),
        ("request.body.size", "By", "Size of HTTP {} request bodies.", Measure.REQUEST_SIZE),
        ("response.body.size", "By", "Size of HTTP {} response bodies.", Measure.RESPONSE_SIZE),
    )
    return tuple(
        Definition(
            name=f"http.{side}.{name}",
            unit=unit,
            description=text.format(side),
            measure=measure,
            family="http",
            kinds=kinds,
            instrumentations=_HTTP,
            attributes=_HTTP_ATTRIBUTES,
            optional=optional,
        )
        for name, unit, text, measure in rows
    )


DEFINITIONS: Final = (
    *_http("server", _SERVER, (*_HTTP_OPTIONAL, semconv.CLIENT_ADDRESS)),
    *_http("client", _CLIENT, (*_HTTP_OPTIONAL, semconv.SERVICE_PEER_NAME)),
    Definition(
        semconv.METRIC_RPC_SERVER_CALL_DURATION, "s", "Duration of incoming remote procedure calls.",
        Measure.DURATION, "rpc", _SERVER, instrumentations=_RPC,
        attributes=_RPC_ATTRIBUTES, optional=(semconv.CLIENT_ADDRESS, semconv.ERROR_TYPE),
    ),
    Definition(
        semconv.METRIC_RPC_CLIENT_CALL_DURATION, "s", "Duration of outgoing remote procedure calls.",
        Measure.DURATION, "rpc", _CLIENT, instrumentations=_RPC,
        attributes=_RPC_ATTRIBUTES, optional=(semconv.ERROR_TYPE, semconv.SERVICE_PEER_NAME),
    ),
    Definition(
        semconv.METRIC_DB_CLIENT_OPERATION_DURATION, "s", "Duration of database client operations.",
        Measure.DURATION, "db", _CLIENT, instrumentations=_DB,
        attributes=_DB_ATTRIBUTES,
        optional=(semconv.DB_COLLECTION_NAME, semconv.DB_NAMESPACE, semconv.SERVER_PORT, semconv.SERVICE_PEER_NAME),
    ),
    Definition(
        semconv.METRIC_DB_SERVER_OPERATION_DURATION, "s", "Duration of operations, as the database server sees them.",
        Measure.DURATION, "db", _SERVER, instrumentations=_DB,
        attributes=(*_DB_ATTRIBUTES, semconv.SERVER_PORT),
        optional=(semconv.DB_COLLECTION_NAME, semconv.DB_NAMESPACE, semconv.CLIENT_ADDRESS),
    ),
    Definition(
        semconv.METRIC_MESSAGING_CLIENT_OPERATION_DURATION, "s", "Duration of publishing messages.",
        Measure.DURATION, "messaging", _PUBLISH, instrumentations=_MESSAGING, attributes=_MESSAGING_ATTRIBUTES,
    ),
    Definition(
        semconv.METRIC_MESSAGING_PROCESS_DURATION, "s", "Duration of processing messages.",
        Measure.DURATION, "messaging", _PROCESS, instrumentations=_MESSAGING, attributes=_MESSAGING_ATTRIBUTES,
    ),
    Definition(
        semconv.METRIC_DNS_LOOKUP_DURATION, "s", "Duration of DNS lookups.",
        Measure.DURATION, "dns", _CLIENT, instrumentations=frozenset({"dns"}),
        attributes=(semconv.ERROR_TYPE,), optional=(semconv.DNS_QUESTION_NAME,),
    ),
    Definition(
        semconv.METRIC_GEN_AI_CLIENT_OPERATION_DURATION, "s", "Duration of generative AI operations.",
        Measure.GEN_AI_DURATION, "gen_ai", _CLIENT, instrumentations=frozenset({"genai"}),
        attributes=(*_GEN_AI_ATTRIBUTES, semconv.ERROR_TYPE),
    ),
    *(
        Definition(
            semconv.METRIC_GEN_AI_CLIENT_TOKEN_USAGE, "{token}", "Tokens used by generative AI operations.",
            measure, "gen_ai", _CLIENT, instrumentations=frozenset({"genai"}),
            attributes=_GEN_AI_ATTRIBUTES, constant=((semconv.GEN_AI_TOKEN_TYPE, kind),),
            section=f"{semconv.METRIC_GEN_AI_CLIENT_TOKEN_USAGE}.{kind}",
        )
        for kind, measure in (("input", Measure.GEN_AI_INPUT_TOKENS), ("output", Measure.GEN_AI_OUTPUT_TOKENS))
    ),
    # Span metrics keep the units of their names: the older ones carry none.
    Definition(
        semconv.METRIC_TRACES_SPANMETRICS_LATENCY, "", "Duration of spans in seconds.",
        Measure.DURATION, "", _ALL, "application_span", shape=Shape.SPAN,
    ),
    Definition(
        semconv.METRIC_TRACES_SPANMETRICS_CALLS_TOTAL, "", "Spans.",
        Measure.CALLS, "", _ALL, "application_span", histogram=False, shape=Shape.SPAN,
    ),
    Definition(
        semconv.METRIC_TRACES_SPAN_METRICS_DURATION, "s", "Duration of spans.",
        Measure.DURATION, "", _ALL, "application_span_otel", shape=Shape.SPAN,
    ),
    Definition(
        semconv.METRIC_TRACES_SPAN_METRICS_CALLS, "", "Spans.",
        Measure.CALLS, "", _ALL, "application_span_otel", histogram=False, shape=Shape.SPAN,
    ),
    Definition(
        semconv.METRIC_TRACES_SPANMETRICS_SIZE_TOTAL, "", "Bytes of request bodies.",
        Measure.REQUEST_SIZE, "", _ALL, "application_span_sizes", histogram=False, shape=Shape.SPAN,
    ),
    Definition(
        semconv.METRIC_TRACES_SPANMETRICS_RESPONSE_SIZE_TOTAL, "", "Bytes of response bodies.",
        Measure.RESPONSE_SIZE, "", _ALL, "application_span_sizes", histogram=False, shape=Shape.SPAN,
    ),
    Definition(
        semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_CLIENT, "s", "Duration between two services, seen by the client.",
        Measure.DURATION, "", _PUBLISH, "application_service_graph", shape=Shape.GRAPH,
    ),
    Definition(
        semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_SERVER, "s", "Duration between two services, seen by the server.",
        Measure.DURATION, "", _PROCESS, "application_service_graph", shape=Shape.GRAPH,
    ),
    Definition(
        semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_TOTAL, "", "Requests between two services.",
        Measure.CALLS, "", _ALL, "application_service_graph", histogram=False, shape=Shape.GRAPH,
    ),
    Definition(
        semconv.METRIC_TRACES_SERVICE_GRAPH_REQUEST_FAILED_TOTAL, "", "Failed requests between two services.",
        Measure.CALLS, "", _ALL, "application_service_graph", histogram=False, shape=Shape.GRAPH,
    ),
)  # fmt: skip

INFO_METRICS: Final = (
    (semconv.METRIC_TARGET_INFO, "application|application_span|application_span_otel|application_service_graph"),
    (semconv.METRIC_TRACES_TARGET_INFO, _SPAN_FEATURES),
)
"""Gauges of value 1 with the resource of each service, by feature."""

FEATURES: Final = (
    "application",
    "application_span",
    "application_span_otel",
    "application_span_sizes",
    "application_service_graph",
    "application_host",
)
"""Features that this package knows; others belong to other parts."""

EVERY_FEATURE: Final = frozenset({"*", "all"})

_PROTOCOL_DNS: Final = 9  # enum protocol of bpf/records.h

_FAMILY_KEYS: Final = (
    (semconv.GEN_AI_OPERATION_NAME, "gen_ai"),
    (semconv.RPC_SYSTEM_NAME, "rpc"),
    (semconv.RPC_SYSTEM, "rpc"),
    (semconv.DB_SYSTEM_NAME, "db"),
    (semconv.MESSAGING_SYSTEM, "messaging"),
    (semconv.HTTP_REQUEST_METHOD, "http"),
)


def family_of(protocol: int, attributes: Mapping[str, AttributeValue]) -> str:
    """Which group of metrics a series counts in: the most special one that its attributes allow; "" if none."""
    if protocol == _PROTOCOL_DNS:
        return "dns"
    return next((family for key, family in _FAMILY_KEYS if key in attributes), "")


def measures_of(dim_names: tuple[str, ...]) -> tuple[Measure, ...]:
    """What has to be summed for requests with these attributes."""
    measures = [Measure.DURATION, Measure.REQUEST_SIZE, Measure.RESPONSE_SIZE]
    if semconv.GEN_AI_OPERATION_NAME in dim_names:
        measures += [Measure.GEN_AI_DURATION, Measure.GEN_AI_INPUT_TOKENS, Measure.GEN_AI_OUTPUT_TOKENS]
    return tuple(measures)


def has_feature(wanted: str, features: frozenset[str]) -> bool:
    """Whether one of the features separated by ``|`` is on."""
    return bool(features & EVERY_FEATURE) or any(name in features for name in wanted.split("|"))
