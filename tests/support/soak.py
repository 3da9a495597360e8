"""Hours of all protocols with the churn of a live host, and what becomes of the agent.

    python -m support.soak SECONDS OUT

Twelve lanes, each a server, a client at a steady rate that looks at every answer, and their turn to be deployed again:
a new server and a new client start, then the old ones end, without a request that fails.  Beside them short-lived
processes, some of which ask for something.  Paths, statements and keys change every half minute.

Every ten seconds a line of JSON is appended to OUT.jsonl; at the end OUT.json has what was sent and seen, by lane, how
memory went and whether anything was left in the kernel.  ``benchmarks/plot_soak.py`` draws it.

The agent's counts are added up as Prometheus would: a series that nothing was added to for five minutes is forgotten.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import agent, databases, zoo, zoo_tls

SAMPLE_S = 10.0
SCRAPE_S = 30.0
SETTLE_S = 20.0
PORTS = 100
_RANGES = range(29_800, 32_700, PORTS)  # above those of the live tests, below the ephemeral ones
NEEDS = ("nginx", "openssl", "h2load", "redis-server", "memcached", "mariadbd", "dnsmasq", "bpftool", "curl")
HTTP, DB, RPC, DNS = (
    "http_server_request_duration_seconds", "db_server_operation_duration_seconds", "rpc_server_call_duration_seconds",
    "dns_lookup_duration_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A lane: what is served, how it is asked, how often a second at full rate."""

    name: str
    serve: Callable[[Path], AbstractContextManager[Any]]
    kind: str
    rate: float
    connections: int
    metric: str
    tls: bool = False


# ---- servers --------------------------------------------------------------------------------------------------------


def _listening(options: str) -> zoo.ServerSpec:
    def programs(place: zoo.Place) -> dict[str, list[str]]:
        return dict(zoo._nginx(place, TLS=options))  # type: ignore[arg-type]

    return zoo.ServerSpec("nginx", "cpp", programs, ("nginx",), workers={"nginx": 2})


def nginx(directory: Path, *, tls: bool = False, http2: bool = False) -> AbstractContextManager[zoo.Server]:
    made = f"ssl_certificate {directory}/certificate.pem;\n ssl_certificate_key {directory}/key.pem;" if tls else ""
    return zoo.server(_listening(f"{' ssl' * tls}{' http2' * http2};\n{made}#"))


@contextlib.contextmanager
def release(directory: Path) -> Iterator[zoo.Server]:
    """A new build of a program of one's own, in a directory of its own."""
    place = Path(tempfile.mkdtemp(prefix="release-", dir=directory))
    shutil.copy(zoo.BIN / "c-server", place / "shop")
    spec = zoo.ServerSpec("shop", "cpp", lambda at: {"server": [str(place / "shop"), str(at.port)]}, (str(zoo.BIN),))
    try:
        with zoo.server(spec) as server:
            yield server
    finally:
        shutil.rmtree(place, ignore_errors=True)


def grpc(_directory: Path) -> AbstractContextManager[zoo.Server]:
    program = zoo._own(sys.executable, zoo._script("python/grpc_server.py"))
    return zoo.server(zoo.ServerSpec("grpc", "python", program, (sys.executable,)))


PLANS = (
    Plan("HTTP/1.1, kept connections", nginx, "http", 1050, 64, HTTP),
    Plan("HTTP/1.1, a connection each", nginx, "fresh", 60, 1, HTTP),
    Plan("HTTP/1.1, a service that is deployed", release, "http", 150, 8, HTTP),
    Plan("HTTPS", lambda at: nginx(at, tls=True), "https", 250, 16, HTTP, tls=True),
    Plan("HTTP/2", lambda at: nginx(at, http2=True), "h2load", 60, 2, HTTP),
    Plan("HTTP/2 over TLS", lambda at: nginx(at, tls=True, http2=True), "h2load-tls", 40, 2, HTTP, tls=True),
    Plan("gRPC", grpc, "grpc", 60, 1, RPC),
    Plan("PostgreSQL", lambda _: databases.postgres(), "postgres", 100, 4, DB),
    Plan("MariaDB", lambda _: databases.mariadb("--general-log=off"), "mysql", 50, 2, DB),
    Plan("Redis", lambda _: databases.redis(), "redis", 120, 8, DB),
    Plan("Memcached", lambda _: databases.memcached(), "memcached", 50, 4, DB),
    Plan("DNS", lambda _: databases.dnsmasq(), "dns", 30, 1, DNS),
)


# ---- loads ----------------------------------------------------------------------------------------------------------


class Worker:
    """A process of `support.soak_load`."""

    def __init__(self, kind: str, port: int, rate: float, connections: int, directory: Path) -> None:
        command = [sys.executable, "-m", "support.soak_load", kind, str(port), str(rate), str(connections)]
        self._program = zoo.Program([*command, f"{directory}/"], directory, name=f"load-{port}", pipes=True)
        self._program.wait_for_exec(time.monotonic() + 30)
        self._said = self._program.lines()
        if next(self._said, "").strip() != "ready":
            raise self._program.failure("it is not ready")

    def check(self) -> None:
        """Raises if it gave up."""
        if self._program.process.poll() is not None:
            raise self._program.failure("it gave up")

    def end(self) -> int:
        """How many were sent and answered."""
        self.check()
        self._program.tell("\n")
        try:
            line = next(self._said, "")
            if not line:
                raise self._program.failure("it did not say how many")
            return int(json.loads(line)["sent"])
        finally:
            self._program.stop(5.0)


class H2load:
    """h2load, one run after the other."""

    def __init__(self, kind: str, port: int, rate: float, connections: int, directory: Path) -> None:
        scheme = "https" if kind.endswith("tls") else "http"
        self._rate, self._connections = rate, connections
        # over TLS it is not watched: it says hello before anybody can look into it, so its side would be half seen
        self._program = "h2load" if scheme == "https" else f"{directory}/h2load"
        self._urls = [f"{scheme}://127.0.0.1:{port}/items/{n}" for n in range(20)]
        self._sent = 0
        self._begin()

    def _begin(self) -> None:
        count = max(round(self._rate * 20 / self._connections), 1) * self._connections
        self._due = count
        self._run = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", self._program, f"-n{count}",
             f"-c{self._connections}", f"--rps={self._rate / self._connections}", *self._urls],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def _finish(self) -> None:
        said = self._run.communicate(timeout=120)[0]
        if f"requests: {self._due} total, {self._due} started, {self._due} done, {self._due} succeeded" not in said:
            raise RuntimeError(f"h2load: {said[-1500:]}")
        self._sent += self._due

    def check(self) -> None:
        if self._run.poll() is not None:
            self._finish()
            self._begin()

    def end(self) -> int:
        self._finish()
        return self._sent


class Lane:
    """A plan that is carried out."""

    def __init__(self, plan: Plan, share: float, directory: Path, watched: Callable[[list[int], bool], None]) -> None:
        self.plan, self._rate, self._directory, self._watched = plan, plan.rate * share, directory, watched
        self.sent, self.deployed, self.ports = 0, 0, set[str]()
        self._server: ExitStack | None = None
        self._load: Worker | H2load | None = None
        self._busy = threading.Lock()

    def deploy(self) -> None:
        """The next server and client, then the end of the last ones."""
        with self._busy:
            self._deploy()

    def _deploy(self) -> None:
        stack = ExitStack()
        try:
            server = stack.enter_context(self.plan.serve(self._directory))
            pids = server.tree() if isinstance(server, zoo.Server) else [server.pid]
            self._watched(pids, self.plan.tls)
            kind = H2load if self.plan.kind.startswith("h2load") else Worker
            load = kind(self.plan.kind, server.port, self._rate, self.plan.connections, self._directory)
        except BaseException:
            stack.close()
            raise
        self._end()
        self.ports.add(str(server.port))
        self._server, self._load = stack, load
        self.deployed += 1

    def check(self) -> None:
        """Raises if its load gave up; not while it is deployed."""
        if self._busy.acquire(blocking=False):
            try:
                if self._load:
                    self._load.check()
            finally:
                self._busy.release()

    def end(self) -> None:
        with self._busy:
            self._end()

    def _end(self) -> None:
        """The client's answers are all there before its server ends."""
        load, server = self._load, self._server
        self._load = self._server = None
        try:
            if load:
                self.sent += load.end()
        finally:
            if server:
                server.close()


# ---- the agent, seen from outside ------------------------------------------------------------------------------------

_COUNT = re.compile(r"^([a-z_]+)_count(\{.*\}) (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(server_port|service_name)="([^"]*)"')
_OWN = re.compile(r"^(onlooker_[a-z_]+)(\{.*\})? (\S+)$", re.MULTILINE)


@dataclass
class Counts:
    """What the agent counted, by metric, port and service, over all lives of each series."""

    added: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    own: dict[str, float] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    def take(self, text: str) -> None:
        now: dict[str, float] = {}
        for name, labels, number in _COUNT.findall(text):
            value = float(number)
            key = name + labels
            now[key] = value
            before = self._last.get(key, 0.0)
            label = dict(_LABEL.findall(labels))
            self.added[name, label.get("server_port", ""), label.get("service_name", "")] += round(
                value - before if value >= before else value
            )
        self._last = now
        self.own = {}
        for name, labels, number in _OWN.findall(text):
            self.own[name] = self.own.get(name, 0.0) + float(number)
            if name == "onlooker_lost_total" and float(number):
                self.lost[labels.partition('reason="')[2].rstrip('"}')] = int(float(number))

    def of(self, lane: Lane) -> int:
        """Requests that its servers were seen to serve."""
        if lane.plan.metric == DNS:  # a lookup is its client's
            return sum(count for (name, _, _), count in self.added.items() if name == DNS)
        seen = sum(
            count for (name, port, _), count in self.added.items() if name == lane.plan.metric and port in lane.ports
        )
        if lane.plan.metric == RPC:  # streams are in no histogram; they are counted on both sides, which are watched
            seen += round(self.own.get("onlooker_stream_requests_total", 0.0)) // 2
        return seen


def map_bytes(pid: int) -> int:
    """Kernel memory of the maps that a process holds, each once."""
    found = {}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            text = entry.read_text()
            if "map_id:" in text:
                held = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
                found[held["map_id"].strip()] = int(held["memlock"])
    return sum(found.values())


def sample(pid: int, began: float) -> dict[str, float]:
    """How the agent is, without asking it."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kib = {name: int(status[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile", "RssShmem")}
    cpu = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "rss_kib": kib["VmRSS"], "peak_kib": kib["VmHWM"], "anon_kib": kib["RssAnon"],
        "file_kib": kib["RssFile"] + kib["RssShmem"],
        "cpu_s": (int(cpu[11]) + int(cpu[12])) / os.sysconf("SC_CLK_TCK"),
        "threads": int(status["Threads"]), "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "map_bytes": map_bytes(pid), "load": os.getloadavg()[0],
    }  # fmt: skip


# ---- churn ----------------------------------------------------------------------------------------------------------


class Passers:
    """Processes that live for moments: one a second asks for something, a handful of others only come and go."""

    def __init__(self, port: int, directory: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/items/passer"
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []
        self.asked = self.started = 0

    def go(self) -> None:
        """Collects those that ended and starts the next."""
        self.collect(0.0)
        for _ in range(4):
            self._start(["true"])
        self._start([
            f"{self._directory}/curl", "-sf", "-o", f"{self._directory}/passer", f"{self._url}/{self.started % 1000}",
        ])  # fmt: skip

    def _start(self, command: list[str]) -> None:
        self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        self.started += 1

    def collect(self, patience_s: float) -> None:
        waiting = []
        for one in self._running:
            if patience_s:
                one.wait(patience_s)
            if one.poll() is None:
                waiting.append(one)
                continue
            if one.returncode:
                raise RuntimeError(f"{one.args!r} ended with {one.returncode}")
            self.asked += isinstance(one.args, list) and len(one.args) > 1
        self._running = waiting


# ---- all of it ------------------------------------------------------------------------------------------------------


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def prepare(directory: Path) -> str:
    """Certificates, and the programs whose command lines are to name the directory; the ports that servers get."""
    made, key = zoo_tls.certificate()
    shutil.copy(made, directory / "certificate.pem")
    shutil.copy(key, directory / "key.pem")
    (directory / "key.pem").chmod(0o644)
    for name in ("curl", "h2load"):
        (directory / name).symlink_to(shutil.which(name) or name)
    turn = os.getpid() % len(_RANGES)  # another run on this machine takes others
    first = next(
        first for first in (*_RANGES[turn:], *_RANGES[:turn]) if all(map(_is_free, range(first, first + PORTS)))
    )
    ports = itertools.cycle(range(first, first + PORTS))

    def next_port() -> int:
        return next(port for port in ports if _is_free(port))

    tempfile.tempdir = str(directory)
    zoo.free_port = databases.free_port = next_port
    return f"{first}-{first + PORTS - 1}"


def watch_until_seen(onlooker: agent.Agent) -> Callable[[list[int], bool], None]:
    """Waits until processes are watched, and looked into where they speak TLS."""

    def seen(pids: list[int], tls: bool) -> bool:
        url = f"http://127.0.0.1:{onlooker.web_port}/api/v1/processes"
        with urllib.request.urlopen(url, timeout=60) as answer:
            rows = {row["pid"]: row for row in json.load(answer)["processes"] if row["watched"]}
        return all(
            pid in rows and (not tls or any(said.endswith(": seen") for said in rows[pid]["tls"])) for pid in pids
        )

    return lambda pids, tls: agent.wait_until(lambda: seen(pids, tls), f"{pids} are watched", 90, 0.3)


def soak(seconds: float, out: Path, *, rate: float, period_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs it; what came of it, also in ``out``.json.

    Args:
        seconds: Of load.
        out: Name of the files without their ending.
        rate: Requests a second of all lanes together.
        period_s: Between two deployments; the lanes take turns, the service that is deployed has every other one.
        say: Told what goes on.
    """
    directory = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    directory.chmod(0o755)
    share = rate / sum(plan.rate for plan in PLANS)
    failed = ""
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        ports = prepare(directory)
        sink = stack.enter_context(discarding())
        configuration = agent.selecting(
            cmd_args=f"*{directory}/*", ports=ports,
            otel_traces_export={"endpoint": f"http://127.0.0.1:{sink}/v1/traces", "protocol": "http/protobuf"},
            store={"path": str(directory / "store.sqlite"), "max_bytes": 24_000_000},
        )  # fmt: skip
        own = directory / "agent"
        own.mkdir()
        onlooker = agent.Agent(own, configuration, prints=False, stores=True)
        stack.callback(onlooker.kill)
        onlooker.wait_ready()
        lanes = [Lane(plan, share, directory, watch_until_seen(onlooker)) for plan in PLANS]
        for lane in lanes:
            stack.callback(lane.end)
            say(lane.plan.name)
            lane.deploy()
        first = next(lane for lane in lanes if lane.plan.kind == "fresh")
        passers = Passers(int(next(iter(first.ports))), directory)
        turns = itertools.chain.from_iterable(
            (lanes[2], lane) for lane in itertools.cycle([one for one in lanes if one not in (lanes[2], first)])
        )
        counts = Counts()
        samples: list[dict[str, float]] = []
        deploying = stack.enter_context(ThreadPoolExecutor(1))  # ends before the lanes do
        under_way: Future[None] | None = None
        began = time.monotonic()
        next_sample = next_pass = began
        next_scrape, next_turn = began + 5, began + period_s
        log = stack.enter_context(out.with_suffix(".jsonl").open("w"))
        while (now := time.monotonic()) - began < seconds:
            if now >= next_pass:
                passers.go()
                next_pass = max(next_pass + 1.0, now - 5)
            if now >= next_scrape:
                counts.take(onlooker.get("/metrics")[2])
                next_scrape = now + SCRAPE_S
            if now >= next_sample:
                for lane in lanes:
                    lane.check()
                if onlooker.process.poll() is not None:
                    raise onlooker.failure("the agent ended")
                taken = sample(onlooker.pid, began)
                for name in ("requests_total", "series", "instrumented_processes", "spans_kept_total", "trace_share"):
                    taken[name] = counts.own.get(f"onlooker_{name}", 0.0)
                taken["lost"] = sum(counts.lost.values())
                samples.append(taken)
                log.write(json.dumps(taken) + "\n")
                log.flush()
                next_sample = max(next_sample + SAMPLE_S, now)
            if under_way and under_way.done():
                under_way.result()
                under_way = None
            if now >= next_turn and not under_way:
                under_way = deploying.submit(next(turns).deploy)
                next_turn = max(next_turn + period_s, now)
            time.sleep(0.1)
        if under_way:
            under_way.result()
        took = time.monotonic() - began
        passers.collect(30)
        for lane in lanes:
            lane.end()
        time.sleep(SETTLE_S)
        counts.take(onlooker.get("/metrics")[2])
        samples.append(sample(onlooker.pid, began))
        first.sent += passers.asked
        try:
            onlooker.stop()
        except agent.AgentFailure as err:
            failed = str(err)
        said = [line for line in onlooker.log().splitlines() if " WARN" in line or " ERROR" in line]
        result = {
            "seconds": round(took), "rate": round(sum(lane.sent for lane in lanes) / took, 1),
            "lanes": {
                lane.plan.name: {"sent": lane.sent, "seen": counts.of(lane), "deployed": lane.deployed}
                for lane in lanes
            },
            "lost": counts.lost, "short_lived_processes": passers.started,
            "overflowed": counts.own.get("onlooker_overflowed_requests_total", 0.0),
            "agent_ended_badly": failed, "agent_said": said[:50], "agent_said_lines": len(said),
            "own": {name: value for name, value in counts.own.items() if "probe" not in name}, "samples": samples,
        }  # fmt: skip
        (out.parent / f"{out.name}.log").write_text(onlooker.log())
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


@contextlib.contextmanager
def discarding() -> Iterator[int]:
    """A receiver of spans that keeps nothing."""
    sys.path.insert(0, str(zoo.ROOT / "benchmarks"))
    import measure

    with measure.sink(core=None) as port:
        yield port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path, help="file names without their ending")
    parser.add_argument("--rate", type=float, default=2000, help="requests a second (default 2000)")
    parser.add_argument("--period", type=float, default=30, help="seconds between two deployments (default 30)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    result = soak(
        options.seconds, options.out, rate=options.rate, period_s=options.period,
        say=lambda what: print(f"... {what}", file=sys.stderr, flush=True),
    )  # fmt: skip
    del result["samples"]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
