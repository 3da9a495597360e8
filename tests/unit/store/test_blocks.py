"""Blocks of metrics: what goes in comes out, sums stay sums, quantiles stay near."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.errors import StoreError
from onlooker.store import blocks


def block_of(rows: list[tuple[int, int, int, bool]]) -> blocks.Block:
    """Rows of (t, key, duration in ns, failed)."""
    parts = []
    for t in sorted({row[0] for row in rows}):
        some = [row for row in rows if row[0] == t]
        duration = np.array([row[2] for row in some], np.int64)
        bucket = blocks.bucket_of(duration, np.zeros(len(some), np.bool_))
        failed = np.array([row[3] for row in some], np.bool_)
        parts.append(blocks.from_rows(t, np.array([row[1] for row in some], np.int64), bucket, duration, failed))
    return blocks.merge(parts)


ROWS = st.lists(
    st.tuples(
        st.sampled_from([100, 110, 120]), st.integers(1, 40), st.integers(0, 200_000_000_000), st.booleans()
    ),
    max_size=60,
)  # fmt: skip


@given(ROWS)
def test_a_block_survives_its_blob(rows: list[tuple[int, int, int, bool]]) -> None:
    block = block_of(rows)
    again = blocks.decode(blocks.encode(block))
    for name in ("t", "key", "count", "errors", "sum_us", "entry", "bucket", "hits"):
        assert getattr(again, name).tolist() == getattr(block, name).tolist(), name


@given(ROWS, ROWS, st.sampled_from([1, 10, 60]))
def test_merging_loses_no_request(
    one: list[tuple[int, int, int, bool]], other: list[tuple[int, int, int, bool]], step: int
) -> None:
    merged = blocks.merge([block_of(one), block_of(other)], step)
    rows = one + other
    assert merged.count.sum() == len(rows) == merged.hits.sum()
    assert merged.errors.sum() == sum(row[3] for row in rows)
    expected = {(row[0] - row[0] % step, row[1]) for row in rows}
    assert sorted(zip(merged.t.tolist(), merged.key.tolist(), strict=True)) == sorted(expected)
    for key in {row[1] for row in rows}:
        assert merged.count[merged.key == key].sum() == sum(row[1] == key for row in rows)


@given(ROWS)
def test_joining_gives_the_same_sums_as_merging(rows: list[tuple[int, int, int, bool]]) -> None:
    block = block_of(rows)
    half = block.where(block.key % 2 == 0)
    rest = block.where(block.key % 2 == 1)
    joined = blocks.joined([half, rest], 10)
    group = joined.key
    assert np.array_equal(
        blocks.histograms(joined, group, 41), blocks.histograms(block, block.key, 41)
    )  # fmt: skip


@given(st.lists(st.integers(20_000, 60_000_000_000), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99]))
def test_quantiles_are_within_a_bucket(durations: list[int], q: float) -> None:
    block = block_of([(100, 1, duration, False) for duration in durations])
    found = blocks.quantiles_ms(blocks.histograms(block, np.zeros(len(block), np.int64), 1), (q,))[0, 0]
    rank = max(int(np.ceil(q * len(durations))), 1)
    true = sorted(durations)[rank - 1] / 1e6
    assert true / 1.21 <= found <= true * 1.21


@given(ROWS, st.data())
def test_a_row_of_some_weight_counts_as_that_many(rows: list[tuple[int, int, int, bool]], data: st.DataObject) -> None:
    weight = np.array([data.draw(st.integers(1, 6)) for _ in rows], np.int64)
    key, duration = (np.array([row[at] for row in rows], np.int64) for at in (1, 2))
    failed = np.array([row[3] for row in rows], np.bool_)
    bucket = blocks.bucket_of(duration, np.zeros(len(rows), np.bool_))
    one = blocks.from_rows(0, key, bucket, duration, failed, weight)
    many = blocks.from_rows(0, *(np.repeat(column, weight) for column in (key, bucket, duration, failed)))
    for name in ("key", "count", "errors", "entry", "bucket", "hits"):
        assert getattr(one, name).tolist() == getattr(many, name).tolist()
    assert np.abs(one.sum_us - many.sum_us).max(initial=0) <= 1  # of microseconds, by the order of the sums


def test_streams_have_no_latency() -> None:
    duration = np.array([1_000_000, 3_600_000_000_000], np.int64)
    bucket = blocks.bucket_of(duration, np.array([False, True]))
    block = blocks.from_rows(0, np.array([1, 1], np.int64), bucket, duration, np.zeros(2, np.bool_))
    assert block.count.tolist() == [2]
    assert blocks.histograms(block, np.zeros(1, np.int64), 1).sum() == 1


@pytest.mark.parametrize("blob", [b"", b"olb1", b"nope" + bytes(20), b"olb1" + b"\xff" * 40])
def test_a_blob_that_is_none_is_refused(blob: bytes) -> None:
    with pytest.raises(StoreError):
        blocks.decode(blob)


@given(st.data())
def test_a_damaged_blob_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    blob = bytearray(blocks.encode(block_of([(100, key, 5_000_000, False) for key in range(1, 9)])))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    try:
        found = blocks.decode(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    except StoreError:
        return
    assert len(found.entry) == len(found.bucket) == len(found.hits)
