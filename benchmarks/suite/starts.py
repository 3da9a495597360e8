"""How long a start takes on a host where much runs already: 200 and 2,000 watched processes, and large executables.

A process is attached to once the agent says that it watches it; those with a TLS library once it is looked into.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import measure  # noqa: E402 - found by this path alone

BUDGET_S, BUDGET_MB = 3.0, 100.0
LARGE = {
    "node": ("node", "-e", "setInterval(() => {}, 1e6)"),
    "java": ("java", "-Xmx64m", "-XX:+UseSerialGC", "{directory}/Sleeper.java"),
    "chromium": ("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir={directory}/chromium",
                 "about:blank"),
}  # fmt: skip
SLEEPER = "class Sleeper { public static void main(String[] a) throws Exception { Thread.sleep(1000000); } }\n"


@dataclass(frozen=True)
class Start:
    """One start."""

    ready_s: float
    attached_s: float
    peak_mb: float
    rss_mb: float
    watched: int


@contextlib.contextmanager
def sleepers(directory: Path, count: int) -> Iterator[None]:
    """So many processes whose command lines name the directory."""
    program = directory / "sleeper"
    if not program.exists():
        program.symlink_to(shutil.which("sleep") or "sleep")
    held = [subprocess.Popen([program, "1000"], stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for one in held:
            one.kill()
        for one in held:
            one.wait()


def start(directory: Path, count: int, *, tls: int = 0) -> Start:
    """Starts the agent beside so many processes of the directory."""
    began = time.monotonic()
    with measure.agent(directory, "--cmd-args", f"*{directory}/*", core=None) as one:
        ready = one.ready_s
        while True:
            own = one.own()
            seen = own["onlooker_instrumented_processes"]
            if seen >= count and own.get("onlooker_tls_processes", 0) >= tls:
                break
            if time.monotonic() - began > 60:
                raise measure.NotPossible(f"{seen:.0f} of {count} processes are watched after a minute")
            time.sleep(0.02)
        attached = time.monotonic() - began
        time.sleep(3)  # whatever it does afterwards takes memory too
        used = measure.memory(one.pid)
        return Start(ready, attached, used.peak / 1024, used.total / 1024, int(seen))


def told(directory: Path, *, rounds: int) -> tuple[list[str], int]:
    """The table, and 1 if a budget is exceeded."""
    lines, over = [f"{'start beside':<44}{'ready s':>9}{'attached s':>12}{'peak MB':>9}{'after MB':>10}"], 0

    def add(label: str, found: list[Start], budget: bool) -> None:
        nonlocal over
        attached, peak = statistics.median(s.attached_s for s in found), max(s.peak_mb for s in found)
        bad = budget and (attached > BUDGET_S or peak > BUDGET_MB)
        over |= bad
        print(f"  ... {label}", file=sys.stderr, flush=True)
        lines.append(
            f"{label:<44}{statistics.median(s.ready_s for s in found):>9.2f}{attached:>12.2f}{peak:>9.1f}"
            f"{statistics.median(s.rss_mb for s in found):>10.1f}"
            + (f"  {'over' if bad else 'ok'}: {BUDGET_S:g} s, {BUDGET_MB:g} MB" if budget else "")
        )

    for count in (10, 200, 2000):
        place = Path(tempfile.mkdtemp(prefix="starts-", dir=directory))
        with sleepers(place, count):
            add(f"{count:,} processes", [start(place, count) for _ in range(rounds)], count == 200)
    for name, words in LARGE.items():
        program = shutil.which(words[0])
        if program is None:
            lines.append(f"{name}: not installed")
            continue
        place = Path(tempfile.mkdtemp(prefix=f"large-{name}-", dir=directory))
        (place / "Sleeper.java").write_text(SLEEPER)
        command = [word.replace("{directory}", str(place)) for word in words]
        environment = {"BENCH_PLACE": f"{place}/"}
        # named by its first word: node's own options have no directory
        process = subprocess.Popen(
            [f"{place}/{name}", *command[1:]], executable=program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip
        try:
            time.sleep(4)
            if process.poll() is not None:
                lines.append(f"{name}: it ended with {process.returncode}")
                continue
            size = sum(path.stat().st_size for path in mapped(process.pid)) / 1e6
            add(f"{name} (maps {size:.0f} MB of code and data)", [start(place, 1) for _ in range(rounds)], False)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
    return lines, over


def mapped(pid: int) -> set[Path]:
    """Files that a process executes."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {path for line in lines if " r-xp " in line and (path := Path(line.split(maxsplit=5)[-1])).is_file()}
