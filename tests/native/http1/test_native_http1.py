"""HTTP/1 of the kernel side (``bpf/protocols/http1.h``, ``bpf/lib/exchange.h``), built for the host with sanitizers."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onlooker.capture import _records
from onlooker.capture._records import HttpMethod, LossReason, RecordKind, RequestError, RequestFlags

HERE = Path(__file__).parent
RECEIVE, SEND = 0, 1
# The sources are written for BPF: its loads may be unaligned, and its helpers take more than the host's stand-ins use.
FLAGS = shlex.split(
    "-Wall -Wextra -Werror -Wno-unused-function -Wno-unused-parameter -Wno-sign-compare -Wno-unused-value "
    "-Wno-unused-but-set-variable -Wno-missing-field-initializers -Wno-unknown-attributes "
    "-Wno-ignored-attributes -g -O1 "
    f"-I{HERE}/stubs -I{HERE.parents[2]}/bpf "
    "-fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all"
)
LAYOUTS = {
    RecordKind.RECORD_HTTP: _records.HTTP_RECORD,
    RecordKind.RECORD_HTTP_LONG: _records.HTTP_LONG_RECORD,
    RecordKind.RECORD_HTTP_TEXT: _records.HTTP_TEXT_RECORD,
    RecordKind.RECORD_SEGMENT: _records.SEGMENT_RECORD,
    RecordKind.RECORD_SEGMENT_LONG: _records.SEGMENT_LONG_RECORD,
}

pytestmark = pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("http1") / "follow"
    subprocess.run(["clang", *FLAGS, str(HERE / "follow.c"), "-o", str(path)], check=True)
    return path


@dataclass
class Seen:
    """What a record says, without times."""

    method: HttpMethod
    text: bytes
    target: bytes
    host: bytes
    status: int
    flags: RequestFlags
    error: RequestError
    request_bytes: int
    response_bytes: int
    trace: tuple[bytes, bytes]


class Script:
    """Conversations for the program; ``losses()`` closes each."""

    def __init__(self) -> None:
        self.data = bytearray()

    def connection(self) -> Script:
        self.data += b"B"
        return self

    def transfer(self, direction: int, data: bytes) -> Script:
        self.data += b"T" + bytes([direction]) + struct.pack("<I", len(data)) + data
        return self

    def end(self, error: int = 0) -> Script:
        self.data += b"E" + bytes([error])
        return self

    def losses(self) -> Script:
        self.data += b"."
        return self


def run(program: Path, script: Script) -> list[tuple[list[np.void[Any]], dict[LossReason, int]]]:
    """Per conversation the records and the losses."""
    environ = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program)], input=bytes(script.data), capture_output=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    conversations, records, at, out = [], [], 0, done.stdout
    while at < len(out):
        (length,) = struct.unpack_from("<I", out, at)
        at += 4
        if length:
            raw = out[at : at + length]
            at += length
            records.append(np.frombuffer(raw, LAYOUTS[RecordKind(raw[0])])[0])
            continue
        counts = struct.unpack_from(f"<{LossReason.LOSS_REASONS}I", out, at)
        at += 4 * LossReason.LOSS_REASONS
        conversations.append((records, {LossReason(i): n for i, n in enumerate(counts) if n}))
        records = []
    assert not records
    return conversations


def seen(record: np.void[Any]) -> Seen:
    text = record["text"].tobytes()
    length, start, target = (int(record[name]) for name in ("text_length", "target_start", "target_length"))
    kept = text[:length]
    assert not record["pad"].any()
    if not record["flags"] & RequestFlags.RESPONSE_HALF:  # those hold, unsaid, the text of the connection's request
        assert not any(text[length : 88 if record["kind"] == RecordKind.RECORD_HTTP else None]), "memory leaks out"
    host = int(record["host_length"])
    return Seen(
        HttpMethod(record["method"]), kept, kept[start : start + target], kept[length - host :] if host else b"",
        int(record["status"]), RequestFlags(int(record["flags"])), RequestError(record["error"]),
        int(record["request_body_bytes"]), int(record["response_body_bytes"]),
        (record["trace_id"].tobytes(), record["parent_span_id"].tobytes()),
    )  # fmt: skip


TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
PARENT = b"traceparent: 00-" + TRACE[0] + b"-" + TRACE[1] + b"-01\r\n"

REQUEST = (
    b"POST /cart/12345/items?session=1 HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: test\r\n"
    + PARENT
    + b"Content-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world"
)
RESPONSE = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;name=value\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\n"
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

CONVERSATIONS: dict[str, tuple[list[tuple[int, bytes]], dict[str, Any]]] = {
    "content length both ways": (
        [(RECEIVE, REQUEST), (SEND, RESPONSE)],
        {
            "method": HttpMethod.HTTP_METHOD_POST, "target": b"/cart/12345/items?session=1",
            "host": b"shop.example:8080", "status": 201, "request_bytes": 11, "response_bytes": 4,
            "trace": (bytes.fromhex(TRACE[0].decode()), bytes.fromhex(TRACE[1].decode())),
        },
    ),
    "chunked response": (
        [(RECEIVE, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"), (SEND, CHUNKED)],
        {"method": HttpMethod.HTTP_METHOD_GET, "target": b"/a", "host": b"x", "status": 200, "response_bytes": 21},
    ),
    "chunked request, 100 continue": (
        [
            (RECEIVE, b"PUT /up HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (SEND, CONTINUE), (RECEIVE, b"3\r\nabc\r\n0\r\n\r\n"), (SEND, b"HTTP/1.1 204 No Content\r\n\r\n"),
        ],
        {"method": HttpMethod.HTTP_METHOD_PUT, "target": b"/up", "status": 204, "request_bytes": 3},
    ),
    "head has no body": (
        [(RECEIVE, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"), (SEND, b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")],
        {"method": HttpMethod.HTTP_METHOD_HEAD, "target": b"/", "status": 200, "response_bytes": 0},
    ),
    "an extension method and bare line feeds": (
        [(RECEIVE, b"PURGE /cache HTTP/1.0\nhost:y\n\n"), (SEND, b"HTTP/1.0 304 Not Modified\n\n")],
        {"method": HttpMethod.HTTP_METHOD_OTHER, "target": b"/cache", "host": b"y", "status": 304},
    ),
    "connect": (
        [(RECEIVE, b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n"), (SEND, b"HTTP/1.1 200 OK\r\n\r\n")],
        {
            "method": HttpMethod.HTTP_METHOD_CONNECT, "target": b"db:5432", "status": 200,
            "flags": RequestFlags.REQUEST_UPGRADED,
        },
    ),
    "a head of many lines": (
        [
            (RECEIVE, b"GET /long HTTP/1.1\r\n" + b"Cookie: " + b"c" * 3000 + b"\r\n" + b"A: b\r\n" * 200 + PARENT +
             b"Host: late\r\n\r\n"),
            (SEND, b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
        ],
        {"method": HttpMethod.HTTP_METHOD_GET, "target": b"/long", "host": b"late", "status": 500,
         "trace": (bytes.fromhex(TRACE[0].decode()), bytes.fromhex(TRACE[1].decode()))},
    ),
}  # fmt: skip
NAMES = sorted(CONVERSATIONS)


def check(records: list[np.void[Any]], losses: dict[LossReason, int], expected: dict[str, Any], where: object) -> None:
    assert not losses, (where, losses)
    assert len(records) == 1, where
    found = seen(records[0])
    for name, value in ({"flags": RequestFlags(0), "error": RequestError.REQUEST_OK} | expected).items():
        assert getattr(found, name) == value, (where, name, found)


@pytest.mark.parametrize("name", NAMES)
def test_an_exchange_is_one_record(program: Path, name: str) -> None:
    transfers, expected = CONVERSATIONS[name]
    script = Script()
    for flip in (0, 1):  # as a server, as a client
        script.connection()
        for direction, data in transfers:
            script.transfer(direction ^ flip, data)
        script.losses()
    for flip, (records, losses) in enumerate(run(program, script)):
        check(records, losses, expected, flip)
        assert records[0]["role"] == (3 if flip else 2)
        assert records[0]["request_start_mono_ns"] <= records[0]["request_end_mono_ns"]
        assert 0 < records[0]["response_start_mono_ns"] <= records[0]["response_end_mono_ns"]


@pytest.mark.parametrize("name", NAMES)
def test_it_does_not_matter_where_a_transfer_is_cut(program: Path, name: str) -> None:
    transfers, expected = CONVERSATIONS[name]
    script, cuts = Script(), []
    for index, (_, whole) in enumerate(transfers):
        for at in range(1, len(whole)):
            cuts.append((index, at))
            script.connection()
            for other, (direction, data) in enumerate(transfers):
                for piece in (data[:at], data[at:]) if other == index else (data,):
                    script.transfer(direction, piece)
            script.losses()
    conversations = run(program, script)
    assert len(conversations) == len(cuts)
    for where, (records, losses) in zip(cuts, conversations, strict=True):
        check(records, losses, expected, where)


@pytest.mark.parametrize("name", [name for name in NAMES if "many" not in name])
def test_one_byte_at_a_time(program: Path, name: str) -> None:
    transfers, expected = CONVERSATIONS[name]
    script = Script().connection()
    for direction, data in transfers:
        for byte in data:
            script.transfer(direction, bytes([byte]))
    ((records, losses),) = run(program, script.losses())
    check(records, losses, expected, "bytes")


def test_keep_alive_numbers_the_requests(program: Path) -> None:
    script = Script().connection()
    for number in range(5):
        script.transfer(RECEIVE, b"GET /%d HTTP/1.1\r\n\r\n" % number)
        script.transfer(SEND, b"HTTP/1.1 20%d OK\r\nContent-Length: 0\r\n\r\n" % number)
    ((records, losses),) = run(program, script.losses())
    assert not losses
    assert [(int(r["sequence"]), seen(r).target, int(r["status"])) for r in records] == [
        (n, b"/%d" % n, 200 + n) for n in range(5)
    ]


_FIELDS = (b"Server: s", b"Date: Sun, 22 Nov 2026 16:20:00 GMT", b"X-Long: " + b"v" * 90, b"ETag: \"\xc3\xa9\"",
           b"Content-Type: text/plain")  # fmt: skip
_BODIES = st.sampled_from(
    [b"", b"\r\n\r\n", b"ok\r\n\r\n", b"a\r\n\r\nb\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n", b"x" * 700]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.lists(
        st.tuples(st.permutations(_FIELDS), st.integers(0, 5), _BODIES, st.booleans()), min_size=1, max_size=6
    ),
    cuts=st.lists(st.integers(1, 300), max_size=6),
)
def test_a_head_ends_where_it_does_wherever_its_length_stands(
    program: Path, answers: list[tuple[list[bytes], int, bytes, bool]], cuts: list[int]
) -> None:
    """The shortcut from Content-Length to the end of the transfer: empty lines in bodies must not lead it astray."""
    script = Script().connection()
    for number, (fields, at, body, is_head) in enumerate(answers):
        lines = [*fields[:at], b"Content-Length: %d" % len(body), *fields[at:]]
        answer = b"HTTP/1.1 %d OK\r\n" % (210 + number) + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
        script.transfer(RECEIVE, (b"HEAD" if is_head else b"GET") + b" /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
        rest = answer if is_head else answer + body
        for size in [*cuts, len(rest)]:
            if rest:
                script.transfer(SEND, rest[:size])
            rest = rest[size:]
    ((records, losses),) = run(program, script.losses())
    assert not losses
    assert [(seen(r).target, int(r["status"]), int(r["response_body_bytes"])) for r in records] == [
        (b"/%d" % n, 210 + n, 0 if is_head else len(body)) for n, (_, _, body, is_head) in enumerate(answers)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(2, 60), cuts=st.lists(st.integers(1, 400), max_size=30))
def test_pipelined_requests_come_as_halves_that_join(program: Path, count: int, cuts: list[int]) -> None:
    sent = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(count))
    answered = b"".join(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nok" % (400 + n) for n in range(count))
    script = Script().connection()
    for direction, data in ((RECEIVE, sent), (SEND, answered)):
        for size in [*cuts, len(data)]:
            if data:
                script.transfer(direction, data[:size])
            data = data[size:]
    ((records, losses),) = run(program, script.losses())
    assert not losses
    requests: dict[int, bytes] = {}
    statuses: dict[int, int] = {}
    for record in records:
        one, sequence = seen(record), int(record["sequence"])
        if not one.flags & RequestFlags.RESPONSE_HALF:
            assert sequence not in requests
            requests[sequence] = one.target
        if not one.flags & RequestFlags.REQUEST_HALF:
            assert sequence not in statuses
            statuses[sequence] = one.status
    assert requests == {n: b"/%d" % n for n in range(count)}
    assert statuses == {n: 400 + n for n in range(count)}


@pytest.mark.parametrize(
    ("transfers", "error", "status", "found", "flags"),
    [
        ([(RECEIVE, REQUEST)], errno.ECONNRESET, 0, RequestError.REQUEST_RESET, RequestFlags(0)),
        (
            [(RECEIVE, REQUEST), (SEND, RESPONSE[:-2])], 0, 201,
            RequestError.REQUEST_LOCAL_CLOSED, RequestFlags.RESPONSE_INCOMPLETE,
        ),
        (
            [(RECEIVE, b"GET / HTTP/1.0\r\n\r\n"), (SEND, b"HTTP/1.0 200 OK\r\n\r\nuntil the end")],
            0, 200, RequestError.REQUEST_OK, RequestFlags.RESPONSE_TO_CLOSE,
        ),
    ],
    ids=["no response", "half a response", "HTTP/1.0"],
)  # fmt: skip
def test_the_end_of_a_connection_ends_its_request(
    program: Path, transfers: list[tuple[int, bytes]], error: int, status: int, found: RequestError,
    flags: RequestFlags,
) -> None:  # fmt: skip
    script = Script().connection()
    for direction, data in transfers:
        script.transfer(direction, data)
    ((records, losses),) = run(program, script.end(error).losses())
    assert not losses
    (one,) = map(seen, records)
    assert (one.status, one.error, one.flags) == (status, found, flags)


@pytest.mark.parametrize("length", [60, 88, 89, 343, 344, 345, 500, 4000])
def test_a_long_target_takes_a_longer_record_and_then_one_of_its_own(program: Path, length: int) -> None:
    target = b"/" + b"t" * (length - 5)
    line = b"GET " + target
    script = Script().connection().transfer(RECEIVE, line + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    ((records, losses),) = run(program, script.transfer(SEND, RESPONSE).losses())
    assert not losses
    *texts, record = records
    assert seen(record).text.startswith(line[:344])
    if length > 344:
        assert RequestFlags(int(record["flags"])) & RequestFlags.TEXT_TRUNCATED
        (text,) = texts
        assert text["text"].tobytes()[: int(text["text_length"])].startswith(line[:4048])
        assert (text["connection_id"], text["sequence"]) == (record["connection_id"], record["sequence"])
    else:
        assert not texts
        assert seen(record).target == target
        assert record["kind"] == (RecordKind.RECORD_HTTP if length + 1 <= 88 else RecordKind.RECORD_HTTP_LONG)


@pytest.mark.parametrize(
    "value",
    [
        b"ff-" + TRACE[0] + b"-" + TRACE[1] + b"-01",
        b"00-" + b"0" * 32 + b"-" + TRACE[1] + b"-01",
        b"00-" + TRACE[0] + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE[0][:-1] + b"g-" + TRACE[1] + b"-01",
        b"00-" + TRACE[0] + b"_" + TRACE[1] + b"-01",
        b"00-" + TRACE[0] + b"-" + TRACE[1] + b"-0z",
        b"00-" + TRACE[0] + b"-" + TRACE[1],
        b"",
    ],
)
def test_a_traceparent_that_is_none_gives_no_parent(program: Path, value: bytes) -> None:
    script = Script().connection().transfer(RECEIVE, b"GET / HTTP/1.1\r\ntraceparent: " + value + b"\r\n\r\n")
    ((records, _),) = run(program, script.transfer(SEND, RESPONSE).losses())
    (one,) = map(seen, records)
    assert one.trace[1] == bytes(8)
    assert one.trace[0] != bytes.fromhex(TRACE[0].decode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([RECEIVE, SEND]),
            st.one_of(
                st.binary(min_size=1, max_size=700),
                st.lists(
                    st.sampled_from(
                        [b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"HTTP/1.1 ", b"200", b" OK", b"Host:", b"\0",
                         b"Content-Length: ", b"99999999999999999999", b"3", b"Transfer-Encoding: chunked", b"0\r\n",
                         b"\r", b"fffffffffffffff\r\n", b"traceparent:", b"x" * 300]
                    ), min_size=1, max_size=12,
                ).map(b"".join),
            ),
        ), max_size=12,
    )
)  # fmt: skip
def test_any_bytes_are_survived_and_told_in_whole_records(program: Path, transfers: list[tuple[int, bytes]]) -> None:
    script = Script().connection()
    for direction, data in transfers:
        script.transfer(direction, data)
    ((records, _),) = run(program, script.end().losses())
    for record in records:
        if record["kind"] in (RecordKind.RECORD_HTTP, RecordKind.RECORD_HTTP_LONG):
            seen(record)


def test_the_fuzz_target_runs(tmp_path: Path) -> None:
    target, corpus = tmp_path / "fuzz", tmp_path / "corpus"
    build = ["clang", *FLAGS, "-fsanitize=fuzzer", str(HERE / "fuzz.c"), "-o", str(target)]
    subprocess.run(build, check=True)
    corpus.mkdir()
    for number, name in enumerate(NAMES):
        seed = b"\0"
        for direction, data in CONVERSATIONS[name][0]:
            for at in range(0, len(data), 200):
                piece = data[at : at + 200]
                seed += bytes([direction, len(piece)]) + piece
        (corpus / str(number)).write_bytes(seed)
    done = subprocess.run(
        [str(target), "-runs=20000", "-seed=1", "-max_len=4096", str(corpus)], capture_output=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
