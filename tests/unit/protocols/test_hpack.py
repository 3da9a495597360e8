from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.protocols import _hpack
from onlooker.protocols._hpack import Fields, HeaderCache, Table, decode

NAMES = [b":method", b":path", b":status", b"x-a", b"x-b", b"content-type", b"cookie", b"x-very-long-name-" * 8]
VALUES = [b"", b"GET", b"POST", b"/", b"/a", b"200", b"404", b"application/grpc", b"v" * 300, "é".encode(), b"\x00\xff"]
header = st.tuples(
    st.sampled_from(NAMES),
    st.one_of(st.sampled_from(VALUES), st.binary(max_size=40)),
    st.booleans(),  # never indexed
)
blocks = st.lists(
    st.tuples(
        st.lists(header, max_size=12),
        st.booleans(),  # Huffman
        st.one_of(st.none(), st.sampled_from([0, 64, 100, 4096, 8192, 65_536])),  # table size from here on
    ),
    max_size=12,
)


def encoded(script: list) -> list[tuple[bytes, list[tuple[bytes, bytes]]]]:
    """Blocks of the library's encoder, with what its own decoder reads from them."""
    encoder, decoder = hpack.Encoder(), hpack.Decoder(max_header_list_size=1 << 20)
    decoder.max_allowed_table_size = 65_536
    result = []
    for headers, huffman, size in script:
        if size is not None:
            encoder.header_table_size = size
        made = [
            (hpack.NeverIndexedHeaderTuple if never else hpack.HeaderTuple)(name, value)
            for name, value, never in headers
        ]
        data = encoder.encode(made, huffman=huffman)
        result.append((data, [tuple(pair) for pair in decoder.decode(data, raw=True)]))
    return result


@given(blocks)
@settings(deadline=None)
def test_agrees_with_the_library(script: list) -> None:
    table = Table()
    cache = HeaderCache()
    shared = cache.fresh
    for data, expected in encoded(script):
        pairs, table, malformed = decode(table, data)
        assert not malformed
        assert pairs == expected
        fields, shared = cache.read(shared, data)
        assert fields.others == Fields(pairs).others
        assert not fields.holes
        assert (shared.entries, shared.size, shared.peer_max) == (table.entries, table.size, table.peer_max)
    assert table.complete


@given(blocks, st.integers(0, 12))
@settings(deadline=None)
def test_whoever_comes_late_says_less_but_nothing_wrong(script: list, missed: int) -> None:
    table = Table((), 0, None, complete=False)
    for data, expected in encoded(script)[missed:]:
        pairs, table, malformed = decode(table, data)
        assert not malformed
        assert len(pairs) == len(expected)
        for (name, value), (true_name, true_value) in zip(pairs, expected, strict=True):
            assert name in (None, true_name)
            assert value in (None, true_value)


def test_later_literals_repair_the_table() -> None:
    encoder = hpack.Encoder()
    encoder.encode([(b"x-old", b"1")])
    late = Table((), 0, None, complete=False)
    data = encoder.encode([(b"x-old", b"1"), (b"x-new", b"2")])
    pairs, late, _ = decode(late, data)
    assert pairs == [(None, None), (b"x-new", b"2")]
    pairs, late, _ = decode(late, encoder.encode([(b"x-new", b"2"), (b"x-old", b"1")]))
    assert pairs == [(b"x-new", b"2"), (None, None)]
    assert not late.complete


def test_an_emptied_table_is_known_again() -> None:
    late = Table((), 0, None, complete=False)
    _, late, _ = decode(late, b"\x20\x3f\xe1\x1f")  # size 0, then 4,096
    assert late.complete
    assert late.peer_max == 4096
    assert decode(late, b"\xbe")[2]  # so an index into it is a mistake, and no longer a hole


def test_a_table_that_turned_over_is_known_again() -> None:
    _, late, _ = decode(Table((), 0, None, complete=False), b"\x3f\x21")  # size 64
    assert not late.complete
    for value in (b"a", b"b", b"c"):
        _, late, _ = decode(late, b"\x40\x01x\x01" + value)
    assert late.complete
    assert late.entries == ((b"x", b"c"),)


def test_a_literal_whose_name_is_unknown_keeps_its_place() -> None:
    late = Table((), 0, None, complete=False)
    pairs, late, malformed = decode(late, b"\x7f\x05\x03abc")  # literal, name at dynamic index 7
    assert (pairs, malformed) == ([(None, b"abc")], False)
    pairs, late, _ = decode(late, b"\x40\x01n\x01v")
    assert decode(late, b"\xbe\xbf")[0] == [(b"n", b"v"), (None, b"abc")]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",  # index 0
        b"\xbe",  # beyond an empty table
        b"\xff\xff\xff\xff\xff\xff\xff",  # an endless integer
        b"\xff",  # an integer that ends early
        b"\x00\x05ab",  # a string that ends early
        b"\x00\x81\xff\x00",  # Huffman: padding of eight bits
        b"\x82\x20",  # a size update behind a field
        b"\x00",
    ],
)
def test_mistakes_are_told(data: bytes) -> None:
    _, _, malformed = decode(Table(), data)
    assert malformed
    fields, after = HeaderCache().read(HeaderCache().fresh, data)
    assert fields.malformed
    assert fields.holes
    assert not after.complete


def test_what_stood_before_a_mistake_is_kept() -> None:
    fields = Fields(decode(Table(), b"\x82\x84\x80")[0], malformed=True)
    assert fields.get(b":method") == b"GET"
    assert fields.get(b":path") == b"/"


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_never_raise(data: bytes, late: bool) -> None:
    table = Table((), 0, None, complete=False) if late else Table()
    _, after, _ = decode(table, data)
    assert after.size <= _hpack.TABLE_SIZE_CAP


def test_memory_of_a_table_is_bounded_whatever_the_peer_says() -> None:
    table = Table((), 0, None, complete=False)
    _, table, _ = decode(table, b"\x3f\xe1\xff\xff\x07")  # 16 MiB
    for number in range(300):
        value = str(number).encode() * 200
        length = bytes([0x7F, (len(value) - 127) & 0x7F | 0x80, (len(value) - 127) >> 7])
        _, table, malformed = decode(table, b"\x40\x01x" + length + value)
        assert not malformed
    assert table.size <= _hpack.TABLE_SIZE_CAP
    assert not table.complete  # the peer keeps more than this
    assert decode(table, b"\xff\x80\x04")[0] == [(None, None)]


def test_equal_histories_share_a_table_and_its_blocks() -> None:
    cache = HeaderCache()
    first = second = cache.fresh
    script = [b"\x82\x84\x40\x01x\x01v", b"\x82\x84\xbe", b"\x82\x84\xbe"]
    for data in script:
        _, first = cache.read(first, data)
    assert (cache.hits, cache.misses) == (1, 2)
    for data in script:
        fields, second = cache.read(second, data)
        assert fields.get(b":method") == b"GET"
    assert second is first
    assert (cache.hits, cache.misses) == (4, 2)


def test_the_same_bytes_mean_something_else_in_another_table() -> None:
    cache = HeaderCache()
    _, with_one = cache.read(cache.fresh, b"\x44\x02/a")
    _, with_other = cache.read(cache.fresh, b"\x44\x02/b")
    assert cache.read(with_one, b"\xbe")[0].get(b":path") == b"/a"
    assert cache.read(with_other, b"\xbe")[0].get(b":path") == b"/b"


def test_the_cache_is_bounded() -> None:
    cache = HeaderCache(capacity=100)
    table = cache.fresh
    for number in range(1000):
        path = b"/%d" % number
        fields, table = cache.read(table, b"\x82\x04" + bytes([len(path)]) + path)
        assert fields.get(b":path") == path
        assert cache._count <= 100


def test_a_status_is_three_digits() -> None:
    assert Fields([(b":status", b"204")]).status == 204
    assert Fields([(b":status", b"20")]).status == 0
    assert Fields([(b":status", "²²²".encode("latin-1"))]).status == 0
