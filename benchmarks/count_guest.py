"""Inside the counting machine: one nginx, one agent, two loads; prints what they executed as one line of JSON.

The clock of that machine counts instructions, 2 ns each, so CPU time is halved.  Started by bench_count.py.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

from measure import Agent, Nginx, agent, cpu_ns, floor, nginx, paced_running, sink, wrk, wrk_running

NS_PER_INSTRUCTION = 2
SETTLE_S = 1.5  # more than the longest interval of draining
QUIET_NS = 10_000_000  # in a second: 5 million instructions, more than rounds without requests take
LEAD_S = 2.0  # until the agent drains as it does from then on


def wait_until_quiet(watcher: Agent) -> None:
    """Until what follows a start is done: looking into binaries takes an agent its time in here."""
    for _ in range(60):
        before = cpu_ns(watcher.pid)
        time.sleep(1)
        if cpu_ns(watcher.pid) - before < QUIET_NS:
            return


def counted(
    server: Nginx, watcher: Agent | None, load: AbstractContextManager[object], seconds: float
) -> dict[str, float]:
    """Instructions a request of the server and of the agent while ``load`` is at work for ``seconds``.

    The load has begun before and ends after that, so that new processes and connections are not in the figures.
    """
    time.sleep(SETTLE_S)
    seen = watcher.seen() if watcher else 0
    asked = server.requests()
    with load:
        while server.requests() < asked + 100:  # the load has to start first, which takes its time in here
            time.sleep(0.2)
        time.sleep(LEAD_S)
        before, agent_before, server_before = (
            server.requests(),
            cpu_ns(watcher.pid) if watcher else 0,
            cpu_ns(server.worker),
        )
        time.sleep(seconds)
        after, agent_after, server_after = (
            server.requests(),
            cpu_ns(watcher.pid) if watcher else 0,
            cpu_ns(server.worker),
        )
    requests = after - before
    found = {"requests": requests, "server": (server_after - server_before) / NS_PER_INSTRUCTION / requests}
    if watcher:
        time.sleep(SETTLE_S)
        found["agent"] = (agent_after - agent_before) / NS_PER_INSTRUCTION / requests
        # the first question about the count was asked before `seen` is, the other two are in both figures
        found["seen"] = (watcher.seen() - seen) / (server.requests() - asked)
        found["lost"] = sum(watcher.lost().values())
    return found


def main() -> None:
    """One run: without the agent, with empty programs, then with it."""
    options = json.loads(sys.argv[1])
    seconds, slow_seconds = options["seconds"], options["slow_seconds"]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(nginx(directory, core=None))

        def fast() -> AbstractContextManager[object]:
            return wrk_running(server.url)

        def slow() -> AbstractContextManager[object]:
            return paced_running(server.port, rate=150)

        wrk(server.url, seconds=1, core=None)
        found = {
            "alone": counted(server, None, fast(), seconds),
            "alone_slow": counted(server, None, slow(), slow_seconds),
        }
        with floor(Path(options["floor"])):
            found["floor"] = counted(server, None, fast(), seconds)
        port = stack.enter_context(sink(core=None)) if options["otlp"] else 0
        watcher = stack.enter_context(
            agent(directory, "--open-port", str(server.port), core=None, otlp_port=port, timeout_s=200)
        )
        # caches, tables and first calls: not what a request costs
        wrk(server.url, seconds=1, core=None)
        wait_until_quiet(watcher)
        found["watched"] = counted(server, watcher, fast(), seconds)
        found["watched_slow"] = counted(server, watcher, slow(), slow_seconds)
        idle = cpu_ns(watcher.pid)
        time.sleep(10)
        found["idle"] = {"agent": (cpu_ns(watcher.pid) - idle) / NS_PER_INSTRUCTION / 10}
        found["start"] = {"ready_s": watcher.ready_s}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
