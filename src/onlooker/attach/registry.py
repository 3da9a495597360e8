"""Which files are probed for which processes: attach when a process first needs a file, detach when it leaves.

Receives processes with the TLS libraries that `onlooker.attach.tls` found in them, holds the links. Each process has
links of its own, filtered to it: a process that is not watched gets no breakpoint, and pays nothing. A child inherits
the breakpoints of its parent at fork, but not the link: it is silent until it is attached itself.

May drop: what the kernel refuses, and what is beyond the limit; both are counted with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from onlooker.attach.sites import Site
from onlooker.attach.tls import Abi, Direction, TlsFunction, TlsLibrary
from onlooker.errors import AttachError
from onlooker.kernel import uprobe

_LINKS_LIMIT = 16384  # descriptors; the agent raises its limit of open files to more than this
COOKIE_RETURN = 1 << 40  # set where a place is probed for its return
_NO_REGISTER = 4  # rsp never holds an argument
ABI_NUMBERS = {abi: number for number, abi in enumerate(Abi)}
DIRECTION_NUMBERS = {Direction.READ: 0, Direction.WRITE: 1, Direction.NONE: 2}


class Closeable(Protocol):
    """What an attachment is to the registry."""

    def close(self) -> None:
        """Detach."""


@dataclass(frozen=True, slots=True)
class ProgramFds:
    """Descriptors of the programs for one kind of function.

    Attributes:
        entry: Runs where the arguments are seen; not needed with ``session``.
        returned: Runs where the return is seen; None if the kind has none.
        session: Runs at both, where the kernel has that; used instead of the two.
    """

    entry: int | None = None
    returned: int | None = None
    session: int | None = None


Programs = Callable[[TlsFunction], ProgramFds | None]
Attacher = Callable[[TlsLibrary, int], Sequence[Closeable]]


def cookie_of(function: TlsFunction, site: Site | None = None) -> int:
    """What a program needs to know about a place, as one number.

    Bits 0-7 `ABI_NUMBERS`, 8-15 `DIRECTION_NUMBERS`, then four bits for each of the first four arguments: the number of
    the register that holds it at the place (4, the stack pointer, for none). A return probe has `COOKIE_RETURN` too.
    The place is where the arguments are seen, if no other is given.
    """
    registers = (*(site or function.arguments).registers[:4], *[_NO_REGISTER] * 4)[:4]
    packed = sum(number << 16 + 4 * place for place, number in enumerate(registers))
    return ABI_NUMBERS[function.abi] | DIRECTION_NUMBERS[function.direction] << 8 | packed


def library_attacher(programs: Programs, features: uprobe.Features) -> Attacher:
    """The attacher that puts programs of the kernel on all functions of a library; one link for each program."""

    def attach(library: TlsLibrary, pid: int) -> list[Closeable]:
        wanted: list[tuple[int, bool, bool, int, int]] = []  # program, returns, session, offset, cookie
        for function in library.probes():
            fds, cookie = programs(function), cookie_of(function)
            if fds is None:
                continue
            site, back = function.arguments, function.returns
            if fds.session is not None:
                # One breakpoint for both: where the return can be seen, the arguments are still in registers.
                both = back or site
                wanted.append((fds.session, False, True, both.offset, cookie_of(function, both)))
                continue
            # The return first: a call that begins in between has its return seen without its entry, not the reverse.
            if back is not None and fds.returned is not None:
                wanted.append((fds.returned, True, False, back.offset, cookie | COOKIE_RETURN))
            if fds.entry is not None:
                wanted.append((fds.entry, False, False, site.offset, cookie))
        links: list[Closeable] = []
        try:
            for (program, returns, session), rows in groupby(sorted(wanted, key=_order), key=lambda row: row[:3]):
                places = list(rows)
                links.append(
                    uprobe.attach(
                        program, library.open_path, [row[3] for row in places], pid=pid, features=features,
                        cookies=[row[4] for row in places], returns=returns, session=session,
                    )
                )  # fmt: skip
        except AttachError:
            for link in links:
                link.close()
            raise
        return links

    return attach


def _order(row: tuple[int, bool, bool, int, int]) -> tuple[bool, int, bool, bool, int]:
    return (not row[1], *row[:4])


@dataclass(slots=True)
class ProbedFile:
    """A file with probes in it, and the processes they are for."""

    library: TlsLibrary
    links: dict[int, Sequence[Closeable]] = field(default_factory=dict)

    @property
    def pids(self) -> frozenset[int]:
        """Processes for which it is probed."""
        return frozenset(self.links)


class ProbeRegistry:
    """All probes of TLS libraries.

    Attributes:
        failures: Why attachments failed, with how many did.
        refused: Attachments beyond the limit.
    """

    def __init__(
        self,
        attacher: Attacher,
        *,
        links_limit: int = _LINKS_LIMIT,
        dispose: Callable[[Sequence[Closeable]], None] | None = None,
    ) -> None:
        """Make an empty registry.

        Args:
            attacher: Attaches one library for one process.
            links_limit: Most links that are held.
            dispose: Takes links that are done with; closing one takes tens of milliseconds, so an event loop hands
                them to a thread. Closed on the spot if None.
        """
        self._attacher = attacher
        self._dispose = dispose or close_all
        self._links_limit = links_limit
        self._files: dict[tuple[int, int, str], ProbedFile] = {}
        self._links = 0
        self.failures: dict[str, int] = {}
        self.refused = 0

    @property
    def files(self) -> list[ProbedFile]:
        """What is probed now."""
        return list(self._files.values())

    @property
    def links(self) -> int:
        """Attachments that are held."""
        return self._links

    def watch(self, pid: int, libraries: Iterable[TlsLibrary]) -> int:
        """Probe the libraries of a process that are not yet probed for it, and let go of those that it left.

        Call it when a process is chosen, after it ran another program, and whenever its libraries were looked at again.

        Returns:
            How many libraries were attached anew. What failed is in ``failures``; it is not tried again for this
            process until `forget`.
        """
        wanted = {(lib.device, lib.inode, lib.kind.value): lib for lib in libraries if lib.functions}
        for key in [key for key, file in self._files.items() if pid in file.links and key not in wanted]:
            self._release(key, pid)
        attached = 0
        for key, library in wanted.items():
            file = self._files.get(key)
            if file is not None and pid in file.links:
                continue
            links: Sequence[Closeable] = ()
            if self._links >= self._links_limit:
                self.refused += 1
            else:
                try:
                    links = self._attacher(library, pid)
                    attached += 1
                except AttachError as err:
                    reason = str(err.__cause__ or err)
                    self.failures[reason] = self.failures.get(reason, 0) + 1
            if file is None:
                file = self._files[key] = ProbedFile(library)
            file.links[pid] = links
            self._links += len(links)
        return attached

    def forget(self, pid: int) -> None:
        """Let go of all probes of a process: it ended, or is not wanted any more."""
        for key in [key for key, file in self._files.items() if pid in file.links]:
            self._release(key, pid)

    def close(self) -> None:
        """Let go of everything."""
        for key, file in list(self._files.items()):
            for pid in list(file.links):
                self._release(key, pid)

    def _release(self, key: tuple[int, int, str], pid: int) -> None:
        file = self._files[key]
        links = file.links.pop(pid)
        self._links -= len(links)
        self._dispose(links)
        if not file.links:
            del self._files[key]


def close_all(links: Sequence[Closeable]) -> None:
    """Detach, one after the other."""
    for link in links:
        link.close()
