"""The services whose cost is measured, each with its load: nginx, Node, uvicorn, Go and PostgreSQL.

A load is a bounded number of seconds or transactions; it tells how many requests it made, and how long they took.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src"), str(HERE.parents[1] / "tests")]

import bench_redis  # noqa: E402 - found by this path alone
import measure  # noqa: E402

from support import zoo  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 32
CLIENTS = 8


@dataclass(frozen=True)
class Done:
    """What a load says of itself; latencies in ms, 0 where it has none."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float


Load = Callable[[float, int | None], Done]
"""Seconds, and the core to run on."""


@dataclass(frozen=True)
class Served:
    """A running service.

    Attributes:
        root: Its processes are this one and its descendants.
        port: Where it listens, by which an agent selects it.
        load: Asks it for that many seconds.
    """

    root: int
    port: int
    load: Load

    def pids(self) -> list[int]:
        return zoo.process_tree(self.root)

    def cpu_ns(self) -> int:
        """CPU time of all its processes, those included that it had and that ended."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += measure.cpu_ns(pid)
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[13]) + int(fields[14])) * 10**9 // TICKS
        return total


@dataclass(frozen=True)
class Workload:
    """One service.

    Attributes:
        serve: Starts it on a core, below a directory.
        needs: Programs or files without which it cannot run.
    """

    name: str
    serve: Callable[[Path, int | None], AbstractContextManager[Served]]
    needs: tuple[str, ...]


def wrk(url: str) -> Load:
    def load(seconds: float, core: int | None) -> Done:
        command = [*measure.pinned(core), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(round(seconds), 1)}s", "--latency",
                   "--timeout", "60s", url]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 200 + 120, check=True).stdout
        total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", out)
        found = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s))$", out, re.MULTILINE))
        if total is None or len(found) != 2 or re.search(r"Socket errors|Non-2xx", out):
            raise measure.NotPossible(f"wrk said: {out[-600:]}")
        return Done(int(total[1]), float(total[2]) * _S[total[3]], _ms(found["50"]), _ms(found["99"]))

    return load


_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * _S[unit] * 1000


@contextlib.contextmanager
def _nginx(directory: Path, core: int | None) -> Iterator[Served]:
    with measure.nginx(directory, core=core) as server:
        yield Served(server.master, server.port, wrk(server.url))


def _of_the_zoo(name: str) -> Callable[[Path, int | None], AbstractContextManager[Served]]:
    @contextlib.contextmanager
    def serve(directory: Path, core: int | None) -> Iterator[Served]:
        spec = zoo.SERVERS[name]
        port = measure.free_port()
        place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
        ((_, command),) = spec.programs(zoo.Place(port, place)).items()
        environment = {"NODE_PATH": str(zoo.BUILT / "node" / "node_modules"), "PYTHONPATH": ""}
        log = place / "log"
        with measure.started(command, core=core, log=log, env=environment) as process:
            measure.wait_for_port(port, process, log, timeout_s=180)
            yield Served(process.pid, port, wrk(f"http://127.0.0.1:{port}/items/1"))

    return serve


def postgres_programs() -> Path:
    """Where Debian keeps them.

    Raises:
        NotPossible: nowhere.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise measure.NotPossible("needs PostgreSQL (Debian package: postgresql)")
    return found[-1].parent


@contextlib.contextmanager
def _postgres(directory: Path, core: int | None) -> Iterator[Served]:
    """pgbench's read-only transactions, one statement each, as prepared statements."""
    programs = postgres_programs()
    port = measure.free_port()
    place = Path(tempfile.mkdtemp(prefix="postgres-", dir=directory))
    who: list[str] = []
    if os.geteuid() == 0:  # it refuses to be run by root
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam("postgres")
            os.chown(place, account.pw_uid, account.pw_gid)
            who = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]
    data, log = place / "data", directory / f"{place.name}.log"
    subprocess.run(
        [*who, programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C"],
        check=True, stdout=subprocess.DEVNULL, cwd=directory,
    )  # fmt: skip
    settings = ("fsync=off", "shared_buffers=16MB", "listen_addresses=127.0.0.1", f"unix_socket_directories={place}")
    flags = [word for setting in settings for word in ("-c", setting)]
    command = [*who, programs / "postgres", "-D", data, "-p", str(port), *flags]
    client = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres"]

    def load(seconds: float, core: int | None) -> Done:
        out = subprocess.run(
            [*measure.pinned(core), "pgbench", "-n", "-S", "-M", "prepared", f"-c{CLIENTS}", "-j1",
             f"-T{max(round(seconds), 1)}", *client],
            capture_output=True, text=True, timeout=seconds * 200 + 120, check=True,
        ).stdout  # fmt: skip
        made = re.search(r"transactions actually processed: (\d+)", out)
        late = re.search(r"latency average = ([\d.]+) ms", out)
        rate = re.search(r"tps = ([\d.]+)", out)
        if not (made and late and rate):
            raise measure.NotPossible(f"pgbench said: {out[-600:]}")
        return Done(int(made[1]), int(made[1]) / float(rate[1]), float(late[1]), 0.0)

    with measure.started(command, core=core, log=log) as process:
        measure.wait_for_port(port, process, log, timeout_s=180)
        for _ in range(50):
            done = subprocess.run(["pgbench", "-i", "-q", *client], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            raise measure.NotPossible(f"pgbench cannot begin: {done.stderr[-600:]}")
        yield Served(process.pid, port, load)


def _redis(pipeline: int, rate: int) -> Callable[[Path, int | None], AbstractContextManager[Served]]:
    @contextlib.contextmanager
    def serve(directory: Path, core: int | None) -> Iterator[Served]:
        """redis-benchmark's SET and GET; `rate` is about what the counting machine does in a second."""
        with bench_redis.redis(directory, core=core) as (pid, port):

            def load(seconds: float, core: int | None) -> Done:
                operations, began = int(rate * seconds), time.monotonic()
                bench_redis.load(port, operations=operations, pipeline=pipeline, core=core)
                return Done(operations + bench_redis.CONFIGURATION, time.monotonic() - began, 0.0, 0.0)

            yield Served(pid, port, load)

    return serve


WORKLOADS: Sequence[Workload] = (
    Workload("nginx", _nginx, ("nginx", "wrk")),
    Workload("node", _of_the_zoo("node-http"), ("node", "wrk")),
    Workload("uvicorn", _of_the_zoo("fastapi-uvloop"), (str(zoo.VENV / "uvicorn"), "wrk")),
    Workload("go", _of_the_zoo("go-net-http"), (str(zoo.BIN / "go-server"), "wrk")),
    Workload("postgres", _postgres, ("pgbench",)),
)

NAMED: Sequence[Workload] = (
    Workload("redis", _redis(1, 8_000), ("redis-server", "redis-benchmark")),
    Workload("redis-50", _redis(50, 100_000), ("redis-server", "redis-benchmark")),
)
"""Counted if asked for by name: an operation in a pipeline is none of a tracer of system calls."""


def absent(workload: Workload) -> list[str]:
    """What it lacks on this machine."""
    return [name for name in workload.needs if not zoo.which(name) and not shutil.which(name)]
