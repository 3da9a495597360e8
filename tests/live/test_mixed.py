"""Every protocol at once, on each other's ports: no request is taken for one of another protocol.

``ONLOOKER_TEST_MIXED_SECONDS`` says how long (20 s without it).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import agent, database_clients, databases, scripted, zoo
from support.database_clients import DNS, MARIADB, POSTGRES, REDIS

SECONDS = float(os.environ.get("ONLOOKER_TEST_MIXED_SECONDS", "20"))
AT_ONCE = 5
PORTS = (5432, 3306, 6379, 11211, 27017, 1433, 9042, 5672, 9092, 8080, 8443, 4317, 33060, 6380, 26379, 5433)
"""Where others expect the protocols."""

pytestmark = [pytest.mark.live, pytest.mark.timeout(SECONDS + 400)]


def _is_free(port: int) -> bool:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def everything(monkeypatch: pytest.MonkeyPatch, seed: int) -> Iterator[dict[str, int]]:
    """All servers, on well-known ports that are dealt out anew: the port of each."""
    ports = [port for port in PORTS if _is_free(port)]
    random.Random(seed).shuffle(ports)
    dealt = iter(ports)
    free = databases.free_port

    def deal() -> int:
        return next(dealt, 0) or free()

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(databases, "free_port", deal)
        monkeypatch.setattr(zoo, "free_port", deal)
        found = {
            "postgresql": stack.enter_context(databases.postgres()).port,
            "mariadb": stack.enter_context(databases.mariadb()).port,
            "redis": stack.enter_context(databases.redis()).port,
            "memcached": stack.enter_context(databases.memcached()).port,
            "dns": stack.enter_context(databases.dnsmasq()).port,
            "mongodb": stack.enter_context(databases.ferretdb()).port,
            "http": stack.enter_context(zoo.server("c-threads")).port,
        }
        monkeypatch.setattr(databases, "free_port", free)
        found["microsoft.sql_server"] = stack.enter_context(scripted.tds_peer())
        _tables(found)
        yield found


def _tables(ports: dict[str, int]) -> None:
    import psycopg
    import pymysql

    for kind in ("postgresql", "mariadb"):
        statements = (
            "CREATE TABLE orders (id int PRIMARY KEY, note text)",
            "CREATE TABLE customers (id int PRIMARY KEY, name text)",
            "INSERT INTO orders VALUES " + ",".join(f"({n}, 'n{n}')" for n in range(41)),
        )
        if kind == "postgresql":
            with psycopg.connect(host="127.0.0.1", port=ports[kind], user="postgres", autocommit=True) as postgres:
                for statement in statements:
                    postgres.execute(statement)
        else:
            mariadb = pymysql.connect(
                host="127.0.0.1", port=ports[kind], user="onlooker", password="onlooker", database="shop",
                autocommit=True,
            )  # fmt: skip
            for statement in statements:
                mariadb.cursor().execute(statement)
            mariadb.close()


def protocol_of(span: dict[str, Any]) -> str:
    attributes = span["attributes"]
    if "db.system.name" in attributes:
        return str(attributes["db.system.name"])
    return "dns" if span["name"].startswith("DNS") else "http" if "http.request.method" in attributes else "?"


def kinds() -> dict[str, str]:
    """Which server each client talks to; those that need tables of one client alone, or a namespace, are left out."""
    return {
        **dict.fromkeys(POSTGRES, "postgresql"), **dict.fromkeys((f"mariadb-{name}" for name in MARIADB), "mariadb"),
        **dict.fromkeys(REDIS, "redis"), **dict.fromkeys((f"dns-{name}" for name in DNS), "dns"),
        "pymemcache": "memcached", "pymongo": "mongodb", "pytds": "microsoft.sql_server",
    }  # fmt: skip


def test_no_request_is_taken_for_one_of_another_protocol(
    place: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    talks_to = kinds()
    done: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    wrong: list[tuple[str, str, int, str]] = []
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    with everything(monkeypatch, seed) as ports:
        server_at = {port: kind for kind, port in ports.items()}
        selection = agent.selecting(cmd_args=f"*{place.directory}/*", ports=",".join(map(str, server_at)))
        with agent.running(tmp_path, selection) as onlooker:
            deadline = time.monotonic() + SECONDS

            def lane(number: int) -> None:
                order = random.Random(seed + number)
                while time.monotonic() < deadline:
                    name = order.choice(sorted(talks_to))
                    run = database_clients.start(name, ports[talks_to[name]], place.directory)
                    done[talks_to[name]] += len(run.operations())
                    runs[name] += 1

            def web() -> None:
                while time.monotonic() < deadline:
                    asked = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=10)
                    asked.request("GET", "/orders")
                    asked.getresponse().read()
                    asked.close()
                    done["http"] += 1
                    time.sleep(0.02)

            with ThreadPoolExecutor(AT_ONCE + 1) as pool:
                work = [pool.submit(lane, number) for number in range(AT_ONCE)] + [pool.submit(web)]
                for one in work:
                    one.result(SECONDS + 200)
            for span in onlooker.spans(settle_s=2.0, timeout_s=120):
                found = protocol_of(span)
                port = int(span["local" if span["kind"] == "server" else "remote"].rpartition(":")[2])
                expected = server_at.get(port)
                if expected is None:
                    # a client's other end, should the sides have been mistaken for each other
                    other = int(span["remote" if span["kind"] == "server" else "local"].rpartition(":")[2])
                    if other in server_at:
                        wrong.append((f"{server_at[other]}, sides swapped", found, other, span["name"]))
                    continue
                seen[span["kind"]][found] += int(span["attributes"].get("db.operation.batch.size", 1))
                if found != expected:
                    wrong.append((expected, found, port, span["name"]))
            losses = onlooker.losses()
    print(f"{SECONDS:.0f} s, ports {ports}; {sum(runs.values())} runs of {len(runs)} clients; done {dict(done)};")
    print(f"seen { ({kind: dict(count) for kind, count in seen.items()}) }; lost {losses}; wrong {len(wrong)}")
    assert not wrong, Counter((one[0], one[1], one[3]) for one in wrong)
    assert losses == {}
    for kind, count in done.items():
        assert seen["server"][kind] >= count or kind == "microsoft.sql_server", (kind, count, seen["server"][kind])
        assert seen["client"][kind] >= count or kind == "http", (kind, count, seen["client"][kind])
