"""The length decoder, on literal bytes and against a real disassembler over real libraries."""

from __future__ import annotations

import glob
import shutil
import sys
from collections import Counter
from pathlib import Path

import capstone
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from onlooker.attach import x86
from onlooker.attach.x86 import Flow, Price, UnknownInstructionError, decode


@pytest.mark.parametrize(
    ("code", "length", "price"),
    [
        ("55", 1, Price.EMULATED),  # push %rbp
        ("4157", 2, Price.EMULATED),  # push %r15
        ("4855", 2, Price.STEPPED),  # push with a REX that the kernel does not take
        ("6655", 2, Price.STEPPED),  # push %bp
        ("90", 1, Price.EMULATED),
        ("6690", 2, Price.EMULATED),
        ("4190", 2, Price.STEPPED),  # xchg %eax,%r8d
        ("0f1f4400 00", 5, Price.NOP5),
        ("0f1f00", 3, Price.LONG_NOP),
        ("660f1f440000", 6, Price.LONG_NOP),
        ("2e660f1f840000000000", 10, Price.STEPPED),  # refused for its segment prefix
        ("f30f1efa", 4, Price.STEPPED),  # endbr64
        ("782f", 2, Price.EMULATED),  # js
        ("0f8693070000", 6, Price.EMULATED),  # jbe
        ("e35b", 2, Price.STEPPED),  # jrcxz
        ("e83dfeffff", 5, Price.EMULATED),
        ("e900000000", 5, Price.EMULATED),
        ("f2e900000000", 6, Price.STEPPED),  # bnd jmp
        ("eb10", 2, Price.EMULATED),
        ("ff25 00000000", 6, Price.STEPPED),  # jmp *(%rip)
        ("4883ec18", 4, Price.STEPPED),  # sub $0x18,%rsp
        ("c3", 1, Price.STEPPED),
        ("64488b042528000000", 9, Price.STEPPED),  # mov %fs:0x28,%rax
        ("48b8 0102030405060708", 10, Price.STEPPED),  # movabs
        ("66c7000102", 5, Price.STEPPED),  # 16-bit immediate
        ("c5f877", 3, Price.STEPPED),  # vzeroupper has no ModRM
        ("62f17c48100424", 7, Price.STEPPED),  # vmovups zmm
    ],
)
def test_length_and_price(code: str, length: int, price: Price) -> None:
    found = decode(bytes.fromhex(code) + b"\xcc\xcc")
    assert (found.length, found.price) == (length, price)


@pytest.mark.parametrize(
    ("code", "flow", "target"),
    [
        ("e8fbffffff", Flow.CALL, 0x1000),
        ("ebfe", Flow.JUMP, 0x1000),
        ("7502", Flow.CONDITIONAL, 0x1004),
        ("0f8400010000", Flow.CONDITIONAL, 0x1106),
        ("c3", Flow.RETURN, None),
        ("ffe0", Flow.INDIRECT_JUMP, None),
        ("ffd0", Flow.INDIRECT_CALL, None),
        ("0f0b", Flow.STOP, None),
    ],
)
def test_flow(code: str, flow: Flow, target: int | None) -> None:
    found = decode(bytes.fromhex(code), 0, 0x1000)
    assert (found.flow, found.target) == (flow, target)


@pytest.mark.parametrize("code", ["", "48", "0f", "e800", "8b04", "06", "c4e1", "6690e8"])
def test_what_is_cut_off_or_not_valid_is_refused(code: str) -> None:
    data = bytes.fromhex(code)
    with pytest.raises(UnknownInstructionError):
        decode(data, 2 if code == "6690e8" else 0)


def test_register_moves_are_known() -> None:
    assert decode(bytes.fromhex("4989c8")).copies == (1, 8)  # mov %rcx,%r8
    assert decode(bytes.fromhex("4c8bc1")).copies == (1, 8)  # the other encoding
    assert decode(bytes.fromhex("89c8")).copies is None  # 32 bits are not the whole argument


@given(st.binary(max_size=20))
def test_random_bytes_give_a_length_inside_them_or_are_refused(code: bytes) -> None:
    try:
        found = decode(code)
    except UnknownInstructionError:
        return
    assert 1 <= found.length <= min(15, len(code))


# Against a real disassembler ---------------------------------------------------------------------------------------

_REGISTERS = [
    "rax eax ax al ah", "rcx ecx cx cl ch", "rdx edx dx dl dh", "rbx ebx bx bl bh", "rsp esp sp spl",
    "rbp ebp bp bpl", "rsi esi si sil", "rdi edi di dil", *(f"r{n} r{n}d r{n}w r{n}b" for n in range(8, 16)),
]  # fmt: skip
_BITS = {name: 1 << number for number, names in enumerate(_REGISTERS) for name in names.split()}
# capstone says that these write rax; the manual says that they do not (test eax, imm; cdq and cqo write rdx only).
_CAPSTONE_IS_WRONG = {"test", "cdq", "cqo"}


def _libraries() -> list[Path]:
    places = [
        *glob.glob("/usr/lib/*/libssl.so.3"), *glob.glob("/usr/lib/*/libc.so.6"),
        *glob.glob("/usr/lib/*/libcrypto.so.3"), *glob.glob("/usr/lib/*/libstdc++.so.6"),
        *glob.glob("/usr/lib/*/libgnutls.so.30"), "/usr/local/go/bin/gofmt", shutil.which("node") or "",
    ]  # fmt: skip
    found = [Path(place) for place in places if place and Path(place).is_file()]
    return [
        path for path in found if path.name != "node" or path.stat().st_size > 10 << 20
    ]  # or its code is a library's


def _compare(path: Path, limit: int) -> tuple[int, Counter[str], Counter[str]]:
    """Instructions compared, mnemonics with another length, mnemonics that write more than was said."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    compared, lengths, writes = 0, Counter[str](), Counter[str]()
    with path.open("rb") as file:
        elf = ELFFile(file)
        text = elf.get_section_by_name(".text")
        base, data = text["sh_addr"], text.data()
        functions = {
            (symbol["st_value"], symbol["st_size"])
            for name in (".symtab", ".dynsym")
            if (table := elf.get_section_by_name(name)) is not None
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"] and symbol["st_value"] >= base
        }
    for address, size in sorted(functions):
        code = data[address - base : address - base + size]
        for real in disassembler.disasm(code, address):
            compared += 1
            try:
                ours = decode(code, real.address - address, real.address)
            except UnknownInstructionError:
                lengths["not decoded"] += 1
                continue
            if ours.length != real.size:
                lengths[real.mnemonic] += 1
            written = sum({_BITS.get(real.reg_name(register), 0) for register in real.regs_access()[1]})
            if written & ~ours.writes and real.mnemonic not in _CAPSTONE_IS_WRONG | {"call"}:
                writes[real.mnemonic] += 1
        if compared >= limit:
            break
    return compared, lengths, writes


@pytest.mark.skipif(sys.platform != "linux" or not _libraries(), reason="none of the libraries is installed")
@pytest.mark.parametrize("path", _libraries(), ids=lambda path: path.name)
def test_lengths_and_written_registers_agree_with_a_disassembler(path: Path) -> None:
    compared, lengths, writes = _compare(path, 60_000)
    refused = lengths.pop("not decoded", 0)
    print(f"{path.name}: {compared} instructions compared, {refused} refused")
    assert compared > 1000
    assert not lengths
    assert not writes
    assert refused <= compared // 10_000


@pytest.mark.slow
@pytest.mark.parametrize("path", _libraries(), ids=lambda path: path.name)
def test_all_functions_of_real_libraries(path: Path) -> None:
    compared, lengths, writes = _compare(path, 2_000_000)
    refused = lengths.pop("not decoded", 0)
    print(f"{path.name}: {compared} instructions compared, {refused} refused")
    assert not lengths
    assert not writes
    assert refused <= compared // 10_000


def test_walk_stops_where_nothing_can_be_decoded() -> None:
    found = list(x86.walk(bytes.fromhex("554889e506"), 0x10))
    assert [(i.address, i.length) for i in found] == [(0x10, 1), (0x11, 3)]
