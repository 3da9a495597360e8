"""A BPF ring buffer, read through its mapping as one strided numpy array.

Records of one ring have one size, which with the 8-byte header is a power of two: none straddles the end, so record i
stands at ``i * stride``.  Source: Documentation/bpf/ringbuf.rst.

The kernel maps every page of a ring at once, twice in a row, and each counts as resident: 16 MiB of rings would show as
33 MB of this process.  So the data is mapped only while it is copied out, and no more of it than was written; but for a
small ring, which is read for every program that starts.
"""

from __future__ import annotations

import logging
import mmap
from typing import Final

import numpy as np
from numpy.typing import NDArray

log: Final = logging.getLogger("onlooker.kernel")

_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)
_WINDOW_BYTES = 1 << 20
"""Mapped at once: bounds what a ring that filled up adds to the resident memory."""
_SMALL_BYTES = 256 << 10
"""A ring of this size stays mapped: a mapping made for a record costs twenty times its copy."""
_KEPT_BYTES = 1 << 20
"""The copy of a run up to this size goes into memory that is kept: fresh pages for every run would cost more than the
copy."""


class Ring:
    """The reading end of one ring.

    Args:
        fd: Of the map; stays the caller's.
        size: Bytes of the ring, a power of two and a multiple of the page size.
        stride: Bytes from one record to the next, header included.

    Attributes:
        hindered: How often it could not be mapped.
    """

    def __init__(self, fd: int, size: int, stride: int) -> None:
        page = mmap.PAGESIZE
        self.fd, self.size, self.stride = fd, size, stride
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # a cast view loads and stores one aligned word, as the kernel does
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._producer = memoryview(self._producer_page).cast("Q")
        self._position = self._consumer[0]
        self._closed = False
        self.hindered = 0
        self._kept = np.empty(0, np.uint8)
        self._whole = self._map(0, 2 * size) if size <= _SMALL_BYTES else None

    def _map(self, start: int, length: int) -> mmap.mmap:
        """Map data of the ring; the pages of the two positions stand before it."""
        return mmap.mmap(self.fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=2 * mmap.PAGESIZE + start)

    @property
    def fill(self) -> int:
        """Bytes that wait to be read."""
        return 0 if self._closed else self._producer[0] - self._position

    def drain(self, limit: int = 1 << 20) -> NDArray[np.uint8] | None:
        """Take what is there, oldest first: ``(n, stride - 8)`` uint8; None if nothing is.

        A record that is still being written ends the batch; discarded ones are left out.  The array is good until the
        next call: who needs a record for longer copies it.
        """
        waiting = min(self.fill // self.stride, limit, self.size // self.stride)
        if waiting <= 0:
            return None
        records = self._room(waiting)
        kept = 0
        position, end = self._position, self._position + waiting * self.stride
        while position < end:
            stop = min(end, position + max(_WINDOW_BYTES, self.stride))
            try:
                read, copied = self._copy_run(position, stop, records[kept:])
            except OSError as err:  # no descriptor or memory for the mapping: what waits is taken later
                self.hindered += 1
                if self.hindered == 1:
                    log.warning("the ring cannot be read for now: %s", err)
                break
            kept += copied
            position += read
            if position < stop:
                break
        if position == self._position:
            return None
        self._position = self._consumer[0] = position
        return records[:kept] if kept else None

    def _room(self, count: int) -> NDArray[np.uint8]:
        width = self.stride - 8
        size = count * width
        if size > _KEPT_BYTES:
            return np.empty((count, width), np.uint8)
        if size > self._kept.size:
            self._kept = np.empty(min(max(size, 2 * self._kept.size, 1 << 14), max(_KEPT_BYTES, size)), np.uint8)
        return self._kept[:size].reshape(count, width)

    def _copy_run(self, position: int, stop: int, into: NDArray[np.uint8]) -> tuple[int, int]:
        """Copy the finished records between two positions: bytes gone through, and records copied."""
        start = position % self.size
        length = stop - position
        if self._whole is not None:
            return _copy(np.frombuffer(self._whole, np.uint8, length, start).reshape(-1, self.stride), into)
        before = start % mmap.PAGESIZE
        # a run over the end goes on in the second copy of the data
        with self._map(start - before, before + length) as window:
            # no name keeps the view: a mapping with views cannot be closed
            return _copy(np.frombuffer(window, np.uint8, length, before).reshape(-1, self.stride), into)

    def close(self) -> None:
        """Forget the mappings."""
        if not self._closed:
            self._closed = True
            for view, page in ((self._consumer, self._consumer_page), (self._producer, self._producer_page)):
                view.release()
                page.close()
            if self._whole is not None:
                self._whole.close()


def _copy(whole: NDArray[np.uint8], into: NDArray[np.uint8]) -> tuple[int, int]:
    """Copy the finished ones of ``(n, stride)`` records; gives the bytes gone through, and the records copied."""
    headers = whole[:, :4].copy().view(np.uint32)[:, 0]
    flagged = headers & (_BUSY | _DISCARDED)
    if not np.count_nonzero(flagged):
        into[: len(whole)] = whole[:, 8:]
        return whole.size, len(whole)
    busy = np.flatnonzero(flagged & _BUSY)
    done = int(busy[0]) if busy.size else len(whole)
    finished = np.flatnonzero(flagged[:done] == 0)
    into[: len(finished)] = whole[finished, 8:]
    return done * whole.shape[1], len(finished)
