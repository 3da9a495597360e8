"""Boot each kernel of the lab, force each hook in turn, and hold what was seen against what was done.

``run.py`` runs all kernels and writes the table of ``docs/reference/kernels.md`` and, with ``--update``, the baseline
of instructions that the verifier walks; ``run.py --quick`` runs one old and one new kernel with the hook they choose.
Needs root.  The machines inside are 10 to 60 times slower than this one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SERVER = ROOT / "build/kernels/server"
RESULTS = ROOT / "build/kernels/results.json"
BASELINE = ROOT / "bpf/verifier_baseline.csv"
PAGE = ROOT / "docs/reference/kernels.md"
BEGIN, END = "<!-- measured: tests/kernels/run.py writes this -->", "<!-- /measured -->"

KERNELS = ("5.10", "6.1", "6.12", "6.18", "7.3")
QUICK = ("5.10", "6.12")
HOOKS = ("tracepoint", "fexit", "fexit-hash", "kprobe", "raw_syscalls")
CHOSEN = {"5.10": "fexit-hash", "6.1": "fexit", "6.12": "tracepoint", "6.18": "tracepoint", "7.3": "tracepoint"}
"""What ``auto`` must come to; and everything below it on the ladder must work too."""
MISSING = {
    "5.10": ("tracepoint", "fexit"),
    "6.1": ("tracepoint",),
}
SEES_BLOCKED = ("tracepoint", "kprobe", "raw_syscalls")
PREEMPTING = ("6.18", "7.3")
"""May interrupt a program and skip it meanwhile (6.18: not on tracepoints): what is missed has to be counted."""
GROWTH = 1.10


def build() -> None:
    """The server that the machines run; they have no compiler to spare time for."""
    SERVER.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(SERVER), str(HERE / "server.c")], check=True)


def boot(kernel: str, hooks: tuple[str, ...], timeout_s: int) -> list[dict[str, Any]]:
    """Run `inside.py` on a kernel; gives a report for each hook, in order."""
    command = [
        sys.executable, str(ROOT / "kernel-lab/vmrun"), "--kernel", kernel, "--cpus", "1", "--timeout", str(timeout_s),
        # under load the emulated timer comes too late for the check of the boot
        "--append", "no_timer_check",
        "--", sys.executable, str(HERE / "inside.py"), ",".join(hooks), str(SERVER), "--count",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    reports = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    if len(reports) != len(hooks):
        tail = "\n".join(ended.stderr.splitlines()[-15:])
        reports += [{"asked": hook, "error": f"the machine ended ({ended.returncode}): {tail}", "ended": True}
                    for hook in hooks[len(reports) :]]  # fmt: skip
    return reports


def faults(kernel: str, report: dict[str, Any]) -> list[str]:
    """What is wrong with one report."""
    asked = report["asked"]
    where = f"{kernel} {asked}"
    if asked in MISSING.get(kernel, ()) and not report.get("ended"):
        missing = "error" in report or report["hook"] != asked
        return [] if missing else [f"{where}: works, though this kernel was known not to have it"]
    if "error" in report:
        return [f"{where}: {report['error']}"]
    wanted = CHOSEN[kernel] if asked == "auto" else asked
    found = []
    if report["hook"] != wanted:
        found.append(f"{where}: came to {report['hook']}, not {wanted}: {report['refused']}")
    losses = {reason: count for reason, count in report["losses"].items() if reason != "unpaired_response"}
    told = losses.get("missed_run", 0) + losses.get("preempted", 0) if kernel in PREEMPTING else 0
    if told and not (kernel == "6.18" and wanted == "tracepoint") and report["made"] - report["seen"] <= told:
        losses = {}
    elif report["seen"] != report["made"] or report["extra"]:
        found.append(
            f"{where}: saw {report['seen']} of {report['made']}; missing {report['missing']}, extra {report['extra']}"
        )
    if not report["second"]:
        found.append(f"{where}: the second request of a connection older than the attach was not seen")
    if not report["blocked"] and report["hook"] in SEES_BLOCKED:
        found.append(f"{where}: a call that was blocked before the attach was not seen")
    if losses:
        found.append(f"{where}: lost {losses}")
    return found


Walked = dict[tuple[str, str, str], int]


def read_baseline() -> Walked:
    """Instructions by hook, program and kernel."""
    if not BASELINE.exists():
        return {}
    with BASELINE.open() as file:
        return {(row["hook"], row["program"], row["kernel"]): int(row["instructions"]) for row in csv.DictReader(file)}


def write_baseline(walked: Walked) -> None:
    """The same, written down."""
    with BASELINE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("hook", "program", "kernel", "instructions"))
        writer.writerows((*key, count) for key, count in sorted(walked.items()))


def grown(walked: Walked, baseline: Walked) -> list[str]:
    """Programs that cost the verifier more than they may, or that nobody wrote down."""
    found = []
    for key, count in sorted(walked.items()):
        name = " ".join(key)
        if key not in baseline:
            found.append(f"{name}: not in {BASELINE.relative_to(ROOT)}; run with --update")
        elif count > baseline[key] * GROWTH:
            found.append(
                f"{name}: {count} instructions walked, {baseline[key]} in the baseline; more than 10 % of growth"
            )
    return found


def write_page(results: dict[str, list[dict[str, Any]]]) -> None:
    """The measured table of the reference page."""
    lines = ["| kernel | " + " | ".join(HOOKS) + " | taken by itself |", "| --- |" + " --- |" * (len(HOOKS) + 1)]
    for kernel, reports in results.items():
        cells = []
        for report in reports:
            if "error" in report or report["hook"] != report["asked"]:
                cells.append("-")
            else:
                skipped = report["losses"].get("missed_run", 0) + report["losses"].get("preempted", 0)
                told = f", {skipped} runs skipped and counted" if skipped else ""
                blocked = "" if report["blocked"] else ", not a call that was blocked before"
                cells.append(f"{report['seen']} of {report['made']}{told}{blocked}")
        lines.append(f"| {kernel} | " + " | ".join(cells) + f" | {CHOSEN[kernel]} |")
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def main(arguments: list[str]) -> int:
    """Run; the exit status says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one old and one new kernel, the hook that each takes")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="only this one; may be repeated")
    parser.add_argument("--update", action="store_true", help="write the baseline of instructions")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("needs root")
    kernels = tuple(options.kernel or (QUICK if options.quick else KERNELS))
    hooks = ("auto",) if options.quick else HOOKS
    build()
    wrong: list[str] = []
    walked: Walked = {}
    results: dict[str, list[dict[str, Any]]] = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = {kernel: pool.submit(boot, kernel, hooks, 300 if options.quick else 900) for kernel in kernels}
        for kernel, future in waiting.items():
            results[kernel] = future.result()
            for report in results[kernel]:
                wrong += faults(kernel, report)
                for program, count in report.get("instructions", {}).items():
                    walked[report["hook"], program, kernel] = count
                seen = f"{report['seen']} of {report['made']}" if "seen" in report else "-"
                print(f"{kernel:5} {report['asked']:12} {report.get('hook', '-'):12} {seen:12} "
                      f"start {report.get('start_s', '-')} s", flush=True)  # fmt: skip
    baseline = read_baseline()
    if options.update:
        write_baseline({**{key: count for key, count in baseline.items() if key[2] not in kernels}, **walked})
    else:
        wrong += grown(walked, baseline)
    if not options.quick and not wrong:
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known.update(results)
        RESULTS.write_text(json.dumps(known))
        if all(kernel in known for kernel in KERNELS):
            write_page({kernel: known[kernel] for kernel in KERNELS})
    for line in wrong:
        print(f"WRONG {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
