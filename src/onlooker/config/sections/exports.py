"""Where telemetry goes: the exporters, what they share, and onlooker's own metrics and health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from onlooker.config.keys import Key, Section, both
from onlooker.config.kinds import (
    BOOL,
    COUNT,
    DURATION,
    NUMBERS,
    PORT,
    TEXT,
    TEXTS,
    Choice,
    Duration,
    Headers,
    Int,
    ListOf,
    Number,
)
from onlooker.config.sections.words import FEATURE_LIST, INSTRUMENTATION_LIST, PROTOCOL, SAMPLER

_TIMEOUT = Duration(positive=True, bare_ms=True)
_COMPRESSION = Choice("gzip", "none", empty=True)
_NO_SDK = "onlooker exports without the OpenTelemetry SDK; use `log_level`"
_ONE_TABLE = "all services share one table, bounded by `limits.series`"
_SELF = "Keep edges of the service graph from a service to itself."
_EXTRA = (
    "Resource attributes that span metrics carry; `k8s.cluster.name`, `k8s.namespace.name`, `k8s.node.name`, "
    "`service.version`, `deployment.environment.name`, `cloud.availability_zone` and `cloud.region` are always added."
)
ALWAYS_EXTRA = (
    "k8s.cluster.name", "k8s.namespace.name", "k8s.node.name", "service.version", "deployment.environment.name",
    "cloud.availability_zone", "cloud.region",
)  # fmt: skip

_DURATIONS = (0, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_SIZES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_TOKENS = tuple(float(4**power) for power in range(14))
_GENAI = tuple(round(0.01 * 2**power, 2) for power in range(14))
_RTT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


def _otlp(variable: str, signal: str) -> tuple[str, ...]:
    return (f"OTEL_EXPORTER_OTLP_{signal}_{variable}", f"OTEL_EXPORTER_OTLP_{variable}")


class Buckets(Section, frozen=True):
    """Upper bounds of histogram buckets."""

    duration_histogram: Annotated[tuple[float, ...], Key(NUMBERS, "Durations, in seconds.")] = _DURATIONS
    request_size_histogram: Annotated[tuple[float, ...], Key(NUMBERS, "Request bodies, in bytes.")] = _SIZES
    response_size_histogram: Annotated[tuple[float, ...], Key(NUMBERS, "Response bodies, in bytes.")] = _SIZES
    gen_ai_client_operation_duration_histogram: Annotated[
        tuple[float, ...],
        Key(NUMBERS, "Calls of language models, in seconds.", unused="such calls are not recognised yet"),
    ] = _GENAI
    gen_ai_client_token_usage_histogram: Annotated[
        tuple[float, ...], Key(NUMBERS, "Tokens of language models.", unused="such calls are not recognised yet")
    ] = _TOKENS
    stat_tcp_rtt_histogram: Annotated[
        tuple[float, ...], Key(NUMBERS, "Round trips, in seconds.", unused="TCP statistics are not built yet")
    ] = _RTT


class Metrics(Section, frozen=True):
    """What all metric exporters share."""

    features: Annotated[
        tuple[str, ...],
        Key(FEATURE_LIST, "Families of metrics.", ("OTEL_EBPF_METRICS_FEATURES", "BEYLA_METRICS_FEATURES",
            "OTEL_EBPF_METRIC_FEATURES", "BEYLA_METRIC_FEATURES")),
    ] = ("application",)  # fmt: skip


class ExponentialHistogram(Section, frozen=True):
    """Exponential histograms."""

    max_scale: Annotated[int, Key(Int(-10, 20), "Finest scale.", both("METRICS_EXPONENTIAL_HISTOGRAM_MAX_SCALE"))] = 20
    max_size: Annotated[int, Key(Int(2), "Most buckets.", both("METRICS_EXPONENTIAL_HISTOGRAM_MAX_SIZE"))] = 160


class OtelMetricsExport(Section, frozen=True):
    """Metrics by OTLP."""

    endpoint: Annotated[
        str,
        Key(TEXT, "URL of the receiver; unset turns the exporter off. Taken as it is, with `/v1/metrics` "
            "added only if it has "
            "no path, or if it comes from `OTEL_EXPORTER_OTLP_ENDPOINT`.", _otlp("ENDPOINT", "METRICS")),
    ] = ""  # fmt: skip
    protocol: Annotated[
        str,
        Key(
            PROTOCOL,
            "How it speaks; unset to tell by the port: 4317 gRPC, else HTTP with protobuf.",
            _otlp("PROTOCOL", "METRICS"),
        ),
    ] = ""
    headers: Annotated[
        Mapping[str, str],
        Key(Headers(), "Headers of every call. Those of the file, the common and the signal's own "
            "variable are merged, the last wins.",
            _otlp("HEADERS", "METRICS"), secret=True),
    ] = msgspec.field(default_factory=dict)  # fmt: skip
    timeout: Annotated[
        float, Key(_TIMEOUT, "Limit of one call; a bare number is milliseconds.", _otlp("TIMEOUT", "METRICS"))
    ] = 10.0
    compression: Annotated[
        str,
        Key(_COMPRESSION, "`gzip` or `none`; unset for gzip, but none on loopback.", _otlp("COMPRESSION", "METRICS")),
    ] = ""
    ca_file: Annotated[
        str, Key(TEXT, "Certificates (PEM) to trust instead of the system's.", _otlp("CERTIFICATE", "METRICS"))
    ] = ""
    cert_file: Annotated[
        str, Key(TEXT, "Own certificate (PEM) for mutual TLS.", _otlp("CLIENT_CERTIFICATE", "METRICS"))
    ] = ""
    key_file: Annotated[str, Key(TEXT, "Its key (PEM).", _otlp("CLIENT_KEY", "METRICS"))] = ""
    insecure_skip_verify: Annotated[bool, Key(BOOL, "Accept any certificate.", both("INSECURE_SKIP_VERIFY"))] = False
    interval: Annotated[
        float,
        Key(DURATION, "Time between exports; unset for `OTEL_METRIC_EXPORT_INTERVAL`.", both("METRICS_INTERVAL")),
    ] = 0.0
    otel_interval_ms: Annotated[
        int,
        Key(Int(1), "Milliseconds between exports, where `interval` is unset.", ("OTEL_METRIC_EXPORT_INTERVAL",),
            name="OTELIntervalMS", aliases=("otelintervalms",)),
    ] = 60000  # fmt: skip
    histogram_aggregation: Annotated[
        str,
        Key(Choice("explicit_bucket_histogram", "base2_exponential_bucket_histogram"), "Kind of histograms.",
            ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",)),
    ] = "explicit_bucket_histogram"  # fmt: skip
    exponential_histogram: ExponentialHistogram = ExponentialHistogram()
    buckets: Buckets = Buckets()
    features: Annotated[
        tuple[str, ...],
        Key(FEATURE_LIST, "Families of metrics of this exporter.", deprecated="`metrics.features`"),
    ] = ()
    instrumentations: Annotated[
        tuple[str, ...], Key(INSTRUMENTATION_LIST, "Protocols that give metrics.", both("METRICS_INSTRUMENTATIONS"))
    ] = ("*",)
    extra_span_resource_attributes: Annotated[
        tuple[str, ...], Key(TEXTS, _EXTRA, both("EXTRA_SPAN_RESOURCE_ATTRIBUTES"))
    ] = ()
    allow_service_graph_self_references: Annotated[
        bool, Key(BOOL, _SELF, both("ALLOW_SERVICE_GRAPH_SELF_REFERENCES"))
    ] = False
    ttl: Annotated[float, Key(DURATION, "After how long a silent series is forgotten.", both("METRICS_TTL"))] = 300.0
    reporters_cache_len: Annotated[
        int, Key(COUNT, "Services kept.", both("METRICS_REPORT_CACHE_LEN"), unused=_ONE_TABLE)
    ] = 256
    otel_sdk_log_level: Annotated[str, Key(TEXT, "Log level of the SDK.", both("SDK_LOG_LEVEL"), unused=_NO_SDK)] = ""


class Sampler(Section, frozen=True):
    """Which traces are kept."""

    name: Annotated[str, Key(SAMPLER, "One of OpenTelemetry's samplers.", ("OTEL_TRACES_SAMPLER",))] = (
        "parentbased_always_on"
    )
    arg: Annotated[
        str,
        Key(
            TEXT,
            "Its argument: for the ratio samplers a number from 0 to 1; unset for 1.",
            ("OTEL_TRACES_SAMPLER_ARG",),
        ),
    ] = ""


class OtelTracesExport(Section, frozen=True):
    """Traces by OTLP."""

    endpoint: Annotated[
        str,
        Key(TEXT, "URL of the receiver; unset turns the exporter off. Taken as it is, with `/v1/traces` "
            "added only if it has "
            "no path, or if it comes from `OTEL_EXPORTER_OTLP_ENDPOINT`.", _otlp("ENDPOINT", "TRACES")),
    ] = ""  # fmt: skip
    protocol: Annotated[
        str,
        Key(
            PROTOCOL,
            "How it speaks; unset to tell by the port: 4317 gRPC, else HTTP with protobuf.",
            _otlp("PROTOCOL", "TRACES"),
        ),
    ] = ""
    headers: Annotated[
        Mapping[str, str],
        Key(Headers(), "Headers of every call. Those of the file, the common and the signal's own "
            "variable are merged, the last wins.",
            _otlp("HEADERS", "TRACES"), secret=True),
    ] = msgspec.field(default_factory=dict)  # fmt: skip
    timeout: Annotated[
        float, Key(_TIMEOUT, "Limit of one call; a bare number is milliseconds.", _otlp("TIMEOUT", "TRACES"))
    ] = 10.0
    compression: Annotated[
        str,
        Key(_COMPRESSION, "`gzip` or `none`; unset for gzip, but none on loopback.", _otlp("COMPRESSION", "TRACES")),
    ] = ""
    ca_file: Annotated[
        str, Key(TEXT, "Certificates (PEM) to trust instead of the system's.", _otlp("CERTIFICATE", "TRACES"))
    ] = ""
    cert_file: Annotated[
        str, Key(TEXT, "Own certificate (PEM) for mutual TLS.", _otlp("CLIENT_CERTIFICATE", "TRACES"))
    ] = ""
    key_file: Annotated[str, Key(TEXT, "Its key (PEM).", _otlp("CLIENT_KEY", "TRACES"))] = ""
    insecure_skip_verify: Annotated[bool, Key(BOOL, "Accept any certificate.", both("INSECURE_SKIP_VERIFY"))] = False
    sampler: Sampler = Sampler()
    instrumentations: Annotated[
        tuple[str, ...], Key(INSTRUMENTATION_LIST, "Protocols that give spans.", both("TRACES_INSTRUMENTATIONS"))
    ] = (
        "http",
        "grpc",
        "sql",
        "redis",
        "kafka",
        "mqtt",
        "nats",
        "amqp",
        "mongo",
        "couchbase",
        "memcached",
        "sunrpc",
        "aerospike",
    )
    batch_max_size: Annotated[int, Key(Int(1), "Most spans in one call.", both("OTLP_TRACES_BATCH_MAX_SIZE"))] = 4096
    batch_timeout: Annotated[
        float, Key(DURATION, "How long a span may wait for its batch to fill.", both("OTLP_TRACES_BATCH_TIMEOUT"))
    ] = 15.0
    queue_size: Annotated[
        int,
        Key(COUNT, "Spans that may wait; 0 for four batches, else at least two. "
            "`limits.span_queue_bytes` bounds it too.",
            both("OTLP_TRACES_QUEUE_SIZE")),
    ] = 16384  # fmt: skip
    backoff_initial_interval: Annotated[
        float, Key(DURATION, "First pause before a call is repeated; 0 for 5s.", both("BACKOFF_INITIAL_INTERVAL"))
    ] = 0.0
    backoff_max_interval: Annotated[float, Key(DURATION, "Longest pause; 0 for 30s.", both("BACKOFF_MAX_INTERVAL"))] = (
        0.0
    )
    backoff_max_elapsed_time: Annotated[
        float, Key(DURATION, "When a batch is given up; 0 for 5m.", both("BACKOFF_MAX_ELAPSED_TIME"))
    ] = 0.0
    reporters_cache_len: Annotated[
        int, Key(COUNT, "Services kept.", both("TRACES_REPORT_CACHE_LEN"), unused=_ONE_TABLE)
    ] = 256
    otel_sdk_log_level: Annotated[str, Key(TEXT, "Log level of the SDK.", both("SDK_LOG_LEVEL"), unused=_NO_SDK)] = ""


class NativeHistogram(Section, frozen=True):
    """Native histograms of Prometheus."""

    unused = "classic histograms are exposed; native ones are not built yet"

    bucket_factor: Annotated[
        float, Key(Number(1), "Growth of buckets.", both("PROMETHEUS_NATIVE_HISTOGRAM_BUCKET_FACTOR"))
    ] = 1.1
    max_bucket_number: Annotated[
        int, Key(COUNT, "Most buckets.", both("PROMETHEUS_NATIVE_HISTOGRAM_MAX_BUCKET_NUMBER"))
    ] = 100
    min_reset_duration: Annotated[
        float, Key(DURATION, "Time between resets.", both("PROMETHEUS_NATIVE_HISTOGRAM_MIN_RESET_DURATION"))
    ] = 3600.0


class PrometheusExport(Section, frozen=True):
    """Metrics for Prometheus to fetch."""

    port: Annotated[
        int,
        Key(PORT, "Port of the endpoint; 0 for off: the page's port has `/metrics` too. With neither the page nor "
            "`otel_metrics_export` it is 9464, so that there is something to look at.", both("PROMETHEUS_PORT")),
    ] = 0  # fmt: skip
    address: Annotated[
        str,
        Key(TEXT, "Address of the endpoint. Loopback, unlike the incumbent's all addresses: say `0.0.0.0` to open it."),
    ] = "127.0.0.1"
    path: Annotated[str, Key(TEXT, "Path of the endpoint.", both("PROMETHEUS_PATH"))] = "/metrics"
    tls_cert: Annotated[str, Key(TEXT, "Certificate (PEM), to serve TLS.")] = ""
    tls_key: Annotated[str, Key(TEXT, "Its key (PEM).")] = ""
    token: Annotated[str, Key(TEXT, "Bearer token that a scrape must show.", secret=True)] = ""
    features: Annotated[
        tuple[str, ...],
        Key(
            FEATURE_LIST,
            "Families of metrics of this exporter.",
            both("PROMETHEUS_FEATURES"),
            deprecated="`metrics.features`",
        ),
    ] = ()
    instrumentations: Annotated[
        tuple[str, ...], Key(INSTRUMENTATION_LIST, "Protocols that give metrics.", both("PROMETHEUS_INSTRUMENTATIONS"))
    ] = ("*",)
    buckets: Buckets = Buckets()
    native_histogram: NativeHistogram = NativeHistogram()
    exemplar_filter: Annotated[
        str,
        Key(Choice("always_off", "always_on", "trace_based", empty=True), "Which requests become "
            "exemplars; unset for none.",
            both("PROMETHEUS_EXEMPLAR_FILTER")),
    ] = ""  # fmt: skip
    extra_resource_attributes: Annotated[
        tuple[str, ...],
        Key(TEXTS, "Resource attributes that every metric carries.", both("PROMETHEUS_EXTRA_RESOURCE_ATTRIBUTES")),
    ] = ()
    extra_span_resource_attributes: Annotated[
        tuple[str, ...], Key(TEXTS, _EXTRA, both("PROMETHEUS_EXTRA_SPAN_RESOURCE_ATTRIBUTES"))
    ] = ()
    allow_service_graph_self_references: Annotated[
        bool, Key(BOOL, _SELF, both("PROMETHEUS_ALLOW_SERVICE_GRAPH_SELF_REFERENCES"))
    ] = False
    disable_build_info: Annotated[
        bool, Key(BOOL, "Leave out the metric that tells the version.", both("PROMETHEUS_DISABLE_BUILD_INFO"))
    ] = False
    ttl: Annotated[float, Key(DURATION, "After how long a silent series is forgotten.", both("PROMETHEUS_TTL"))] = 300.0
    service_cache_size: Annotated[int, Key(COUNT, "Services kept.", unused=_ONE_TABLE)] = 10000


class GrafanaOtlp(Section, frozen=True):
    """Grafana Cloud's OTLP gateway."""

    cloud_zone: Annotated[str, Key(TEXT, "Zone, such as `prod-eu-west-0`.", ("GRAFANA_CLOUD_ZONE",))] = ""
    cloud_instance_id: Annotated[str, Key(TEXT, "Instance.", ("GRAFANA_CLOUD_INSTANCE_ID",))] = ""
    cloud_api_key: Annotated[str, Key(TEXT, "API key.", ("GRAFANA_CLOUD_API_KEY",), secret=True)] = ""
    cloud_submit: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Choice("traces", "metrics")),
            "Signals to send, where no endpoint is set for them.",
            ("GRAFANA_CLOUD_SUBMIT",),
        ),
    ] = ("traces",)


class Grafana(Section, frozen=True):
    """Grafana Cloud."""

    otlp: GrafanaOtlp = GrafanaOtlp()


class AvoidedServices(Section, frozen=True):
    """The metric about services that are left alone."""

    unused = "services that export OTLP themselves are not looked for yet"

    disabled: Annotated[bool, Key(BOOL, "Leave it out.", both("INTERNAL_METRICS_AVOIDED_SERVICES_DISABLED"))] = False
    limit: Annotated[int, Key(COUNT, "Most services in it.", both("INTERNAL_METRICS_AVOIDED_SERVICES_LIMIT"))] = 2000


class InternalPrometheus(Section, frozen=True):
    """Own metrics on a port of their own."""

    port: Annotated[
        int, Key(PORT, "Port; 0 for the port of `prometheus_export`.", both("INTERNAL_METRICS_PROMETHEUS_PORT"))
    ] = 0
    path: Annotated[str, Key(TEXT, "Path.", both("INTERNAL_METRICS_PROMETHEUS_PATH"))] = "/internal/metrics"


class InternalMetrics(Section, frozen=True):
    """Metrics of onlooker itself."""

    exporter: Annotated[
        str,
        Key(
            Choice("disabled", "prometheus", "otel"),
            "Where they go besides the page.",
            both("INTERNAL_METRICS_EXPORTER"),
        ),
    ] = "disabled"
    prometheus: InternalPrometheus = InternalPrometheus()
    bpf_metric_scrape_interval: Annotated[
        float, Key(DURATION, "How often the kernel's figures are read.", both("BPF_METRIC_SCRAPE_INTERVAL"))
    ] = 15.0
    avoided_services: AvoidedServices = AvoidedServices()


class HealthCheck(Section, frozen=True):
    """Health of onlooker itself, at `/healthz`."""

    listen_address: Annotated[str, Key(TEXT, "Address.", both("HEALTH_CHECK_LISTEN_ADDRESS"))] = "127.0.0.1"
    port: Annotated[int, Key(PORT, "Port; 0 for off (the page's port answers too).", both("HEALTH_CHECK_PORT"))] = 0
    unix_socket_path: Annotated[
        str, Key(TEXT, "UNIX socket; a leading `@` for an abstract one.", both("HEALTH_CHECK_UNIX_SOCKET_PATH"))
    ] = ""
