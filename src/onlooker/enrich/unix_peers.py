"""Who is at the other end of a UNIX socket: it has neither address nor port, but the kernel side joins its two ends.

A server request whose parent is the client's span at the other end of the same connection names that span.  So the ids
tell which service asked and which one answered, and the connections remember it for requests that came without.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import I4, U1, U8, RequestBatch
from onlooker.columns import HashCache, mix

_PARENT_PEER: Final = 3  # enum parent_source of bpf/records.h
_SPANS: Final = 4096
"""Requests and connections that are remembered: those of a few rounds, as both rows of a request end at one time."""


class UnixPeers:
    """Learns from each batch, then fills in what is known."""

    def __init__(self) -> None:
        self._answering = HashCache(_SPANS)
        self._asking = HashCache(_SPANS)
        self._connections = HashCache(_SPANS)

    def fill(self, batch: RequestBatch, rows: NDArray[np.intp], server: NDArray[np.bool_], peer: I4) -> None:
        """Set ``peer`` of some rows.

        Args:
            batch: ``service`` is set.
            rows: Those of UNIX sockets.
            server: ``(n,)`` which rows of the batch serve.
            peer: ``(n,)`` services at the other end; changed in place.
        """
        serving, asking = rows[server[rows]], rows[~server[rows]]
        joined = batch.parent_source[serving] == _PARENT_PEER
        answered, asked = _ids(batch.parent_span_id, serving), _ids(batch.span_id, asking)
        self._answering.insert(answered[joined], batch.service[serving[joined]])
        self._asking.insert(asked, batch.service[asking])
        self._settle(batch, serving, np.where(joined, self._asking.lookup(answered), np.int32(-1)), peer)
        self._settle(batch, asking, self._answering.lookup(asked), peer)

    def _settle(self, batch: RequestBatch, rows: NDArray[np.intp], found: I4, peer: I4) -> None:
        # the number of a connection is the same on both sides or not, by kernel: the side is part of the key
        ends = mix(batch.connection[rows] * np.uint64(2) + (batch.kind[rows] & 1).astype(np.uint64))
        known = found >= 0
        self._connections.insert(ends[known], found[known])
        peer[rows] = np.where(known, found, self._connections.lookup(ends))


def _ids(ids: U1, rows: NDArray[np.intp]) -> U8:
    return mix(np.ascontiguousarray(ids[rows]).view(np.uint64).reshape(-1).copy())
