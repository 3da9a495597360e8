"""Records the golden captures of databases, caches and names from real clients and real servers.

Each scenario runs through a recording proxy.  What the parser makes of it is checked against what the server itself
counted before anything is written; `*.expected.json` is then read in review.  Run: ``python -m golden.record_databases
[scenario ...]`` in ``tests``, with ``src`` on the path.  Scenarios whose client is not installed are named and skipped.
"""

# ruff: noqa: SIM105  # what fails on purpose stands out better in a try

from __future__ import annotations

import asyncio
import collections
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onlooker.protocols.registry import Options, by_name, make_parser
from support import databases, scripted
from support.recorder import Chunk, recording, replay, save

HERE = Path(__file__).parent
NODE = HERE.parent.parent / "build/databases/node"
SCENARIOS: dict[str, Callable[[], list[Chunk]]] = {}


def scenario(function: Callable[[], list[Chunk]]) -> Callable[[], list[Chunk]]:
    SCENARIOS[function.__name__] = function
    return function


def _node(script: str, port: int) -> None:
    if not (NODE / "node_modules").is_dir():
        raise databases.MissingServerError("node clients are not installed")
    subprocess.run(["node", "-e", script, str(port)], check=True, cwd=NODE, timeout=60)


def _postgres(run: Callable[[int], None], *, count: bool = True) -> list[Chunk]:
    import psycopg

    with databases.postgres() as server:

        def admin() -> Any:
            return psycopg.connect(
                host="127.0.0.1", port=server.port, user="postgres", dbname="postgres", autocommit=True
            )

        with admin() as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
            connection.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
            connection.execute("CREATE TABLE customers (id int PRIMARY KEY, name text)")
            connection.execute("INSERT INTO orders SELECT g, 'n' || g FROM generate_series(1, 20) g")
            connection.execute("SELECT pg_stat_statements_reset()")
        with recording(server.port) as recorder:
            run(recorder.port)
        if count:
            with admin() as connection:
                rows = connection.execute(
                    "SELECT query, calls FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'"
                ).fetchall()
            result = replay(recorder.chunks, lambda: make_parser(3, 3, options=Options()))
            seen = collections.Counter(
                str(o.dims.get("db.operation.name"))
                for o in result.operations
                if not o.error and o.name != "FETCH orders"
            )
            truth: collections.Counter[str] = collections.Counter()
            for query, calls in rows:
                truth[re.match(r"\w+", query)[0].upper()] += calls  # type: ignore[index]
            if seen != truth or result.lost:
                raise AssertionError(f"the server counted {truth}, seen were {seen}, lost {result.lost}")
        return recorder.chunks


@scenario
def postgres_psycopg3() -> list[Chunk]:
    import psycopg

    def run(port: int) -> None:
        with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True) as c:
            c.execute("SELECT note FROM orders WHERE id = 7").fetchall()
            for number in range(7):
                c.execute("SELECT note FROM orders WHERE id = %s", (number,)).fetchall()
            c.execute("INSERT INTO customers VALUES (%s, %s)", (1, "marker-one"))
            for bad in ("SELECT * FROM nowhere", "INSERT INTO customers VALUES (1, 'marker-two')", "SELEC"):
                try:
                    c.execute(bad)  # type: ignore[arg-type]
                except psycopg.Error:
                    pass
            c.execute("SELECT 1; SELECT id FROM orders LIMIT 2; SELECT 3")
            c.execute("")
            with c.transaction(), c.cursor("named") as cursor:
                cursor.execute("SELECT id FROM orders")
                cursor.fetchmany(5)
            with c.cursor().copy("COPY customers FROM STDIN") as copy:
                copy.write_row((2, "marker-three"))
            with c.cursor().copy("COPY customers TO STDOUT") as copy:
                list(copy)
            c.execute("LISTEN news")
            c.execute("NOTIFY news, 'marker-four'")

    return _postgres(run)


@scenario
def postgres_pipeline() -> list[Chunk]:
    import psycopg

    def run(port: int) -> None:
        with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True) as c:
            with c.pipeline():
                for number in range(12):
                    c.execute("SELECT note FROM orders WHERE id = %s", (number,))
                c.execute("UPDATE orders SET note = %s WHERE id = %s", ("marker", 3))
            try:
                with c.pipeline():
                    c.execute("SELECT 1")
                    c.execute("SELECT 1 / %s", (0,))
                    c.execute("SELECT note FROM orders")
            except psycopg.Error:
                pass
            c.execute("DELETE FROM orders WHERE id IN (1, 2, 3)")

    return _postgres(run)


@scenario
def postgres_asyncpg() -> list[Chunk]:
    import asyncpg

    async def main(port: int) -> None:
        c = await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="postgres", ssl=False)
        await c.execute("SELECT 1")
        for number in range(4):
            await c.fetch("SELECT note FROM orders WHERE id = $1", number)
        await c.executemany("INSERT INTO customers VALUES ($1, $2)", [(n, "marker") for n in range(5)])
        async with c.transaction():
            async for _ in c.cursor("SELECT id FROM orders", prefetch=5):
                pass
        try:
            await c.fetch("SELECT * FROM nowhere WHERE id = $1", 1)
        except asyncpg.PostgresError:
            pass
        await c.close()

    # the rows of a portal that was suspended are fetched by further Execute messages, which the server counts once
    return _postgres(lambda port: asyncio.run(main(port)), count=False)


@scenario
def postgres_psycopg2() -> list[Chunk]:
    import psycopg2

    def run(port: int) -> None:
        c = psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")
        cursor = c.cursor()
        cursor.execute("SELECT note FROM orders o JOIN customers c ON c.id = o.id WHERE o.id = %s", (5,))
        cursor.execute("UPDATE orders SET note = %s", ("marker",))
        c.commit()
        c.close()

    return _postgres(run)


@scenario
def postgres_pg8000() -> list[Chunk]:
    import pg8000.native

    def run(port: int) -> None:
        c = pg8000.native.Connection("postgres", host="127.0.0.1", port=port, database="postgres")
        c.run("SELECT note FROM orders WHERE id = :id", id=5)
        prepared = c.prepare("SELECT id FROM orders WHERE note = :note")
        for _ in range(3):
            prepared.run(note="marker")
        prepared.close()
        c.close()

    return _postgres(run)


@scenario
def postgres_psql() -> list[Chunk]:
    def run(port: int) -> None:
        subprocess.run(
            ["psql", "-X", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres",
             "-c", "SELECT 1", "-c", "SELECT id FROM orders WHERE note = 'marker'",
             "-c", "BEGIN; UPDATE orders SET note = 'marker'; COMMIT"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    return _postgres(run)


@scenario
def postgres_pgbench() -> list[Chunk]:
    bench = databases._program("pgbench", "usr/lib/postgresql/*/bin/pgbench")
    script = "\\set x random(1, 20)\nSELECT note FROM orders WHERE id = :x;\n"
    script += "UPDATE orders SET note = 'marker' WHERE id = :x;\n"

    path = Path("/tmp") / f"onlooker-{time.monotonic_ns()}.sql"

    def with_file(port: int) -> None:
        path.write_text(script)
        try:
            for mode in ("simple", "extended", "prepared"):
                subprocess.run(
                    [bench, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-n", "-t", "5",
                     "-M", mode, "-f", str(path), "postgres"],
                    check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
        finally:
            path.unlink()

    return _postgres(with_file)


@scenario
def postgres_node() -> list[Chunk]:
    script = """
    const { Client } = require('pg');
    (async () => {
      const c = new Client({ host: '127.0.0.1', port: +process.argv[1], user: 'postgres', database: 'postgres' });
      await c.connect();
      await c.query('SELECT note FROM orders WHERE id = 7');
      for (let i = 0; i < 3; i++) await c.query('SELECT note FROM orders WHERE id = $1', [i]);
      for (let i = 0; i < 3; i++) await c.query({ name: 'p', text: 'UPDATE orders SET note = $1', values: ['marker'] });
      await c.query('SELECT * FROM nowhere').catch(() => {});
      await c.end();
    })();
    """
    return _postgres(lambda port: _node(script, port))


def _mariadb(run: Callable[[int], None]) -> list[Chunk]:
    import pymysql

    with databases.mariadb() as server:
        c = pymysql.connect(
            host="127.0.0.1", port=server.port, user="onlooker", password="onlooker", database="shop", autocommit=True
        )
        with c.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
            cursor.execute("INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')")
            cursor.execute("CREATE PROCEDURE pair() BEGIN SELECT 1; SELECT 2; END")
            cursor.execute("SET GLOBAL general_log = 'OFF'")
            (server.directory / "general.log").write_text("")
            cursor.execute("SET GLOBAL general_log = 'ON'")
        c.close()
        before = len((server.directory / "general.log").read_text(errors="replace"))
        with recording(server.port) as recorder:
            run(recorder.port)
        log = (server.directory / "general.log").read_text(errors="replace")[before:]
        truth = len(re.findall(r"\t *\d+ (?:Query|Execute|Prepare)\t", log))
        result = replay(recorder.chunks, lambda: make_parser(4, 3, options=Options()))
        prepares = len(re.findall(r"\t *\d+ Prepare\t", log))
        print(f"  the general log has {truth - prepares} statements, seen {len(result.operations)}, lost {result.lost}")
        return recorder.chunks


@scenario
def mysql_pymysql() -> list[Chunk]:
    import pymysql
    from pymysql.constants import CLIENT

    def run(port: int) -> None:
        c = pymysql.connect(
            host="127.0.0.1", port=port, user="onlooker", password="onlooker", database="shop", autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS, ssl_disabled=True,
        )  # fmt: skip
        cursor = c.cursor()
        for number in range(3):
            cursor.execute("SELECT note FROM orders WHERE id = %s", (number,))
            cursor.fetchall()
        cursor.execute("SELECT 1; UPDATE orders SET note = 'marker'; SELECT id FROM orders")
        while cursor.nextset():
            pass
        for bad in ("SELECT * FROM nowhere", "INSERT INTO orders VALUES (1, 'marker')"):
            try:
                cursor.execute(bad)
            except pymysql.Error:
                pass
        c.ping()
        cursor.execute("CALL pair()")
        while cursor.nextset():
            pass
        cursor.execute("USE mysql")
        cursor.execute("SELECT 'marker'")
        c.select_db("shop")
        cursor.execute("SELECT repeat('x', 5000) FROM orders")
        cursor.fetchall()
        c.close()

    return _mariadb(run)


@scenario
def mysql_asyncmy() -> list[Chunk]:
    import asyncmy

    async def main(port: int) -> None:
        c = await asyncmy.connect(host="127.0.0.1", port=port, user="onlooker", password="onlooker", database="shop")
        async with c.cursor() as cursor:
            await cursor.execute("SELECT note FROM orders WHERE id = %s", (1,))
            await cursor.fetchall()
        await c.commit()
        await c.ensure_closed()

    return _mariadb(lambda port: asyncio.run(main(port)))


@scenario
def mysql_mysql2() -> list[Chunk]:
    script = """
    const mysql = require('mysql2/promise');
    (async () => {
      const c = await mysql.createConnection({ host: '127.0.0.1', port: +process.argv[1], user: 'onlooker',
        password: 'onlooker', database: 'shop' });
      await c.query('SELECT note FROM orders WHERE id = 7');
      for (let i = 0; i < 4; i++) await c.execute('SELECT note FROM orders WHERE id = ?', [i]);
      await c.execute('UPDATE orders SET note = ? WHERE id = ?', ['marker', 2]);
      await c.execute('SELECT * FROM nowhere WHERE id = ?', [1]).catch(() => {});
      await c.end();
    })();
    """
    return _mariadb(lambda port: _node(script, port))


@scenario
def mysql_client_compressed() -> list[Chunk]:
    def run(port: int) -> None:
        subprocess.run(
            ["mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", str(port), "-uonlooker", "-ponlooker",
             "--compress", "--skip-ssl", "-e", "SELECT 1; SELECT 2", "shop"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    return _mariadb(run)


@scenario
def redis_py() -> list[Chunk]:
    import redis

    with databases.redis() as server:
        with recording(server.port) as recorder:
            for protocol in (2, 3):
                c = redis.Redis(port=recorder.port, protocol=protocol, db=3)
                c.set("marker", "marker")
                c.get("marker")
                c.get("absent")
                c.set("large", "x" * 6000)
                c.get("large")
                c.rpush("list", *range(50))
                c.lrange("list", 0, -1)
                c.hset("hash", mapping={"marker": 1})
                c.hgetall("hash")
                try:
                    c.incr("hash")
                except redis.ResponseError:
                    pass
                with c.pipeline(transaction=True) as pipeline:
                    pipeline.set("x", 1).incr("x").execute()
                with c.pipeline(transaction=False) as pipeline:
                    for _ in range(50):
                        pipeline.get("marker")
                    pipeline.execute()
                c.blpop("nothing", timeout=0.05)
                listener = c.pubsub()
                listener.subscribe("news", "more")
                time.sleep(0.05)
                c.publish("news", "marker")
                for _ in range(3):
                    listener.get_message(timeout=1)
                listener.close()
                c.close()
        stats = redis.Redis(port=server.port).info("commandstats")
        truth = (
            sum(v["calls"] for k, v in stats.items() if k != "cmdstat_hello") + 2
        )  # one HELLO of ours each protocol 3
        result = replay(recorder.chunks, lambda: make_parser(6, 3, options=Options()))
        seen = sum(int(o.varying.get("db.operation.batch.size", 1)) for o in result.operations)  # type: ignore[arg-type]
        print(f"  commandstats has {truth} (without refused ones), seen were {seen}, lost {result.lost}")
        return recorder.chunks


@scenario
def redis_benchmark() -> list[Chunk]:
    with databases.redis() as server, recording(server.port) as recorder:
        for depth in (1, 50):
            subprocess.run(
                ["redis-benchmark", "-p", str(recorder.port), "-n", "100", "-c", "1", "-P", str(depth), "-q",
                 "-t", "set,get"],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
    return recorder.chunks


@scenario
def redis_inline() -> list[Chunk]:
    with (
        databases.redis() as server,
        recording(server.port) as recorder,
        socket.create_connection(("127.0.0.1", recorder.port)) as c,
    ):
        for line in (b"PING\r\n", b"SET marker marker\r\n", b"GET marker\r\n", b"NOSUCH marker\r\n"):
            c.sendall(line)
            c.recv(4096)
    return recorder.chunks


@scenario
def redis_ioredis() -> list[Chunk]:
    script = """
    const Redis = require('ioredis');
    (async () => {
      const c = new Redis(+process.argv[1], '127.0.0.1');
      await c.set('marker', 'marker');
      await Promise.all(Array.from({ length: 10 }, (_, i) => c.get('k' + i)));
      await c.pipeline().set('a', 1).incr('a').exec();
      await c.quit();
    })();
    """
    with databases.redis() as server, recording(server.port) as recorder:
        _node(script, recorder.port)
    return recorder.chunks


@scenario
def memcached_pymemcache() -> list[Chunk]:
    from pymemcache.client.base import Client
    from pymemcache.exceptions import MemcacheClientError

    with databases.memcached() as server, recording(server.port) as recorder:
        c = Client(("127.0.0.1", recorder.port), default_noreply=False)
        c.set("marker", "marker")
        c.get("marker")
        c.get("absent")
        c.set("large", b"x" * 5000)
        c.get("large")
        c.get_many(["marker", "large", "absent"])
        c.add("number", "5")
        c.incr("number", 2)
        c.delete("number")
        c.touch("marker", 100)
        c.set("quiet", "1", noreply=True)
        c.version()
        c.gets("marker")
        c.cas("marker", "x", "999")
        try:
            c.incr("marker", 1)
        except MemcacheClientError:
            pass
        c.close()
    return recorder.chunks


@scenario
def memcached_meta_and_binary() -> list[Chunk]:
    def packet(code: int, key: bytes = b"", extras: bytes = b"", value: bytes = b"", opaque: int = 0) -> bytes:
        body = extras + key + value
        return struct.pack(">BBHBBHIIQ", 0x80, code, len(key), len(extras), 0, 0, len(body), opaque, 0) + body

    with databases.memcached() as server, recording(server.port) as recorder:
        meta = (
            b"ms marker 3\r\nabc\r\nmg marker v\r\n",
            b"mg absent v q\r\nmg marker v q\r\nms quiet 1 q\r\nz\r\nmd marker q\r\nmn\r\n",
            b"mg marker v\r\n",
            b"bogus\r\n",
        )
        binary = (
            packet(1, b"marker", b"\0" * 8, b"v", 1),
            packet(0, b"marker", opaque=2),
            packet(9, b"absent", opaque=3) + packet(9, b"marker", opaque=4) + packet(10, opaque=5),
            packet(5, b"marker", b"\0" * 20, opaque=7),
        )
        for lines in (meta, binary):
            with socket.create_connection(("127.0.0.1", recorder.port)) as c:
                for data in lines:
                    c.sendall(data)
                    time.sleep(0.03)
                    c.recv(4096)
    return recorder.chunks


@scenario
def dns_tcp() -> list[Chunk]:
    import dns.message
    import dns.query

    with databases.dnsmasq() as server, recording(server.port) as recorder:
        for name, kind in (
            ("a.example.test", "A"),
            ("a.example.test", "AAAA"),
            ("no.example.test", "A"),
            ("example.test", "MX"),
        ):
            dns.query.tcp(dns.message.make_query(name, kind), "127.0.0.1", port=recorder.port)
    return recorder.chunks


@scenario
def mongodb_pymongo() -> list[Chunk]:
    """A real driver against a scripted peer: no MongoDB server can be had from the registries."""
    return scripted.mongodb()


@scenario
def tds_pytds() -> list[Chunk]:
    """A real driver against a scripted peer: no SQL Server can be had from the registries."""
    return scripted.tds()


def main(names: list[str]) -> None:
    for name, run in SCENARIOS.items():
        if names and name not in names:
            continue
        print(name)
        try:
            chunks = run()
        except (databases.MissingServerError, ImportError) as error:
            print(f"  skipped: {error}")
            continue
        protocol = name.split("_")[0]
        options = Options()
        result = replay(chunks, lambda: make_parser(by_name(protocol).number, 3, options=options))  # noqa: B023  # used at once
        save(HERE / protocol / f"{name}.jsonl", chunks)
        expected = {
            "lost": result.lost,
            "notes": result.notes,
            "operations": [
                [o.name, o.error, o.dims.get("db.namespace", ""), o.varying.get("db.operation.batch.size", 1)]
                for o in result.operations
            ],
        }
        lines = ",\n  ".join(json.dumps(row) for row in expected.pop("operations"))  # type: ignore[attr-defined]
        text = json.dumps(expected)[:-1] + ',\n "operations": [\n  ' + lines + "\n ]}\n"
        (HERE / protocol / f"{name}.expected.json").write_text(text)
        print(f"  {len(result.operations)} operations, {result.lost} lost")


if __name__ == "__main__":
    main(sys.argv[1:])
