"""A bounded reader of ELF files: symbols to file offsets, build id, code bytes.

Receives the path or descriptor of any file of any process, so every field is hostile.  Reads with ``pread`` in slices
and keeps nothing of a table but what was asked for: the memory needed does not grow with the file.  Files that are no
64-bit little-endian ELF, or whose headers contradict themselves, raise `NotElfError`; tables that point outside the
file count as absent.  DWARF is never read.

Sources: System V ABI, chapters 4 and 5 (object files, dynamic linking), and the psABI of the two machines.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onlooker.errors import NotElfError

_SLICE = 256 * 1024  # bytes read at once
_TABLE_LIMIT = 256 * 1024 * 1024  # bytes of one table that are looked at: above the largest browser's
_CODE_LIMIT = 256 * 1024 * 1024  # bytes of code that are searched for branches
_HEADERS_LIMIT = 4096  # program and section headers that are looked at
_STRING_LIMIT = 4096  # longest symbol name that is reported
_MATCH_LIMIT = 4096  # names that one search by pattern looks at

_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_DYNSYM = 2, 4, 8, 11
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_MACHINES = {62: "x86_64", 183: "aarch64"}

SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELA = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function: where it stands in memory terms and how long it is (0: not said)."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A loadable part of the file."""

    address: int
    offset: int
    size: int  # bytes in the file
    executable: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A named part of the file; `size` is 0 if it occupies none of it or lies outside."""

    name: str
    kind: int
    address: int
    offset: int
    size: int
    link: int


class ElfFile:
    """An open ELF file.

    Attributes:
        machine: ``x86_64``, ``aarch64`` or ``other``.
        entry: Address of the first instruction of a program.
        segments: Loadable parts, in the order of the file.
        sections: Named parts; empty if the file has no usable section headers.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        """Open a file, or take a copy of a descriptor."""
        try:
            self._fd = (
                os.dup(source)
                if isinstance(source, int)
                else os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            )
        except OSError as err:
            raise NotElfError(f"cannot open {source}: {err.strerror}") from err
        try:
            self._read_headers()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> ElfFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_headers(self) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotElfError("not a regular file")
        self.file_size = status.st_size
        header = self.pread(0, 64)
        if len(header) < 64 or header[:4] != b"\x7fELF":
            raise NotElfError("no ELF header")
        if header[4:6] != b"\x02\x01":
            raise NotElfError("not a 64-bit little-endian ELF file")
        fields = struct.unpack_from("<HHIQQQIHHHHHH", header, 16)
        kind, machine, _, self.entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = fields
        if kind not in (2, 3):
            raise NotElfError("neither a program nor a shared library")
        self.machine = _MACHINES.get(machine, "other")
        if phnum and phentsize != 56:
            raise NotElfError("program headers of a wrong size")
        self.segments: tuple[Segment, ...] = ()
        self._dynamic: tuple[int, int] | None = None
        self._notes: list[tuple[int, int]] = []
        self._read_segments(phoff, min(phnum, _HEADERS_LIMIT))
        self.sections: tuple[Section, ...] = ()
        if shoff and shentsize == 64:
            self._read_sections(shoff, shnum, shstrndx)

    def _read_segments(self, phoff: int, phnum: int) -> None:
        table = self.pread(phoff, phnum * 56)
        segments: list[Segment] = []
        for at in range(0, len(table) - 55, 56):
            kind, flags, offset, address, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", table, at)
            if offset > self.file_size or not size or address + size > 1 << 64:
                continue
            size = min(size, self.file_size - offset)
            if kind == _PT_LOAD:
                segments.append(Segment(address, offset, size, bool(flags & 1)))
            elif kind == _PT_DYNAMIC:
                self._dynamic = (offset, size)
            elif kind == _PT_NOTE and len(self._notes) < 16:
                self._notes.append((offset, size))
        if not segments:
            raise NotElfError("nothing in it is ever loaded")
        self.segments = tuple(segments)

    def _read_sections(self, shoff: int, shnum: int, shstrndx: int) -> None:
        first = self.pread(shoff, 64)
        if len(first) < 64:
            return
        if shnum == 0:  # more than 65279 sections: the count stands in the first header
            shnum = struct.unpack_from("<Q", first, 32)[0]
        if shstrndx == 0xFFFF:
            shstrndx = struct.unpack_from("<I", first, 40)[0]
        table = self.pread(shoff, min(shnum, _HEADERS_LIMIT) * 64)
        rows = [struct.unpack_from("<IIQQQQIIQQ", table, at) for at in range(0, len(table) - 63, 64)]
        names = b""
        if shstrndx < len(rows):
            _, kind, _, _, offset, size, *_ = rows[shstrndx]
            names = self.pread(offset, min(size, _SLICE)) if kind != _SHT_NOBITS else b""
        sections: list[Section] = []
        for name_at, kind, _, address, offset, size, link, *_ in rows:
            end = names.find(b"\0", name_at) if name_at < len(names) else -1
            name = names[name_at:end][:256].decode("latin-1") if end >= 0 else ""
            if kind == _SHT_NOBITS or offset > self.file_size or size > self.file_size - offset:
                size = 0
            sections.append(Section(name, kind, address, offset, size, link))
        self.sections = tuple(sections)

    # Bytes -------------------------------------------------------------------------------------------------------

    def pread(self, offset: int, size: int) -> bytes:
        """Read at most ``size`` bytes at a file offset; shorter at the end of the file, empty where nothing is."""
        if offset < 0 or size <= 0 or offset >= self.file_size:
            return b""
        try:
            return os.pread(self._fd, min(size, self.file_size - offset), offset)
        except OSError as err:
            raise NotElfError(f"cannot read: {err.strerror}") from err

    def offset_of(self, address: int) -> int | None:
        """File offset of an address that is loaded from the file, else None."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    def code(self, address: int, size: int) -> bytes:
        """Bytes from ``address`` on, at most to the end of its executable segment; empty outside of such."""
        for segment in self.segments:
            if segment.executable and segment.address <= address < segment.address + segment.size:
                past = address - segment.address
                return self.pread(segment.offset + past, min(size, segment.size - past))
        return b""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of any loaded segment, as they stand in the file (before relocation)."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                past = address - segment.address
                return self.pread(segment.offset + past, min(size, segment.size - past))
        return b""

    def section(self, *names: str) -> Section | None:
        """The first section that bears one of ``names`` and has bytes in the file."""
        for name in names:
            for section in self.sections:
                if section.name == name and section.size:
                    return section
        return None

    def slices(self, offset: int, size: int, step: int = _SLICE, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
        """Read a table piece by piece: pairs of position in the table and bytes.

        Each piece repeats the last ``overlap`` bytes of the one before, so that no string is cut unseen.
        """
        size = min(size, _TABLE_LIMIT, max(self.file_size - offset, 0))
        at = 0
        while at < size:
            piece = self.pread(offset + at, min(step + overlap, size - at))
            if not piece:
                return
            yield at, piece
            at += step

    # Identity ----------------------------------------------------------------------------------------------------

    @property
    def build_id(self) -> str:
        """The GNU build id in hexadecimal, empty if there is none."""
        for offset, size in self._notes:
            notes = self.pread(offset, min(size, 65536))
            at = 0
            while at + 12 <= len(notes):
                name_size, body_size, kind = struct.unpack_from("<III", notes, at)
                name_end = at + 12 + (name_size + 3 & ~3)
                if kind == 3 and name_size == 4 and notes[at + 12 : at + 16] == b"GNU\0" and body_size <= 64:
                    return notes[name_end : name_end + body_size].hex()
                at = name_end + (body_size + 3 & ~3)
        return ""

    @property
    def has_static_symbols(self) -> bool:
        """Whether the file was not stripped."""
        return any(s.kind == _SHT_SYMTAB and s.size >= 2 * SYMBOL.itemsize for s in self.sections)

    def find_text(self, pattern: re.Pattern[bytes], *, sections: tuple[str, ...] = (".rodata",)) -> str:
        """What the first match of ``pattern`` in read-only data says; empty if nothing matches."""
        for name in sections:
            found = self.section(name)
            for _, piece in self.slices(found.offset, found.size, overlap=256) if found is not None else ():
                hit = pattern.search(piece)
                if hit is not None:
                    return hit.group().decode("latin-1")
        return ""

    def holds(self, needles: Iterable[bytes]) -> bytes:
        """The first of ``needles`` that read-only data holds, empty if it holds none."""
        wanted = list(needles)
        for name in (".rodata", ".data.rel.ro"):
            found = self.section(name)
            for _, piece in self.slices(found.offset, found.size, overlap=256) if found is not None else ():
                for needle in wanted:
                    if needle in piece:
                        return needle
        return b""

    def has_branch_into(self, begin: int, end: int) -> bool:
        """Whether bytes that read as a near jump or call of x86-64 lead into ``[begin, end)``.

        Looks at every byte, so it may take the middle of an instruction for a branch, and misses none with a 32-bit
        displacement. Says yes for more code than it is willing to read.
        """
        if sum(segment.size for segment in self.segments if segment.executable) > _CODE_LIMIT:
            return True
        for segment in self.segments:
            if not segment.executable:
                continue
            for at, piece in self.slices(segment.offset, segment.size, overlap=5):
                code = np.frombuffer(piece, dtype=np.uint8)
                # e8 call, e9 jmp, 0f 80 to 0f 8f jcc
                near = code & 0xFE == 0xE8
                near[1:] |= (code[:-1] == 0x0F) & (code[1:] & 0xF0 == 0x80)
                places = np.flatnonzero(near[: max(len(code) - 4, 0)]) + 1
                if not places.size:
                    continue
                values = np.ascontiguousarray(code[places[:, None] + np.arange(4)]).view("<i4").ravel()
                reach = values.astype(np.int64) + places + (segment.address + at + 4)
                if bool(((reach >= begin) & (reach < end)).any()):
                    return True
        return False

    # Symbols -----------------------------------------------------------------------------------------------------

    def find_functions(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Defined functions by exact name, from the static and the dynamic symbol table.

        A name that several functions bear (static functions of two files) is left out: which one is meant is unknown.
        """
        wanted = {name.encode() for name in names if name}
        found: dict[str, Symbol] = {}
        ambiguous: set[str] = set()
        for symbols, strings in self._symbol_tables():
            places = dict(islice(self._find_strings(strings, wanted), _MATCH_LIMIT))
            for symbol in self._symbols_at(symbols, places):
                known = found.setdefault(symbol.name, symbol)
                if known.address != symbol.address:
                    ambiguous.add(symbol.name)
        return {name: symbol for name, symbol in found.items() if name not in ambiguous}

    def find_matching(self, needle: bytes, parts: Sequence[bytes], limit: int = 64) -> list[Symbol]:
        """Defined functions by parts of their name; at most ``limit``.

        Args:
            needle: What the search goes by: rare, and part of every name that is wanted.
            parts: What the name begins with, then what follows in this order, with anything in between.
            limit: Most functions to give.
        """
        found: dict[int, Symbol] = {}
        for symbols, strings in self._symbol_tables():
            places: dict[int, bytes] = {}
            looked = 0
            for at, piece in self.slices(strings.offset, strings.size, overlap=2 * _STRING_LIMIT):
                cursor = piece.find(needle)
                while cursor >= 0 and looked < _MATCH_LIMIT:
                    begin = piece.rfind(b"\0", max(cursor - _STRING_LIMIT, 0), cursor) + 1
                    end = piece.find(b"\0", cursor, cursor + _STRING_LIMIT)
                    if end < 0:
                        break
                    looked += 1
                    if _has_parts(piece, begin, end, parts):
                        places[at + begin] = piece[begin:end]
                    cursor = piece.find(needle, end)
            for symbol in self._symbols_at(symbols, places):
                if len(found) < limit:
                    found.setdefault(symbol.address, symbol)
        return list(found.values())

    def function_at(self, address: int) -> Symbol | None:
        """The function symbol that begins at ``address``, with the largest size that is said of it; nameless."""
        size = -1
        for symbols, _ in self._symbol_tables():
            for _, rows in self._symbol_slices(symbols):
                hit = (rows["value"] == address) & ((rows["info"] & 15) == _STT_FUNC) & (rows["section"] != 0)
                if hit.any():
                    size = max(size, int(rows["size"][hit].max()))
        return None if size < 0 else Symbol("", address, size)

    def relocated(self, address: int) -> int | None:
        """What a relative relocation puts at ``address``, None if there is none."""
        for section in self.sections:
            if section.kind != _SHT_RELA:
                continue
            step = _SLICE // _RELA.itemsize * _RELA.itemsize
            for _, piece in self.slices(section.offset, section.size, step):
                rows = np.frombuffer(piece, dtype=_RELA, count=len(piece) // _RELA.itemsize)
                hit = np.flatnonzero(rows["offset"] == np.uint64(address))
                if hit.size:
                    return int(rows["addend"][hit[0]])
        return None

    def _symbol_tables(self) -> list[tuple[Section, Section]]:
        """Pairs of symbol table and its strings, the static one first."""
        tables = [
            (section, self.sections[section.link])
            for kind in (_SHT_SYMTAB, _SHT_DYNSYM)
            for section in self.sections
            if section.kind == kind and section.size and section.link < len(self.sections)
        ]
        if not any(symbols.kind == _SHT_DYNSYM for symbols, _ in tables):
            tables += self._dynamic_tables()
        return tables[:8]

    def _dynamic_tables(self) -> list[tuple[Section, Section]]:
        """The dynamic symbols by way of the program headers, for files without section headers."""
        if self._dynamic is None:
            return []
        raw = self.pread(self._dynamic[0], min(self._dynamic[1], 65536))
        tags: dict[int, int] = {}
        for at in range(0, len(raw) - 15, 16):
            tag, value = struct.unpack_from("<QQ", raw, at)
            if tag == 0:
                break
            tags.setdefault(tag, value)
        if not {5, 6, 10} <= tags.keys():  # DT_STRTAB, DT_SYMTAB, DT_STRSZ
            return []
        strings, symbols = self.offset_of(tags[5]), self.offset_of(tags[6])
        if strings is None or symbols is None:
            return []
        # Only the hash tables know the number of symbols; linkers put the strings behind the symbols, which bounds it.
        size = strings - symbols if strings > symbols else self.file_size - symbols
        string_size = min(tags[10], self.file_size - strings)
        return [
            (
                Section(".dynsym", _SHT_DYNSYM, tags[6], symbols, size, 0),
                Section(".dynstr", 3, tags[5], strings, string_size, 0),
            )
        ]

    def _find_strings(self, strings: Section, wanted: set[bytes]) -> Iterator[tuple[int, bytes]]:
        """Places of whole names in a string table; a name may be the tail of another, linkers share those."""
        if not wanted:
            return
        longest = max(len(name) for name in wanted) + 1
        for at, piece in self.slices(strings.offset, strings.size, overlap=longest):
            for name in wanted:  # one pass each: a search for fixed bytes is many times faster than an alternation
                cursor = piece.find(name + b"\0")
                while cursor >= 0:
                    yield at + cursor, name
                    cursor = piece.find(name + b"\0", cursor + 1)

    def _symbol_slices(self, symbols: Section) -> Iterator[tuple[int, NDArray[Any]]]:
        step = _SLICE // SYMBOL.itemsize * SYMBOL.itemsize
        for at, piece in self.slices(symbols.offset, symbols.size, step):
            yield at, np.frombuffer(piece, dtype=SYMBOL, count=len(piece) // SYMBOL.itemsize)

    def _symbols_at(self, symbols: Section, places: dict[int, bytes]) -> Iterator[Symbol]:
        """Defined functions whose name stands at one of ``places``."""
        if not places:
            return
        offsets = np.array(sorted(places), dtype=np.uint32)
        emitted = 0
        for _, rows in self._symbol_slices(symbols):
            kind = rows["info"] & 15
            hit = np.isin(rows["name"], offsets) & (kind == _STT_FUNC) & (rows["section"] != 0) & (rows["value"] != 0)
            for row in rows[hit]:
                name = places[int(row["name"])].decode("utf-8", "replace")
                yield Symbol(name, int(row["value"]), int(row["size"]))
                emitted += 1
                if emitted >= _MATCH_LIMIT:
                    return


def _has_parts(text: bytes, begin: int, end: int, parts: Sequence[bytes]) -> bool:
    """Whether ``text[begin:end]`` begins with the first part and holds the others behind it in order; linear."""
    if not text.startswith(parts[0], begin, end):
        return False
    at = begin + len(parts[0])
    for part in parts[1:]:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
