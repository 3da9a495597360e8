from __future__ import annotations

import numpy as np
import pytest

from onlooker import semconv
from onlooker.assemble.segments import Segments
from onlooker.batches import StatusCode, Text, Values
from onlooker.protocols import Operation, Segment
from support.records import a_segment

CLOSE, EOF, RESET, UNREADABLE = 4, 32, 16, 2
OFFSET = 10**18


class Echo:
    """Takes each request byte string as an operation that the next response ends."""

    def __init__(self, role: int) -> None:
        self.role = role
        self.open: list[Segment] = []
        self.seen: list[Segment] = []
        self._lost = 0

    def feed(self, segment: Segment) -> list[Operation]:
        self.seen.append(segment)
        if segment.head == b"raise":
            raise ValueError("a parser's fault")
        if not segment.readable:
            self._lost += 1
            return []
        if segment.from_client:
            self.open.append(segment)
            return []
        if not self.open:
            return []
        return [self._operation(self.open.pop(0), segment.mono_ns, "")]

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        found = [self._operation(s, mono_ns, error or "gone") for s in self.open]
        self.open.clear()
        return found

    def expire(self, mono_ns: int) -> list[Operation]:
        late = [s for s in self.open if mono_ns - s.mono_ns > 10**9]
        self.open = [s for s in self.open if s not in late]
        return [self._operation(s, mono_ns, "timeout") for s in late]

    @property
    def lost(self) -> int:
        found, self._lost = self._lost, 0
        return found

    def _operation(self, request: Segment, end: int, error: str) -> Operation:
        return Operation(
            name=request.head.decode(), dims={semconv.DB_SYSTEM_NAME: "echo"}, varying={"a.text": "x", "a.number": 5},
            start_mono_ns=request.mono_ns, request_end_mono_ns=request.mono_ns, response_start_mono_ns=end,
            end_mono_ns=end, error=error, trace_id=request.trace_id, parent_span_id=request.span_id,
        )  # fmt: skip


class Rig:
    def __init__(self, capacity: int = 100) -> None:
        self.values = Values()
        self.parsers: list[Echo] = []
        self.segments = Segments(
            self.values,
            make_parser=self._make,
            dim_names=lambda protocol, role: (semconv.DB_SYSTEM_NAME, semconv.ERROR_TYPE),
            name_of=lambda protocol: f"p{protocol}",
            rng=np.random.default_rng(1),
            capacity=capacity,
        )

    def _make(self, protocol: int, role: int) -> Echo:
        self.parsers.append(Echo(role))
        return self.parsers[-1]

    def feed(self, *rows: np.ndarray, now: int = 0) -> list[tuple[str, int, int, str | None]]:
        found = []
        parts = [np.concatenate(rows)] if rows else []
        for batch in self.segments.requests(parts, offset_ns=OFFSET, now_mono_ns=now):
            errors = batch.dims[:, batch.dim_names.index(semconv.ERROR_TYPE)]
            found += [
                (str(self.values[int(batch.name[i])]), int(batch.duration_ns[i]), int(batch.status[i]),
                 self.values[int(errors[i])])
                for i in range(len(batch))
            ]  # fmt: skip
        return found


def test_request_and_response_become_a_row() -> None:
    rig = Rig()
    assert rig.feed(a_segment(b"get"), a_segment(b"ok", sent=True, sequence=1, at=1_000_500)) == [
        ("get", 500, StatusCode.UNSET, None)
    ]


def test_records_are_put_in_the_order_of_their_connection() -> None:
    rig = Rig()
    late = a_segment(b"one")
    early = a_segment(b"two", sequence=2)
    answers = [a_segment(b"r", sent=True, sequence=i, at=1_000_000 + i) for i in (1, 3)]
    assert [row[0] for row in rig.feed(answers[1], early, answers[0], late)] == ["one", "two"]


def test_a_record_that_waits_for_the_one_before_it_outlives_the_memory_of_its_round() -> None:
    segments = Rig().segments
    ring = a_segment(b"one", sequence=1, local_port=6400)
    assert segments.requests([ring], offset_ns=OFFSET, now_mono_ns=0) == []
    ring[:] = np.zeros(1, ring.dtype)  # the next round is read into the same place
    answer = a_segment(b"r", sent=True, sequence=2, at=1_000_300, local_port=1)
    (batch,) = segments.requests([answer], offset_ns=OFFSET, now_mono_ns=0)
    assert batch.local_port.tolist() == [6400]


def test_the_direction_of_a_client() -> None:
    rig = Rig()
    rig.feed(a_segment(b"get", sent=True, role=3), a_segment(b"ok", role=3, sequence=1))
    assert [s.from_client for s in rig.parsers[0].seen] == [True, False]


def test_what_came_before_the_protocol_was_known_is_replayed() -> None:
    rig = Rig()
    assert rig.feed(a_segment(b"get", protocol=0, role=0)) == []
    assert not rig.parsers
    assert rig.feed(a_segment(b"ok", sent=True, sequence=1, at=1_000_300)) == [("get", 300, StatusCode.UNSET, None)]


def test_frames_of_http2_come_condensed_and_are_not_replayed_raw() -> None:
    rig = Rig()
    rig.feed(a_segment(b"raw", protocol=0, role=0), a_segment(b"x", protocol=2, sequence=1))
    assert [s.head for s in rig.parsers[0].seen] == [b"x"]


def test_a_connection_that_stays_unknown_is_bounded() -> None:
    rig = Rig()
    rig.feed(*(a_segment(b"?", protocol=0, role=0, sequence=i) for i in range(100)))
    assert rig.segments.dropped["protocol_unknown"] == 100 - 24
    rig.feed(a_segment(b"", flags=CLOSE, protocol=0, sequence=100))
    assert len(rig.segments) == 0


@pytest.mark.parametrize(("flags", "error"), [(CLOSE, "gone"), (CLOSE | RESET, "connection_reset")])
def test_the_end_of_a_connection_ends_what_is_open(flags: int, error: str) -> None:
    rig = Rig()
    rig.feed(a_segment(b"get"))
    end = a_segment(b"", flags=flags, sequence=1, at=1_000_900)
    assert rig.feed(end) == [("get", 900, StatusCode.ERROR, error)]
    assert len(rig.segments) == 0


def test_an_end_of_one_direction_ends_nothing() -> None:
    rig = Rig()
    rig.feed(a_segment(b"get"), a_segment(b"", flags=EOF, sequence=1))
    assert rig.feed(a_segment(b"ok", sent=True, sequence=2)) != []


def test_parsers_are_asked_for_what_waits_too_long() -> None:
    rig = Rig()
    rig.feed(a_segment(b"get"), now=1_000_000)
    assert rig.feed(now=2_000_000_000) == [("get", 1_999_000_000, StatusCode.ERROR, "timeout")]


def test_a_parser_that_raises_costs_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rows = rig.feed(
        a_segment(b"raise"), a_segment(b"get", connection=10, sequence=0),
        a_segment(b"ok", sent=True, connection=10, sequence=1), a_segment(b"more", sequence=1),
    )  # fmt: skip
    assert [row[0] for row in rows] == ["get"]
    assert rig.segments.dropped["parser_failed"] == 1
    assert "p6 parser failed" in caplog.text


def test_what_a_parser_could_not_read_is_counted() -> None:
    rig = Rig()
    rig.feed(a_segment(b"", flags=UNREADABLE, length=100))
    assert rig.segments.lost == {"p6": 1}


def test_the_least_recently_used_connection_goes_first() -> None:
    rig = Rig(capacity=2)
    rig.feed(*(a_segment(b"get", connection=i) for i in (1, 2)))
    rig.feed(a_segment(b"again", connection=1, sequence=1))
    assert [row[0] for row in rig.feed(a_segment(b"get", connection=3))] == ["get"]  # of connection 2, given up
    assert rig.segments.dropped["connection_evicted"] == 1


def test_columns() -> None:
    rig = Rig()
    request = a_segment(b"get", trace_id=np.full(16, 3), span_id=np.full(8, 4), trace_flags=1)
    (batch,) = rig.segments.requests(
        [np.concatenate([request, a_segment(b"ok", sent=True, sequence=1)])], offset_ns=OFFSET, now_mono_ns=0
    )
    assert batch.trace_id.tolist() == [[3] * 16]
    assert batch.parent_span_id.tolist() == [[4] * 8]
    assert batch.span_id.any()
    assert batch.dim_names[-2:] == (semconv.SERVER_ADDRESS, semconv.SERVER_PORT)
    column = batch.varying["a.text"]
    assert isinstance(column, Text)
    assert column[0] == b"x"
    assert batch.varying["a.number"].tolist() == [5]  # type: ignore[union-attr]
    assert batch.pid.tolist() == [100]
    assert batch.start_unix_ns.tolist() == [OFFSET + 1_000_000]


def test_a_segment_that_was_read_before_its_predecessor_waits_one_round() -> None:
    parsers: list[Echo] = []
    values = Values()

    def make(protocol: int, role: int) -> Echo:
        parsers.append(Echo(role))
        return parsers[-1]

    segments = Segments(
        values, make_parser=make, dim_names=lambda protocol, role: (semconv.DB_SYSTEM_NAME,),
        name_of=lambda number: "echo", rng=np.random.default_rng(1),
    )  # fmt: skip
    one, two, three = (a_segment(text, sequence=number) for number, text in enumerate((b"a", b"b", b"c")))

    def feed(*parts: np.ndarray) -> list[bytes]:
        segments.requests(list(parts), offset_ns=OFFSET, now_mono_ns=1)
        return [segment.head for parser in parsers for segment in parser.seen]

    assert feed(one, three) == [b"a"]
    assert feed(two) == [b"a", b"b", b"c"]
    # what does not come is not waited for
    five = a_segment(b"e", sequence=4)
    assert feed(five) == [b"a", b"b", b"c"]
    assert feed() == [b"a", b"b", b"c", b"e"]
