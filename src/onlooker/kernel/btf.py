"""A reader of BTF, the type information of BPF objects and kernels: as much of it as struct layouts need.

Source: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from onlooker.errors import RecordLayoutError

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO = range(1, 14)
VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(14, 20)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct: offset in bytes, and its type."""

    name: str
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class BtfType:
    """One type.  ``size`` is bytes for types that have one, else the id of the type referred to."""

    kind: int
    name: str
    size: int
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    element: int = 0
    count: int = 0
    signed: bool = False


class Btf:
    """All types of one ``.BTF`` section."""

    def __init__(self, data: bytes) -> None:
        magic, _version, _flags, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise RecordLayoutError("not BTF: bad magic number")
        strings = data[header + str_off : header + str_off + str_len]
        body = data[header + type_off : header + type_off + type_len]
        self.types: list[BtfType] = [BtfType(0, "void", 0)]
        offset = 0

        def text(at: int) -> str:
            return strings[at : strings.index(b"\0", at)].decode()

        while offset < len(body):
            name_off, info, size = struct.unpack_from("<III", body, offset)
            offset += 12
            kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
            name = text(name_off)
            if kind == INT:
                (bits,) = struct.unpack_from("<I", body, offset)
                offset += 4
                self.types.append(BtfType(kind, name, size, signed=bool(bits >> 24 & 1)))
            elif kind == ARRAY:
                element, _index, length = struct.unpack_from("<III", body, offset)
                offset += 12
                self.types.append(BtfType(kind, name, 0, element=element, count=length))
            elif kind in (STRUCT, UNION):
                members = []
                for _ in range(count):
                    member_name, type_id, position = struct.unpack_from("<III", body, offset)
                    offset += 12
                    bit = position & 0xFFFFFF if flag else position
                    members.append(Member(text(member_name), type_id, bit // 8))
                self.types.append(BtfType(kind, name, size, tuple(members)))
            elif kind in (ENUM, ENUM64):
                values = []
                for _ in range(count):
                    if kind == ENUM:
                        value_name, value = struct.unpack_from("<Ii" if flag else "<II", body, offset)
                        offset += 8
                    else:
                        value_name, low, high = struct.unpack_from("<III", body, offset)
                        value = high << 32 | low
                        offset += 12
                    values.append((text(value_name), value))
                self.types.append(BtfType(kind, name, size, values=tuple(values)))
            else:
                offset += {FUNC_PROTO: 8 * count, VAR: 4, DATASEC: 12 * count, DECL_TAG: 4}.get(kind, 0)
                self.types.append(BtfType(kind, name, size))

    def resolve(self, type_id: int) -> BtfType:
        """The type behind typedefs and qualifiers."""
        found = self.types[type_id]
        while found.kind in (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG):
            found = self.types[found.size]
        return found

    def struct(self, name: str) -> BtfType | None:
        """The struct of that name."""
        return next((t for t in self.types if t.kind == STRUCT and t.name == name), None)

    def enums(self) -> dict[str, dict[str, int]]:
        """All named enums."""
        return {t.name: dict(t.values) for t in self.types if t.kind in (ENUM, ENUM64) and t.name}

    def numpy_fields(self, name: str) -> tuple[list[tuple[str, str, tuple[int, ...], int]], int]:
        """The members of a struct as (name, numpy format, shape, offset), and the size of the whole.

        Raises:
            RecordLayoutError: the struct is missing, or a member is neither an integer nor an array of them.
        """
        found = self.struct(name)
        if found is None:
            raise RecordLayoutError(f"no struct {name} in the BPF object")
        fields: list[tuple[str, str, tuple[int, ...], int]] = []
        for member in found.members:
            shape: tuple[int, ...] = ()
            kind = self.resolve(member.type_id)
            if kind.kind == ARRAY:
                shape, kind = (kind.count,), self.resolve(kind.element)
            if kind.kind != INT:
                raise RecordLayoutError(f"{name}.{member.name} is no integer")
            fields.append((member.name, f"<{'i' if kind.signed else 'u'}{kind.size}", shape, member.offset))
        return fields, found.size


def section(elf: bytes, wanted: str) -> bytes:
    """The bytes of a section of a small 64-bit little-endian ELF file.

    Raises:
        RecordLayoutError: there is no such section.
    """
    if elf[:6] != b"\x7fELF\x02\x01":
        raise RecordLayoutError("not a 64-bit little-endian ELF file")
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, start + i * entry_size) for i in range(count)]
    names = headers[names_index]
    for header in headers:
        at = names[4] + header[0]
        if elf[at : elf.index(b"\0", at)].decode() == wanted:
            return elf[header[4] : header[4] + header[5]]
    raise RecordLayoutError(f"no section {wanted} in the BPF object")
