"""The real agent as a child process, watched from the outside.

    with agent.running(directory, cmd_args=f"*{directory}*") as onlooker:
        ...                                   # start programs whose command line names the directory
        onlooker.wait_watched(server.tree())
        ...                                   # traffic
        spans = onlooker.spans(expected=1000)
    # ended by SIGTERM, with exit code 0, and nothing of it is left in the kernel

Each agent selects only what the test itself started: by a directory of the test in the command line, a pid, or a port.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support import zoo
from support.zoo import free_port  # the tests give servers ports of their own choice

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
SETTLE_S = 0.8
"""Longer than the agent's longest drain interval: after so long without a new span there is none under way."""

ERRORS = {
    "connection_reset": "reset",
    "connection_closed_by_peer": "peer_closed",
    "connection_closed": "local_closed",
    "timeout": "timed_out",
}
"""``error.type`` of the agent, in the words of `support.traffic`."""


class AgentFailure(AssertionError):
    """The agent did not come up, did not end well, or left something behind."""


def _bpftool(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["bpftool", "-j", *arguments], capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"},
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def kernel_objects(pid: int) -> dict[str, set[int]]:
    """Ids of the BPF programs, maps and links that a process holds by a descriptor or by a link."""
    found: dict[str, set[int]] = {"prog": set(), "map": set(), "link": set()}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in entry.read_text().splitlines():
                name, _, value = line.partition(":")
                kind, _, is_id = name.partition("_")
                if is_id == "id" and kind in found:
                    found[kind].add(int(value))
    return found


def still_there(objects: Mapping[str, Collection[int]], patience_s: float = 5.0) -> dict[str, set[int]]:
    """Which of these are still in the kernel, which frees them a little after their holder's end."""
    deadline = time.monotonic() + patience_s
    while True:
        left = {kind: {one["id"] for one in _bpftool(kind, "show")} & set(ids) for kind, ids in objects.items()}
        left = {kind: ids for kind, ids in left.items() if ids}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 15.0, pause_s: float = 0.02) -> None:
    """Wait for a condition, for a bounded time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AgentFailure(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(pause_s)


def unix_offset_ns() -> int:
    """From CLOCK_MONOTONIC to Unix time."""
    before = time.monotonic_ns()
    now = time.time_ns()
    return now - (before + time.monotonic_ns()) // 2


class Agent:
    """A running ``onlooker run``.

    Attributes:
        web_port: Of metrics and health.
        through: A command that starts the agent by its last arguments, such as ``setpriv``.
        objects: BPF programs, maps and links that it holds.
    """

    def __init__(
        self, directory: Path, configuration: Mapping[str, Any], *, prints: bool = True, arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None, stores: bool = False, through: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.directory = directory
        self.web_port = free_port()
        self.out_path = directory / "agent.out"
        self.log_path = directory / "agent.log"
        path = directory / "agent.yaml"
        path.write_text(yaml.safe_dump(dict(configuration)))
        command = [sys.executable, "-m", "onlooker", "run", "--config", str(path), *(() if stores else ("--no-store",))]
        command += ["--web-port", str(self.web_port), *(("--print", "json") if prints else ()), *arguments]
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "BEYLA_", "ONLOOKER_"))
        }
        with self.out_path.open("wb") as out, self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *through, *command], stdin=subprocess.DEVNULL, stdout=out,
                stderr=log, start_new_session=True,
                env={**clean, "PYTHONPATH": str(zoo.ROOT / "src"), **(environment or {})},
            )  # fmt: skip
        self.objects: dict[str, set[int]] = {}
        self._offset_ns = unix_offset_ns()
        self._read = 0
        self._spans: list[dict[str, Any]] = []

    # ---- its life ----

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def failure(self, what: str) -> AgentFailure:
        return AgentFailure(f"{what} (pid {self.pid}, exit code {self.process.poll()}); it said:\n{self.log()[-4000:]}")

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self.failure("the agent ended before it was ready")
            with contextlib.suppress(OSError):
                if self.get("/readyz")[0] == 200:
                    self.objects = kernel_objects(self.pid)
                    if not self.objects["prog"]:
                        raise self.failure("the agent holds no BPF program")
                    return
            time.sleep(0.05)
        raise self.failure("the agent is not ready")

    def stop(self) -> None:
        """End it by SIGTERM.

        Raises:
            AgentFailure: It does not end, ends badly, or something of it stays in the kernel.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            failure = self.failure("the agent does not end")
            self.process.kill()
            self.process.wait(10)
            raise failure from None
        if code:
            raise self.failure("the agent ended badly")
        if left := still_there(self.objects):
            raise self.failure(f"left behind in the kernel: {left}")

    def kill(self) -> None:
        """SIGKILL, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)

    @property
    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # ---- what it tells ----

    def get(self, path: str, accept: str = "text/plain") -> tuple[int, str, str]:
        """Status, content type and body of a page of its web server."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers["content-type"], response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()

    def samples(self, *, openmetrics: bool = False) -> list[Any]:
        """Every sample of one scrape, parsed by the official client."""
        accept = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
        status, content_type, text = self.get("/metrics", accept)
        assert status == 200, text[:500]
        assert content_type.startswith("application/openmetrics-text" if openmetrics else "text/plain"), content_type
        parse = parse_openmetrics if openmetrics else parse_text
        return [sample for family in parse(text) for sample in family.samples]

    def metric(self, name: str, **labels: str) -> float:
        """Sum over the samples with this name and these labels."""
        return sum(
            sample.value
            for sample in self.samples()
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        )

    def losses(self) -> dict[str, int]:
        """What is declared lost, by reason."""
        return {
            sample.labels["reason"]: int(sample.value)
            for sample in self.samples()
            if sample.name == "onlooker_lost_total" and sample.value
        }

    def wait_watched(self, pids: Collection[int], timeout_s: float = 10.0) -> None:
        """Wait until at least so many processes are watched as are named here."""
        wait_until(
            lambda: self.metric("onlooker_instrumented_processes") >= len(pids),
            f"{len(pids)} processes watched; {self.log()[-500:]}",
            timeout_s,
        )

    def wait_unwatched(self, timeout_s: float = 10.0) -> None:
        """Wait until no process is watched or looked into: those of the last test are gone.

        Probes are taken off by a thread of their own, later; a test that waits for its own would take these for them.
        """
        gauges = ("onlooker_instrumented_processes", "onlooker_tls_processes")
        wait_until(lambda: not any(map(self.metric, gauges)), "no process is watched", timeout_s)

    def _read_more(self) -> None:
        with self.out_path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data.rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        self._spans += (span_of(json.loads(line), self._offset_ns) for line in whole.splitlines())

    def spans(
        self, expected: int = 0, *, kind: str = "", timeout_s: float = 20.0, settle_s: float = SETTLE_S
    ) -> list[dict[str, Any]]:
        """The spans since the last call: at least so many (of a kind), and until no more come for a while."""
        deadline = time.monotonic() + timeout_s
        quiet_since, had = time.monotonic(), -1
        while True:
            self._read_more()
            now = time.monotonic()
            if len(self._spans) != had:
                quiet_since, had = now, len(self._spans)
            come = sum(span["kind"] == kind for span in self._spans) if kind else had
            if (come >= expected and now - quiet_since > settle_s) or now > deadline:
                break
            time.sleep(0.05)
        found, self._spans = self._spans, []
        return found


def span_of(row: Mapping[str, Any], offset_ns: int) -> dict[str, Any]:
    """A printed request in the form that `support.truth.compare` reads; times are CLOCK_MONOTONIC."""
    attributes = row["attributes"]
    seconds, _, fraction = row["time"].partition("+")[0].partition(".")
    start = time_of(seconds) * 10**9 + int(fraction.ljust(9, "0")) - offset_ns
    path = attributes.get("url.path")
    if path is None and "url.full" in attributes:
        path = "/" + attributes["url.full"].split("://", 1)[1].partition("/")[2].partition("?")[0]
    return {
        **row,
        "method": attributes.get("http.request.method_original") or attributes.get("http.request.method"),
        "path": path if path is not None else "",
        "status_class": row["status"],
        "status": attributes.get("http.response.status_code") or 0,
        "error": ERRORS.get(attributes.get("error.type", ""), ""),
        "start_ns": start,
        "duration_ns": round(row["duration_us"] * 1e3),
        "first_byte_ns": round(row["first_byte_us"] * 1e3) if row["first_byte_us"] is not None else 0,
    }


def time_of(text: str) -> int:
    """Seconds since 1970 of an ISO time in UTC without a fraction."""
    import calendar

    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def selecting(
    *, cmd_args: str | Iterable[str] = (), pids: Iterable[int] = (), ports: str = "", **sections: Any
) -> dict[str, Any]:
    """A configuration that watches these processes and nothing else."""
    texts = [cmd_args] if isinstance(cmd_args, str) else list(cmd_args)
    entries: list[dict[str, Any]] = [{"cmd_args": text} for text in texts]
    if numbers := [str(pid) for pid in pids]:
        entries.append({"target_pids": [int(number) for number in numbers]})
    if ports:
        entries.append({"open_ports": ports})
    return {"discovery": {"instrument": entries}, **sections}


@contextlib.contextmanager
def running(
    directory: Path, configuration: Mapping[str, Any], *, prints: bool = True, arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None, stores: bool = False,
) -> Iterator[Agent]:  # fmt: skip
    """Starts the agent, waits until it is ready, and ends it with all checks of `Agent.stop`."""
    started = Agent(
        directory, configuration, prints=prints, arguments=arguments, environment=environment, stores=stores
    )
    try:
        started.wait_ready()
        yield started
    except BaseException:
        started.kill()
        sys.stderr.write(f"--- the agent said:\n{started.log()[-6000:]}\n")
        raise
    started.stop()
