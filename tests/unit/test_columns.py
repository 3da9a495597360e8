from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.batches import Text
from onlooker.columns import AddressHasher, HashCache, TextHasher


@pytest.fixture
def hasher() -> TextHasher:
    return TextHasher(np.random.default_rng(7))


@given(st.lists(st.one_of(st.none(), st.binary(max_size=400)), min_size=1, max_size=20))
def test_equal_rows_have_equal_hashes_and_others_do_not(values):
    hashes = TextHasher(np.random.default_rng(7))(Text.of(values))
    # Absent and empty differ too, and so do values that only differ in trailing zero bytes.
    assert len(set(hashes.tolist())) == len(set(values))
    for value, found in zip(values, hashes, strict=True):
        assert found == hashes[values.index(value)]


@given(st.binary(min_size=1, max_size=200), st.integers(0, 64), st.integers(0, 64))
def test_bytes_around_a_row_do_not_count(value, before, after):
    hasher = TextHasher(np.random.default_rng(7))
    pool = np.frombuffer(b"\xaa" * before + value + b"\xbb" * after, np.uint8)
    there = Text(pool, np.array([before], np.int64), np.array([len(value)], np.int32))
    assert hasher(there)[0] == hasher(Text.of([value]))[0]


def test_long_values_differ_in_their_last_hashed_byte(hasher):
    a = b"x" * 4095
    assert len(set(hasher(Text.of([a + b"1", a + b"2", a])).tolist())) == 3


def test_a_differing_high_bit_in_two_words_does_not_collide(hasher):
    a = bytearray(b"/" + b"a" * 31)
    b = bytearray(a)
    b[7] ^= 0x80
    b[15] ^= 0x80
    assert len(set(hasher(Text.of([bytes(a), bytes(b)])).tolist())) == 2


def test_hundred_thousand_paths_have_as_many_hashes(hasher):
    paths: list[bytes | None] = [b"/users/%d/orders" % i for i in range(100_000)]
    assert len(np.unique(hasher(Text.of(paths)))) == 100_000


def test_address_hash_tells_address_and_port_apart():
    hasher = AddressHasher(np.random.default_rng(7))
    addresses = np.array([[0] * 15 + [1], [0] * 15 + [1], [0] * 15 + [2], [1] + [0] * 15], np.uint8)
    hashes = hasher(addresses, np.array([80, 81, 80, 80], np.uint16))
    assert len(set(hashes.tolist())) == 4
    assert hasher(addresses[:1], np.array([80], np.uint16))[0] == hashes[0]


def test_cache_gives_back_what_was_put_in_and_misses_the_rest():
    cache = HashCache(64)
    keys = np.random.default_rng(1).integers(1, 1 << 63, 10).astype(np.uint64)
    assert cache.lookup(keys).tolist() == [-1] * 10
    cache.insert(keys[:5], np.arange(5, dtype=np.int32))
    found = cache.lookup(keys)
    assert set(found[5:].tolist()) == {-1}
    assert {v for v in found[:5].tolist() if v >= 0} <= set(range(5))
    assert all(v in (-1, i) for i, v in enumerate(found[:5].tolist()))
    cache.insert(keys[4:5], np.array([40], np.int32))
    assert cache.lookup(keys[4:5]).tolist() == [40]
    cache.clear()
    assert cache.lookup(keys).tolist() == [-1] * 10


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 30)), max_size=300))
def test_cache_never_answers_with_somebody_elses_value(pairs):
    cache = HashCache(32)
    truth: dict[int, int] = {}
    for key, value in pairs:
        cache.insert(np.array([key], np.uint64), np.array([value], np.int32))
        truth[key] = value
    for key, value in truth.items():
        assert cache.lookup(np.array([key], np.uint64))[0] in (-1, value)
    if pairs:
        assert cache.lookup(np.array([pairs[-1][0]], np.uint64))[0] == pairs[-1][1]


def test_a_column_of_its_own_is_equal_and_holds_no_other_bytes() -> None:
    pool = np.frombuffer(b"abcdefgh" * 1000, np.uint8)
    text = Text(pool, np.array([3, 0, 8, 5]), np.array([2, -1, 0, 3], np.int32))
    own = text.own()
    assert [own[i] for i in range(4)] == [b"de", None, b"", b"fgh"]
    assert own.pool.tobytes() == b"defgh"
    assert len(text.take(np.zeros(4, np.bool_)).own()) == 0
