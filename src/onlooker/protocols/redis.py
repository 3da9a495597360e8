"""Redis and its relatives, RESP2 and RESP3: one operation a command, matched to replies by order.

Receives the segments of one connection.  A burst of pipelined commands gives one operation each up to
`Options.pipeline_spans`, and one batch for the rest, whose size counts every command.  Pushed messages are no replies
and give nothing.  Arguments are stepped over: only the command's name is read, and the number behind SELECT.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

# ruff: noqa: SIM905  # words in a text read better than a list of a hundred quoted ones
from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Final

from onlooker import semconv
from onlooker.batches import AttributeValue
from onlooker.protocols import Half, Operation, Segment
from onlooker.protocols._db import ERROR_OTHER, MAX_PENDING, NO_VARYING, Connection, Options, Pending

SYSTEM: Final = "redis"
MAX_CARRY: Final = 65_536
MAX_LINE: Final = 16_384
MAX_BULK: Final = 1 << 33
IDLE_NS: Final = 50_000_000
"""After this much silence nothing of a pipeline can be under way: what was lost track of may be found again."""
SETTLED_MAX: Final = 64
"""With more commands under way, what is lost is declared later: looking through them all would cost too much."""
PIPELINE: Final = "PIPELINE"
ROLE_SERVER: Final = 2
"""`enum role`.  The server writes its replies before it reads on, so on its side requests never overlap replies."""

_HEAD: Final = re.compile(rb"\*(\d{1,7})\r\n\$(\d{1,2})\r\n([A-Za-z][\w.:|-]{0,47})\r\n")
_FIRST_WORD: Final = re.compile(rb"([A-Za-z]{2,20})(?: [^\r\n]*)?\r?\n")
_PUSH_KIND: Final = re.compile(rb"[*>]\d+\r\n[$+](?:\d+\r\n)?([a-z]+)\r\n")
_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{1,31}\Z")
_PUSHES: Final = frozenset({b"message", b"pmessage", b"smessage"})
_CONFIRMATIONS: Final = frozenset(
    {b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe", b"sunsubscribe"}
)
_SUBSCRIPTIONS: Final = frozenset(w.decode().upper() for w in _CONFIRMATIONS)
BLOCKING: Final = frozenset("""BLPOP BRPOP BRPOPLPUSH BLMOVE BLMPOP BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF""".split())
_BLOCKING_IF_ASKED: Final = frozenset({"XREAD", "XREADGROUP"})
_INLINE: Final = frozenset(
    """PING SET GET DEL EXISTS EXPIRE TTL INCR DECR INCRBY DECRBY LPUSH RPUSH LPOP RPOP LRANGE LLEN SADD SREM SPOP
    SMEMBERS HSET HGET HDEL HGETALL ZADD ZREM ZRANGE ZPOPMIN MSET MGET INFO CONFIG CLIENT SELECT KEYS SCAN
    FLUSHALL FLUSHDB DBSIZE ECHO TYPE AUTH HELLO QUIT COMMAND TIME MONITOR SAVE BGSAVE LASTSAVE SHUTDOWN MULTI
    EXEC DISCARD""".split()
)

_PLAIN, _NAMES, _NOTES, _SELECTS, _MAY_BLOCK, _REPLIES_OFF = 0, 1, 2, 3, 4, 5
SPECIAL: Final[dict[str, int]] = {
    **dict.fromkeys(_SUBSCRIPTIONS, _NAMES),
    "MONITOR": _NOTES,
    "SYNC": _NOTES,
    "PSYNC": _NOTES,
    "SELECT": _SELECTS,
    **dict.fromkeys(_BLOCKING_IF_ASKED, _MAY_BLOCK),
    "CLIENT": _REPLIES_OFF,
}

_SIMPLE: Final = frozenset(b"+-:_#,(")
_PLAIN_REPLY: Final = frozenset(b"+:_#,(")
_BULK: Final = frozenset(b"$=!")
_MULTIPLES: Final = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}


def _size(pending: Pending) -> int:
    """How many commands it stands for."""
    return pending.value if pending.kind in ("batch", "gap") and isinstance(pending.value, int) else 1


def error_code(line: bytes) -> str:
    """The first word of an error, as far as it is one."""
    word = re.split(rb"[ \r\n\0]", line[1:], maxsplit=1)[0].decode("ascii", "replace")
    return word if _CODE.match(word) else "ERR"


class RedisParser(Connection):
    """One connection."""

    def __init__(self, role: int, options: Options) -> None:
        super().__init__(role, options)
        self._database = ""
        self._queue: deque[Pending] = deque()
        self._names: dict[bytes, str] = {}
        self._quick: tuple[Segment, str] | None = None
        self._steady = False  # nothing is under way: the short way may be taken
        self._request_end = self._reply_end = -1  # stream offsets that are due next
        self._overlapped = False  # the client sends on before it has its replies
        self._overlapping = False  # perhaps it does
        self._last_response_ns = 0
        self._no_replies = False
        self._unanswered = 0  # commands to come that CLIENT REPLY SKIP silences
        self._subscribed = False
        self._resp3 = False
        # requests: what is under way
        self._carry = b""
        self._skip = 0
        self._arguments = 0
        self._name = ""
        self._command_start_ns = 0
        self._command_at = 0
        self._requests_synced = True
        # replies
        self._reply_carry = b""
        self._reply_skip = 0
        self._elements = 0  # of the reply under way that are still to come
        self._reply_first = 0  # its first byte
        self._reply_line = b""
        self._reply_bytes = 0
        self._reply_push = b""
        self._batch_code = ""  # of the first command of the batch under way that failed
        self._replies_synced = True
        # what tells how many commands bytes are that were not captured
        self._sent_bytes = self._sent_commands = 0
        # every command is told or lost: asked (seen, or by the bytes of a gap), told, and declared lost so far
        self._asked = self._told = self._declared = 0

    @property
    def lost(self) -> int:
        """See `SegmentParser.lost`: what was asked and not told, once nothing is under way."""
        if len(self._queue) > SETTLED_MAX:
            return 0
        waiting = sum(map(_size, self._queue)) + (self._quick is not None)
        new = max(self._asked - self._told - self._declared - waiting, 0)
        self._declared += new
        return new

    def feed(self, segment: Segment) -> list[Operation]:
        """See `SegmentParser.feed`.

        One whole plain command and one whole plain reply, the usual case at high rates, take a short way: the request
        waits as it came and nothing is made of it before its reply is there.
        """
        head = segment.head
        quick = self._quick
        if quick is None:
            if (
                segment.from_client
                and self._steady
                and not self._queue
                and segment.offset == self._request_end
                and len(head) == segment.length
                and (match := _HEAD.match(head)) is not None
                and self._arguments_end(head, match.end(), int(match[1]) - 1) == len(head)
            ):
                name = self._names.get(match[3]) or self._canonical(match[3])
                if name not in SPECIAL:
                    self._request_end += len(head)
                    self._sent_bytes += len(head)
                    self._sent_commands += 1
                    self._asked += 1
                    self._quick = (segment, name)
                    if self._early:
                        self._slow_down()
                        early, self._early = self._early, []
                        return [operation for response in early for operation in self._response(response)]
                    return []
        elif (
            not segment.from_client
            and segment.offset == self._reply_end
            and len(head) == segment.length > 2
            and (end := head.find(b"\r\n")) > 0
            and (
                (end == len(head) - 2 and head[0] in _PLAIN_REPLY)
                or (head[0] == 0x24 and end < 12 and head[1:end].isdigit() and int(head[1:end]) + end + 4 == len(head))
            )
        ):
            self._quick = None
            self._reply_end += len(head)
            self._last_response_ns = end_ns = segment.mono_ns
            request, name = quick
            self._told += 1
            start_ns = request.mono_ns
            end_ns = max(end_ns, start_ns)
            name, dims = self.options.store_dims(SYSTEM, name, "", self._database, "", "")
            trace_id = request.trace_id
            return [
                Operation(
                    name,
                    dims,
                    start_ns,
                    start_ns,
                    end_ns,
                    end_ns,
                    {semconv.DB_QUERY_TEXT: name} if self.options.query_text else NO_VARYING,
                    request.length,
                    len(head),
                    "",
                    trace_id,
                    request.span_id,
                    request.trace_flags if trace_id else 1,
                    request.parent_source,
                    request.tid,
                    name in BLOCKING,
                )
            ]
        else:
            self._slow_down()
        out = super().feed(segment)
        self._steady = (
            self._settled
            and not (
                self._queue or self._carry or self._skip or self._arguments or self._subscribed or self._no_replies
            )
            and not (self._reply_carry or self._reply_skip or self._elements or self.note)
            and self._requests_synced
            and self._replies_synced
        )
        return out

    @property
    def database(self) -> str:
        """The number behind the last SELECT that worked; "" before the first."""
        return self._database

    def passed(self, request_end: int, reply_end: int, mono_ns: int, commands: int = 0, size: int = 0) -> None:
        """See `Counting.passed`."""
        self._slow_down()
        if self._queue:
            self._queue.clear()
        self._restart_replies()
        self._early.clear()
        self._requests_synced = True
        self._carry = b""
        self._skip = self._arguments = 0
        self._name = ""
        self._overlapped = self._overlapping = False
        self._sent_bytes += size
        self._sent_commands += commands
        self._request_end, self._reply_end = request_end, reply_end
        self._last_response_ns = mono_ns
        self._settled = True
        self._steady = not (self._subscribed or self._no_replies or self._unanswered or self.note)

    def handed_over(self, half: Half) -> list[Operation]:
        """See `Counting.handed_over`."""
        self.passed(half.request_end, half.reply_end, half.mono_ns, half.commands, half.request.length)
        self._steady = False
        self._asked += half.commands
        cap = self.options.pipeline_spans
        out: list[Operation] = []
        for _ in range(min(half.commands, cap)):
            self._queue.append(Pending(half.name, half.request, half.start_ns, -1))
        if half.commands > cap:
            batch = Pending("batch", half.request, half.start_ns, -1)
            batch.value = half.commands - cap
            self._queue.append(batch)
        for answered in range(min(half.replies, half.commands)):
            self._complete(out, 0x2D if answered < half.errors else 0x2B, half.error, half.mono_ns)
        if half.skip or half.left:
            self._skip, self._arguments, self._name = half.skip, half.left, half.name
            self._command_start_ns = half.request.mono_ns
        self._replies_synced = not half.is_cut
        return out

    def _slow_down(self) -> None:
        """The request that took the short way is made one of the queue."""
        if self._quick is not None:
            (segment, name), self._quick = self._quick, None
            self._queue.append(Pending(name, segment, segment.mono_ns, segment.length))

    def close(self, mono_ns: int, error: str) -> list[Operation]:
        """See `SegmentParser.close`."""
        self._slow_down()
        out: list[Operation] = []
        if not self._replies_synced:
            self._settle(out)
        for pending in self._queue:
            if pending.kind != "gap":
                self._emit(out, pending, mono_ns, "", error or ERROR_OTHER)
        self._queue.clear()
        return out

    def _waiting(self) -> bool:
        return bool(self._queue)

    def _unasked(self) -> bool:
        return self._subscribed or self._resp3

    # requests

    def _request(self, segment: Segment) -> list[Operation]:
        head = segment.head
        out: list[Operation] = []
        self._settled = True
        if self._queue:
            if segment.mono_ns - self._last_response_ns > IDLE_NS and self._last_response_ns > self._queue[0].start_ns:
                self._overlapped = False
            if not self._overlapped and (not self._replies_synced or self._queue[0].kind == "gap"):
                self._settle(out)
            elif not self._skip and not self._carry and self.role != ROLE_SERVER:
                self._overlapping = True  # or the reply was not captured: the next one will tell
        if segment.offset != self._request_end >= 0:
            self._miss(segment, segment.offset - self._request_end)
        self._request_end = segment.offset + segment.length
        self._take_requests(head, segment)
        gap = segment.length - len(head) - len(segment.tail)
        if gap > 0:
            self._miss(segment, gap)
        if segment.tail and self._requests_synced:
            self._take_requests(segment.tail, segment)
        return out

    @staticmethod
    def _arguments_end(data: bytes, position: int, count: int) -> int:
        """Where a command of ``count`` more arguments ends; -1 if that is not in ``data``."""
        find = data.find
        while count > 0:
            line_end = find(b"\r\n", position, position + 24)
            if line_end < 0 or data[position] != 0x24:
                return -1
            try:
                position = line_end + 4 + int(data[position + 1 : line_end])
            except ValueError:
                return -1
            count -= 1
        return position

    def _miss(self, segment: Segment, count: int) -> None:
        """Bytes of requests that were not captured."""
        if 0 < count <= self._skip and not self._carry:
            self._skip -= count
            if not self._skip and not self._arguments:
                self._end_command(segment, [], b"")
            return
        if self._requests_synced:
            if self._name:
                # the command that the gap begins in is known; how many follow is not
                self._end_command(segment, [], b"")
            gap = Pending("gap", segment, segment.mono_ns, -1)
            gap.value = self._commands_in(count)
            self._asked += gap.value
            self._queue.append(gap)
        elif self._queue and self._queue[-1].kind == "gap":
            gap = self._queue[-1]
            more = self._commands_in(count)
            self._asked += more
            gap.value = int(gap.value or 0) + more  # type: ignore[call-overload]  # of a gap: a number
        self._requests_synced = False
        self._carry = b""
        self._skip = self._arguments = 0
        self._name = ""

    def _commands_in(self, count: int) -> int:
        """How many commands so many bytes are, by the commands of this connection that were seen; at least one."""
        if not self._sent_commands or not self._sent_bytes:
            return 1
        return max(round(count * self._sent_commands / self._sent_bytes), 1)

    def _take_requests(self, data: bytes, segment: Segment) -> None:
        if not data:
            return
        if not self._requests_synced:
            if not _HEAD.match(data):
                return
            self._requests_synced = True
        burst: list[tuple[str, int, int, bytes]] = []
        size = len(data)
        position = 0
        if self._skip:
            step = min(self._skip, size)
            self._skip -= step
            position = step
            if self._skip:
                return
            if not self._arguments:
                self._end_command(segment, burst, b"")
        if self._carry:
            data = self._carry + data[position:]
            self._carry = b""
            position, size = 0, len(data)
        while position < size:
            if self._arguments:
                position = self._take_arguments(data, position)
                if position < 0:
                    break
                if not self._arguments and not self._skip:
                    self._end_command(segment, burst, b"")
                continue
            start = position
            match = _HEAD.match(data, position)
            if match is not None:
                count = int(match[1]) - 1
                end = self._arguments_end(data, match.end(), count)
                name = self._names.get(match[3]) or self._canonical(match[3])
                if 0 <= end <= size:
                    burst.append((name, segment.mono_ns, end - start, data[match.end() : match.end() + 128]))
                    position = end
                    continue
                if name in SPECIAL and size - position < 256 and not segment.tail and len(data) == size:
                    self._carry = data[position:]  # the arguments matter: wait for them
                    break
                self._name, self._arguments = name, count
                self._command_start_ns, self._command_at = segment.mono_ns, 0
                position = match.end()
                continue
            rest = data[position:]
            if rest[:1] == b"*" and len(rest) < 80 and b"\n" not in rest[16:]:
                self._carry = rest
                break
            inline = _FIRST_WORD.match(data, position)
            if inline is not None and inline[1].upper().decode() in _INLINE:
                burst.append((self._canonical(inline[1]), segment.mono_ns, inline.end() - position, b""))
                position = inline.end()
                continue
            if rest in (b"\r\n", b"\n"):
                break
            if len(rest) < 64 and rest[:1].isalpha() and b"\n" not in rest:
                self._carry = rest
                break
            self._miss(segment, 1)
            break
        self._push_burst(segment, burst)

    def _take_arguments(self, data: bytes, position: int) -> int:
        """Step over arguments of the command under way; -1 if the data ends inside."""
        size = len(data)
        while self._arguments:
            if position >= size:
                return -1
            line_end = data.find(b"\r\n", position, position + 24)
            if line_end < 0:
                self._carry = data[position:]
                if len(self._carry) > 24:
                    self._break_requests()
                return -1
            try:
                length = int(data[position + 1 : line_end])
            except ValueError:
                length = -1
            if data[position] != 0x24 or not 0 <= length < MAX_BULK:
                self._break_requests()
                return -1
            self._arguments -= 1
            position = line_end + 4 + length
            if position > size:
                self._skip = position - size
                return -1
        return position

    def _break_requests(self) -> None:
        self._requests_synced = False
        self._carry = b""
        self._skip = self._arguments = 0
        self._name = ""
        self._asked += 1

    def _end_command(self, segment: Segment, burst: list[tuple[str, int, int, bytes]], rest: bytes) -> None:
        name, self._name = self._name, ""
        if not name:
            return
        if burst:
            burst.append((name, self._command_start_ns, -1, rest))
        else:
            self._asked += 1
            self._push(segment, name, self._command_start_ns, -1, rest)

    def _push_burst(self, segment: Segment, burst: list[tuple[str, int, int, bytes]]) -> None:
        cap = self.options.pipeline_spans
        self._sent_commands += len(burst)
        self._asked += len(burst)
        self._sent_bytes += sum(size for _, _, size, _ in burst if size > 0)
        for name, start_ns, size, rest in burst[:cap]:
            self._push(segment, name, start_ns, size, rest)
        more = len(burst) - cap
        if more > 0 and not self.note:
            batch = Pending("batch", segment, segment.mono_ns, sum(size for _, _, size, _ in burst[cap:]))
            batch.value = more
            if any(name in SPECIAL for name, *_ in burst[cap:]):
                for name, *_ in burst[cap:]:
                    if name == "SELECT":
                        self._database = ""  # not followed inside a batch
                    elif name in _SUBSCRIPTIONS:
                        self._subscribed = True
            self._queue.append(batch)

    def _push(self, segment: Segment, name: str, start_ns: int, size: int, rest: bytes) -> None:
        pending = Pending(name, segment, start_ns, size)
        special = SPECIAL.get(name, _PLAIN)
        if special and self._prepare(pending, name, special, rest):
            return
        if self._no_replies or self._unanswered:
            self._unanswered -= self._unanswered > 0
            return  # lost
        if len(self._queue) >= MAX_PENDING:
            self._queue.clear()
            self._replies_synced = False
            self._overlapped = True
        self._queue.append(pending)

    def _prepare(self, pending: Pending, name: str, special: int, rest: bytes) -> bool:
        """Handle a command that changes how the connection is read; True if it gives no operation."""
        if special == _NAMES:
            self._subscribed = True
        elif special == _NOTES:
            self.note = "monitor" if name == "MONITOR" else "replication"
            self._asked -= 1  # it gives no operation
            self._queue.clear()
            return True
        elif special == _SELECTS:
            match = re.match(rb"\$\d\r\n(\d{1,5})\r\n", rest)
            pending.value = match[1].decode() if match else ""
        elif special == _MAY_BLOCK:
            pending.value = b"BLOCK" in rest.upper()
        elif rest[:10].upper() == b"$5\r\nREPLY\r":
            how = rest[10:].upper()
            self._no_replies = b"OFF\r\n" in how
            self._unanswered = 2 if b"SKIP\r\n" in how else 0  # this command and the next
        return False

    def _canonical(self, name: bytes) -> str:
        upper = name.decode("ascii", "replace").upper()
        if len(self._names) < 256:
            self._names[name] = upper
        return upper

    # replies

    def _response(self, segment: Segment) -> list[Operation]:
        out: list[Operation] = []
        head = segment.head
        expected = self._reply_end
        self._reply_end = segment.offset + segment.length
        self._last_response_ns = segment.mono_ns
        if segment.offset != expected >= 0:
            if segment.offset > expected and self._queue and not self._overlapped:
                self._keep_last()
            else:
                self._miss_replies(segment.offset - expected)
        elif self._overlapping:
            self._overlapped = True
        self._overlapping = False
        if not self._replies_synced:
            if not self._queue and self._settled:
                self._restart_replies()
            return out
        queue = self._queue
        size = len(head)
        self._take_replies(out, head, segment)
        gap = segment.length - size - len(segment.tail)
        if gap > 0:
            self._miss_replies(gap)
            if self._replies_synced and not self._elements and not self._reply_skip:
                self._reply_done(out, segment)
        if segment.tail and self._replies_synced:
            self._take_replies(out, segment.tail, segment)
        if queue and not queue[0].response_ns and (self._elements or self._reply_skip or self._reply_carry):
            queue[0].response_ns = segment.mono_ns
        return out

    def _restart_replies(self) -> None:
        self._replies_synced = True
        self._reply_carry = b""
        self._reply_skip = self._elements = self._reply_first = self._reply_bytes = 0
        self._reply_push = b""
        self._batch_code = ""

    def _miss_replies(self, count: int) -> None:
        if 0 < count <= self._reply_skip:
            self._reply_skip -= count
            return
        if count:
            self._replies_synced = False
            self._reply_carry = b""

    def _settle(self, out: list[Operation]) -> None:
        """The client asks anew: what came before is answered, seen or not."""
        queue = self._queue
        if len(queue) == 1 and queue[0].kind not in ("gap", "batch") and self._reply_first and not self._replies_synced:
            pending = queue.popleft()
            code = self._error_code(self._reply_first, self._reply_line)
            self._emit(out, pending, self._last_response_ns, code, code)
        for pending in queue:
            if pending.kind == "gap" and self._replies_synced and pending.index:
                # its replies were counted, with those to what came behind it: there were at least so many commands
                self._asked += max(pending.index - sum(map(_size, queue)), 0)
                self._emit(out, pending, self._last_response_ns, "", "")
        queue.clear()
        self._restart_replies()

    def _keep_last(self) -> None:
        """Replies of a client that waits for them were not captured: the next one is to its last call."""
        queue = self._queue
        newest_ns = queue[-1].request_end_ns
        while queue[0].request_end_ns != newest_ns or (queue[0].kind == "gap" and len(queue) > 1):
            queue.popleft()
        self._restart_replies()

    def _take_replies(self, out: list[Operation], data: bytes, segment: Segment) -> None:
        size = len(data)
        position = 0
        if self._reply_skip:
            step = min(self._reply_skip, size)
            self._reply_skip -= step
            self._reply_bytes += step
            position = step
            if self._reply_skip:
                return
            if not self._elements:
                self._reply_done(out, segment)
        if self._reply_carry:
            data = self._reply_carry + data[position:]
            self._reply_carry = b""
            position, size = 0, len(data)
        find = data.find
        while position < size:
            line_end = find(b"\r\n", position, position + MAX_LINE)
            if line_end < 0:
                if size - position >= MAX_LINE:
                    self._replies_synced = False
                else:
                    self._reply_carry = data[position:]
                return
            kind = data[position]
            if not self._elements:
                if (self._subscribed or kind == 0x3E) and kind in b"*>" and not self._peek(data, position):
                    return
                self._elements = 1
                self._reply_first = kind
                self._reply_line = data[position : min(line_end, position + 64)]
                self._reply_bytes = 0
            start = position
            if kind in _SIMPLE:
                position = line_end + 2
            else:
                position = self._aggregate(data, position, line_end, kind)
                if position < 0:
                    self._replies_synced = False
                    return
            self._elements -= 1
            self._reply_bytes += min(position, size) - start
            if position > size:
                self._reply_skip = position - size
                return
            if self._elements:
                position = self._bulks(data, position)
                if position > size:
                    self._reply_skip = position - size
                    return
            if not self._elements:
                self._reply_done(out, segment)

    def _bulks(self, data: bytes, position: int) -> int:
        """Step over the bulk strings that most aggregates consist of, as far as they are whole and plain."""
        size = len(data)
        find = data.find
        start = position
        left = self._elements
        while left and position < size and data[position] == 0x24:
            line_end = find(b"\r\n", position, position + 12)
            if line_end < 0 or not data[position + 1 : line_end].isdigit():
                break
            position = line_end + 4 + int(data[position + 1 : line_end])
            left -= 1
        self._elements = left
        self._reply_bytes += min(position, size) - start
        return position

    def _peek(self, data: bytes, position: int) -> bool:
        """Learn what kind of message is pushed; False if more bytes are needed."""
        match = _PUSH_KIND.match(data, position)
        if match is None and len(data) - position < 48:
            self._reply_carry = data[position:]
            return False
        self._reply_push = match[1] if match else b""
        return True

    def _aggregate(self, data: bytes, position: int, line_end: int, kind: int) -> int:
        """Where the data of a bulk ends, or where the first element of an aggregate begins; -1: no RESP."""
        number = data[position + 1 : line_end]
        try:
            count = int(number) if len(number) < 20 else -2
        except ValueError:
            return -1
        if not -1 <= count < MAX_BULK:
            return -1
        if kind in _BULK:
            return line_end + 2 + (count + 2 if count >= 0 else 0)
        factor = _MULTIPLES.get(kind)
        if factor is None:
            return -1
        self._elements += max(count, 0) * factor + (1 if kind == 0x7C else 0)
        if kind == 0x7C and self._elements == 2 + max(count, 0) * factor:
            self._reply_first = 0x2B  # attributes come before the reply that they are about
        return line_end + 2

    def _reply_done(self, out: list[Operation], segment: Segment) -> None:
        first, push = self._reply_first, self._reply_push
        self._reply_push = b""
        self._reply_carry = b""
        if first == 0x3E:
            self._resp3 = True
        if first == 0x3E or (push and not self._resp3):
            queue = self._queue
            if push in _CONFIRMATIONS and queue and queue[0].kind in _SUBSCRIPTIONS:
                self._complete(out, 0x2B, b"", segment.mono_ns)
                return
            if first == 0x3E or push in _PUSHES or push in _CONFIRMATIONS:
                return
        self._complete(out, first, self._reply_line, segment.mono_ns)

    @staticmethod
    def _error_code(first: int, line: bytes) -> str:
        if first == 0x2D:
            return error_code(line)
        return "ERR" if first == 0x21 else ""

    def _complete(self, out: list[Operation], first: int, line: bytes, mono_ns: int) -> None:
        queue = self._queue
        if not queue:
            self._asked += not self._settled
            return
        pending = queue[0]
        if not pending.response_ns:
            pending.response_ns = mono_ns
        code = self._error_code(first, line) if first in b"-!" else ""
        if pending.kind == "batch" or pending.kind == "gap":
            pending.index += 1
            pending.response_bytes += self._reply_bytes
            self._batch_code = self._batch_code or code
            if pending.kind == "gap" or pending.index < (pending.value or 0):  # type: ignore[operator]  # a batch's value is its size
                return
        else:
            pending.response_bytes = self._reply_bytes
        queue.popleft()
        if pending.kind == "SELECT" and not code:
            self._database = str(pending.value or "")
        if pending.kind == "batch":
            code, self._batch_code = self._batch_code, ""
        self._emit(out, pending, mono_ns, code, code)

    def _emit(self, out: list[Operation], pending: Pending, end_ns: int, code: str, error: str) -> None:
        name = pending.kind
        self._told += 1
        varying: Mapping[str, AttributeValue] = NO_VARYING
        if name == "batch" or name == "gap":
            name = PIPELINE
            size = pending.value if isinstance(pending.value, int) and pending.kind == "batch" else pending.index
            self._told += size - 1
            varying = {semconv.DB_OPERATION_BATCH_SIZE: size}
        elif self.options.query_text:
            varying = {semconv.DB_QUERY_TEXT: name}
        name, dims = self.options.store_dims(SYSTEM, name, "", self._database, code, error)
        stream = name in BLOCKING or name in _SUBSCRIPTIONS or (name in _BLOCKING_IF_ASKED and bool(pending.value))
        out.append(pending.operation(name, dims, varying, end_ns, error, stream=stream))
