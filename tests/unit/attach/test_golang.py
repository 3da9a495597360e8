"""The Go function table, against the Go toolchain's own listing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from onlooker.attach import golang
from onlooker.attach.elf import ElfFile
from onlooker.attach.tls import Abi, TlsKind, examine
from onlooker.errors import NotElfError

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="no Go toolchain")

_SOURCE = """package main

import (
	"crypto/tls"
	"os"
)

func main() {
	c, err := tls.Dial("tcp", os.Args[1], nil)
	if err != nil {
		panic(err)
	}
	c.Write([]byte("x"))
	c.Read(make([]byte, 10))
}
"""
_NAMES = ["crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write", "runtime.memmove", "main.main", "no.such"]


def _build(directory: Path, name: str, *flags: str) -> Path:
    source = directory / "main.go"
    source.write_text(_SOURCE)
    built = directory / name
    subprocess.run(
        ["go", "build", *flags, "-o", built, source],
        check=True,
        cwd=directory,
        env={**os.environ, "GO111MODULE": "off", "GOFLAGS": ""},
    )
    return built


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("go"), "plain")


def _listed(path: Path) -> dict[str, int]:
    lines = subprocess.run(["go", "tool", "nm", path], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines]
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[2] in _NAMES}


def test_functions_agree_with_the_toolchain(program: Path) -> None:
    expected = _listed(program)
    with ElfFile(program) as elf:
        found = golang.find_functions(elf, _NAMES)
    assert {name: symbol.address for name, symbol in found.items()} == expected
    assert len(expected) == 4
    assert all(symbol.size > 0 for symbol in found.values())


@pytest.mark.parametrize(
    "flags",
    [("-ldflags=-s -w",), ("-buildmode=pie", "-ldflags=-s -w")],
    ids=["stripped", "stripped pie"],
)
def test_stripped_programs_keep_their_table(tmp_path: Path, flags: tuple[str, ...]) -> None:
    named = _build(tmp_path, "named", *flags[:-1])
    stripped = _build(tmp_path, "stripped", *flags)
    with ElfFile(named) as one, ElfFile(stripped) as other:
        assert not other.has_static_symbols
        expected = {name: symbol.size for name, symbol in golang.find_functions(one, _NAMES).items()}
        found = golang.find_functions(other, _NAMES)
        assert {name: symbol.size for name, symbol in found.items()} == expected
        start = found["main.main"].address
        assert other.code(start, 64) != b""
        (finding,) = examine(other)
    assert (finding.kind, finding.visible) == (TlsKind.GO, True)
    assert all(function.arguments.is_cheap for function in finding.functions.values())
    assert {function.abi for function in finding.functions.values()} == {Abi.GO_SLICE, Abi.GO_COPY}
    assert all(function.returns is None for function in finding.functions.values())


def test_the_version_is_the_toolchain_s(program: Path) -> None:
    version = subprocess.run(["go", "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()
    with ElfFile(program) as elf:
        build = golang.build_of(elf)
    assert build is not None
    assert build.version == version


def test_other_programs_have_no_table() -> None:
    with ElfFile(shutil.which("cat") or "/bin/cat") as elf:
        assert not golang.is_go(elf)
        assert golang.build_of(elf) is None
        with pytest.raises(NotElfError, match="no Go function table"):
            golang.find_functions(elf, ["main.main"])


def test_broken_tables_are_refused_or_give_nothing(program: Path, tmp_path: Path) -> None:
    with ElfFile(program) as elf:
        section = elf.section(".gopclntab")
        assert section is not None
    data = program.read_bytes()
    path = tmp_path / "broken"
    for at in range(0, 72, 4):
        for value in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x7f"):
            copy = bytearray(data)
            copy[section.offset + at : section.offset + at + 4] = value
            path.write_bytes(copy)
            with ElfFile(path) as elf:
                try:
                    found = golang.find_functions(elf, _NAMES)
                except NotElfError:
                    continue
                assert found.keys() <= set(_NAMES)
