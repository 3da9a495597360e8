"""onlooker looking at itself: own metrics, and the numbers of the live table."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from onlooker import __version__
from onlooker.aggregate.own import OwnMetrics
from onlooker.capture.tls import OpaqueTls
from onlooker.export.exporter import Exporter
from onlooker.snapshot import MetricSnapshot

if TYPE_CHECKING:
    from onlooker.agent import Agent
    from onlooker.cli.live import AgentState, LiveRow
    from onlooker.store import Store

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def process_age_s() -> float:
    """Time since this process was started, the interpreter's start included."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def losses(agent: Agent) -> dict[str, int]:
    """Everything that was lost on the way, by reason; the kernel's reasons and those of user space."""
    found = dict(agent.capture.losses())
    pipeline = agent.pipeline
    found.update(pipeline.http1.dropped)
    found.update(pipeline.segments.dropped)
    found.update({f"unread_{protocol}": count for protocol, count in pipeline.segments.lost.items()})
    found.update({reason: count for reason, count in pipeline.identifier.dropped.items() if reason != "no_exports"})
    for exporter in (agent.spans, agent.metrics):
        if exporter is not None:
            for reason, count in exporter.stats().dropped.items():
                found[f"{exporter.name}_{reason}"] = count
    return found


def _by_process(read: Callable[[], Mapping[int, OpaqueTls]], value: Callable[[OpaqueTls], float]) -> dict[str, float]:
    return {str(pid): float(value(one)) for pid, one in read().items()}


def own_metrics(agent: Agent) -> OwnMetrics:
    """``onlooker_*``, read when somebody looks."""
    own = OwnMetrics(
        version=__version__,
        start_unix_ns=agent.started_unix_ns,
        build_info=not agent.loaded.config.prometheus_export.disable_build_info,
    )
    pipeline, watcher = agent.pipeline, agent.watcher

    def of_exporters(read: str) -> Mapping[str, float]:
        return {e.name: float(getattr(e.stats(), read)) for e in (agent.spans, agent.metrics) if e is not None}

    own.counter("requests", "Requests that were assembled.", read=lambda: pipeline.requests)
    own.counter("lost", "What was lost, by reason.", label="reason", read=lambda: losses(agent))
    own.counter("records", "Records that came out of the rings.", read=lambda: agent.records)
    own.counter("drains", "Rounds of draining the rings.", read=lambda: agent.rounds)
    own.counter("capture_cpu", "CPU time of the capture thread in the pipeline.", unit="s",
                read=lambda: pipeline.busy_ns / 1e9)  # fmt: skip
    own.gauge("drain_interval", "Time between two rounds of draining.", unit="s", read=lambda: agent.interval_s)
    own.gauge("ring_fill", "How full a ring is, by the size of its records.", unit="1", label="record_bytes",
              read=lambda: {str(k): v for k, v in agent.capture.fill().items()})  # fmt: skip
    own.gauge("instrumented_processes", "Processes that are watched.", read=lambda: len(watcher.watched()))
    own.gauge("avoided_processes", "Processes that are not watched, by reason.", label="reason",
              read=lambda: avoided(agent))  # fmt: skip
    for name, unit, text, key, scale in (
        ("probe_runs", "", "Runs of a BPF program while the kernel measured them", "runs", 1.0),
        ("probe_time", "s", "Time in a BPF program while the kernel measured it", "time_ns", 1e9),
        ("probe_missed", "", "Runs of a BPF program that the kernel skipped", "missed", 1.0),
    ):
        own.counter(name, f"{text}, by program.", unit=unit, label="program",
                    read=functools.partial(_by_program, agent, key, scale))  # fmt: skip
    own.gauge("tls_processes", "Processes with probes on their TLS libraries.",
              read=lambda: agent.plaintext.prober.probed())  # fmt: skip
    own.gauge("tls_invisible", "Processes whose TLS is not seen into, by reason.", label="reason",
              read=agent.plaintext.prober.invisible)  # fmt: skip
    opaque = agent.plaintext.programs.opaque
    for name, unit, text, read in (
        ("connections", "", "ended", lambda one: one.connections),
        ("failed", "", "were reset or timed out", lambda one: one.failed),
        ("sent", "By", "bytes sent", lambda one: one.sent),
        ("received", "By", "bytes received", lambda one: one.received),
        ("duration", "s", "seconds that they lasted", lambda one: one.duration_s),
    ):
        own.counter(f"tls_opaque_{name}", f"TLS connections that are not seen into: {text}.", unit=unit, label="pid",
                    read=functools.partial(_by_process, opaque, read))  # fmt: skip
    own.counter("tls_probe_failures", "Attachments to TLS libraries that failed, by reason.", label="reason",
                read=agent.plaintext.prober.failures)  # fmt: skip
    own.counter("ignored", "Requests of ignored routes.", read=lambda: pipeline.routes.ignored)
    own.counter("spans_kept", "Requests that became spans.", read=lambda: pipeline.samplers.kept)
    overload = pipeline.overload
    own.gauge("trace_share", "Share of traces that onlooker's own limits let become spans.",
              read=lambda: overload.share)  # fmt: skip
    own.counter("shed_spans", "Requests that became no span because of onlooker's own limits.",
                read=lambda: overload.shed)  # fmt: skip
    own.counter("exported", "Items that a receiver took, by signal.", label="signal", read=lambda: of_exporters("sent"))
    own.counter("export_failures", "Failed attempts to export, by signal.", label="signal",
                read=lambda: of_exporters("failures"))  # fmt: skip
    own.gauge("export_queue", "Bytes that wait for export, by signal.", unit="By", label="signal",
              read=lambda: of_exporters("queued_bytes"))  # fmt: skip
    own.counter("cpu", "CPU time of onlooker.", unit="s", read=lambda: sum(os.times()[:2]))
    own.gauge("memory", "Resident memory of onlooker.", unit="By", read=rss_bytes)
    pipeline.aggregator.describe(own)
    if agent.store is not None:
        _describe_store(agent.store, own)
    return own


def programs(agent: Agent) -> dict[str, dict[str, int]]:
    """Runs, time and missed runs of all loaded programs; runs and time only count while the kernel measures."""
    return {**agent.capture.object.program_statistics(), **agent.plaintext.programs.statistics()}


def _by_program(agent: Agent, key: str, scale: float) -> dict[str, float]:
    return {name: numbers[key] / scale for name, numbers in programs(agent).items()}


def avoided(agent: Agent) -> dict[str, float]:
    """How many processes are not watched, by reason; threads of the kernel are no processes here."""
    found: dict[str, float] = {}
    for known in list(agent.watcher.decisions.values()):
        if not known.watched and known.reason != "a kernel thread":
            found[known.reason] = found.get(known.reason, 0.0) + 1.0
    return found


def _describe_store(store: Store, own: OwnMetrics) -> None:
    def of(key: str) -> Callable[[], float]:
        return lambda: float(store.stats()[key])

    own.gauge("store_size", "Size of the store.", unit="By", read=of("file_bytes"))
    own.gauge("store_limit", "Largest size of the store.", unit="By", read=of("max_bytes"))
    own.counter("store_spans", "Spans written to the store.", read=of("spans_kept"))
    own.counter("store_thinned", "Spans deleted again for want of room.", read=of("spans_thinned"))
    own.counter("store_dropped", "Requests that the store missed because it was too slow.", read=of("dropped"))
    own.counter("store_undetailed", "Requests that were counted in the store but not looked at as spans.",
                read=of("undetailed"))  # fmt: skip
    own.counter("store_failures", "Rounds of writing that failed.", read=of("failures"))
    own.counter("store_cpu", "CPU time of the thread that writes.", unit="s", read=of("cpu_s"))


class LiveView:
    """What the live table shows."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._cpu = (time.monotonic(), sum(os.times()[:2]))
        self.endpoints: Sequence[tuple[str, str]] = ()

    def services(self) -> list[LiveRow]:
        """One line a service and kind."""
        return self._rows(self._agent.pipeline.aggregator.live_services())

    def routes(self) -> list[LiveRow]:
        """One line a service, kind and span name."""
        return self._rows(self._agent.pipeline.aggregator.live_routes())

    def agent(self) -> AgentState:
        """The footer."""
        now, used = time.monotonic(), sum(os.times()[:2])
        before, used_before = self._cpu
        self._cpu = (now, used)
        exporters: list[Exporter] = [e for e in (self._agent.spans, self._agent.metrics) if e is not None]
        notes = [f"{e.name}: {e.stats().last_error}" for e in exporters if e.stats().last_error]
        from onlooker.cli.live import AgentState  # with rich, which is for those who look

        return AgentState(
            losses=[(reason, count) for reason, count in losses(self._agent).items() if count],
            cpu=(used - used_before) / max(now - before, 1e-3),
            rss_bytes=rss_bytes(),
            endpoints=self.endpoints,
            notes=notes,
            processes=len(self._agent.watcher.watched()),
        )

    @staticmethod
    def _rows(lines: Sequence[object]) -> list[LiveRow]:
        from onlooker.cli.live import LiveRow

        return [
            LiveRow(
                f"{line.namespace}/{line.service}" if line.namespace else line.service,  # type: ignore[attr-defined]
                line.kind, line.name, line.window.rate, line.window.errors, line.window.quantiles_s,  # type: ignore[attr-defined]
            )
            for line in lines
        ]  # fmt: skip


def snapshots(agent: Agent) -> list[MetricSnapshot]:
    """All metrics at this moment: of requests, and of onlooker itself."""
    return [agent.pipeline.aggregator.snapshot(), agent.own.snapshot(time.time_ns())]
