"""A BPF object: its programs loaded, attached one by one, its maps at hand.

Nothing is pinned: everything goes when the process does, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import re
import resource
from importlib import resources
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onlooker.errors import AttachError, LoadError, VerifierError
from onlooker.kernel._libbpf import last_messages, library
from onlooker.kernel.btf import VAR, Btf, section

ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def built_object() -> bytes:
    """The object built for this machine's architecture.

    Raises:
        LoadError: this build has none.
    """
    machine = platform.machine()
    name = f"onlooker-{ARCHITECTURES.get(machine, machine)}.bpf.o"
    try:
        return resources.files(__package__).joinpath(name).read_bytes()
    except FileNotFoundError:
        raise LoadError(
            f"this installation has no BPF object for {machine} ({name}); build it with `make bpf`"
        ) from None


class Object:
    """An opened BPF object.

    Args:
        elf: The object file.  Kept alive as long as libbpf needs it.
    """

    def __init__(self, elf: bytes) -> None:
        self._lib = library()
        self._elf = elf
        self.btf = Btf(section(elf, ".BTF"))
        self._handle = self._lib.bpf_object__open_mem(elf, len(elf), None)
        if not self._handle:
            raise LoadError(f"cannot open the BPF object: {os.strerror(ctypes.get_errno())}; {last_messages().strip()}")
        self.programs: dict[str, int] = {}
        self.sections: dict[str, str] = {}
        self.maps: dict[str, int] = {}
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
        self._mapped: list[mmap.mmap] = []
        self.loaded = False

    def __enter__(self) -> Object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach and unload.  Views of maps must not be used any more."""
        for link in self._links.values():
            self._lib.bpf_link__destroy(link)
        self._links.clear()
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = None

    # ---- before load ----

    def only_programs(self, names: set[str]) -> None:
        """Load just these programs."""
        for name, program in self.programs.items():
            self._lib.bpf_program__set_autoload(program, name in names)

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Size a map: entries, or bytes of a ring."""
        self._lib.bpf_map__set_max_entries(self.maps[map_name], entries)

    def set_constant(self, name: str, value: int) -> None:
        """Set a ``const volatile`` of ``.rodata``; branches on it are pruned at load."""
        offset, size = self._variable(".rodata", name)
        length = ctypes.c_size_t()
        address = self._lib.bpf_map__initial_value(self._map_of(".rodata"), ctypes.byref(length))
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
        if number == 1:
            return LoadError(
                "the kernel does not let this process load BPF programs (EPERM); run as root, or with "
                "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; `onlooker doctor` tells more"
            )
        last = messages.strip().splitlines()[-1] if messages.strip() else os.strerror(number)
        return LoadError(f"cannot load the BPF object: {last}")

    # ---- after load ----

    def program_fd(self, name: str) -> int:
        """File descriptor of a loaded program."""
        return int(self._lib.bpf_program__fd(self.programs[name]))

    def map_fd(self, name: str) -> int:
        """File descriptor of a map."""
        return int(self._lib.bpf_map__fd(self._map_of(name)))

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

    def global_array(self, name: str, dtype: Any) -> NDArray[Any]:
        """A writable view of a global variable of ``.bss``; each element is one plain store away from the programs."""
        offset, size = self._variable(".bss", name)
        length = self._lib.bpf_map__value_size(self._map_of(".bss"))
        whole = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        mapped = mmap.mmap(self.map_fd(".bss"), whole, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._mapped.append(mapped)
        item = np.dtype(dtype)
        return np.frombuffer(mapped, item, size // item.itemsize, offset)

    def percpu_sum(self, map_name: str) -> NDArray[np.uint64]:
        """The values of a per-CPU array of uint64, summed over the CPUs: ``(entries,)``."""
        found = self._map_of(map_name)
        cpus, entries = self._lib.libbpf_num_possible_cpus(), self._lib.bpf_map__max_entries(found)
        values = np.zeros((entries, cpus), np.uint64)
        fd = self._lib.bpf_map__fd(found)
        for index in range(entries):
            key = ctypes.c_uint32(index)
            self._lib.bpf_map_lookup_elem(fd, ctypes.byref(key), values[index].ctypes.data)
        return values.sum(axis=1, dtype=np.uint64)

    def program_statistics(self) -> dict[str, dict[str, int]]:
        """Runs, time (only with `bpf_stats_enabled`) and missed runs of each loaded program."""
        statistics: dict[str, dict[str, int]] = {}
        for name in self.programs:
            fd = self.program_fd(name)
            if fd < 0:
                continue
            info = (ctypes.c_uint8 * 256)()
            size = ctypes.c_uint32(len(info))
            if self._lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)):
                continue
            # struct bpf_prog_info: run_time_ns, run_cnt, recursion_misses; verified_insns
            time_ns, runs, missed = np.frombuffer(info, np.uint64, 3, 192).tolist()
            statistics[name] = {
                "runs": runs, "time_ns": time_ns, "missed": missed,
                "verified": int(np.frombuffer(info, np.uint32, 1, 216)[0]),
            }  # fmt: skip
        return statistics

    def _map_of(self, name: str) -> int:
        if name.startswith("."):
            # libbpf puts the object's name in front of its global sections
            for full, found in self.maps.items():
                if full.endswith(name):
                    return found
        if name not in self.maps:
            raise LoadError(f"the BPF object has no map {name}")
        return self.maps[name]

    def _variable(self, area: str, name: str) -> tuple[int, int]:
        """Offset and size of a global variable, from BTF and the symbol table."""
        elf, btf = self._elf, self.btf
        for index, found in enumerate(btf.types):
            if found.kind == VAR and found.name == name:
                size = _size(btf, found.size)
                return _symbol_offset(elf, name), size
            del index
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
