"""What ``/proc`` tells about a process, read in small bounded pieces.

Everything below ``/proc/PID`` belongs to the process that is looked at: it may lie, be huge, or vanish between two
reads.  So each reader takes a limit, gives a plain "nothing" instead of raising, and decodes with replacement
characters.  A `Process` reads only what it is asked for and is thrown away after the decision.  Only where no file
descriptor is left does every reader raise `DescriptorError`.
"""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from onlooker.errors import DescriptorError

CMDLINE_LIMIT: Final = 256 * 1024  # class paths of Java are long; the kernel allows 128 KiB an argument
ENVIRON_LIMIT: Final = 64 * 1024
MAPS_LIMIT: Final = 4 * 1024 * 1024
SMALL_LIMIT: Final = 16 * 1024
NET_LIMIT: Final = 4 * 1024 * 1024
FD_LIMIT: Final = 4096  # a server listens before it takes connections: its listening sockets have low numbers
CHUNK: Final = 64 * 1024

_PF_KTHREAD: Final = 0x0020_0000  # include/linux/sched.h
_DELETED: Final = " (deleted)"
_CONTAINER_ID: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{64}|[0-9a-f]{32}-[0-9]{1,20})(?![0-9a-f])")

KEPT_VARIABLES: Final = frozenset(
    {
        b"OTEL_SERVICE_NAME",
        b"OTEL_RESOURCE_ATTRIBUTES",
        b"SPRING_APPLICATION_NAME",
        b"FLASK_APP",
        b"DJANGO_SETTINGS_MODULE",
        b"UVICORN_APP",
        b"NODE_UNIQUE_ID",
        b"RELEASE_NAME",  # Elixir and Erlang releases
        b"DOTNET_VERSION",
    }
)


@dataclass(frozen=True, slots=True)
class Stat:
    """Fields of ``/proc/PID/stat``.

    Attributes:
        start_ticks: Field 22, clock ticks since boot: with the pid, the identity of a process.
        image: Start of code and of the stack (fields 26 and 28).  A child has its parent's until it calls exec, and
            address space randomisation makes a chance match unlikely.  (0, 0) where the kernel hides them.
    """

    comm: str
    state: str
    parent: int
    is_kernel_thread: bool
    threads: int
    start_ticks: int
    image: tuple[int, int]


class ProcFs:
    """A ``/proc`` file system, or a tree that looks like one.

    Args:
        root: Where it is mounted.
        boot_unix_ns: Unix time of the boot: turns start times into Unix times.
        ticks_per_second: ``sysconf(_SC_CLK_TCK)`` of the kernel that wrote ``stat``.
    """

    def __init__(self, root: str = "/proc", *, boot_unix_ns: int = 0, ticks_per_second: int = 100) -> None:
        self.root = root
        self.boot_unix_ns = boot_unix_ns
        self.ticks_per_second = ticks_per_second
        self._listening: dict[str, dict[str, int]] = {}

    def pids(self) -> list[int]:
        """All processes of now, ascending."""
        try:
            return sorted(int(name) for name in os.listdir(self.root) if name.isascii() and name.isdigit())
        except OSError as err:
            _check(err)
            return []

    def stat(self, pid: int) -> Stat | None:
        """None when the process is gone, or is a zombie."""
        return parse_stat(self.read(pid, "stat", 4096))

    def process(self, pid: int) -> Process | None:
        """A view of a living process."""
        stat = self.stat(pid)
        return None if stat is None else Process(self, pid, stat)

    def read(self, pid: int, name: str, limit: int) -> bytes:
        """At most ``limit`` bytes of ``/proc/PID/name``; empty when it cannot be read."""
        return _read(f"{self.root}/{pid}/{name}", limit)

    def link(self, pid: int, name: str) -> str:
        """Target of the link ``/proc/PID/name``; empty when it cannot be read."""
        try:
            return os.fsencode(os.readlink(f"{self.root}/{pid}/{name}")).decode("utf-8", "replace")
        except OSError:
            return ""

    def start_unix_ns(self, start_ticks: int) -> int:
        return self.boot_unix_ns + start_ticks * 1_000_000_000 // self.ticks_per_second

    def ticks_of_boot_ns(self, boot_ns: int) -> int:
        """The kernel's own rounding of a start time, so that records and ``stat`` agree."""
        return boot_ns * self.ticks_per_second // 1_000_000_000

    def forget_listening(self) -> None:
        """Read the tables of listening sockets again when they are next needed."""
        self._listening.clear()

    def listening(self, pid: int) -> dict[str, int]:
        """Socket link (``socket:[inode]``) to port, for all sockets that listen in the network namespace of ``pid``.

        One read a namespace, kept until `forget_listening`.
        """
        namespace = self.link(pid, "ns/net") or f"of {pid}"
        found = self._listening.get(namespace)
        if found is None:
            found = {}
            for table in ("net/tcp", "net/tcp6"):
                found.update(_listening_sockets(f"{self.root}/{pid}/{table}"))
            if len(self._listening) >= 1024:  # a host with more network namespaces reads some of them again
                self._listening.clear()
            self._listening[namespace] = found
        return found


class Process:
    """A process as ``/proc`` shows it.  Each property is read once, when it is first asked for."""

    def __init__(self, proc: ProcFs, pid: int, stat: Stat) -> None:
        self._proc = proc
        self.pid = pid
        self.stat = stat

    def still_there(self) -> bool:
        """Whether what was read belongs to the process that ``stat`` named, and not to a later one with its pid."""
        now = self._proc.stat(self.pid)
        return now is not None and now.start_ticks == self.stat.start_ticks

    @property
    def start_unix_ns(self) -> int:
        return self._proc.start_unix_ns(self.stat.start_ticks)

    @cached_property
    def exe(self) -> str:
        """Path of the executable in the mount namespace of the process, without the mark of a deleted file."""
        return self._proc.link(self.pid, "exe").removesuffix(_DELETED)

    @property
    def exe_name(self) -> str:
        return self.exe.rpartition("/")[2]

    @property
    def exe_file(self) -> str:
        """A path that opens the executable, whatever its mount namespace, also when it was deleted."""
        return f"{self._proc.root}/{self.pid}/exe"

    @cached_property
    def args(self) -> tuple[str, ...]:
        raw = self._proc.read(self.pid, "cmdline", CMDLINE_LIMIT)
        return tuple(raw.rstrip(b"\0").decode("utf-8", "replace").split("\0")) if raw else ()

    @cached_property
    def environ(self) -> dict[str, str]:
        """The variables of `KEPT_VARIABLES` that the process was started with."""
        kept: dict[str, str] = {}
        for entry in self._proc.read(self.pid, "environ", ENVIRON_LIMIT).split(b"\0"):
            name, separator, value = entry.partition(b"=")
            if separator and name in KEPT_VARIABLES:
                kept.setdefault(name.decode(), value.decode("utf-8", "replace"))
        return kept

    @cached_property
    def uid(self) -> int:
        """Effective user id; -1 when unknown."""
        match = re.search(rb"^Uid:\s+\d+\s+(\d{1,10})", self._proc.read(self.pid, "status", SMALL_LIMIT), re.MULTILINE)
        return int(match[1]) if match else -1

    @cached_property
    def cwd(self) -> str:
        return self._proc.link(self.pid, "cwd").removesuffix(_DELETED)

    @cached_property
    def container_id(self) -> str:
        """Id of the container by the cgroup path; empty outside of one."""
        text = self._proc.read(self.pid, "cgroup", SMALL_LIMIT).decode("utf-8", "replace")
        ids = _CONTAINER_ID.findall(text)
        return ids[-1] if ids else ""

    @cached_property
    def ports(self) -> frozenset[int]:
        """TCP ports that the process listens on, with its own or an inherited socket."""
        sockets = self._proc.listening(self.pid)
        if not sockets:
            return frozenset()
        found: set[int] = set()
        try:
            with os.scandir(f"{self._proc.root}/{self.pid}/fd") as entries:
                for count, entry in enumerate(entries):
                    if count >= FD_LIMIT:
                        break
                    try:
                        port = sockets.get(os.readlink(entry.path))
                    except OSError:
                        continue
                    if port is not None:
                        found.add(port)
        except OSError:
            pass
        return frozenset(found)

    def mapped_files(self) -> Iterator[bytes]:
        """Base names of the mapped files, each once, in order of address; streamed, and cut at `MAPS_LIMIT`."""
        seen: set[bytes] = set()
        for line in _lines(f"{self._proc.root}/{self.pid}/maps", MAPS_LIMIT):
            slash = line.find(b"/")
            if slash < 0:
                continue
            name = line[slash:].removesuffix(b" (deleted)").rpartition(b"/")[2]
            if name not in seen and len(seen) < 4096:
                seen.add(name)
                yield name

    def file(self, path: str, limit: int) -> bytes:
        """Read a regular file of the process's mount namespace; empty when that does not work.

        Looked at before it is opened: a device or a FIFO put in the place of the file must not be touched.
        """
        if not path.startswith("/") or "\0" in path or len(path) > 4096:
            return b""
        try:
            handle = _open(f"{self._proc.root}/{self.pid}/root{path}", os.O_PATH | os.O_NOFOLLOW)
        except (OSError, ValueError):
            return b""
        try:
            if not stat_module.S_ISREG(os.fstat(handle).st_mode):
                return b""
            return _read(f"/proc/self/fd/{handle}", limit)
        except OSError:
            return b""
        finally:
            os.close(handle)


def parse_stat(raw: bytes) -> Stat | None:
    """The line of ``/proc/PID/stat``.  The name in parentheses may hold anything, parentheses and newlines included."""
    opening, closing = raw.find(b"("), raw.rfind(b")")
    if opening < 0 or closing < opening:
        return None
    fields = raw[closing + 1 :].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X", b"x"):
        return None
    try:
        numbers = [int(field) for field in fields[1:26]]
    except ValueError:
        return None
    image = (numbers[22], numbers[24]) if len(numbers) >= 25 else (0, 0)
    return Stat(
        comm=raw[opening + 1 : closing].decode("utf-8", "replace"),
        state=fields[0].decode("ascii", "replace"),
        parent=numbers[0],
        is_kernel_thread=bool(numbers[5] & _PF_KTHREAD),
        threads=numbers[16],
        start_ticks=numbers[18],
        image=image if image[1] else (0, 0),
    )


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as err:
        _check(err)
        raise


def _check(err: OSError) -> None:
    """That a process cannot be looked at does not mean that it is gone."""
    if err.errno in (errno.EMFILE, errno.ENFILE):
        raise DescriptorError(f"cannot look at processes: {err.strerror}") from err


def _read(path: str, limit: int) -> bytes:
    try:
        handle = _open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return b""
    try:
        first = os.read(handle, min(limit, CHUNK))
        if len(first) == 0 or limit <= len(first):
            return first
        pieces, size = [first], len(first)
        while size < limit and (piece := os.read(handle, min(CHUNK, limit - size))):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)
    except OSError:
        return b""
    finally:
        os.close(handle)


def _lines(path: str, limit: int) -> Iterator[bytes]:
    """Lines without their ends; a line longer than a chunk comes in pieces."""
    try:
        handle = _open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        rest = b""
        while limit > 0 and (chunk := os.read(handle, min(CHUNK, limit))):
            limit -= len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > CHUNK:
                yield rest
                rest = b""
        if rest:
            yield rest
    except OSError:
        return
    finally:
        os.close(handle)


def _listening_sockets(path: str) -> dict[str, int]:
    """Listening rows of a ``net/tcp`` table.

    The kernel prints them before all others (net/ipv4/tcp_ipv4.c, tcp_get_idx), so reading ends at the first other
    row: a host with 100,000 connections costs no more than one without.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(path, NET_LIMIT)):
        if number == 0:
            continue
        fields = line.split()
        if len(fields) < 10 or fields[3] != b"0A":
            break
        try:
            inode, port = int(fields[9]), int(fields[1].rpartition(b":")[2], 16)
        except ValueError:
            break
        if 0 < port < 65536:
            found[f"socket:[{inode}]"] = port
    return found
