"""Own instances of real servers, each in a directory of its own and on a port of its own.

Nothing of the system's own services is touched: every server is a child process, ended by its pid.  A server whose
program is not installed raises `MissingServerError`; ``scripts/setup_databases.sh`` installs all of them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


class MissingServerError(RuntimeError):
    """The program of a server is not installed."""


@dataclass(frozen=True)
class Server:
    port: int
    pid: int
    directory: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str, *places: str) -> str:
    found = shutil.which(name) or next(
        (p for place in places for p in sorted(map(str, Path("/").glob(place)))[-1:]), None
    )
    if not found:
        raise MissingServerError(f"{name} is not installed; scripts/setup_databases.sh installs it")
    return found


def _account(*names: str) -> pwd.struct_passwd | None:
    """Who runs a server that refuses to be run by root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        if ready():
            return
        time.sleep(0.02)
    raise RuntimeError(f"the server is not ready after {seconds} s: {log.read_text(errors='replace')[-2000:]}")


def _accepts(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
        except OSError:
            return False
        return True

    return ready


@contextlib.contextmanager
def _serve(
    name: str,
    arguments: Callable[[int, Path], list[str]],
    *,
    account: pwd.struct_passwd | None = None,
    prepare: Callable[[Path], None] | None = None,
    ready: Callable[[int], Callable[[], bool]] = _accepts,
    end: int = signal.SIGTERM,
    environment: dict[str, str] | None = None,
    named: bool = False,
) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix=f"onlooker-{name}-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        if account:
            os.chown(directory, account.pw_uid, account.pw_gid)
        if prepare:
            prepare(directory)
        port = free_port()
        log = directory / "log"
        command = arguments(port, directory)
        with log.open("wb") as output:
            process = subprocess.Popen(
                # who watches by the command line finds the directory in it, whatever the program's own options are
                [f"{directory}/{name}", *command[1:]] if named else command,
                executable=command[0],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                cwd=directory,
                env={**os.environ, **(environment or {})},
            )
        _wait(ready(port), process, log)
        yield Server(port, process.pid, directory)
    finally:
        if process and process.poll() is None:
            process.send_signal(end)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def postgres(*settings: str) -> Iterator[Server]:
    """PostgreSQL with pg_stat_statements, database and superuser ``postgres``, no password."""
    initdb = _program("initdb", "usr/lib/postgresql/*/bin/initdb")
    program = str(Path(initdb).with_name("postgres"))
    account = _account("postgres")

    def prepare(directory: Path) -> None:
        subprocess.run(
            [
                initdb,
                "-D",
                str(directory / "data"),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            user=account.pw_uid if account else None,
            cwd=directory,
        )

    def arguments(port: int, directory: Path) -> list[str]:
        options = [
            "fsync=off",
            "shared_buffers=16MB",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={directory}",
            "shared_preload_libraries=pg_stat_statements",
            "pg_stat_statements.track=top",
            "compute_query_id=on",
            "max_connections=40",
            "wal_level=logical",
            *settings,
        ]
        flags = [flag for option in options for flag in ("-c", option)]
        return [program, "-D", str(directory / "data"), "-p", str(port), *flags]

    isready = _program("pg_isready", "usr/lib/postgresql/*/bin/pg_isready")

    def ready(port: int) -> Callable[[], bool]:
        return lambda: (
            subprocess.run(
                [isready, "-q", "-h", "127.0.0.1", "-p", str(port)], check=False, env={**os.environ, "LC_ALL": "C"}
            ).returncode
            == 0
        )

    with _serve("postgres", arguments, account=account, prepare=prepare, ready=ready, end=signal.SIGINT) as server:
        yield server


@contextlib.contextmanager
def mariadb(*settings: str) -> Iterator[Server]:
    """MariaDB with the performance schema; user ``onlooker`` with password ``onlooker``, database ``shop``."""
    program = _program("mariadbd", "usr/sbin/mariadbd")
    install = _program("mariadb-install-db")
    account = _account("mysql")

    def prepare(directory: Path) -> None:
        subprocess.run(
            [
                install, "--no-defaults", f"--datadir={directory / 'data'}", "--auth-root-authentication-method=normal",
                "--skip-test-db", *([f"--user={account.pw_name}"] if account else []),
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=directory,
        )  # fmt: skip
        (directory / "init.sql").write_text(
            "CREATE DATABASE shop;\nCREATE USER onlooker@'%' IDENTIFIED BY 'onlooker';\n"
            "GRANT ALL ON *.* TO onlooker@'%';\n"
        )
        (directory / "init.sql").chmod(0o644)

    def arguments(port: int, directory: Path) -> list[str]:
        return [
            program, "--no-defaults", f"--datadir={directory / 'data'}", f"--port={port}", "--bind-address=127.0.0.1",
            f"--socket={directory / 'socket'}", f"--init-file={directory / 'init.sql'}", "--skip-name-resolve",
            "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=on",
            f"--general-log-file={directory / 'general.log'}", "--general-log=on", f"--pid-file={directory / 'pid'}",
            *settings,
        ]  # fmt: skip

    with _serve("mariadb", arguments, account=account, prepare=prepare) as server:
        yield server


@contextlib.contextmanager
def redis(*settings: str) -> Iterator[Server]:
    """Redis without persistence."""
    program = _program("redis-server")

    def arguments(port: int, directory: Path) -> list[str]:
        return [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), *settings]

    with _serve("redis", arguments) as server:
        yield server


@contextlib.contextmanager
def memcached(*settings: str) -> Iterator[Server]:
    """Memcached with 16 MB."""
    program = _program("memcached")
    account = _account("memcache")

    def arguments(port: int, _directory: Path) -> list[str]:
        return [program, "-p", str(port), "-l", "127.0.0.1", "-m", "16", "-U", "0", *settings]

    with _serve("memcached", arguments, account=account, named=True) as server:
        yield server


@contextlib.contextmanager
def dnsmasq(*settings: str) -> Iterator[Server]:
    """A name server for ``example.test``: ``a.example.test`` has an IPv4 and an IPv6 address; other names do not exist.

    ``settings`` add to the command line, ``--server=...`` for an upstream, say.
    """
    program = _program("dnsmasq", "usr/sbin/dnsmasq")

    def arguments(port: int, directory: Path) -> list[str]:
        return [
            program, "--no-daemon", f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces",
            "--no-resolv", "--no-hosts",
            "--conf-file=/dev/null", f"--pid-file={directory / 'pid'}", "--local=/example.test/", "--user=",
            "--log-facility=-",
            "--host-record=a.example.test,192.0.2.7,2001:db8::7", "--cname=c.example.test,a.example.test",
            "--txt-record=t.example.test,hello", "--mx-host=example.test,a.example.test,10", *settings,
        ]  # fmt: skip

    with _serve("dnsmasq", arguments) as server:
        yield server


@contextlib.contextmanager
def ferretdb() -> Iterator[Server]:
    """FerretDB on SQLite: a server of MongoDB's protocol that the Go registry has."""
    program = Path(__file__).parents[2] / "build/databases/ferretdb"
    if not program.exists():
        raise MissingServerError("FerretDB is not built; scripts/setup_databases.sh builds it")

    def arguments(port: int, directory: Path) -> list[str]:
        return [
            str(program), f"--listen-addr=127.0.0.1:{port}", "--handler=sqlite", f"--sqlite-url=file:{directory}/",
            "--debug-addr=-", "--telemetry=disable", f"--state-dir={directory}", "--log-level=error",
        ]  # fmt: skip

    with _serve("ferretdb", arguments) as server:
        yield server
