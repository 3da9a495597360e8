"""Brings the large libraries in the way a small resident process wants them; for the start of the agent.

Importing this module changes nothing; `settle_allocator` and `import_libraries` do, once, before the rest is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import mimetypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final

# mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_KEPT_FREE_BYTES: Final = 4 << 20
"""What the heap may keep between two batches: less would fault its pages in again for every one."""
_OWN_MAPPING_BYTES: Final = 512 << 10
"""Larger blocks are mapped on their own and go back to the system: requests on their way out would else pin the heap
in pieces between the columns of batches.  What a batch of common size copies is smaller, and stays on the heap."""


def settle_allocator() -> None:
    """Let the C library keep one heap for all threads, and no more free memory than a batch needs.

    Its defaults grow with the largest block ever freed and with the number of threads.  Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)


def import_libraries() -> None:
    """Import numpy and aiohttp's server without what they prepare for others.

    numpy's BLAS starts a thread for each CPU, and no product of matrices here is worth one.  aiohttp's client is 2 MB
    that nobody uses, and reads all certificate authorities of the system: 2.6 MB, and 0.1 s of a cold start.
    The table of file types is Python's own, not the system's, which has a thousand.
    """
    mimetypes.init(files=())
    with _environment(OPENBLAS_NUM_THREADS="1"):
        import numpy  # noqa: F401
    with contextlib.suppress(ImportError):
        _import_server()
    # Where a version of aiohttp cannot do without its client: one that is used by mistake fails, it trusts nobody.
    with _environment(SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=os.devnull):
        import aiohttp.web  # noqa: F401


def _import_server() -> None:
    """``aiohttp.web`` without aiohttp's ``__init__``, all that that does is to import the client beside it."""
    spec = importlib.util.find_spec("aiohttp")
    if spec is None or spec.origin is None or "aiohttp" in sys.modules:
        return
    with open(spec.origin) as file:
        version = next((line.split('"')[1] for line in file if line.startswith('__version__ = "')), "")
    package = importlib.util.module_from_spec(spec)
    setattr(package, "__version__", version)  # noqa: B010  # the web server names itself by it
    sys.modules["aiohttp"] = package
    try:
        importlib.import_module("aiohttp.web")
    except ImportError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "aiohttp"]:
            del sys.modules[name]
        raise


def release_start() -> None:
    """Give back what only the start needed, and spare what is left the visits of the garbage collector."""
    gc.collect()
    gc.freeze()
    trim_heap()
    unmap_files()


def release_memory() -> None:
    """Give back what the heap keeps for the next batch, and pages of files that may not be needed again."""
    gc.collect()
    trim_heap()
    unmap_files()


def unmap_files(smaps: str = "/proc/self/smaps") -> int:
    """Let go of the pages of programs and libraries; those that are needed again come back from the page cache.

    Loading touches far more of them than running does: 20 MB of relocations, symbol tables and code that ran once.
    Only mappings that are read-only and have no page of their own are touched (relocated data and breakpoints are such
    pages), so nothing is lost.

    Returns:
        Bytes that were mapped from files before.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given = 0
    try:
        with open(smaps) as file:
            for start, end, resident in _clean_mappings(file):
                if not madvise(start, end - start, mmap.MADV_DONTNEED):
                    given += resident
    except (OSError, ValueError):
        pass  # a hidden /proc: the pages stay
    return given


def _clean_mappings(lines: Iterable[str]) -> Iterator[tuple[int, int, int]]:
    """Start, end and resident bytes of the read-only private mappings of files without a page of their own."""
    where: tuple[int, int] | None = None
    resident = 0
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):
            start, _, end = words[0].partition("-")
            wanted = words[1] in ("r--p", "r-xp") and words[4] != "0"
            where, resident = ((int(start, 16), int(end, 16)) if wanted else None), 0
        elif where is None:
            continue
        elif words[0] == "Rss:":
            resident = int(words[1]) << 10
        elif words[0] in ("Anonymous:", "Swap:") and words[1] != "0":
            where = None
        elif words[0] == "VmFlags:":  # the last line of each
            if resident and "lo" not in words:  # locked pages stay
                yield *where, resident
            where = None


def trim_heap() -> None:
    """Let the C library give free pages back to the system, also those between blocks in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def _environment(**settings: str) -> Iterator[None]:
    """Set for this block alone: what the agent starts later has nothing to do with it."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
