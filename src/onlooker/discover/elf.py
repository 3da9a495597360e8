"""What the headers of an ELF file give away about the language it was written in.

Reads the file header, the section headers, the section names and a few small sections, each bounded; never debug
information, and a symbol name table only up to `STRINGS_LIMIT`.  Own code, because a general ELF library builds
objects for every section and symbol of a file that may be hostile and has hundreds of megabytes.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import Final

SECTIONS_LIMIT: Final = 1024
NAMES_LIMIT: Final = 64 * 1024
SMALL_SECTION_LIMIT: Final = 64 * 1024
STRINGS_LIMIT: Final = 4 * 1024 * 1024
CHUNK: Final = 256 * 1024

_STRING_MARKS: Final = {
    b"rust_panic": "rust",
    b"rust_begin_unwind": "rust",
    b"Py_BytesMain": "python",
    b"Py_Initialize": "python",
    b"ruby_init": "ruby",
    b"napi_module_register": "nodejs",
    b"php_module_startup": "php",
    b"\0JVM_": "java",  # native images: the beginning of a name
    b"\0graal_": "java",
    b"DotNetRuntimeInfo": "dotnet",  # single-file applications
    b"libstdc++.so": "cpp",
    b"libc++.so": "cpp",
    b"_ZNSt": "cpp",
}
_BEFORE: Final = (
    "dotnet",
    "rust",
    "python",
    "ruby",
    "nodejs",
    "php",
    "java",
    "cpp",
)  # cpp last: the others link it too
_LONGEST_MARK: Final = max(map(len, _STRING_MARKS))


@dataclass(frozen=True, slots=True)
class ElfFacts:
    """What was found.

    Attributes:
        language: go, rust, java, dotnet, python, ruby, nodejs, php, cpp, or empty for none of them.
        version: Of the tool chain, where the file names it; else empty.
        dynamic: Whether libraries are loaded at run time, so that the maps of a process can tell more.
    """

    language: str = ""
    version: str = ""
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class _Section:
    name: bytes
    offset: int
    size: int


def read_facts(path: str) -> ElfFacts:
    """Facts of the file at ``path``; empty ones if it is no ELF file, is malformed or cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ElfFacts()
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ElfFacts()
        return _facts(handle)
    except (OSError, struct.error, ValueError, OverflowError):
        return ElfFacts()
    finally:
        os.close(handle)


def _facts(handle: int) -> ElfFacts:
    sections, order = _sections(handle)
    if not sections:
        return ElfFacts()
    dynamic = b".dynamic" in sections
    if b".go.buildinfo" in sections or b".gopclntab" in sections or b".note.go.buildid" in sections:
        return ElfFacts("go", _go_version(_read(handle, sections.get(b".go.buildinfo"), 4096), order), dynamic)
    if b".svm_heap" in sections:  # GraalVM native image
        return ElfFacts("java", "", dynamic)
    if b"__managedcode" in sections:  # .NET compiled ahead of time
        return ElfFacts("dotnet", "", dynamic)
    comment = _read(handle, sections.get(b".comment"), SMALL_SECTION_LIMIT)
    if (at := comment.find(b"rustc version ")) >= 0:
        version = comment[at + 14 : at + 40].split(b" ")[0].split(b"\0")[0]
        return ElfFacts("rust", version.decode("ascii", "replace"), dynamic)
    found = _marks(handle, sections.get(b".dynstr")) | _marks(handle, sections.get(b".strtab"))
    return ElfFacts(next((language for language in _BEFORE if language in found), ""), "", dynamic)


def _sections(handle: int) -> tuple[dict[bytes, _Section], str]:
    ident = os.pread(handle, 64, 0)
    if len(ident) < 52 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        return {}, "<"
    order = "<" if ident[5] == 1 else ">"
    wide = ident[4] == 2
    if wide:
        (offset,) = struct.unpack_from(order + "Q", ident, 40)
        entry_size, count, names_index = struct.unpack_from(order + "HHH", ident, 58)
    else:
        (offset,) = struct.unpack_from(order + "I", ident, 32)
        entry_size, count, names_index = struct.unpack_from(order + "HHH", ident, 46)
    if entry_size != (64 if wide else 40) or not 0 < count <= SECTIONS_LIMIT or names_index >= count:
        return {}, order
    table = os.pread(handle, entry_size * count, offset)
    if len(table) < entry_size * count:
        return {}, order
    headers = []
    for index in range(count):
        if wide:
            name, kind, _, _, at, size = struct.unpack_from(order + "IIQQQQ", table, index * entry_size)
        else:
            name, kind, _, _, at, size = struct.unpack_from(order + "IIIIII", table, index * entry_size)
        headers.append((name, at, 0 if kind == 8 else size))  # SHT_NOBITS has no bytes in the file
    names = os.pread(handle, min(headers[names_index][2], NAMES_LIMIT), headers[names_index][1])
    sections: dict[bytes, _Section] = {}
    for name_at, at, size in headers:
        name = names[name_at : name_at + 64].split(b"\0")[0]
        sections.setdefault(name, _Section(name, at, size))
    return sections, order


def _read(handle: int, section: _Section | None, limit: int) -> bytes:
    return b"" if section is None else os.pread(handle, min(section.size, limit), section.offset)


def _go_version(info: bytes, order: str) -> str:
    """The inline form of Go 1.18 and newer: flags at 15 with bit 1 set, then at 32 a varint length and the text."""
    if info[:14] != b"\xff Go buildinf:" or len(info) < 34 or not info[15] & 2:
        return ""
    length, at, shift = 0, 32, 0
    while at < len(info) and shift < 21:
        byte = info[at]
        length |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            break
    text = info[at : at + min(length, 64)].decode("ascii", "replace")
    return text.removeprefix("go").split(" ")[0]


def _marks(handle: int, section: _Section | None) -> set[str]:
    """Languages whose mark stands in a table of names; tables beyond the limit are read up to it."""
    found: set[str] = set()
    if section is None:
        return found
    at, end, tail = section.offset, section.offset + min(section.size, STRINGS_LIMIT), b""
    while at < end and (chunk := os.pread(handle, min(CHUNK, end - at), at)):
        window = tail + chunk
        found |= {language for mark, language in _STRING_MARKS.items() if language not in found and mark in window}
        tail = window[-_LONGEST_MARK:]
        at += len(chunk)
    return found
