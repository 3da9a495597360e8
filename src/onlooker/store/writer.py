"""The thread that writes: metrics in ten-second blocks, chosen spans, roll-up, and the bounds of the file.

Each round is one transaction, about once a second: after a crash at most two seconds are missing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from onlooker.batches import I8
from onlooker.errors import StoreError
from onlooker.store import blocks
from onlooker.store.blocks import EMPTY, Block
from onlooker.store.catalog import Catalog
from onlooker.store.intake import Counts, Intake, Item, NewSeries
from onlooker.store.schema import MEMORY
from onlooker.store.spans import encode_rows
from onlooker.store.tail import ERROR, RARE, SAMPLE, SLOW, Candidates, Chosen, Tail

log: Final = logging.getLogger(__name__)

ROUND_S: Final = 1.0
FINE_S, MINUTE_S, COARSE_S = 10, 60, 600
FINE_KEPT_S: Final = 4_200
MINUTES_KEPT_S: Final = 3 * 3_600
"""Of blocks by minute with all services; those by service are kept as long as anything."""
EVERYTHING: Final = 0
"""In the column ``service`` of a block with all services."""
_RESERVE: Final = 0.08
_RESERVE_BYTES: Final = 8 << 20
"""Share of the allowed bytes, and if that is less so many, that are for the write-ahead log: a third at most."""
_DELETE_ROWS: Final = 500
"""In one transaction: each row has its place in three indexes, and each page that changes is one of the log."""
_VACUUM_PAGES: Final = 300
"""Given back to the system in one transaction: each page that moves is one of the write-ahead log, too."""
_LOG_BYTES: Final = 2 << 20
_ROWS_AT_ONCE: Final = 256
"""Spans that are Python objects at one time: a burst would else raise the process's memory for good."""


class Writer:
    """The only one that writes to a store's file.

    Attributes:
        kept, thinned: Spans written, and deleted again for want of room.
        rounds, failures: Transactions, and those that failed.
        busy_s: CPU time of this thread.
        last_error: Of the last round that failed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        intake: Intake,
        *,
        lock: threading.Lock,
        max_bytes: int,
        max_age_s: float,
        path: str,
        clock: Callable[[], float] = time.time,
        on_broken: Callable[[str], sqlite3.Connection] | None = None,
    ) -> None:
        self.kept = self.thinned = self.rounds = self.failures = 0
        self.busy_s = 0.0
        self.last_error = ""
        self.bytes = 0
        self._db = connection
        self._intake = intake
        self._lock = lock
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._path = path
        self._clock = clock
        self._on_broken = on_broken
        self._catalog = Catalog(connection)
        self._tail = Tail()
        self._open: Block = EMPTY
        self._open_t = 0
        self._candidates: list[Candidates] = []
        self._pending: list[tuple[I8, Counts]] = []
        self._part = self._next_part()
        self._bounds_due = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_round = clock()

    def _next_part(self) -> int:
        """A number for this run: two runs may share ten seconds."""
        row = self._db.execute("SELECT value FROM meta WHERE name='runs'").fetchone()
        number = int(row[0]) + 1 if row else 1
        self._db.execute("INSERT OR REPLACE INTO meta VALUES('runs', ?)", (str(number),))
        return number

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is there, and end."""
        self._intake.closed = True
        self._stop.set()
        self._intake.wake()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def _run(self) -> None:
        while True:
            stopping = self._stop.is_set()
            self.round(0.0 if stopping else ROUND_S)
            self.busy_s = time.thread_time()
            if stopping:
                return

    def round(self, wait_s: float) -> None:
        """Take what came and write it, if a second has passed or a stop was asked for."""
        items = self._intake.take(wait_s)
        now = self._clock()
        if not items and wait_s and self._has_nothing_due(now):
            self.rounds += 1
            return
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._take_in(items, int(now))
                    if now - self._last_round >= 0.9 * ROUND_S or self._stop.is_set() or wait_s == 0.0:
                        self._write(now)
                    self._db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                    raise
            if now >= self._bounds_due:
                self._bounds_due = now + 10.0
                self.keep_bounds(int(now))
            self.rounds += 1
        except sqlite3.DatabaseError as err:
            self._failed(err)
        except Exception as err:  # the edge of the loop: without it one odd batch would end the store
            self.failures += 1
            if str(err) != self.last_error:
                log.exception("the store could not take a batch; it goes on with the next")
            self.last_error = str(err)

    def _has_nothing_due(self, now: float) -> bool:
        """Whether a transaction would change nothing: nobody is traced, and the block of ten seconds is not over."""
        return not (
            self._pending
            or self._candidates
            or self._tail.is_waiting
            or int(now) // FINE_S * FINE_S != self._open_t
            or now >= self._bounds_due
            or self._stop.is_set()
        )

    def _failed(self, err: sqlite3.DatabaseError) -> None:
        self.failures += 1
        told = str(err) == self.last_error
        self.last_error = str(err)
        self._pending.clear()
        self._candidates.clear()
        if isinstance(err, sqlite3.OperationalError):  # locked, full, read-only: may pass
            self._intake.tell_again()
            if not told:
                log.warning("the store %s cannot be written: %s; requests go on being counted elsewhere", self._path,
                            err)  # fmt: skip
            return
        if self._on_broken is not None:
            try:
                with self._lock:
                    self._db = self._on_broken(str(err))
            except Exception:
                log.exception("the store %s is broken and cannot be replaced", self._path)
                return
            self._catalog = Catalog(self._db)
            self._open, self._open_t = EMPTY, 0
            self._part = self._next_part()
            self._tail = Tail()
            self._intake.tell_again()

    def _take_in(self, items: list[Item], now_s: int) -> None:
        catalog = self._catalog
        for item in items:
            if isinstance(item, NewSeries):
                catalog.add(item.slot, item.series, item.service, now_s)
            elif isinstance(item, Counts):
                if len(item):
                    self._pending.append((catalog.key[item.slot], item))
                    catalog.used(np.unique(item.slot).astype(np.int64))
            else:
                # by the time of the choice a slot may belong to another series
                slot = item.slot
                key, series, service = (
                    table[slot].astype(np.int32) for table in (catalog.key, catalog.series, catalog.service)
                )
                self._candidates.append(Candidates(item, key, series, service))

    def _write(self, now: float) -> None:
        elapsed = max(now - self._last_round, 0.05)
        self._last_round = now
        self._write_metrics(int(now) // FINE_S * FINE_S)
        for chosen in self._tail.choose(self._candidates, elapsed):
            for first in range(0, len(chosen.cls), _ROWS_AT_ONCE):
                self._write_spans(chosen, slice(first, first + _ROWS_AT_ONCE))
        self._candidates = []

    def _write_spans(self, chosen: Chosen, part: slice) -> None:
        one = chosen.candidates.take(np.arange(len(chosen.cls))[part])
        rows = encode_rows(one.rows, one.series, one.service, chosen.cls[part].tolist())
        self._db.executemany(
            "INSERT INTO spans(trace, start_us, duration_us, service, series, class, data) VALUES(?,?,?,?,?,?,?)", rows
        )
        self.kept += len(rows)

    def _write_metrics(self, t: int) -> None:
        parts = [
            blocks.from_rows(
                t,
                key,
                blocks.bucket_of(counts.duration_ns, counts.stream),
                counts.duration_ns,
                counts.failed,
                counts.weight if len(counts.weight) else None,
            )
            for key, counts in _joined(self._pending)
        ]
        self._pending = []
        if t != self._open_t:
            self._close_bucket(t)
        if parts:
            self._open = blocks.merge([self._open, *parts])
            self._put_block(FINE_S, EVERYTHING, t, self._part, self._open)

    def _close_bucket(self, t: int) -> None:
        """Ten seconds have passed: learn from them, and fold whole minutes and tens of minutes."""
        self._tail.learn(self._open)
        self._open, self._open_t = EMPTY, t
        self._catalog.write_last(t)
        self._fold(FINE_S, MINUTE_S, t)
        if self._fold(MINUTE_S, COARSE_S, t):
            self._db.execute(
                "DELETE FROM blocks WHERE tier=? AND service=? AND t<?", (FINE_S, EVERYTHING, t - FINE_KEPT_S)
            )
            self._db.execute(
                "DELETE FROM blocks WHERE tier=? AND service=? AND t<?", (MINUTE_S, EVERYTHING, t - MINUTES_KEPT_S)
            )

    def _fold(self, tier: int, into: int, t: int) -> bool:
        """Sum blocks of one tier into those of the next, for every stretch that is over; True if there was one."""
        name = f"folded_{into}"
        row = self._db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        until = t // into * into
        if row is None:
            first = self._db.execute("SELECT min(t) FROM blocks WHERE tier=? AND service=0", (tier,)).fetchone()[0]
            start = until if first is None else first // into * into
        else:
            start = int(row[0])
        if start >= until:
            if row is None or start > until + into:  # the clock was set back
                self._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, str(until)))
            return False
        stretches = self._db.execute(
            "SELECT DISTINCT t / ? * ? FROM blocks WHERE tier=? AND service=0 AND t>=? AND t<?",
            (into, into, tier, start, until),
        ).fetchall()
        for (begin,) in stretches:
            self._fold_one(tier, into, begin)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, str(until)))
        return True

    def _fold_one(self, tier: int, into: int, begin: int) -> None:
        found = [
            decoded
            for (data,) in self._db.execute(
                "SELECT data FROM blocks WHERE tier=? AND service=0 AND t>=? AND t<?", (tier, begin, begin + into)
            ).fetchall()
            if (decoded := self._decode(data)) is not None
        ]
        whole = blocks.merge(found, into)
        if not len(whole):
            return
        self._put_block(into, EVERYTHING, begin, 0, whole)
        if into == COARSE_S:
            self._split(blocks.merge(found, tier), begin)

    def _split(self, minutes: Block, begin: int) -> None:
        """The minutes again, by service: what a long view of one service reads."""
        keys = np.unique(minutes.key)
        pairs = self._db.execute("SELECT id, service FROM keys").fetchall()
        of = np.zeros(int(keys.max()) + 1, np.int64)
        for key, service in pairs:
            if key < len(of):
                of[key] = service
        services = of[minutes.key]
        for service in np.unique(services).tolist():
            if service:
                self._put_block(MINUTE_S, service, begin, 0, minutes.where(services == service))

    def _put_block(self, tier: int, service: int, t: int, part: int, block: Block) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO blocks VALUES(?,?,?,?,?)", (tier, service, t, part, blocks.encode(block))
        )

    def _decode(self, data: bytes) -> Block | None:
        try:
            return blocks.decode(data)
        except StoreError as err:
            self.failures += 1
            self.last_error = str(err)
            return None

    # ---- bounds ----

    def keep_bounds(self, now_s: int) -> None:
        """Delete what is too old, then what is least interesting, until the file fits."""
        oldest = int(now_s - self._max_age_s)
        with self._lock:
            # ids ascend with time, so age needs no index of its own
            for _ in range(20):
                first = self._db.execute(
                    "SELECT max(id) FROM (SELECT id, start_us FROM spans ORDER BY id LIMIT ?) WHERE start_us < ?",
                    (_DELETE_ROWS, oldest * 1_000_000),
                ).fetchone()[0]
                if first is None:
                    break
                self._db.execute("DELETE FROM spans WHERE id <= ?", (first,))
            self._db.execute("DELETE FROM blocks WHERE tier>? AND t<?", (FINE_S, oldest))
            if now_s % 3600 < 10:
                self._forget_unused(oldest)
            for _ in range(80):
                self.bytes = self._used_bytes()
                if self.bytes <= self._max_bytes - self._log_room() or not self._thin():
                    break
                self._empty_log()
            pages = self._db.execute("PRAGMA freelist_count").fetchone()[0]
            for _ in range(min(pages // _VACUUM_PAGES, 5)):
                self._db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
            self._empty_log()

    def _log_room(self) -> int:
        wanted = max(int(self._max_bytes * _RESERVE), _RESERVE_BYTES)
        return 0 if self._path == MEMORY else min(wanted, self._max_bytes // 3)

    def _empty_log(self) -> None:
        """Begin the write-ahead log anew, which does not happen by itself while somebody reads all the time."""
        with contextlib.suppress(OSError):
            if os.path.getsize(f"{self._path}-wal") > _LOG_BYTES:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # busy: the next time

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _thin(self) -> bool:
        """Delete some of the oldest spans of the least interesting class that has more than its share."""
        counts = dict(self._db.execute("SELECT class, count(*) FROM spans GROUP BY class").fetchall())
        total = sum(counts.values())
        for cls, share in ((SAMPLE, 0.2), (RARE, 0.2), (SLOW, 0.3), (ERROR, 0.0), (SAMPLE, 0.0)):
            if counts.get(cls, 0) > max(share * total, 0):
                # whole traces: all spans of a trace have its class
                cursor = self._db.execute(
                    "DELETE FROM spans WHERE id IN (SELECT id FROM spans WHERE class=? ORDER BY id LIMIT ?)",
                    (cls, _DELETE_ROWS),
                )
                self.thinned += max(cursor.rowcount, 0)
                return True
        cursor = self._db.execute(
            "DELETE FROM blocks WHERE (tier, service, t, part) IN "
            "(SELECT tier, service, t, part FROM blocks WHERE tier>? ORDER BY t LIMIT 500)", (FINE_S,)
        )  # fmt: skip
        return cursor.rowcount > 0

    def _forget_unused(self, oldest: int) -> None:
        self._db.execute("DELETE FROM series WHERE last_s<? AND id NOT IN (SELECT series FROM spans)", (oldest,))
        for table in ("keys", "services", "instances"):
            self._db.execute(f"DELETE FROM {table} WHERE last_s<?", (oldest - COARSE_S,))
        self._catalog.forget()


def _joined(pending: list[tuple[I8, Counts]]) -> list[tuple[I8, Counts]]:
    """All rows as one, so that they are sorted once."""
    if len(pending) < 2:
        return pending
    columns = {
        name: np.concatenate([getattr(counts, name) for _, counts in pending])
        for name in Counts.__dataclass_fields__
        if name != "weight"
    }
    if any(len(counts.weight) for _, counts in pending):
        columns["weight"] = np.concatenate(
            [counts.weight if len(counts.weight) else np.ones(len(counts), np.int64) for _, counts in pending]
        )
    return [(np.concatenate([key for key, _ in pending]), Counts(**columns))]
