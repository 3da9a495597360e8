"""The BTF reader, on sections built by hand and on what clang makes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from onlooker.errors import RecordLayoutError
from onlooker.kernel.btf import ARRAY, ENUM, INT, STRUCT, TYPEDEF, Btf, section
from onlooker.kernel.object import built_object

STRINGS = b"\0u8\0i64\0pair\0small\0big\0many\0alias\0colour\0RED\0BLUE\0"


def name(text: str) -> int:
    return STRINGS.index(b"\0" + text.encode() + b"\0") + 1


def blob(*types: bytes, magic: int = 0xEB9F) -> bytes:
    body = b"".join(types)
    return struct.pack("<HBBIIIII", magic, 1, 0, 24, 0, len(body), len(body), len(STRINGS)) + body + STRINGS


def one(label: str, kind: int, size: int, tail: bytes = b"", *, count: int = 0) -> bytes:
    return struct.pack("<III", name(label) if label else 0, kind << 24 | count, size) + tail


U8 = one("u8", INT, 1, struct.pack("<I", 8))
I64 = one("i64", INT, 8, struct.pack("<I", 1 << 24 | 64))
ALIAS = one("alias", TYPEDEF, 2)
MANY = one("", ARRAY, 0, struct.pack("<III", 1, 1, 6))


def pair(small: int = 1, big: int = 3, many: int = 4) -> bytes:
    members = [("small", small, 0), ("big", big, 64), ("many", many, 128)]
    return one("pair", STRUCT, 24, b"".join(struct.pack("<III", name(m), t, at) for m, t, at in members), count=3)


def test_a_struct_becomes_fields_with_signedness_shape_and_offset() -> None:
    fields, size = Btf(blob(U8, I64, ALIAS, MANY, pair())).numpy_fields("pair")
    assert size == 24
    assert fields == [("small", "<u1", (), 0), ("big", "<i8", (), 8), ("many", "<u1", (6,), 16)]


def test_an_enum_is_read_with_its_values() -> None:
    values = struct.pack("<II", name("RED"), 1) + struct.pack("<II", name("BLUE"), 7)
    assert Btf(blob(one("colour", ENUM, 4, values, count=2))).enums() == {"colour": {"RED": 1, "BLUE": 7}}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (blob(U8, magic=0x1234), "magic"),
        (blob(U8, I64, ALIAS, MANY), "no struct pair"),
        (blob(U8, I64, ALIAS, MANY, pair(big=5)), r"pair\.big is no integer"),
    ],
)
def test_what_cannot_be_a_record_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(RecordLayoutError, match=what):
        Btf(data).numpy_fields("pair")


@pytest.mark.parametrize("elf", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100)])
def test_a_file_that_is_no_object_is_refused(elf: bytes) -> None:
    with pytest.raises(RecordLayoutError):
        section(elf, ".BTF")


def test_a_missing_section_is_named() -> None:
    with pytest.raises(RecordLayoutError, match=r"\.nothing"):
        section(built_object(), ".nothing")


@pytest.mark.skipif(shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin") is None, reason="no bpftool")
def test_structs_of_the_built_object_are_read_as_bpftool_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "object.o"
    path.write_bytes(built_object())
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin")
    done = subprocess.run([str(bpftool), "-j", "btf", "dump", "file", str(path)], capture_output=True, check=True)
    theirs = {
        t["name"]: (t["size"], [(m["name"], m["bits_offset"]) for m in t["members"]])
        for t in json.loads(done.stdout)["types"]
        if t["kind"] == "STRUCT" and t["name"] != "(anon)"
    }
    ours = {
        t.name: (t.size, [(m.name or "(anon)", m.offset * 8) for m in t.members])
        for t in Btf(section(built_object(), ".BTF")).types
        if t.kind == STRUCT and t.name
    }
    assert ours == theirs
    assert "http_record" in ours
