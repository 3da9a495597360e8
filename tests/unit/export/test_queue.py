"""The bounded queue."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from onlooker.export.queue import Chunk, ChunkQueue, DropPolicy


def a_chunk(items: int = 1, size: int = 10, mark: int = 0) -> Chunk:
    return Chunk(bytes([mark]) * size, items)


def a_queue(**changes: object) -> ChunkQueue:
    return ChunkQueue(**{"max_items": 10, "max_bytes": 100, **changes})  # type: ignore[arg-type]  # a builder


def take(queue: ChunkQueue, items: int = 1000, size: int = 1000) -> Chunk | None:
    return queue.take(batch_items=items, batch_bytes=size, max_age_s=0.0)


def test_oldest_go_first() -> None:
    queue = a_queue()
    for mark in range(5):
        assert queue.put(a_chunk(4, 1, mark)) == (4 if mark >= 2 else 0)
    taken = take(queue)
    assert taken == Chunk(b"\x03\x04", 8)
    assert queue.dropped == 12


def test_newest_go_first() -> None:
    queue = a_queue(policy=DropPolicy.NEWEST)
    assert [queue.put(a_chunk(4, 1, mark)) for mark in range(4)] == [0, 0, 4, 4]
    assert take(queue) == Chunk(b"\x00\x01", 8)


def test_a_chunk_larger_than_the_queue_drops_itself_and_nothing_else() -> None:
    queue = a_queue()
    queue.put(a_chunk(1, 10, 7))
    assert queue.put(a_chunk(11, 1)) == 11
    assert queue.put(a_chunk(1, 101)) == 1
    assert take(queue) == a_chunk(1, 10, 7)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 120)), max_size=40),
    st.sampled_from(DropPolicy),
)
def test_bounds_hold_and_nothing_is_lost_uncounted(sizes: list[tuple[int, int]], policy: DropPolicy) -> None:
    queue = a_queue(policy=policy)
    dropped = 0
    for items, size in sizes:
        dropped += queue.put(a_chunk(items, size))
        assert queue.items <= 10
        assert queue.bytes <= 100
    waiting = queue.items
    assert sum(items for items, _ in sizes) == waiting + dropped
    assert dropped == queue.dropped
    taken = 0
    while queue.items:
        chunk = take(queue, 3, 50)
        assert chunk is not None
        taken += chunk.items
    assert taken == waiting
    assert queue.bytes == 0


def test_a_batch_is_full_by_items_or_bytes() -> None:
    queue = a_queue()
    for mark in range(5):
        queue.put(a_chunk(2, 10, mark))
    first, second = take(queue, items=4), take(queue, size=25)
    assert first is not None
    assert second is not None
    assert (first.items, second.items) == (4, 4)


def test_take_waits_for_company_until_the_oldest_is_old() -> None:
    now = [0.0]
    queue = a_queue(clock=lambda: now[0])
    queue.put(a_chunk(1, 1, 1))
    queue.put(a_chunk(1, 1, 2))
    now[0] = 5.0
    taken = queue.take(batch_items=100, batch_bytes=100, max_age_s=5.0)
    assert taken == Chunk(b"\x01\x02", 2)


def test_a_full_batch_does_not_wait() -> None:
    queue = a_queue()
    queue.put(a_chunk(5))
    assert queue.take(batch_items=5, batch_bytes=1000, max_age_s=3600.0) is not None


def test_flush_ends_the_wait_of_a_taker() -> None:
    queue = a_queue()
    got: list[Chunk | None] = []
    taker = threading.Thread(target=lambda: got.append(queue.take(batch_items=5, batch_bytes=1000, max_age_s=3600.0)))
    taker.start()
    queue.put(a_chunk(1))
    queue.flush()
    taker.join(10)
    assert got == [a_chunk(1)]


def test_a_closed_queue_gives_what_is_left_then_none() -> None:
    queue = a_queue()
    queue.put(a_chunk(3))
    queue.close()
    assert queue.put(a_chunk(2)) == 2
    assert queue.take(batch_items=100, batch_bytes=1000, max_age_s=3600.0) == a_chunk(3)
    assert queue.take(batch_items=100, batch_bytes=1000, max_age_s=3600.0) is None


def test_close_wakes_a_taker() -> None:
    queue = a_queue()
    got: list[Chunk | None] = []
    taker = threading.Thread(target=lambda: got.append(take(queue)))
    taker.start()
    queue.close()
    taker.join(10)
    assert got == [None]


def test_clear_counts() -> None:
    queue = a_queue()
    queue.put(a_chunk(3))
    assert queue.clear() == 3
    assert (queue.items, queue.bytes, queue.dropped) == (0, 0, 3)
