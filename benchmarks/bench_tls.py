"""What looking into TLS and HTTP/2 costs: an OpenSSL write and read, a bystander, nginx over HTTPS, a gRPC echo.

Ratios within one run: rounds with and without probes take turns, medians are compared, and the spread is printed beside
them.  Programs and loads are started here, on loopback, for a bounded time.  A part of ``bench.py``; alone::

    sudo .venv/bin/python benchmarks/bench.py --only tls
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from bench import Plan

PAIRS = 20_000
BUDGET_US = 2.5
GRPC_SERVER = measure.ROOT / "build/zoo/bin/go-grpc"


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
            self.capture.mark_tls(pid, False)
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


@dataclass(frozen=True)
class Told:
    """One line: its rounds, and the budget of the design if there is one."""

    key: str
    label: str
    values: Sequence[float]
    unit: str
    budget: float | None = None
    note: str = ""


@contextlib.contextmanager
def nothing_on(pid: int, features: uprobe.Features) -> Iterator[None]:
    """Empty programs on the places where onlooker has its own."""
    both = uprobe.load_nothing(uprobe.ATTACH_UPROBE_SESSION if features.session else features.attach_type)
    library = next(library for library in TlsCatalog().libraries(pid) if library.functions)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, both)
        for name in ("SSL_read", "SSL_write"):
            place = [library.functions[name].arguments.offset]
            path = library.open_path
            if not features.session:
                stack.enter_context(uprobe.attach(both, path, place, pid=pid, features=features, returns=True))
            stack.enter_context(uprobe.attach(both, path, place, pid=pid, features=features, session=features.session))
        yield


def pairs(directory: Path, looker: Kernel, rounds: int) -> list[Told]:
    """Microseconds that a write and a read of 200 bytes take longer, by onlooker and by empty programs."""
    measure.need("gcc")
    made, key = certificate(directory)
    subprocess.run(["gcc", "-O2", "-o", directory / "talk", TALK / "talk.c", "-lssl", "-lcrypto"], check=True)
    features = uprobe.detect()
    talker, bystander = Talker(directory / "talk", made, key), Talker(directory / "talk", made, key)
    found: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    def us(of: Talker, command: str) -> float:
        of.run(command, 500)
        ns, _ = of.run(command, PAIRS)
        return ns / 1e3

    try:
        for _ in range(rounds):
            plain, spoken, alone = us(talker, "pairs"), us(talker, "wire"), us(bystander, "pairs")
            put("plain", plain)
            put("spoken", spoken)
            with looker.looking_into(talker.pid):
                put("pairs", us(talker, "pairs") - plain)
                put("wire", us(talker, "wire") - spoken)
                put("aside", us(bystander, "pairs") - alone)
            with nothing_on(talker.pid, features):
                put("floor", us(talker, "pairs") - plain)
    finally:
        talker.close()
        bystander.close()
    return [
        Told("tls_pair", "OpenSSL write and read, 200 bytes, in memory", found["plain"], "us"),
        Told("tls_pair_floor", "  + empty programs on the same places", found["floor"], "us"),
        Told("tls_pair_added", "  + onlooker", found["pairs"], "us", BUDGET_US),
        Told("tls_aside", "  + onlooker, process not selected", found["aside"], "us"),
        Told("tls_wire", "OpenSSL write and read of HTTP over TCP", found["spoken"], "us"),
        Told("tls_wire_added", "  + onlooker: pair, sockets, HTTP, both ends", found["wire"], "us"),
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


def https(directory: Path, looker: Kernel, rounds: int, seconds: float) -> list[Told]:
    """What nginx pays a request, and how many it serves."""
    measure.need("nginx", "wrk")
    with nginx(directory) as (worker, url):
        return _compared("https", "nginx, HTTPS", looker, worker, rounds, lambda: served(worker, url, seconds))


def _compared(
    key: str, name: str, looker: Kernel, pid: int, rounds: int, reading: Callable[[], tuple[float, float]]
) -> list[Told]:
    """CPU of a server a request and requests a second, without and with being looked into, in turns."""
    cost: dict[bool, list[float]] = {False: [], True: []}
    rate: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for watched in (False, True):
            with looker.looking_into(pid) if watched else contextlib.nullcontext():
                one, per_second = reading()
            cost[watched].append(one)
            rate[watched].append(per_second)
    added = [b - a for a, b in zip(cost[False], cost[True], strict=True)]
    return [
        Told(f"{key}_server", f"{name}: server, a request", cost[False], "us of CPU"),
        Told(f"{key}_server_added", "  + looked into", added, "us"),
        Told(f"{key}_rate", "  requests a second", rate[False], "/s"),
        Told(f"{key}_rate_watched", "  the same, looked into", rate[True], "/s"),
    ]


@dataclass(frozen=True)
class Grpc:
    """A gRPC server that answers each message with one, over h2c."""

    pid: int
    port: int
    message: Path

    def calls(self, seconds: float) -> tuple[int, float]:
        """Unary calls for so long, 4 connections with 8 streams: how many were made, and how many a second."""
        command = [
            *measure.pinned(1), "h2load", "-t1", "-c4", "-m8", f"-D{max(round(seconds), 1)}", "-d", str(self.message),
            "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"http://127.0.0.1:{self.port}/zoo.Zoo/Unary",
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 20 + 60, check=True).stdout
        counted = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", out)
        rate = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", out)
        if counted is None or rate is None or int(counted[2]) or int(counted[3]) or not int(counted[1]):
            raise measure.NotPossible(f"h2load said: {out[-400:]}")
        return int(counted[1]), float(rate[1])

    def reading(self, seconds: float) -> tuple[float, float]:
        """CPU microseconds of the server a call, and calls a second."""
        before = measure.cpu_ns(self.pid)
        made, rate = self.calls(seconds)
        return (measure.cpu_ns(self.pid) - before) / 1e3 / made, rate


@contextlib.contextmanager
def grpc_server(directory: Path) -> Iterator[Grpc]:
    """The zoo's Go server.

    Raises:
        NotPossible: the zoo or h2load is not there.
    """
    measure.need("h2load")
    if not GRPC_SERVER.exists():
        raise measure.NotPossible("the gRPC server of the zoo is not built: run scripts/setup_zoo.sh live")
    message = directory / "message"
    message.write_bytes(b"\0" + (100).to_bytes(4, "big") + b"m" * 100)
    port = measure.free_port()
    with measure.started([str(GRPC_SERVER), "server", str(port)], core=0, log=directory / "grpc.log") as process:
        measure.wait_for_port(port, process, directory / "grpc.log")
        yield Grpc(process.pid, port, message)


def grpc(directory: Path, looker: Kernel, rounds: int, seconds: float) -> list[Told]:
    """What a gRPC server pays a call, and how many it serves."""
    with grpc_server(directory) as server:
        return _compared("grpc", "gRPC echo (Go, h2c)", looker, server.pid, rounds, lambda: server.reading(seconds))


def whole(directory: Path, rounds: int, seconds: float) -> list[Told]:
    """The agent as it is run over HTTPS: its own CPU a request, and whether it sees them all."""
    measure.need("nginx", "wrk")

    def load(url: str) -> int:
        return measure.wrk(url, seconds=seconds, core=1).requests

    with nginx(directory) as (worker, url), _agent(directory, worker, tls=True) as watcher:
        # wrk does not count the requests that its end cut off: one a connection and round
        return _spent("https", "nginx, HTTPS", watcher, rounds, lambda: load(url), 32 * rounds)


def whole_grpc(directory: Path, rounds: int, seconds: float) -> list[Told]:
    """The same over gRPC."""
    with grpc_server(directory) as server, _agent(directory, server.pid, tls=False) as watcher:
        return _spent("grpc", "gRPC echo", watcher, rounds, lambda: server.calls(seconds)[0], 32 * rounds)


@contextlib.contextmanager
def _agent(directory: Path, pid: int, *, tls: bool) -> Iterator[measure.Agent]:
    with measure.agent(directory, "--pid", str(pid), core=1) as watcher:
        end = time.monotonic() + 20
        while tls and not watcher.own().get("onlooker_tls_processes"):
            if time.monotonic() > end:
                raise measure.NotPossible("the agent does not look into the server")
            time.sleep(0.1)
        yield watcher


def _spent(
    key: str, name: str, watcher: measure.Agent, rounds: int, load: Callable[[], int], cut_off: int
) -> list[Told]:
    spent: list[float] = []
    seen = made = 0
    for _ in range(rounds):
        first, before = watcher.seen(), measure.cpu_ns(watcher.pid)
        requests = load()
        time.sleep(2.5)
        spent.append((measure.cpu_ns(watcher.pid) - before) / 1e3 / requests)
        seen += watcher.seen() - first
        made += requests
    lost = sum(watcher.lost().values())
    missing = max(made - seen - lost, 0)
    return [
        Told(f"{key}_agent", f"{name}: agent, a request, metrics only", spent, "us of CPU"),
        Told(
            f"{key}_unseen", "  neither counted nor declared", [missing], "requests", 0,
            f"of {made:,} made and up to {cut_off} cut off, {seen:,} seen, {lost:,.0f} declared lost",
        ),
    ]  # fmt: skip


def measured(plan: Plan, say: Callable[[str], None]) -> list[Told]:
    """All parts; one that is not possible here is a line that says why."""
    rounds, seconds = plan.rounds, plan.seconds
    found: list[Told] = []

    def part(name: str, run: Callable[[Path], list[Told]]) -> None:
        directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=plan.directory))
        directory.chmod(0o755)
        try:
            found.extend(run(directory))
        except measure.NotPossible as err:
            found.append(Told(f"{name}_not_measured", f"{name}: not measured", [0.0], "", None, str(err)))
        say(name)

    with kernel() as looker:
        part("tls-pairs", lambda directory: pairs(directory, looker, rounds))
        part("tls-https", lambda directory: https(directory, looker, rounds, seconds))
        part("grpc", lambda directory: grpc(directory, looker, rounds, seconds))
    part("tls-agent", lambda directory: whole(directory, rounds, seconds))
    part("grpc-agent", lambda directory: whole_grpc(directory, rounds, seconds))
    return found
