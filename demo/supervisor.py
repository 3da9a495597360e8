"""Starts the demo shop, waits until it listens, sends visitors, and ends all of it.

    demo/supervisor.py [--port 8080] [--no-visitors]

Everything ends with the supervisor: on Ctrl-C, on SIGTERM, when a part dies, and when its own parent does.  Needs
nothing but the standard library; `scripts/setup.sh demo` prepares the parts.  A further part is one more entry in
`parts`.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import stores

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "demo"
PORTS = (18081, 18082, 15432, 16379)
"""Of the catalog, pricing, PostgreSQL and Redis: the same in every run, so that the map knows them again."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h
READY_TIMEOUT_S = 20.0
TERM_TIMEOUT_S = 2.0


@dataclass
class Part:
    """One program of the demo.

    Attributes:
        ready: Whether it listens by now.
        what: For the reader: what it is made of, and where it listens.
        after: Names of the parts that it asks: they listen before it starts.
        end: The signal that ends it soonest; nothing of what it keeps is needed again.
        account: Who runs it, unless it is who runs the demo.
    """

    name: str
    command: list[str]
    ready: Callable[[], bool]
    what: str
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = HERE
    after: tuple[str, ...] = ()
    end: int = signal.SIGTERM
    account: pwd.struct_passwd | None = None
    process: subprocess.Popen[bytes] | None = None


def listens(port: int) -> bool:
    """Whether something accepts connections there; asking in HTTP would put the supervisor into the picture."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(preferred: Sequence[int]) -> list[int]:
    """Ports that nobody listens on: the preferred ones where they can be had."""
    ports: list[int] = []
    held = []
    for wanted in preferred:
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


def parts(run: Path, data: Path, ports: list[int], *, visitors: bool) -> list[Part]:
    """The demo, in the order of starting: who is asked comes before who asks."""
    gateway, catalog, pricing, postgres, redis = ports
    who = stores.account()
    redis_conf, redis_url = stores.redis_settings(data, redis, who)
    found = [
        Part(
            "postgres",
            stores.postgres_command(data, postgres, who),
            lambda: listens(postgres),
            f"PostgreSQL, 127.0.0.1:{postgres}",
            cwd=data,
            end=signal.SIGQUIT,
            account=who,
        ),
        Part(
            "redis",
            [program("redis-server"), str(redis_conf)],
            lambda: listens(redis),
            f"Redis, 127.0.0.1:{redis}",
            cwd=data,
            account=who,
        ),
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
             "--workers", "2", "--threads", "4", "--keep-alive", "30", "--graceful-timeout", "0",
             "--worker-tmp-dir", str(run), "--log-level", "warning", "shop:app"],
            lambda: (run / "shop.sock").exists(),
            "Flask in gunicorn, a UNIX socket",
            {
                "CATALOG_URL": f"http://127.0.0.1:{catalog}",
                "PRICING_URL": f"http://127.0.0.1:{pricing}",
                "DATABASE_URL": f"postgresql://shop:{stores.PASSWORD}@127.0.0.1:{postgres}/shop",
                "REDIS_URL": redis_url,
            },
            HERE / "shop",
            after=("postgres", "redis", "catalog", "pricing"),
            end=signal.SIGQUIT,
        ),
        Part(
            "gateway",
            [program("nginx"), "-p", str(run), "-e", "stderr", "-c", str(gateway_configuration(run, gateway))],
            lambda: listens(gateway),
            f"nginx, http://127.0.0.1:{gateway}/",
            after=("shop",),
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
                after=("gateway",),
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
        """Each when those that it asks listen; those that ask nobody, all at once."""
        for part in self.parts:
            for name in part.after:
                self._wait(next(other for other in self.parts if other.name == name))
            part.process = subprocess.Popen(
                part.command,
                cwd=part.cwd,
                env={**os.environ, **part.env},
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                preexec_fn=die_with_parent,
                process_group=0,  # signals are for the supervisor, which knows the order
                **stores.as_account(part.account),
            )
        for part in self.parts:
            self._wait(part)
            say(f"{part.name}: {part.what}")

    def _wait(self, part: Part) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not part.ready():
            if part.process is None or part.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: {part.name} did not start; see {self.log.name}")
            time.sleep(0.02)

    def watch(self) -> None:
        """Until a part dies."""
        while True:
            for part in self.parts:
                if part.process is not None and part.process.poll() is not None:
                    raise SystemExit(f"demo: {part.name} ended by itself; see {self.log.name}")
            time.sleep(0.2)

    def stop(self) -> None:
        """All parts, who asks before who is asked; what does not go is killed."""
        deadline = time.monotonic() + TERM_TIMEOUT_S
        for asking in (True, False):
            running = [part for part in reversed(self.parts) if part.process is not None and bool(part.after) == asking]
            for part in running:
                if part.process.poll() is None:
                    part.process.send_signal(part.end)
            for part in running:
                try:
                    part.process.wait(max(deadline - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    say(f"{part.name} does not end; killed")
                    part.process.kill()
                    part.process.wait()
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
    data = stores.private_directory(stores.account())
    with tempfile.TemporaryDirectory(prefix="onlooker-demo-") as run:
        demo = None
        try:
            found = parts(Path(run), data, free_ports((options.port, *PORTS)), visitors=not options.no_visitors)
            demo = Demo(found, BUILD / "demo.log")
            demo.start()
            demo.watch()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if demo is not None:
                demo.stop()
            shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main()
