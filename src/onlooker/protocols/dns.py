"""DNS over UDP and TCP: one operation a lookup.

Receives the segments of one socket: a datagram each, or a TCP stream with its two-byte lengths, told apart by the
bytes.  A question asked again before its answer is the same lookup.  One that stays without an answer for
`Options.dns_timeout_ns` ends as an error when `expire` is called.

Source: RFC 1035 section 4, RFC 7766 section 8
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from onlooker import semconv
from onlooker.batches import AttributeValue, SpanKind
from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import MAX_PENDING, Options

RESENDS: Final = "onlooker.dns.resends"
QUESTION_TYPE: Final = "onlooker.dns.question.type"
TIMEOUT: Final = "timeout"
MAX_ANSWERS: Final = 16
MAX_LABELS: Final = 128
MAX_JUMPS: Final = 16

DIMS: Final = (QUESTION_TYPE, semconv.ERROR_TYPE)

TYPES: Final = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 29: "LOC",
    33: "SRV",
    35: "NAPTR", 39: "DNAME", 41: "OPT", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3",
    52: "TLSA",
    64: "SVCB", 65: "HTTPS", 99: "SPF", 251: "IXFR", 252: "AXFR", 255: "ANY", 257: "CAA",
}  # fmt: skip
RCODES: Final = (
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH",
    "NOTZONE",
)  # fmt: skip


def read_name(data: bytes, position: int) -> tuple[str, int]:
    """A domain name and the position behind it; ("", -1) if it is none.  Follows a bounded number of pointers."""
    labels: list[str] = []
    after = -1
    size = total = jumps = 0
    while position < len(data) and len(labels) < MAX_LABELS:
        size = data[position]
        if size == 0:
            return ".".join(labels) or ".", position + 1 if after < 0 else after
        if size >= 0xC0:
            jumps += 1
            if position + 2 > len(data) or jumps > MAX_JUMPS:
                break
            if after < 0:
                after = position + 2
            position = (size & 0x3F) << 8 | data[position + 1]
            continue
        label = data[position + 1 : position + 1 + size]
        total += size + 1
        if size > 63 or len(label) < size or total > 255:
            break
        labels.append("".join(chr(c) if 0x21 <= c < 0x7F and c != 0x2E else f"\\{c:03d}" for c in label).lower())
        position += 1 + size
    return "", -1


def _is_message(data: bytes) -> bool:
    """Whether this can be the beginning of a DNS message with one question."""
    return len(data) >= 17 and data[4:6] == b"\0\1" and not data[3] & 0x40 and (data[2] >> 3 & 15) in (0, 4, 5)


class _Lookup:
    __slots__ = ("deadline_ns", "name", "resends", "segment", "size", "type")

    def __init__(self, segment: Segment, name: str, type_: str, size: int, deadline_ns: int) -> None:
        self.segment = segment
        self.name = name
        self.type = type_
        self.size = size
        self.resends = 0
        self.deadline_ns = deadline_ns


class DnsParser:
    """One socket."""

    def __init__(self, role: int, options: Options) -> None:
        self.role = role
        self.options = options
        self.note = ""
        self._lost = 0
        self._open: OrderedDict[tuple[int, str, int, bool], _Lookup] = OrderedDict()
        self._early: OrderedDict[tuple[int, str, int, bool], tuple[bytes, Segment]] = OrderedDict()
        self._carry = {True: b"", False: b""}
        self._skip = {True: 0, False: 0}
        self._dims: dict[tuple[str, str], Mapping[str, AttributeValue]] = {}

    @property
    def lost(self) -> int:
        """See `SegmentParser.lost`."""
        count, self._lost = self._lost, 0
        return count

    def feed(self, segment: Segment) -> list[Operation]:
        """See `SegmentParser.feed`."""
        out: list[Operation] = []
        data, side = segment.head, segment.sent
        if not data:
            self._lost += 1
            return out
        # A datagram is a message; a stream has a length of two bytes before each, which resolvers often read by itself.
        under_way = self._carry[side] or self._skip[side]
        if (under_way or not _is_message(data)) and self._take(out, segment):
            return out
        self._carry[side] = b""
        self._skip[side] = 0
        self._message(out, data, segment)
        return out

    def _take(self, out: list[Operation], segment: Segment) -> bool:
        """A piece of a TCP stream; False if it is none."""
        side = segment.sent
        data = segment.head
        if self._skip[side]:
            step = min(self._skip[side], segment.length)
            self._skip[side] -= step
            data = data[step:]
        data = self._carry[side] + data
        self._carry[side] = b""
        gap = segment.length - len(segment.head)
        while len(data) >= 2:
            size = int.from_bytes(data[:2], "big")
            if size < 17 or (len(data) >= 8 and data[6:8] != b"\0\1"):
                return False
            if len(data) < 2 + size:
                if not gap and len(data) < 65_538:
                    break
                self._message(out, data[2:], segment)  # cut: what it asks stands at its beginning
                self._skip[side] = max(2 + size - len(data) - gap, 0)
                return True
            self._message(out, data[2 : 2 + size], segment)
            data = data[2 + size :]
        self._carry[side] = data
        return True

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`.  A resolver that closes its socket has given up: that is a timeout as well."""
        out = [self._operation(lookup, mono_ns, None, error or TIMEOUT, ()) for lookup in self._open.values()]
        self._open.clear()
        return out

    def expire(self, mono_ns: int) -> list[Operation]:
        """See `SegmentParser.expire`."""
        out: list[Operation] = []
        while self._open:
            key, lookup = next(iter(self._open.items()))
            if lookup.deadline_ns > mono_ns:
                break
            del self._open[key]
            out.append(self._operation(lookup, lookup.deadline_ns, None, TIMEOUT, ()))
        self._early.clear()
        return out

    def _message(self, out: list[Operation], data: bytes, segment: Segment) -> None:
        if not _is_message(data):
            return
        name, position = read_name(data, 12)
        if position < 0 or position + 4 > len(data):
            return
        kind = int.from_bytes(data[position : position + 2], "big")
        number = int.from_bytes(data[:2], "big")
        answer = bool(data[2] & 0x80)
        asked_here = segment.sent != answer  # the question goes out of this socket
        key = (number, name, kind, asked_here)
        if not answer:
            self._ask(out, key, segment)
            return
        lookup = self._open.pop(key, None)
        if lookup is None:
            # the record of the question may follow; an answer after the timeout finds nothing and is dropped
            if len(self._early) < 64:
                self._early[key] = (data, segment)
            return
        self._answer(out, lookup, data, position + 4, segment)

    def _ask(self, out: list[Operation], key: tuple[int, str, int, bool], segment: Segment) -> None:
        known = self._open.get(key)
        if known is not None:
            known.resends += 1
            return
        if len(self._open) >= MAX_PENDING:
            self._open.popitem(last=False)
            self._lost += 1
        type_ = TYPES.get(key[2], f"TYPE{key[2]}" if key[2] < 0x100 else "OTHER")
        lookup = _Lookup(segment, key[1], type_, segment.length, segment.mono_ns + self.options.dns_timeout_ns)
        early = self._early.pop(key, None)
        if early is not None and 0 <= segment.mono_ns - early[1].mono_ns < 1_000_000:
            data, response = early
            _name, position = read_name(data, 12)
            self._answer(out, lookup, data, position + 4, response)
        else:
            self._open[key] = lookup

    def _answer(self, out: list[Operation], lookup: _Lookup, data: bytes, position: int, segment: Segment) -> None:
        code = data[3] & 15
        error = "" if code == 0 else RCODES[code] if code < len(RCODES) else f"RCODE{code}"
        count = int.from_bytes(data[6:8], "big")
        answers = _answers(data, position, min(count, MAX_ANSWERS))
        out.append(self._operation(lookup, segment.mono_ns, segment, error, answers))

    def _operation(
        self, lookup: _Lookup, end_ns: int, response: Segment | None, error: str, answers: tuple[str, ...]
    ) -> Operation:
        asked = lookup.segment
        dims = self._dims.get((lookup.type, error))
        if dims is None:
            if len(self._dims) > 256:
                self._dims.clear()
            dims = {QUESTION_TYPE: lookup.type, semconv.ERROR_TYPE: error} if error else {QUESTION_TYPE: lookup.type}
            self._dims[lookup.type, error] = dims
        varying: dict[str, AttributeValue] = {semconv.DNS_QUESTION_NAME: lookup.name}
        if answers:
            varying[semconv.DNS_ANSWERS] = answers
        if lookup.resends:
            varying[RESENDS] = lookup.resends
        end_ns = max(end_ns, asked.mono_ns)
        return Operation(
            # the question is an attribute: names of hosts would make one series each
            f"DNS {lookup.type}", dims, asked.mono_ns, asked.mono_ns, end_ns if response else 0, end_ns,
            varying,
            lookup.size, response.length if response else -1, error, asked.trace_id, asked.span_id,
            asked.trace_flags if asked.trace_id else 1, asked.parent_source, asked.tid, False,
            int(SpanKind.CLIENT if asked.sent else SpanKind.SERVER),
        )  # fmt: skip


def _answers(data: bytes, position: int, count: int) -> tuple[str, ...]:
    """What the answer section says, as text, as far as it was captured."""
    out: list[str] = []
    for _ in range(count):
        _owner, position = read_name(data, position)
        if position < 0 or position + 10 > len(data):
            break
        kind = int.from_bytes(data[position : position + 2], "big")
        size = int.from_bytes(data[position + 8 : position + 10], "big")
        start = position + 10
        position = start + size
        if position > len(data):
            break
        text = _data(data, kind, start, size)
        if text:
            out.append(text)
    return tuple(out)


def _data(data: bytes, kind: int, start: int, size: int) -> str:
    """The data of a record that points somewhere; other kinds (TXT may hold secrets) are left out."""
    if kind == 1 and size == 4:
        return str(ipaddress.IPv4Address(data[start : start + 4]))
    if kind == 28 and size == 16:
        return str(ipaddress.IPv6Address(data[start : start + 16]))
    offset = {2: 0, 5: 0, 12: 0, 15: 2, 33: 6}.get(kind)
    return "" if offset is None else read_name(data, start + offset)[0]
