"""A store with a day of many services, made without waiting a day.

By hand, in ``tests/``: ``python -m support.store_day FILE [SERVICES]`` fills FILE and prints what each view's question
takes.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from onlooker import semconv
from onlooker.batches import Series, SeriesTable, Service, SpanKind, StatusCode
from onlooker.store import SpanFilter, Store, StoreOptions
from onlooker.store import blocks as b
from onlooker.store.writer import COARSE_S, EVERYTHING, FINE_S, MINUTE_S
from onlooker.web import views
from support.request_batches import a_service

OPERATIONS = 5


def catalog(store: Store, services: int, now_s: int) -> None:
    """Services ``svc-0`` and on; each serves four operations and calls the next one."""
    db = store.writer._db
    db.execute("BEGIN")
    for number in range(services):
        service = a_service(number + 1, f"svc-{number}")
        for i in range(OPERATIONS):
            series = _series(number, i, services, service)
            store.writer._catalog.add(series.id, series, service, now_s)
    db.execute("UPDATE services SET first_s=first_s-86400")
    db.execute("COMMIT")


def _series(number: int, i: int, services: int, service: Service) -> Series:
    failed = i == 3
    attributes: dict[str, Any] = {
        semconv.HTTP_REQUEST_METHOD: "GET", semconv.HTTP_ROUTE: f"/r{i}",
        semconv.HTTP_RESPONSE_STATUS_CODE: 500 if failed else 200,
    }  # fmt: skip
    kind = SpanKind.SERVER
    if i == 4:
        kind = SpanKind.CLIENT
        attributes[semconv.SERVICE_PEER_NAME] = f"svc-{(number + 1) % services}"
    status = StatusCode.ERROR if failed else StatusCode.UNSET
    return Series(number * OPERATIONS + i, 0, service.id, 1, kind, f"GET /r{i}", status, attributes)


def a_block(rng: np.random.Generator, times: Any, keys: Any, per_step: int) -> b.Block:
    """Random metrics: every key at every time, with about ``per_step`` requests in six neighbouring buckets."""
    n = len(times) * len(keys)
    t = np.repeat(np.asarray(times, np.int64), len(keys))
    key = np.tile(np.asarray(keys, np.int64), len(times))
    entry = np.repeat(np.arange(n), 6)
    bucket = (np.repeat(30 + key % 20, 6) + np.tile(np.arange(6), n)).astype(np.int64)
    hits = rng.integers(1, max(per_step // 3, 2), 6 * n).astype(np.int64)
    count = hits.reshape(n, 6).sum(axis=1)
    errors = np.where(key % OPERATIONS == 4, count, 0)  # numbers of keys begin with 1
    return b.Block(t, key, count, errors, count * 4000, entry, bucket, hits)


def fill(store: Store, services: int, now_s: int, *, spans: int = 0) -> None:
    """A day up to ``now_s``: minutes by service, ten minutes, and the last hours finer, as the writer leaves them."""
    rng = np.random.default_rng(5)
    catalog(store, services, now_s)
    writer = store.writer
    keys = np.arange(1, services * OPERATIONS + 1)
    last = now_s // COARSE_S * COARSE_S
    for begin in range(last - 86_400, last, COARSE_S):
        minutes = a_block(rng, range(begin, begin + COARSE_S, MINUTE_S), keys, 12)
        writer._db.execute("BEGIN")
        writer._put_block(COARSE_S, EVERYTHING, begin, 0, b.merge([minutes], COARSE_S))
        writer._split(minutes, begin)
        writer._db.execute("COMMIT")
    writer._db.execute("BEGIN")
    for t in range(last - 3 * 3600, now_s // MINUTE_S * MINUTE_S, MINUTE_S):
        writer._put_block(MINUTE_S, EVERYTHING, t, 0, a_block(rng, [t], keys, 12))
    for t in range(now_s // FINE_S * FINE_S - 3600, now_s // FINE_S * FINE_S + 1, FINE_S):
        writer._put_block(FINE_S, EVERYTHING, t, 1, a_block(rng, [t], keys, 3))
    for name, width in (("folded_60", MINUTE_S), ("folded_600", COARSE_S)):
        writer._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, str(now_s // width * width)))
    writer._db.execute("COMMIT")
    if spans:
        _spans(store, services, now_s, spans, rng)


def _spans(store: Store, services: int, now_s: int, count: int, rng: np.random.Generator) -> None:
    from onlooker.store.spans import Blob, _encoder

    blob = Blob(b"12345678", b"", 4_000_000, 1, 3900, 0, 100, b"\x7f\0\0\1\0\x50", b"\x7f\0\0\1\x90\0", 1, 1, 1, 1, 0,
                False, {semconv.URL_PATH: "/r1/something/4711"})  # fmt: skip
    data = _encoder.encode(blob)
    db = store.writer._db
    for begin in range(0, count, 50_000):
        n = min(50_000, count - begin)
        trace = rng.integers(0, 256, (n, 16), np.uint8)
        start = ((now_s - 86_400 + (begin + np.arange(n)) * 86_400 / count) * 1e6).astype(np.int64)
        took = rng.lognormal(8, 1.5, n).astype(np.int64)
        service = rng.integers(0, services, n)
        series = service * OPERATIONS + rng.choice(OPERATIONS, n, p=(0.3, 0.3, 0.19, 0.01, 0.2)) + 1
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO spans(trace, start_us, duration_us, service, series, class, data) VALUES(?,?,?,?,?,0,?)",
            [
                (trace[i].tobytes(), int(start[i]), int(took[i]), int(service[i]) + 1, int(series[i]), data)
                for i in range(n)
            ],
        )
        db.execute("COMMIT")


def main(path: str, services: int = 200) -> None:
    now_s = int(time.time())
    store = Store(StoreOptions(path=path), SeriesTable(), {}.get)
    if not store.writer._db.execute("SELECT 1 FROM keys").fetchone():
        fill(store, services, now_s, spans=1_500_000)
    else:
        now_s = int(store.writer._db.execute("SELECT max(t) FROM blocks WHERE tier=10").fetchone()[0])

    def timed(name: str, question: Any) -> None:
        times = []
        for _ in range(3):
            with store.reader() as reader:
                began = time.thread_time()
                question(reader)
                times.append((time.thread_time() - began) * 1e3)
        print(f"{name:<44} {times[0]:7.1f} ms first, {min(times):7.1f} ms best (CPU)")

    for seconds in views.STEPS:
        timed(f"overview {seconds}", lambda reader, seconds=seconds: views.overview(reader, seconds, now_s))
        timed(f"map {seconds}", lambda reader, seconds=seconds: views.service_map(reader, seconds, now_s))
        timed(f"service {seconds}", lambda reader, seconds=seconds: views.service(reader, 7, seconds, now_s))
    for name, want in (
        ("newest", SpanFilter()), ("of a service", SpanFilter(service=7)), ("errors", SpanFilter(status="error")),
        ("errors of a service", SpanFilter(service=7, status="error")), ("slow", SpanFilter(min_us=2_000_000)),
        ("slow ones of a service", SpanFilter(service=7, min_us=1_000_000)),
        ("an operation", SpanFilter(operation="GET /r1", service=3)), ("text", SpanFilter(text="not there")),
        ("nothing", SpanFilter(status="418")), ("long ago", SpanFilter(to_us=(now_s - 80_000) * 1_000_000)),
    ):  # fmt: skip
        timed(f"search: {name}", lambda reader, want=want: reader.search(want))
    with store.reader() as reader:
        print("spans", reader.span_count())
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
