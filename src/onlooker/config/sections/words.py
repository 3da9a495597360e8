"""The words that several sections share: features, instrumentations, protocols, samplers."""

from __future__ import annotations

from onlooker.config.kinds import Choice, ListOf

SPAN_METRICS = ("application_span", "application_span_otel")
APPLICATION_FEATURES = (
    "application", *SPAN_METRICS, "application_span_sizes", "application_service_graph",
    "application_host", "application_runtime", "application_process",
)  # fmt: skip
FEATURES = (
    *APPLICATION_FEATURES, "network", "network_flow_packets", "network_inter_zone", "stats", "stats_tcp_rtt",
    "stats_tcp_failed_connections", "stats_tcp_retransmits", "stats_tcp_io", "ebpf",
)  # fmt: skip
INSTRUMENTATIONS = (
    "http", "grpc", "sql", "redis", "kafka", "mqtt", "nats", "amqp", "gpu", "mongo", "dns", "couchbase", "genai",
    "memcached", "sunrpc", "aerospike",
)  # fmt: skip
SAMPLERS = (
    "always_on", "always_off", "traceidratio",
    "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
)  # fmt: skip
PROTOCOLS = ("grpc", "http/protobuf", "http/json", "debug")

FEATURE_LIST = ListOf(Choice(*FEATURES, "all", "*"))
INSTRUMENTATION_LIST = ListOf(Choice(*INSTRUMENTATIONS, "*"))
SAMPLER = Choice(*SAMPLERS)
OPTIONAL_SAMPLER = Choice(*SAMPLERS, empty=True)
PROTOCOL = Choice(*PROTOCOLS, empty=True)

NETWORK_UNUSED = "network flow metrics are not built yet"
PAYLOAD_UNUSED = "no payload rule is built yet; bodies are never read"
KUBERNETES_UNUSED = "Kubernetes metadata is not built yet"
