from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.aggregate.windows import BUCKETS, SLOT_NS, SLOTS, Windows, quantiles_s

S = 1_000_000_000


def add(windows, row, durations_ns, now_ns, *, stream=False, failed=False):
    n = len(durations_ns)
    windows.add(
        np.full(n, row, np.int32), np.array(durations_ns, np.int64), np.full(n, stream), np.full(n, failed), now_ns
    )


@given(st.lists(st.integers(20_000, 60 * S), min_size=1, max_size=300))
def test_quantiles_are_within_five_percent(durations):
    windows = Windows()
    row = windows.row()
    add(windows, row, durations, 100 * S)
    (line,) = windows.read([[row]], 10, 101 * S)
    assert line.quantiles_s is not None
    ordered = sorted(durations)
    for q, found in zip((0.5, 0.95, 0.99), line.quantiles_s, strict=True):
        true = ordered[int(np.ceil(q * len(ordered))) - 1] / S
        assert found == pytest.approx(true, rel=0.05)


def test_rates_errors_and_what_is_too_old():
    windows = Windows()
    a, b = windows.row(), windows.row()
    add(windows, a, [S] * 30, 100 * S)
    add(windows, a, [S] * 10, 107 * S, failed=True)
    add(windows, b, [S] * 5, 108 * S)
    line, other, both = windows.read([[a], [b], [a, b]], 10, 110 * S)
    assert (line.requests, other.requests, both.requests) == (40, 5, 45)
    assert line.rate == pytest.approx(4.0)
    assert line.errors == 0.25
    (line,) = windows.read([[a]], 10, 118 * S)
    assert line.requests == 10
    (line,) = windows.read([[a]], 60, 118 * S)
    assert line.requests == 40
    (line,) = windows.read([[a]], 60, 300 * S)
    assert line.requests == 0
    assert line.quantiles_s is None


def test_a_slot_is_used_again_a_minute_later():
    windows = Windows()
    row = windows.row()
    add(windows, row, [S], 100 * S)
    add(windows, row, [S], 100 * S + SLOTS * SLOT_NS)
    (line,) = windows.read([[row]], 10, 100 * S + SLOTS * SLOT_NS)
    assert line.requests == 1


def test_streams_count_without_a_latency():
    windows = Windows()
    row = windows.row()
    add(windows, row, [50 * S], 100 * S, stream=True)
    (line,) = windows.read([[row]], 10, 100 * S)
    assert (line.requests, line.quantiles_s) == (1, None)


def test_extremes_stay_in_the_first_and_last_bucket():
    windows = Windows()
    row = windows.row()
    add(windows, row, [0, 1, 10**18], 100 * S)
    (line,) = windows.read([[row]], 10, 100 * S)
    assert line.requests == 3
    assert line.quantiles_s is not None


def test_rows_run_out_and_come_back_empty():
    windows = Windows(capacity=40)
    rows = [windows.row() for _ in range(41)]
    assert rows[-1] == -1
    assert sorted(rows[:-1]) == list(range(40))
    add(windows, 7, [S], 100 * S)
    windows.release(7)
    assert windows.row() == 7
    assert windows.read([[7]], 10, 100 * S)[0].requests == 0


def test_no_values_have_no_quantiles():
    assert quantiles_s(np.zeros(BUCKETS, np.int64)) is None
