"""Inside the counting machine: each service alone, traced by system calls, then watched; one line of JSON.

The clock of that machine counts instructions, 2 ns each, so CPU times are halved.  Started by ``count.py``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measure  # noqa: E402 - found by this path alone
import syscalls  # noqa: E402
import workloads  # noqa: E402
from count_guest import wait_until_quiet  # noqa: E402 - the other one, in the folder above

NS_PER_INSTRUCTION = 2
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
SETTLE_S = 1.5


def spent(service: workloads.Served, seconds: float) -> tuple[float, int]:
    """Instructions a request, and requests."""
    before = service.cpu_ns()
    done = service.load(seconds, None)
    return (service.cpu_ns() - before) / NS_PER_INSTRUCTION / done.requests, done.requests


def main() -> None:
    options = json.loads(sys.argv[1])
    seconds = options["seconds"]
    found: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        running = {}
        for workload in (*workloads.WORKLOADS, *workloads.NAMED):
            if workload.name in options["names"]:
                running[workload.name] = stack.enter_context(workload.serve(directory, None))
                print(f"{workload.name} runs", file=sys.stderr, flush=True)
        for name, service in running.items():
            for _ in range(options["warm"]):  # caches; compilers that compile while it runs
                service.load(seconds, None)
            found[name] = {"alone": spent(service, seconds)[0]}
            print(f"{name} alone: {found[name]}", file=sys.stderr, flush=True)
        for name, service in running.items():
            with syscalls.tracing(Path(options["tracer"]), service.pids()) as tracer, tracer.following(service.pids):
                service.load(1, None)
                found[name]["syscalls"] = spent(service, seconds)[0]
                STATS.write_text("1")
                before = tracer.program_ns()
                requests = spent(service, seconds)[1]
                STATS.write_text("0")
                found[name]["syscalls_programs"] = (tracer.program_ns() - before) / NS_PER_INSTRUCTION / requests
            print(f"{name} traced: {found[name]}", file=sys.stderr, flush=True)
        ports = ",".join(str(service.port) for service in running.values())
        watcher = stack.enter_context(measure.agent(directory, "--open-port", ports, core=None, timeout_s=300))
        wait_until_quiet(watcher)
        for name, service in running.items():
            service.load(1, None)
            time.sleep(SETTLE_S)
            seen, agent = watcher.seen(), measure.cpu_ns(watcher.pid)
            each, requests = spent(service, seconds)
            time.sleep(SETTLE_S)
            found[name]["watched"] = each
            found[name]["agent"] = (measure.cpu_ns(watcher.pid) - agent) / NS_PER_INSTRUCTION / requests
            time.sleep(SETTLE_S)
            found[name]["seen"] = (watcher.seen() - seen) / requests
            STATS.write_text("1")
            before = programs_ns(watcher)
            requests = spent(service, seconds)[1]
            time.sleep(SETTLE_S)
            STATS.write_text("0")
            found[name]["programs"] = (programs_ns(watcher) - before) / NS_PER_INSTRUCTION / requests
            print(f"{name} watched: {found[name]}", file=sys.stderr, flush=True)
        found["lost"] = {reason: float(count) for reason, count in watcher.lost().items()}
    print(json.dumps(found), flush=True)


def programs_ns(watcher: measure.Agent) -> float:
    """Time in the agent's programs, as far as the kernel measured it."""
    return 1e9 * sum(
        value
        for name, value in watcher.own().items()
        if name.startswith("onlooker_probe_time_seconds_total") and "sched_process" not in name
    )


if __name__ == "__main__":
    main()
