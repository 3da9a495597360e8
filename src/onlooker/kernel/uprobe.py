"""Uprobes by system call: attach a loaded program to places in a file, for one process.

Receives the descriptor of a loaded program of the kprobe type, hands on a `UprobeLink` whose descriptors hold the
attachment: when they are closed, also by the end of this process however it comes, the kernel takes the breakpoints out
again. Nothing is pinned or left behind in tracefs.

Three ways, the best that the kernel has: one ``uprobe_multi`` link for all places (6.6), one perf event for each with a
link that carries a cookie (5.15), one perf event for each without. Which of them it is has to be known when the
program is loaded, because it says then what it will be attached to: ask `detect`, load with `Features.attach_type`.

Sources: ``include/uapi/linux/bpf.h`` (`union bpf_attr`), ``include/uapi/linux/perf_event.h`` and perf_event_open(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onlooker.errors import AttachError

_SYSCALLS = {"x86_64": (321, 298), "aarch64": (280, 241)}  # bpf, perf_event_open
_BPF_PROG_LOAD, _BPF_LINK_CREATE = 5, 28
_PROG_TYPE_KPROBE = 2
_ATTACH_PERF_EVENT, ATTACH_UPROBE_MULTI, ATTACH_UPROBE_SESSION = 41, 48, 57
_UPROBE_MULTI_RETURN = 1
_PERF_IOC_ENABLE, _PERF_IOC_SET_BPF = 0x2400, 0x40042408
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_ATTR_SIZE = 128
_PMU = Path("/sys/bus/event_source/devices/uprobe")
_TWO_INSTRUCTIONS = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit


@dataclass(frozen=True, slots=True)
class Features:
    """How the running kernel attaches uprobes, found by trying.

    Attributes:
        multi: One link for many places of a file.
        session: One program for entry and return, with a word kept between them.
        cookies: A number that travels from the attachment to the program.
    """

    multi: bool
    session: bool
    cookies: bool

    @property
    def attach_type(self) -> int:
        """``expected_attach_type`` to load entry and return programs with."""
        return ATTACH_UPROBE_MULTI if self.multi else 0


@dataclass(slots=True)
class UprobeLink:
    """An attachment; lives until `close` or the end of this process."""

    target: str
    pid: int
    descriptors: list[int] = field(default_factory=list)
    perf_events: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Detach. The kernel waits for running handlers, so this may take some milliseconds."""
        # Links before the events they stand on.
        while self.descriptors:
            os.close(self.descriptors.pop())
        while self.perf_events:
            os.close(self.perf_events.pop())

    def __enter__(self) -> UprobeLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Kernel:
    """The two system calls, with errors as exceptions."""

    def __init__(self) -> None:
        try:
            self._bpf, self._perf = _SYSCALLS[platform.machine()]
        except KeyError as err:
            raise AttachError(f"cannot attach uprobes on {platform.machine()}: not a known machine") from err
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def bpf(self, command: int, attributes: bytes) -> int:
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        number = ctypes.c_long(self._bpf)
        return self._checked(self._syscall(number, ctypes.c_long(command), buffer, ctypes.c_ulong(len(attributes))))

    def perf_event_open(self, attributes: bytes, pid: int) -> int:
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        return self._checked(
            self._syscall(
                ctypes.c_long(self._perf), buffer, ctypes.c_long(pid), ctypes.c_long(-1), ctypes.c_long(-1),
                ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
            )
        )  # fmt: skip

    def ioctl(self, fd: int, request: int, value: int) -> None:
        number = ctypes.c_long(16 if platform.machine() == "x86_64" else 29)
        self._checked(self._syscall(number, ctypes.c_long(fd), ctypes.c_ulong(request), ctypes.c_ulong(value)))

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def detect() -> Features:
    """Try what the running kernel can do. Attaches nothing.

    A link to a directory is asked for: a kernel that knows the kind of link says that this is no file, one that does
    not know it refuses the kind before it looks at the path. Loading would not tell, it succeeds everywhere.
    """
    kernel = _Kernel()
    known = {}
    for attach_type in (ATTACH_UPROBE_MULTI, ATTACH_UPROBE_SESSION):
        known[attach_type] = False
        try:
            program = _load_nothing(kernel, attach_type)
        except OSError:
            continue
        try:
            os.close(_link_multi(kernel, program, attach_type, b"/", [1], [], 0, returns=False))
        except OSError as err:
            known[attach_type] = err.errno == errno.EBADF
        finally:
            os.close(program)
    return Features(known[ATTACH_UPROBE_MULTI], known[ATTACH_UPROBE_SESSION], _has_cookies(kernel))


def load_nothing(attach_type: int = 0) -> int:
    """Load a program that does nothing, of the type of probes; gives its descriptor, which is the caller's.

    Raises:
        OSError: The kernel refused.
    """
    return _load_nothing(_Kernel(), attach_type)


def _load_nothing(kernel: _Kernel, attach_type: int) -> int:
    code = ctypes.create_string_buffer(_TWO_INSTRUCTIONS, len(_TWO_INSTRUCTIONS))
    text = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("<IIQQIIQII16sII", _PROG_TYPE_KPROBE, 2, ctypes.addressof(code), ctypes.addressof(text), 0,
                             0, 0, 0, 0, b"onlooker_try", 0, attach_type)  # fmt: skip
    return kernel.bpf(_BPF_PROG_LOAD, attributes)


def _has_cookies(kernel: _Kernel) -> bool:
    """Whether a perf event takes a program by a link (5.15): a link to something that is no perf event is refused."""
    program = -1
    try:
        program = _load_nothing(kernel, 0)
        os.close(kernel.bpf(_BPF_LINK_CREATE, struct.pack("<IIIIQ40x", program, program, _ATTACH_PERF_EVENT, 0, 0)))
    except OSError as err:
        return err.errno == errno.EBADF  # EINVAL where the kind of link is unknown
    finally:
        if program >= 0:
            os.close(program)
    return True


def attach(
    program_fd: int,
    file: str | os.PathLike[str] | int,
    offsets: Sequence[int],
    *,
    pid: int,
    features: Features,
    cookies: Sequence[int] = (),
    returns: bool = False,
    session: bool = False,
) -> UprobeLink:
    """Attach a program to places of a file, for one process.

    Args:
        program_fd: Of a loaded kprobe program. With ``features.multi`` it was loaded for `ATTACH_UPROBE_MULTI`
            (`ATTACH_UPROBE_SESSION` with ``session``), else for nothing in particular.
        file: A path, or a descriptor of the file (which reaches deleted files).
        offsets: Places in the file, see `onlooker.attach.sites.Site.offset`.
        pid: Only this process gets breakpoints. A child that it forks later inherits them, but they stay silent there.
        features: What `detect` found.
        cookies: A number for each place; ignored where the kernel has none (see ``features.cookies``).
        returns: Run at the return of the function whose frame begins at the place.
        session: Run at entry and return.

    Raises:
        AttachError: The kernel refused. Nothing stays attached.
    """
    if pid <= 0:
        raise AttachError("uprobes are attached to one process, never to all", target=str(file))
    if cookies and len(cookies) != len(offsets):
        raise ValueError("one cookie for each offset")
    if session and not features.session:
        raise AttachError("this kernel has no uprobe sessions (6.13 has)", target=str(file))
    path = os.fsencode(f"/proc/self/fd/{file}" if isinstance(file, int) else file)
    kernel = _Kernel()
    link = UprobeLink(os.fsdecode(path), pid)
    try:
        if features.multi:
            kind = ATTACH_UPROBE_SESSION if session else ATTACH_UPROBE_MULTI
            link.descriptors.append(
                _link_multi(kernel, program_fd, kind, path, offsets, cookies, pid, returns=returns and not session)
            )
        else:
            for index, offset in enumerate(offsets):
                cookie = cookies[index] if cookies else 0
                _link_perf(kernel, link, program_fd, path, offset, cookie, pid, returns=returns, features=features)
    except OSError as err:
        link.close()
        raise AttachError(
            f"cannot attach {'return ' if returns else ''}uprobes to {link.target} (pid {pid}): {err.strerror}; what"
            " this process does there stays unseen",
            target=link.target,
        ) from err
    return link


def _link_multi(
    kernel: _Kernel,
    program_fd: int,
    attach_type: int,
    path: bytes,
    offsets: Sequence[int],
    cookies: Sequence[int],
    pid: int,
    *,
    returns: bool,
) -> int:
    name = ctypes.create_string_buffer(path)
    places = (ctypes.c_uint64 * len(offsets))(*offsets)
    numbers = (ctypes.c_uint64 * len(offsets))(*cookies) if cookies else None
    attributes = struct.pack(
        "<IIIIQQQQIIII", program_fd, 0, attach_type, 0, ctypes.addressof(name), ctypes.addressof(places), 0,
        ctypes.addressof(numbers) if numbers is not None else 0, len(offsets), _UPROBE_MULTI_RETURN if returns else 0,
        pid, 0,
    )  # fmt: skip
    return kernel.bpf(_BPF_LINK_CREATE, attributes)


def _link_perf(
    kernel: _Kernel,
    link: UprobeLink,
    program_fd: int,
    path: bytes,
    offset: int,
    cookie: int,
    pid: int,
    *,
    returns: bool,
    features: Features,
) -> None:
    name = ctypes.create_string_buffer(path)
    attributes = bytearray(_PERF_ATTR_SIZE)
    struct.pack_into("<IIQ", attributes, 0, _pmu_type(), _PERF_ATTR_SIZE, _return_bit() if returns else 0)
    struct.pack_into("<QQ", attributes, 56, ctypes.addressof(name), offset)  # config1, config2
    event = kernel.perf_event_open(bytes(attributes), pid)
    link.perf_events.append(event)
    if features.cookies:
        pack = struct.pack("<IIIIQ40x", program_fd, event, _ATTACH_PERF_EVENT, 0, cookie)
        link.descriptors.append(kernel.bpf(_BPF_LINK_CREATE, pack))
    else:
        kernel.ioctl(event, _PERF_IOC_SET_BPF, program_fd)
    kernel.ioctl(event, _PERF_IOC_ENABLE, 0)


def _pmu_type() -> int:
    try:
        return int((_PMU / "type").read_text())
    except (OSError, ValueError) as err:
        raise OSError(errno.ENOENT, "this kernel has no uprobes") from err


def _return_bit() -> int:
    """The bit of ``config`` that asks for a return probe; the kernel says which (``config:0``)."""
    try:
        return 1 << int((_PMU / "format/retprobe").read_text().rpartition(":")[2])
    except (OSError, ValueError):
        return 1
