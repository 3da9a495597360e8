"""The store as one object: opened, fed, asked, closed."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from onlooker.batches import Column, RequestBatch, SeriesTable, Service
from onlooker.errors import StoreError
from onlooker.store.intake import Intake
from onlooker.store.reader import Reader
from onlooker.store.schema import MEMORY, FileLock, connect, open_file, set_aside
from onlooker.store.writer import Writer

log: Final = logging.getLogger(__name__)

MEMORY_BYTES: Final = 8 << 20
"""Bound of a store in memory: it counts towards the agent's own."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The section ``store``.

    Attributes:
        path: The file; ":memory:" for none.
        max_bytes: Largest size on disk.
        max_age_s: How long anything is kept.
    """

    path: str = MEMORY
    max_bytes: int = 512_000_000
    max_age_s: float = 86_400.0


class Store:
    """Spans and metrics of the last hours.

    `put` is for the capture thread, `reader` for one other thread at a time.

    Attributes:
        path: Where it is kept, ":memory:" if nowhere.
    """

    def __init__(
        self,
        options: StoreOptions,
        table: SeriesTable,
        service: Callable[[int], Service | None],
        *,
        clock: Callable[[], float] | None = None,
        redact: Callable[[dict[str, Column]], None] = lambda varying: None,
    ) -> None:
        """Open it.  What cannot be had on disk is kept in memory, with a warning.  ``redact`` is for `Intake`."""
        self.path = options.path
        self._file_lock: FileLock | None = None
        try:
            self._file_lock = FileLock(self.path)
            connection = open_file(self.path)
        except (StoreError, OSError) as err:
            self._release()
            log.warning("%s; traces and metrics are kept in memory only, and are gone when onlooker ends", err)
            self.path = MEMORY
            connection = open_file(MEMORY)
        in_memory = self.path == MEMORY
        self._writing = connection
        self._lock = threading.Lock()
        self._reading: sqlite3.Connection | None = None
        self._closed = False
        self.intake = Intake(table, service, redact)
        self.max_bytes = min(options.max_bytes, MEMORY_BYTES) if in_memory else options.max_bytes
        clocks: dict[str, Any] = {"clock": clock} if clock else {}
        self.writer = Writer(
            connection, self.intake, lock=self._lock, max_bytes=self.max_bytes, max_age_s=options.max_age_s,
            path=self.path, on_broken=self._replace, **clocks,
        )  # fmt: skip
        self.put: Callable[[RequestBatch], None] = self.intake.put

    def start(self) -> None:
        """Begin to write."""
        self.writer.start()

    def close(self) -> None:
        """Write what is there and close the file."""
        self.writer.stop()
        with self._lock:
            self._closed = True
            if self._reading is not None:
                self._reading.close()
                self._reading = None
            with contextlib.suppress(sqlite3.Error):
                self._writing.close()
        self._release()

    def _release(self) -> None:
        if self._file_lock is not None:
            self._file_lock.release()
            self._file_lock = None

    def _replace(self, why: str) -> sqlite3.Connection:
        with contextlib.suppress(sqlite3.Error):
            self._writing.close()
        if self._reading is not None:
            self._reading.close()
            self._reading = None
        if self.path != MEMORY:
            set_aside(self.path, why)
        self._writing = open_file(self.path)
        return self._writing

    @contextlib.contextmanager
    def reader(self) -> Iterator[Reader]:
        """Ask questions; from one thread at a time.

        Raises:
            StoreError: it cannot be read.
        """
        if self.path == MEMORY:
            with self._lock:
                if self._closed:
                    raise StoreError("the store is closed")
                yield Reader(self._writing)
            return
        if self._closed:
            raise StoreError("the store is closed")
        try:
            if self._reading is None:
                self._reading = connect(self.path, cache_kb=1024, read_only=True)
            connection = self._reading
            connection.execute("BEGIN")
            try:
                yield Reader(connection)
            finally:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
        except sqlite3.Error as err:
            self._reading = None
            raise StoreError(f"the store {self.path} cannot be read: {err}") from err

    def _file_bytes(self) -> int:
        """What it takes on disk, the log beside it included; in memory: what its tables take."""
        if self.path == MEMORY:
            return self.writer.bytes
        total = 0
        for side in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.stat(self.path + side).st_size
        return total

    def stats(self) -> dict[str, Any]:
        """What became of everything that was put."""
        writer, intake = self.writer, self.intake
        return {
            "path": self.path,
            "bytes": writer.bytes,
            "file_bytes": self._file_bytes(),
            "max_bytes": self.max_bytes,
            "requests": intake.seen,
            "dropped": intake.dropped,
            "undetailed": intake.undetailed,
            "spans_kept": writer.kept,
            "spans_thinned": writer.thinned,
            "rounds": writer.rounds,
            "failures": writer.failures,
            "last_error": writer.last_error,
            "cpu_s": round(writer.busy_s, 3),
        }
