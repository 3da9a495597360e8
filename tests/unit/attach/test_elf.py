"""The ELF reader, compared with another reader on real files, and on broken ones."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.attach import golang
from onlooker.attach.elf import ElfFile
from onlooker.attach.sites import Need, SiteChooser
from onlooker.attach.tls import examine
from onlooker.errors import NotElfError

_SOURCE = """
#include <stdio.h>
int SSL_read(void *s, void *b, int n) { return n + printf("%p%p", s, b); }
int SSL_write(void *s, const void *b, int n) { return n - printf("%p%p", s, b); }
int also_SSL_read(void) { return puts("also"); }
static __attribute__((noinline)) int hidden(int n) { return printf("%d", n); }
int shown(int n) { return hidden(n) + 1; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elf") / "libsmall.so"
    source = path.with_suffix(".c")
    source.write_text(_SOURCE)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wl,--build-id=0x0123456789abcdef", "-o", path, source], check=True
    )
    return path


@pytest.fixture(scope="module")
def stripped(library: Path) -> Path:
    path = library.with_name("libstripped.so")
    subprocess.run(["strip", "-o", path, library], check=True)
    return path


def test_functions_agree_with_another_reader(library: Path) -> None:
    names = ["SSL_read", "SSL_write", "hidden", "shown", "printf", "absent"]
    with library.open("rb") as file:
        symbols = {s.name: s for s in ELFFile(file).get_section_by_name(".symtab").iter_symbols()}
        expected = {
            name: (symbols[name]["st_value"], symbols[name]["st_size"])
            for name in names
            if name in symbols and symbols[name]["st_shndx"] != "SHN_UNDEF"
        }
    with ElfFile(library) as elf:
        found = {name: (s.address, s.size) for name, s in elf.find_functions(names).items()}
        assert elf.has_static_symbols
        assert elf.build_id == "0123456789abcdef"
    assert found == expected
    assert found.keys() == {"SSL_read", "SSL_write", "hidden", "shown"}  # printf is only used, not defined


def test_a_name_that_is_the_tail_of_another_is_its_own(library: Path) -> None:
    with ElfFile(library) as elf:
        found = elf.find_functions(["SSL_read", "also_SSL_read"])
    assert found["SSL_read"].address != found["also_SSL_read"].address


def test_stripped_files_keep_what_they_export(stripped: Path) -> None:
    with ElfFile(stripped) as elf:
        assert not elf.has_static_symbols
        assert elf.find_functions(["SSL_read", "hidden"]).keys() == {"SSL_read"}


def test_files_without_section_headers_are_read_by_their_segments(stripped: Path, tmp_path: Path) -> None:
    data = bytearray(stripped.read_bytes())
    struct.pack_into("<Q", data, 40, 0)  # e_shoff
    struct.pack_into("<HHH", data, 58, 0, 0, 0)
    bare = tmp_path / "bare.so"
    bare.write_bytes(data)
    with ElfFile(stripped) as elf:
        expected = elf.find_functions(["SSL_read", "SSL_write"])
    with ElfFile(bare) as elf:
        assert elf.sections == ()
        assert elf.find_functions(["SSL_read", "SSL_write"]) == expected
        assert elf.build_id == "0123456789abcdef"


def test_offsets_follow_the_program_headers(library: Path) -> None:
    with library.open("rb") as file:
        parsed = ELFFile(file)
        segment = next(s for s in parsed.iter_segments("PT_LOAD") if s["p_flags"] & 1)
        address, offset = segment["p_vaddr"], segment["p_offset"]
        assert isinstance(parsed.get_section_by_name(".note.gnu.build-id"), NoteSection)
    with ElfFile(library) as elf:
        assert elf.offset_of(address + 5) == offset + 5
        assert elf.offset_of(1 << 60) is None
        assert elf.code(address, 4) == library.read_bytes()[offset : offset + 4]
        assert elf.code(elf.section(".rodata", ".eh_frame").address, 4) == b""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no ELF header"),
        (b"#!/bin/sh\necho no\n" * 10, "no ELF header"),
        (b"\x7fELF\x01\x01\x01" + bytes(100), "64-bit"),
        (b"\x7fELF\x02\x02\x01" + bytes(100), "64-bit"),
        (b"\x7fELF\x02\x01\x01" + bytes(100), "neither"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotElfError, match=reason):
        ElfFile(path)


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(NotElfError):
            ElfFile(path)


def test_no_descriptor_stays_open(library: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    before = len(os.listdir("/proc/self/fd"))
    with ElfFile(library):
        pass
    with pytest.raises(NotElfError):
        ElfFile(broken)
    assert len(os.listdir("/proc/self/fd")) == before


def _peak_kib(*, reset: bool = False) -> int:
    """Peak resident memory; ``reset`` lets it begin again from now. (The one of getrusage outlives an exec.)"""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _look_at_everything(path: Path) -> None:
    try:
        with ElfFile(path) as elf:
            chooser = SiteChooser(elf)
            for symbol in elf.find_functions(["SSL_read", "SSL_write", "shown"]).values():
                for need in Need:
                    chooser.choose(symbol, need)
                chooser.inner(symbol, Need.RETURN, arguments=3)
            _ = elf.build_id
            golang.build_of(elf)
            if golang.is_go(elf):
                golang.find_functions(elf, ["crypto/tls.(*Conn).Read", "main.main"])
            examine(elf)
    except NotElfError:
        pass


def _mutations(data: bytes, rounds: int, seed: int) -> list[bytes]:
    """Truncations, and random or extreme numbers written where headers and tables stand."""
    rng = random.Random(seed)
    with_headers = [*range(64), *range(64, min(64 + 56 * 12, len(data)))]
    section_table = struct.unpack_from("<Q", data, 40)[0]
    with_headers += list(range(section_table, len(data)))
    found = []
    for _ in range(rounds):
        copy = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            place = rng.choice(with_headers) if rng.random() < 0.7 else rng.randrange(len(copy))
            width = rng.choice([1, 2, 4, 8])
            value = rng.choice([0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, rng.getrandbits(8 * width)])
            copy[place : place + width] = value.to_bytes(width, "little")
        if rng.random() < 0.3:
            del copy[rng.randrange(len(copy)) :]
        found.append(bytes(copy))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_mutated_libraries_do_no_harm(library: Path, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "mutated.so"
    before = _peak_kib(reset=True)
    for data in _mutations(library.read_bytes(), 150, seed):
        path.write_bytes(data)
        _look_at_everything(path)
    assert _peak_kib() - before < 64 * 1024  # KiB


@given(st.binary(max_size=600))
@settings(max_examples=150, deadline=None)
def test_random_headers_do_no_harm(data: bytes) -> None:
    path = Path("/dev/shm") / f"onlooker-test-{os.getpid()}"
    try:
        path.write_bytes(b"\x7fELF\x02\x01\x01\x00" + bytes(8) + b"\x03\x00\x3e\x00" + data)
        _look_at_everything(path)
    finally:
        path.unlink(missing_ok=True)


def test_huge_sparse_tables_are_cut_off(library: Path, tmp_path: Path) -> None:
    """A file that claims tables of terabytes costs bounded time and memory."""
    data = bytearray(library.read_bytes())
    shoff, shnum = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    for index in range(shnum):
        kind = struct.unpack_from("<I", data, shoff + 64 * index + 4)[0]
        if kind in (2, 3, 11):  # symbol and string tables
            struct.pack_into("<QQ", data, shoff + 64 * index + 24, 4096, 1 << 40)
    path = tmp_path / "huge.so"
    path.write_bytes(data)
    os.truncate(path, (1 << 40) + 8192)
    before = _peak_kib(reset=True)
    with ElfFile(path) as elf:
        elf.find_functions(["SSL_read"])
    assert _peak_kib() - before < 32 * 1024


_NODE = [shutil.which("node") or "", *map(str, Path("/usr/lib").glob("*/libnode.so.*"))]  # Debian's node is a library
_JVM = map(str, Path("/usr/lib/jvm").glob("*/lib/server/libjvm.so"))
_LARGE = [path for path in (*_NODE, *_JVM) if path and Path(path).stat().st_size > 10 << 20]


@pytest.mark.skipif(not _LARGE, reason="neither node nor a Java runtime is installed")
def test_large_programs_cost_little_memory() -> None:
    code = """
import sys
from onlooker.attach.elf import ElfFile
from onlooker.attach.tls import examine
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
with ElfFile(sys.executable) as elf:
    examine(elf)
before = peak()
for path in sys.argv[1:]:
    with ElfFile(path) as elf:
        assert examine(elf)
print(peak() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code, *_LARGE], check=True, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})  # fmt: skip
    print(f"{int(ran.stdout)} KiB more for {_LARGE}")
    assert int(ran.stdout) < 12 * 1024
