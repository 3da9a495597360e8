"""What the page says about onlooker itself and about processes: read from the running agent when somebody looks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from onlooker import __version__
from onlooker.config.show import effective
from onlooker.export.exporter import Exporter
from onlooker.kernel.statistics import RunStatistics
from onlooker.observe import losses, programs, rss_bytes
from onlooker.web.invisible import invisible_tls

if TYPE_CHECKING:
    from onlooker.agent import Agent

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PROCESSES: Final = 1_000
_GONE: Final = ("No such process", "No such file")
"""In the reason of an attachment that failed: the process had ended by then, and there was nothing to see."""
_MEASURED_S: Final = 15.0
"""How long the kernel goes on measuring its programs after somebody looked at them."""
_WAYS_OUT: Final[Mapping[str, str]] = {
    "queue_full": "found no room while the receiver was slow or away",
    "rejected": "were refused by the receiver, which took the rest of their batch",
    "permanent": "were in a batch that the receiver refused for good",
    "retries_exhausted": "were in a batch that was not taken in time",
    "shutdown": "could not be sent before onlooker ended",
}

LOSS_TEXTS: Final[Mapping[str, str]] = {
    "ring_full": "the ring to user space was full: these requests are in no number",
    "unreadable": "a message head was in memory that could not be read",
    "head_too_long": "a message head was longer than what is scanned",
    "connection_map_full": "there was no room for the state of a connection",
    "operations": "operations of a pipeline that no record had room for: how many is known, and nothing else",
    "unpaired_response": "a response whose request began before onlooker",
    "pipeline_too_deep": "more requests in flight on a connection than are told apart",
    "framing": "a message did not follow its protocol",
    "steps": "more messages in one call than are walked",
    "bytes_unseen": "bytes moved past the hooks where a message head was due (splice, sendfile, sockmap)",
    "preempted": "the kernel ran one probe in the middle of another: that transfer was not looked at",
    "missed_run": "the kernel skipped a probe because it was already running",
    "half_without_request": "the response of a pipelined request came without its request",
    "upgrade_without_answer": "a connection was upgraded to HTTP/2, and the answer to its first request never came",
    "half_without_response": "a pipelined request came without its response",
    "connection_evicted": "more connections of a database or RPC protocol than are followed at once",
    "protocol_unknown": "a protocol that this version does not understand",
    "parser_failed": "a message that confused its parser; the log has the details, once",
    "unknown_process": "the process of a request was gone before it could be named",
}


def why_lost(reason: str) -> str:
    """A sentence for a reason of `losses`."""
    signal, _, way = reason.partition("_")
    if signal in ("traces", "metrics") and way in _WAYS_OUT:
        return f"{'spans' if signal == 'traces' else 'points'} that {_WAYS_OUT[way]}; this page has them all the same"
    if signal == "unread" and way:
        return f"{way} operations whose bytes were not captured whole: they took place, and what they were is not known"
    return LOSS_TEXTS.get(reason, reason.replace("_", " "))


class Facts:
    """Answers about the agent.  For the thread of the event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._cpu = (time.monotonic(), sum(os.times()[:2]), 0.0)
        self._process_cpu: dict[int, tuple[float, float, float]] = {}
        self._statistics = RunStatistics()
        self._statistics_end: asyncio.TimerHandle | None = None
        self._programs: tuple[float, dict[str, int]] = (0.0, {})
        self._shares: dict[str, float] = {}
        self._tls: tuple[float, list[dict[str, Any]]] = (-60.0, [])

    def _own_cpu(self) -> float:
        now, used = time.monotonic(), sum(os.times()[:2])
        before, used_before, last = self._cpu
        if now - before < 1.0 and last:
            return last
        share = (used - used_before) / max(now - before, 1e-3)
        self._cpu = (now, used, share)
        return share

    def brief(self) -> dict[str, Any]:
        """The line at the foot of every view."""
        agent = self._agent
        return {
            "version": __version__,
            "uptime_s": int(time.time() - agent.started_unix_ns / 1e9),
            "cpu_share": round(self._own_cpu(), 4),
            "rss_bytes": rss_bytes(),
            "processes": len(agent.watcher.watched()),
            "requests": agent.pipeline.requests,
            "lost": sum(losses(agent).values()),
        }

    def unseen(self) -> list[dict[str, Any]]:
        """What is not seen, and why."""
        agent = self._agent
        found = [
            {"what": reason, "count": count, "why": why_lost(reason)}
            for reason, count in losses(agent).items()
            if count
        ]
        found += self._tls_unseen()
        found += [{"what": "kernel_feature", "count": 0, "why": loss} for loss in agent.capture.degraded]
        aggregator = agent.pipeline.aggregator
        if aggregator.overflowed:
            found.append(
                {"what": "series_overflow", "count": aggregator.overflowed,
                 "why": "more kinds of requests than limits.series: these are summed in one line"}
            )  # fmt: skip
        if shed := agent.pipeline.overload.shed:
            why = "limits.cpu_percent or limits.memory was reached: these requests are counted but became no span"
            found.append({"what": "traces_shed", "count": shed, "why": why})
        for exporter in self._exporters():
            stats = exporter.stats()
            if stats.last_error and stats.last_error_unix_ns > stats.last_success_unix_ns:
                found.append({"what": f"exporter_{exporter.name}", "count": stats.failures, "why": stats.last_error})
        store = getattr(agent, "store", None)
        if store is not None:
            stats = store.stats()
            if stats["dropped"]:
                why = "the store was too slow: these requests are missing on this page, not elsewhere"
                found.append({"what": "store_behind", "count": stats["dropped"], "why": why})
            if stats["last_error"]:
                found.append({"what": "store_trouble", "count": stats["failures"], "why": stats["last_error"]})
        if not agent.watcher.watched():
            found.append({"what": "no_process", "count": 0, "why": "no running process matches the selection"})
        return found

    def _tls_unseen(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        if now - self._tls[0] > 5.0:
            agent = self._agent
            names = {process.pid: process.executable.rpartition("/")[2]
                     for process in list(agent.identities.processes.values()) if not process.ended}  # fmt: skip
            self._tls = now, invisible_tls(agent.plaintext.outlook(), agent.plaintext.programs.opaque(), names)
            for reason, count in agent.plaintext.prober.failures().items():
                if any(gone in reason for gone in _GONE):
                    continue
                self._tls[1].append(
                    {"what": "tls_probe", "count": int(count), "why": f"could not be attached: {reason}"}
                )
        return self._tls[1]

    def _measure(self) -> None:
        """Let the kernel measure its programs while somebody looks at them."""
        self._statistics.start()
        if self._statistics_end is not None:
            self._statistics_end.cancel()
        self._statistics_end = asyncio.get_running_loop().call_later(_MEASURED_S, self._statistics.stop)

    def _core_shares(self, now: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
        """How much of a core each program took since this was last asked, while the kernel measured."""
        at, before = self._programs
        took = time.monotonic() - at
        if took >= 1.0:
            self._programs = time.monotonic(), {name: numbers["time_ns"] for name, numbers in now.items()}
            self._shares = {
                name: round((numbers["time_ns"] - before[name]) / 1e9 / took, 6)
                for name, numbers in now.items()
                if name in before and took < _MEASURED_S
            }
        return self._shares

    def close(self) -> None:
        """Let go of what the kernel keeps on for us."""
        if self._statistics_end is not None:
            self._statistics_end.cancel()
        self._statistics.stop()

    def _exporters(self) -> list[Exporter]:
        return [one for one in (self._agent.spans, self._agent.metrics) if one is not None]

    def agent(self) -> dict[str, Any]:
        """Everything about onlooker."""
        self._measure()
        agent = self._agent
        pipeline = agent.pipeline
        shares = self._core_shares(programs(agent))
        probes = [
            {"name": name, **numbers, "ns_per_run": round(numbers["time_ns"] / numbers["runs"], 1)
             if numbers.get("time_ns") and numbers.get("runs") else None, "core_share": shares.get(name)}
            for name, numbers in programs(agent).items()
        ]  # fmt: skip
        exporters = []
        for exporter in self._exporters():
            stats = exporter.stats()
            exporters.append({"name": exporter.name, **{name: getattr(stats, name) for name in (
                "put", "sent", "dropped", "queued", "queued_bytes", "in_flight", "requests", "failures", "retries",
                "last_error", "last_error_unix_ns", "last_success_unix_ns")}})  # fmt: skip
        store = getattr(agent, "store", None)
        return {
            **self.brief(),
            "pid": os.getpid(),
            "kernel": os.uname().release,
            "host": os.uname().nodename,
            "hook": agent.capture.hook,
            "programs": probes,
            "measuring": {"on": self._statistics.on, "refused": self._statistics.refused},
            "tls": {"probed": agent.plaintext.prober.probed(), "refused": agent.plaintext.prober.load_error},
            "rings": [{"record_bytes": size, "fill": round(fill, 4)} for size, fill in agent.capture.fill().items()],
            "drain": {"interval_s": round(agent.interval_s, 4), "rounds": agent.rounds,
                      "cpu_s": round(pipeline.busy_ns / 1e9, 3)},
            "losses": [
                {"reason": reason, "count": count, "why": why_lost(reason)}
                for reason, count in sorted(losses(agent).items(), key=lambda pair: (-pair[1], pair[0]))
            ],
            "unseen": self.unseen(),
            "series": {"alive": sum(1 for _ in list(pipeline.aggregator.table)),
                       "limit": agent.loaded.config.limits.series, "overflowed": pipeline.aggregator.overflowed},
            "strings": {"used": len(pipeline.values), "limit": pipeline.values.capacity},
            "sampling": {"sampler": pipeline.samplers.default.description, "seen": pipeline.samplers.seen,
                         "kept": pipeline.samplers.kept},
            "exporters": exporters,
            "store": store.stats() if store is not None else None,
            "notes": [str(note) for note in agent.loaded.notes],
        }  # fmt: skip

    def config(self) -> list[dict[str, Any]]:
        """Effective values and where each comes from; secrets are hidden."""
        return [{"key": key, **entry} for key, entry in effective(self._agent.loaded, everything=True).items()]

    def processes(self) -> list[dict[str, Any]]:
        """Watched processes, and those that are not with the reason; no kernel threads."""
        tls: dict[int, list[str]] = {}
        for one in self._agent.plaintext.outlook():
            said = f"{one.library or 'TLS'}: {'seen' if one.visible else 'not seen'}"
            tls.setdefault(one.pid, []).append(f"{said}, {one.reason}" if one.reason else said)
        rows = []
        for known in list(self._agent.watcher.decisions.values()):
            if known.reason == "a kernel thread":
                continue
            member = known.member
            rows.append(
                {"pid": known.pid, "watched": known.watched, "reason": known.reason, "executable": known.exe,
                 "service": member.name if member else "", "name_source": member.name_source if member else "",
                 "language": member.language.name if member else "", "ports": sorted(known.ports),
                 "tls": tls.get(known.pid, [])}
            )  # fmt: skip
        rows.sort(key=lambda row: (not row["watched"], row["pid"]))
        return rows[:_PROCESSES]

    def counts(self) -> dict[str, int]:
        """Running processes by full name of their service."""
        identities = self._agent.identities
        found: dict[str, int] = {}
        for process in list(identities.processes.values()):
            service = identities.services.get(process.service_id)
            if service is not None and not process.ended:
                name = f"{service.namespace}/{service.name}" if service.namespace else service.name
                found[name] = found.get(name, 0) + 1
        return found

    def of_service(self, full_name: str) -> dict[str, Any]:
        """The processes of a service: what they use now, and how many ended."""
        identities = self._agent.identities
        running, ended = [], 0
        for process in list(identities.processes.values()):
            service = identities.services.get(process.service_id)
            if service is None:
                continue
            name = f"{service.namespace}/{service.name}" if service.namespace else service.name
            if name != full_name:
                continue
            if process.ended:
                ended += 1
                continue
            running.append(
                {"pid": process.pid, "executable": process.executable, "command": process.command,
                 "language": process.language, "instance": service.instance_id,
                 "since_s": int(process.start_unix_ns / 1e9), **self._use(process.pid)}
            )  # fmt: skip
        for pid in set(self._process_cpu) - {process.pid for process in list(identities.processes.values())}:
            del self._process_cpu[pid]
        return {"running": running[:200], "ended": ended}

    def _use(self, pid: int) -> dict[str, Any]:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # the name stands in brackets and may hold anything: what follows its last one is numbers
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return {"cpu_share": None, "rss_bytes": None, "threads": None}
        used = (int(fields[11]) + int(fields[12])) / _TICKS
        now = time.monotonic()
        before, used_before, share = self._process_cpu.get(pid, (0.0, 0.0, -1.0))
        if not before:
            self._process_cpu[pid] = (now, used, -1.0)
        elif now - before >= 1.0:
            share = (used - used_before) / (now - before)
            self._process_cpu[pid] = (now, used, share)
        return {
            "cpu_share": round(share, 4) if share >= 0 else None,
            "rss_bytes": int(fields[21]) * _PAGE,
            "threads": int(fields[17]),
            "cpu_s": round(used, 2),
        }
