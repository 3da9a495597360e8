"""What onlooker costs services of several languages, beside empty programs and the usual tracer of system calls.

The service is pinned to core 0, its load and whoever watches share core 1.  Variants alternate in another order each
round, and each is compared with the plain rounds next to it, so that what drifts on the machine falls out: medians, and
the quartiles in brackets.  Instructions, which do not drift at all, are counted by ``count.py``::

    sudo .venv/bin/python benchmarks/suite/run.py [--only node] [--rounds 5] [--seconds 3] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measure  # noqa: E402 - found by this path alone
import starts  # noqa: E402
import syscalls  # noqa: E402
import workloads  # noqa: E402

from onlooker.kernel.statistics import RunStatistics  # noqa: E402

SERVICE_CORE, OTHER_CORE = 0, 1


@dataclass
class Reading:
    """One run of the load."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


@dataclass
class Rounds:
    """What a variant adds, against the plain readings before and after it."""

    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    def take(self, inside: Reading, before: Reading, after: Reading) -> None:
        self.cpu_us.append(inside.cpu_us - (before.cpu_us + after.cpu_us) / 2)
        self.rate.append(100 * (2 * inside.rate / (before.rate + after.rate) - 1))
        for kept, name in ((self.p50, "p50_ms"), (self.p99, "p99_ms")):
            plain = getattr(before, name) + getattr(after, name)
            if plain:
                kept.append(100 * (2 * getattr(inside, name) / plain - 1))


def read(service: workloads.Served, seconds: float) -> Reading:
    before = service.cpu_ns()
    done = service.load(seconds, OTHER_CORE)
    spent = service.cpu_ns() - before
    return Reading(spent / done.requests / 1000, done.requests / done.seconds, done.p50_ms, done.p99_ms)


def programs_us(service: workloads.Served, program_ns: Callable[[], float], seconds: float) -> float:
    """Time in BPF programs for one request, in us, by the kernel's own clock.

    The programs run for the rest of the host too, so the time of as many idle seconds is taken off.
    """
    switch = RunStatistics()
    switch.start()
    try:
        began, before = time.monotonic(), program_ns()
        time.sleep(seconds)
        idle = (program_ns() - before) / (time.monotonic() - began)
        began, before = time.monotonic(), program_ns()
        done = service.load(seconds, OTHER_CORE)
        spent = program_ns() - before - idle * (time.monotonic() - began)
    finally:
        switch.stop()
    return spent / done.requests / 1000


def agents_programs_ns(watcher: measure.Agent) -> float:
    """Of the programs on sockets: those on processes run when a program starts, not for a request."""
    return 1e9 * sum(
        value for name, value in watcher.own().items()
        if name.startswith("onlooker_probe_time_seconds_total") and "sched_process" not in name
    )  # fmt: skip


def spread(values: Sequence[float], digits: int = 2) -> str:
    """A median, and the quartiles."""
    if not values:
        return "-"
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{statistics.median(values):+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def measured(workload: workloads.Workload, directory: Path, rounds: int, seconds: float) -> dict[str, object]:
    """One service: all variants, round by round."""
    floor_object, tracer_object = measure.built_floor(directory), syscalls.built(directory)
    with workload.serve(directory, SERVICE_CORE) as service:
        agent_us: list[float] = []
        in_programs: dict[str, list[float]] = {"watched": [], "syscalls": []}
        rss_mb: list[float] = []
        missed = seen = asked = 0

        @contextlib.contextmanager
        def watched() -> Iterator[measure.Agent]:
            with measure.agent(directory, "--open-port", str(service.port), core=OTHER_CORE) as one:
                end = time.monotonic() + 20
                while not one.own().get("onlooker_instrumented_processes"):
                    if time.monotonic() > end:
                        raise measure.NotPossible(f"the agent does not watch {workload.name}")
                    time.sleep(0.1)
                yield one

        variants: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "floor": lambda: measure.floor(floor_object),
            "watched": watched,
            "syscalls": lambda: syscalls.tracing(tracer_object, service.pids()),
        }
        added = {name: Rounds() for name in variants}
        plain: list[Reading] = []
        read(service, max(seconds, 2))  # caches, and compilers that compile while it runs
        before = read(service, seconds)
        for _ in range(rounds):
            order = list(variants)
            random.shuffle(order)
            for name in order:
                with variants[name]() as inside_of:
                    if workload.name == "postgres" and name == "syscalls":
                        inside = read_backends(service, inside_of, seconds)
                    elif isinstance(inside_of, measure.Agent):
                        inside, agent_cpu, found = read_watched(service, inside_of, seconds)
                        agent_us.append(agent_cpu)
                        rss_mb.append(measure.memory(inside_of.pid).total / 1024)
                        seen, asked = seen + found[0], asked + found[1]
                        missed += found[2]
                        in_programs[name].append(
                            programs_us(service, functools.partial(agents_programs_ns, inside_of), seconds)
                        )
                    else:
                        service.load(0.5, OTHER_CORE)
                        inside = read(service, seconds)
                    if isinstance(inside_of, syscalls.Tracer):
                        with inside_of.following(service.pids):
                            in_programs[name].append(programs_us(service, inside_of.program_ns, seconds))
                after = read(service, seconds)
                added[name].take(inside, before, after)
                plain += (before, after)
                before = after
    return {
        "alone_us": statistics.median(one.cpu_us for one in plain),
        "alone_rate": statistics.median(one.rate for one in plain),
        "alone_p50_ms": statistics.median(one.p50_ms for one in plain),
        "alone_p99_ms": statistics.median(one.p99_ms for one in plain),
        "added": {name: vars(one) for name, one in added.items()},
        "in_programs_us": in_programs, "agent_us": agent_us, "rss_mb": rss_mb,
        "seen": seen, "asked": asked, "lost": missed,
    }  # fmt: skip


def read_watched(
    service: workloads.Served, watcher: measure.Agent, seconds: float
) -> tuple[Reading, float, tuple[int, int, int]]:
    """The reading, the agent's CPU time a request in us, and requests seen, made and declared lost."""
    service.load(0.5, OTHER_CORE)
    time.sleep(1.3)
    seen, lost, before = watcher.seen(), sum(watcher.lost().values()), measure.cpu_ns(watcher.pid)
    cpu = service.cpu_ns()
    done = service.load(seconds, OTHER_CORE)
    spent = service.cpu_ns() - cpu
    time.sleep(1.5)
    agent_ns = measure.cpu_ns(watcher.pid) - before
    made = Reading(spent / done.requests / 1000, done.requests / done.seconds, done.p50_ms, done.p99_ms)
    counts = (watcher.seen() - seen, done.requests, sum(watcher.lost().values()) - lost)
    return made, agent_ns / done.requests / 1000, counts


def read_backends(service: workloads.Served, tracer: object, seconds: float) -> Reading:
    """PostgreSQL has a process for each connection: tools of this kind follow forks, this one is told."""
    assert isinstance(tracer, syscalls.Tracer)
    with tracer.following(service.pids):
        return read(service, seconds)


def told(name: str, found: dict[str, object]) -> str:
    """For people."""
    added: dict[str, dict[str, list[float]]] = found["added"]  # type: ignore[assignment]
    title = f"{name}: {found['alone_us']:.1f} us of CPU a request, {found['alone_rate']:,.0f} requests/s"
    if found["alone_p99_ms"]:
        title += f", p50 {found['alone_p50_ms']:.2f} ms, p99 {found['alone_p99_ms']:.2f} ms"
    lines = [title]
    for key, label in (
        ("floor", "empty programs on onlooker's hooks"),
        ("watched", "onlooker"),
        ("syscalls", "tracer of system calls"),
    ):
        one = added[key]
        late = f"   p50 {spread(one['p50'], 1)} %" + (f"   p99 {spread(one['p99'], 1)} %" if one["p99"] else "")
        lines.append(f"  + {label:<36}CPU {spread(one['cpu_us'])} us   requests/s {spread(one['rate'], 1)} %{late}")
    agent_us, rss = statistics.median(found["agent_us"]), statistics.median(found["rss_mb"])  # type: ignore[call-overload]
    lines.append(
        f"  agent: {agent_us:.2f} us a request, {rss:.0f} MB; seen {found['seen']:,} of {found['asked']:,}"
        f" (wrk leaves up to {workloads.CONNECTIONS} a run uncounted), declared lost {found['lost']}"
    )
    inside: dict[str, list[float]] = found["in_programs_us"]  # type: ignore[assignment]
    ours, theirs = (statistics.median(inside[key]) for key in ("watched", "syscalls"))
    lines.append(
        f"  in BPF programs, a request: onlooker {spread(inside['watched'])} us, tracer of system calls"
        f" {spread(inside['syscalls'])} us: {ours / theirs:.2f} of it"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [one.name for one in workloads.WORKLOADS]
    parser.add_argument("--only", choices=[*names, "starts"], action="append", help="this one; may be given again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--quick", action="store_true", help="two short rounds: a look, not a measurement")
    parser.add_argument("--first", action="store_true", help="run before other work of the machine (SCHED_FIFO)")
    parser.add_argument("--json", type=Path, default=measure.ROOT / "build/bench_suite.json", metavar="FILE")
    options = parser.parse_args(argv)
    measure.Priority.real_time = options.first
    if options.quick:
        options.seconds, options.rounds = 1, 2
    if os.geteuid() != 0:
        print("suite: needs root: it loads BPF programs", file=sys.stderr)
        return 2
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}\n")
    found: dict[str, object] = {}
    status = 0
    with tempfile.TemporaryDirectory(prefix="bench-suite-") as text:
        directory = Path(text)
        directory.chmod(0o755)
        for workload in workloads.WORKLOADS:
            if options.only and workload.name not in options.only:
                continue
            try:
                if missing := workloads.absent(workload):
                    raise measure.NotPossible(f"needs {', '.join(missing)}: run make test-setup")
                result = measured(workload, directory, options.rounds, options.seconds)
            except measure.NotPossible as err:
                print(f"{workload.name}: not measured: {err}\n", flush=True)
                status = 2
                continue
            found[workload.name] = result
            print(told(workload.name, result) + "\n", flush=True)
        if not options.only or "starts" in options.only:
            lines, over = starts.told(directory, rounds=min(options.rounds, 3))
            found["starts"] = lines
            print("\n".join(lines), flush=True)
            status = status or over
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
