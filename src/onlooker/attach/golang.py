"""Functions of Go programs, stripped ones too: the table that the Go runtime itself walks.

Receives an open ELF file, hands on addresses and lengths of the functions asked for, and the version and modules that
the linker wrote down.  Layouts: Go 1.18 to 1.26 (``runtime/symtab.go`` and ``internal/abi/symtab.go``: `pcHeader`,
`functab`, `_func`; ``debug/buildinfo``).  Older programs are refused with a reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onlooker.attach.elf import ElfFile, Symbol
from onlooker.errors import NotElfError

_MAGIC_1_18, _MAGIC_1_20 = 0xFFFFFFF0, 0xFFFFFFF1
_HEADER = struct.Struct("<IHBBQQQQQQQQ")
_FUNCTIONS_LIMIT = 4_000_000  # the largest programs known have about a million
_FUNC_SPAN_LIMIT = 4 * 1024 * 1024  # bytes of function descriptions behind one slice of the table
_SLICE_FUNCTIONS = 4096
_MODULES_LIMIT = 256 * 1024
_INFO_MAGIC = b"\xff Go buildinf:"
_MODULE_TEXT_AT = 176  # offset of moduledata.text, unchanged from Go 1.18 to 1.26


@dataclass(frozen=True, slots=True)
class GoBuild:
    """What the Go linker wrote down: the toolchain and the modules with their versions."""

    version: str
    modules: dict[str, str]


def is_go(elf: ElfFile) -> bool:
    """Whether the Go toolchain made the file."""
    return elf.section(".gopclntab", ".data.rel.ro.gopclntab", ".go.buildinfo") is not None


def build_of(elf: ElfFile) -> GoBuild | None:
    """Toolchain version and modules; None if the program says nothing (or was built before Go 1.18)."""
    section = elf.section(".go.buildinfo")
    if section is None:
        return None
    head = elf.pread(section.offset, 32)
    if len(head) < 32 or head[:14] != _INFO_MAGIC or not head[15] & 2:
        return None
    # The strings may go on behind the section's end in old linkers; the cap bounds what is taken.
    text = elf.pread(section.offset + 32, _MODULES_LIMIT)
    version, at = _varint_string(text, 0)
    info, _ = _varint_string(text, at)
    modules: dict[str, str] = {}
    for line in info[16:-16].splitlines():
        words = line.split("\t")
        if len(words) >= 3 and words[0] in ("mod", "dep"):
            modules[words[1]] = words[2]
    return GoBuild(version, modules)


def _varint_string(data: bytes, at: int) -> tuple[str, int]:
    length = shift = 0
    while at < len(data) and shift <= 28:
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return data[at : at + length].decode("utf-8", "replace"), at + length
    return "", at


def find_functions(elf: ElfFile, names: Iterable[str]) -> dict[str, Symbol]:
    """Find functions by their full Go name, ``crypto/tls.(*Conn).Read`` for instance.

    Raises:
        NotElfError: There is no function table, or none of a known layout.
    """
    table = _Table(elf)
    return table.find({name.encode() for name in names})


class _Table:
    def __init__(self, elf: ElfFile) -> None:
        section = elf.section(".gopclntab", ".data.rel.ro.gopclntab")
        if section is None:
            raise NotElfError("no Go function table")
        raw = elf.pread(section.offset, _HEADER.size)
        if len(raw) < _HEADER.size:
            raise NotElfError("the Go function table is cut off")
        magic, _, _, pointer, count, _, text, names, cus, _, _, functions = _HEADER.unpack(raw)
        if magic not in (_MAGIC_1_18, _MAGIC_1_20) or pointer != 8:
            raise NotElfError("a Go function table of an unknown layout (Go 1.18 and newer are known)")
        if not (_HEADER.size <= names <= cus <= section.size and functions < section.size):
            raise NotElfError("the Go function table contradicts itself")
        if count > _FUNCTIONS_LIMIT or functions + count * 8 > section.size:
            raise NotElfError("the Go function table claims more functions than it has room for")
        self._elf = elf
        self._section = section
        self._names = (section.offset + names, cus - names)
        self._functions = section.offset + functions
        self._count: int = count
        self._text = self._text_start(text)

    def _text_start(self, stated: int) -> int:
        """Address that function offsets count from.

        The header says it up to Go 1.25, unless the linker left it to a relocation; after that it stands only in the
        runtime's description of the module, which is found by its first word: the address of this table.
        """
        elf, section = self._elf, self._section
        if stated:
            return stated
        if (relocated := elf.relocated(section.address + 24)) is not None:
            return relocated
        module = elf.section(".go.module")
        if module is not None:
            place = module.address + _MODULE_TEXT_AT
            if (relocated := elf.relocated(place)) is not None:
                return relocated
            value = int.from_bytes(elf.read(place, 8), "little")
            if elf.code(value, 1):
                return value
        symbols = elf.find_functions(["runtime.text"])
        if symbols:
            return symbols["runtime.text"].address
        text = elf.section(".text")
        if text is None:
            raise NotElfError("where the Go functions begin cannot be found")
        return text.address

    def find(self, wanted: set[bytes]) -> dict[str, Symbol]:
        places: dict[int, str] = {}
        longest = max((len(name) for name in wanted), default=0) + 2
        for at, piece in self._elf.slices(*self._names, overlap=longest):
            for name in wanted:
                hit = piece.find(b"\0" + name + b"\0")
                if hit >= 0:
                    places[at + hit + 1] = name.decode()
                elif at == 0 and piece.startswith(name + b"\0"):
                    places[0] = name.decode()
        found: dict[str, Symbol] = {}
        if not places:
            return found
        offsets = np.array(sorted(places), dtype=np.uint32)
        for first in range(0, self._count, _SLICE_FUNCTIONS):
            rows = min(_SLICE_FUNCTIONS, self._count - first)
            raw = self._elf.pread(self._functions + first * 8, rows * 8 + 4)
            if len(raw) < rows * 8 + 4:
                break
            pairs = np.frombuffer(raw, dtype="<u4", count=rows * 2).reshape(rows, 2)
            entries = np.frombuffer(raw, dtype="<u4", count=rows * 2 + 1)[0::2]
            descriptions = pairs[:, 1].astype(np.int64)
            low, high = int(descriptions.min()), int(descriptions.max())
            if high - low > _FUNC_SPAN_LIMIT:
                raise NotElfError("the Go function table contradicts itself")
            text = self._elf.pread(self._functions + low, high - low + 8)
            inside = descriptions + 8 - low <= len(text)
            if not inside.any():
                continue
            data = np.frombuffer(text, dtype=np.uint8)
            starts = (descriptions[inside] - low)[:, None] + np.arange(4, 8)
            name_offsets = np.ascontiguousarray(data[starts]).view("<u4").ravel()
            for index in np.flatnonzero(inside)[np.isin(name_offsets, offsets)]:
                place = int(np.frombuffer(text, "<u4", 1, int(descriptions[index]) - low + 4)[0])
                begin, end = int(entries[index]), int(entries[index + 1])
                found[places[place]] = Symbol(places[place], self._text + begin, max(end - begin, 0))
        return found
