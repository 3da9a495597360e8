"""What onlooker costs a Redis server, in CPU time an operation; a part of `bench.py`.

redis-benchmark sends the same number of commands in every round; rounds with and without onlooker take turns, and each
watched round is compared with the plain ones next to it.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measure import agent, cpu_ns, free_port, need, pinned, started, wait_for_port

INCUMBENT = "OBI#1025: 28 % to 47 % of CPU"
"""What users of the incumbent reported."""

PIPELINES = {1: 30_000, 50: 400_000}
"""Commands in flight on a connection, to operations a second that a round is made of."""

CONFIGURATION = 2
"""CONFIG GET that redis-benchmark asks before its load."""


@dataclass
class Cost:
    """Rounds of one load.

    Attributes:
        alone: CPU time of the server an operation, in us, round by round.
        added: How much more it was while watched, in us.
        seen: Operations that onlooker counted, those that it declared lost, and those that were sent to it watched.
    """

    alone: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    seen: list[tuple[int, int, int]] = field(default_factory=list)


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


def redis_cost(
    directory: Path, *, seconds: float, rounds: int, server_core: int | None, other_core: int | None,
    say: Callable[[str], None],
) -> dict[int, Cost]:  # fmt: skip
    """Costs by the depth of the pipeline."""
    found = {pipeline: Cost() for pipeline in PIPELINES}
    with redis(directory, core=server_core) as (pid, port):
        for pipeline, rate in PIPELINES.items():
            operations = int(rate * max(seconds, 1.0))
            cost = found[pipeline]

            def once(count: int = operations, depth: int = pipeline) -> float:
                return redis_ns(pid, port, operations=count, pipeline=depth, core=other_core)

            once()
            before = once()
            cost.alone.append(before / 1000)
            for number in range(rounds):
                with agent(directory, "--open-port", str(port), core=other_core) as watcher:
                    once(operations // 4)
                    threading.Event().wait(1.5)  # longer than the longest round of the agent
                    counted, lost = watcher.seen(), sum(watcher.lost().values())
                    inside = once()
                    threading.Event().wait(1.5)
                    sent = operations + CONFIGURATION
                    cost.seen.append((watcher.seen() - counted, sum(watcher.lost().values()) - lost, sent))
                after = once()
                cost.alone.append(after / 1000)
                cost.added.append((inside - (before + after) / 2) / 1000)
                before = after
                say(f"Redis, pipeline of {pipeline}, round {number + 1} of {rounds}")
    return found
