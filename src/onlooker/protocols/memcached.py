"""Memcached, text, meta and binary: one operation a command.

Receives the segments of one connection.  Keys and values are stepped over.  A command that asks for no reply ends with
its request; quiet commands whose reply stayed out end with the next reply that proves they are done.

Source: https://github.com/memcached/memcached/blob/master/doc/protocol.txt and the wiki page BinaryProtocolRevamped
"""

from __future__ import annotations

from collections import deque
from typing import Final

from onlooker import semconv
from onlooker.protocols import Operation, Segment
from onlooker.protocols._db import ERROR_OTHER, MAX_PENDING, NO_VARYING, Connection, Frames, Options, Pending

SYSTEM: Final = "memcached"
MAX_LINE: Final = 8192
"""A get of a hundred keys of 250 bytes is longer; then the rest of the line is stepped over, not read."""
MAX_VALUE: Final = 1 << 30

_STORES: Final = frozenset({b"set", b"add", b"replace", b"append", b"prepend", b"cas"})
_READS: Final = frozenset({b"get", b"gets", b"gat", b"gats"})
_META: Final = frozenset({b"mg", b"ms", b"md", b"ma", b"mn", b"me"})
_OTHERS: Final = frozenset(
    {b"incr", b"decr", b"delete", b"touch", b"flush_all", b"version", b"verbosity", b"stats", b"quit", b"shutdown"}
    | {b"cache_memlimit", b"slabs", b"lru", b"lru_crawler", b"watch", b"refresh_certs"}
)
_COMMANDS: Final = _STORES | _READS | _META | _OTHERS
_ERRORS: Final = frozenset({b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"})
_META_REPLIES: Final = frozenset({b"HD", b"VA", b"EN", b"NF", b"NS", b"EX", b"ME", b"OK"})

_KEEPS_QUIET: Final = {
    "mg": frozenset({b"EN", b"NF", b"NS", b"EX"}),
    "ms": frozenset({b"HD", b"VA", b"EN", b"ME"}),
    "md": frozenset({b"HD", b"NF", b"VA", b"EN", b"ME"}),
    "ma": frozenset({b"HD", b"NF", b"EN", b"ME"}),
}
"""Replies that a quiet command never gives: they belong to a command behind it."""

_BINARY: Final = [
    "get", "set", "add", "replace", "delete", "increment", "decrement", "quit", "flush", "getq", "noop", "version",
    "getk", "getkq", "append", "prepend", "stat", "setq", "addq", "replaceq", "deleteq", "incrementq", "decrementq",
    "quitq", "flushq", "appendq", "prependq", "verbosity", "touch", "gat", "gatq",
]  # fmt: skip
_BINARY_NAMES: Final[dict[int, str]] = {
    **dict(enumerate(_BINARY)), 0x20: "sasl_list_mechs", 0x21: "sasl_auth", 0x22: "sasl_step", 0x23: "gatk",
    0x24: "gatkq",
}  # fmt: skip
_QUIET: Final = frozenset({0x09, 0x0D, *range(0x11, 0x1B), 0x1E, 0x24})
_PLAIN_NAME: Final = {0x09: "get", 0x0C: "get", 0x0D: "get", 0x1E: "gat", 0x23: "gat", 0x24: "gat"} | {
    code: _BINARY[code][:-1] for code in range(0x11, 0x1B)
}
_FINE: Final = frozenset({0x0000, 0x0001, 0x0002, 0x0005})
"""Success, key not found, key exists, not stored: answers, no errors."""
_STATUS: Final = {
    0x0003: "too_large", 0x0004: "invalid_arguments", 0x0006: "non_numeric", 0x0020: "auth_error",
    0x0021: "auth_continue",
    0x0081: "unknown_command", 0x0082: "out_of_memory", 0x0083: "not_supported", 0x0084: "internal_error",
    0x0085: "busy", 0x0086: "temporary_failure",
}  # fmt: skip


def _binary_length(data: bytes | bytearray, position: int) -> int:
    body = int.from_bytes(data[position + 8 : position + 12], "big")
    extras_and_key = data[position + 4] + (data[position + 2] << 8 | data[position + 3])
    return 24 + body if data[position] in (0x80, 0x81) and extras_and_key <= body < MAX_VALUE else -1


class _Lines:
    """One direction of the text protocol: lines, and data blocks that are stepped over."""

    def __init__(self) -> None:
        self.carry = b""
        self.skip = 0
        self.synced = True
        self.expected = -1
        self.long = False  # inside a line longer than what is kept

    def missing(self, count: int) -> bool:
        """Step over bytes that were not captured; False if that hides where the next line begins."""
        if count < 0 or count > self.skip or self.carry or self.long:
            self.synced = False
            self.carry = b""
            self.skip = 0
            self.long = False
            return False
        self.skip -= count
        return True


class MemcachedParser(Connection):
    """One connection."""

    def __init__(self, role: int, options: Options) -> None:
        super().__init__(role, options)
        self._queue: deque[Pending] = deque()
        self._binary: bool | None = None
        self._requests = _Lines()
        self._replies = _Lines()
        self._request_frames = Frames(24, _binary_length, 32)
        self._reply_frames = Frames(24, _binary_length, 32)
        self._last_response_ns = 0
        self._overlapped = False

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`."""
        out: list[Operation] = []
        for pending in self._queue:
            if pending.kind == "gap":
                self._lost += 1
            elif pending.value == "quiet":
                self._emit(out, pending, mono_ns, "")
            elif pending.kind != "quit":
                self._emit(out, pending, mono_ns, error or ERROR_OTHER)
        self._queue.clear()
        return out

    def _waiting(self) -> bool:
        return bool(self._queue)

    # requests

    def _request(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        if self._binary is None and segment.head:
            self._binary = segment.head[0] == 0x80
        self._settled = True
        if self._queue:
            if self._unsure():
                self._settle(out)
            elif (
                not self._overlapped
                and self._last_response_ns > self._queue[-1].request_end_ns
                and any(p.value == "quiet" for p in self._queue)
            ):
                # Quiet commands were taken for answered where the loud one behind them was: all are done by now.
                while self._queue:
                    self._emit(out, self._queue.popleft(), self._last_response_ns, "")
            elif not self._requests.skip and not self._requests.carry:
                self._overlapped = True
        if self._binary:
            for message in self._request_frames.feed(segment):
                if message is None:
                    self._gap(segment)
                else:
                    self._binary_command(out, message, segment)
            return out
        lines = self._requests
        if (
            lines.expected >= 0
            and segment.offset != lines.expected
            and not lines.missing(segment.offset - lines.expected)
        ):
            self._gap(segment)
        lines.expected = segment.offset + segment.length
        self._take_commands(out, segment.head, segment)
        gap = segment.length - len(segment.head) - len(segment.tail)
        if gap > 0 and lines.synced and not self._long_read(segment) and not lines.missing(gap):
            self._gap(segment)
        if segment.tail and lines.synced:
            self._take_commands(out, segment.tail, segment)
        return out

    def _long_read(self, segment: Segment) -> bool:
        """A read of very many keys: the line goes on in what was not captured, and ends with the transfer."""
        lines = self._requests
        word = lines.carry.split(b" ", 1)[0]
        if word not in _READS or segment.tail[-2:] != b"\r\n" or segment.tail.count(b"\n") != 1:
            return False
        self._push(Pending(word.decode(), segment, segment.mono_ns, segment.length))
        lines.carry = b""
        segment.tail = b""
        return True

    def _gap(self, segment: Segment) -> None:
        self._queue.append(Pending("gap", segment, segment.mono_ns, -1))

    def _unsure(self) -> bool:
        if self._overlapped:
            return False
        synced = self._reply_frames.synced if self._binary else self._replies.synced
        return not synced or any(p.kind == "gap" for p in self._queue)

    def _settle(self, out: list[Operation]) -> None:
        """The client asks anew: what came before is answered, but how was not captured."""
        if (
            len(self._queue) == 1
            and self._queue[0].kind in ("get", "gets", "gat", "gats")
            and self._queue[0].response_ns
        ):
            self._emit(out, self._queue.popleft(), self._last_response_ns, "")  # it had begun to give values
        self._lost += len(self._queue)
        self._queue.clear()
        self._replies.synced = self._requests.synced = True
        self._replies.carry = b""
        self._replies.skip = 0
        self._reply_frames.restart()
        self._request_frames.restart()

    def _push(self, pending: Pending) -> None:
        if len(self._queue) >= MAX_PENDING:
            self._lost += len(self._queue)
            self._queue.clear()
        self._queue.append(pending)

    def _take_commands(self, out: list[Operation], data: bytes, segment: Segment) -> None:
        lines = self._requests
        if not data:
            return
        if not lines.synced:
            if data.split(b" ", 1)[0].strip() not in _COMMANDS:
                return
            lines.synced = True
        if lines.skip:
            step = min(lines.skip, len(data))
            lines.skip -= step
            data = data[step:]
            if lines.skip or not data:
                return
        if lines.carry:
            data, lines.carry = lines.carry + data, b""
        position = 0
        while position < len(data):
            end = data.find(b"\n", position)
            if end < 0:
                if len(data) - position > MAX_LINE:
                    lines.missing(-1)
                    self._gap(segment)
                else:
                    lines.carry = data[position:]
                return
            start = position
            words = data[position:end].split()
            position = end + 1
            if not words:
                continue
            if words[0] not in _COMMANDS:
                self._push(Pending("unknown", segment, segment.mono_ns, position - start))  # the server says ERROR
                continue
            position += self._command(out, words, position - start, segment)
            if position > len(data):
                lines.skip = position - len(data)
                return

    def _command(self, out: list[Operation], words: list[bytes], size: int, segment: Segment) -> int:
        """Note one command; gives the length of the data block behind its line."""
        word = words[0]
        block = 0
        silent = words[-1] == b"noreply"
        quiet = False
        if word in _STORES and len(words) >= 5:
            block = _number(words[4]) + 2
        elif word == b"ms" and len(words) >= 3:
            block = _number(words[2]) + 2
        if word in _META:
            quiet = any(flag == b"q" for flag in words[2 + (word == b"ms") :])
            silent = False
        pending = Pending(word.decode(), segment, segment.mono_ns, size + block, value="quiet" if quiet else None)
        if word == b"watch":
            self.note = "watch"
        elif silent:
            self._emit(out, pending, segment.mono_ns, "")
        else:
            self._push(pending)
        return block

    def _binary_command(self, out: list[Operation], message: tuple[bytes, int, int], segment: Segment) -> None:
        data, total, start_ns = message
        code = data[1]
        if data[0] != 0x80 or code not in _BINARY_NAMES:
            return
        name = _PLAIN_NAME.get(code) or _BINARY_NAMES[code]
        pending = Pending(name, segment, start_ns, total, value="quiet" if code in _QUIET else None)
        pending.index = code << 32 | int.from_bytes(data[12:16], "big")
        self._push(pending)

    # replies

    def _response(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        self._last_response_ns = segment.mono_ns
        if self._queue and not self._queue[0].response_ns:
            self._queue[0].response_ns = segment.mono_ns
        if self._binary is None and segment.head:
            self._binary = segment.head[0] == 0x81
        if self._binary:
            for message in self._reply_frames.feed(segment):
                if message is not None:
                    self._binary_reply(out, message[0], message[1], segment.mono_ns)
            return out
        lines = self._replies
        if lines.expected >= 0 and segment.offset != lines.expected:
            lines.missing(segment.offset - lines.expected)
        lines.expected = segment.offset + segment.length
        if not lines.synced and not self._queue:
            lines.synced = True
        self._take_replies(out, segment.head, segment)
        gap = segment.length - len(segment.head) - len(segment.tail)
        if gap > 0 and lines.synced:
            lines.missing(gap)
        if segment.tail and lines.synced:
            self._take_replies(out, segment.tail, segment)
        elif (
            not lines.synced
            and len(self._queue) == 1
            and (segment.tail or segment.head).endswith(b"\r\nEND\r\n")
            and self._queue[0].kind in ("get", "gets", "gat", "gats")
        ):
            lines.synced = True
            self._finish(out, segment.mono_ns, "")
        return out

    def _take_replies(self, out: list[Operation], data: bytes, segment: Segment) -> None:
        lines = self._replies
        if not data or not lines.synced:
            return
        if lines.skip:
            step = min(lines.skip, len(data))
            lines.skip -= step
            data = data[step:]
            if lines.skip:
                return
        if lines.carry:
            data, lines.carry = lines.carry + data, b""
        position = 0
        while position < len(data):
            end = data.find(b"\n", position)
            if end < 0:
                if len(data) - position > MAX_LINE:
                    lines.missing(-1)
                else:
                    lines.carry = data[position:]
                return
            words = data[position:end].split(None, 5)
            if self._queue:
                self._queue[0].response_bytes += end + 1 - position
            position = end + 1
            position += self._reply(out, words, segment.mono_ns) if words else 0
            if position > len(data):
                lines.skip = position - len(data)
                return

    def _reply(self, out: list[Operation], words: list[bytes], mono_ns: int) -> int:
        """Take one line of a reply; gives the length of the data block behind it."""
        word = words[0]
        if word == b"VALUE" and len(words) >= 4:
            return _number(words[3]) + 2
        if word in (b"STAT", b"ITEM"):
            return 0
        if word == b"VA" and len(words) >= 2:
            self._finish(out, mono_ns, "", word)
            return _number(words[1]) + 2
        if word in _ERRORS:
            self._finish(out, mono_ns, word.decode())
        elif word == b"MN":
            while self._queue and self._queue[0].kind != "mn":  # quiet commands before it are done
                pending = self._queue.popleft()
                if pending.value == "quiet":
                    self._emit(out, pending, mono_ns, "")
                else:
                    self._lost += 1
            self._finish(out, mono_ns, "")
        else:
            self._finish(out, mono_ns, "", word if word in _META_REPLIES else b"")
        return 0

    def _finish(self, out: list[Operation], mono_ns: int, error: str, meta: bytes = b"") -> None:
        if not self._queue:
            return
        if self._queue[0].kind == "gap":
            self._lost += 1
            return
        while meta and self._queue[0].value == "quiet" and meta in _KEEPS_QUIET.get(self._queue[0].kind, ()):
            self._emit(out, self._queue.popleft(), mono_ns, "")  # it would not have answered so: it kept quiet
            if not self._queue:
                return
        pending = self._queue.popleft()
        if not pending.response_ns:
            pending.response_ns = mono_ns
        self._emit(out, pending, mono_ns, error)

    def _binary_reply(self, out: list[Operation], data: bytes, total: int, mono_ns: int) -> None:
        if data[0] != 0x81:
            return
        key = data[1] << 32 | int.from_bytes(data[12:16], "big")
        if not any(p.index == key for p in self._queue):
            return
        while self._queue and self._queue[0].index != key:
            pending = self._queue.popleft()
            if pending.value == "quiet":  # commands are answered in order: it kept quiet
                self._emit(out, pending, mono_ns, "")
            else:
                self._lost += 1
        pending = self._queue[0]
        pending.response_bytes += total
        if data[1] == 0x10 and (data[2] or data[3]):
            return  # stat: ends with an empty key
        self._queue.popleft()
        pending.response_ns = pending.response_ns or mono_ns
        status = data[6] << 8 | data[7]
        self._emit(out, pending, mono_ns, "" if status in _FINE else _STATUS.get(status, f"0x{status:04x}"))

    def _emit(self, out: list[Operation], pending: Pending, end_ns: int, error: str) -> None:
        name, dims = self.options.store_dims(SYSTEM, pending.kind, "", "", error if error != ERROR_OTHER else "", error)
        varying = {semconv.DB_QUERY_TEXT: pending.kind} if self.options.query_text else NO_VARYING
        out.append(pending.operation(name, dims, varying, end_ns, error))


def _number(word: bytes) -> int:
    """A length as text; 0 if it is none, so that a hostile one is not followed."""
    return min(int(word), MAX_VALUE) if word.isdigit() and len(word) < 11 else 0
