"""Samplers: the table of the specification, and agreement between agents."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.batches import SKIP_METRICS, SKIP_TRACES
from onlooker.sample import SAMPLERS, Samplers, make_sampler
from support.span_batches import a_batch, a_service

NONE, HEADER, THREAD, PEER, AMBIGUOUS = range(5)


def trace_id(low: int) -> bytes:
    return b"\x11" * 8 + low.to_bytes(8, "big")


def kept(name: str, argument: str = "", **columns: object) -> list[bool]:
    n = max(len(v) for v in columns.values() if isinstance(v, list))
    return make_sampler(name, argument).keep(a_batch(n, **columns)).tolist()  # type: ignore[arg-type]  # columns


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # root, header sampled, header not sampled, ambiguous, thread sampled, thread not, peer sampled
        ("always_on", [1, 1, 1, 1, 1, 1, 1]),
        ("always_off", [0, 0, 0, 0, 0, 0, 0]),
        ("parentbased_always_on", [1, 1, 0, 1, 1, 0, 1]),
        ("parentbased_always_off", [0, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_who_decides(name: str, expected: list[int]) -> None:
    found = kept(
        name,
        parent_source=[NONE, HEADER, HEADER, AMBIGUOUS, THREAD, THREAD, PEER],
        trace_flags=[1, 1, 0, 1, 1, 0, 1],
    )
    assert found == [bool(x) for x in expected]


def test_the_flags_of_a_root_say_nothing() -> None:
    assert kept("parentbased_always_on", parent_source=[NONE, NONE], trace_flags=[0, 1]) == [True, True]


def test_other_bits_of_the_flags_say_nothing() -> None:
    assert kept("parentbased_always_on", parent_source=[HEADER, HEADER], trace_flags=[0xFE, 0xFF]) == [False, True]


def test_ratio_at_its_borders() -> None:
    ids = [trace_id(0), trace_id(2**63 - 1), trace_id(2**63), trace_id(2**64 - 1)]
    assert kept("traceidratio", "0", trace_id=ids) == [False] * 4
    assert kept("traceidratio", "0.5", trace_id=ids) == [True, True, False, False]
    assert kept("traceidratio", "1", trace_id=ids) == [True] * 4


def test_ratio_counts_only_the_lower_half_of_the_id() -> None:
    ids = [b"\x00" * 8 + b"\x10" * 8, b"\xff" * 8 + b"\x10" * 8]
    assert kept("traceidratio", "0.1", trace_id=ids) == [True, True]


@given(st.floats(0, 1), st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=20))
def test_ratio_is_that_of_the_go_sdk(ratio: float, ids: list[bytes]) -> None:
    expected = [int.from_bytes(i[8:], "big") >> 1 < int(ratio * 2**63) for i in ids]
    assert kept("traceidratio", repr(ratio), trace_id=ids) == expected


@given(st.floats(0, 1), st.floats(0, 1), st.binary(min_size=16, max_size=16))
def test_a_higher_ratio_keeps_all_that_a_lower_one_keeps(a: float, b: float, some: bytes) -> None:
    low, high = sorted((a, b))
    if kept("traceidratio", repr(low), trace_id=[some]) == [True]:
        assert kept("traceidratio", repr(high), trace_id=[some]) == [True]


def test_ratio_keeps_about_its_share() -> None:
    rng = np.random.default_rng(7)
    batch = a_batch(20_000, trace_id=rng.integers(0, 256, (20_000, 16), np.uint8))
    share = make_sampler("traceidratio", "0.25").keep(batch).mean()
    assert 0.23 < share < 0.27


@given(st.binary(min_size=16, max_size=16), st.floats(0, 1))
def test_root_and_children_on_one_host_agree(some: bytes, ratio: float) -> None:
    found = kept("parentbased_traceidratio", repr(ratio), trace_id=[some] * 3, parent_source=[NONE, THREAD, PEER])
    assert len(set(found)) == 1


def test_the_default_is_parent_based_always_on() -> None:
    assert make_sampler().description == "ParentBased{root:AlwaysOnSampler}"


@pytest.mark.parametrize("argument", ["2", "-0.1", "nan", "half", "1e400"])
@pytest.mark.parametrize("name", ["traceidratio", "parentbased_traceidratio"])
def test_a_bad_ratio_falls_back_with_a_warning(name: str, argument: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sampler = make_sampler(name, argument)
    assert sampler.description == "ParentBased{root:AlwaysOnSampler}"
    assert argument in caplog.text


def test_a_missing_ratio_is_one() -> None:
    assert make_sampler("traceidratio").description == "TraceIdRatioBased{1}"


def test_an_unknown_name_falls_back_and_lists_the_known_ones(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert make_sampler("sometimes").description == "ParentBased{root:AlwaysOnSampler}"
    assert all(name in caplog.text for name in SAMPLERS)


def test_a_service_overrides_the_sampler() -> None:
    services = {
        1: a_service(1),
        2: a_service(2, sampler=("always_off", "")),
        3: a_service(3, sampler=("traceidratio", "0.5")),
    }
    samplers = Samplers(make_sampler("always_on"))
    batch = a_batch(
        5,
        service=[1, 2, 3, 3, -1],
        trace_id=[trace_id(0), trace_id(0), trace_id(0), trace_id(2**64 - 1), trace_id(2**64 - 1)],
    )
    assert samplers.keep(batch, services).tolist() == [True, False, True, False, True]
    assert (samplers.seen, samplers.kept) == (5, 3)


def test_an_override_that_came_later_counts() -> None:
    samplers = Samplers(make_sampler("always_on"))
    assert samplers.keep(a_batch(1), {1: a_service(1)}).tolist() == [True]
    assert samplers.keep(a_batch(1), {1: a_service(1, sampler=("always_off", ""))}).tolist() == [False]


def test_a_bad_override_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    samplers = Samplers(make_sampler("always_off"))
    for _ in range(3):
        samplers.keep(a_batch(1), {1: a_service(1, sampler=("traceidratio", "x"))})
    assert len(caplog.records) == 1


def test_ignored_routes_are_never_kept() -> None:
    batch = a_batch(4, skip=[0, SKIP_METRICS, SKIP_TRACES, SKIP_METRICS | SKIP_TRACES])
    assert Samplers(make_sampler("always_on")).keep(batch, {}).tolist() == [True, True, False, False]


def test_an_empty_batch() -> None:
    assert Samplers(make_sampler("parentbased_traceidratio", "0.5")).keep(a_batch(0), {}).tolist() == []
