"""The thread that looks into processes: when it looks, what it attaches, and what it says of what it cannot see.

The kernel and the files are stood in for: what they really do is tested in ``tests/live/test_tls.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest

from onlooker.attach import prober as module
from onlooker.attach.prober import NO_LIBRARY, Prober, outlook_of, program_chooser
from onlooker.attach.registry import ProgramFds
from onlooker.attach.sites import Need, Place, Site
from onlooker.attach.tls import Abi, Direction, TlsFunction, TlsKind, TlsLibrary
from onlooker.attach.x86 import Price
from onlooker.errors import LoadError
from onlooker.kernel import uprobe

FDS = {"tls_call": 11, "tls_free": 12, "tls_go_read": 13, "tls_loaded": 14}
PID = 2**22 + 7  # no process has it


def a_site(need: Need = Need.ARGUMENTS) -> Site:
    return Site("f", 64, 64, need, Place.ENTRY, Price.EMULATED, 0.7, (7, 6, 2), "")


def a_function(name: str, abi: Abi, *, returns: bool = True, direction: Direction = Direction.READ) -> TlsFunction:
    return TlsFunction(name, (name,), direction, abi, a_site(), a_site(Need.RETURN) if returns else None)


def a_library(kind: TlsKind = TlsKind.OPENSSL, *, visible: bool = True, reason: str = "") -> TlsLibrary:
    functions = {"SSL_read": a_function("SSL_read", Abi.COUNT)} if visible else {}
    return TlsLibrary(kind, "/lib/x.so", 1, 2, "/proc/1/x", "3.0", MappingProxyType(functions), visible, reason)


class Files:
    """A catalog that finds what it is told to."""

    def __init__(self, *libraries: TlsLibrary) -> None:
        self.now = list(libraries)
        self.asked: list[int] = []

    def libraries(self, pid: int) -> list[TlsLibrary]:
        self.asked.append(pid)
        return self.now


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was attached, as (kind, pid)."""
    found: list[tuple[str, int]] = []

    def attacher(programs: object, features: object) -> Callable[[TlsLibrary, int], list[object]]:
        def attach(library: TlsLibrary, pid: int) -> list[object]:
            found.append((library.kind.value, pid))
            return []

        return attach

    monkeypatch.setattr(module, "library_attacher", attacher)
    monkeypatch.setattr(uprobe, "detect", lambda: uprobe.Features(True, True, True))
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("function", "fds"),
    [
        (a_function("SSL_read", Abi.FLAG), ProgramFds(11, 11)),
        (a_function("SSL_sendfile", Abi.SENDFILE), ProgramFds(11, 11)),
        (a_function("SSL_do_handshake", Abi.EVENT, direction=Direction.NONE), ProgramFds(11, 11)),
        (a_function("SSL_do_handshake", Abi.EVENT, returns=False, direction=Direction.NONE), None),
        (a_function("SSL_free", Abi.EVENT, returns=False, direction=Direction.NONE), ProgramFds(12)),
        (a_function("crypto/tls.(*Conn).Read", Abi.GO_SLICE, returns=False), ProgramFds(13)),
        (a_function("crypto/tls.(*Conn).Read: copy", Abi.GO_COPY, returns=False), ProgramFds(11, 11)),
        (a_function("crypto/tls.(*Conn).Write", Abi.GO_SLICE, returns=False), ProgramFds(11, 11)),
    ],
)
def test_each_kind_of_function_gets_its_programs(function: TlsFunction, fds: ProgramFds | None) -> None:
    assert program_chooser(FDS)(function) == fds
    # where one program serves both ends of a call, it stands for the two
    both = fds if fds is None or fds.entry != FDS["tls_call"] else ProgramFds(session=15)
    assert program_chooser({**FDS, "tls_both": 15})(function) == both


def test_a_library_that_cannot_be_followed_is_said_to_be_unseen() -> None:
    (row,) = outlook_of(7, [a_library(TlsKind.RUSTLS, visible=False, reason="several versions")])
    assert (row.visible, row.reason) == (False, "several versions")
    (row,) = outlook_of(7, [a_library(visible=False)])
    assert (row.visible, row.reason) == (False, "not all of its functions were found")
    (row,) = outlook_of(7, [a_library(reason="in part")])
    assert (row.visible, row.reason) == (True, "in part")


def test_programs_are_loaded_once_and_only_when_a_library_is_found(attached: list[tuple[str, int]]) -> None:
    loads, marks = [], []

    def load(features: uprobe.Features) -> Mapping[str, int]:
        loads.append(features)
        return FDS

    files = Files()
    prober = Prober(load, lambda *mark: marks.append(mark), catalog=files)  # type: ignore[arg-type]
    prober.start()
    try:
        prober.look(PID)
        wait_for(lambda: PID in files.asked)
        assert (loads, prober.probed()) == ([], 0)
        files.now = [a_library()]
        prober.look_again(PID)
        wait_for(lambda: prober.probed() == 1)
        prober.look(PID + 1)
        wait_for(lambda: prober.probed() == 2)
        assert attached == [("openssl", PID), ("openssl", PID + 1)]
        assert len(loads) == 1
        assert {(PID, False), (PID + 1, False)} == set(marks)
        prober.forget(PID)
        wait_for(lambda: prober.probed() == 1)
    finally:
        prober.stop()


def test_rustls_is_said_to_the_kernel_side(attached: list[tuple[str, int]]) -> None:
    marks: list[tuple[int, bool]] = []
    files = Files(a_library(), a_library(TlsKind.RUSTLS))
    prober = Prober(lambda features: FDS, lambda *mark: marks.append(mark), catalog=files)  # type: ignore[arg-type]
    prober.start()
    try:
        prober.look(PID)
        wait_for(lambda: marks)
        assert marks[0] == (PID, True)
        assert attached == [("openssl", PID), ("rustls", PID)]
    finally:
        prober.stop()


def test_a_library_without_probes_is_named_and_not_attached(attached: list[tuple[str, int]]) -> None:
    files = Files(a_library(TlsKind.RUSTLS, visible=False, reason="several versions"))
    prober = Prober(lambda features: FDS, lambda pid, rustls: None, catalog=files)  # type: ignore[arg-type]
    prober.start()
    try:
        prober.look(PID)
        wait_for(prober.invisible)
        assert attached == []
        assert prober.invisible() == {"several versions": 1.0}
    finally:
        prober.stop()


def test_a_process_that_speaks_tls_without_a_library_is_named(attached: list[tuple[str, int]]) -> None:
    files = Files()
    prober = Prober(lambda features: FDS, lambda pid, rustls: None, catalog=files)  # type: ignore[arg-type]
    prober.start()
    try:
        prober.speaks_tls(PID)  # not watched: nobody's business
        prober.look(PID + 1)
        prober.speaks_tls(PID + 1)
        wait_for(prober.invisible)
        assert prober.invisible() == {NO_LIBRARY: 1.0}
        assert [row.pid for row in prober.outlook()] == [PID + 1]
    finally:
        prober.stop()


def test_a_kernel_that_refuses_the_programs_is_told_once(attached: list[tuple[str, int]]) -> None:
    loads = []

    def load(features: uprobe.Features) -> Mapping[str, int]:
        loads.append(features)
        raise LoadError("no room")

    prober = Prober(load, lambda pid, rustls: None, catalog=Files(a_library()))  # type: ignore[arg-type]
    prober.start()
    try:
        prober.look(PID)
        prober.look(PID + 1)
        wait_for(lambda: prober.invisible().get("no room") == 2.0)
        assert len(loads) == 1
        assert attached == []
    finally:
        prober.stop()
