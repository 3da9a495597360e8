"""Brings the large libraries in the way a small resident process wants them; for the start of the agent.

Importing this module changes nothing; `settle_allocator` and `import_libraries` do, once, before the rest is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from typing import Final

# mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_KEPT_FREE_BYTES: Final = 8 << 20
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
    """Import numpy and aiohttp without what they prepare for others.

    numpy's BLAS starts a thread for each CPU, and no product of matrices here is worth one.  aiohttp reads all
    certificate authorities of the system for its client (2.6 MB, and 0.1 s of a cold start); onlooker serves with it.
    """
    with _environment(OPENBLAS_NUM_THREADS="1"):
        import numpy  # noqa: F401
    # A client that is used by mistake fails: it trusts nobody.
    with _environment(SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=os.devnull):
        import aiohttp.web  # noqa: F401


def release_start() -> None:
    """Give back what only the start needed, and spare what is left the visits of the garbage collector."""
    gc.collect()
    gc.freeze()
    _trim()


def release_memory() -> None:
    """Give back what the heap keeps for the next batch."""
    gc.collect()
    _trim()


def _trim() -> None:
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
