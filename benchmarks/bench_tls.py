"""What looking into TLS costs: an OpenSSL write and read, a bystander, nginx over HTTPS.

Ratios within one run: rounds with and without probes take turns, medians are compared, and the spread is printed beside
them.  Programs and loads are started here, on loopback, for a bounded time::

    sudo .venv/bin/python benchmarks/bench_tls.py [--rounds 5] [--seconds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import measure

# ruff: noqa: E402 - the modules below are found by this path alone
sys.path[:0] = [str(measure.ROOT / "src"), str(measure.ROOT / "tests")]

from onlooker.attach.prober import program_chooser
from onlooker.attach.registry import ProbeRegistry, library_attacher
from onlooker.attach.tls import TlsCatalog
from onlooker.capture.capture import Capture
from onlooker.capture.tls import TlsPrograms
from onlooker.kernel import uprobe
from support.probe_sites.watch import HERE as TALK
from support.probe_sites.watch import Talker

PAIRS = 40_000


@dataclass
class Kernel:
    """The kernel side alone, drained by a thread that throws away what it finds."""

    capture: Capture
    registry: ProbeRegistry

    @contextlib.contextmanager
    def looking_into(self, *pids: int) -> Iterator[None]:
        """Probes on these processes while the block runs."""
        catalog = TlsCatalog()
        for pid in pids:
            self.capture.watch(pid)
            self.capture.mark_tls(pid)
            if not self.registry.watch(pid, catalog.libraries(pid)):
                raise measure.NotPossible(f"nothing was attached: {self.registry.failures}")
        try:
            yield
        finally:
            for pid in pids:
                self.registry.forget(pid)
                self.capture.unwatch(pid)


@contextlib.contextmanager
def kernel() -> Iterator[Kernel]:
    """Loads and attaches the programs; nothing is watched."""
    capture = Capture()
    capture.start()
    programs = TlsPrograms(capture)
    over = threading.Event()

    def drain() -> None:
        while not over.wait(0.02):
            capture.drain()

    thread = threading.Thread(target=drain)
    try:
        features = uprobe.detect()
        registry = ProbeRegistry(library_attacher(program_chooser(programs.load(features)), features))
        thread.start()
        yield Kernel(capture, registry)
        registry.close()
    finally:
        over.set()
        if thread.is_alive():
            thread.join()
        programs.close()
        capture.close()


def certificate(directory: Path) -> tuple[Path, Path]:
    made, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(made)],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return made, key


def told(name: str, values: list[float], unit: str) -> str:
    """A line: the median, and the spread of the rounds."""
    middle = statistics.median(values)
    return f"{name:<58}{middle:10.2f} {unit:<8} ({min(values):.2f} to {max(values):.2f}, {len(values)} rounds)"


def pairs(directory: Path, looker: Kernel, rounds: int) -> list[str]:
    """Microseconds that a write and a read of 200 bytes take longer."""
    measure.need("gcc")
    made, key = certificate(directory)
    subprocess.run(["gcc", "-O2", "-o", directory / "talk", TALK / "talk.c", "-lssl", "-lcrypto"], check=True)
    talker, bystander = Talker(directory / "talk", made, key), Talker(directory / "talk", made, key)
    base: list[float] = []
    added: list[float] = []
    aside: list[float] = []
    try:
        for _ in range(rounds):
            plain, _ = talker.run("pairs", PAIRS)
            alone, _ = bystander.run("pairs", PAIRS)
            with looker.looking_into(talker.pid):
                talker.run("pairs", 2000)
                seen, _ = talker.run("pairs", PAIRS)
                beside, _ = bystander.run("pairs", PAIRS)
            base.append(plain / 1e3)
            added.append((seen - plain) / 1e3)
            aside.append((beside - alone) / 1e3)
    finally:
        talker.close()
        bystander.close()
    return [
        told("OpenSSL, write and read of 200 bytes, without probes", base, "us"),
        told("  added by probes (budget 2.5)", added, "us"),
        told("  added to a process that has the library, not selected", aside, "us"),
    ]


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[tuple[int, str]]:
    """A worker that serves 600 bytes over HTTPS: its pid and the URL."""
    made, key = certificate(directory)
    port = measure.free_port()
    (directory / "www").mkdir()
    (directory / "www/file.txt").write_bytes(b"." * measure.BODY_BYTES)
    (directory / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;\n"
        f"{'user root;' if os.geteuid() == 0 else ''} events {{ worker_connections 1024; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {directory}/a;\n"
        f"  proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c; uwsgi_temp_path {directory}/d;\n"
        f"  scgi_temp_path {directory}/e; open_file_cache max=16;\n"
        f"  server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {made}; ssl_certificate_key {key};\n"
        f"    root {directory}/www; }} }}\n"
    )
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or "nginx"
    command = [program, "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"]
    with measure.started(command, core=0, log=directory / "out") as process:
        measure.wait_for_port(port, process, directory / "error.log")
        while not (workers := measure.children(process.pid)):
            if process.poll() is not None:
                raise measure.NotPossible("nginx ended at once")
            time.sleep(0.02)
        yield workers[0], f"https://127.0.0.1:{port}/file.txt"


def served(pid: int, url: str, seconds: float) -> tuple[float, float]:
    """CPU microseconds of the server a request, and requests a second."""
    before = measure.cpu_ns(pid)
    load = measure.wrk(url, seconds=seconds, core=1)
    if load.errors:
        raise measure.NotPossible(f"{load.errors} errors under load")
    return (measure.cpu_ns(pid) - before) / 1e3 / load.requests, load.requests / load.seconds


def https(directory: Path, looker: Kernel, rounds: int, seconds: float) -> list[str]:
    """What nginx pays a request, and how many it serves."""
    measure.need("nginx", "wrk")
    cost: dict[bool, list[float]] = {False: [], True: []}
    rate: dict[bool, list[float]] = {False: [], True: []}
    with nginx(directory) as (worker, url):
        for _ in range(rounds):
            for watched in (False, True):
                with looker.looking_into(worker) if watched else contextlib.nullcontext():
                    one, per_second = served(worker, url, seconds)
                cost[watched].append(one)
                rate[watched].append(per_second)
    return [
        told("nginx, HTTPS keep-alive, CPU of the server a request", cost[False], "us"),
        told("  the same, looked into", cost[True], "us"),
        told("  added", [b - a for a, b in zip(cost[False], cost[True], strict=True)], "us"),
        told("  requests a second", rate[False], "/s"),
        told("  the same, looked into", rate[True], "/s"),
    ]


def whole(directory: Path, rounds: int, seconds: float) -> list[str]:
    """The agent as it is run: its own CPU a request, and whether it sees them all."""
    spent: list[float] = []
    seen = made = 0
    with nginx(directory) as (worker, url), measure.agent(directory, "--pid", str(worker), core=1) as watcher:
        end = time.monotonic() + 20
        while not watcher.own().get("onlooker_tls_processes"):
            if time.monotonic() > end:
                raise measure.NotPossible("the agent does not look into nginx")
            time.sleep(0.1)
        for _ in range(rounds):
            first, before = watcher.seen(), measure.cpu_ns(watcher.pid)
            load = measure.wrk(url, seconds=seconds, core=1)
            time.sleep(2.5)
            spent.append((measure.cpu_ns(watcher.pid) - before) / 1e3 / load.requests)
            seen += watcher.seen() - first
            made += load.requests
        lost = watcher.lost()
    # wrk does not count the requests that its end cut off: one a connection and round
    return [
        told("agent, CPU a request, metrics only", spent, "us"),
        f"  requests seen {seen}, made {made} (and up to {32 * rounds} that the end of a round cut off), lost {lost}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as text:
        directory = Path(text)
        directory.chmod(0o755)

        def place(name: str) -> Path:
            made = directory / name
            made.mkdir()
            return made

        parts: list[Callable[[], list[str]]] = []
        with kernel() as looker:
            parts = [
                lambda: pairs(place("pairs"), looker, options.rounds),
                lambda: https(place("https"), looker, options.rounds, options.seconds),
            ]
            for part in parts:
                status |= _say(part)
        status |= _say(lambda: whole(place("whole"), options.rounds, options.seconds))
    return status


def _say(part: Callable[[], list[str]]) -> int:
    try:
        print("\n".join(part()), flush=True)
    except measure.NotPossible as err:
        print(f"not measured: {err}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
