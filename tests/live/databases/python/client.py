"""A client of databases, caches and names for the live tests: client.py KIND PORT OUT

Every operation is written to OUT as a line of JSON: what it was, when it began (CLOCK_MONOTONIC), how long it took by
this program's own clock, and with which code it failed.  It uses one connection, and the workload of all languages.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

ROWS: list[dict[str, Any]] = []
STATEMENT = tuple[str, str, tuple[Any, ...]]


def statements(marks: Callable[[int], str], sleep: str, *, transactions: bool = True) -> Iterator[STATEMENT]:
    """The workload: operation, text, parameters."""
    one, two = marks(1), marks(2)
    for n in range(30):
        yield "select", f"SELECT note FROM orders WHERE id = {one}", (n,)
    for n in range(10):
        yield "insert", f"INSERT INTO customers (id, name) VALUES ({one}, {two})", (n, "name")
    for n in range(5):
        if transactions:
            yield "begin", "BEGIN", ()
        yield "update", f"UPDATE orders SET note = {one} WHERE id = {two}", ("note", n)
        if transactions:
            yield "commit", "COMMIT", ()
    for _ in range(3):
        yield "unique", f"INSERT INTO customers (id, name) VALUES ({one}, {two})", (1, "again")
        yield "missing", "SELECT * FROM nowhere", ()
        yield "syntax", "SELEC 1", ()
        yield "sleep", sleep, ()
    yield "literal", "SELECT id FROM orders WHERE note = 'n7' AND id > 3", ()
    yield "delete", "DELETE FROM customers", ()


def code_of(error: BaseException) -> str:
    for name in ("sqlstate", "pgcode"):
        if isinstance(found := getattr(error, name, None), str):
            return found
    if error.args and isinstance(error.args[0], int):
        return str(error.args[0])
    return type(error).__name__


@contextlib.contextmanager
def timed(operation: str) -> Iterator[None]:
    start = time.monotonic_ns()
    code = ""
    try:
        yield
    except Exception as error:
        code = code_of(error)
    ROWS.append({"op": operation, "start_ns": start, "took_ns": time.monotonic_ns() - start, "code": code})


def numbered(n: int) -> str:
    return f"${n}"


def plain(_: int) -> str:
    return "%s"


def through_cursor(cursor: Any, sleep: str) -> None:
    """Any driver of PEP 249."""
    for operation, text, parameters in statements(plain, sleep):
        with timed(operation):
            cursor.execute(text, parameters or None)
            if cursor.description:
                cursor.fetchall()


POSTGRES = "SELECT pg_sleep(0.02)"
MYSQL = "SELECT SLEEP(0.02)"


def psycopg(port: int) -> None:
    import psycopg

    with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True) as c:
        through_cursor(c.cursor(), POSTGRES)


async def psycopg_async(port: int) -> None:
    import psycopg

    c = await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True
    )
    async with c, c.cursor() as cursor:
        for operation, text, parameters in statements(plain, POSTGRES):
            with timed(operation):
                await cursor.execute(text, parameters or None)
                if cursor.description:
                    await cursor.fetchall()


def psycopg_pipeline(port: int) -> None:
    import psycopg

    with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True) as c:
        for _ in range(5):
            with timed("pipeline"), c.pipeline():
                for n in range(20):
                    c.execute("SELECT note FROM orders WHERE id = %s", (n,))
                c.execute("UPDATE orders SET note = %s WHERE id = %s", ("piped", 3))
        with timed("pipeline"), c.pipeline():
            c.execute("SELECT note FROM orders WHERE id = %s", (1,))
            c.execute("SELECT 1 / %s", (0,))
            c.execute("SELECT note FROM orders WHERE id = %s", (2,))


async def asyncpg(port: int) -> None:
    import asyncpg

    c = await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="postgres", ssl=False)
    for operation, text, parameters in statements(numbered, POSTGRES):
        with timed(operation):
            if parameters:
                await c.fetch(text, *parameters)
            else:
                await c.execute(text)
    with timed("many"):
        await c.executemany("INSERT INTO customers (id, name) VALUES ($1, $2)", [(n, "many") for n in range(10)])
    with timed("delete"):
        await c.execute("DELETE FROM customers")
    await c.close()


def psycopg2(port: int) -> None:
    import psycopg2

    c = psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")
    c.autocommit = True
    through_cursor(c.cursor(), POSTGRES)
    c.close()


def pymysql(port: int) -> None:
    import pymysql

    c = pymysql.connect(host="127.0.0.1", port=port, user="onlooker", password="onlooker", database="shop")
    c.autocommit(True)
    through_cursor(c.cursor(), MYSQL)
    c.close()


def mysqlclient(port: int) -> None:
    import MySQLdb

    c = MySQLdb.connect(host="127.0.0.1", port=port, user="onlooker", password="onlooker", database="shop")
    c.autocommit(True)
    through_cursor(c.cursor(), MYSQL)
    c.close()


async def asyncmy(port: int) -> None:
    import asyncmy

    c = await asyncmy.connect(host="127.0.0.1", port=port, user="onlooker", password="onlooker", database="shop")
    await c.autocommit(True)
    await _through_async_cursor(c)
    c.close()


async def aiomysql(port: int) -> None:
    import aiomysql

    c = await aiomysql.connect(host="127.0.0.1", port=port, user="onlooker", password="onlooker", db="shop")
    await c.autocommit(True)
    await _through_async_cursor(c)
    c.close()


async def _through_async_cursor(connection: Any) -> None:
    async with connection.cursor() as cursor:
        for operation, text, parameters in statements(plain, MYSQL):
            with timed(operation):
                await cursor.execute(text, parameters or None)
                if cursor.description:
                    await cursor.fetchall()


def redis(port: int) -> None:
    import redis

    with redis.Redis(port=port, single_connection_client=True) as client:
        for n in range(200):
            with timed("set"):
                client.set(f"py:{n % 7}", n)
            with timed("get"):
                client.get(f"py:{n % 7}")
            with timed("lpush"):
                client.lpush(f"list:{n % 7}", n)
        with timed("wrong"):
            client.incr("list:1")
        with timed("transaction"), client.pipeline() as pipe:
            pipe.set("a", 1).incr("a").execute()


def redis_pipeline(port: int) -> None:
    import redis

    with redis.Redis(port=port, single_connection_client=True) as client:
        for _ in range(20):
            with timed("pipeline"), client.pipeline(transaction=False) as pipe:
                for n in range(50):
                    pipe.set(f"py:{n}", "x" * n).get(f"py:{n}")
                pipe.execute()


async def redis_asyncio(port: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis(port=port, single_connection_client=True, protocol=3)
    async with client:
        for n in range(200):
            with timed("set"):
                await client.set(f"py:{n % 7}", n)
            with timed("hgetall"):
                await client.hgetall("hash")
        with timed("gather"):
            await asyncio.gather(*(client.incr("counter") for _ in range(20)))


def pymemcache(port: int) -> None:
    from pymemcache.client.base import Client

    client = Client(("127.0.0.1", port), no_delay=True)
    for n in range(100):
        with timed("set"):
            client.set(f"k{n % 9}", "v" * n, noreply=False)
        with timed("get"):
            client.get(f"k{n % 9}")
    with timed("gets"):
        client.gets("k1")
    with timed("delete"):
        client.delete("k1", noreply=False)
    with timed("get"):
        client.get("k1")
    with timed("incr"):
        client.incr("k2", 1)  # no number: an error of the client
    client.close()


def pymongo(port: int) -> None:
    import pymongo

    client: Any = pymongo.MongoClient(
        f"mongodb://127.0.0.1:{port}/?directConnection=true", maxPoolSize=1, heartbeatFrequencyMS=10_000
    )
    orders = client.shop.orders
    for n in range(50):
        with timed("insert"):
            orders.insert_one({"_id": n, "note": "x" * n})
        with timed("find"):
            orders.find_one({"_id": n})
    for n in range(10):
        with timed("update"):
            orders.update_one({"_id": n}, {"$set": {"note": "y"}})
    with timed("duplicate"):
        orders.insert_one({"_id": 1})
    with timed("unknown"):
        client.shop.command("thereIsNoSuchCommand")
    with timed("delete"):
        orders.delete_many({})
    client.close()


def pytds(port: int) -> None:
    import pytds

    with pytds.connect("127.0.0.1", database="shop", user="sa", password="secret", port=port, autocommit=True) as c:
        cursor = c.cursor()
        for n in range(40):
            with timed("select"):
                cursor.execute("SELECT note FROM orders WHERE id = 7")
                cursor.fetchall()
            with timed("parameter"):
                cursor.execute("SELECT note FROM orders WHERE id = %s", (n,))
                cursor.fetchall()
        for _ in range(5):
            with timed("missing"):
                cursor.execute("SELECT * FROM nowhere")


def getaddrinfo(port: int) -> None:
    """glibc's resolver; where it asks says resolv.conf, which this process has one of its own of."""
    for _ in range(20):
        with timed("both"):
            socket.getaddrinfo("a.example.test", 80, type=socket.SOCK_STREAM)
        with timed("missing"):
            socket.getaddrinfo("missing.example.test", 80, type=socket.SOCK_STREAM)


def main() -> None:
    kind, port, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    time.sleep(0.3)  # until it is watched
    run: Callable[[int], Awaitable[None] | None] = globals()[kind]
    if inspect.iscoroutinefunction(run):
        asyncio.run(run(port))
    else:
        run(port)
    with open(out, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)


if __name__ == "__main__":
    main()
