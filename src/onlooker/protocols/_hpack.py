"""Header compression of HTTP/2 (RFC 7541) for an observer, who may have missed the beginning.

Receives header blocks of one direction of a connection, in order; hands on `Fields`, the few header fields that a
span needs.  Drops everything else: cookies and credentials never leave this module.

The well-kept `hpack` library gives the static table and the Huffman code.  Its table is not used, for two reasons.  A
decoder at the end of a connection has seen every block; an observer that came later has not, and must say "unknown"
instead of failing or guessing.  And it sees the same blocks on many connections, so a table is an immutable value
here: connections with the same history share one, and with it the blocks that were read before.

Why an index into a table whose beginning was missed is never misread: the table is the newest inserts, up to some
number, newest first.  So an index that the peer may use at all counts back from the newest insert, and if that many
were seen, it names the one that was seen.  How many the peer has evicted does not matter: it will not use those.
Keeping more than the peer does is harmless, keeping fewer makes an index unknown, and neither shifts a position.  Only
a *missed block* does, and then everything known is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Pair: TypeAlias = tuple[bytes | None, bytes | None]

DEFAULT_TABLE_SIZE = 4096
"""RFC 9113 section 6.5.2, SETTINGS_HEADER_TABLE_SIZE."""
TABLE_SIZE_CAP = 65_536
"""What is kept of one table, in the units of RFC 7541 section 4.1; what a peer keeps beyond it is unknown here."""
ENTRY_OVERHEAD = 32
"""RFC 7541 section 4.1."""

_STATIC: tuple[Pair, ...] = tuple(HeaderTable.STATIC_TABLE)
_STATIC_COUNT = len(_STATIC)
_UNKNOWN: Pair = (None, None)
_SHORT_LITERAL = 128
_LARGEST_INTEGER_BYTES = 5
_CACHED_BLOCK_BYTES = 1024
_CACHED_BLOCKS_PER_TABLE = 256
_SHARED_DEPTH = 16
"""Blocks from the beginning of a connection whose change of the table is remembered: later on histories differ."""


class Table:
    """The dynamic table of one direction at one moment.  Never changed, and shared by all with the same history.

    Attributes:
        entries: Newest first, `(name, value)`; None stands for what could not be known.
        size: Of the entries, in the units of RFC 7541 section 4.1; a lower bound if a name or value is unknown.
        peer_max: What the encoder said it keeps at most; None: unknown.
        complete: False: the peer may have older entries than these.
        depth: Blocks since the beginning that changed the table.
    """

    __slots__ = ("_blocks", "_epoch", "complete", "depth", "entries", "peer_max", "size")

    def __init__(
        self,
        entries: tuple[Pair, ...] = (),
        size: int = 0,
        peer_max: int | None = DEFAULT_TABLE_SIZE,
        *,
        complete: bool = True,
        depth: int = 0,
    ) -> None:
        self.entries = entries
        self.size = size
        self.peer_max = peer_max
        self.complete = complete
        self.depth = depth
        self._blocks: dict[bytes, tuple[Fields, Table | None]] = {}
        self._epoch = 0


class Fields:
    """What a span needs of one header block.  Immutable by agreement: it is shared between requests.

    Attributes:
        holes: A field had a name or value that is not known, so an absent field may have been there.
        malformed: The block does not follow RFC 7541; what stood before the mistake is kept.
        status: `:status` as a number; 0: absent or unknown.
        others: Wanted fields by name; the first of a name counts.
        derived: Room for whoever reads the fields to keep what it made of them.
    """

    __slots__ = ("derived", "holes", "malformed", "others", "status")

    def __init__(self, pairs: list[Pair], *, malformed: bool = False) -> None:
        self.malformed = malformed
        self.holes = malformed
        self.others: dict[bytes, bytes] = {}
        self.derived: object = None
        for name, value in pairs:
            if name is None or value is None:
                self.holes = True
            elif name in _WANTED and name not in self.others:
                self.others[name] = value
        status = self.others.get(b":status", b"")
        self.status = int(status) if len(status) == 3 and status.isdigit() else 0

    def get(self, name: bytes) -> bytes | None:
        """The value of a wanted field, or None."""
        return self.others.get(name)


_WANTED = frozenset(
    (
        b":method", b":scheme", b":authority", b":path", b":protocol", b":status", b"host", b"content-type",
        b"traceparent", b"grpc-status", b"grpc-timeout",
    )
)  # fmt: skip
_TELLING: frozenset[bytes | None] = _WANTED | {None}
"""Names that matter, and none: where one is not known, the block has a hole."""


class HeaderCache:
    """Remembers header blocks and the tables they lead to, for all connections of a capture thread.

    Args:
        capacity: Blocks remembered; when full, all are forgotten, which costs one decoding each.
    """

    def __init__(self, capacity: int = 2048) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._count = 0
        self._epoch = 0
        self._fields: dict[tuple[Pair, ...], Fields] = {}
        self._fresh = Table()
        self._unknown = Table((), 0, None, complete=False)

    @property
    def fresh(self) -> Table:
        """The table at the beginning of a connection."""
        return self._fresh

    @property
    def unknown(self) -> Table:
        """The table of a connection that was met later, or of which a block was missed."""
        return self._unknown

    def read(self, table: Table, block: bytes) -> tuple[Fields, Table]:
        """Decode one whole header block.

        Returns:
            The fields, and the table to read the next block of the same direction with.
        """
        if table._epoch != self._epoch:
            table._blocks = {}
            table._epoch = self._epoch
        found = table._blocks.get(block)
        if found is not None:
            self.hits += 1
            return found[0], found[1] or table
        self.misses += 1
        pairs, after, malformed = decode(table, block)
        if malformed:
            fields, after = Fields(pairs, malformed=True), self._unknown
        else:
            fields = self._of(pairs)
        if len(block) <= _CACHED_BLOCK_BYTES and (after is table or table.depth < _SHARED_DEPTH) and not malformed:
            self._remember(table, block, fields, after)
        return fields, after

    def read_all(self, table: Table, blocks: Sequence[bytes]) -> tuple[list[Fields], Table]:
        """Decode blocks that follow each other; most are known, and change nothing."""
        found: list[Fields] = []
        known = table._blocks if table._epoch == self._epoch else {}
        for block in blocks:
            read = known.get(block)
            if read is not None and read[1] is None:
                self.hits += 1
                found.append(read[0])
                continue
            fields, table = self.read(table, block)
            found.append(fields)
            known = table._blocks if table._epoch == self._epoch else {}
        return found, table

    def _of(self, pairs: list[Pair]) -> Fields:
        """The fields, shared by blocks that say the same in other bytes: their connections have other tables."""
        key = tuple([pair for pair in pairs if pair[0] in _TELLING or pair[1] is None])
        fields = self._fields.get(key)
        if fields is None:
            if len(self._fields) >= self.capacity:
                self._fields = {}
            fields = self._fields[key] = Fields(list(key))
        return fields

    def _remember(self, table: Table, block: bytes, fields: Fields, after: Table) -> None:
        if self._count >= self.capacity:
            self._count = 0
            self._epoch += 1
            self._fresh = Table()
            self._unknown = Table((), 0, None, complete=False)
            self._fresh._epoch = self._unknown._epoch = self._epoch
            return
        if len(table._blocks) >= _CACHED_BLOCKS_PER_TABLE:
            table._blocks = {}
        after._epoch = self._epoch
        table._blocks[block] = (fields, None if after is table else after)
        self._count += 1


def decode(table: Table, block: bytes) -> tuple[list[Pair], Table, bool]:
    """Decode a header block against a table.

    Args:
        table: As it was before the block; not changed.
        block: Header block fragments, joined.

    Returns:
        The fields in order, with None for what is not known; the table after the block; whether the block breaks
        RFC 7541, in which case the fields before the mistake are given and the table has no meaning.
    """
    pairs: list[Pair] = []
    change = _Change(table)
    position = 0
    end = len(block)
    try:
        while position < end:
            first = block[position]
            if first & 0x80:  # indexed field, section 6.1
                index = first & 0x7F
                position += 1
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                pairs.append(_STATIC[index - 1] if 0 < index <= _STATIC_COUNT else change.entry(index))
                continue
            if first & 0xE0 == 0x20:  # dynamic table size update, section 6.3
                if pairs:
                    raise _MalformedError  # section 4.2: only at the beginning
                size = first & 0x1F
                position += 1
                if size == 0x1F:
                    size, position = _integer(block, position, 0x1F)
                change.resize(size)
                continue
            indexing = first & 0x40  # literal, sections 6.2.1 to 6.2.3
            mask = 0x3F if indexing else 0x0F
            index = first & mask
            position += 1
            if index == mask:
                index, position = _integer(block, position, mask)
            name: bytes | None
            if index == 0:
                name, position = _string(block, position)
            elif index <= _STATIC_COUNT:
                name = _STATIC[index - 1][0]
            else:
                name = change.entry(index)[0]
            value, position = _string(block, position)
            pair = (name, value)
            pairs.append(pair)
            if indexing:
                change.insert(pair)
    except (_MalformedError, IndexError, HPACKDecodingError):
        return pairs, table, True
    return pairs, change.result(), False


class _MalformedError(Exception):
    pass


class _Change:
    """What one block does to a table: copied at the first insert, and not at all by most blocks."""

    __slots__ = ("complete", "entries", "peer_max", "size", "table")

    def __init__(self, table: Table) -> None:
        self.table = table
        self.entries: list[Pair] | None = None
        self.size = table.size
        self.peer_max = table.peer_max
        self.complete = table.complete

    def entry(self, index: int) -> Pair:
        at = index - _STATIC_COUNT - 1
        entries = self.table.entries if self.entries is None else self.entries
        if 0 <= at < len(entries):
            return entries[at]
        if index == 0 or self.complete:
            raise _MalformedError
        return _UNKNOWN

    def insert(self, pair: Pair) -> None:
        if self.entries is None:
            self.entries = list(self.table.entries)
        self.entries.insert(0, pair)
        self.size += _size(pair)
        self._evict()

    def resize(self, size: int) -> None:
        if self.entries is None:
            self.entries = list(self.table.entries)
        self.peer_max = size
        if size == 0:
            self.complete = True  # empty: nothing is left that was missed
        self._evict()

    def _evict(self) -> None:
        entries = self.entries
        assert entries is not None
        limit = TABLE_SIZE_CAP if self.peer_max is None else min(self.peer_max, TABLE_SIZE_CAP)
        while self.size > limit:
            self.size -= _size(entries.pop())
            # Sizes here are lower bounds.  What does not fit into them did not fit at the peer's either, unless the
            # limit was our own.
            self.complete = self.peer_max is not None and self.peer_max <= TABLE_SIZE_CAP

    def result(self) -> Table:
        if self.entries is None:
            return self.table
        table = self.table
        return Table(
            tuple(self.entries), self.size, self.peer_max, complete=self.complete, depth=min(table.depth + 1, 1 << 30)
        )


def _size(pair: Pair) -> int:
    return ENTRY_OVERHEAD + len(pair[0] or b"") + len(pair[1] or b"")


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """The rest of an integer, RFC 7541 section 5.1; ``value`` is its full prefix."""
    for shift in range(0, 7 * _LARGEST_INTEGER_BYTES, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise _MalformedError


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """A string literal, RFC 7541 section 5.2."""
    first = block[position]
    length = first & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise _MalformedError
    raw = block[position:end]
    if first & 0x80:
        raw = _short_huffman(raw) if length <= _SHORT_LITERAL else decode_huffman(raw)
    return raw, end


@lru_cache(maxsize=4096)
def _short_huffman(raw: bytes) -> bytes:
    return decode_huffman(raw)
