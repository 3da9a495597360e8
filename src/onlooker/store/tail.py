"""Which requests are worth keeping: those of failed, slow and rare kind, all else by chance; always whole traces.

Receives rows in the order they ended, hands on those to write, each with its class.  A row that is not chosen waits for
one more round: its parent ends after it, and may make the trace interesting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I4, I8, U8, StatusCode
from onlooker.store import blocks
from onlooker.store.blocks import BUCKETS, Block
from onlooker.store.intake import Rows

SAMPLE, RARE, SLOW, ERROR = range(4)
"""Classes, by how long they are kept when room gets short."""

BURST_S: Final = 10.0
_NEVER: Final = 127
_RARE_PER_10S: Final = 3
_SLOW_AFTER: Final = 50
"""So many requests of a kind say what is slow for it."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Spans a second that each class may take; what was not used is good for a burst of `BURST_S` seconds."""

    sample: float = 60.0
    rare: float = 60.0
    slow: float = 60.0
    error: float = 120.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows with the numbers of the file that belong to them.

    Attributes:
        taken: ``(n,)`` rows that were chosen before, None if none was.
    """

    rows: Rows
    key: I4
    series: I4
    service: I4
    taken: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.intp]) -> Candidates:
        """The chosen ones."""
        return Candidates(self.rows.take(rows), self.key[rows], self.series[rows], self.service[rows])


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows to write, with the class of each."""

    candidates: Candidates
    cls: NDArray[np.int8]


class Tail:
    """The choice.

    Attributes:
        seen, kept: Rows so far.
    """

    def __init__(self, quota: Quota | None = None) -> None:
        self.seen = self.kept = 0
        self._quota = quota or Quota()
        self._slow_bucket: NDArray[np.int16] = np.full(256, _NEVER, np.int16)
        self._recent: I8 = np.zeros(256, np.int64)
        self._share = 1.0
        self._saved: dict[int, float] = {}
        self._waiting: list[Candidates] = []
        self._known: list[tuple[U8, NDArray[np.int8]]] = []

    @property
    def is_waiting(self) -> bool:
        """Whether there are rows whose fate is open."""
        return bool(self._waiting)

    def learn(self, block: Block) -> None:
        """Take in ten seconds of metrics: what is slow for each kind of request, and which kinds are rare."""
        self._recent //= 2
        if not len(block):
            return
        self._grow(int(block.key.max()))
        np.add.at(self._recent, block.key, block.count)
        pairs = block.bucket < BUCKETS
        entry, bucket, hits = block.entry[pairs], block.bucket[pairs], block.hits[pairs]
        total = np.bincount(entry, weights=hits, minlength=len(block))
        # From the top: the highest bucket that still has a hundredth of the requests at or above it.
        above = np.cumsum(hits[::-1])[::-1]  # pairs are sorted by entry, then bucket
        after = np.concatenate([np.cumsum(np.bincount(entry, weights=hits, minlength=len(block))[::-1])[::-1], [0.0]])
        at_or_above = above - after[entry + 1]
        enough = at_or_above >= np.maximum(total[entry] * 0.01, 1.0)
        p99 = np.zeros(len(block), np.int64)
        np.maximum.at(p99, entry[enough], bucket[enough])
        busy = total >= _SLOW_AFTER
        keys = block.key[busy]
        before = self._slow_bucket[keys]
        # p99 of one stretch jumps about: follow it slowly
        self._slow_bucket[keys] = np.where(before == _NEVER, p99[busy] + 1, (3 * before + p99[busy] + 1 + 2) // 4)

    def _grow(self, key: int) -> None:
        if key >= len(self._recent):
            more = max(key + 1 - len(self._recent), len(self._recent))
            self._recent = np.concatenate([self._recent, np.zeros(more, np.int64)])
            self._slow_bucket = np.concatenate([self._slow_bucket, np.full(more, _NEVER, np.int16)])

    def choose(self, new: list[Candidates], elapsed_s: float) -> list[Chosen]:
        """Decide.

        Args:
            new: Rows that arrived since the last call.
            elapsed_s: Since the last call.
        """
        marks = [self._marks(one.rows, one.key) for one in new]
        self._limit(new, marks, elapsed_s)
        known = self._traces(new, marks)
        chosen: list[Chosen] = []
        left: list[Candidates] = []
        for i, one in enumerate((*self._waiting, *new)):
            fresh = i >= len(self._waiting)
            cls = _class_of(known, one.rows.trace_low)
            if one.taken is not None:
                cls[one.taken] = -1
            take = np.flatnonzero(cls >= 0)
            if take.size == len(one):
                chosen.append(Chosen(one, cls))
            elif take.size:
                chosen.append(Chosen(one.take(take), cls[take]))
            if fresh:
                self.seen += len(one)
                if take.size < len(one):  # not copied: it is one more round
                    left.append(replace(one, taken=cls >= 0) if take.size else one)
            self.kept += int(take.size)
        self._waiting = left
        return chosen

    def _marks(self, rows: Rows, key: I4) -> NDArray[np.int8]:
        self._grow(int(key.max()))
        cls = np.full(len(rows), -1, np.int8)
        cls[(rows.trace_low >> np.uint64(11)) < np.uint64(self._share * 2.0**53)] = SAMPLE
        unusual = np.flatnonzero(self._recent[key] < _RARE_PER_10S * 2)
        if unusual.size:
            cls[unusual] = RARE
            np.add.at(self._recent, key[unusual], 1)
        bucket = blocks.bucket_of(rows.end_unix_ns - rows.start_unix_ns, rows.stream)
        cls[(bucket > self._slow_bucket[key]) & (bucket < BUCKETS)] = SLOW
        cls[rows.status == StatusCode.ERROR] = ERROR
        return cls

    def _limit(self, new: list[Candidates], marks: list[NDArray[np.int8]], elapsed_s: float) -> None:
        """Hold each class to its quota; by trace id, so that traces stay whole."""
        found = np.zeros(4, np.int64)
        for cls in marks:
            found += np.bincount(cls[cls >= 0], minlength=4)
        quota = self._quota
        for kind, per_s in ((RARE, quota.rare), (SLOW, quota.slow), (ERROR, quota.error)):
            allowed = min(self._saved.get(kind, BURST_S * per_s) + per_s * elapsed_s, BURST_S * per_s)
            self._saved[kind] = max(allowed - float(found[kind]), 0.0)
            if found[kind] > allowed:
                bound = np.uint64(allowed / found[kind] * 2.0**53)
                for one, cls in zip(new, marks, strict=True):
                    over = (cls == kind) & ((one.rows.trace_low >> np.uint64(11)) >= bound)
                    cls[over] = -1
        # The share of the sample follows the traffic; it may double or halve in one step.
        total = sum(len(one) for one in new)
        if total:
            wanted = min(quota.sample * max(elapsed_s, 0.1) / total, 1.0)
            self._share = min(max(wanted, self._share / 2, 1e-6), self._share * 2, 1.0)

    def _traces(self, new: list[Candidates], marks: list[NDArray[np.int8]]) -> tuple[U8, NDArray[np.int8]]:
        """The traces to keep, sorted by id, with the highest class that any of their spans had."""
        lows = [one.rows.trace_low[cls >= 0] for one, cls in zip(new, marks, strict=True)]
        classes = [cls[cls >= 0] for cls in marks]
        low = np.concatenate([*lows, np.zeros(0, np.uint64)])
        cls = np.concatenate([*classes, np.zeros(0, np.int8)])
        self._known.append((low, cls))
        del self._known[:-3]
        low = np.concatenate([known[0] for known in self._known])
        cls = np.concatenate([known[1] for known in self._known])
        distinct, inverse = np.unique(low, return_inverse=True)
        best = np.full(len(distinct), -1, np.int8)
        np.maximum.at(best, inverse, cls)
        return distinct, best


def _class_of(known: tuple[U8, NDArray[np.int8]], low: U8) -> NDArray[np.int8]:
    ids, best = known
    if not len(ids):
        return np.full(len(low), -1, np.int8)
    at = np.minimum(np.searchsorted(ids, low), len(ids) - 1)
    return np.where(ids[at] == low, best[at], np.int8(-1)).astype(np.int8)
