"""A BPF object: its programs loaded, attached one by one, its maps at hand.

Nothing is pinned: everything goes when the process does, however it ends.  Once everything is attached, `Object.settle`
gives back what only loading needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import re
import resource
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from onlooker.errors import AttachError, LoadError, VerifierError
from onlooker.kernel._libbpf import last_messages, library
from onlooker.kernel.btf import VAR, Btf, section

ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def built_object(*, old: bool = False) -> bytes:
    """The object built for this machine's architecture.

    Args:
        old: The one for kernels without storage in sockets and tasks, or without trampolines.

    Raises:
        LoadError: this build has none.
    """
    machine = platform.machine()
    name = f"onlooker-{ARCHITECTURES.get(machine, machine)}{'-old' if old else ''}.bpf.o"
    try:
        return resources.files(__package__).joinpath(name).read_bytes()
    except FileNotFoundError:
        raise LoadError(
            f"this installation has no BPF object for {machine} ({name}); build it with `make bpf`"
        ) from None


class Cells:
    """A writable array of bytes in a map that can be mapped: each is one plain load or store away from the programs.

    Mapped a page at a time: the kernel makes the whole of a mapping resident.

    Args:
        fd: Of the map; stays the caller's.
        offset: Where the array begins in the map's value.
        size: Bytes of the array.
    """

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._size = fd, offset, size
        self._number = -1
        self._page: mmap.mmap | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        page, at = self._find(index)
        return page[at]

    def __setitem__(self, index: int, value: int) -> None:
        page, at = self._find(index)
        page[at] = value

    def _find(self, index: int) -> tuple[mmap.mmap, int]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        number, at = divmod(self._offset + index, mmap.PAGESIZE)
        if self._page is None or number != self._number:
            self.close()
            self._page = mmap.mmap(
                self._fd,
                mmap.PAGESIZE,
                mmap.MAP_SHARED,
                mmap.PROT_READ | mmap.PROT_WRITE,
                offset=number * mmap.PAGESIZE,
            )
            self._number = number
        return self._page, at

    def close(self) -> None:
        """Let go of the mapping; the next access makes a new one."""
        if self._page is not None:
            self._page.close()
            self._page = None


@dataclass(frozen=True, slots=True)
class _Map:
    fd: int
    entries: int


class Object:
    """An opened BPF object.

    Args:
        elf: The object file.  Kept alive as long as libbpf needs it.

    Attributes:
        sections: The section of each program, which names its hook.
        loaded: Whether programs and maps are in the kernel.
        constants: What was set by `set_constant`.
    """

    def __init__(self, elf: bytes) -> None:
        self._lib = library()
        self._elf = elf
        self.btf = Btf(section(elf, ".BTF"))
        self._handle = self._lib.bpf_object__open_mem(elf, len(elf), None)
        if not self._handle:
            raise LoadError(f"cannot open the BPF object: {os.strerror(ctypes.get_errno())}; {last_messages().strip()}")
        self.programs: dict[str, int] = {}
        self.maps: dict[str, int] = {}
        self.sections: dict[str, str] = {}
        self._program_fds: dict[str, int] = {}
        self._kept_maps: dict[str, _Map] = {}
        self._variables: dict[str, tuple[int, int]] = {}
        at = self._lib.bpf_object__next_program(self._handle, None)
        while at:
            name = self._lib.bpf_program__name(at).decode()
            self.programs[name] = at
            self.sections[name] = self._lib.bpf_program__section_name(at).decode()
            at = self._lib.bpf_object__next_program(self._handle, at)
        at = self._lib.bpf_object__next_map(self._handle, None)
        while at:
            self.maps[self._lib.bpf_map__name(at).decode()] = at
            at = self._lib.bpf_object__next_map(self._handle, at)
        self._links: dict[str, int] = {}
        self.constants: dict[str, int] = {}
        self._cells: list[Cells] = []
        self.loaded = False

    def __enter__(self) -> Object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach and unload."""
        for link in self._links.values():
            self._lib.bpf_link__destroy(link)
        self._links.clear()
        for cells in self._cells:
            cells.close()
        self._cells.clear()
        for fd in (*self._program_fds.values(), *(kept.fd for kept in self._kept_maps.values())):
            os.close(fd)
        self._program_fds.clear()
        self._kept_maps.clear()
        self._close_handle()
        self.loaded = False

    def _close_handle(self) -> None:
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = None

    def settle(self) -> None:
        """Give back what only loading and attaching needed: libbpf's object, the file, its types.

        Programs and maps stay in the kernel by descriptors of our own, links by theirs.  `attach` is over after that
        (uprobes go by descriptor: `program_fd`), everything else goes on.
        """
        if not self._handle or not self.loaded:
            return
        self._variables = {t.name: self._variable("", t.name) for t in self.btf.types if t.kind == VAR}
        for name in self.maps:
            self._map(name)
        for name in self.programs:
            self.program_fd(name)
        for cells in self._cells:
            cells.close()
        self._close_handle()
        self.programs.clear()
        self.maps.clear()
        self._elf = b""
        self.btf.types = []

    # ---- before load ----

    def only_programs(self, names: set[str]) -> None:
        """Load just these programs."""
        for name, program in self.programs.items():
            self._lib.bpf_program__set_autoload(program, name in names)

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Size a map: entries, or bytes of a ring."""
        self._lib.bpf_map__set_max_entries(self.maps[map_name], entries)

    def set_attach_type(self, names: Iterable[str], attach_type: int) -> None:
        """Say what programs will be attached to, where their section does not (``expected_attach_type``)."""
        for name in names:
            self._lib.bpf_program__set_expected_attach_type(self.programs[name], attach_type)

    def share_maps(self, other: Object) -> None:
        """Use the maps of another object, which is loaded, in place of own ones; constants stay its own."""
        for name, handle in self.maps.items():
            if not name.endswith(".rodata"):
                # libbpf names global sections after the object
                theirs = other.map_fd(name[name.index(".") :] if "." in name else name)
                error = self._lib.bpf_map__reuse_fd(handle, theirs)
                if error < 0:
                    raise LoadError(f"cannot share the map {name}: {os.strerror(-error)}")

    def set_constant(self, name: str, value: int) -> None:
        """Set a ``const volatile`` of ``.rodata``; branches on it are pruned at load."""
        self.constants[name] = value
        offset, size = self._variable(".rodata", name)
        rodata = next((handle for full, handle in self.maps.items() if full.endswith(".rodata")), None)
        length = ctypes.c_size_t()
        address = self._lib.bpf_map__initial_value(rodata, ctypes.byref(length))
        if not address or offset + size > length.value:
            raise LoadError(f"the BPF object has no constant {name}")
        ctypes.memmove(address + offset, value.to_bytes(size, "little"), size)

    def load(self) -> None:
        """Load maps and programs into the kernel.

        Raises:
            VerifierError: a program was refused by the verifier.
            LoadError: anything else; lacking privileges are named.
        """
        with contextlib.suppress(ValueError, OSError):  # maps count against it before 5.11 only
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        last_messages()
        result = self._lib.bpf_object__load(self._handle)
        if result < 0:
            raise self._load_error(-result, last_messages())
        self.loaded = True

    def _load_error(self, number: int, messages: str) -> LoadError:
        program = re.search(r"prog '([^']+)'", messages)
        log = re.search(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", messages, re.S)
        if program and log and log[1].strip():
            return VerifierError(program[1], log[1])
        lines = [line.removeprefix("libbpf: ") for line in messages.splitlines() if line.strip()]
        # every failure ends with "failed to load object"; what failed stands before it, first
        telling = [line for line in lines if "failed to load object" not in line]
        return LoadError(f"cannot load the BPF object: {telling[0] if telling else os.strerror(number)}")

    # ---- after load ----

    # Descriptors that are handed out are duplicates: they outlive libbpf's object, see `settle`.

    def program_fd(self, name: str) -> int:
        """File descriptor of a program; negative if it was not loaded."""
        fd = self._program_fds.get(name, -1)
        if fd < 0 and name in self.programs:
            fd = int(self._lib.bpf_program__fd(self.programs[name]))
            if fd >= 0:
                fd = self._program_fds[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        return fd

    @property
    def library(self) -> ctypes.CDLL:
        """Libbpf, typed."""
        return self._lib

    def has_map(self, name: str) -> bool:
        """Whether there is such a map."""
        return name in self.maps or name in self._kept_maps

    def map_fd(self, name: str) -> int:
        """File descriptor of a map."""
        return self._map(name).fd

    def max_entries(self, name: str) -> int:
        """Capacity of a map; bytes of a ring."""
        return self._map(name).entries

    def _map(self, name: str) -> _Map:
        if name.startswith("."):
            # libbpf puts the object's name in front of its global sections
            name = next((full for full in self.maps or self._kept_maps if full.endswith(name)), name)
        if name not in self._kept_maps:
            if name not in self.maps:
                raise LoadError(f"the BPF object has no map {name}")
            handle = self.maps[name]
            fd = fcntl.fcntl(self._lib.bpf_map__fd(handle), fcntl.F_DUPFD_CLOEXEC, 3)
            self._kept_maps[name] = _Map(fd, self._lib.bpf_map__max_entries(handle))
        return self._kept_maps[name]

    def attach(self, name: str) -> None:
        """Attach a program to the hook that its section names.

        Raises:
            AttachError: the kernel has no such hook, or refuses.
        """
        link = self._lib.bpf_program__attach(self.programs[name])
        if not link:
            reason = os.strerror(ctypes.get_errno())
            messages = last_messages().strip().splitlines()
            raise AttachError(
                f"cannot attach {name} to {self.sections[name]}: {messages[-1] if messages else reason}",
                target=self.sections[name],
            )
        self._links[name] = link

    def detach(self, name: str) -> None:
        """Undo `attach`."""
        self._lib.bpf_link__destroy(self._links.pop(name))

    def global_bytes(self, name: str) -> Cells:
        """A global array of bytes in ``.bss``."""
        cells = Cells(self.map_fd(".bss"), *self._variable(".bss", name))
        self._cells.append(cells)
        return cells

    def cells(self, name: str) -> Cells:
        """An array of bytes: a global in ``.bss``, or a map of its own where values must be small."""
        if name not in self.maps:
            return self.global_bytes(name)
        handle = self.maps[name]
        size = self._lib.bpf_map__max_entries(handle) * self._lib.bpf_map__value_size(handle)
        cells = Cells(self.map_fd(name), 0, size)
        self._cells.append(cells)
        return cells

    def percpu_sum(self, map_name: str) -> NDArray[np.uint64]:
        """The values of a per-CPU array of uint64, summed over the CPUs: ``(entries,)``."""
        cpus, entries = self._lib.libbpf_num_possible_cpus(), self.max_entries(map_name)
        values = np.zeros((entries, cpus), np.uint64)
        fd = self.map_fd(map_name)
        for index in range(entries):
            key = ctypes.c_uint32(index)
            self._lib.bpf_map_lookup_elem(fd, ctypes.byref(key), values[index].ctypes.data)
        total: NDArray[np.uint64] = values.sum(axis=1, dtype=np.uint64)
        return total

    def program_statistics(self) -> dict[str, dict[str, int]]:
        """Runs, time (only with `bpf_stats_enabled`) and missed runs of each loaded program."""
        statistics: dict[str, dict[str, int]] = {}
        for name in self.sections:
            fd = self.program_fd(name)
            if fd < 0:
                continue
            info = ctypes.create_string_buffer(256)
            size = ctypes.c_uint32(len(info))
            if self._lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)):
                continue
            # struct bpf_prog_info: run_time_ns, run_cnt, recursion_misses; verified_insns
            time_ns, runs, missed = struct.unpack_from("<QQQ", info, 192)
            (verified,) = struct.unpack_from("<I", info, 216)
            statistics[name] = {"runs": runs, "time_ns": time_ns, "missed": missed, "verified": verified}
        return statistics

    def _variable(self, area: str, name: str) -> tuple[int, int]:
        """Offset and size of a global variable, from BTF and the symbol table."""
        if name in self._variables:
            return self._variables[name]
        for found in self.btf.types:
            if found.kind == VAR and found.name == name:
                return _symbol_offset(self._elf, name), _size(self.btf, found.size)
        raise LoadError(f"the BPF object has no variable {name} in {area}")


def _size(btf: Btf, type_id: int) -> int:
    found = btf.resolve(type_id)
    return found.count * _size(btf, found.element) if found.count else found.size


def _symbol_offset(elf: bytes, name: str) -> int:
    symbols, strings = section(elf, ".symtab"), section(elf, ".strtab")
    table = np.frombuffer(symbols, np.dtype("<u4,u1,u1,<u2,<u8,<u8"))
    wanted = name.encode()
    for row in table:
        at = int(row["f0"])
        if strings[at : strings.index(b"\0", at)] == wanted:
            return int(row["f4"])
    raise LoadError(f"the BPF object has no symbol {name}")
