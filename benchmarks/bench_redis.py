"""What onlooker costs a Redis server, in CPU time an operation; a part of `bench.py`.

Every round has the same number of commands; rounds with and without onlooker take turns, and each watched round is
compared with the plain ones next to it. redis-benchmark sends as fast as the server answers, paced_redis.py at a rate
that keeps it partly busy, as most servers are: an operation costs more there, alone and watched.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measure import agent, cpu_ns, free_port, need, pinned, started, wait_for_port

INCUMBENT = "OBI#1025: 28 % to 47 % of CPU"
"""What users of the incumbent reported."""

PIPELINES = {1: 30_000, 50: 400_000}
"""Commands in flight on a connection, to operations a second that a round is made of."""

PACED = 0
"""Stands for a fixed rate where others are commands in flight."""

SHARE = 0.28
"""Of a core, that the server alone uses at that rate; the least that the incumbent's users tell of."""

FIRST_RATE = 8000
"""Operations a second, by which the rate is found that takes so much."""

CONFIGURATION = 2
"""CONFIG GET that redis-benchmark asks before its load."""


@dataclass
class Cost:
    """Rounds of one load.

    Attributes:
        alone: CPU time of the server an operation, in us, round by round.
        added: How much more it was while watched, in us.
        seen: Operations that onlooker counted, those that it declared lost, and those that were sent to it watched.
        rate: Operations a second, if it is fixed.
        kept: And those that there were, round by round.
    """

    alone: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    seen: list[tuple[int, int, int]] = field(default_factory=list)
    rate: float = 0
    kept: list[float] = field(default_factory=list)

    def told(self) -> str:
        """The rate, in words."""
        if not self.rate:
            return ""
        share = 100 * statistics.median(self.alone) * statistics.median(self.kept) / 1e6
        return f"{statistics.median(self.kept):,.0f}/s of {self.rate:,.0f}/s asked: {share:.0f} % of a core"


@contextlib.contextmanager
def redis(directory: Path, *, core: int | None) -> Iterator[tuple[int, int]]:
    """A server that keeps nothing: its pid and port."""
    need("redis-server", "redis-benchmark", "redis-cli")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
               "--dir", str(directory)]  # fmt: skip
    with started(command, core=core) as process:
        wait_for_port(port, process)
        yield process.pid, port


def load(port: int, *, operations: int, pipeline: int, core: int | None, connections: int = 32) -> None:
    """Half of them SET, half GET."""
    subprocess.run(
        [*pinned(core), "redis-benchmark", "-p", str(port), "-P", str(pipeline), "-c", str(connections), "-n",
         str(operations // 2), "-q", "-t", "set,get", "-r", "10000"],
        check=True, stdout=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


def redis_ns(pid: int, port: int, *, operations: int, pipeline: int, core: int | None) -> float:
    """CPU time of the server for one operation."""
    before = cpu_ns(pid)
    load(port, operations=operations, pipeline=pipeline, core=core)
    return (cpu_ns(pid) - before) / operations


def paced(port: int, *, operations: int, rate: float, core: int | None) -> float:
    """The same at a fixed rate: how many there were a second."""
    program = Path(__file__).parent / "paced_redis.py"
    done = subprocess.run(
        [*pinned(core), sys.executable, program, str(port), str(rate), str(operations)],
        check=True, stdout=subprocess.PIPE, timeout=300,
    )  # fmt: skip
    return operations / float(json.loads(done.stdout)["seconds"])


def paced_rate(pid: int, port: int, *, core: int | None) -> float:
    """Operations a second that keep the server busy for SHARE of its core."""
    rate = float(FIRST_RATE)
    for _ in range(3):
        before = cpu_ns(pid)
        paced(port, operations=int(rate), rate=rate, core=core)
        rate = SHARE * 1e9 / ((cpu_ns(pid) - before) / int(rate))
    return rate


def compare(
    cost: Cost, once: Callable[[int], float], directory: Path, port: int, *, operations: int, extra: int, rounds: int,
    other_core: int | None, say: Callable[[int], None],
) -> None:  # fmt: skip
    """Plain and watched rounds in turn.

    Args:
        cost: What they cost goes there.
        once: A round of so many operations: CPU time of the server for one, in ns.
        directory: Of the agent's files.
        port: Of the server.
        operations: Of a round.
        extra: Commands that come with each load besides.
        rounds: How many of each.
        other_core: Of everything but the server.
        say: Progress.
    """
    once(operations)
    before = once(operations)
    cost.alone.append(before / 1000)
    for number in range(rounds):
        with agent(directory, "--open-port", str(port), core=other_core) as watcher:
            once(operations // 4)
            threading.Event().wait(1.5)  # longer than the longest round of the agent
            counted, lost = watcher.seen(), sum(watcher.lost().values())
            inside = once(operations)
            threading.Event().wait(1.5)
            cost.seen.append((watcher.seen() - counted, sum(watcher.lost().values()) - lost, operations + extra))
        after = once(operations)
        cost.alone.append(after / 1000)
        cost.added.append((inside - (before + after) / 2) / 1000)
        before = after
        say(number)


def redis_cost(
    directory: Path, *, seconds: float, rounds: int, server_core: int | None, other_core: int | None,
    say: Callable[[str], None],
) -> dict[int, Cost]:  # fmt: skip
    """Costs by the depth of the pipeline, and PACED."""
    found = {load: Cost() for load in (*PIPELINES, PACED)}
    with redis(directory, core=server_core) as (pid, port):
        for pipeline, rate in PIPELINES.items():

            def full(count: int, depth: int = pipeline) -> float:
                return redis_ns(pid, port, operations=count, pipeline=depth, core=other_core)

            compare(
                found[pipeline], full, directory, port, operations=int(rate * max(seconds, 1.0)), extra=CONFIGURATION,
                rounds=rounds, other_core=other_core,
                say=lambda number, depth=pipeline: say(f"Redis, pipeline of {depth}, round {number + 1} of {rounds}"),
            )  # fmt: skip
        steady = found[PACED]
        steady.rate = paced_rate(pid, port, core=other_core)

        def fixed(count: int) -> float:
            began = cpu_ns(pid)
            steady.kept.append(paced(port, operations=count, rate=steady.rate, core=other_core))
            return (cpu_ns(pid) - began) / count

        compare(
            steady, fixed, directory, port, operations=int(steady.rate * max(seconds, 1.0)), extra=0, rounds=rounds,
            other_core=other_core, say=lambda number: say(f"Redis, fixed rate, round {number + 1} of {rounds}"),
        )  # fmt: skip
    return found
