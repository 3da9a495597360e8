"""Which processes are watched: ``discovery`` and the selectors in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from onlooker.config.keys import Items, Key, Section, both
from onlooker.config.kinds import (
    BOOL,
    DURATION,
    PIDS,
    PORT,
    PORTS,
    TEXT,
    TEXTS,
    Choice,
    Glob,
    ListOf,
    MapOf,
    Ranges,
    Regexp,
)
from onlooker.config.sections.words import FEATURE_LIST, KUBERNETES_UNUSED, OPTIONAL_SAMPLER

_GLOB, _REGEXP = Glob(), Regexp()
_EXPORTS = ListOf(Choice("metrics", "traces", "logs"))


class SelectorSampler(Section, frozen=True):
    """The sampler of the services that a selector chooses."""

    name: Annotated[str, Key(OPTIONAL_SAMPLER, "Name of the sampler; empty for the global one.")] = ""
    arg: Annotated[str, Key(TEXT, "Its argument: a ratio from 0 to 1.")] = ""


class SelectorRoutes(Section, frozen=True):
    """Route patterns of the services that a selector chooses."""

    incoming: Annotated[tuple[str, ...], Key(TEXTS, "Patterns of requests that the service serves.")] = ()
    outgoing: Annotated[tuple[str, ...], Key(TEXTS, "Patterns of requests that the service makes.")] = ()


class SelectorMetrics(Section, frozen=True):
    """Metric features of the services that a selector chooses."""

    features: Annotated[tuple[str, ...], Key(FEATURE_LIST, "Features; empty for the global list.")] = ()


class _Selector(Section, frozen=True):
    """What both kinds of selectors take.  All that is set must hold; a selector that sets nothing chooses nothing."""

    name: Annotated[
        str, Key(TEXT, "Service name.", deprecated="`OTEL_SERVICE_NAME` in the service's own environment")
    ] = ""
    namespace: Annotated[
        str,
        Key(TEXT, "Service namespace.", deprecated="`OTEL_RESOURCE_ATTRIBUTES` in the service's own environment"),
    ] = ""
    open_ports: Annotated[Ranges, Key(PORTS, "TCP ports that the process listens on.")] = ()
    target_pids: Annotated[Ranges, Key(PIDS, "Process ids.")] = ()
    containers_only: Annotated[bool, Key(BOOL, "Only processes in containers.", unused=KUBERNETES_UNUSED)] = False
    exports: Annotated[
        tuple[str, ...] | None,
        Key(_EXPORTS, "Which signals the service gives; an empty list for none, unset for all."),
    ] = None
    sampler: SelectorSampler = SelectorSampler()
    routes: SelectorRoutes = SelectorRoutes()
    metrics: SelectorMetrics = SelectorMetrics()


METADATA = (
    "k8s_namespace", "k8s_pod_name", "k8s_deployment_name", "k8s_replicaset_name", "k8s_daemonset_name",
    "k8s_statefulset_name", "k8s_job_name", "k8s_cronjob_name", "k8s_owner_name", "k8s_container_name",
    "container_name",
)  # fmt: skip


class GlobSelector(_Selector, frozen=True):
    """One entry of ``instrument`` and its relatives: globs, where ``*`` crosses ``/``."""

    exe_path: Annotated[str, Key(_GLOB, "Path of the executable.")] = ""
    languages: Annotated[
        str, Key(_GLOB, "Language: go, java, dotnet, python, ruby, nodejs, rust, php, cpp, generic.")
    ] = ""
    cmd_args: Annotated[str, Key(_GLOB, "Command line, joined by blanks, with or without its first word.")] = ""
    k8s_namespace: Annotated[str, Key(_GLOB, "Kubernetes namespace.", unused=KUBERNETES_UNUSED)] = ""
    k8s_pod_name: Annotated[str, Key(_GLOB, "Pod.", unused=KUBERNETES_UNUSED)] = ""
    k8s_deployment_name: Annotated[str, Key(_GLOB, "Deployment.", unused=KUBERNETES_UNUSED)] = ""
    k8s_replicaset_name: Annotated[str, Key(_GLOB, "ReplicaSet.", unused=KUBERNETES_UNUSED)] = ""
    k8s_daemonset_name: Annotated[str, Key(_GLOB, "DaemonSet.", unused=KUBERNETES_UNUSED)] = ""
    k8s_statefulset_name: Annotated[str, Key(_GLOB, "StatefulSet.", unused=KUBERNETES_UNUSED)] = ""
    k8s_job_name: Annotated[str, Key(_GLOB, "Job.", unused=KUBERNETES_UNUSED)] = ""
    k8s_cronjob_name: Annotated[str, Key(_GLOB, "CronJob.", unused=KUBERNETES_UNUSED)] = ""
    k8s_owner_name: Annotated[str, Key(_GLOB, "Owner of any kind.", unused=KUBERNETES_UNUSED)] = ""
    k8s_container_name: Annotated[str, Key(_GLOB, "Container of the pod.", unused=KUBERNETES_UNUSED)] = ""
    container_name: Annotated[str, Key(_GLOB, "Container.", unused=KUBERNETES_UNUSED)] = ""
    k8s_pod_labels: Annotated[Mapping[str, str], Key(MapOf(_GLOB), "Pod labels.", unused=KUBERNETES_UNUSED)] = (
        msgspec.field(default_factory=dict)
    )
    k8s_pod_annotations: Annotated[
        Mapping[str, str], Key(MapOf(_GLOB), "Pod annotations.", unused=KUBERNETES_UNUSED)
    ] = msgspec.field(default_factory=dict)


class RegexpSelector(_Selector, frozen=True):
    """One entry of ``services`` and its relatives: regular expressions, which match anywhere unless anchored."""

    exe_path: Annotated[str, Key(_REGEXP, "Path of the executable.")] = ""
    exe_path_regexp: Annotated[str, Key(_REGEXP, "Path of the executable.", deprecated="`exe_path`")] = ""
    languages: Annotated[
        str, Key(_REGEXP, "Language: go, java, dotnet, python, ruby, nodejs, rust, php, cpp, generic.")
    ] = ""
    cmd_args: Annotated[str, Key(_REGEXP, "Command line, joined by blanks, with or without its first word.")] = ""
    k8s_namespace: Annotated[str, Key(_REGEXP, "Kubernetes namespace.", unused=KUBERNETES_UNUSED)] = ""
    k8s_pod_name: Annotated[str, Key(_REGEXP, "Pod.", unused=KUBERNETES_UNUSED)] = ""
    k8s_deployment_name: Annotated[str, Key(_REGEXP, "Deployment.", unused=KUBERNETES_UNUSED)] = ""
    k8s_replicaset_name: Annotated[str, Key(_REGEXP, "ReplicaSet.", unused=KUBERNETES_UNUSED)] = ""
    k8s_daemonset_name: Annotated[str, Key(_REGEXP, "DaemonSet.", unused=KUBERNETES_UNUSED)] = ""
    k8s_statefulset_name: Annotated[str, Key(_REGEXP, "StatefulSet.", unused=KUBERNETES_UNUSED)] = ""
    k8s_job_name: Annotated[str, Key(_REGEXP, "Job.", unused=KUBERNETES_UNUSED)] = ""
    k8s_cronjob_name: Annotated[str, Key(_REGEXP, "CronJob.", unused=KUBERNETES_UNUSED)] = ""
    k8s_owner_name: Annotated[str, Key(_REGEXP, "Owner of any kind.", unused=KUBERNETES_UNUSED)] = ""
    k8s_container_name: Annotated[str, Key(_REGEXP, "Container of the pod.", unused=KUBERNETES_UNUSED)] = ""
    container_name: Annotated[str, Key(_REGEXP, "Container.", unused=KUBERNETES_UNUSED)] = ""
    k8s_pod_labels: Annotated[Mapping[str, str], Key(MapOf(_REGEXP), "Pod labels.", unused=KUBERNETES_UNUSED)] = (
        msgspec.field(default_factory=dict)
    )
    k8s_pod_annotations: Annotated[
        Mapping[str, str], Key(MapOf(_REGEXP), "Pod annotations.", unused=KUBERNETES_UNUSED)
    ] = msgspec.field(default_factory=dict)


DEFAULT_EXCLUDED_NAMESPACES = (
    "kube-system", "kube-node-lease", "local-path-storage", "grafana-alloy", "cert-manager", "monitoring",
    "gke-connect", "gke-gmp-system", "gke-managed-cim", "gke-managed-filestorecsi", "gke-managed-metrics-server",
    "gke-managed-system", "gke-system", "gke-managed-volumepopulator", "gatekeeper-system",
)  # fmt: skip
DEFAULT_EXCLUDED_CONTAINERS = (
    "beyla", "ebpf-instrument", "obi", "onlooker", "alloy", "prometheus-config-reloader", "otelcol",
    "otelcol-contrib",
)  # fmt: skip
DEFAULT_EXCLUDED_PATHS = (
    "*beyla", "*alloy", "*prometheus-config-reloader", "*ebpf-instrument", "*obi", "*otelcol", "*otelcol-contrib",
    "*otelcol-contrib[!/]*", "*/onlooker",
)  # fmt: skip
_DEFAULT_GLOBS = (
    GlobSelector(exe_path="{" + ",".join(DEFAULT_EXCLUDED_PATHS) + "}"),
    GlobSelector(k8s_namespace="{" + ",".join(DEFAULT_EXCLUDED_NAMESPACES) + "}"),
    GlobSelector(container_name="{" + ",".join(DEFAULT_EXCLUDED_CONTAINERS) + "}"),
)
_DEFAULT_REGEXPS = (
    RegexpSelector(
        exe_path="(?:^|/)(beyla$|alloy$|prometheus-config-reloader$|ebpf-instrument$|obi$|onlooker$|otelcol[^/]*$)"
    ),
    RegexpSelector(k8s_namespace="^(" + "|".join(DEFAULT_EXCLUDED_NAMESPACES) + ")$"),
)


class RouteHarvesterAdvanced(Section, frozen=True):
    """Fine tuning of the search for routes in programs."""

    unused = "routes are learned from traffic and patterns, not read out of programs"

    java_harvest_delay: Annotated[
        float, Key(DURATION, "Wait before a Java program is searched.", both("JAVA_ROUTE_HARVEST_DELAY"))
    ] = 5.0


_HARVEST = RouteHarvesterAdvanced.unused
_GLOBS, _REGEXPS = Items(GlobSelector), Items(RegexpSelector)


class Discovery(Section, frozen=True):
    """Which processes are watched."""

    instrument: Annotated[
        tuple[GlobSelector, ...], Key(_GLOBS, "Processes to watch; one matching entry is enough.")
    ] = ()
    exclude_instrument: Annotated[
        tuple[GlobSelector, ...], Key(_GLOBS, "Processes never to watch; wins over everything that selects.")
    ] = ()
    default_exclude_instrument: Annotated[
        tuple[GlobSelector, ...],
        Key(
            _GLOBS, "Exclusions by default: agents and collectors. onlooker never watches itself, whatever stands here."
        ),
    ] = _DEFAULT_GLOBS
    services: Annotated[
        tuple[RegexpSelector, ...],
        Key(_REGEXPS, "As `instrument`, by regular expressions; ignored where `instrument` is set.",
            deprecated="`discovery.instrument`"),
    ] = ()  # fmt: skip
    exclude_services: Annotated[
        tuple[RegexpSelector, ...],
        Key(_REGEXPS, "As `exclude_instrument`, by regular expressions.", deprecated="`discovery.exclude_instrument`"),
    ] = ()
    default_exclude_services: Annotated[
        tuple[RegexpSelector, ...],
        Key(_REGEXPS, "As `default_exclude_instrument`, for selections by `services`.",
            deprecated="`discovery.default_exclude_instrument`"),
    ] = _DEFAULT_REGEXPS  # fmt: skip
    survey: Annotated[
        tuple[GlobSelector, ...],
        Key(_GLOBS, "Processes to report without watching them.",
            unused="survey mode is not built yet; `onlooker processes` shows what there is"),
    ] = ()  # fmt: skip
    all: Annotated[bool, Key(BOOL, "Watch every process that is not excluded; the flag `--all`.")] = False
    min_process_age: Annotated[
        float,
        Key(DURATION, "Age before a process is considered. 0 here, unlike the incumbent's 5s: kernel "
            "events announce new "
            "processes, so that their first requests are seen.", both("MIN_PROCESS_AGE")),
    ] = 0.0  # fmt: skip
    poll_interval: Annotated[
        float,
        Key(DURATION, "How often `/proc` is read again, as a net under the kernel events; 0 for the built-in interval.",
            both("DISCOVERY_POLL_INTERVAL")),
    ] = 0.0  # fmt: skip
    bpf_pid_filter_off: Annotated[
        bool,
        Key(BOOL, "Capture from every process.", both("BPF_PID_FILTER_OFF"),
            unused="only selected processes are ever captured; select all of them with `--all`"),
    ] = False  # fmt: skip
    default_otlp_grpc_port: Annotated[
        int,
        Key(PORT, "Port that tells OTLP over gRPC.", both("DEFAULT_OTLP_GRPC_PORT"),
            unused="services that export OTLP themselves are not looked for yet"),
    ] = 4317  # fmt: skip
    exclude_otel_instrumented_services: Annotated[
        bool,
        Key(BOOL, "Leave a service alone for the signals that it exports itself.",
            both("EXCLUDE_OTEL_INSTRUMENTED_SERVICES"),
            unused="services that export OTLP themselves are not looked for yet"),
    ] = True  # fmt: skip
    exclude_otel_instrumented_services_span_metrics: Annotated[
        bool,
        Key(BOOL, "The same for span metrics.", both("EXCLUDE_OTEL_INSTRUMENTED_SERVICES_SPAN_METRICS"),
            unused="services that export OTLP themselves are not looked for yet"),
    ] = False  # fmt: skip
    excluded_linux_system_paths: Annotated[
        tuple[str, ...],
        Key(TEXTS, "Executables below these are not examined for their language until a selector picks them."),
    ] = ("/lib/systemd/", "/usr/lib/systemd/", "/usr/libexec/", "/sbin/", "/usr/sbin/")
    process_context_poll_interval: Annotated[
        float,
        Key(DURATION, "How often a process is asked for its OpenTelemetry process context.",
            both("PROCESS_CONTEXT_POLL_INTERVAL"), unused="the process context mapping is not read yet"),
    ] = 1.0  # fmt: skip
    disabled_route_harvesters: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Choice("java", "nodejs", "go")),
            "Languages whose programs are not searched for routes.",
            unused=_HARVEST,
        ),
    ] = ()
    route_harvester_timeout: Annotated[
        float, Key(DURATION, "Limit of one search.", both("ROUTE_HARVESTER_TIMEOUT"), unused=_HARVEST)
    ] = 10.0
    route_harvester_advanced: RouteHarvesterAdvanced = RouteHarvesterAdvanced()
    skip_go_specific_tracers: Annotated[
        bool,
        Key(BOOL, "Treat Go programs as any other.", both("SKIP_GO_SPECIFIC_TRACERS"),
            unused="Go programs are treated as any other"),
    ] = False  # fmt: skip
