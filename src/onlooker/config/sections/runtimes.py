"""Language runtimes and what is injected into them: ``nodejs``, ``javaagent``, ``injector`` and their like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from onlooker.config.keys import Items, Key, Section, both
from onlooker.config.kinds import BOOL, DURATION, TEXT, TEXTS, Choice, Duration, ListOf, MapOf
from onlooker.config.sections.discovery import GlobSelector
from onlooker.config.sections.exports import OtelTracesExport
from onlooker.config.sections.words import OPTIONAL_SAMPLER, PROTOCOL

_INJECTED = "nothing is injected into a process"


class Processes(Section, frozen=True):
    """Process metrics."""

    unused = "the feature `application_process` is not built yet"

    run_mode: Annotated[
        str, Key(Choice("privileged", "unprivileged"), "How `/proc` is read.", name="RunMode", aliases=("runmode",))
    ] = "privileged"
    interval: Annotated[float, Key(DURATION, "How often.", both("PROCESSES_INTERVAL"))] = 5.0


class Nodejs(Section, frozen=True):
    """Node.js."""

    unused = _INJECTED

    enabled: Annotated[bool, Key(BOOL, "Inject the context script.", both("NODEJS_ENABLED"))] = True
    manual_spans: Annotated[bool, Key(BOOL, "Collect spans made by hand.", both("NODEJS_MANUAL_SPANS"))] = False


class Javaagent(Section, frozen=True):
    """Java."""

    unused = _INJECTED

    enabled: Annotated[bool, Key(BOOL, "Inject the Java agent.", both("JAVAAGENT_ENABLED"))] = True
    attach_timeout: Annotated[float, Key(DURATION, "Limit of the injection.", both("JAVAAGENT_ATTACH_TIMEOUT"))] = 10.0
    debug: Annotated[bool, Key(BOOL, "Its log.", both("JAVAAGENT_DEBUG"))] = False
    debug_instrumentation: Annotated[
        bool, Key(BOOL, "Log of its rewriting.", both("JAVAAGENT_DEBUG_INSTRUMENTATION"))
    ] = False


class JvmRuntimeMetrics(Section, frozen=True):
    """Metrics of the Java runtime."""

    unused = "the feature `application_runtime` is not built yet"

    sampling_interval: Annotated[
        float, Key(Duration(positive=True), "How often.", ("OBI_JVM_RUNTIME_METRICS_SAMPLING_INTERVAL",))
    ] = 1.0


class Topology(Section, frozen=True):
    """Spans about the topology."""

    unused = "no such spans are made"

    spans: Annotated[tuple[str, ...], Key(ListOf(Choice("inter_cluster")), "Which.", both("TOPOLOGY_SPANS"))] = ()


class ExportedSignals(Section, frozen=True):
    """What injected SDKs export."""

    logs: Annotated[bool, Key(BOOL, "Logs.", both("SDK_EXPORT_LOGS"))] = False
    metrics: Annotated[bool, Key(BOOL, "Metrics.", both("SDK_EXPORT_METRICS"))] = False
    traces: Annotated[bool, Key(BOOL, "Traces.", both("SDK_EXPORT_TRACES"))] = False


class InjectorResources(Section, frozen=True):
    """Resource attributes of injected SDKs."""

    add_k8s_ip_attribute: Annotated[
        bool, Key(BOOL, "Add the pod's address.", both("RESOURCE_ADD_K8S_IP_ATTRIBUTE"))
    ] = False
    add_k8s_uid_attributes: Annotated[bool, Key(BOOL, "Add uids.", both("RESOURCE_ADD_K8S_UID_ATTRIBUTES"))] = False
    attributes: Annotated[Mapping[str, str], Key(MapOf(TEXT), "Further attributes.", both("RESOURCE_ATTRIBUTES"))] = (
        msgspec.field(default_factory=dict)
    )
    use_k8s_labels_for_resource_attributes: Annotated[
        bool, Key(BOOL, "Take pod labels.", both("RESOURCE_USE_LABELS_FOR_RESOURCE_ATTRIBUTES"))
    ] = False


class TraceSampler(Section, frozen=True):
    """Sampler of injected SDKs."""

    # Their environment variables are those of otel_traces_export.sampler; they set that one.
    arg: Annotated[str, Key(TEXT, "Argument.")] = ""
    name: Annotated[str, Key(OPTIONAL_SAMPLER, "Name.")] = ""


class Webhook(Section, frozen=True):
    """The controller that injects."""

    external_deployment_name: Annotated[str, Key(TEXT, "Its deployment.", both("EXTERNAL_WEBHOOK_DEPLOYMENT_NAME"))] = (
        ""
    )


class Injector(Section, frozen=True):
    """OpenTelemetry SDKs put into pods."""

    unused = _INJECTED

    enabled_sdks: Annotated[
        tuple[str, ...], Key(ListOf(Choice("java", "dotnet", "nodejs", "python")), "Languages.")
    ] = ("java", "dotnet", "nodejs", "python")
    instrument: Annotated[tuple[GlobSelector, ...], Key(Items(GlobSelector), "Which processes.")] = ()
    exclude_instrument: Annotated[tuple[GlobSelector, ...], Key(Items(GlobSelector), "Which not.")] = ()
    exporter_otlp_endpoint: Annotated[str, Key(TEXT, "Where the SDKs send to.")] = ""
    exporter_otlp_protocol: Annotated[str, Key(PROTOCOL, "How.")] = ""
    image_version: Annotated[str, Key(TEXT, "Version of the SDK image.")] = ""
    otel_exported_signals: ExportedSignals = ExportedSignals()
    resources: InjectorResources = InjectorResources()
    trace_propagators: Annotated[tuple[str, ...], Key(TEXTS, "Propagators.")] = ()
    trace_sampler: TraceSampler = TraceSampler()
    webhook: Webhook = Webhook()


class SigilExport(OtelTracesExport, frozen=True):
    """Calls of language models, sent apart; the keys of `otel_traces_export`."""

    unused = "calls of language models are not recognised yet"
    env_prefix = "BEYLA_GRAFANA_AI_"
