"""The agent and its host mistreated, under load: the application loses nothing, and what the agent misses it declares.

In every case a steady load compares each answer with what it has to be. Afterwards: no answer was wrong or missing,
requests counted + requests declared lost = requests sent, the agent goes on (or ended with a message), and nothing of
it is left in the kernel. What happened is written to ``build/torture.md``.

Not here, because it would change the clocks or the processors of the machine: see ``tests/kernels``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from support import agent, truth, zoo, zoo_tls
from support.otlp_receiver import Misbehaviour, OtlpReceiver

pytestmark = pytest.mark.live

STOPPED_S = float(os.environ.get("ONLOOKER_TEST_STOP_SECONDS", "8"))
CONNECTIONS = 3
TABLE = zoo.ROOT / "build" / "torture.md"
SEED = 20261122


@dataclass
class Scene:
    """A server under steady load, and the agent that watches it."""

    directory: Path
    server: zoo.Server
    load: zoo.Program
    onlooker: agent.Agent
    configuration: dict[str, object]
    asked_otherwise: int = 0  # by the test, beside the load
    told: list[str] = field(default_factory=list)

    def counted(self) -> int:
        return int(self.onlooker.metric("http_server_request_duration_seconds_count"))

    def asks(self) -> None:
        """Once, and the answer has to come."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(b"GET /items/asked HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        self.asked_otherwise += 1

    def goes_on(self) -> None:
        """The agent counts what is asked from now on."""
        before = self.counted()
        agent.wait_until(lambda: self.counted() > before, "the agent goes on counting", 20, 0.2)

    def end(self) -> tuple[int, int, dict[str, int]]:
        """Ends the load; gives requests sent, counted, and lost by reason."""
        made = end_load(self.load)
        sent = made + self.asked_otherwise

        def complete() -> bool:
            return self.counted() + sum(self.onlooker.losses().values()) >= sent

        with contextlib.suppress(agent.AgentFailure):
            agent.wait_until(complete, "all is counted", 15, 0.2)
        return sent, self.counted(), self.onlooker.losses()


def end_load(load: zoo.Program) -> int:
    """Requests that the load made, all of them well."""
    load.tell("\n")
    said = json.loads(next(iter(load.lines())))
    assert said["fault_count"] == 0, said["faults"]
    assert said["requests"] > 100
    return int(said["requests"])


@contextlib.contextmanager
def under_load(server: zoo.Server, directory: Path) -> Iterator[zoo.Program]:
    load = zoo.Program(
        [sys.executable, "-m", "support.steady_load", str(server.port), str(CONNECTIONS)], zoo.ROOT / "tests",
        name="load", pipes=True,
    )  # fmt: skip
    try:
        yield load
    finally:
        load.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with zoo.server("c-threads") as server:
        own = tmp_path / "agent"
        own.mkdir()
        configuration = agent.selecting(pids=[server.pid])
        onlooker = agent.Agent(own, configuration, prints=False, stores=True, environment=store_in(own))
        try:
            onlooker.wait_ready()
            onlooker.wait_watched([server.pid])
            with under_load(server, tmp_path) as load:
                made = Scene(tmp_path, server, load, onlooker, configuration)
                made.goes_on()
                yield made
            onlooker.stop()
        except BaseException:
            sys.stderr.write(f"--- the agent said:\n{onlooker.log()[-4000:]}\n")
            raise
        finally:
            onlooker.kill()


def store_in(directory: Path) -> dict[str, str]:
    return {"ONLOOKER_STORE_PATH": str(directory / "store.sqlite")}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(
        "| what was done | requests | counted | declared lost | what happened |\n| --- | --- | --- | --- | --- |\n"
    )
    yield
    print("\n" + TABLE.read_text())


def report(what: str, sent: int, counted: int, lost: dict[str, int], happened: str) -> None:
    losses = ", ".join(f"{count} {reason}" for reason, count in lost.items()) or "0"
    with TABLE.open("a") as file:
        file.write(f"| {what} | {sent} | {counted} | {losses} | {happened} |\n")


def check(scene: Scene, what: str, happened: str, *, may_lose: tuple[str, ...] = ()) -> None:
    scene.goes_on()
    sent, counted, lost = scene.end()
    report(what, sent, counted, lost, happened)
    assert set(lost) <= set(may_lose), lost
    assert counted + sum(lost.values()) == sent


# ---- the agent itself ----


def test_stopped_for_a_while(scene: Scene) -> None:
    """SIGSTOP: nobody reads the rings; what does not fit is counted."""
    os.kill(scene.onlooker.pid, signal.SIGSTOP)
    try:
        wrk = subprocess.run(
            ["wrk", "-t1", "-c4", f"-d{STOPPED_S:.0f}s", f"http://127.0.0.1:{scene.server.port}/items/1"],
            capture_output=True, text=True, check=True, timeout=STOPPED_S + 60,
        )  # fmt: skip
    finally:
        os.kill(scene.onlooker.pid, signal.SIGCONT)
    flood = int(next(line for line in wrk.stdout.splitlines() if "requests in" in line).split()[0])
    scene.goes_on()
    sent, counted, lost = scene.end()
    report(f"SIGSTOP for {STOPPED_S:.0f} s, and a flood meanwhile", sent + flood, counted, lost, "reads on")
    assert set(lost) <= {"ring_full"}
    assert 0 <= counted + sum(lost.values()) - sent - flood <= 4  # wrk stops in the middle of each connection's last


def test_descriptors_run_out(scene: Scene) -> None:
    pid = scene.onlooker.pid
    held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, before[1]))
    refused = 0
    for _ in range(20):
        try:
            scene.onlooker.get("/readyz")
        except OSError:
            refused += 1
    with zoo.server("c-threads"):  # a process to look at, without a descriptor to do it
        time.sleep(1.0)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    agent.wait_until(lambda: scene.onlooker.get("/readyz")[0] == 200, "it answers again", 20, 0.2)
    check(
        scene,
        "no descriptor left for 20 connections and a new process",
        f"{refused} connections refused; answers again",
    )


@pytest.mark.parametrize("times", [12])
def test_reloaded(scene: Scene, times: int) -> None:
    """SIGHUP with another configuration, now and then a broken one."""
    path = scene.onlooker.directory / "agent.yaml"
    chance = random.Random(SEED)
    with zoo.server("c-threads") as other:
        for turn in range(times):
            pids = [scene.server.pid] + ([other.pid] if turn % 2 else [])
            changed = agent.selecting(pids=pids, routes={"unmatched": chance.choice(["path", "wildcard", "heuristic"])})
            path.write_text("routes: [broken" if turn % 4 == 3 else yaml.safe_dump(changed))
            os.kill(scene.onlooker.pid, signal.SIGHUP)
            time.sleep(0.4)
        path.write_text(yaml.safe_dump(agent.selecting(pids=[scene.server.pid])))
        os.kill(scene.onlooker.pid, signal.SIGHUP)
        agent.wait_until(
            lambda: scene.onlooker.metric("onlooker_instrumented_processes") == 1, "only the first is watched", 10
        )
    log = scene.onlooker.log()
    assert log.count("configuration reloaded") >= times // 2
    assert log.count("was not reloaded") == times // 4
    check(scene, f"SIGHUP {times} times, every fourth with a broken file", "takes the good ones, keeps on with the bad")


def test_a_second_agent_and_a_debugger(scene: Scene, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    attached = 0
    with agent.running(second, scene.configuration, prints=False) as other:
        other.wait_watched([scene.server.pid])
        for command in (
            ["gdb", "-p", str(scene.server.pid), "-batch", "-ex", "detach"],
            ["timeout", "--signal=INT", "2", "strace", "-f", "-qq", "-o", "/dev/null", "-p", str(scene.server.pid)],
        ):
            if shutil.which(command[-7] if command[0] == "timeout" else command[0]):
                subprocess.run(command, capture_output=True, check=False, timeout=60)
                attached += 1
        scene.goes_on()
        before = other.metric("http_server_request_duration_seconds_count")
        agent.wait_until(
            lambda: other.metric("http_server_request_duration_seconds_count") > before, "the other one counts too", 15
        )
    check(scene, f"a second onlooker and {attached} debuggers (gdb, strace) on the same process", "both count")


def test_another_user_of_uprobes(place, tmp_path: Path) -> None:
    """bpftrace has its own probes on the functions that onlooker looks into, before and after it came."""
    program = zoo.which("bpftrace")
    if program is None:
        pytest.skip("bpftrace is not installed")
    library = Path(next(path for path in libraries_of("openssl") if "libssl" in path)).resolve()
    requests = 200
    with zoo.server(zoo_tls.SERVERS["python-http-server"]) as server:
        script = f"uprobe:{library}:SSL_write, uprobe:{library}:SSL_write_ex /pid == {server.pid}/ {{ @ = count(); }}"

        def probes() -> zoo.Program:
            made = zoo.Program([program, "-e", script], tmp_path, name="bpftrace", pipes=True)
            assert "Attaching" in next(iter(made.lines()))
            time.sleep(1.0)
            return made

        def asks(name: str) -> None:
            plan = truth.plan(1, requests, pages=("items",), run=name)
            with zoo.client(zoo_tls.client("curl"), server.port, plan) as client:
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=True) == []

        def said(tracer: zoo.Program) -> int:
            tracer.process.send_signal(signal.SIGINT)
            text = tracer.process.communicate(timeout=60)[0].decode()
            return int(text.rpartition("@:")[2])

        before = probes()
        try:
            with agent.running(tmp_path, agent.selecting(pids=[server.pid]), prints=False) as onlooker:
                agent.wait_until(lambda: onlooker.metric("onlooker_tls_processes") == 1, "it is looked into", 20)
                asks("with-bpftrace")
                assert said(before) >= requests  # its probes go while ours stay
                after = probes()
                asks("bpftrace-again")
                agent.wait_until(
                    lambda: onlooker.metric("http_server_request_duration_seconds_count") >= 2 * requests,
                    "all are seen", 15,
                )  # fmt: skip
                counted = int(onlooker.metric("http_server_request_duration_seconds_count"))
                lost = onlooker.losses()
            asks("without-onlooker")  # and ours, while its stay
            assert said(after) >= 2 * requests
        finally:
            before.stop()
    report("bpftrace's uprobes on the same functions of the same process", 2 * requests, counted, lost, "both count")
    assert (counted, lost) == (2 * requests, {})


def test_out_of_memory(tmp_path: Path) -> None:
    """A limit below what it needs: the kernel ends the agent, and nobody else."""
    with zoo.server("c-threads") as server, memory_group(48 << 20) as join, under_load(server, tmp_path) as load:
        onlooker = agent.Agent(tmp_path, agent.selecting(pids=[server.pid]), prints=False)
        try:
            join(onlooker.pid)
            agent.wait_until(lambda: onlooker.process.poll() is not None, "the kernel has ended it", 40, 0.1)
        finally:
            onlooker.kill()
        time.sleep(0.5)
        sent = end_load(load)
    report("48 MB of memory", sent, 0, {}, f"the kernel ends it (exit code {onlooker.process.returncode})")


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Callable[[int], None]]:
    """A memory cgroup of the test's own, of either version; skips where none can be made."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    name = f"onlooker-test-{os.getpid()}"
    if (first / "memory.limit_in_bytes").exists():
        group, key = first / name, "memory.limit_in_bytes"
    elif "memory" in (second / "cgroup.subtree_control").read_text().split():
        group, key = second / name, "memory.max"
    else:
        pytest.skip("no memory controller to limit with")
    group.mkdir()
    try:
        (group / key).write_text(str(limit))
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            with contextlib.suppress(OSError):
                (group / swap).write_text(str(limit if "memsw" in swap else 0))
        yield lambda pid: (group / "cgroup.procs").write_text(str(pid)) and None
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


# ---- its disk and its receivers ----


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=True)
    try:
        with zoo.server("c-threads") as server:
            configuration = agent.selecting(pids=[server.pid])
            onlooker = agent.Agent(tmp_path, configuration, prints=False, stores=True, environment=store_in(disk))
            try:
                onlooker.wait_ready()
                onlooker.wait_watched([server.pid])
                with under_load(server, tmp_path) as load:
                    scene = Scene(tmp_path, server, load, onlooker, configuration)
                    agent.wait_until(lambda: not shutil.disk_usage(disk).free // 8192, "the disk is full", 30, 0.2)
                    time.sleep(2.0)
                    check(scene, "the store's disk is full", "counts on; what cannot be stored is said")
                said = onlooker.log()
                onlooker.stop()
            finally:
                onlooker.kill()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "store" in said
    assert said.count("store") < 20  # said once, not for every batch


BAD_RECEIVERS = {
    "hangs up": Misbehaviour(hang_up=True),
    "answers garbage": Misbehaviour(body=bytes(range(256)) * 10),
    "answers 10 MB of error": Misbehaviour(status=500, body=b"x" * 10_000_000),
    "takes a minute": Misbehaviour(delay_s=60),
    "sends a byte a second": Misbehaviour(body=b"y" * 1000, trickle_s=1.0),
}


@pytest.mark.parametrize("kind", BAD_RECEIVERS)
def test_a_bad_receiver(tmp_path: Path, kind: str) -> None:
    with OtlpReceiver(grpc_port=None) as receiver, zoo.server("c-threads") as server:
        receiver.always(BAD_RECEIVERS[kind])
        export = {"endpoint": f"{receiver.endpoint()}/v1/traces", "protocol": "http/protobuf", "batch_timeout": "100ms",
                  "timeout": "1s", "backoff_initial_interval": "200ms", "backoff_max_interval": "500ms",
                  "backoff_max_elapsed_time": "2s"}  # fmt: skip
        configuration = agent.selecting(
            pids=[server.pid], otel_traces_export=export, limits={"span_queue_bytes": 1 << 20}, shutdown_timeout="1s"
        )
        with agent.running(tmp_path, configuration, prints=False) as onlooker:
            onlooker.wait_watched([server.pid])
            rss = onlooker.rss_bytes
            with under_load(server, tmp_path) as load:
                scene = Scene(tmp_path, server, load, onlooker, configuration)
                time.sleep(4.0)
                scene.goes_on()
                made = end_load(load)
            agent.wait_until(lambda: scene.counted() == made, "all is counted in the metrics", 10)
            grown = onlooker.rss_bytes - rss
            lost = onlooker.losses()
    report(
        f"a receiver that {kind}", made, made, {}, f"metrics whole, {sum(lost.values())} spans lost, +{grown >> 20} MB"
    )
    assert all(reason.startswith("traces_") for reason in lost)
    assert grown < 40 << 20


# ---- the watched processes ----


def test_storms_of_processes(scene: Scene, place, tmp_path: Path) -> None:
    """A tree of shells that fork to a depth, ten times; none of them lives long."""
    script = tmp_path / "storm.sh"
    script.write_text('[ "$1" -gt 0 ] || exit 0\nsh "$0" $(($1 - 1)) & sh "$0" $(($1 - 1)) & wait\n')
    began = time.monotonic()
    for _ in range(10):
        subprocess.run(["sh", str(script), "6"], check=True, timeout=60)
    took = time.monotonic() - began
    check(scene, "1,270 processes that live for milliseconds", f"in {took:.0f} s")


def test_a_storm_of_connections(scene: Scene) -> None:
    """2,000 at once that say nothing, then 3,000 that are closed at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(500):
                stack.enter_context(socket.create_connection(("127.0.0.1", scene.server.port), timeout=10))
            scene.goes_on()
        for _ in range(3000):
            socket.create_connection(("127.0.0.1", scene.server.port), timeout=10).close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check(scene, "500 silent connections at once, 3,000 closed at once", "none of them is a request")


def test_programs_that_start_while_the_agent_attaches(place, tmp_path: Path) -> None:
    """Programs with TLS libraries come and go while agents start and end."""
    over = threading.Event()
    started = 0
    failed: list[int] = []

    def programs() -> None:
        nonlocal started
        while not over.is_set():
            code = f"import ssl, sys; ssl.create_default_context(); sys.exit(0)  # {place.directory}/"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
            started += 1
            failed.extend([done.returncode] if done.returncode else [])

    with zoo.server("c-threads") as server, under_load(server, tmp_path) as load:
        thread = threading.Thread(target=programs)
        thread.start()
        try:
            for _ in range(4):
                with agent.running(tmp_path, place.selects(), prints=False) as onlooker:
                    onlooker.wait_watched([server.pid])
                    time.sleep(1.0)
        finally:
            over.set()
            thread.join(60)
        sent = end_load(load)
    report(f"{started} programs with TLS start while 4 agents come and go", sent, 0, {}, "no program failed")
    assert failed == []


def test_a_library_that_is_replaced_and_deleted(tmp_path: Path, place) -> None:
    libraries = [Path(path) for path in libraries_of("openssl") if "libssl" in path or "libcrypto" in path]
    own = Path(tempfile.mkdtemp(prefix="libraries-", dir=place.directory))
    for library in libraries:
        shutil.copy(library, own / library.name)
    key, certificate = own / "key.pem", own / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here",
         "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    servers = []

    def serve() -> int:
        port = agent.free_port()
        servers.append(zoo.Program(
            ["env", f"LD_LIBRARY_PATH={own}", "openssl", "s_server", "-accept", str(port), "-www", "-quiet",
             "-key", str(key), "-cert", str(certificate)], own, name=f"openssl-{port}",
        ))  # fmt: skip
        agent.wait_until(lambda: listens(port), "openssl listens", 20, 0.1)
        return port

    def ask(port: int) -> None:
        done = subprocess.run(
            ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://127.0.0.1:{port}/"], capture_output=True,
            text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.stdout == "200", (done.stdout, done.stderr)

    asked = 0
    try:
        ports = [serve()]
        with agent.running(tmp_path, place.selects(), prints=False) as onlooker:
            for step in ("mapped", "replaced", "deleted"):
                if step == "replaced":
                    for library in libraries:
                        shutil.copy(library, own / "new")
                        os.replace(own / "new", own / library.name)
                    ports.append(serve())
                elif step == "deleted":
                    for library in libraries:
                        (own / library.name).unlink()
                agent.wait_until(
                    lambda: onlooker.metric("onlooker_instrumented_processes") >= len(ports), "they are watched", 15
                )
                time.sleep(1.0)
                for port, _ in itertools.product(ports, range(10)):
                    ask(port)
                    asked += 1
            agent.wait_until(
                lambda: onlooker.metric("http_server_request_duration_seconds_count") >= asked, "they are seen", 15
            )
            counted = int(onlooker.metric("http_server_request_duration_seconds_count"))
            lost = onlooker.losses()
    finally:
        for one in servers:
            one.stop()
    report("a TLS library replaced, then deleted, while it is mapped", asked, counted, lost, "both processes answer")
    assert counted + sum(lost.values()) == asked


def libraries_of(program: str) -> list[str]:
    found = subprocess.run(["ldd", str(shutil.which(program))], capture_output=True, text=True, check=True).stdout
    return [line.split("=>")[1].split()[0] for line in found.splitlines() if "=> /" in line]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_executable_that_is_deleted(tmp_path: Path, place) -> None:
    program = Path(tempfile.mkdtemp(dir=place.directory)) / "server-to-delete"
    shutil.copy(zoo.BIN / "c-server", program)
    spec = zoo.ServerSpec("deleted", "cpp", lambda at: {"server": [str(program), str(at.port)]}, (str(program),))
    with zoo.server(spec) as server:
        program.unlink()
        configuration = agent.selecting(pids=[server.pid])
        with agent.running(tmp_path, configuration, prints=False) as onlooker:
            onlooker.wait_watched([server.pid])
            with under_load(server, tmp_path) as load:
                check(
                    Scene(tmp_path, server, load, onlooker, configuration),
                    "a deleted executable",
                    "counted as any other",
                )


def test_malformed_libraries(scene: Scene, place, tmp_path: Path) -> None:
    """Files that are called like a TLS library and are none, mapped as code by a watched process."""
    good = Path(next(path for path in libraries_of("openssl") if "libssl" in path)).read_bytes()
    chance = random.Random(SEED)
    broken = {
        "empty": b"\x7fELF", "random": chance.randbytes(100_000), "cut": good[: len(good) // 2],
        "no-sections": good[:40] + (1 << 62).to_bytes(8, "little") + good[48:],
        "many-sections": good[:60] + b"\xff\xff" + good[62:],
        "sizes": bytes(byte ^ (chance.random() < 0.01) * 0xFF for byte in good[:4096]) + good[4096:],
    }  # fmt: skip
    own = Path(tempfile.mkdtemp(prefix="malformed-", dir=place.directory))
    code = (
        "import mmap, sys, time\n"
        "kind = mmap.PROT_READ | mmap.PROT_EXEC\n"
        "files = [open(path, 'rb') for path in sys.argv[1:]]\n"
        "maps = [mmap.mmap(file.fileno(), 0, prot=kind) for file in files]\n"
        "time.sleep(60)\n"
    )
    paths = []
    for name, data in broken.items():
        (own / name).mkdir()
        path = own / name / "libssl.so.3"
        path.write_bytes(data)
        paths.append(str(path))
    mapping = zoo.Program([sys.executable, "-c", code, *paths], own, name="mapping")
    second = tmp_path / "second"
    second.mkdir()
    try:
        with agent.running(second, agent.selecting(pids=[mapping.pid, scene.server.pid]), prints=False) as other:
            other.wait_watched([mapping.pid, scene.server.pid])
            time.sleep(2.0)
            assert other.get("/readyz")[0] == 200
    finally:
        mapping.stop()
    check(scene, f"{len(broken)} malformed files mapped as TLS libraries", "named as not understood")
