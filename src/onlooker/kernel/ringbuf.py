"""A BPF ring buffer, read through its mapping as one strided numpy array.

Records of one ring have one size, which with the 8-byte header is a power of two: none straddles the end, so record i
stands at ``i * stride``.  Source: Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)


class Ring:
    """The reading end of one ring.

    Args:
        fd: Of the map; stays the caller's.
        size: Bytes of the ring, a power of two and a multiple of the page size.
        stride: Bytes from one record to the next, header included.
    """

    def __init__(self, fd: int, size: int, stride: int) -> None:
        page = mmap.PAGESIZE
        self.fd, self.size, self.stride = fd, size, stride
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The data is mapped twice in a row, so that a run of records over the end is one slice.
        self._producer_pages = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_page, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_pages, np.uint64, 1)
        whole = np.frombuffer(self._producer_pages, np.uint8, 2 * size, page).reshape(-1, stride)
        self._headers = whole.view(np.uint32)[:, 0]
        self._records = whole[:, 8:]
        self._position = int(self._consumer[0])

    @property
    def fill(self) -> int:
        """Bytes that wait to be read."""
        return int(self._producer[0]) - self._position

    def drain(self, limit: int = 1 << 20) -> NDArray[np.uint8] | None:
        """Take what is there, oldest first: ``(n, stride - 8)`` uint8, the caller's own copy; None if nothing is.

        A record that is still being written ends the batch; discarded ones are left out.
        """
        waiting = min(self.fill // self.stride, limit, self.size // self.stride)
        if waiting <= 0:
            return None
        first = (self._position % self.size) // self.stride
        headers = self._headers[first : first + waiting]
        busy = headers & _BUSY
        if busy.any():
            waiting = int(np.argmax(busy != 0))
            if not waiting:
                return None
            headers = headers[:waiting]
        records = self._records[first : first + waiting].copy()
        discarded = headers & _DISCARDED
        if discarded.any():
            records = records[discarded == 0]
        self._position += waiting * self.stride
        self._consumer[0] = self._position
        return records

    def close(self) -> None:
        """Forget the mapping (it goes with the last view of it)."""
        self._headers = self._records = self._consumer = self._producer = np.empty(0, np.uint32)  # type: ignore[assignment]
