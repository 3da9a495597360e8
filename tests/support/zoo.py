"""Real servers and clients, of many languages, that the live tests watch.

The programs stand in ``tests/live/zoo``; ``scripts/setup_zoo.sh`` installs and builds them into ``build/zoo``::

    with zoo.server("flask-gunicorn-sync") as server:
        requests = truth.plan(7, 1000, pages=server.spec.pages)
        with zoo.client("c", server.port, requests, keep_alive=True) as client:
            ...                            # client.pid waits for its start signal: time to attach
            made = client.run()            # list of TrueRequest

Compare durations over one connection: a server that is busy with another one reads a request later than it was sent,
and only the client's clock sees that wait.

Every server knows ``GET /items/ID`` (200), ``/fail/ID`` (500), ``/missing/ID`` (404), ``/sleep/MS/ID``,
``/big/BYTES/ID``, ``/stream/ID`` (chunked, in pieces) and ``POST /echo/ID``, as far as its ``pages`` say.  Servers take
a port; clients take ``PORT PLAN keepalive|fresh CONNECTIONS``, print ``ready``, wait for a line on standard input, and
print one JSON line a request.  ``python -m support.zoo --smoke`` runs all of them without an agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import truth
from support.truth import BIG_BYTES, PAGES, PlannedRequest, TrueRequest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "live" / "zoo"
BUILT = ROOT / "build" / "zoo"
BIN = BUILT / "bin"
VENV = BUILT / "venv" / "bin"
JAVA_CLASSES = f"{BUILT / 'java'}:{BUILT / 'java-lib'}/*"
APACHE_MODULES = Path("/usr/lib/apache2/modules")
READY_TIMEOUT_S = 30.0  # a JVM on a loaded machine


class ZooError(RuntimeError):
    """A program of the zoo is not there, did not come up, or did not do what it was asked."""


# ---- what there is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is to be: its port and a directory of its own."""

    port: int
    directory: Path


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One kind of server.

    Attributes:
        programs: Makes the commands by name, from a `Place`; started in this order, the last one listens on the port.
        needs: Files or commands without which it cannot run.
        pages: Which of `truth.PAGES` it knows.
        keep_alive: Whether it lets a connection serve more than one request.
        echoes: Whether ``/echo`` returns the request's body; else it answers without reading it.
        workers: How many child processes each program has when it is ready; a preforking master listens before that.
        service: What a useful service name would be.
    """

    name: str
    language: str
    programs: Callable[[Place], Mapping[str, Sequence[str]]]
    needs: tuple[str, ...]
    pages: tuple[str, ...] = tuple(PAGES)
    keep_alive: bool = True
    echoes: bool = True
    workers: Mapping[str, int] = field(default_factory=dict)
    service: str = ""


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """One kind of client.

    Attributes:
        command: The program and its first arguments; port, plan, mode and connections follow.
        options: Arguments behind those; for curl, lines of its configuration.
        modes: ``keepalive``, ``fresh`` or both.
        concurrent: Whether it can use several connections at once.
        scheme: Of the URLs.
    """

    name: str
    language: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    options: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("keepalive", "fresh")
    concurrent: bool = True
    scheme: str = "http"


def _script(name: str) -> str:
    return str(SOURCES / name)


def _own(*command: str) -> Callable[[Place], Mapping[str, Sequence[str]]]:
    return lambda place: {"server": [*command, str(place.port)]}


def _gunicorn(*options: str) -> Callable[[Place], Mapping[str, Sequence[str]]]:
    return lambda place: {"gunicorn": _gunicorn_command(f"127.0.0.1:{place.port}", place, *options)}


def _gunicorn_command(bind: str, place: Place, *options: str) -> list[str]:
    command = [str(VENV / "gunicorn"), "--chdir", _script("python"), "--bind", bind, "--worker-tmp-dir"]
    return [*command, str(place.directory), "--log-level", "warning", "--keep-alive", "30", *options, "flask_app:app"]


def _uvicorn(*options: str) -> Callable[[Place], Mapping[str, Sequence[str]]]:
    command = [str(VENV / "uvicorn"), "fastapi_app:app", "--app-dir", _script("python"), "--log-level", "warning"]
    return lambda place: {"uvicorn": [*command, "--no-access-log", "--port", str(place.port), *options]}


def _fill(name: str, place: Place, **values: object) -> Path:
    text = (SOURCES / "conf" / name).read_text()
    for key, value in {"PREFIX": place.directory, "PORT": place.port, "TLS": "", **values}.items():
        text = text.replace(f"{{{key}}}", str(value))
    path = place.directory / name
    path.write_text(text)
    return path


def _files(place: Place) -> None:
    files = place.directory / "files"
    files.mkdir()
    (files / "item").write_text('{"item":"one of many"}\n')
    for size in BIG_BYTES:
        (files / str(size)).write_bytes(b"x" * size)


def _nginx_command(place: Place, configuration: Path) -> list[str]:
    nginx = which("nginx") or "nginx"
    return [nginx, "-p", str(place.directory), "-e", "stderr", "-c", str(configuration)]


def _nginx(place: Place, **values: object) -> Mapping[str, Sequence[str]]:
    _files(place)
    return {"nginx": _nginx_command(place, _fill("nginx.conf", place, **values))}


def _nginx_gunicorn(place: Place) -> Mapping[str, Sequence[str]]:
    upstream = f"unix:{place.directory}/gunicorn.sock"
    return {
        "gunicorn": _gunicorn_command(upstream, place, "--workers", "2"),
        "nginx": _nginx_command(place, _fill("nginx_proxy.conf", place, UPSTREAM=upstream)),
    }


def _httpd(place: Place, **values: object) -> Mapping[str, Sequence[str]]:
    _files(place)
    configuration = _fill("httpd.conf", place, MODULES=APACHE_MODULES, **values)
    return {
        "httpd": [which("apache2") or "apache2", "-d", str(place.directory), "-f", str(configuration), "-DFOREGROUND"]
    }


def _tomcat(place: Place) -> Mapping[str, Sequence[str]]:
    options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    return {"tomcat": ["java", *options, "-cp", JAVA_CLASSES, "TomcatZoo", str(place.port), str(place.directory)]}


def _puma(place: Place) -> Mapping[str, Sequence[str]]:
    bind = ["-b", f"tcp://127.0.0.1:{place.port}", "-t", "4:4", "-e", "production", "--quiet"]
    return {"puma": ["puma", *bind, _script("ruby/config.ru")]}


STATIC_PAGES = ("items", "fail", "missing", "echo", "echo_chunked", "big")
UNCHUNKED = tuple(page for page in PAGES if page != "echo_chunked")
PYTHON = str(VENV / "python")
JAVA = ("java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

SERVERS: Mapping[str, ServerSpec] = {
    spec.name: spec
    for spec in (
        ServerSpec("nginx", "cpp", _nginx, ("nginx",), STATIC_PAGES, echoes=False,
                   workers={"nginx": 2}, service="nginx"),
        ServerSpec("httpd", "cpp", _httpd, ("apache2",), STATIC_PAGES, echoes=False,
                   workers={"httpd": 2}, service="apache2"),
        ServerSpec("python-http-server", "python", _own(PYTHON, _script("python/http_server.py")), (PYTHON,),
                   service="http_server"),
        ServerSpec("flask-gunicorn-sync", "python", _gunicorn("--workers", "1"), (str(VENV / "gunicorn"),),
                   keep_alive=False, workers={"gunicorn": 1}, service="flask_app"),
        ServerSpec("flask-gunicorn-gthread", "python",
                   _gunicorn("--worker-class", "gthread", "--workers", "1", "--threads", "8"),
                   (str(VENV / "gunicorn"),), workers={"gunicorn": 1}, service="flask_app"),
        ServerSpec("flask-gunicorn-prefork", "python", _gunicorn("--workers", "2", "--preload"),
                   (str(VENV / "gunicorn"),), keep_alive=False, workers={"gunicorn": 2}, service="flask_app"),
        ServerSpec("nginx-gunicorn-unix", "python", _nginx_gunicorn, ("nginx", str(VENV / "gunicorn")),
                   workers={"gunicorn": 2, "nginx": 1}, service="nginx"),
        ServerSpec("django", "python", _own(PYTHON, _script("python/django_app.py")), (PYTHON,), UNCHUNKED,
                   service="django_app"),
        ServerSpec("fastapi-uvicorn", "python", _uvicorn("--loop", "asyncio", "--http", "h11"),
                   (str(VENV / "uvicorn"),), service="fastapi_app"),
        ServerSpec("fastapi-uvloop", "python", _uvicorn("--loop", "uvloop", "--http", "httptools"),
                   (str(VENV / "uvicorn"),), service="fastapi_app"),
        ServerSpec("aiohttp", "python", _own(PYTHON, _script("python/aiohttp_server.py")), (PYTHON,),
                   service="aiohttp_server"),
        ServerSpec("node-http", "nodejs", _own("node", _script("node/http_server.js")), ("node",), service="zoo"),
        ServerSpec("node-express", "nodejs", _own("node", _script("node/express_server.js")),
                   ("node", str(BUILT / "node/node_modules/express")), service="zoo"),
        ServerSpec("go-net-http", "go", _own(str(BIN / "go-server")), (str(BIN / "go-server"),), service="go-server"),
        ServerSpec("java-httpserver", "java",
                   _own(*JAVA, "-Dsun.net.httpserver.nodelay=true", "-cp", JAVA_CLASSES, "HttpServerZoo"),
                   ("java", str(BUILT / "java/HttpServerZoo.class")), service="HttpServerZoo"),
        ServerSpec("java-tomcat", "java", _tomcat, ("java", str(BUILT / "java/TomcatZoo.class")), service="TomcatZoo"),
        ServerSpec("rust-hyper", "rust", _own(str(BIN / "rust-server")), (str(BIN / "rust-server"),),
                   service="rust-server"),
        ServerSpec("ruby-puma", "ruby", _puma, ("puma",), service="puma"),
        ServerSpec("ruby-webrick", "ruby", _own("ruby", _script("ruby/webrick_server.rb")), ("ruby",),
                   service="webrick_server"),
        ServerSpec("php-builtin", "php",
                   lambda place: {"php": ["php", "-S", f"127.0.0.1:{place.port}", _script("php/router.php")]},
                   ("php",), keep_alive=False, service="router"),
        ServerSpec("c-threads", "cpp", _own(str(BIN / "c-server")), (str(BIN / "c-server"),), service="c-server"),
    )
}  # fmt: skip


def _python_client(name: str) -> ClientSpec:
    return ClientSpec(f"python-{name}", "python", (PYTHON, _script(f"python/{name}_client.py")), (PYTHON,))


JAVA_CLIENT = (*JAVA, "-Djdk.httpclient.allowRestrictedHeaders=connection", "-cp", JAVA_CLASSES, "ClientZoo")

CLIENTS: Mapping[str, ClientSpec] = {
    spec.name: spec
    for spec in (
        ClientSpec("c", "cpp", (str(BIN / "c-client"),), (str(BIN / "c-client"),)),
        ClientSpec("curl", "cpp", ("curl",), ("curl",), concurrent=False),
        ClientSpec("curl-each", "cpp", ("sh",), ("curl",), modes=("fresh",), concurrent=False),
        *map(_python_client, ("requests", "urllib3", "httpx", "aiohttp")),
        ClientSpec("node-http", "nodejs", ("node", _script("node/http_client.js")), ("node",)),
        ClientSpec("node-fetch", "nodejs", ("node", _script("node/fetch_client.js")), ("node",)),
        ClientSpec("go-net-http", "go", (str(BIN / "go-client"),), (str(BIN / "go-client"),)),
        ClientSpec("java-httpclient", "java", JAVA_CLIENT, ("java", str(BUILT / "java/ClientZoo.class"))),
        ClientSpec("java-httpclient-upgrade", "java", JAVA_CLIENT, ("java", str(BUILT / "java/ClientZoo.class")),
                   options=("upgrade",), modes=("keepalive",)),
        ClientSpec("rust-reqwest", "rust", (str(BIN / "rust-client"),), (str(BIN / "rust-client"),)),
        ClientSpec("ruby-net-http", "ruby", ("ruby", _script("ruby/client.rb")), ("ruby",)),
    )
}  # fmt: skip


def which(command: str) -> str | None:
    """Where a command or file is, also where a root shell's PATH does not look."""
    if command.startswith("/"):
        return command if Path(command).exists() else None
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def require(spec: ServerSpec | ClientSpec) -> None:
    """Skips the running test if the program cannot run here; on CI that is a failure.

    Raises:
        ZooError: Something is missing, and this is CI or no test.
    """
    absent = [need for need in spec.needs if which(need) is None]
    if not absent:
        return
    reason = f"{spec.name} of the zoo lacks {', '.join(absent)}: run scripts/setup_zoo.sh"
    if os.environ.get("CI") != "true" and "PYTEST_CURRENT_TEST" in os.environ:
        import pytest

        pytest.skip(reason)
    raise ZooError(reason)


# ---- running them ----------------------------------------------------------------------------------------------------


class Program:
    """One started program: leader of its own process group, killed with the whole group at the end.

    It also dies with the test that started it.  Its standard error (and, for servers, output) goes to a file.
    """

    def __init__(self, command: Sequence[str], directory: Path, *, name: str, pipes: bool = False) -> None:
        self.name = name
        self.log_path = directory / f"{name}.log"
        # setpriv becomes the command, under the same pid.
        full = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        environment = {
            **os.environ,
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin",
            "NODE_PATH": str(BUILT / "node" / "node_modules"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                full,
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def lines(self) -> Iterator[str]:
        """What it prints, line by line, until its end.  Only with pipes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.decode()

    def tell(self, text: str) -> None:
        """Writes to its standard input.  Only with pipes."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def failure(self, what: str) -> ZooError:
        state = self.process.poll()
        ended = "still running" if state is None else f"exit code {state}"
        return ZooError(f"{self.name} (pid {self.pid}, {ended}): {what}; its output was:\n{self.log()[-4000:]}")

    def wait_for_exec(self, deadline: float) -> None:
        """Waits until the pid runs the command itself."""
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{self.pid}/exe").readlink().name != "setpriv":
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.002)
        raise self.failure("it did not start")

    def stop(self, grace_s: float = 2.0) -> None:
        """Ends the process group: asks first, then kills."""
        for sent, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def process_tree(root: int) -> list[int]:
    """``root`` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parent = int(stat[stat.rindex(")") + 2 :].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Server:
    """A running server.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        programs: By name; the last one is what the port belongs to.
    """

    spec: ServerSpec
    port: int
    directory: Path
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Root of the process tree that serves the port."""
        return list(self.programs.values())[-1].pid

    @property
    def pids(self) -> dict[str, int]:
        """Root pids of all its programs."""
        return {name: program.pid for name, program in self.programs.items()}

    def tree(self, program: str | None = None) -> list[int]:
        """All pids of one program (by default the one that serves the port): masters and workers."""
        return process_tree(self.pids[program] if program else self.pid)

    def log(self) -> str:
        return "\n".join(f"--- {name}\n{program.log()}" for name, program in self.programs.items())

    def stop(self) -> None:
        for program in reversed(self.programs.values()):
            program.stop()


def _wait_until_it_listens(server: Server, deadline: float) -> None:
    while time.monotonic() < deadline:
        for program in server.programs.values():
            if program.process.poll() is not None:
                raise program.failure("it ended before it listened")
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    raise list(server.programs.values())[-1].failure(f"it does not listen on port {server.port}")


@contextlib.contextmanager
def server(name: str | ServerSpec) -> Iterator[Server]:
    """Starts a server of the zoo, waits until it listens, and ends all of its processes afterwards.

    Raises:
        ZooError: It did not come up; the message has its output.
    """
    spec = SERVERS[name] if isinstance(name, str) else name
    name = spec.name
    require(spec)
    with tempfile.TemporaryDirectory(prefix=f"zoo-{name}-", ignore_cleanup_errors=True) as text:
        directory = Path(text)
        directory.chmod(0o755)  # workers that give up root must get in
        running = Server(spec, free_port(), directory)
        deadline = time.monotonic() + READY_TIMEOUT_S
        try:
            for part, command in spec.programs(Place(running.port, directory)).items():
                program = running.programs[part] = Program(command, directory, name=part)
                program.wait_for_exec(deadline)
            _wait_until_it_listens(running, deadline)
            for part, count in spec.workers.items():
                _wait_for_workers(running.programs[part], count, deadline)
            yield running
        except BaseException:
            sys.stderr.write(f"--- {name} said:\n{running.log()[-4000:]}\n")
            raise
        finally:
            running.stop()


def _wait_for_workers(program: Program, count: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        if len(process_tree(program.pid)) > count:
            return
        time.sleep(0.01)
    raise program.failure(f"it has less than {count} workers")


class Client:
    """A client that has started and waits for its signal.

    Attributes:
        pid: Root of its process tree.
    """

    def __init__(
        self,
        spec: ClientSpec,
        port: int,
        plan: Sequence[PlannedRequest],
        directory: Path,
        *,
        keep_alive: bool = True,
        connections: int = 1,
    ) -> None:
        mode = "keepalive" if keep_alive else "fresh"
        if mode not in spec.modes:
            raise ValueError(f"{spec.name} knows {spec.modes}, not {mode}")
        if connections > 1 and not spec.concurrent:
            raise ValueError(f"{spec.name} uses one connection at a time")
        self.spec = spec
        self.plan = plan
        self._port = port
        self._keep_alive = keep_alive
        self._directory = directory
        self._program = Program(
            self._command(port, mode, connections), directory, name=f"client-{spec.name}", pipes=True
        )
        self._program.wait_for_exec(time.monotonic() + READY_TIMEOUT_S)
        if not spec.name.startswith("curl"):
            self._await_ready()

    @property
    def pid(self) -> int:
        return self._program.pid

    def run(self, timeout_s: float = 300.0) -> list[TrueRequest]:
        """Gives the signal, waits for the end, and returns what happened, in the order of the plan.

        Raises:
            ZooError: It failed or took too long.
        """
        process = self._program.process
        signal_text = self._curl_configuration(self.plan) if self.spec.name == "curl" else "\n"
        try:
            output, _ = process.communicate(signal_text.encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise self._program.failure(f"it did not finish within {timeout_s:.0f} s") from None
        # curl ends with the error of its last transfer, which the truth tells better
        if process.returncode and not self.spec.name.startswith("curl"):
            raise self._program.failure("it failed")
        try:
            lines = [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]
            if self.spec.name.startswith("curl"):
                lines = [_from_curl(request, line) for request, line in zip(self.plan, lines, strict=True)]
            return truth.truth_of(self.plan, lines)
        except ValueError as error:
            raise self._program.failure(f"its output is not the truth of the plan ({error})") from error

    def stop(self) -> None:
        self._program.stop(grace_s=0.5)

    def _command(self, port: int, mode: str, connections: int) -> list[str]:
        if self.spec.name == "curl":
            # waits for the end of its standard input before it does anything; its directory says whose it is
            return ["curl", "--config", "-", "--stderr", str(self._directory / "curl-errors")]
        if self.spec.name == "curl-each":
            for request in self.plan:
                (self._directory / f"{request.n}.curl").write_text(self._curl_configuration([request]))
            (self._directory / "numbers").write_text("".join(f"{request.n}\n" for request in self.plan))
            each = 'read go; while read -r n; do curl --config "$0/$n.curl" </dev/null; done <numbers'
            return ["sh", "-c", each, str(self._directory)]  # which so is part of all command lines
        plan_path = self._directory / "plan.tsv"
        plan_path.write_text("".join(request.line() for request in self.plan))
        return [*self.spec.command, str(port), str(plan_path), mode, str(connections), *self.spec.options]

    def _await_ready(self) -> None:
        line = next(self._program.lines(), "").strip()
        if line != "ready":
            raise self._program.failure(f"it said {line!r} and not that it is ready")

    def _curl_configuration(self, plan: Sequence[PlannedRequest]) -> str:
        return "next\n".join(self._curl_request(request) for request in plan)

    def _curl_request(self, request: PlannedRequest) -> str:
        lines = [
            f'url = "{self.spec.scheme}://127.0.0.1:{self._port}{request.target}"',
            'output = "/dev/null"',
            "silent",
            'noproxy = "*"',
            *self.spec.options,
        ]
        lines.append('write-out = "%{json}\\n"')
        if not self._keep_alive and self.spec.name == "curl":
            lines.append('header = "Connection: close"')
        if request.method == "POST":
            body = self._directory / f"body-{request.body_bytes}"
            if not body.exists():
                body.write_bytes(b"x" * request.body_bytes)
            lines += [f'data-binary = "@{body}"', 'header = "Content-Type: application/octet-stream"']
            if request.chunked:
                lines.append('header = "Transfer-Encoding: chunked"')
        return "\n".join(lines) + "\n"


def _from_curl(request: PlannedRequest, line: Mapping[str, Any]) -> dict[str, Any]:
    if not str(line["url_effective"]).endswith(request.target):
        raise ValueError(f"curl reports {line['url_effective']} where {request.target} was due")
    return {
        "n": request.n,
        "status": line["response_code"],
        # without connecting (0 where the connection was kept); time_pretransfer is taken after the sending
        "duration_ns": round((line["time_total"] - line["time_connect"]) * 1e9),
        "bytes": line["size_download"],
        "error": line["errormsg"] or "",
    }


@contextlib.contextmanager
def client(
    name: str | ClientSpec, port: int, plan: Sequence[PlannedRequest], *, keep_alive: bool = True, connections: int = 1
) -> Iterator[Client]:
    """Starts a client of the zoo and lets it wait: `Client.run` gives the signal.

    Raises:
        ZooError: It did not come up; the message has its output.
    """
    spec = CLIENTS[name] if isinstance(name, str) else name
    name = spec.name
    require(spec)
    with tempfile.TemporaryDirectory(prefix=f"zoo-{name}-", ignore_cleanup_errors=True) as text:
        started = Client(spec, port, plan, Path(text), keep_alive=keep_alive, connections=connections)
        try:
            yield started
        finally:
            started.stop()


def wrong_answers(plan: Sequence[PlannedRequest], made: Sequence[TrueRequest], *, echoes: bool) -> list[str]:
    """What a client got that a correct server would not have sent."""
    wrong = []
    for planned, true in zip(plan, made, strict=True):
        expected_bytes = None
        if planned.method == "POST" and echoes:
            expected_bytes = planned.body_bytes
        elif planned.path.startswith("/big/"):
            expected_bytes = int(planned.path.split("/")[2])
        if true.error or true.status != planned.status:
            wrong.append(f"{true}, expected {planned.status}")
        elif expected_bytes is not None and true.bytes != expected_bytes:
            wrong.append(f"{true} with {true.bytes} bytes, expected {expected_bytes}")
    return wrong


# ---- smoke test ------------------------------------------------------------------------------------------------------


def _smoke_row(kind: str, server_name: str, client_name: str, mode: str, connections: int, count: int) -> str:
    head = f"{kind:8}{server_name:24}{client_name:25}{mode:10}{connections:3}"
    start = time.monotonic()
    try:
        with server(server_name) as running:
            ready_s = time.monotonic() - start
            requests = truth.plan(len(client_name), count, pages=running.spec.pages)
            options = {"keep_alive": mode == "keepalive", "connections": connections}
            with client(client_name, running.port, requests, **options) as waiting:  # type: ignore[arg-type]
                made = waiting.run()
            processes = len(running.tree())
        wrong = wrong_answers(requests, made, echoes=running.spec.echoes)
    except ZooError as error:
        return f"{head}  FAILED {error}"
    median_ms = statistics.median(request.duration_ns for request in made) / 1e6
    row = f"{head}{count - len(wrong):5}/{count}{processes:6}{ready_s:9.2f}{median_ms:10.2f}"
    return row if not wrong else row + "  FAILED " + "; ".join(wrong[:3])


def smoke(only: str = "", count: int = 20) -> int:
    """Runs every server with two clients and every client against one server; prints a table.

    Returns:
        How many rows failed.
    """
    print(f"{'':8}{'server':24}{'client':25}{'mode':10}  c     right  procs  ready s median ms")
    rows = [("server", name, "python-urllib3", "keepalive", 1) for name in SERVERS]
    rows += [("server", name, "c", mode, 2) for name in SERVERS for mode in ("keepalive", "fresh")]
    rows += [
        ("client", "python-http-server", spec.name, mode, connections)
        for spec in CLIENTS.values()
        for mode in spec.modes
        for connections in ((1, 3) if spec.concurrent else (1,))
    ]
    failed = 0
    for row in rows:
        if only in row[1] or only in row[2]:
            line = _smoke_row(*row, count)
            failed += "FAILED" in line
            print(line, flush=True)
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    if "--smoke" not in sys.argv:
        sys.exit("usage: python -m support.zoo --smoke [PART OF A NAME]   (in tests/)")
    rest = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    sys.exit(1 if smoke(rest[0] if rest else "") else 0)
