"""Unusual hosts with the whole agent, inside a machine of the kernel lab: they would harm the one that tests run on.

Steps of the clock, processors that go away and come back, pids that are used again, a hidden ``/proc``, a root that
nothing can be written to, ``perf_event_paranoid=4``, no memory for maps, a container, and lockdown.  Each case asks
for pages, looks at every answer, and holds the agent's count against its own; prints a line of JSON a case.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from onlooker.cli._host import needed_capabilities  # noqa: E402 - found by this path alone
from onlooker.config import Config  # noqa: E402
from support import agent, zoo  # noqa: E402

agent.START_TIMEOUT_S, agent.STOP_TIMEOUT_S = 300.0, 120.0  # emulated
PATIENCE_S = 120.0
NOBODY = 65_534
CAPABILITIES = [need.capability.removeprefix("CAP_").lower() for need in needed_capabilities(Config())]
Through = Sequence[str]


class Server:
    """A server of pages, and how often it was asked."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.pid, self.port, self.asked = process, process.pid, port, 0

    def ask(self, count: int) -> None:
        """Over kept and fresh connections; every answer has to be right."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as kept:
            for number in range(count):
                with contextlib.ExitStack() as stack:
                    fresh = number % 10 == 0
                    one = stack.enter_context(
                        socket.create_connection(("127.0.0.1", self.port), timeout=60) if fresh else kept.dup()
                    )
                    one.sendall(b"GET /items/%d HTTP/1.1\r\nHost: here\r\n\r\n" % number)
                    data = b""
                    while b"\r\n\r\n" not in data or not data.endswith(b"\n"):
                        part = one.recv(4096)
                        assert part, f"closed after {data!r}"
                        data += part
                    assert data.startswith(b"HTTP/1.1 200"), data
                    assert b"%d" % number in data.partition(b"\r\n\r\n")[2], data
                self.asked += 1


@contextlib.contextmanager
def serving(*before: str) -> Iterator[Server]:
    port = zoo.free_port()
    process = subprocess.Popen([*before, str(zoo.BIN / "c-server"), str(port)], stdin=subprocess.DEVNULL)
    try:
        agent.wait_until(lambda: _listens(port), "the server listens", 60, 0.1)
        yield Server(process, port)
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def counted(onlooker: agent.Agent) -> int:
    return int(onlooker.metric("http_server_request_duration_seconds_count"))


def as_nobody() -> list[str]:
    """What `doctor` lists, and no other right."""
    kept = ",".join(["-all", *(f"+{name}" for name in CAPABILITIES)])
    return ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps", kept,
            "--ambient-caps", kept, "--bounding-set", kept, "--no-new-privs", "--"]  # fmt: skip


@contextlib.contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="unusual-", dir="/tmp") as text:
        directory = Path(text)
        directory.chmod(0o777)
        yield directory


@contextlib.contextmanager
def watching(server: Server, through: Through = (), *, stores: bool = False) -> Iterator[agent.Agent]:
    with place() as directory:
        onlooker = agent.Agent(
            directory, agent.selecting(ports=str(server.port)), prints=False, through=through, stores=stores
        )
        try:
            onlooker.wait_ready()
            agent.wait_until(
                lambda: onlooker.metric("onlooker_instrumented_processes") >= 1,
                "the server is watched",
                PATIENCE_S,
                0.5,
            )
            yield onlooker
            onlooker.stop()
        except BaseException:
            sys.stderr.write(f"--- the agent said:\n{onlooker.log()[-3000:]}\n")
            raise
        finally:
            onlooker.kill()


def settled(onlooker: agent.Agent, asked: int) -> dict[str, object]:
    """What was asked and counted, once it no longer changes."""
    with contextlib.suppress(agent.AgentFailure):
        agent.wait_until(lambda: counted(onlooker) >= asked, "all is counted", PATIENCE_S, 1.0)
    found = counted(onlooker)
    lost = onlooker.losses()
    assert found + sum(lost.values()) == asked, (asked, found, lost)
    return {"asked": asked, "counted": found, "lost": lost}


# ---- cases ----


def steps_of_the_clock() -> dict[str, object]:
    """An hour on, two hours back, and back to where it was, while requests are made."""
    with serving() as server, watching(server) as onlooker:
        server.ask(30)
        began = time.clock_gettime(time.CLOCK_REALTIME)
        for step in (3600.0, -7200.0, 3600.0):
            time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + step)
            server.ask(30)
            time.sleep(2)
        assert abs(time.clock_gettime(time.CLOCK_REALTIME) - began) < 600
        samples = [
            sample.value for sample in onlooker.samples()
            if sample.name == "http_server_request_duration_seconds_sum"
        ]  # fmt: skip
        assert 0 < sum(samples) < 600, samples  # durations are of another clock
        return settled(onlooker, server.asked)


def processors_that_go_away() -> dict[str, object]:
    """The second processor goes offline and comes back, three times; per-CPU counts of it are not lost."""
    online = Path("/sys/devices/system/cpu/cpu1/online")
    if not online.exists():
        return {"skipped": "one processor"}
    with serving() as server, watching(server) as onlooker:
        for _ in range(3):
            server.ask(20)
            online.write_text("0")
            server.ask(20)
            online.write_text("1")
        return {**settled(onlooker, server.asked), "times": 3}


def pids_that_are_used_again() -> dict[str, object]:
    """A watched server ends, a program that nobody selected gets its pid, and then a server that is selected."""
    with serving() as first, watching(first) as onlooker:
        first.ask(20)
        pid = first.pid
        first.process.kill()
        first.process.wait()
        stranger = _with_pid(pid, [str(zoo.BIN / "c-server"), str(zoo.free_port())])
        port = int(stranger.args[-1])  # type: ignore[index]
        try:
            agent.wait_until(lambda: _listens(port), "the stranger listens", 60, 0.1)
            other = Server(stranger, port)
            other.ask(20)  # of no concern to the agent, which watches another port
            time.sleep(3)
            settled(onlooker, first.asked)
        finally:
            stranger.kill()
            stranger.wait()
        again = _with_pid(pid, [str(zoo.BIN / "c-server"), str(first.port)])
        try:
            agent.wait_until(lambda: _listens(first.port), "the server listens again", 60, 0.1)
            agent.wait_until(
                lambda: onlooker.metric("onlooker_instrumented_processes") >= 1, "it is watched", PATIENCE_S, 0.5
            )
            second = Server(again, first.port)
            second.ask(20)
            return {**settled(onlooker, first.asked + second.asked), "pid": pid}
        finally:
            again.kill()
            again.wait()


def _with_pid(pid: int, command: list[str]) -> subprocess.Popen[bytes]:
    """A program that gets this pid."""
    for _ in range(50):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        made = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
    raise AssertionError(f"no program got pid {pid}")


def a_hidden_proc() -> dict[str, object]:
    """``hidepid=2``, and an agent that is nobody."""
    subprocess.run(["mount", "-o", "remount,hidepid=2", "/proc"], check=True)
    try:
        hidden = subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "ls", "/proc/1"],
            capture_output=True, check=False,
        ).returncode  # fmt: skip
        assert hidden
        with serving() as server, watching(server, as_nobody()) as onlooker:
            server.ask(50)
            return settled(onlooker, server.asked)
    finally:
        subprocess.run(["mount", "-o", "remount,hidepid=0", "/proc"], check=True)


def a_root_that_is_read_only() -> dict[str, object]:
    """Nothing can be written, the store's directory included: it counts, and says what it cannot keep."""
    script = (
        'mount -o remount,ro,bind / 2>/dev/null || mount -o bind,ro / /; mount -t tmpfs -o ro none /var/lib; exec "$@"'
    )
    with (
        serving() as server,
        watching(server, ["unshare", "--mount", "sh", "-c", script, "sh"], stores=True) as onlooker,
    ):
        server.ask(50)
        found = settled(onlooker, server.asked)
        said = [line for line in onlooker.log().splitlines() if "store" in line.lower()]
        assert said, onlooker.log()
        return {**found, "said": said[0][-160:]}


def perf_events_for_nobody() -> dict[str, object]:
    """``kernel.perf_event_paranoid=4``, and an agent that is nobody with what `doctor` lists."""
    paranoid = Path("/proc/sys/kernel/perf_event_paranoid")
    before = paranoid.read_text()
    paranoid.write_text("4")
    try:
        with serving() as server, watching(server, as_nobody()) as onlooker:
            server.ask(50)
            return settled(onlooker, server.asked)
    finally:
        paranoid.write_text(before)


def no_memory_for_maps() -> dict[str, object]:
    """A memory group with less than the maps take: the agent ends with a message, or the kernel ends it alone."""
    group = Path("/sys/fs/cgroup/unusual")
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(24 << 20))
        with serving() as server, place() as directory:
            script = f'echo $$ >{group}/cgroup.procs; exec "$@"'
            onlooker = agent.Agent(
                directory, agent.selecting(ports=str(server.port)), prints=False, through=["sh", "-c", script, "sh"]
            )
            try:
                agent.wait_until(lambda: onlooker.process.poll() is not None, "it ended", 300, 0.5)
                server.ask(50)
                code = onlooker.process.returncode
                assert code in (3, -signal.SIGKILL), (code, onlooker.log())
                return {"asked": server.asked, "exit_code": code, "said": onlooker.log().strip()[-200:]}
            finally:
                onlooker.kill()
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.2)


def a_container() -> dict[str, object]:
    """Agent and server in pid, network, IPC, UTS and mount namespaces of their own."""
    inside = [sys.executable, __file__, "--only", "plain"]
    isolated = ["unshare", "--pid", "--net", "--ipc", "--uts", "--mount", "--fork", "--kill-child", "--mount-proc"]
    script = 'PATH=$PATH:/sbin:/usr/sbin; ip link set lo up; exec "$@"'
    done = subprocess.run(
        [*isolated, "sh", "-ec", script, "sh", *inside], capture_output=True, text=True, timeout=600, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-2000:]
    found: dict[str, object] = json.loads(lines[-1])
    assert found["ok"], found
    return {key: found[key] for key in ("asked", "counted", "lost")}


def plain() -> dict[str, object]:
    with serving() as server, watching(server) as onlooker:
        server.ask(50)
        return settled(onlooker, server.asked)


def lockdown_for_integrity() -> dict[str, object]:
    """Nothing is lost.  There is no way back, hence the last but one."""
    lockdown = Path("/sys/kernel/security/lockdown")
    if not lockdown.exists():
        return {"skipped": "this kernel has no lockdown"}
    lockdown.write_text("integrity")
    assert "[integrity]" in lockdown.read_text()
    return plain()


def lockdown_for_confidentiality() -> dict[str, object]:
    """Programs may not read memory: it ends with the reason."""
    lockdown = Path("/sys/kernel/security/lockdown")
    if not lockdown.exists():
        return {"skipped": "this kernel has no lockdown"}
    lockdown.write_text("confidentiality")
    with serving() as server, place() as directory:
        onlooker = agent.Agent(directory, agent.selecting(ports=str(server.port)), prints=False)
        try:
            assert onlooker.process.wait(300) == 3, onlooker.log()
            assert "confidentiality" in onlooker.log()
            server.ask(50)
            return {"asked": server.asked, "exit_code": 3, "said": onlooker.log().strip()[-200:]}
        finally:
            onlooker.kill()


CASES: dict[str, Callable[[], dict[str, object]]] = {
    case.__name__: case
    for case in (
        steps_of_the_clock, processors_that_go_away, pids_that_are_used_again, a_hidden_proc, a_root_that_is_read_only,
        perf_events_for_nobody, no_memory_for_maps, a_container, lockdown_for_integrity, lockdown_for_confidentiality,
    )
}  # fmt: skip


def main() -> None:
    words = itertools.chain.from_iterable(word.split(",") for word in sys.argv[2:])
    chosen = list(words) or list(CASES)
    if shutil.which("setpriv") is None:
        raise SystemExit("needs setpriv")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for name in chosen:
        try:
            found = {"ok": True, **(plain if name == "plain" else CASES[name])()}
        except Exception as err:
            traceback.print_exc()
            found = {"ok": False, "error": f"{type(err).__name__}: {err}"[:1500]}
        print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
