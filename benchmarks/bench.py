"""What onlooker costs on this machine, as ratios within one run.

The server is pinned to core 0; the load and the agent share core 1, as they would any core that the service does not
need.  So the server's CPU time a request holds what the kernel side costs it, and the agent's CPU time is read apart.
Variants alternate, in another order each round, and each is compared with the plain rounds next to it: what drifts on
the machine falls out.  Medians, with the quartiles in brackets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import bench_redis
from measure import (
    ROOT,
    Agent,
    Nginx,
    NotPossible,
    Priority,
    agent,
    built_floor,
    cpu_ns,
    floor,
    memory,
    need,
    nginx,
    sink,
    started,
    wrk,
    wrk_running,
)  # fmt: skip

SERVER_CORE, OTHER_CORE = 0, 1
SETTLE_S = 1.3  # more than the longest interval of draining
IDLE_PROCESSES = 50


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        budget: Of the design; None if there is none.
        quartiles: Of the rounds; empty for single readings.
    """

    key: str
    label: str
    value: float
    unit: str
    budget: float | None = None
    quartiles: tuple[float, ...] = ()
    note: str = ""

    @property
    def verdict(self) -> str:
        return "" if self.budget is None else "ok" if self.value <= self.budget else "over"


@dataclass
class Rounds:
    """Values of one variant, round by round."""

    values: list[float] = field(default_factory=list)

    def figure(self, key: str, label: str, unit: str, budget: float | None = None, note: str = "") -> Figure:
        values = self.values
        quartiles = tuple(statistics.quantiles(values, n=4)[::2]) if len(values) > 2 else ()
        return Figure(key, label, statistics.median(values), unit, budget, quartiles, note)


@dataclass(frozen=True)
class Plan:
    """How long, and how often."""

    seconds: float
    rounds: int
    directory: Path


# ---- the server's CPU time ----


def server_ns(server: Nginx, seconds: float) -> float:
    """CPU time of the server for one request, under full load."""
    before, asked = cpu_ns(server.worker), server.requests()
    wrk(server.url, seconds=seconds, core=OTHER_CORE)
    return (cpu_ns(server.worker) - before) / (server.requests() - asked)


def server_cost(plan: Plan, say: Callable[[str], None]) -> list[Figure]:
    """Server CPU a request: alone, with empty programs, watched, and while another port is watched."""
    with nginx(plan.directory, core=SERVER_CORE) as server, nginx(plan.directory, core=SERVER_CORE) as other:

        @contextlib.contextmanager
        def watching(port: int) -> Iterator[None]:
            with agent(plan.directory, "--open-port", str(port), core=OTHER_CORE):
                yield

        empty = built_floor(plan.directory)
        variants: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
            "floor": lambda: floor(empty),
            "watched": lambda: watching(server.port),
            "bystander": lambda: watching(other.port),
        }
        plain = Rounds()
        added: dict[str, Rounds] = {name: Rounds() for name in variants}
        server_ns(server, 1)
        for number in range(plan.rounds):
            order = list(variants)
            random.shuffle(order)
            before = server_ns(server, plan.seconds)
            plain.values.append(before)
            for name in order:
                with variants[name]():
                    server_ns(server, 0.5)
                    inside = server_ns(server, plan.seconds)
                after = server_ns(server, plan.seconds)
                plain.values.append(after)
                added[name].values.append((inside - (before + after) / 2) / 1000)
                before = after
            say(f"server CPU, round {number + 1} of {plan.rounds}")
    plain.values = [value / 1000 for value in plain.values]
    alone = statistics.median(plain.values)
    share = 100 * statistics.median(added["watched"].values) / alone
    return [
        plain.figure("server_alone", "server CPU a request, alone", "us"),
        added["floor"].figure("server_floor", "  + empty programs on the same hooks", "us"),
        added["watched"].figure("server_watched", "  + watched by onlooker", "us", 1.5, f"{share:.0f} % of it"),
        added["bystander"].figure(
            "server_bystander", "  + onlooker watches another process", "us", 0.12, "two socket calls a request"
        ),
    ]


# ---- the agent's CPU time, and the truth ----


def agent_rounds(server: Nginx, watcher: Agent, plan: Plan) -> Rounds:
    """CPU time of the agent for one request, in us, read while the load is at work."""
    rounds = Rounds()
    with wrk_running(server.url, core=OTHER_CORE):
        time.sleep(SETTLE_S)
        for _ in range(plan.rounds):
            before, asked = cpu_ns(watcher.pid), server.requests()
            time.sleep(plan.seconds)
            rounds.values.append((cpu_ns(watcher.pid) - before) / (server.requests() - asked) / 1000)
    return rounds


def loss(server: Nginx, watcher: Agent, seconds: float) -> tuple[int, int, dict[str, int]]:
    """Requests that the server counted and that the agent counted, and what it declares as lost."""
    time.sleep(SETTLE_S)
    seen, asked, lost = watcher.seen(), server.requests(), watcher.lost()
    wrk(server.url, seconds=seconds, core=OTHER_CORE)
    time.sleep(SETTLE_S)
    found = watcher.seen() - seen
    declared = {reason: count - lost.get(reason, 0) for reason, count in watcher.lost().items()}
    return server.requests() - asked, found, {reason: count for reason, count in declared.items() if count}


def agent_cost(plan: Plan, say: Callable[[str], None]) -> list[Figure]:
    """Agent CPU a request: metrics only, with every span exported, with page and store; memory of each; loss."""
    lines: list[Figure] = []
    with nginx(plan.directory, core=SERVER_CORE) as server, sink(core=OTHER_CORE) as port:
        settings: list[tuple[str, str, dict[str, object], float | None, float | None]] = [
            ("metrics", "metrics only", {}, 0.5, None),
            ("spans", "every span exported by OTLP", {"otlp_port": port}, 2.0, None),
            ("all", "page, store and OTLP", {"otlp_port": port, "page": True}, None, 64.0),
        ]
        for key, label, asked, cpu_budget, memory_budget in settings:
            with agent(plan.directory, "--open-port", str(server.port), core=OTHER_CORE, **asked) as watcher:  # type: ignore[arg-type]
                start = memory(watcher.pid)
                wrk(server.url, seconds=1, core=OTHER_CORE)
                lines.append(
                    agent_rounds(server, watcher, plan).figure(
                        f"agent_{key}", f"agent CPU a request, {label}", "us", cpu_budget
                    )
                )
                sent, found, lost = loss(server, watcher, plan.seconds)
                # a request in flight when wrk stops is answered to nobody: one for each connection at most
                missing = abs(sent - found - sum(count for reason, count in lost.items() if reason in KERNEL_LOSSES))
                told = ", ".join(f"{reason} {count:,}" for reason, count in lost.items()) or "nothing"
                lines.append(
                    Figure(f"loss_{key}", "  requests neither counted nor declared", missing, "", 0,
                           note=f"{sent:,} sent, {found:,} counted; declared: {told}")
                )  # fmt: skip
                used = memory(watcher.pid)
                lines.append(
                    Figure(f"memory_{key}", "  resident memory under load", used.total / 1024, "MB", memory_budget,
                           note=f"{used.anon / 1024:.0f} anonymous, {used.file / 1024:.0f} files; "
                           f"{start.total / 1024:.0f} at start, peak {used.peak / 1024:.0f}")
                )  # fmt: skip
            say(f"agent CPU, {label}")
    return lines


KERNEL_LOSSES = frozenset({"ring_full", "half_without_response", "half_without_request", "unknown_process"})
"""Reasons that stand for a request each.  The others tell of bytes or of responses, or of exports."""


# ---- Redis ----


def redis(plan: Plan, say: Callable[[str], None]) -> list[Figure]:
    """CPU of a Redis server an operation, alone and watched; what was neither counted nor declared."""
    lines: list[Figure] = []
    found = bench_redis.redis_cost(
        plan.directory, seconds=plan.seconds, rounds=plan.rounds, server_core=SERVER_CORE, other_core=OTHER_CORE,
        say=say,
    )  # fmt: skip
    for depth, cost in found.items():
        alone = Rounds(cost.alone)
        shares = Rounds([100 * added / statistics.median(cost.alone) for added in cost.added])
        missing = max(abs(sent - seen - lost) for seen, lost, sent in cost.seen)
        load = f"-P {depth}" if depth else "at a fixed rate"
        lines += [
            alone.figure(f"redis_{depth or 'paced'}", f"Redis CPU an operation, {load}, alone", "us", note=cost.told()),
            shares.figure(
                f"redis_{depth or 'paced'}_watched", "  + watched by onlooker", "% of it", 8.0,
                f"{statistics.median(cost.added):+.2f} us; {bench_redis.INCUMBENT}",
            ),
            Figure(f"redis_{depth or 'paced'}_loss", "  operations neither counted nor declared", missing, "", 0,
                   note=f"of {cost.seen[-1][2]:,} a round; declared: {max(lost for _, lost, _ in cost.seen):,}"),
        ]  # fmt: skip
    return lines


# ---- start and idle ----


def start_up(plan: Plan, say: Callable[[str], None]) -> list[Figure]:
    """From the start of the process to ready, and to the first span at a receiver."""
    ready, first = Rounds(), Rounds()
    peaks = []
    with nginx(plan.directory, core=SERVER_CORE) as server:
        for _ in range(plan.rounds):
            with sink(core=OTHER_CORE) as port, wrk_running(server.url, core=OTHER_CORE, connections=2):
                began = time.monotonic()
                fast = "otel_metrics_export: {interval: 60s}"
                with agent(plan.directory, "--open-port", str(server.port), core=None, otlp_port=0, extra=fast,
                           ) as watcher:  # fmt: skip
                    ready.values.append(watcher.ready_s)
                    while not watcher.seen():
                        time.sleep(0.01)
                    first.values.append(time.monotonic() - began)
                    peaks.append(memory(watcher.pid).peak / 1024)
                del port
    say("start")
    return [
        ready.figure("start_ready", "start to ready", "s"),
        first.figure("start_span", "start to first span", "s", 1.5),
        Figure("start_peak", "  peak memory of the start", max(peaks), "MB", 100),
    ]


SLEEPER = "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\ntime.sleep(100000)\n"


def idle(plan: Plan, say: Callable[[str], None]) -> list[Figure]:
    """CPU time of the agent while 50 watched processes do nothing."""
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(started([sys.executable, "-S", "-c", SLEEPER])).pid for _ in range(IDLE_PROCESSES)]
        time.sleep(1)
        watched = stack.enter_context(agent(plan.directory, "--pid", ",".join(map(str, pids)), core=OTHER_CORE))
        count = watched.own()["onlooker_instrumented_processes"]
        time.sleep(3)
        before, began = cpu_ns(watched.pid), time.monotonic()
        time.sleep(max(plan.seconds * plan.rounds, 12))
        share = 100 * (cpu_ns(watched.pid) - before) / 1e9 / (time.monotonic() - began)
    say("idle")
    return [Figure("idle", f"idle, {count:.0f} processes watched", share, "% of a core", 0.2)]


def tls_cost(plan: Plan, say: Callable[[str], None]) -> list[Figure]:
    """What looking into TLS costs a process, a bystander and the agent; and gRPC."""
    import bench_tls  # with the agent's own modules, which the other parts do without

    return [
        Rounds(list(told.values)).figure(told.key, told.label, told.unit, told.budget, told.note)
        for told in bench_tls.measured(plan, say)
    ]


# ---- all of it ----

PARTS: dict[str, Callable[[Plan, Callable[[str], None]], list[Figure]]] = {
    "server": server_cost,
    "agent": agent_cost,
    "start": start_up,
    "idle": idle,
    "redis": redis,
    "tls": tls_cost,
}


def table(lines: Sequence[Figure]) -> str:
    """For people."""
    rows = [f"{'':<48}{'median':>10}  {'quartiles':<18}{'budget':>8}"]
    for line in lines:
        spread = f"[{line.quartiles[0]:.2f}, {line.quartiles[1]:.2f}]" if line.quartiles else ""
        budget = "" if line.budget is None else f"{line.budget:g}"
        row = (
            f"{line.label:<48}{line.value:>10.2f}  {spread:<18}{budget:>8} {line.unit:<12}{line.verdict:<5}{line.note}"
        )
        rows.append(row.rstrip())
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if every budget is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three short rounds: a look, not a measurement")
    parser.add_argument("--seconds", type=float, default=3, help="of each reading (default 3)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--first", action="store_true", help="run before other work of the machine (SCHED_FIFO): for a noisy one"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench.json", metavar="FILE")
    options = parser.parse_args(argv)
    Priority.real_time = options.first
    if options.quick:
        options.seconds, options.rounds = 1, 3

    def say(what: str) -> None:
        print(f"  ... {what}", file=sys.stderr, flush=True)

    lines: list[Figure] = []
    try:
        need("nginx", "wrk", "clang")
        if os.geteuid() != 0:
            raise NotPossible("needs root: it loads BPF programs")
        if len(os.sched_getaffinity(0)) < 2:
            raise NotPossible("needs two cores: one for the server, one for the rest")
        with tempfile.TemporaryDirectory(prefix="onlooker-bench-") as name:
            directory = Path(name)
            directory.chmod(0o755)
            plan = Plan(options.seconds, options.rounds, directory)
            for part in options.only or PARTS:
                lines += PARTS[part](plan, say)
    except NotPossible as err:
        print(f"bench: {err}", file=sys.stderr)
        return 2
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}; nginx, 600 bytes,"
          " keep-alive, wrk -t1 -c32\n")  # fmt: skip
    print(table(lines))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([{**asdict(line), "verdict": line.verdict} for line in lines], indent=2) + "\n")
    return 1 if any(line.verdict == "over" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
