"""The tracer by system calls that onlooker is compared with: see ``syscalls.bpf.c``."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src")]

from onlooker.kernel.object import Object  # noqa: E402 - found by this path alone

RING_BYTES = 16 << 20


def built(directory: Path) -> Path:
    """Its object, built there."""
    directory.mkdir(parents=True, exist_ok=True)
    out = directory / "syscalls.bpf.o"
    subprocess.run(
        ["clang", "-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3", "-c", HERE / "syscalls.bpf.c", "-o", out],
        check=True,
    )
    return out


class Tracer:
    """Attached, and drained.

    Attributes:
        bytes: Of the ring that were thrown away.
    """

    def __init__(self, loaded: Object) -> None:
        self._loaded = loaded
        self.bytes = 0
        fd = loaded.map_fd("chunks")
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)

    def watch(self, pids: Iterable[int]) -> None:
        update = self._loaded.library.bpf_map_update_elem
        update.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
        for pid in pids:
            key, value = ctypes.c_uint32(pid), ctypes.c_uint8(1)
            if update(self._loaded.map_fd("watched"), ctypes.byref(key), ctypes.byref(value), 0):
                raise OSError(f"cannot watch {pid}")

    @contextlib.contextmanager
    def following(self, pids: Callable[[], Iterable[int]]) -> Iterator[None]:
        """Watches the processes that come while the block runs."""
        over, known = threading.Event(), set[int]()

        def follow() -> None:
            while not over.wait(0.02):
                fresh = set(pids()) - known
                self.watch(fresh)
                known.update(fresh)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def program_ns(self) -> int:
        """Time in its programs, as far as the kernel measured it."""
        return sum(one["time_ns"] for one in self._loaded.program_statistics().values())

    def discard(self) -> None:
        """Empty the ring: what user space would do with the bytes is not measured."""
        where = int.from_bytes(self._producer[:8], "little")
        self.bytes += where - int.from_bytes(self._consumer[:8], "little")
        self._consumer[:8] = where.to_bytes(8, "little")

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()


@contextlib.contextmanager
def tracing(built_object: Path, pids: Iterable[int]) -> Iterator[Tracer]:
    """Watches these processes while the block runs; its ring is emptied fifty times a second."""
    over = threading.Event()
    with Object(built_object.read_bytes()) as loaded:
        loaded.load()
        tracer = Tracer(loaded)
        tracer.watch(pids)
        for name in loaded.sections:
            loaded.attach(name)

        def drain() -> None:
            while not over.wait(0.02):
                tracer.discard()

        thread = threading.Thread(target=drain)
        thread.start()
        try:
            yield tracer
        finally:
            over.set()
            thread.join()
            tracer.close()
