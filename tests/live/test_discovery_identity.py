"""Real programs of this machine, found by port in the real `/proc`: language, name, ports, instance.  No BPF needed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from onlooker import semconv
from onlooker.batches import Identities, Service
from onlooker.config.loader import load_text
from onlooker.discover.naming import Host
from onlooker.discover.report import candidates, open_proc
from onlooker.discover.watch import Watcher

READY_TIMEOUT_S = 60.0  # a compiler or a JVM on a loaded machine


class NullFilter:
    """Naming needs no kernel."""

    def __init__(self) -> None:
        self.trusted: dict[int, bool] = {}

    def watch(self, pid: int) -> None: ...

    def unwatch(self, pid: int) -> None: ...

    def set_context(self, pid: int, trust_thread: bool) -> None:
        self.trusted[pid] = trust_thread


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    command: list[str], cwd: Path, port: int, ready: Callable[[int], bool] = listens, **environ: str
) -> Iterator[int]:
    """A program in its own session; ended by its own process group."""
    log = (cwd / "log").open("wb")
    process = subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **environ}, stdout=log, stderr=log, start_new_session=True
    )
    try:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not ready(port):
            assert process.poll() is None, (cwd / "log").read_text()
            assert time.monotonic() < deadline_s, "not ready in time"
            time.sleep(0.05)
        yield process.pid
    finally:
        log.close()
        for sent in (signal.SIGTERM, signal.SIGKILL):  # its workers too: the group is the program's own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


class Found:
    def __init__(self, yaml: str) -> None:
        self.identities = Identities()
        self.kernel = NullFilter()
        selection = load_text(yaml, name="test.yml", environ={}, flags={}).selection
        host = Host.read(sdk_version="0", name="box")
        self.watcher = Watcher(open_proc(), selection, self.identities, self.kernel, host, own_pid=os.getpid())
        self.watcher.start()

    @property
    def pids(self) -> set[int]:
        return {known.pid for known in self.watcher.watched()}

    def service(self, pid: int) -> Service:
        entry = self.identities.processes[self.identities.by_pid[pid]]
        return self.identities.services[entry.service_id]


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def project(tmp_path: Path, files: dict[str, str]) -> Path:
    directory = tmp_path / "checkout-service"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(content)
    return directory


NODE_SERVER = 'require("http").createServer((q, s) => s.end("ok")).listen(+process.argv[2], "127.0.0.1")'
GO_SERVER = """package main
import ("net/http"; "os")
func main() { http.ListenAndServe("127.0.0.1:" + os.Args[1], nil) }
"""
JAVA_SERVER = """import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class BillingServer {
  public static void main(String[] a) throws Exception {
    HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(a[0])), 0).start();
  }
}
"""
RUBY_SERVER = """require "webrick"
WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: ARGV[0].to_i).start
"""
C_SERVER = """#include <arpa/inet.h>
#include <stdlib.h>
#include <unistd.h>
int main(int n, char **a) {
  struct sockaddr_in at = {AF_INET, htons(atoi(a[1])), {htonl(INADDR_LOOPBACK)}};
  int s = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(s, (void *)&at, sizeof at) || listen(s, 8)) return 1;
  for (;;) close(accept(s, 0, 0));
}
"""
RUST_SERVER = """fn main() {
    let port = std::env::args().nth(1).unwrap();
    let listener = std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    for connection in listener.incoming() { drop(connection); }
}
"""
PREFORK_SERVER = """import os, socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    for _ in range(3):
        if os.fork() == 0:
            break
    while True:
        server.accept()[0].close()
"""


def test_a_python_module(tmp_path: Path) -> None:
    port = free_port()
    with running([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], tmp_path, port) as pid:
        found = Found(f"open_port: {port}")
        assert found.pids == {pid}
        service = found.service(pid)
        assert (service.name, service.language, service.instance_id) == ("http.server", "python", f"box:{pid}")
        resource = dict(service.resource)
        assert resource[semconv.PROCESS_EXECUTABLE_PATH] == os.path.realpath(f"/proc/{pid}/exe")
        assert str(resource[semconv.PROCESS_RUNTIME_VERSION]).startswith(f"3.{sys.version_info.minor}")
        assert resource[semconv.PROCESS_PID] == pid
        assert found.kernel.trusted == {pid: True}
        assert [c.ports for c in candidates() if c.pid == pid] == [(port,)]


def test_a_node_package(tmp_path: Path) -> None:
    node, port = tool("node"), free_port()
    package = '{"name": "@acme/checkout", "version": "1.2.3"}'
    directory = project(tmp_path, {"server.js": NODE_SERVER, "package.json": package})
    with running([node, "server.js", str(port)], directory, port) as pid:
        found = Found(f"open_port: {port}")
        service = found.service(pid)
        assert (service.name, service.language) == ("checkout", "nodejs")
        assert dict(service.resource)[semconv.SERVICE_VERSION] == "1.2.3"
        assert found.kernel.trusted == {pid: False}


@pytest.mark.slow
def test_a_go_program(tmp_path: Path) -> None:
    go, port = tool("go"), free_port()
    directory = project(tmp_path, {"main.go": GO_SERVER})
    subprocess.run([go, "build", "-ldflags=-s -w", "-o", "payments", "main.go"], cwd=directory, check=True, timeout=250)
    with running(["./payments", str(port)], directory, port) as pid:
        found = Found(f"open_port: {port}")
        service = found.service(pid)
        assert (service.name, service.language) == ("payments", "go")
        version = subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout
        assert dict(service.resource)[semconv.PROCESS_RUNTIME_VERSION] == version.strip().removeprefix("go")
        assert found.kernel.trusted == {pid: False}


@pytest.mark.slow
def test_a_rust_program(tmp_path: Path) -> None:
    rustc, port = tool("rustc"), free_port()
    directory = project(tmp_path, {"main.rs": RUST_SERVER})
    subprocess.run([rustc, "-C", "strip=symbols", "-o", "stock", "main.rs"], cwd=directory, check=True, timeout=250)
    with running(["./stock", str(port)], directory, port) as pid:
        service = Found(f"open_port: {port}").service(pid)
        assert (service.name, service.language) == ("stock", "rust")


@pytest.mark.slow
def test_a_java_class(tmp_path: Path) -> None:
    java, port = tool("java"), free_port()
    directory = project(tmp_path, {"BillingServer.java": JAVA_SERVER})
    with running([java, "BillingServer.java", str(port)], directory, port) as pid:
        found = Found(f"open_port: {port}")
        service = found.service(pid)
        assert (service.name, service.language) == ("BillingServer", "java")
        text = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
        assert f'"{dict(service.resource)[semconv.PROCESS_RUNTIME_VERSION]}' in text


def test_a_ruby_script(tmp_path: Path) -> None:
    ruby, port = tool("ruby"), free_port()
    if subprocess.run([ruby, "-e", 'require "webrick"'], capture_output=True, check=False).returncode:
        pytest.skip("webrick is not installed")
    directory = project(tmp_path, {"hooks.rb": RUBY_SERVER})
    with running([ruby, "hooks.rb", str(port)], directory, port) as pid:
        service = Found(f"open_port: {port}").service(pid)
        assert (service.name, service.language) == ("hooks", "ruby")


def test_a_php_document_root(tmp_path: Path) -> None:
    php, port = tool("php"), free_port()
    directory = project(tmp_path, {"index.php": "<?php echo 1;"})
    with running([php, "-S", f"127.0.0.1:{port}"], directory, port) as pid:
        service = Found(f"open_port: {port}").service(pid)
        assert (service.name, service.language) == ("checkout-service", "php")


def test_a_c_program(tmp_path: Path) -> None:
    cc, port = tool("cc"), free_port()
    directory = project(tmp_path, {"server.c": C_SERVER})
    subprocess.run([cc, "-o", "server", "server.c"], cwd=directory, check=True)
    with running(["./server", str(port)], directory, port) as pid:
        service = Found(f"open_port: {port}").service(pid)
        assert (service.name, service.language) == ("checkout-service", "generic")


def test_pre_forked_workers_are_one_instance(tmp_path: Path) -> None:
    port = free_port()
    directory = project(tmp_path, {"orders.py": PREFORK_SERVER})
    with running([sys.executable, "orders.py", str(port)], directory, port) as pid:
        deadline_s = time.monotonic() + 10
        while len((found := Found(f"open_port: {port}")).pids) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert len(found.pids) == 4
        assert {found.service(member).instance_id for member in found.pids} == {f"box:{pid}"}
        assert {found.service(member).name for member in found.pids} == {"orders"}
        assert len(found.identities.services) == 1


def test_nginx_and_its_workers_are_one_instance(tmp_path: Path) -> None:
    nginx, port = tool("nginx"), free_port()
    (tmp_path / "logs").mkdir()
    (tmp_path / "nginx.conf").write_text(
        f"""daemon off; worker_processes 2; pid {tmp_path}/nginx.pid; error_log {tmp_path}/logs/error.log;
events {{ worker_connections 32; }}
http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;
  fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
  server {{ listen 127.0.0.1:{port}; return 200 "ok"; }} }}
"""
    )
    with running([nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], tmp_path, port) as pid:
        deadline_s = time.monotonic() + 10
        while len((found := Found(f"open_port: {port}")).pids) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert len(found.pids) == 3
        assert {found.service(member).instance_id for member in found.pids} == {f"box:{pid}"}
        assert found.service(pid).name == "nginx"
        assert found.service(pid).language == "generic"


def test_gunicorn_and_uvicorn_are_called_by_their_application(tmp_path: Path) -> None:
    scripts = Path(__file__).resolve().parents[2] / "build" / "zoo" / "venv" / "bin"
    app = "def app(environ, start):\n    start('200 OK', [])\n    return [b'']\n"
    asgi = "async def app(scope, receive, send):\n    pass\n"
    directory = project(tmp_path, {"app.py": app, "live.py": asgi})
    for server, options, name, trusted in (
        ("gunicorn", ["-w", "2", "app:app", "-b"], "checkout-service", True),
        ("uvicorn", ["--workers", "2", "live:app", "--port"], "live", False),
    ):
        if not (scripts / server).exists():
            pytest.skip(f"{server} is not installed (scripts/setup_zoo.sh)")
        port = free_port()
        where = f"127.0.0.1:{port}" if server == "gunicorn" else str(port)
        with running([str(scripts / server), *options, where], directory, port) as pid:
            deadline_s = time.monotonic() + 20
            while len((found := Found(f"open_port: {port}")).pids) < 3 and time.monotonic() < deadline_s:
                time.sleep(0.2)
            assert len(found.pids) >= 3
            assert {found.service(member).instance_id for member in found.pids} == {f"box:{pid}"}
            assert {found.service(member).name for member in found.pids} == {name}
            assert found.kernel.trusted[pid] is trusted


def test_what_a_service_says_about_itself_comes_first(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    attributes = "service.namespace=shop,deployment.environment.name=test,service.version=7"
    with running(command, tmp_path, port, OTEL_SERVICE_NAME="front", OTEL_RESOURCE_ATTRIBUTES=attributes) as pid:
        service = Found(f"open_port: {port}").service(pid)
        assert (service.name, service.namespace) == ("front", "shop")
        assert dict(service.resource)[semconv.DEPLOYMENT_ENVIRONMENT_NAME] == "test"


def test_a_deleted_executable_keeps_its_name_and_language(tmp_path: Path) -> None:
    cc, port = tool("cc"), free_port()
    directory = project(tmp_path, {"server.c": C_SERVER})
    subprocess.run([cc, "-o", "ledger", "server.c"], cwd=directory, check=True)
    with running(["./ledger", str(port)], directory, port) as pid:
        (directory / "ledger").unlink()
        found = Found(f"discovery: {{instrument: [{{exe_path: '{directory}/ledger'}}]}}")
        assert found.pids == {pid}
        assert found.service(pid).name == "ledger"
