import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.discover.elf import ElfFacts, read_facts
from onlooker.discover.language import Language, Languages
from support.fake_proc import FakeProc

GO_BUILDINFO = b"\xff Go buildinf:" + b"\x08\x02" + b"\0" * 16 + b"\x08go1.22.3" + b"\0" * 8


def an_elf(sections: dict[str, bytes], *, wide: bool = True, order: str = "<") -> bytes:
    """The least ELF file that has the given sections."""
    names = b"\0"
    entries: list[tuple[int, int, int]] = [(0, 0, 0)]
    body = b""
    header_size = 64 if wide else 52
    for name, content in {**sections, ".shstrtab": b""}.items():
        at = len(names)
        names += name.encode() + b"\0"
        if name != ".shstrtab":
            entries.append((at, header_size + len(body), len(content)))
            body += content
        else:
            entries.append((at, header_size + len(body), len(names)))
    body += names
    layout = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    table = b"".join(struct.pack(layout, name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in entries)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + b"\0" * 9
    header = ident + struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        2, 62, 1, 0, 0, header_size + len(body), 0, header_size, 0, 0,
        64 if wide else 40, len(entries), len(entries) - 1,
    )  # fmt: skip
    return header + body + table


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({".text": b"x"}, ElfFacts()),
        ({".gopclntab": b"", ".go.buildinfo": GO_BUILDINFO}, ElfFacts("go", "1.22.3")),
        ({".go.buildinfo": b"\xff Go buildinf:\x08\x00" + b"\0" * 30}, ElfFacts("go", "")),
        ({".gopclntab": b"", ".dynamic": b"\0"}, ElfFacts("go", "", True)),
        ({".comment": b"GCC: 12\0rustc version 1.75.0 (82e1608df 2023-12-21)\0"}, ElfFacts("rust", "1.75.0")),
        ({".strtab": b"\0_ZN3std9panicking10rust_panic17h0E\0"}, ElfFacts("rust")),
        ({".svm_heap": b"\0"}, ElfFacts("java")),
        ({".dynstr": b"\0JVM_Open\0"}, ElfFacts("java")),
        ({".dynstr": b"\0not_JVM_Open\0"}, ElfFacts()),
        ({".dynstr": b"\0libstdc++.so.6\0", ".dynamic": b"\0"}, ElfFacts("cpp", "", True)),
        ({".dynstr": b"\0libstdc++.so.6\0Py_Initialize\0"}, ElfFacts("python")),
        ({"__managedcode": b"\0"}, ElfFacts("dotnet")),
    ],
)
def test_sections_and_names_give_the_language_away(
    tmp_path: Path, sections: dict[str, bytes], expected: ElfFacts, wide: bool, order: str
) -> None:
    file = tmp_path / "program"
    file.write_bytes(an_elf(sections, wide=wide, order=order))
    assert read_facts(str(file)) == expected


def test_a_mark_across_two_reads_is_found(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(an_elf({".strtab": b"\0" * (256 * 1024 - 5) + b"rust_panic\0"}))
    assert read_facts(str(file)).language == "rust"


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=40))
def test_a_broken_file_is_no_fact_and_no_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, patch: bytes
) -> None:
    file = tmp_path_factory.mktemp("elf") / "program"
    file.write_bytes(b"\x7fELF\x02\x01" + junk)
    read_facts(str(file))
    whole = bytearray(an_elf({".comment": b"rustc version 1.75.0 (x)", ".go.buildinfo": GO_BUILDINFO}))
    whole[at : at + len(patch)] = patch
    file.write_bytes(whole)
    read_facts(str(file))
    file.write_bytes(whole[:at])
    read_facts(str(file))


def test_huge_declared_sizes_are_not_believed(tmp_path: Path) -> None:
    whole = bytearray(an_elf({".comment": b"x", ".strtab": b"y"}))
    (table,) = struct.unpack_from("<Q", whole, 40)
    for index in range(1, 4):
        struct.pack_into("<Q", whole, table + index * 64 + 32, 1 << 62)
    file = tmp_path / "program"
    file.write_bytes(whole)
    read_facts(str(file))


def test_devices_and_missing_files_are_no_programs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read_facts(str(tmp_path / "fifo")) == ElfFacts()
    assert read_facts("/dev/zero") == ElfFacts()
    assert read_facts(str(tmp_path / "none")) == ElfFacts()


@pytest.mark.parametrize(
    ("exe", "expected"),
    [
        ("/usr/bin/python3.11", Language("python", "cpython", "3.11", True)),
        ("/home/ann/.pyenv/versions/3.12.4/bin/python3.12", Language("python", "cpython", "3.12.4", True)),
        ("/opt/pypy/bin/pypy3", Language("python", "pypy", "3", True)),
        ("/usr/bin/node", Language("nodejs", "nodejs", "", True)),
        ("/home/ann/.nvm/versions/node/v20.20.2/bin/node", Language("nodejs", "nodejs", "20.20.2", True)),
        ("/usr/bin/deno", Language("nodejs", "deno", "", True)),
        ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", Language("java", "java", "17", True)),
        ("/usr/lib/jvm/java-8-openjdk/jre/bin/java", Language("java", "java", "8", True)),
        ("/usr/bin/ruby3.1", Language("ruby", "ruby", "3.1", True)),
        ("/usr/sbin/php-fpm8.2", Language("php", "php", "8.2", True)),
        ("/usr/lib/erlang/erts-14/bin/beam.smp", Language("generic", "beam", "", True)),
        ("/usr/bin/perl", Language("generic", "perl", "", True)),
        ("/usr/bin/nodepad", Language("generic")),
        ("/srv/php/bin/worker", Language("php", "php")),
    ],
)
def test_names_of_interpreters(tmp_path: Path, exe: str, expected: Language) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70, exe=exe)
    process = fake.open().process(70)
    assert process is not None
    assert Languages().detect(process) == expected


def test_the_release_file_tells_the_version_of_java(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.file("/opt/jdk/release", 'IMPLEMENTOR="x"\nJAVA_VERSION="21.0.2"\n')
    fake.add(70, exe="/opt/jdk/bin/java")
    process = fake.open().process(70)
    assert process is not None
    assert Languages().detect(process).version == "21.0.2"


@pytest.mark.parametrize(
    ("libraries", "expected"),
    [
        ([], Language("generic")),
        (["libc.so.6", "libstdc++.so.6"], Language("cpp")),
        (["libstdc++.so.6", "libpython3.11.so.1.0"], Language("python", "cpython", "3.11")),
        (["libpython3.11.so.1.0", "libjvm.so"], Language("java", "java")),
        (["libjvm.so", "libcoreclr.so"], Language("dotnet", ".NET")),
        (["libruby-3.1.so.3.1.2"], Language("ruby", "ruby", "3.1")),
        (["libphp8.2.so"], Language("php", "php", "8.2")),
        (["libpythonish.so"], Language("generic")),
    ],
)
def test_mapped_libraries_tell_what_is_embedded(tmp_path: Path, libraries: list[str], expected: Language) -> None:
    fake = FakeProc(tmp_path)
    maps = "".join(f"7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/{name}\n" for name in libraries)
    fake.add(70, exe="/usr/sbin/host", maps=maps.encode())
    process = fake.open().process(70)
    assert process is not None
    assert Languages().detect(process) == expected


def test_an_executable_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_bytes(an_elf({".gopclntab": b""}))
    fake = FakeProc(tmp_path)
    fake.add(70, exe=str(program))
    reads: list[str] = []
    monkeypatch.setattr("onlooker.discover.language.read_facts", lambda path: reads.append(path) or read_facts(path))
    languages = Languages(capacity=1)
    for _ in range(3):
        process = fake.open().process(70)
        assert process is not None
        assert languages.detect(process).name == "go"
    assert len(reads) == 1


def test_a_compiled_program_of_this_machine(tmp_path: Path) -> None:
    program = tmp_path / "program"
    source = "int main(void) { return 0; }"
    compiled = subprocess.run(["cc", "-x", "c", "-", "-o", program], input=source.encode(), check=False)
    if compiled.returncode:
        pytest.skip("no C compiler")
    assert read_facts(str(program)) == ElfFacts("", "", True)
    assert read_facts(os.path.realpath(sys.executable)).dynamic
