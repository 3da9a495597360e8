"""What the benchmarks share: a server, loads, the agent, and the meters that are read while they run.

Everything listens on loopback, runs for a bounded time, and is ended by the process that was started here.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONLOOKER = ROOT / ".venv" / "bin" / "onlooker"
BODY_BYTES = 600

Command = Sequence[str | os.PathLike[str]]


class Priority:
    """Whether what is started here runs before everything else of its core (SCHED_FIFO)."""

    real_time = False


def pinned(core: int | None) -> list[str]:
    """What stands before a command that is to run on one core."""
    words = [] if core is None else ["taskset", "-c", str(core)]
    return [*words, "chrt", "-f", "5"] if Priority.real_time and core is not None else words


class NotPossible(Exception):
    """A program is missing, or something did not start; the message says what to do."""


def need(*programs: str) -> None:
    """Name the programs that are missing.

    Raises:
        NotPossible: there are some.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        raise NotPossible(f"needs {', '.join(missing)} (Debian packages: wrk, nginx-light, clang, qemu-system-x86)")


def free_port() -> int:
    """A TCP port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """The processes that ``pid`` started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def cpu_ns(pid: int) -> int:
    """CPU time of a process, exact to the nanosecond for a sleeping one."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total


@dataclass(frozen=True)
class Memory:
    """Resident memory in kB; ``peak`` is the highest since the start."""

    total: int
    anon: int
    file: int
    shmem: int
    peak: int


def memory(pid: int) -> Memory:
    text = Path(f"/proc/{pid}/status").read_text()
    names = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM")
    return Memory(*(int(re.search(rf"^{name}:\s*(\d+)", text, re.M)[1]) for name in names))  # type: ignore[index]


@contextlib.contextmanager
def started(command: Command, *, core: int | None = None, log: Path | None = None,
            env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """A process that ends with the block."""
    with contextlib.ExitStack() as stack:
        out = subprocess.DEVNULL if log is None else stack.enter_context(log.open("wb"))
        # a group of its own: Ctrl-C is for the benchmark, which then ends what it started in order
        process = subprocess.Popen(
            [*pinned(core), *command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, process_group=0,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **(env or {})},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path | None = None, timeout_s: float = 20) -> None:
    """Until somebody listens.

    Raises:
        NotPossible: the process ended, or time is over.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    told = f": {log.read_text(errors='replace')[-1500:]}" if log is not None and log.exists() else ""
    raise NotPossible(f"nothing listens on port {port}{told}")


# ---- the server ----


@dataclass(frozen=True)
class Nginx:
    """One worker that serves a file of 600 bytes with keep-alive, and counts its requests itself."""

    master: int
    worker: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/file.txt"

    def requests(self) -> int:
        """Requests so far, this one included: nginx's own count, hence the truth."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/status")
        numbers = connection.getresponse().read().decode().split("\n")[2].split()
        connection.close()
        return int(numbers[2])


@contextlib.contextmanager
def nginx(directory: Path, *, core: int | None) -> Iterator[Nginx]:
    port = free_port()
    place = directory / f"nginx-{port}"
    (place / "www").mkdir(parents=True)
    (place / "www/file.txt").write_bytes(b"onlooker looks on\n" * (BODY_BYTES // 18) + b"." * (BODY_BYTES % 18))
    log = place / "error.log"
    (place / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {place}/pid; error_log {log};\n"
        f"{'user root;' if os.geteuid() == 0 else ''} events {{ worker_connections 1024; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600; sendfile off;\n"
        f"  open_file_cache max=16; client_body_temp_path {place}/a; proxy_temp_path {place}/b;\n"
        f"  fastcgi_temp_path {place}/c; uwsgi_temp_path {place}/d; scgi_temp_path {place}/e;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {place}/www; location /status {{ stub_status; }} }} }}\n"
    )
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or "nginx"
    with started([program, "-e", log, "-c", place / "nginx.conf"], core=core, log=place / "out") as process:
        wait_for_port(port, process, log)
        end = time.monotonic() + 10
        while not (found := children(process.pid)):  # it listens before it has one
            if time.monotonic() > end:
                raise NotPossible("nginx has no worker")
            time.sleep(0.02)
        yield Nginx(process.pid, found[0], port)


# ---- the floor ----


def built_floor(directory: Path) -> Path:
    """The object of the empty programs, built there."""
    built = directory / "floor.bpf.o"
    source = ROOT / "benchmarks/floor.bpf.c"
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["clang", "-O2", "-g", "-target", "bpf", "-c", source, "-o", built], check=True)
    return built


@contextlib.contextmanager
def floor(built: Path) -> Iterator[None]:
    """Empty programs on the hooks of the capture."""
    sys.path.insert(0, str(ROOT / "src"))
    from onlooker.kernel.object import Object

    with Object(built.read_bytes()) as loaded:
        loaded.load()
        for name in loaded.sections:
            loaded.attach(name)
        yield


# ---- loads ----


@dataclass(frozen=True)
class Load:
    """What a load generator says of itself."""

    requests: int
    seconds: float
    errors: int


@contextlib.contextmanager
def wrk_running(url: str, *, core: int | None = None, connections: int = 32) -> Iterator[None]:
    """wrk at work, from before the block until its end."""
    command = ["wrk", "-t1", f"-c{connections}", "-d100000s", url]
    with started(command, core=core) as process:
        time.sleep(0.5)
        if process.poll() is not None:
            raise NotPossible("wrk ended at once")
        yield


def wrk(url: str, *, seconds: float, core: int | None, connections: int = 32) -> Load:
    """As fast as one thread of wrk can."""
    command = [*pinned(core), "wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", url]
    out = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 200 + 60, check=True).stdout
    total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", out)
    if total is None:
        raise NotPossible(f"wrk said: {out[-500:]}")
    seconds_of = {"ms": 0.001, "s": 1.0, "m": 60.0}
    errors = re.findall(r"(?:connect|read|write|timeout) (\d+)", out)
    return Load(int(total[1]), float(total[2]) * seconds_of[total[3]], sum(map(int, errors)))


PACED = """\
import socket, sys, time

port, rate, connections, body = (int(word) for word in sys.argv[1:])
request = b"GET /file.txt HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n"
sockets = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(connections)]
began, sent = time.monotonic(), 0
while True:
    time.sleep(max(began + sent / rate - time.monotonic(), 0))
    one = sockets[sent % connections]
    one.sendall(request)
    got = b""
    while len(got.partition(b"\\r\\n\\r\\n")[2]) < body:
        part = one.recv(65536)
        if not part:
            sys.exit("the server closed a connection")
        got += part
    sent += 1
"""


@contextlib.contextmanager
def paced_running(port: int, *, rate: int, connections: int = 8, core: int | None = None) -> Iterator[None]:
    """``rate`` requests a second over some keep-alive connections, from before the block until its end."""
    numbers = [str(number) for number in (port, rate, connections, BODY_BYTES)]
    with started([sys.executable, "-c", PACED, *numbers], core=core) as process:
        time.sleep(0.5)
        if process.poll() is not None:
            raise NotPossible("the paced client ended at once")
        yield


# ---- the agent ----


class Agent:
    """onlooker, running.

    Attributes:
        ready_s: From its start until it said that it is ready.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, ready_s: float, log: Path) -> None:
        self.pid = process.pid
        self._process, self._log = process, log
        self.port = port
        self.ready_s = ready_s

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
        except ConnectionRefusedError as err:
            told = self._log.read_text(errors="replace")[-2000:]
            raise NotPossible(f"the agent does not answer (exit code {self._process.poll()}): {told}") from err
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise NotPossible(f"{path}: {answer.status} {text[:200]}")
        return text

    def own(self) -> dict[str, float]:
        """The agent's own metrics by name and labels."""
        lines = self.get("/metrics").splitlines()
        return {
            key: float(value)
            for key, _, value in (line.rpartition(" ") for line in lines if line.startswith("onlooker_"))
        }

    def seen(self) -> int:
        """Requests that came out of the capture."""
        return int(self.own()["onlooker_requests_total"])

    def lost(self) -> dict[str, int]:
        """What it declares as lost, by reason; zeros left out."""
        found = (
            (re.fullmatch(r'onlooker_lost_total\{reason="(.*)"\}', key), value) for key, value in self.own().items()
        )
        return {match[1]: int(value) for match, value in found if match and value}


@contextlib.contextmanager
def agent(directory: Path, *selection: str, core: int | None, otlp_port: int = 0, page: bool = False,
          extra: str = "", timeout_s: float = 30) -> Iterator[Agent]:  # fmt: skip
    """The agent, once it is ready.

    Args:
        directory: For its configuration, log and store.
        selection: Flags that select processes.
        core: It is pinned there.
        otlp_port: Export spans to it by OTLP over HTTP.
        page: Serve the page, and keep its store on disk.
        extra: More lines of configuration.
        timeout_s: To be ready.
    """
    port, health = free_port(), free_port()
    place = directory / f"agent-{port}"
    place.mkdir(parents=True)
    lines = [
        f"prometheus_export: {{port: {port}}}",
        f"health_check: {{port: {health}}}",
        f"web: {{port: {free_port() if page else 0}}}",
        f"store: {{path: {place}/store.sqlite}}",
        extra,
    ]
    if otlp_port:
        endpoint = f"http://127.0.0.1:{otlp_port}"
        lines.append(f"otel_traces_export: {{endpoint: '{endpoint}/v1/traces', protocol: http/protobuf}}")
        lines.append(f"otel_metrics_export: {{endpoint: '{endpoint}/v1/metrics', protocol: http/protobuf}}")
    (place / "onlooker.yaml").write_text("\n".join(lines) + "\n")
    log = place / "log"
    began = time.monotonic()
    command = [ONLOOKER, "run", "--config", place / "onlooker.yaml", *selection]
    with started(command, core=core, log=log) as process:
        end = began + timeout_s
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise NotPossible(f"the agent did not become ready: {log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException, NotPossible):
                Agent(process, health, 0.0, log).get("/readyz")
                break
            time.sleep(0.01)
        yield Agent(process, port, time.monotonic() - began, log)


DISCARD = """\
import socket, sys, threading

def serve(connection):
    with connection:
        data = b""
        while True:
            while b"\\r\\n\\r\\n" not in data:
                part = connection.recv(1 << 18)
                if not part:
                    return
                data += part
            head, _, data = data.partition(b"\\r\\n\\r\\n")
            left = next(int(line[15:]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length:"))
            left -= len(data)
            data = b""
            while left > 0:
                part = connection.recv(min(left, 1 << 18))
                if not part:
                    return
                left -= len(part)
            answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/x-protobuf\\r\\nContent-Length: 0\\r\\n"
            connection.sendall(answer + b"\\r\\n")

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def sink(*, core: int | None) -> Iterator[int]:
    """A receiver that reads, answers 200 and keeps nothing; gives its port."""
    port = free_port()
    with started([sys.executable, "-c", DISCARD, str(port)], core=core) as process:
        wait_for_port(port, process)
        yield port
