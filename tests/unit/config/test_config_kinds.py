from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.config.kinds import (
    BOOL,
    DURATION,
    NUMBERS,
    PORTS,
    SIZE,
    TEXTS,
    BadValue,
    Choice,
    CidrItem,
    Duration,
    Headers,
    Int,
    Kind,
    Number,
    Switch,
    suggest,
)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (DURATION, "500ms", 0.5),
        (DURATION, "1m30s", 90.0),
        (DURATION, "0", 0.0),
        (DURATION, "1.5h", 5400.0),
        (DURATION, "100us", 0.0001),
        (DURATION, ".5s", 0.5),
        (Duration(bare_ms=True), "2500", 2.5),
        (SIZE, "512MB", 512_000_000),
        (SIZE, "5 kib", 5_120),
        (SIZE, "7b", 7),
        (SIZE, "64MiB", 67_108_864),
        (SIZE, "1k", 1000),
        (SIZE, "42", 42),
        (SIZE, "1.5G", 1_500_000_000),
        (PORTS, "80", ((80, 80),)),
        (PORTS, "443, 80", ((80, 80), (443, 443))),
        (PORTS, "8000-8999", ((8000, 8999),)),
        (PORTS, "1-5,4-9,10", ((1, 10),)),
        (PORTS, "", ()),
        (BOOL, "Yes", True),
        (BOOL, "0", False),
        (Int(-3, 3), "-3", -3),
        (Number(), "1e3", 1000.0),
        (Choice("a", "B"), "b", "B"),
        (TEXTS, "a, b,", ("a", "b")),
        (NUMBERS, "0,.5,1", (0.0, 0.5, 1.0)),
        (Headers(), "a=b,x-y=1%2C2", {"a": "b", "x-y": "1,2"}),
        (Switch(), "true", "on"),
        (CidrItem(), "10.1.2.3/8", ("10.0.0.0/8", "")),
    ],
)
def test_texts(kind: Kind, text: str, value: object) -> None:
    assert kind.from_text(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (DURATION, "5", "say 5s"),
        (DURATION, "5 s", "not a duration"),
        (DURATION, "-1s", "not a duration"),
        (DURATION, "9" * 30 + "h", "not a duration"),
        (DURATION, "999999999999h", "292 years"),
        (Duration(positive=True), "0s", "longer than 0"),
        (SIZE, "-1", "not a size"),
        (SIZE, "1XB", "not a size"),
        (SIZE, "5iB", "not a size"),
        (SIZE, "5\u212a", "not a size"),
        (SIZE, "999999999999999T", "too large"),
        (PORTS, "80-", "not a number or a range"),
        (PORTS, "9-8", "wrong way round"),
        (PORTS, "65536", "at most 65535"),
        (PORTS, "9" * 5000, "not a number"),
        (BOOL, "maybe", "neither true nor false"),
        (BOOL, "", "neither"),
        (Int(1), "0", "at least 1"),
        (Int(), "1.5", "not a whole number"),
        (Int(), "1" * 5000, "not a whole number"),
        (Number(), "nan", "not a number"),
        (Number(), "inf", "not a number"),
        (Number(), "1e999", "out of range"),
        (Choice("grpc", "http/json"), "grcp", "did you mean grpc"),
        (Headers(), "a", "name=value"),
        (Headers(), "a b=c", "name of a header"),
        (Headers(), "a=b%0Ac", "control character"),
        (CidrItem(), "10.0.0.0/99", "not a network"),
        (Switch(), "x", "on, off, auto"),
    ],
)
def test_faults(kind: Kind, text: str, told: str) -> None:
    with pytest.raises(BadValue, match=told) as caught:
        kind.from_text(text)
    assert len(str(caught.value)) < 300


@given(st.integers(0, 10**9))
def test_durations_are_shown_as_they_are_read(milliseconds: int) -> None:
    value = milliseconds / 1000
    assert DURATION.from_text(DURATION.plain(value)) == pytest.approx(value)


@given(st.integers(0, 10**14))
def test_sizes_are_shown_as_they_are_read(value: int) -> None:
    assert SIZE.from_text(str(SIZE.plain(value))) == value


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 300)), max_size=8))
def test_ranges_hold_exactly_the_numbers_that_were_named(parts: list[tuple[int, int]]) -> None:
    named = [(low, min(low + more, 65535)) for low, more in parts]
    ranges = PORTS.from_text(",".join(f"{low}-{high}" for low, high in named))
    numbers = {n for low, high in named for n in range(low, high + 1)}
    assert {n for low, high in ranges for n in range(low, high + 1)} == numbers
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))
    assert PORTS.from_text(PORTS.plain(ranges)) == ranges


@given(st.text(max_size=30))
@pytest.mark.parametrize("kind", [DURATION, SIZE, PORTS, BOOL, Int(), Number(), Headers(), CidrItem(), NUMBERS])
def test_any_text_is_a_value_or_a_bad_value(kind: Kind, text: str) -> None:
    try:
        kind.from_text(text)
    except BadValue as err:
        assert "\n" not in str(err)  # noqa: PT017  # a value is as good


def test_nothing_close_suggests_nothing() -> None:
    assert suggest("zzz", ["grpc"]) == ""
