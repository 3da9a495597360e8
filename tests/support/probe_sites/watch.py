"""Builds and loads the counting programs, and talks to the program that is counted."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onlooker.attach.tls import Abi, TlsFunction
from onlooker.kernel import uprobe

HERE = Path(__file__).parent
_ABI = {Abi.COUNT: 0, Abi.FLAG: 1}


@dataclass
class Counts:
    entries: int
    returns: int
    asked: int
    moved: int
    marked: int
    unread: int
    threads_main: int
    threads_other: int


class Watch:
    """The two counting programs, loaded."""

    def __init__(self, directory: Path, features: uprobe.Features, attach_type: int | None = None) -> None:
        self.features = features
        built = directory / "watch.bpf.o"
        subprocess.run(
            ["clang", "-target", "bpf", "-g", "-O2", "-Wall", "-Werror", "-D__TARGET_ARCH_x86", "-D__x86_64__",
             "-I/usr/include/x86_64-linux-gnu", "-c", HERE / "watch.bpf.c", "-o", built],
            check=True,
        )  # fmt: skip
        self._lib = lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in ("bpf_object__open_file", "bpf_object__find_program_by_name", "bpf_object__find_map_by_name"):
            getattr(lib, name).restype = ctypes.c_void_p
        self._object = ctypes.c_void_p(lib.bpf_object__open_file(os.fsencode(built), None))
        programs = {}
        for name in ("on_entry", "on_return", "do_nothing"):
            programs[name] = ctypes.c_void_p(lib.bpf_object__find_program_by_name(self._object, name.encode()))
            lib.bpf_program__set_expected_attach_type(
                programs[name], features.attach_type if attach_type is None else attach_type
            )
        assert lib.bpf_object__load(self._object) == 0
        self.entry = lib.bpf_program__fd(programs["on_entry"])
        self.returned = lib.bpf_program__fd(programs["on_return"])
        self.nothing = lib.bpf_program__fd(programs["do_nothing"])
        self._results = lib.bpf_map__fd(ctypes.c_void_p(lib.bpf_object__find_map_by_name(self._object, b"results")))

    def counts(self, slot: int) -> Counts:
        value = ctypes.create_string_buffer(64)
        assert self._lib.bpf_map_lookup_elem(self._results, ctypes.byref(ctypes.c_uint32(slot)), value) == 0
        return Counts(*struct.unpack("<8Q", value.raw))

    def clear(self) -> None:
        zero = ctypes.create_string_buffer(64)
        for slot in range(16):
            self._lib.bpf_map_update_elem(self._results, ctypes.byref(ctypes.c_uint32(slot)), zero, ctypes.c_uint64(0))

    def close(self) -> None:
        self._lib.bpf_object__close(self._object)

    @contextmanager
    def on(
        self, functions: list[TlsFunction], path: str, pid: int, *, features: uprobe.Features | None = None
    ) -> Iterator[None]:
        """Count the functions in slots 0, 1, ... while the block runs."""
        features = features or self.features
        links = []
        self.clear()
        try:
            for slot, function in enumerate(functions):
                cookie = cookie_of(slot, function)
                links.append(
                    uprobe.attach(
                        self.entry, path, [function.arguments.offset], pid=pid, features=features, cookies=[cookie]
                    )
                )
                if function.returns is not None:
                    links.append(
                        uprobe.attach(
                            self.returned, path, [function.returns.offset], pid=pid, features=features,
                            cookies=[cookie], returns=True,
                        )
                    )  # fmt: skip
            yield
        finally:
            for link in links:
                link.close()


def cookie_of(slot: int, function: TlsFunction) -> int:
    registers = (*function.arguments.registers, 0xFF, 0xFF, 0xFF)[:4]
    counted = registers[3] if function.abi is Abi.FLAG else 0xFF
    alone = 1 if function.returns is None else 0
    return slot | registers[1] << 8 | registers[2] << 16 | counted << 24 | _ABI.get(function.abi, 0) << 32 | alone << 40


class Talker:
    """The compiled program of ``talk.c``."""

    def __init__(self, program: Path, certificate: Path, key: Path, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [program, certificate, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self.pid = self._process.pid

    def run(self, command: str, pairs: int) -> tuple[float, int]:
        """Nanoseconds a pair, and bytes moved."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command} {pairs}\n")
        self._process.stdin.flush()
        ns, moved = self._process.stdout.readline().split()
        return float(ns), int(moved)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
