"""From the configuration to the options of the stages.  Reads no environment and starts nothing."""

from __future__ import annotations

from typing import Final, cast

from onlooker import __version__
from onlooker.aggregate.aggregator import AggregateOptions
from onlooker.aggregate.graph import GraphOptions
from onlooker.aggregate.selection import Selection
from onlooker.config import Config, Loaded
from onlooker.config.sections.exports import OtelMetricsExport, OtelTracesExport
from onlooker.enrich.routes import IgnoreMode, RouteOptions, Unmatched
from onlooker.export.endpoint import Connection, Signal, Tls, resolve_endpoint
from onlooker.export.exporter import Limits, MetricExporter, SpanExporter, make_transport
from onlooker.export.prometheus import PrometheusOptions
from onlooker.export.retry import RetryPolicy
from onlooker.protocols.registry import PROTOCOLS, Options
from onlooker.store import MEMORY, StoreOptions


def route_options(config: Config) -> RouteOptions:
    """The section ``routes``."""
    routes = config.routes
    return RouteOptions(
        patterns=routes.patterns,
        ignored_patterns=routes.ignored_patterns,
        ignore_mode=cast(IgnoreMode, routes.ignore_mode or "all"),
        unmatched=cast(Unmatched, routes.unmatched),
        wildcard_char=routes.wildcard_char,
        max_path_segment_cardinality=routes.max_path_segment_cardinality,
        max_routes=config.limits.series,
    )


def aggregate_options(loaded: Loaded) -> AggregateOptions:
    """Metrics: one set of sums serves all exporters, so the sections of both are joined."""
    config = loaded.config
    otlp, prometheus = config.otel_metrics_export, config.prometheus_export
    buckets = otlp.buckets if otlp.endpoint or not prometheus.port else prometheus.buckets
    attributes = config.attributes
    return AggregateOptions(
        features=frozenset(otlp.features or prometheus.features or config.metrics.features),
        instrumentations=frozenset((*otlp.instrumentations, *prometheus.instrumentations)),
        select={
            name: Selection(include=section.get("include", ()), exclude=section.get("exclude", ()))
            for name, section in attributes.select.items()
        },
        limit=config.limits.series,
        ttl_s=max(otlp.ttl, prometheus.ttl),
        span_names_limit=attributes.metric_span_names_limit,
        exemplars=prometheus.exemplar_filter in ("always_on", "trace_based"),
        duration_bounds=buckets.duration_histogram,
        request_size_bounds=buckets.request_size_histogram,
        response_size_bounds=buckets.response_size_histogram,
        graph=GraphOptions(
            unresolved=attributes.rename_unresolved_hosts,
            incoming=attributes.rename_unresolved_hosts_incoming,
            outgoing=attributes.rename_unresolved_hosts_outgoing,
            allow_self_references=otlp.allow_service_graph_self_references
            or prometheus.allow_service_graph_self_references,
        ),
        host_id=attributes.host_id.override,
    )


def protocol_options(config: Config) -> Options:
    """Limits and switches of the parsers."""
    ebpf = config.ebpf
    traces = config.attributes.select.get("traces", {})
    return Options(
        query_text="db.query.text" in traces.get("include", ()),
        prepared_statements=ebpf.postgres_prepared_statements_cache_size,
        dns_timeout_ns=int(ebpf.dns_request_timeout * 1e9),
    )


def store_options(config: Config) -> StoreOptions:
    """The section ``store``."""
    store = config.store
    return StoreOptions(
        path=store.path if store.enabled and store.path else MEMORY, max_bytes=store.max_bytes, max_age_s=store.max_age
    )


SPAN_WAIT_S: Final = 5.0
"""Longest that spans wait to be encoded: the default of the SDKs' ``OTEL_BSP_SCHEDULE_DELAY``."""


def span_wait_s(config: Config) -> float:
    """How long spans wait to be encoded: half of ``batch_timeout``, the other half is for the exporter's queue.

    And less than a series lives without requests: waiting spans point to theirs.
    """
    lives_s = max(config.otel_metrics_export.ttl, config.prometheus_export.ttl) or float("inf")  # 0: for ever
    return min(config.otel_traces_export.batch_timeout / 2, lives_s / 2, SPAN_WAIT_S)


def traced_protocols(config: Config) -> frozenset[int]:
    """Protocols whose spans are exported: ``otel_traces_export.instrumentations``, which leaves DNS out by default."""
    chosen = config.otel_traces_export.instrumentations
    everything = "*" in chosen
    web = {1, 2} if everything or {"http", "grpc"} & set(chosen) else set()
    return frozenset(web | {n for n, info in PROTOCOLS.items() if everything or info.instrumentation in chosen})


def prometheus_options(config: Config) -> PrometheusOptions:
    """Labels of the Prometheus endpoint."""
    section = config.prometheus_export
    return PrometheusOptions(
        extra_resource_attributes=section.extra_resource_attributes,
        extra_span_resource_attributes=section.extra_span_resource_attributes,
    )


def _connection(signal: Signal, section: OtelTracesExport | OtelMetricsExport) -> Connection | None:
    endpoint = resolve_endpoint(signal, specific=section.endpoint, protocol=section.protocol)
    if endpoint is None:
        return None
    return Connection(
        endpoint=endpoint,
        headers=dict(section.headers),
        timeout_s=section.timeout,
        compression=section.compression or "none",
        tls=Tls(section.ca_file, section.cert_file, section.key_file, section.insecure_skip_verify),
    )


def exporters(config: Config) -> tuple[SpanExporter | None, MetricExporter | None]:
    """The OTLP exporters that the configuration asks for, not started.

    Raises:
        ConfigError: an endpoint, a header or a TLS file cannot be used.
    """
    spans: SpanExporter | None = None
    metrics: MetricExporter | None = None
    traces = config.otel_traces_export
    connection = _connection(Signal.TRACES, traces)
    if connection is not None:
        spans = SpanExporter(
            "traces",
            make_transport(connection, version=__version__),
            limits=Limits(
                queue_items=traces.queue_size or 4 * traces.batch_max_size,
                queue_bytes=config.limits.span_queue_bytes,
                batch_items=traces.batch_max_size,
                batch_age_s=traces.batch_timeout - span_wait_s(config),
            ),
            retry=RetryPolicy(
                initial_interval_s=traces.backoff_initial_interval or 5.0,
                max_interval_s=traces.backoff_max_interval or 30.0,
                max_elapsed_s=traces.backoff_max_elapsed_time or 300.0,
            ),
        )
    connection = _connection(Signal.METRICS, config.otel_metrics_export)
    if connection is not None:
        metrics = MetricExporter("metrics", make_transport(connection, version=__version__), version=__version__)
    return spans, metrics
