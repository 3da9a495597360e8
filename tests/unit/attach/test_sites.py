"""The choice of probe sites, on functions written for it in assembler."""

from __future__ import annotations

import subprocess

import pytest

from onlooker.attach.elf import ElfFile, Symbol
from onlooker.attach.sites import ARGUMENT_REGISTERS, Need, Place, Prices, Site, SiteChooser
from onlooker.attach.x86 import Price

RDI, RSI, RDX, RCX, R8 = 7, 6, 2, 1, 8

# Each function: its name, its body. The label "here" marks where the probe belongs; without it, the entry is meant.
_FUNCTIONS = {
    "pushes": "push %rbp; mov %rsp,%rbp; pop %rbp; ret",
    "protected": "endbr64; here: push %rbp; xor %edi,%edi; pop %rbp; ret",
    "wrapper_branch": "sub $24,%rsp; test %edx,%edx; here: js 1f; call inner_pushes; 1: add $24,%rsp; ret",
    "clobbers_first": "mov %rsi,%rdi; xor %edx,%edx; push %rbx; pop %rbx; ret",
    "moves_fourth": "mov %rcx,%r8; xor %ecx,%ecx; here: jmp inner_pushes",
    "loops_back": "mov (%rdi),%eax; 1: add $1,%eax; cmp $9,%eax; jne 1b; ret",
    "begins_over": "2: mov (%rdi),%eax; here: push %rbx; pop %rbx; test %eax,%eax; jne 2b; ret",
    "reached_from_outside": "mov (%rdi),%rax; landing: push %rbx; pop %rbx; ret",
    "outside": "push %rbx; pop %rbx; .byte 0xe9; .long landing - . - 4",
    "nothing_cheap": "mov (%rdi),%rax; jmp *16(%rax)",
    "table_behind_prologue": "mov %edi,%eax; here: push %rbx; mov %rax,%rbx; jmp *%rbx",
    "table_may_lead_back": "mov %edi,%eax; nop; cmp $1,%eax; mov %rsi,%rax; jmp *%rax",
    "inner_pushes": "push %r15; pop %r15; ret",
    "extended": "sub $8,%rsp; call inner_pushes; add $8,%rsp; ret",
    "extended_flags": "mov %rcx,%r8; xor %ecx,%ecx; sub $8,%rsp; call inner_pushes; add $8,%rsp; ret",
    "extended_twice": "mov %rcx,%r9; jmp extended_middle",
    "extended_middle": "sub $8,%rsp; call inner_pushes; add $8,%rsp; ret",
    "loses_argument": "xor %edx,%edx; sub $8,%rsp; call inner_pushes; add $8,%rsp; ret",
    "long_nop_first": "nopl (%rax); mov (%rdi),%eax; ret",
    "nop5_first": ".byte 0x0f,0x1f,0x44,0,0; ret",
    "data_in_code": "mov (%rdi),%rax; push %rbx; pop %rbx; .byte 0x06; ret",
    "go_small": "cmp 16(%r14),%rsp; jbe 1f; here: push %rbp; mov %rsp,%rbp; pop %rbp; ret; "
    "1: mov %rax,8(%rsp); call inner_pushes; mov 8(%rsp),%rax; jmp go_small",
    "go_other_branch": "cmp 16(%r14),%rsp; jbe 1f; push %rbp; mov %rsp,%rbp; pop %rbp; ret; "
    "1: mov %rax,8(%rsp); call inner_pushes; ret",
    "returns_twice": "test %edi,%edi; js 1f; xor %eax,%eax; ret; 1: mov $1,%eax; ret",
    "calls_once": "push %rbx; call inner_pushes; pop %rbx; ret",
    "calls_twice": "push %rbx; call inner_pushes; call inner_pushes; pop %rbx; ret",
}


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> ElfFile:
    path = tmp_path_factory.mktemp("sites") / "libsites.so"
    text = [".text"]
    for name, body in _FUNCTIONS.items():
        lines = body.replace("here:", f"here_{name}:").replace("; ", "\n")
        text += [".p2align 4", f".type {name},@function", f"{name}:", lines, f".size {name},.-{name}"]
    source = path.with_suffix(".s")
    source.write_text("\n".join([*text, ".section .note.GNU-stack", ""]))
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", path, source], check=True)
    with ElfFile(path) as opened:
        places = {}
        listing = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout
        for line in listing.splitlines():
            address, _, name = line.split()
            places[name] = int(address, 16)
        opened.places = places  # type: ignore[attr-defined]
        yield opened


def _symbol(elf: ElfFile, name: str) -> Symbol:
    return elf.find_functions([name])[name]


def _chosen(elf: ElfFile, name: str, need: Need = Need.ARGUMENTS, arguments: int = 3) -> Site:
    site = SiteChooser(elf).choose(_symbol(elf, name), need, arguments=arguments)
    assert site is not None
    assert site.offset == elf.offset_of(site.address)
    return site


@pytest.mark.parametrize(
    "name",
    ["protected", "wrapper_branch", "moves_fourth", "table_behind_prologue"],
)
def test_the_first_cheap_instruction_is_taken_while_the_arguments_live(elf: ElfFile, name: str) -> None:
    site = _chosen(elf, name)
    assert site.address == elf.places[f"here_{name}"]  # type: ignore[attr-defined]
    assert (site.place, site.price) == (Place.INSIDE, Price.EMULATED)


@pytest.mark.parametrize("name", ["pushes", "inner_pushes", "outside"])
def test_a_cheap_entry_is_taken_as_it_is(elf: ElfFile, name: str) -> None:
    site = _chosen(elf, name)
    assert (site.address, site.place, site.price) == (_symbol(elf, name).address, Place.ENTRY, Price.EMULATED)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("clobbers_first", "overwritten"),
        ("loops_back", "loop"),
        ("begins_over", "its own beginning"),
        ("reached_from_outside", "elsewhere"),
        ("nothing_cheap", "first branch"),
        ("table_may_lead_back", "jump table"),
        ("data_in_code", "decoded"),
    ],
)
def test_where_nothing_cheap_is_safe_the_entry_says_its_price(elf: ElfFile, name: str, reason: str) -> None:
    site = _chosen(elf, name)
    assert (site.address, site.place, site.price) == (_symbol(elf, name).address, Place.ENTRY, Price.STEPPED)
    assert site.expected_price_us == Prices().stepped
    assert reason in site.explanation


def test_moved_arguments_are_followed(elf: ElfFile) -> None:
    assert _chosen(elf, "moves_fourth", arguments=4).registers == (RDI, RSI, RDX, R8)
    assert _chosen(elf, "moves_fourth", arguments=3).registers == (RDI, RSI, RDX)


def test_a_return_probe_stands_where_the_stack_pointer_is_still_at_the_entry(elf: ElfFile) -> None:
    assert _chosen(elf, "protected", Need.RETURN).place is Place.INSIDE
    assert _chosen(elf, "moves_fourth", Need.RETURN).place is Place.INSIDE
    dear = _chosen(elf, "wrapper_branch", Need.RETURN)
    assert (dear.place, dear.price) == (Place.ENTRY, Price.STEPPED)
    assert "stack pointer" in dear.explanation


def test_the_function_behind_a_wrapper(elf: ElfFile) -> None:
    chooser = SiteChooser(elf)
    inner = _symbol(elf, "inner_pushes").address
    for name, registers in [
        ("extended", (RDI, RSI, RDX, RCX)),
        ("extended_flags", (RDI, RSI, RDX, R8)),
        ("extended_twice", (RDI, RSI, RDX, RCX)),
    ]:
        sites = chooser.inner(_symbol(elf, name), Need.RETURN, arguments=4)
        assert [(s.address, s.registers, s.place) for s in sites] == [(inner, registers, Place.INNER)], name
    for name in ("loses_argument", "wrapper_branch", "pushes", "nothing_cheap"):
        assert chooser.inner(_symbol(elf, name), Need.RETURN, arguments=4) == [], name


def test_nops_have_prices_of_their_own(elf: ElfFile) -> None:
    assert _chosen(elf, "long_nop_first").price is Price.LONG_NOP
    assert _chosen(elf, "nop5_first").price is Price.NOP5
    assert _chosen(elf, "nop5_first").expected_price_us < _chosen(elf, "pushes").expected_price_us


def test_go_functions_are_probed_behind_the_stack_check(elf: ElfFile) -> None:
    chooser = SiteChooser(elf)
    site = chooser.choose_go(_symbol(elf, "go_small"), (0, 3, 1))
    assert site is not None
    assert site.address == elf.places["here_go_small"]  # type: ignore[attr-defined]
    other = chooser.choose_go(_symbol(elf, "go_other_branch"), (0, 3, 1))
    assert other is not None
    assert other.place is Place.INSIDE  # an ordinary branch: passed once per call, so the branch itself serves
    assert other.address == _symbol(elf, "go_other_branch").address + 4


def test_the_only_call_of_a_function(elf: ElfFile) -> None:
    chooser = SiteChooser(elf)
    inner = _symbol(elf, "inner_pushes").address
    site = chooser.at_call(_symbol(elf, "calls_once"), inner, (0, 3, 1), "inner")
    assert site is not None
    assert site.address == _symbol(elf, "calls_once").address + 1
    assert chooser.at_call(_symbol(elf, "calls_twice"), inner, (0, 3, 1), "inner") is None
    assert chooser.at_call(_symbol(elf, "pushes"), inner, (0, 3, 1), "inner") is None


def test_return_instructions(elf: ElfFile) -> None:
    sites = SiteChooser(elf).returns(_symbol(elf, "returns_twice"), (0,))
    assert len(sites) == 2
    assert all(elf.code(site.address, 1) == b"\xc3" and site.price is Price.STEPPED for site in sites)


def test_other_machines_get_the_entry(elf: ElfFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "machine", "aarch64")
    site = _chosen(elf, "protected")
    assert (site.address, site.place, site.registers) == (_symbol(elf, "protected").address, Place.ENTRY, (0, 1, 2))


def test_addresses_outside_of_code_have_no_site(elf: ElfFile) -> None:
    assert SiteChooser(elf).choose(Symbol("x", 1 << 40, 10), Need.ARGUMENTS) is None
    assert len(ARGUMENT_REGISTERS) == 6
