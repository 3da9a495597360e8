"""Real clients of databases, caches and names in five languages, each with its own clock; see `tests/live/databases`.

    run = start("psycopg", port, directory)      # a process whose command line names the directory
    operations = run.operations()                # waits for its end

`scripts/setup_databases.sh` installs and builds them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.databases import Server

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests/live/databases"
BUILT = ROOT / "build/databases"
PYTHON = [sys.executable, str(SOURCES / "python/client.py")]
GO = [str(BUILT / "databases")]
NODE = ["node", str(SOURCES / "node/client.js")]
JAVA = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{BUILT}/classes:{BUILT}/java/lib/*", "Client"]

POSTGRES = {
    "psycopg": [*PYTHON, "psycopg"],
    "psycopg-async": [*PYTHON, "psycopg_async"],
    "psycopg-pipeline": [*PYTHON, "psycopg_pipeline"],
    "psycopg2": [*PYTHON, "psycopg2"],
    "asyncpg": [*PYTHON, "asyncpg"],
    "node-postgres": [*NODE, "pg"],
    "pgx": [*GO, "pgx"],
    "lib-pq": [*GO, "pq"],
    "jdbc": [*JAVA, "postgresql"],
}
MARIADB = {
    "mysqlclient": [*PYTHON, "mysqlclient"],
    "pymysql": [*PYTHON, "pymysql"],
    "asyncmy": [*PYTHON, "asyncmy"],
    "aiomysql": [*PYTHON, "aiomysql"],
    "mysql2": [*NODE, "mysql2"],
    "go-sql-driver": [*GO, "mysql"],
    "jdbc": [*JAVA, "mariadb"],
    "jdbc-prepared": [*JAVA, "mariadb-prepared"],
}
REDIS = {
    "redis-py": [*PYTHON, "redis"],
    "redis-py-asyncio": [*PYTHON, "redis_asyncio"],
    "redis-py-pipeline": [*PYTHON, "redis_pipeline"],
    "ioredis": [*NODE, "ioredis"],
    "go-redis": [*GO, "redis"],
    "jedis": [*JAVA, "redis"],
}
DNS = {"node": [*NODE, "dns"], "go": [*GO, "dns"]}
CLIENTS: dict[str, list[str]] = {
    **POSTGRES, **{f"mariadb-{name}": command for name, command in MARIADB.items()}, **REDIS,
    **{f"dns-{name}": command for name, command in DNS.items()}, "pymemcache": [*PYTHON, "pymemcache"],
    "pymongo": [*PYTHON, "pymongo"], "pytds": [*PYTHON, "pytds"], "getaddrinfo": [*PYTHON, "getaddrinfo"],
}  # fmt: skip


@dataclass(frozen=True)
class Done:
    """One operation as its client saw it; times are CLOCK_MONOTONIC."""

    op: str
    start_ns: int
    took_ns: int
    code: str


@dataclass
class Run:
    """A running client."""

    process: subprocess.Popen[str]
    out: Path
    start_ns: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def operations(self, timeout_s: float = 90.0) -> list[Done]:
        """What it did; raises if it failed or takes too long."""
        try:
            said, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(f"the client does not end: {said[-2000:]}") from None
        if self.process.returncode:
            raise AssertionError(f"the client ended with {self.process.returncode}: {said[-2000:]}")
        if not self.out.exists():
            return []
        return [Done(**json.loads(line)) for line in self.out.read_text().splitlines()]


def start(name: str, port: int, directory: Path) -> Run:
    """Start one of `CLIENTS`."""
    out = directory / f"{name}-{uuid.uuid4().hex[:8]}.jsonl"
    return _start([*CLIENTS[name], str(port), str(out)], out)


def start_program(command: Sequence[str | Path], directory: Path, **environment: str) -> Run:
    """Start any program; its own path in the command line is made one in the directory, so that it is watched.

    A shell of that name waits before it becomes the program: what it does first is to be seen as well.
    """
    words = [str(word) for word in command]
    shell = ["bash", "-c", 'sleep 0.7; exec -a "$0" "$@"', f"{directory}/{Path(words[0]).name}", *words]
    return _start(shell, directory / "none", environment)


def start_script(command: Sequence[str | Path]) -> Run:
    """Start a command line that names the directory itself."""
    return _start([str(word) for word in command], Path("/nonexistent"))


def _start(command: list[str], out: Path, environment: dict[str, str] | None = None) -> Run:
    start_ns = time.monotonic_ns()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "NODE_CLIENTS": str(BUILT / "node"), **(environment or {})},
    )  # fmt: skip
    return Run(process, out, start_ns)


_LITERAL = re.compile(r"'(?:[^']|'')*'|\$\d+|\b(?:true|false|\d+(?:\.\d+)?)\b")


def shape(text: str) -> str:
    """A statement with every literal and parameter as ``?``, so that those of a server and of onlooker compare.

    Lists of them are one, as onlooker folds them, and the sign of a number goes with it, as PostgreSQL has it.
    """
    folded = " ".join(re.sub(r"/\*.*?\*/|--[^\n]*", " ", text, flags=re.DOTALL).lower().split())
    bare = re.sub(r"\s*([(),=<>+*/-])\s*", r"\1", _LITERAL.sub("?", folded)).rstrip("; ")
    return re.sub(r"\(\?(?:,\?)+\)", "(?)", re.sub(r"(?<=[(,=<>+*/-])-\?", "?", bare))


def codes(done: Sequence[Done]) -> Counter[str]:
    """How often which code came."""
    return Counter(one.code for one in done if one.code)


def off_by(done: Sequence[Done], spans: Sequence[dict[str, Any]]) -> list[tuple[Done, float]]:
    """Operations with the milliseconds by which their spans differ from the client's clock; inf if none is inside."""
    found = []
    ordered = sorted(spans, key=lambda span: span["start_ns"])
    for one in done:
        end_ns = one.start_ns + one.took_ns
        inside = [span for span in ordered if one.start_ns <= span["start_ns"] <= end_ns]
        if not inside:
            found.append((one, float("inf")))
            continue
        last_ns = max(span["start_ns"] + span["duration_ns"] for span in inside)
        found.append((one, (one.took_ns - (last_ns - inside[0]["start_ns"])) / 1e6))
    return found


class RedisServer:
    """A running Redis, and its own count of commands."""

    def __init__(self, server: Server) -> None:
        self.port, self.pid = server.port, server.pid

    def ask(self, *words: str) -> str:
        return subprocess.run(
            ["redis-cli", "-p", str(self.port), *words], check=True, text=True, stdout=subprocess.PIPE, timeout=60
        ).stdout

    def counted(self) -> Counter[str]:
        """Calls by command, those that failed too."""
        found: Counter[str] = Counter()
        for name, calls, rejected in re.findall(
            r"cmdstat_([^:]+):calls=(\d+),.*?rejected_calls=(\d+)", self.ask("INFO", "commandstats")
        ):
            found[name.partition("|")[0].upper()] += int(calls) + int(rejected)
        return found - Counter({"CONFIG": 1})
