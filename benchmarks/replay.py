"""What the user side executes for a request, without a kernel: recorded batches through the whole pipeline.

    replay.py --count                    instructions a request, by callgrind, exact to a percent
    replay.py --rows 150 --otlp          CPU time of this machine
    replay.py --profile                  where Python spends it
    replay.py --protocol grpc --count    calls of gRPC instead of HTTP/1

`--count` runs the pipeline under valgrind twice, with few rounds and with many; the difference is what a round costs,
without start and first calls.  Kernel, threads and sockets are not in it: `bench_count.py` has those.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hpack import Encoder
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from onlooker import __version__, light  # noqa: E402  # the package of this tree

light.settle_allocator()
light.import_libraries()

from onlooker.agent import Pipeline  # noqa: E402
from onlooker.batches import Identities, Process, RequestBatch, Service  # noqa: E402
from onlooker.capture import _records  # noqa: E402
from onlooker.capture.capture import Records  # noqa: E402
from onlooker.config import load  # noqa: E402
from onlooker.export.otlp_traces import SpanEncoder  # noqa: E402
from onlooker.export.span_buffer import SpanBuffer  # noqa: E402
from onlooker.protocols import _http2_frames as frames  # noqa: E402
from onlooker.settings import SPAN_WAIT_S  # noqa: E402
from onlooker.store import MEMORY, Store, StoreOptions  # noqa: E402

PID = 4711
LOOPBACK = np.frombuffer(b"\0" * 10 + b"\xff\xff\x7f\0\0\1", np.uint8)


def records(rows: int, *, paths: int, connections: int, query: bool, seed: int) -> NDArray[Any]:
    """``(rows,)`` `HTTP_RECORD` of one nginx-like server: GET, 200, keep-alive."""
    random = np.random.default_rng(seed)
    made = np.zeros(rows, _records.HTTP_RECORD)
    host = b"127.0.0.1:8080"
    now = time.monotonic_ns()
    for i, path in enumerate(random.integers(0, paths, rows).tolist()):
        target = b"/file%d.txt" % path + (b"?page=%d" % (i % 7) if query else b"")
        text = (b"GET " + target + host)[:88]
        made["text"][i, : len(text)] = np.frombuffer(text, np.uint8)
        made["text_length"][i], made["target_length"][i] = len(text), len(target)
    made["kind"], made["role"], made["method"], made["status"] = 2, 2, 1, 200
    made["target_start"], made["host_length"] = 4, len(host)
    made["tgid"] = made["tid"] = PID
    made["connection_id"] = random.integers(1, connections + 1, rows)
    made["sequence"] = np.arange(rows)
    start = now - 1_000_000_000 + np.arange(rows) * 10_000
    made["request_start_mono_ns"], made["request_end_mono_ns"] = start, start + 1_000
    took = random.lognormal(13, 0.5, rows).astype(np.int64)
    made["response_start_mono_ns"], made["response_end_mono_ns"] = start + took // 2, start + took
    made["response_body_bytes"] = 600
    made["local_address"] = made["remote_address"] = LOOPBACK
    made["local_port"], made["family"] = 8080, 2
    made["remote_port"] = 40_000 + made["connection_id"]
    made["trace_id"] = random.integers(0, 256, (rows, 16), np.uint8)
    made["span_id"] = random.integers(0, 256, (rows, 8), np.uint8)
    made["trace_flags"] = 1
    return made


class Calls:
    """Records of gRPC as Go's server reads and writes them: four connections, eight streams, a call on each at a time.

    The connections live on from round to round, so numbers and offsets are raised; bytes stay as they are but for the
    numbers of streams.
    """

    CONNECTIONS, STREAMS = 4, 8

    def __init__(self, rows: int) -> None:
        self.turns = max(rows // (self.CONNECTIONS * self.STREAMS), 1)
        self.rows = self.turns * self.CONNECTIONS * self.STREAMS
        asking, answering = Encoder(), Encoder()
        ask = [(":method", "POST"), (":scheme", "http"), (":authority", "127.0.0.1:50051"), (":path", "/zoo.Zoo/Unary"),
               ("content-type", "application/grpc"), ("te", "trailers")]  # fmt: skip
        heads = [(":status", "200"), ("content-type", "application/grpc")], [("grpc-status", "0"), ("grpc-message", "")]
        message, answer = (b"\0" + size.to_bytes(4, "big") + bytes(size) for size in (100, 10))

        def call(number: int) -> tuple[list[tuple[int, int, int, bytes]], list[tuple[int, int, int, bytes]]]:
            head, trailers = (answering.encode(one) for one in heads)
            return (
                [(frames.HEADERS, 4, number, asking.encode(ask)), (frames.DATA, 1, number, message)],
                [
                    (frames.HEADERS, 4, number, head),
                    (frames.DATA, 0, number, answer),
                    (frames.HEADERS, 5, number, trailers),
                ],
            )

        settings = (frames.SETTINGS, 0, 0, b"")
        self._first = [self._record(frames.PREFACE, [settings, *call(1)[0]], 0, 0, 0),
                       self._record(b"", [settings, *call(1)[1]], 1, 1, 0)]  # fmt: skip
        # the first call fills the tables, from the second on headers are indexes
        sides: tuple[list[Any], list[Any]] = [(frames.PING, 1, 0, bytes(8))], [(frames.WINDOW_UPDATE, 0, 0, bytes(4))]
        for stream in range(self.STREAMS):
            for side, some in zip(sides, call(3 + 2 * stream), strict=True):
                side += some
        call(3)
        at = [int(record["length"][0]) for record in self._first]
        turns: list[NDArray[Any]] = []
        for turn in range(self.turns):
            for side, of_side in enumerate(sides):
                record = self._record(b"", of_side, side, 2 + 2 * turn + side, turn * 10_000)
                record["stream_offset"] = at[side]
                at[side] += int(record["length"][0])
                turns.append(record)
        self._grows = [at[side] - int(self._first[side]["length"][0]) for side in (0, 1)]
        self._part = self._of_all(turns)
        # where numbers of streams stand: the same bytes in each record of a side
        self._number: list[NDArray[np.intp]] = []
        for side in (0, 1):
            data = turns[side]["payload"][0].tobytes()
            found: list[int] = []
            frames.walk(data, 0, int(turns[side]["captured_head"][0]), found)
            self._number.append(np.array([place + 5 for place in found if int.from_bytes(data[place + 5 : place + 9])]))
        self._streams = [
            np.array(
                [int.from_bytes(turns[side]["payload"][0, place : place + 4].tobytes()) for place in self._number[side]]
            )
            for side in (0, 1)
        ]
        self._round = 0

    def _record(self, kept: bytes, some: list[Any], side: int, sequence: int, at: int) -> NDArray[Any]:
        length = len(kept)
        for kind, flags, stream, payload in some:
            kept += len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
            kept += payload[: frames.kept_bytes(kind, flags, len(payload))]
            length += frames.HEADER_BYTES + len(payload)
        row = np.zeros(1, _records.SEGMENT_RECORD if len(kept) <= 384 else _records.SEGMENT_LONG_RECORD)
        row["kind"], row["protocol"], row["role"], row["direction"] = 5 + (len(kept) > 384), 2, 2, side
        row["captured_head"], row["length"], row["sequence"] = len(kept), length, sequence
        row["payload"][0, : len(kept)] = np.frombuffer(kept, np.uint8)
        row["tgid"] = row["tid"] = PID
        row["mono_ns"] = time.monotonic_ns() - 1_000_000_000 + at + side * 5_000
        row["local_address"] = row["remote_address"] = LOOPBACK
        row["local_port"], row["family"] = 50051, 2
        return row

    def _of_all(self, rows: list[NDArray[Any]]) -> list[NDArray[Any]]:
        parts: dict[Any, list[NDArray[Any]]] = {}
        for row in rows:
            for connection in range(1, self.CONNECTIONS + 1):
                one = row.copy()
                one["connection_id"], one["remote_port"] = connection, 40_000 + connection
                parts.setdefault(one.dtype, []).append(one)
        return [np.concatenate(part) for part in parts.values()]

    def start(self) -> Records:
        """What comes before the first round."""
        return Records(segments=self._of_all(self._first))

    def round(self) -> Records:
        """The next round."""
        result: list[NDArray[Any]] = []
        for part in self._part:
            mine = part.copy()
            mine["sequence"] += 2 * self.turns * self._round
            mine["mono_ns"] += self.turns * 10_000 * self._round
            for side in (0, 1):
                rows = np.flatnonzero(mine["direction"] == side)
                mine["stream_offset"][rows] += self._grows[side] * self._round
                turn = (self._part_turn(part, rows) + self.turns * self._round) * 2 * self.STREAMS
                numbers = (turn[:, None] + self._streams[side]).astype(">u4").view(np.uint8).reshape(len(rows), -1, 4)
                place = self._number[side][:, None] + np.arange(4)
                mine["payload"][rows[:, None, None], place] = numbers
            result.append(mine)
        self._round += 1
        return Records(segments=result)

    @staticmethod
    def _part_turn(part: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[np.int64]:
        return (part["sequence"][rows].astype(np.int64) - 2) // 2


def void(_chunks: object) -> None:
    """Where the requests go."""


def pipeline(options: argparse.Namespace) -> Pipeline:
    """A pipeline with one known service, and the sinks that are asked for."""
    loaded = load(None, environ={"ONLOOKER_WEB_PORT": "0"}, flags={}, euid=0)
    identities = Identities()
    resource = (("service.name", "web"), ("service.instance.id", "host:4711"), ("host.name", "host"))
    service = Service(identities.next_id(), "web", "", "host:4711", "generic", resource)
    identities.add_service(service)
    identities.add_process(Process(identities.next_id(), PID, 0, "/usr/sbin/nginx", "nginx", "generic", service.id))
    nothing = SimpleNamespace(apply=lambda rows: None)
    made = Pipeline(loaded, cast("Any", None), cast("Any", nothing), cast("Any", nothing), identities)
    table = made.aggregator.table
    if options.store:
        store = Store(StoreOptions(MEMORY), table, identities.service, redact=made.redactor.apply)
        made.sinks.append(store.put)
    if options.otlp:
        seconds = itertools.count()  # a round is one, as when it is quiet
        buffer = SpanBuffer(
            SpanEncoder(version=__version__, max_spans=4096), max_age_s=SPAN_WAIT_S, clock=lambda: float(next(seconds))
        )

        def export(batch: RequestBatch) -> None:
            buffer.put(batch, table, identities.services, made.values)

        made.sinks.append(export)
        made.settle.append(lambda: void(buffer.take(table, identities.services, made.values)))
        made.shows_spans = True
    return made


def play(options: argparse.Namespace) -> tuple[int, float]:
    """Requests, and seconds of CPU."""
    made = pipeline(options)
    if options.protocol == "grpc":
        calls = Calls(options.rows)
        made.run(calls.start())
        for _ in range(4):
            made.run(calls.round())
        seconds = 0.0
        for _ in range(options.rounds):
            some = calls.round()
            began = time.thread_time()
            made.run(some)
            seconds += time.thread_time() - began
        if made.requests != 4 + (options.rounds + 4) * calls.rows:
            raise SystemExit(f"{made.requests} calls were seen, {made.segments.lost} {made.segments.dropped}")
        return options.rounds * calls.rows, seconds
    parts = [
        records(options.rows, paths=options.paths, connections=32, query=options.query, seed=seed) for seed in range(4)
    ]
    for part in parts:
        made.run(Records(http=part.copy()))
    began = time.thread_time()
    for turn in range(options.rounds):
        made.run(Records(http=parts[turn % len(parts)].copy()))
    return options.rounds * options.rows, time.thread_time() - began


def executed(options: argparse.Namespace, rounds: int) -> int:
    """Instructions of a whole run with so many rounds."""
    with tempfile.TemporaryDirectory() as directory:
        words = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/out", sys.executable, __file__,
            "--rounds", str(rounds), "--rows", str(options.rows), "--paths", str(options.paths),
            "--protocol", options.protocol,
            *(f"--{name}" for name in ("otlp", "store", "query") if getattr(options, name)),
        ]  # fmt: skip
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=1200,
            check=True,
            env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin"},
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        raise SystemExit(f"valgrind said: {done.stderr[-500:]}")
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000, help="requests a round: 3000 at saturation, 150 when quiet")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--protocol", choices=("http1", "grpc"), default="http1", help="what the requests are")
    parser.add_argument("--paths", type=int, default=1, help="distinct paths")
    parser.add_argument("--query", action="store_true", help="each request has a query")
    parser.add_argument("--otlp", action="store_true", help="every span is encoded")
    parser.add_argument("--store", action="store_true", help="the page's store takes its part")
    parser.add_argument("--count", action="store_true", help="instructions, by callgrind")
    parser.add_argument("--profile", action="store_true", help="cProfile")
    options = parser.parse_args()
    if options.count:
        few, many = 10, 60
        play(options)  # so that neither run has to compile a module
        each = (executed(options, many) - executed(options, few)) / (many - few)
        print(f"{each:,.0f} instructions a round of {options.rows}, {each / options.rows:,.0f} a request")
        return
    if options.profile:
        import cProfile
        import pstats

        profile = cProfile.Profile()
        profile.runcall(play, options)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    requests, seconds = play(options)
    print(f"{1e6 * seconds / requests:.3f} us a request, {1e3 * seconds / options.rounds:.3f} ms a round")


if __name__ == "__main__":
    main()
