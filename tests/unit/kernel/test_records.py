"""What crosses from the kernel has one definition: the dtypes, the built object and the C text say the same."""

from __future__ import annotations

import enum
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onlooker.capture import _records
from onlooker.capture.capture import LAYOUTS, check_layouts
from onlooker.errors import RecordLayoutError
from onlooker.kernel.btf import INT, Btf, section
from onlooker.kernel.object import Object, built_object

ROOT = Path(__file__).resolve().parents[3]
HEADER = (ROOT / "bpf/records.h").read_text()
STRUCTS = re.findall(r"^RECORD\((\w+)\);", HEADER, re.MULTILINE)
ENUMS = re.findall(r"^VALUES\((\w+)\);", HEADER, re.MULTILINE)


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(section(built_object(), ".BTF"))


@pytest.mark.parametrize("struct", STRUCTS)
def test_a_dtype_is_its_struct(btf: Btf, struct: str) -> None:
    dtype: np.dtype[np.void] = getattr(_records, struct.upper())
    found = btf.struct(struct)
    assert found is not None
    assert dtype.itemsize == found.size
    assert dtype.names == tuple(member.name for member in found.members)
    for member in found.members:
        field, offset = dtype.fields[member.name][:2]
        assert offset == member.offset, member.name
        kind = btf.resolve(member.type_id)
        shape = (kind.count,) if kind.count else ()
        base = btf.resolve(kind.element) if kind.count else kind
        assert base.kind == INT
        assert field.shape == shape, member.name
        assert field.base == np.dtype(f"<{'i' if base.signed else 'u'}{base.size}"), member.name


@pytest.mark.parametrize("struct", STRUCTS)
def test_padding_is_spelled_out_and_the_kind_comes_first(struct: str) -> None:
    dtype: np.dtype[np.void] = getattr(_records, struct.upper())
    end = 0
    for name in dtype.names or ():
        field, offset = dtype.fields[name][:2]
        assert offset == end, f"a hole before {name}"
        end = offset + field.itemsize
    assert end == dtype.itemsize
    assert dtype.names is not None
    assert dtype.names[0] == "kind"


@pytest.mark.parametrize("struct", STRUCTS)
def test_a_record_with_its_ring_header_is_a_power_of_two(struct: str) -> None:
    size = getattr(_records, struct.upper()).itemsize + _records.RING_HEADER
    assert size & (size - 1) == 0


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_values_of_the_object(btf: Btf, name: str) -> None:
    ours: type[enum.IntEnum] = getattr(_records, "".join(part.title() for part in name.split("_")))
    assert {key: int(value) for key, value in ours.__members__.items()} == btf.enums()[name]


def test_every_record_is_drained_somewhere() -> None:
    assert {f"{kind.name}".lower() for kind in LAYOUTS} == {f"record_{s.removesuffix('_record')}" for s in STRUCTS}


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "object.o", tmp_path / "records.py"
    source.write_bytes(built_object())
    subprocess.run([sys.executable, "scripts/gen_records.py", str(source), str(target)], cwd=ROOT, check=True)
    assert target.read_text() == (ROOT / "src/onlooker/capture/_records.py").read_text()


def test_an_object_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = Object(built_object())
    try:
        check_layouts(built)
        shifted = np.dtype({"names": ["kind"], "formats": ["u1"], "offsets": [1], "itemsize": 248})
        monkeypatch.setattr(_records, "HTTP_RECORD", shifted)
        with pytest.raises(RecordLayoutError, match="http_record"):
            check_layouts(built)
    finally:
        built.close()
