"""Instructions a request: of nginx, and of the agent, in the counting machine of the kernel lab.

What else this machine does changes nothing there, so two runs agree within 3 % and a test can hold the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import ROOT, NotPossible, built_floor, need

SLACK = 0.05
"""A held figure may be this much worse: twice what two runs of one build differ by."""

PUBLISHED = {
    "server_added": 36_000.0,
    "agent": 70_000.0,
    "agent_at_150": 131_000.0,
    "seen_percent": 70.0,
}
"""Grafana Beyla in the same machine with Linux 6.1, where nginx alone took 22,600 a request."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        budget: None if there is none; a floor for shares, a ceiling for the rest.
        ours: Whether it tells of onlooker: what a server or the hooks cost by themselves is not held.
    """

    key: str
    label: str
    value: float
    budget: float | None = None
    floor: bool = False
    ours: bool = True

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return ""
        return "ok" if (self.value >= self.budget if self.floor else self.value <= self.budget) else "over"


def figures(found: dict[str, dict[str, float]]) -> list[Figure]:
    """What the guest counted, as lines."""
    alone, watched = found["alone"], found["watched"]
    alone_slow, watched_slow = found["alone_slow"], found["watched_slow"]
    return [
        Figure("server_alone", "nginx, one request, not watched", alone["server"], ours=False),
        Figure(
            "server_floor",
            "  added by empty programs on the hooks",
            found["floor"]["server"] - alone["server"],
            ours=False,
        ),
        Figure("server_added", "  added by onlooker", watched["server"] - alone["server"], 4_000),
        Figure("server_added_at_150", "  added at 150 requests/s", watched_slow["server"] - alone_slow["server"]),
        Figure("agent", "agent, one request, at saturation", watched["agent"], 10_000),
        Figure("agent_at_150", "agent, one request, at 150/s", watched_slow["agent"], 30_000),
        Figure("seen_percent", "requests seen at saturation, %", 100 * watched["seen"], 100, floor=True),
        Figure("seen_at_150_percent", "requests seen at 150/s, %", 100 * watched_slow["seen"], 100, floor=True),
        Figure("agent_idle", "agent, one idle second", found["idle"]["agent"]),
    ]


def table(lines: Sequence[Figure], title: str) -> str:
    """For people."""
    rows = [f"{title}\n", f"{'instructions':<40}{'onlooker':>12}{'budget':>12}        {'incumbent':>12}"]
    for line in lines:
        budget = "" if line.budget is None else f"{'>=' if line.floor else '<='} {line.budget:,.0f}"
        published = f"{PUBLISHED[line.key]:,.0f}" if line.key in PUBLISHED else ""
        rows.append(f"{line.label:<40}{line.value:>12,.0f}{budget:>12}  {line.verdict:<6}{published:>12}")
    return "\n".join(rows)


def worse(lines: Sequence[Figure], baseline: dict[str, float]) -> list[str]:
    """What became worse than the baseline by more than the slack, one sentence each."""
    told = []
    for line in lines:
        held = baseline.get(line.key)
        if held is None or not line.ours:
            continue
        limit = held * (1 - SLACK) if line.floor else held * (1 + SLACK)
        if line.value < limit if line.floor else line.value > limit:
            told.append(f"{line.key}: {line.value:,.0f}, held at {held:,.0f} (slack {SLACK:.0%})")
    return told


def run_guest(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Boot, measure, and read what the guest printed.

    Raises:
        NotPossible: the machine or something in it failed.
    """
    need("nginx", "wrk", "clang", "qemu-system-x86_64")
    asked = json.dumps(
        {
            "seconds": options.seconds,
            "slow_seconds": options.slow_seconds,
            "otlp": options.otlp,
            "floor": str(built_floor(ROOT / "build/bench")),
        }
    )
    command = [
        str(ROOT / "kernel-lab/vmrun"), "--kernel", options.kernel, "--count", "--mem", "3G",
        "--timeout", str(options.timeout), "--env", f"PYTHONPATH={ROOT / 'src'}", "--",
        str(ROOT / ".venv/bin/python"), "-B", str(ROOT / "benchmarks/count_guest.py"), asked,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise NotPossible(f"the counting machine ended with {done.returncode}: {done.stdout[-500:]}")
    found: dict[str, dict[str, float]] = json.loads(lines[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if every budget or held figure is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="6.12", help="as for kernel-lab/vmrun (default 6.12)")
    parser.add_argument("--seconds", type=float, default=3, help="of the machine's own clock, at saturation")
    parser.add_argument("--slow-seconds", type=float, default=10, help="at 150 requests a second")
    parser.add_argument("--otlp", action="store_true", help="export every span, without compression")
    parser.add_argument("--timeout", type=float, default=900, help="of this machine's clock, for all of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--hold", type=Path, metavar="FILE", help="compare with these figures: fail if 5 %% worse")
    options = parser.parse_args(argv)
    try:
        found = run_guest(options)
    except NotPossible as err:
        print(f"bench_count: {err}", file=sys.stderr)
        return 2
    lines = figures(found)
    spans = ", every span exported by OTLP" if options.otlp else ", metrics only"
    print(table(lines, f"Linux {options.kernel}, one CPU that counts{spans}"))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({line.key: round(line.value, 1) for line in lines}, indent=2) + "\n")
    if options.hold:
        told = worse(lines, json.loads(options.hold.read_text()))
        for sentence in told:
            print(f"worse than {options.hold}: {sentence}", file=sys.stderr)
        return 1 if told else 0
    return 1 if any(line.verdict == "over" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
