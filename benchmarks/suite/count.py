"""Instructions a request, for services of several languages, in the counting machine of the kernel lab.

What else this machine does changes nothing there.  *Programs* is what ran inside BPF programs, by the kernel's own
clock, which repeats within a few percent even where a service's own work does not: a compiler that compiles while it
runs, or a collector of garbage, moves a service by more than any tracer adds.

    sudo .venv/bin/python benchmarks/suite/count.py [--only go] [--hold benchmarks/suite/counts.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measure  # noqa: E402 - found by this path alone
import syscalls  # noqa: E402
import workloads  # noqa: E402

SLACK = 0.05
HELD = ("programs", "agent")
SHARE = 0.5
"""Of the tracer of system calls: what onlooker may cost."""


def run_guest(options: argparse.Namespace, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Boot, measure, and read what the guest printed.

    Raises:
        NotPossible: the machine or something in it failed.
    """
    measure.need("clang", "qemu-system-x86_64")
    asked = json.dumps(
        {
            "seconds": options.seconds,
            "warm": 2,
            "names": names,
            "tracer": str(syscalls.built(measure.ROOT / "build/bench")),
        }
    )
    command = [
        str(measure.ROOT / "kernel-lab/vmrun"), "--kernel", options.kernel, "--count", "--mem", "4G",
        "--timeout", str(options.timeout), "--env", f"PYTHONPATH={measure.ROOT / 'src'}", "--",
        str(measure.ROOT / ".venv/bin/python"), "-B", str(HERE / "count_guest.py"), asked,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise measure.NotPossible(f"the counting machine ended with {done.returncode}: {done.stdout[-500:]}")
    found: dict[str, dict[str, float]] = json.loads(lines[-1])
    return found


def table(found: dict[str, dict[str, float]], kernel: str) -> str:
    """For people: instructions a request."""
    rows = [
        f"Linux {kernel}, one CPU that counts; instructions a request\n",
        f"{'':<12}{'service':>10}{'added':>9}{'tracer':>9}{'programs':>10}{'tracer':>9}{'share':>7}{'agent':>8}{'seen':>8}",
    ]
    for name, one in found.items():
        if name == "lost":
            continue
        rows.append(
            f"{name:<12}{one['alone']:>10,.0f}{one['watched'] - one['alone']:>9,.0f}"
            f"{one['syscalls'] - one['alone']:>9,.0f}{one['programs']:>10,.0f}{one['syscalls_programs']:>9,.0f}"
            f"{one['programs'] / one['syscalls_programs']:>7.2f}{one['agent']:>8,.0f}{100 * one['seen']:>7.1f}%"
        )
    return "\n".join([*rows, f"declared lost: {found.get('lost') or 'nothing'}"])


def worse(found: dict[str, dict[str, float]], held: dict[str, dict[str, float]]) -> list[str]:
    """What became worse than the held figures by more than the slack, or is not seen; one sentence each."""
    told = []
    for name, kept in held.items():
        if name not in found:
            continue
        told += [
            f"{name}, {key}: {found[name][key]:,.0f}, held at {kept[key]:,.0f} (slack {SLACK:.0%})"
            for key in HELD
            if found[name][key] > kept[key] * (1 + SLACK)
        ]
        if found[name]["seen"] < 1:
            told.append(f"{name}: {found[name]['seen']:.2%} of its requests were seen")
    return told


def dearer(found: dict[str, dict[str, float]]) -> list[str]:
    """Services for which onlooker's programs cost more than half of the tracer's; one sentence each."""
    return [
        f"{name}: {one['programs']:,.0f} instructions a request, the tracer {one['syscalls_programs']:,.0f}"
        for name, one in found.items()
        if name != "lost" and one["programs"] > SHARE * one["syscalls_programs"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*workloads.WORKLOADS, *workloads.NAMED)
    names = [one.name for one in known]
    parser.add_argument("--only", choices=names, action="append", help="this one; may be given again")
    parser.add_argument("--kernel", default="6.12", help="as for kernel-lab/vmrun (default 6.12)")
    parser.add_argument("--seconds", type=float, default=2, help="of the machine's own clock, for each reading")
    parser.add_argument("--timeout", type=float, default=2400, help="of this machine's clock, for all of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--hold", type=Path, metavar="FILE", help="compare with these figures: fail if 5 %% worse")
    options = parser.parse_args(argv)
    chosen = options.only or [one.name for one in workloads.WORKLOADS]
    missing = {one.name: workloads.absent(one) for one in known if one.name in chosen}
    for name, absent in missing.items():
        if absent:
            print(f"count: {name} needs {', '.join(absent)}: run make test-setup", file=sys.stderr)
            return 2
    try:
        found = run_guest(options, chosen)
    except measure.NotPossible as err:
        print(f"count: {err}", file=sys.stderr)
        return 2
    print(table(found, options.kernel))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.hold:
        told = worse(found, json.loads(options.hold.read_text()))
        for sentence in told:
            print(f"worse than {options.hold}: {sentence}", file=sys.stderr)
        return 1 if told else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
