"""The whole configuration: `Config`.

Other parts read it as attributes, such as ``config.otel_traces_export.endpoint``.  Durations are floats of seconds,
sizes are ints of bytes, ports and pids are sorted inclusive ranges; lists are tuples.
"""

from __future__ import annotations

from typing import Annotated

from onlooker.config.keys import Key, Section, both
from onlooker.config.kinds import BOOL, COUNT, DURATION, PIDS, PORT, PORTS, TEXT, Choice, Glob, Ranges, Regexp
from onlooker.config.sections.discovery import Discovery
from onlooker.config.sections.ebpf import Ebpf
from onlooker.config.sections.exports import (
    Grafana,
    HealthCheck,
    InternalMetrics,
    Metrics,
    OtelMetricsExport,
    OtelTracesExport,
    PrometheusExport,
)
from onlooker.config.sections.naming import Attributes, Filter, NameResolver, Routes
from onlooker.config.sections.network import Network, Stats
from onlooker.config.sections.own import Limits, Store, Web
from onlooker.config.sections.runtimes import (
    Injector,
    Javaagent,
    JvmRuntimeMetrics,
    Nodejs,
    Processes,
    SigilExport,
    Topology,
)

_QUEUES = "the stages hand batches on without such queues"
LOG_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")


class Config(Section, frozen=True):
    """The top of the configuration file."""

    open_port: Annotated[
        Ranges, Key(PORTS, "Watch what listens on these ports; the flag `--open-port`.", both("OPEN_PORT"))
    ] = ()
    auto_target_exe: Annotated[
        str,
        Key(
            Glob(),
            "Watch executables by path; the flag `--exe-path`.",
            (*both("AUTO_TARGET_EXE"), "OTEL_GO_AUTO_TARGET_EXE"),
        ),
    ] = ""
    auto_target_language: Annotated[
        str, Key(Glob(), "Watch programs by language; the flag `--language`.", both("AUTO_TARGET_LANGUAGE"))
    ] = ""
    auto_target_cmd_args: Annotated[
        str, Key(Glob(), "Watch programs by command line; the flag `--cmd-args`.", both("AUTO_TARGET_CMD_ARGS"))
    ] = ""
    target_pids: Annotated[
        Ranges, Key(PIDS, "Watch these processes and nothing else; the flag `--pid`.", both("TARGET_PID"))
    ] = ()
    executable_name: Annotated[
        str, Key(Regexp(), "Watch executables by path.", both("EXECUTABLE_NAME"), deprecated="`auto_target_exe`")
    ] = ""
    service_name: Annotated[
        str,
        Key(TEXT, "Name of every watched service that does not name itself.",
            ("OTEL_SERVICE_NAME", *both("SERVICE_NAME")),
            deprecated="`OTEL_SERVICE_NAME` in the service's own environment"),
    ] = ""  # fmt: skip
    service_namespace: Annotated[
        str,
        Key(TEXT, "Namespace of every watched service.", both("SERVICE_NAMESPACE"),
            deprecated="`OTEL_RESOURCE_ATTRIBUTES` in the service's own environment"),
    ] = ""  # fmt: skip
    log_level: Annotated[str, Key(Choice(*LOG_LEVELS), "Least level that is logged.", both("LOG_LEVEL"))] = "INFO"
    log_format: Annotated[str, Key(Choice("text", "json"), "How log lines are written.", both("LOG_FORMAT"))] = "text"
    log_config: Annotated[
        str, Key(Choice("yaml", "json", empty=True), "Print the effective configuration at start.", both("LOG_CONFIG"))
    ] = ""
    trace_printer: Annotated[
        str,
        Key(Choice("disabled", "text", "json", "json_indent", "counter"), "Print every request; the flag `--print`.",
            both("TRACE_PRINTER")),
    ] = "disabled"  # fmt: skip
    shutdown_timeout: Annotated[
        float, Key(DURATION, "How long the last batches may take at the end.", both("SHUTDOWN_TIMEOUT"))
    ] = 10.0
    enforce_sys_caps: Annotated[
        bool,
        Key(BOOL, "Refuse to start without every capability that the configuration needs.", both("ENFORCE_SYS_CAPS")),
    ] = False
    confine: Annotated[
        bool,
        Key(
            BOOL,
            "Forbid the running agent what it never needs: to start programs, to mount, to load modules, to change "
            "its user, the clock or the host's name (a seccomp filter, no_new_privs).",
        ),
    ] = True
    profile_port: Annotated[
        int, Key(PORT, "Port of a profiler.", both("PROFILE_PORT"), unused="profile onlooker with py-spy or perf")
    ] = 0
    channel_buffer_len: Annotated[
        int, Key(COUNT, "Length of inner queues.", both("CHANNEL_BUFFER_LEN"), unused=_QUEUES)
    ] = 50
    channel_send_timeout: Annotated[
        float, Key(DURATION, "How long a stage may wait for the next.", both("CHANNEL_SEND_TIMEOUT"), unused=_QUEUES)
    ] = 60.0
    channel_send_timeout_panic: Annotated[
        bool, Key(BOOL, "Give up when it has waited.", both("CHANNEL_SEND_TIMEOUT_PANIC"), unused=_QUEUES)
    ] = False

    discovery: Discovery = Discovery()
    attributes: Attributes = Attributes()
    routes: Routes = Routes()
    name_resolver: NameResolver = NameResolver()
    filter: Filter = Filter()
    metrics: Metrics = Metrics()
    otel_metrics_export: OtelMetricsExport = OtelMetricsExport()
    otel_traces_export: OtelTracesExport = OtelTracesExport()
    prometheus_export: PrometheusExport = PrometheusExport()
    grafana: Grafana = Grafana()
    web: Web = Web()
    store: Store = Store()
    limits: Limits = Limits()
    internal_metrics: InternalMetrics = InternalMetrics()
    health_check: HealthCheck = HealthCheck()
    ebpf: Ebpf = Ebpf()
    network: Network = Network()
    stats: Stats = Stats()
    processes: Processes = Processes()
    nodejs: Nodejs = Nodejs()
    javaagent: Javaagent = Javaagent()
    jvm_runtime_metrics: JvmRuntimeMetrics = JvmRuntimeMetrics()
    topology: Topology = Topology()
    injector: Injector = Injector()
    sigil_export: SigilExport = SigilExport()
