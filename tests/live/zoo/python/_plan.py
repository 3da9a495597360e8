"""What the Python clients share: arguments, the plan, the start signal and the truth they print."""

import json
import os
import ssl
import sys
import threading
import time

PORT = int(sys.argv[1])
CA = os.environ.get("ZOO_TLS_CA", "")
BASE = f"{'https' if CA else 'http'}://127.0.0.1:{PORT}"
FRESH = sys.argv[3] == "fresh"
CONNECTIONS = int(sys.argv[4])
HEADERS = {"Connection": "close"} if FRESH else {}


def tls_context():
    """Trusts the zoo's own authority; None without TLS."""
    return ssl.create_default_context(cafile=CA) if CA else None


def requests_of_plan():
    with open(sys.argv[2]) as plan:
        for line in plan:
            n, method, path, body_bytes, chunked = line.split()
            yield int(n), method, path, int(body_bytes), chunked == "1"


def pieces(body_bytes):
    """The body as a generator: libraries send it chunked."""
    half = body_bytes // 2
    yield b"x" * (body_bytes - half)
    if half:
        yield b"x" * half


async def async_pieces(body_bytes):
    for piece in pieces(body_bytes):
        yield piece


PLAN = list(requests_of_plan())
truth = []


def record(planned, start_ns, status, body, error=""):
    n, method, path, _, _ = planned
    end_ns = time.monotonic_ns()
    truth.append(
        {"n": n, "method": method, "path": path, "status": status, "start_ns": start_ns, "end_ns": end_ns,
         "bytes": len(body), "error": error}
    )  # fmt: skip


def wait_for_start():
    print("ready", flush=True)
    sys.stdin.readline()


def print_truth():
    for line in truth:
        print(json.dumps(line))


def run_threads(worker):
    """Runs ``worker(requests)`` in a thread a connection; the requests are dealt out in turn."""
    wait_for_start()
    threads = [threading.Thread(target=worker, args=(PLAN[i::CONNECTIONS],)) for i in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print_truth()
