"""What the user side executes for a request, without a kernel: recorded batches through the whole pipeline.

    replay.py --count                    instructions a request, by callgrind, exact to a percent
    replay.py --rows 150 --otlp          CPU time of this machine
    replay.py --profile                  where Python spends it

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
