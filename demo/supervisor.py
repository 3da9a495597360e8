"""Starts the demo shop, waits until it listens, sends visitors, and ends all of it.

    demo/supervisor.py [--port 8080] [--no-visitors]

Everything runs in the supervisor's process group and ends with it: on Ctrl-C, on SIGTERM, when a part dies, and when
the supervisor's own parent does.  Needs nothing but the standard library; `scripts/setup.sh demo` prepares the parts.
A further part is one more entry in `parts`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "demo"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
READY_TIMEOUT_S = 20.0
TERM_TIMEOUT_S = 4.0


@dataclass
class Part:
    """One program of the demo.

    Attributes:
        ready: Whether it listens by now.
        what: For the reader: what it is made of, and where it listens.
    """

    name: str
    command: list[str]
    ready: Callable[[], bool]
    what: str
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = HERE
    process: subprocess.Popen[bytes] | None = None


def listens(port: int) -> bool:
    """Whether something accepts connections there; asking in HTTP would put the supervisor into the picture."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(count: int, preferred: int) -> list[int]:
    """Ports that nobody listens on; the first is the preferred one if that can be had."""
    ports: list[int] = []
    held = []
    for wanted in [preferred] + [0] * (count - 1):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", wanted))
        except OSError:
            one.bind(("127.0.0.1", 0))
        held.append(one)
        ports.append(one.getsockname()[1])
    for one in held:
        one.close()
    return ports


def parts(run: Path, ports: list[int], *, visitors: bool) -> list[Part]:
    """The demo, in the order of starting: who is asked comes before who asks."""
    gateway, catalog, pricing = ports
    found = [
        Part(
            "catalog",
            [program("node"), "server.js"],
            lambda: listens(catalog),
            f"Node, 127.0.0.1:{catalog}",
            {"PORT": str(catalog)},
            HERE / "catalog",
        ),
        Part(
            "pricing",
            [str(BUILD / "pricing")],
            lambda: listens(pricing),
            f"Go, 127.0.0.1:{pricing}",
            {"PORT": str(pricing)},
        ),
        Part(
            "shop",
            [str(BUILD / "venv/bin/gunicorn"), "--bind", f"unix:{run}/shop.sock", "--worker-class", "gthread",
             "--workers", "2", "--threads", "4", "--keep-alive", "30", "--graceful-timeout", "1",
             "--worker-tmp-dir", str(run), "--log-level", "warning", "shop:app"],
            lambda: (run / "shop.sock").exists(),
            "Flask in gunicorn, a UNIX socket",
            {"CATALOG_URL": f"http://127.0.0.1:{catalog}", "PRICING_URL": f"http://127.0.0.1:{pricing}"},
            HERE / "shop",
        ),
        Part(
            "gateway",
            [program("nginx"), "-p", str(run), "-e", "stderr", "-c", str(gateway_configuration(run, gateway))],
            lambda: listens(gateway),
            f"nginx, http://127.0.0.1:{gateway}/",
        ),
    ]  # fmt: skip
    if visitors:
        found.append(
            Part(
                "visitors",
                [sys.executable, "visitors.py"],
                lambda: True,
                "about 30 requests a second",
                {"GATEWAY_PORT": str(gateway)},
            )
        )
    return found


def program(name: str) -> str:
    """Where a program is; the administrator's folders are looked into too."""
    folders = (
        str(HERE.parent / "build/node/bin"),
        os.environ.get("PATH", os.defpath),
        "/usr/local/sbin:/usr/sbin:/sbin",
    )
    path = shutil.which(name, path=":".join(folders))
    if path is None:
        raise SystemExit(f"demo: {name} is missing; `make demo-setup` installs it")
    return path


def gateway_configuration(run: Path, port: int) -> Path:
    """The configuration of nginx, filled in."""
    text = (HERE / "gateway/nginx.conf").read_text()
    # as root, nginx would drop to a user that may not enter the private folder with the shop's socket
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    for mark, value in (("@USER@", user), ("@RUN@", str(run)), ("@GATEWAY@", str(port))):
        text = text.replace(mark, value)
    path = run / "nginx.conf"
    path.write_text(text)
    return path


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent is gone; runs in a child between fork and exec, too."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Demo:
    """The parts while they run."""

    def __init__(self, found: list[Part], log: Path) -> None:
        self.parts = found
        self.log = log.open("ab", buffering=0)

    def start(self) -> None:
        """One after the other, each when the one before it listens."""
        for part in self.parts:
            part.process = subprocess.Popen(
                part.command,
                cwd=part.cwd,
                env={**os.environ, **part.env},
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                preexec_fn=die_with_parent,
            )
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not part.ready():
                if part.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"demo: {part.name} did not start; see {self.log.name}")
                time.sleep(0.05)
            say(f"{part.name}: {part.what}")

    def watch(self) -> None:
        """Until a part dies."""
        while True:
            for part in self.parts:
                if part.process is not None and part.process.poll() is not None:
                    raise SystemExit(f"demo: {part.name} ended by itself; see {self.log.name}")
            time.sleep(0.2)

    def stop(self) -> None:
        """All parts, the last started first; what does not go is killed."""
        running = [part.process for part in reversed(self.parts) if part.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + TERM_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.log.close()


def say(text: str) -> None:
    """To the log's reader, unless the terminal belongs to onlooker's table."""
    if not sys.stdout.isatty() or "DEMO_TALK" in os.environ:
        print(f"demo: {text}", flush=True)


def main() -> None:
    """Until told to stop."""
    parser = argparse.ArgumentParser(description="The demo shop.")
    parser.add_argument("--port", type=int, default=8080, help="of the gateway; another one if it is taken")
    parser.add_argument("--no-visitors", action="store_true", help="make no traffic")
    options = parser.parse_args()

    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        raise SystemExit("demo: the parent process is gone")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))

    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="onlooker-demo-") as run:
        demo = Demo(parts(Path(run), free_ports(3, options.port), visitors=not options.no_visitors), BUILD / "demo.log")
        try:
            demo.start()
            demo.watch()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            demo.stop()


if __name__ == "__main__":
    main()
