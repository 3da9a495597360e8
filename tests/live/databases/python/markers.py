"""Sends a marker wherever a secret may stand: markers.py FILE POSTGRES MARIADB REDIS MEMCACHED HTTP DIRECTORY"""

from __future__ import annotations

import contextlib
import http.client
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    marker, postgres, mariadb, redis, memcached, web = Path(sys.argv[1]).read_text(), *map(int, sys.argv[2:7])
    time.sleep(0.5)  # until it is watched
    import psycopg
    import pymemcache.client.base
    import pymysql
    import redis as redis_py

    with psycopg.connect(host="127.0.0.1", port=postgres, user="postgres", dbname="postgres", autocommit=True) as c:
        for text, parameters in (
            (f"SELECT '{marker}' AS note", ()),
            (f"SELECT $${marker}$$, E'{marker}\\'' , 1 -- {marker}", ()),
            (f"SELECT /* {marker} */ %s::text", (marker,)),
            (f"CREATE ROLE someone PASSWORD '{marker}'", ()),
            (f"SELECT * FROM nowhere WHERE note IN ('{marker}', '{marker}')", ()),
            (f"SELEC '{marker}", ()),
        ):
            with contextlib.suppress(psycopg.Error):
                c.execute(text, parameters or None)  # type: ignore[call-overload]
    with contextlib.suppress(psycopg.Error):
        psycopg.connect(host="127.0.0.1", port=postgres, user=marker, password=marker, dbname="postgres").close()
    m = pymysql.connect(host="127.0.0.1", port=mariadb, user="onlooker", password="onlooker", database="shop")
    for text in (
        f"SELECT '{marker}'",
        f'SELECT "{marker}" # {marker}',
        f"SET PASSWORD = PASSWORD('{marker}')",
        f"SELEC '{marker}",
    ):
        with contextlib.suppress(pymysql.Error):
            m.cursor().execute(text)
    with contextlib.suppress(pymysql.Error):
        pymysql.connect(host="127.0.0.1", port=mariadb, user=marker, password=marker)
    r: Any = redis_py.Redis(port=redis)
    r.set(marker, marker)
    many = r.pipeline(transaction=False)
    for _ in range(60):  # of one name, and so many that they share a span
        many.set(marker, marker)
    many.execute()
    mixed = r.pipeline()
    mixed.hset("hash", marker, marker).get(marker).lpush(marker, marker)
    with contextlib.suppress(redis_py.RedisError):
        mixed.execute()
    r.get(marker)
    r.hset("hash", marker, marker)
    with contextlib.suppress(redis_py.RedisError):
        r.execute_command("AUTH", marker)
    with contextlib.suppress(redis_py.RedisError):
        r.execute_command("NOSUCH", marker)
    cache = pymemcache.client.base.Client(("127.0.0.1", memcached))
    cache.set(marker, marker, noreply=False)
    cache.get(marker)
    asked = http.client.HTTPConnection("127.0.0.1", web)
    headers = {"Authorization": f"Bearer {marker}", "Cookie": f"id={marker}", "X-Api-Key": marker}
    asked.request("POST", f"/login?token={marker}&password={marker}&page=3", f"secret={marker}", headers)
    asked.getresponse().read()


if __name__ == "__main__":
    main()
