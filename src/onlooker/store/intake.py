"""The door of the store, on the capture thread: takes what is needed of each batch and leaves at once.

Receives finished batches, hands `Rows` and the series they need to the writer, in order.  Drops a batch when too much
waits (counted), and the details of requests beyond `DETAILED_PER_S` (counted): their numbers still reach the metrics.
Which ones it looks at is a first choice, of the errors, of what is rare and what is slow for its kind, of all else by
chance, always whole traces; `onlooker.store.tail` makes the last one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import (
    I4,
    I8,
    SKIP_METRICS,
    SKIP_TRACES,
    U1,
    U2,
    U8,
    Column,
    RequestBatch,
    Series,
    SeriesTable,
    Service,
    StatusCode,
    Text,
)

DETAILED_PER_S: Final = 1_200
"""Requests a second whose details are looked at for interesting traces: several times what is kept, and half a megabyte
for each second that they wait."""
ODD_SHARE: Final = 0.6
"""So much of it may go to requests that are odd in their batch; the rest is chance."""
RARE_IN_BATCH: Final = 3
SLOW_SHARE: Final = 0.02
"""So much of a batch counts as slow for its kind."""
ROWS_MAX: Final = 60_000
DETAILS_MAX: Final = 3_600
HURRY_ROWS: Final = 5_000
"""So many rows wake the writer before its time: they would only take memory."""


@dataclass(frozen=True, slots=True)
class NewSeries:
    """A slot of the series table has begun a new life."""

    slot: int
    series: Series
    service: Service | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What the metrics need: one row a request.

    Attributes:
        slot: ``(n,)`` int32 series slots.
        duration_ns: ``(n,)`` int64.
        failed, stream: ``(n,)`` bool.
        weight: ``(n,)`` int64, how many requests a row stands for, or empty: one each.
    """

    slot: I4
    duration_ns: I8
    failed: NDArray[np.bool_]
    stream: NDArray[np.bool_]
    weight: I8 = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.slot)


@dataclass(slots=True)
class Rows:
    """What a span needs beside its series, as own contiguous columns; names as in `RequestBatch`."""

    slot: I4
    pid: I4
    tid: I4
    connection: U8
    start_unix_ns: I8
    request_end_unix_ns: I8
    response_start_unix_ns: I8
    end_unix_ns: I8
    request_bytes: I8
    response_bytes: I8
    local_address: U1
    remote_address: U1
    local_port: U2
    remote_port: U2
    trace_id: U1
    span_id: U1
    parent_span_id: U1
    trace_flags: U1
    parent_source: U1
    status: U1
    stream: NDArray[np.bool_]
    varying: dict[str, Column]

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        """The chosen rows; pools of text are shared."""
        return _rows(self, self.slot[rows], rows)

    @property
    def trace_low(self) -> U8:
        """``(n,)`` the random half of the trace ids."""
        return np.ascontiguousarray(self.trace_id[:, 8:]).view(np.uint64)[:, 0]


_PLAIN: Final = tuple(name for name in Rows.__dataclass_fields__ if name not in ("slot", "varying"))

Item = NewSeries | Counts | Rows


def _rows(source: RequestBatch | Rows, slot: I4, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
    columns = {name: np.ascontiguousarray(getattr(source, name)[rows]) for name in _PLAIN}
    varying: dict[str, Column] = {
        key: column.take(rows) if isinstance(column, Text) else column[rows] for key, column in source.varying.items()
    }
    return Rows(slot=slot, varying=varying, **columns)


def _interesting(batch: RequestBatch, slot: I4, wanted: NDArray[np.bool_], room: int) -> NDArray[np.intp]:
    """About ``room`` of the rows wanted, which are more: traces with something odd first, all else by chance.

    By trace id, so that whole traces stay or go, here as well as in the next batch.
    """
    low = np.ascontiguousarray(batch.trace_id[:, 8:]).view(np.uint64)[:, 0]
    chance = low >> np.uint64(11)
    some = np.flatnonzero(wanted)
    kind = slot[some]
    many = np.bincount(kind)
    took = (batch.end_unix_ns - batch.start_unix_ns)[some].astype(np.float64)
    slowness = took / np.maximum((np.bincount(kind, weights=took) / np.maximum(many, 1))[kind], 1.0)
    slow = max(int(len(some) * SLOW_SHARE), 1)
    odd = (batch.status[some] == StatusCode.ERROR) | (many[kind] <= RARE_IN_BATCH)
    odd[np.argpartition(slowness, -slow)[-slow:]] = True
    share = int(room * ODD_SHARE)
    found = int(np.count_nonzero(odd))
    if found > share:
        odd &= chance[some] < np.uint64(share / found * 2.0**53)
    left = room - min(found, share)
    chosen = odd | (chance[some] < np.uint64(left / len(some) * 2.0**53))
    chosen |= np.isin(low[some], low[some[odd]])  # what else belongs to these traces
    rows: NDArray[np.intp] = some[chosen][: room + room // 8]
    return rows


class Intake:
    """The queue between the capture thread, which calls `put`, and the writer, which calls `take`.

    Attributes:
        seen: Requests so far.
        dropped: Requests that reached nothing, because the writer was too far behind.
        undetailed: Requests that were counted but not looked at as spans.
    """

    def __init__(
        self,
        table: SeriesTable,
        service: Callable[[int], Service | None],
        redact: Callable[[dict[str, Column]], None] = lambda varying: None,
    ) -> None:
        """Make an empty one.

        Args:
            table: Of the batches' series.
            service: By id, as it is now.
            redact: Takes secrets out of the varying columns of rows that are looked at, in place.
        """
        self.seen = self.dropped = self.undetailed = 0
        self._table = table
        self._service = service
        self._redact = redact
        self._generation: I8 = np.full(1024, -1, np.int64)
        self._queue: deque[Item] = deque()
        self._rows_waiting = 0
        self._details_waiting = 0
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._last_ns = 0
        self._allowed = 0.0
        self.closed = False

    def put(self, batch: RequestBatch) -> None:
        """Take what is needed of a batch; ``series`` is set.  Never waits."""
        n = len(batch)
        if not n or self.closed:
            return
        self.seen += batch.requests()
        if self._rows_waiting + n > ROWS_MAX:
            self.dropped += batch.requests()
            return
        slot = batch.series
        self._tell_new(slot)
        counted: NDArray[np.intp] | slice = slice(None)
        detailed = np.ones(n, np.bool_)
        if len(batch.skip) == n and batch.skip.any():
            counted = np.flatnonzero((batch.skip & SKIP_METRICS) == 0)
            detailed = (batch.skip & SKIP_TRACES) == 0
        counts = Counts(
            slot[counted],
            np.maximum(batch.end_unix_ns - batch.start_unix_ns, 0)[counted],
            (batch.status == StatusCode.ERROR)[counted],
            batch.stream[counted],
            batch.weight[counted] if len(batch.weight) else batch.weight,
        )
        rows = self._details(batch, slot, detailed)
        with self._lock:
            self._queue.append(counts)
            self._rows_waiting += len(counts)
            if rows is not None:
                self._queue.append(rows)
                self._details_waiting += len(rows)
        if self._rows_waiting > HURRY_ROWS:
            self._hurry.set()

    def _details(self, batch: RequestBatch, slot: I4, wanted: NDArray[np.bool_]) -> Rows | None:
        now_ns = int(batch.end_unix_ns[-1])
        passed_s = min(max((now_ns - self._last_ns) / 1e9, 0.0), 1.0)
        self._last_ns = now_ns
        self._allowed = min(self._allowed + passed_s * DETAILED_PER_S, float(DETAILED_PER_S))
        found = int(np.count_nonzero(wanted))
        room = max(min(int(self._allowed), DETAILS_MAX - self._details_waiting), 0)
        if found > room:
            rows = _interesting(batch, slot, wanted, max(room, DETAILED_PER_S // 60))
            if self._details_waiting > DETAILS_MAX:
                rows = rows[:0]
            self.undetailed += found - len(rows)
        else:
            rows = np.flatnonzero(wanted)
        self._allowed -= len(rows)
        if not len(rows):
            return None
        found_rows = _rows(batch, slot[rows], rows)
        # the batch's text is the records themselves, several times larger than what these rows say
        found_rows.varying = {
            key: column.own() if isinstance(column, Text) else column for key, column in found_rows.varying.items()
        }
        self._redact(found_rows.varying)
        return found_rows

    def _tell_new(self, slot: I4) -> None:
        table = self._table.rows
        if len(table) > len(self._generation):
            more = max(len(table) - len(self._generation), len(self._generation))
            self._generation = np.concatenate([self._generation, np.full(more, -1, np.int64)])
        for found in np.flatnonzero(np.bincount(slot)).tolist():
            series = table[found]
            if series is not None and self._generation[found] != series.generation:
                self._generation[found] = series.generation
                new = NewSeries(found, series, self._service(series.service_id))
                with self._lock:
                    self._queue.append(new)

    def take(self, timeout_s: float) -> list[Item]:
        """Everything that waits, in order, after that time or once there is much."""
        self._hurry.wait(timeout_s)
        self._hurry.clear()
        with self._lock:
            items = list(self._queue)
            self._queue.clear()
            self._rows_waiting = self._details_waiting = 0
        return items

    def tell_again(self) -> None:
        """Describe every series anew: the writer lost what it knew."""
        self._generation.fill(-1)

    def wake(self) -> None:
        """End a wait."""
        self._hurry.set()
