"""A bounded queue of encoded requests: capture puts, the worker of one exporter takes.

Nothing ever waits to put.  What does not fit is dropped, the oldest first or the newest, and counted.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True, slots=True)
class Chunk:
    """A serialized export request, or a part of one: requests of one kind put end to end are again a request.

    Attributes:
        data: Protobuf bytes.
        items: How many spans or metric points are in it.
    """

    data: bytes
    items: int


class DropPolicy(enum.Enum):
    """What a full queue does."""

    OLDEST = "drop_oldest"
    NEWEST = "drop_newest"


class ChunkQueue:
    """Chunks waiting for their exporter, bounded by items and by bytes.

    Attributes:
        max_items: Spans or points.
        max_bytes: Bytes of their encoding.
    """

    def __init__(
        self,
        *,
        max_items: int,
        max_bytes: int,
        policy: DropPolicy = DropPolicy.OLDEST,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.policy = policy
        self._clock = clock
        self._chunks: deque[tuple[Chunk, float]] = deque()
        self._items = 0
        self._bytes = 0
        self._dropped = 0
        self._closed = False
        self._flush = False
        self._wanted = (0, 0)
        self._changed = threading.Condition()

    @property
    def items(self) -> int:
        """Spans or points that wait."""
        return self._items

    @property
    def bytes(self) -> int:
        """Bytes that wait."""
        return self._bytes

    @property
    def dropped(self) -> int:
        """Spans or points that did not fit, or came after the end."""
        return self._dropped

    def put(self, chunk: Chunk) -> int:
        """Add a chunk; gives the number of items dropped for it, its own if it does not fit at all."""
        with self._changed:
            dropped = 0
            too_big = chunk.items > self.max_items or len(chunk.data) > self.max_bytes
            while not too_big and self._over(chunk):
                if self.policy is DropPolicy.NEWEST:
                    too_big = True
                else:
                    dropped += self._pop().items
            if too_big or self._closed:
                dropped += chunk.items
            else:
                self._chunks.append((chunk, self._clock()))
                self._items += chunk.items
                self._bytes += len(chunk.data)
                self._wake()
            self._dropped += dropped
            return dropped

    def take(self, *, batch_items: int, batch_bytes: int, max_age_s: float) -> Chunk | None:
        """Wait until a batch is full or its oldest chunk is old enough, then give all chunks that fit as one.

        Args:
            batch_items: Items that make a full batch; a single larger chunk is given as it is.
            batch_bytes: The same in bytes.
            max_age_s: How long the oldest chunk may wait for company.

        Returns:
            None once the queue is closed and empty.
        """
        with self._changed:
            while True:
                self._wanted = (batch_items, batch_bytes)
                full = self._is_full()
                if self._chunks:
                    age = self._clock() - self._chunks[0][1]
                    if full or self._closed or self._flush or age >= max_age_s:
                        return self._join(batch_items, batch_bytes)
                    self._changed.wait(max_age_s - age)
                elif self._closed:
                    return None
                else:
                    self._flush = False
                    self._changed.wait()

    def flush(self) -> None:
        """Let `take` give what is there without waiting for company."""
        with self._changed:
            self._flush = True
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more; what is there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> int:
        """Drop everything that waits; gives the number of items."""
        with self._changed:
            items = self._items
            self._chunks.clear()
            self._items = self._bytes = 0
            self._dropped += items
            return items

    def _is_full(self) -> bool:
        """Whether there is as much as the taker wants."""
        items, size = self._wanted
        return self._items >= items or self._bytes >= size

    def _wake(self) -> None:
        """Wake the taker for the first chunk, whose age counts, and once there is enough: not for those between."""
        if len(self._chunks) == 1 or self._flush or self._is_full():
            self._changed.notify_all()

    def _over(self, chunk: Chunk) -> bool:
        return self._items + chunk.items > self.max_items or self._bytes + len(chunk.data) > self.max_bytes

    def _pop(self) -> Chunk:
        chunk, _ = self._chunks.popleft()
        self._items -= chunk.items
        self._bytes -= len(chunk.data)
        return chunk

    def _join(self, batch_items: int, batch_bytes: int) -> Chunk:
        taken = [self._pop()]
        items, size = taken[0].items, len(taken[0].data)
        while self._chunks:
            following = self._chunks[0][0]
            if items + following.items > batch_items or size + len(following.data) > batch_bytes:
                break
            taken.append(self._pop())
            items += following.items
            size += len(following.data)
        return taken[0] if len(taken) == 1 else Chunk(b"".join(chunk.data for chunk in taken), items)
