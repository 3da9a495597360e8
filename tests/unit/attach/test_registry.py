"""Who holds which links. The attacher is a stand-in that counts: real ones are in tests/live/test_probe_sites.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.attach.registry import (
    ABI_NUMBERS,
    COOKIE_RETURN,
    ProbeRegistry,
    ProgramFds,
    cookie_of,
    library_attacher,
)
from onlooker.attach.sites import Need, Place, Site
from onlooker.attach.tls import Abi, Direction, TlsFunction, TlsKind, TlsLibrary
from onlooker.attach.x86 import Price
from onlooker.errors import AttachError
from onlooker.kernel import uprobe


def a_site(registers: tuple[int, ...] = (7, 6, 2), offset: int = 0x10) -> Site:
    return Site("f", offset, offset, Need.ARGUMENTS, Place.ENTRY, Price.EMULATED, 0.7, registers, "the entry")


def a_library(inode: int) -> TlsLibrary:
    function = TlsFunction("SSL_read", ("SSL_read",), Direction.READ, Abi.COUNT, a_site())
    return TlsLibrary(TlsKind.OPENSSL, f"/lib{inode}", 1, inode, f"/lib{inode}", "3", {"SSL_read": function}, True)


@dataclass
class Links:
    """Counts what is open."""

    open: set[int] = field(default_factory=set)
    made: int = 0
    refuse: set[int] = field(default_factory=set)

    def attach(self, library: TlsLibrary, pid: int) -> list[Link]:
        if pid in self.refuse:
            raise AttachError("cannot attach") from PermissionError("not allowed")
        self.made += 2
        return [Link(self, self.made - 1), Link(self, self.made)]


@dataclass
class Link:
    links: Links
    number: int

    def __post_init__(self) -> None:
        self.links.open.add(self.number)

    def close(self) -> None:
        self.links.open.remove(self.number)


def test_a_file_is_attached_once_for_each_process_and_let_go_with_the_last() -> None:
    links = Links()
    registry = ProbeRegistry(links.attach)
    assert registry.watch(10, [a_library(1)]) == 1
    assert registry.watch(10, [a_library(1)]) == 0
    assert registry.watch(11, [a_library(1), a_library(2)]) == 2
    assert {file.library.inode: file.pids for file in registry.files} == {1: {10, 11}, 2: {11}}
    registry.forget(11)
    assert {file.library.inode: file.pids for file in registry.files} == {1: {10}}
    assert registry.links == len(links.open) == 2
    registry.forget(10)
    assert registry.files == []
    assert not links.open


def test_a_library_that_the_process_left_is_let_go() -> None:
    links = Links()
    registry = ProbeRegistry(links.attach)
    registry.watch(10, [a_library(1)])
    registry.watch(10, [a_library(2)])
    assert [file.library.inode for file in registry.files] == [2]
    assert len(links.open) == 2


def test_a_refusal_is_counted_and_not_repeated() -> None:
    links = Links(refuse={10})
    registry = ProbeRegistry(links.attach)
    assert registry.watch(10, [a_library(1)]) == 0
    assert registry.watch(10, [a_library(1)]) == 0
    assert registry.failures == {"not allowed": 1}
    links.refuse.clear()
    registry.forget(10)
    assert registry.watch(10, [a_library(1)]) == 1


def test_links_are_bounded() -> None:
    links = Links()
    registry = ProbeRegistry(links.attach, links_limit=4)
    for pid in range(10, 15):
        registry.watch(pid, [a_library(1)])
    assert (registry.links, registry.refused) == (4, 3)
    registry.close()
    assert not links.open


@given(st.lists(st.tuples(st.integers(1, 4), st.sets(st.integers(1, 3)), st.booleans()), max_size=30))
def test_links_are_exactly_those_of_the_last_word_on_each_process(steps: list[tuple[int, set[int], bool]]) -> None:
    links = Links()
    registry = ProbeRegistry(links.attach)
    expected: dict[int, set[int]] = {}
    for pid, inodes, ends in steps:
        if ends:
            registry.forget(pid)
            expected.pop(pid, None)
        else:
            registry.watch(pid, [a_library(inode) for inode in inodes])
            expected[pid] = inodes
    held = {(file.library.inode, pid) for file in registry.files for pid in file.pids}
    assert held == {(inode, pid) for pid, inodes in expected.items() for inode in inodes}
    assert len(links.open) == registry.links == 2 * len(held)


@pytest.mark.parametrize(
    ("abi", "registers", "packed"),
    [(Abi.COUNT, (7, 6, 2), 0x4267), (Abi.FLAG, (7, 6, 2, 8), 0x8267), (Abi.GO_SLICE, (0, 3, 1), 0x4130)],
)
def test_cookies_tell_abi_direction_and_registers(abi: Abi, registers: tuple[int, ...], packed: int) -> None:
    function = TlsFunction("f", ("f",), Direction.WRITE, abi, a_site(registers))
    assert cookie_of(function) == ABI_NUMBERS[abi] | 1 << 8 | packed << 16


@pytest.mark.parametrize("session", [False, True])
def test_where_a_function_is_probed(monkeypatch: pytest.MonkeyPatch, session: bool) -> None:
    """Entry and return by two programs at places of their own; or by one, where the return is seen."""
    made: list[tuple[int, list[int], list[int], bool, bool]] = []

    def attach(program: int, file: str, offsets: list[int], **more: Any) -> uprobe.UprobeLink:
        made.append((program, offsets, more["cookies"], more["returns"], more["session"]))
        return uprobe.UprobeLink(file, 1)

    monkeypatch.setattr(uprobe, "attach", attach)
    entry, back = a_site((1, 2, 3), offset=0x20), replace(a_site((7, 6, 2), offset=0x10), need=Need.RETURN)
    function = TlsFunction("SSL_read", ("SSL_read",), Direction.READ, Abi.COUNT, entry, back)
    lonely = TlsFunction("written", ("written",), Direction.WRITE, Abi.GO_SLICE, entry)
    library = replace(a_library(1), functions={"SSL_read": function, "written": lonely})
    programs = ProgramFds(session=9) if session else ProgramFds(entry=7, returned=8)
    library_attacher(lambda function: programs, uprobe.Features(True, session, True))(library, 1)
    if session:
        assert made == [(9, [0x10, 0x20], [cookie_of(function, back), cookie_of(lonely)], False, True)]
    else:
        assert made == [
            (8, [0x10], [cookie_of(function) | COOKIE_RETURN], True, False),
            (7, [0x20, 0x20], sorted([cookie_of(function), cookie_of(lonely)]), False, False),
        ]
    assert cookie_of(function) != cookie_of(function, back)
