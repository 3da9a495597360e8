"""The page and its API over a real store with made-up traffic, so that neither root nor BPF is needed.

The agent behind the API is the one thing that is not real here: it needs both.  `CannedFacts` answers in its place; the
live tests ask a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from onlooker import semconv
from onlooker.aggregate.aggregator import AggregateOptions, Aggregator
from onlooker.batches import Identities, RequestBatch, SpanKind, Text, Values
from onlooker.store import Store, StoreOptions
from onlooker.web.api import Api
from onlooker.web.assets import Assets
from onlooker.web.guard import guard
from support.request_batches import HTTP_DIMS, a_service, identities_of, requests

HOSTILE_PATH = "/<script>alert(1)</script><img src=x onerror=alert(2)>\u202egpj.exe\x1b[31m\x00\x07"
HOSTILE_NAME = "sh<b>op</b>\u202e\x1b]0;owned\x07"
LONG_PATH = b"/" + b"x" * 100_000
BAD_UTF8 = b"/caf\xe9/\xff\xfe\xc0\x80"


class Traffic:
    """Makes batches as the stages leave them and puts them into a store."""

    def __init__(
        self, store_path: Path | str, *, services: Sequence[str] = ("shop", "users", "orders"), series: int = 10_000,
        **options: Any,
    ):  # fmt: skip
        self.values = Values()
        self.identities: Identities = identities_of(*(a_service(i + 1, name) for i, name in enumerate(services)))
        self.rng = np.random.default_rng(1)
        self.aggregator = Aggregator(
            AggregateOptions(limit=series), self.identities, self.values, rng=self.rng, clock_unix_ns=time.time_ns
        )
        self.store = Store(
            StoreOptions(path=str(store_path), **options), self.aggregator.table, self.identities.service
        )

    def batch(self, rows: Sequence[dict[str, Any]], *, now_ns: int | None = None) -> RequestBatch:
        """A batch that ended just now.  Rows may give ``trace`` and ``span`` and ``parent`` (bytes), and ``ago_ns``."""
        dim_names = (*HTTP_DIMS, semconv.SERVICE_PEER_NAME, semconv.DB_SYSTEM_NAME)
        made = requests(self.values, rows, dim_names=dim_names)
        n = len(rows)
        took = made.end_unix_ns - made.start_unix_ns
        ago = np.array([row.get("ago_ns", 0) for row in rows], np.int64)
        made.end_unix_ns = np.full(n, now_ns or time.time_ns(), np.int64) - ago
        made.start_unix_ns = made.end_unix_ns - took
        made.request_end_unix_ns = made.start_unix_ns + took // 10
        made.response_start_unix_ns = made.end_unix_ns - took // 5
        made.trace_id = _ids([row.get("trace") for row in rows], 16, self.rng)
        made.span_id = _ids([row.get("span") for row in rows], 8, self.rng)
        made.parent_span_id = _ids([row.get("parent", bytes(8)) for row in rows], 8, self.rng)
        made.parent_source = np.array([2 if row.get("parent") else 0 for row in rows], np.uint8)
        self.aggregator.observe(made)
        return made

    def put(self, rows: Sequence[dict[str, Any]], **more: Any) -> RequestBatch:
        batch = self.batch(rows, **more)
        self.store.put(batch)
        return batch

    def a_trace(self, number: int, *, failing: bool = False, ago_ns: int = 0) -> list[dict[str, Any]]:
        """shop serves a request and asks users, which asks a database."""
        trace = number.to_bytes(8, "big") + bytes(self.rng.integers(0, 256, 8, np.uint8))
        ids = [bytes(self.rng.integers(1, 256, 8, np.uint8)) for _ in range(4)]
        code = 503 if failing else 200
        took = int(self.rng.lognormal(15.5, 0.6))
        here, there = ("10.0.0.1", 41_000 + number % 1000), ("10.0.0.2", 8080)
        return [
            {"service": 1, "kind": SpanKind.SERVER, "name": "GET /checkout", "route": "/checkout",
             "path": b"/checkout", "code": code, "duration_ns": took, "trace": trace, "span": ids[0],
             "ago_ns": ago_ns},
            {"service": 1, "kind": SpanKind.CLIENT, "name": "GET /users/*", "route": "/users/*",
             "path": b"/users/%d" % number, "code": code, "duration_ns": took * 7 // 10, "trace": trace,
             "span": ids[1], "parent": ids[0], "local": here, "remote": there, "ago_ns": ago_ns + took // 10,
             "dims": {semconv.SERVICE_PEER_NAME: "users"}},
            {"service": 2, "kind": SpanKind.SERVER, "name": "GET /users/*", "route": "/users/*",
             "path": b"/users/%d" % number, "code": code, "duration_ns": took * 6 // 10, "trace": trace,
             "span": ids[2], "parent": ids[1], "local": there, "remote": here, "ago_ns": ago_ns + took // 8,
             "dims": {semconv.SERVICE_PEER_NAME: "shop"}},
            {"service": 2, "kind": SpanKind.CLIENT, "protocol": 3, "name": "SELECT users", "path": None,
             "duration_ns": took * 4 // 10, "trace": trace, "span": ids[3], "parent": ids[2],
             "ago_ns": ago_ns + took // 6,
             "dims": {semconv.DB_SYSTEM_NAME: "postgresql", semconv.SERVER_ADDRESS: "db.internal",
                      semconv.SERVER_PORT: 5432}},
        ]  # fmt: skip

    def hostile(self) -> list[dict[str, Any]]:
        """Rows whose text would like to be something else."""
        path = HOSTILE_PATH.encode()
        return [
            {"service": 3, "name": f"GET {HOSTILE_PATH}", "route": HOSTILE_PATH, "path": path, "code": 500},
            {"service": 3, "name": "GET /*", "path": LONG_PATH, "query": b"q=" + b"y" * 50_000},
            {"service": 3, "name": "GET /*", "path": BAD_UTF8, "code": 404},
            {"service": 3, "name": HOSTILE_NAME, "kind": SpanKind.CLIENT, "path": path,
             "dims": {semconv.SERVICE_PEER_NAME: HOSTILE_NAME, semconv.SERVER_ADDRESS: "\"><svg onload=alert(3)>"}},
        ]  # fmt: skip


def _ids(given: list[bytes | None], width: int, rng: np.random.Generator) -> Any:
    made = rng.integers(1, 256, (len(given), width), np.uint8)
    for i, value in enumerate(given):
        if value is not None:
            made[i] = np.frombuffer(value, np.uint8)
    return made


@dataclass
class CannedFacts:
    """What a running agent would say about itself."""

    store: Store
    unseen_rows: list[dict[str, Any]] = field(default_factory=list)

    def brief(self) -> dict[str, Any]:
        return {"version": "0.1.0", "uptime_s": 4711, "cpu_share": 0.012, "rss_bytes": 58 << 20, "processes": 3,
                "requests": 1234, "lost": sum(row["count"] for row in self.unseen_rows)}  # fmt: skip

    def unseen(self) -> list[dict[str, Any]]:
        return self.unseen_rows

    def close(self) -> None:
        pass

    def counts(self) -> dict[str, int]:
        return {"shop": 1, "users": 2}

    def config(self) -> list[dict[str, Any]]:
        return [{"key": "web.port", "value": 9700, "source": "default"},
                {"key": "open_port", "value": "8080", "source": "--open-port"}]  # fmt: skip

    def processes(self) -> list[dict[str, Any]]:
        return [
            {"pid": 1, "watched": False, "reason": "not selected", "executable": f"/sbin/{HOSTILE_NAME}", "service": "",
             "name_source": "", "language": "", "ports": [], "tls": []},
            {"pid": 2, "watched": True, "reason": "selected by open_port", "executable": "/usr/bin/python3",
             "service": "shop", "name_source": "the executable", "language": "python", "ports": [8080],
             "tls": ["openssl 3.0.19: seen"]},
        ]  # fmt: skip

    def of_service(self, full_name: str) -> dict[str, Any]:
        row = {"pid": 2, "executable": "/usr/bin/python3", "command": HOSTILE_PATH, "language": "python",
               "instance": "host:2", "since_s": int(time.time()) - 100, "cpu_share": 0.2, "rss_bytes": 20 << 20,
               "threads": 4, "cpu_s": 1.5}  # fmt: skip
        return {"running": [row] if full_name == "shop" else [], "ended": 1}

    def agent(self) -> dict[str, Any]:
        return {
            **self.brief(), "pid": 99, "kernel": "6.18", "host": "testhost", "hook": "tp_btf",
            "programs": [{"name": "tp_sock_send", "runs": 10, "missed": 0, "verified": 277_000, "ns_per_run": 480.0,
                          "time_ns": 4_800, "core_share": 0.0001}],
            "measuring": {"on": True, "refused": ""}, "tls": {"probed": 1, "refused": ""},
            "rings": [{"record_bytes": 256, "fill": 0.25}],
            "drain": {"interval_s": 0.5, "rounds": 10, "cpu_s": 0.1},
            "losses": [{"reason": "ring_full", "count": 3, "why": "the ring was full"},
                       {"reason": "framing", "count": 0, "why": "no protocol"}],
            "unseen": self.unseen_rows, "series": {"alive": 4, "limit": 10_000, "overflowed": 0},
            "strings": {"used": 40, "limit": 65_536}, "sampling": {"sampler": "AlwaysOnSampler", "seen": 9, "kept": 9},
            "exporters": [{"name": "traces", "sent": 5, "dropped": {"queue_full": 1}, "queued": 2, "queued_bytes": 99,
                           "failures": 1, "last_error": "connection refused", "last_error_unix_ns": 2,
                           "last_success_unix_ns": 1}],
            "store": self.store.stats(), "notes": ["a key that changes nothing"],
        }  # fmt: skip


@contextlib.contextmanager
def serve(store: Store, *, token: str = "", address: str = "127.0.0.1", facts: Any = None) -> Iterator[str]:
    """The page on a free loopback port; ``address`` is what the guard takes it for."""
    started: threading.Event = threading.Event()
    loop = asyncio.new_event_loop()
    found: dict[str, Any] = {}

    async def main() -> None:
        assets = Assets()
        app = web.Application(
            middlewares=[guard(address=address, token=token, needs_token=lambda request: request.path not in assets)]
        )
        api = Api(store, facts or CannedFacts(store))
        api.add_routes(app)
        assets.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, max_field_size=16_384)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found["port"] = runner.addresses[0][1]
        found["stop"] = asyncio.Event()
        started.set()
        await found["stop"].wait()
        await api.close()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        loop.call_soon_threadsafe(found["stop"].set)
        thread.join(10)
        loop.close()


__all__ = ["BAD_UTF8", "HOSTILE_NAME", "HOSTILE_PATH", "LONG_PATH", "CannedFacts", "Text", "Traffic", "serve"]
