"""The reader of rings, on a file laid out as the kernel lays out a ring: two pages of positions, and the data twice."""

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.kernel.object import Cells
from onlooker.kernel.ringbuf import Ring

PAGE = mmap.PAGESIZE
STRIDE = 128
SIZE = 2 * PAGE
SLOTS = SIZE // STRIDE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Writer:
    """The kernel's half."""

    def __init__(self, fd: int) -> None:
        os.ftruncate(fd, 2 * PAGE + 2 * SIZE)
        self.fd = fd
        self.position = 0

    def write(self, number: int, flags: int = 0, *, commit: bool = True) -> None:
        record = (STRIDE - 8 | flags).to_bytes(4, "little") + bytes(4) + number.to_bytes(8, "little") * 15
        at = self.position % SIZE
        for copy in (0, SIZE):
            os.pwrite(self.fd, record, 2 * PAGE + copy + at)
        self.position += STRIDE
        if commit:
            self.commit()

    def commit(self) -> None:
        os.pwrite(self.fd, self.position.to_bytes(8, "little"), PAGE)

    def finish(self, slot: int, flags: int = 0) -> None:
        for copy in (0, SIZE):
            os.pwrite(self.fd, (STRIDE - 8 | flags).to_bytes(4, "little"), 2 * PAGE + copy + slot * STRIDE)

    @property
    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")


@pytest.fixture(params=[False, True], ids=["large", "small"], autouse=True)
def stays_mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the rings of a test count as small ones, whose data stays mapped."""
    monkeypatch.setattr("onlooker.kernel.ringbuf._SMALL_BYTES", SIZE if request.param else 0)
    return bool(request.param)


@pytest.fixture
def writer() -> Iterator[Writer]:
    fd = os.memfd_create("ring")
    yield Writer(fd)
    os.close(fd)


def numbers(ring: Ring, limit: int = 1 << 20) -> list[int]:
    found = ring.drain(limit)
    if found is None:
        return []
    assert found.shape[1] == STRIDE - 8
    assert (found == np.tile(found[:, :8], 15)).all()  # all of the record, nothing of another
    return np.ascontiguousarray(found[:, :8]).view(np.uint64)[:, 0].tolist()  # type: ignore[no-any-return]


def test_an_empty_ring_gives_nothing(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    assert ring.drain() is None
    assert ring.fill == 0


def test_records_come_in_order_and_are_given_back_to_the_kernel(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    for number in range(40):
        writer.write(number)
    assert ring.fill == 40 * STRIDE
    assert numbers(ring) == list(range(40))
    assert writer.consumed == 40 * STRIDE
    assert numbers(ring) == []


def test_a_run_over_the_end_is_one_batch(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    for number in range(SLOTS - 3):
        writer.write(number)
    numbers(ring)
    for number in range(SLOTS):  # a full ring that begins three records before its end
        writer.write(1000 + number)
    assert numbers(ring) == list(range(1000, 1000 + SLOTS))


def test_a_record_being_written_ends_the_batch(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    writer.write(1)
    writer.write(2, BUSY)
    writer.write(3)
    assert numbers(ring) == [1]
    assert numbers(ring) == []
    writer.finish(1)
    assert numbers(ring) == [2, 3]


def test_discarded_records_are_left_out(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    for number, flags in ((1, DISCARDED), (2, 0), (3, DISCARDED)):
        writer.write(number, flags)
    assert numbers(ring) == [2]
    writer.write(4, DISCARDED)
    assert ring.drain() is None
    assert writer.consumed == 4 * STRIDE


def test_what_was_drained_stays_when_the_kernel_writes_over_it(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    writer.write(7)
    found = ring.drain()
    for number in range(SLOTS):
        writer.write(100 + number)
    assert found is not None
    assert int(found[0, 0]) == 7


def test_a_reader_goes_on_where_the_last_one_stopped(writer: Writer) -> None:
    first = Ring(writer.fd, SIZE, STRIDE)
    writer.write(1)
    assert numbers(first) == [1]
    first.close()
    writer.write(2)
    assert numbers(Ring(writer.fd, SIZE, STRIDE)) == [2]


def test_a_closed_ring_is_empty(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    writer.write(1)
    ring.close()
    ring.close()
    assert ring.drain() is None


def test_the_data_is_mapped_only_while_it_is_read_unless_it_is_small(writer: Writer, stays_mapped: bool) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    for number in range(SLOTS):
        writer.write(number)
    ring.drain()
    with open("/proc/self/maps") as file:
        mapped = [line for line in file if "memfd:ring" in line]
    assert len(mapped) - stays_mapped in (1, 2)  # two pages of positions, next to each other or not
    ring.close()


@given(st.lists(st.tuples(st.integers(0, SLOTS), st.sampled_from([0, DISCARDED]), st.integers(1, SLOTS)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_or_doubled(bursts: list[tuple[int, int, int]]) -> None:
    fd = os.memfd_create("ring")
    try:
        writer, ring = Writer(fd), Ring(fd, SIZE, STRIDE)
        written: list[int] = []
        found: list[int] = []
        number = 0
        for count, flags, limit in bursts:
            room = SLOTS - ring.fill // STRIDE
            for _ in range(min(count, room)):
                number += 1
                writer.write(number, flags, commit=False)
                if not flags:
                    written.append(number)
            writer.commit()
            found += numbers(ring, limit)
        while ring.fill:
            found += numbers(ring)
        assert found == written
        ring.close()
    finally:
        os.close(fd)


@pytest.fixture
def cells() -> Iterator[tuple[Cells, int]]:
    fd = os.memfd_create("values")
    os.ftruncate(fd, 4 * PAGE)
    made = Cells(fd, 100, 3 * PAGE)
    yield made, fd
    made.close()
    os.close(fd)


def test_cells_are_plain_bytes_of_the_map(cells: tuple[Cells, int]) -> None:
    made, fd = cells
    for index in (0, 1, PAGE - 101, PAGE - 100, 3 * PAGE - 1, 5):
        made[index] = index % 251 + 1
        assert os.pread(fd, 1, 100 + index) == bytes([index % 251 + 1])
    os.pwrite(fd, b"\x2a", 100 + 2 * PAGE)
    assert made[2 * PAGE] == 0x2A
    assert len(made) == 3 * PAGE


@pytest.mark.parametrize("index", [-1, 3 * PAGE])
def test_cells_end_where_the_array_ends(cells: tuple[Cells, int], index: int) -> None:
    with pytest.raises(IndexError):
        cells[0][index] = 1


def test_cells_keep_one_page_mapped(cells: tuple[Cells, int]) -> None:
    made, _ = cells
    for index in range(0, 3 * PAGE, PAGE):
        made[index] = 1
    with open("/proc/self/smaps") as file:
        lines = file.read().split("memfd:values")
    assert len(lines) == 2
    assert f"Size: {PAGE // 1024:18d} kB" in lines[1]


def test_the_memory_of_one_batch_is_used_for_the_next(writer: Writer) -> None:
    ring = Ring(writer.fd, SIZE, STRIDE)
    writer.write(1)
    first = ring.drain()
    writer.write(2)
    second = ring.drain()
    assert first is not None
    assert second is not None
    assert np.shares_memory(first, second)
