"""One hook on the running kernel: load and attach it, make 100 requests, and say in JSON what was seen of them.

Runs inside a machine of the kernel lab, and on the host just as well: ``inside.py HOOK SERVER``.  The client is this
process, which is not watched; each request has a path of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from onlooker.capture._records import RequestFlags
from onlooker.capture.capture import Capture
from onlooker.errors import AgentError
from onlooker.kernel.object import Object

PYTHON_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        if "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"hello", b"you"):
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(piece), piece))
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
    do_POST = do_GET
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""
WAYS = ("write", "writev", "send", "sendmsg", "sendfile", "chunked", "short", "sendmsg")
PORT = 18080
TCP_ONLY = ("kprobe",)

Expected = tuple[str, str, int]

_LOAD = Object.load


class Peer:
    """A connection that sends requests and reads whole responses."""

    def __init__(self, address: Any, family: int = socket.AF_INET) -> None:
        self.socket = socket.socket(family)
        self.socket.settimeout(60)
        self.socket.connect(address)
        self.waiting = b""

    def ask(self, *requests: tuple[str, str, bytes]) -> list[int]:
        """Send all in one go, then read as many responses; gives their status codes."""
        text = b"".join(
            f"{method} {path} HTTP/1.1\r\nHost: kernel\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            for method, path, body in requests
        )
        self.socket.sendall(text)
        return [self.response() for _ in requests]

    def response(self) -> int:
        """One response: its status."""
        while b"\r\n\r\n" not in self.waiting:
            self.more()
        head, _, rest = self.waiting.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if length:
            while len(rest) < int(length[1]):
                self.more()
                rest = self.waiting.partition(b"\r\n\r\n")[2]
            self.waiting = rest[int(length[1]) :]
        else:
            while b"0\r\n\r\n" not in self.waiting[len(head) + 4 :]:
                self.more()
            self.waiting = self.waiting[self.waiting.index(b"0\r\n\r\n", len(head) + 4) + 5 :]
        return int(head.split()[1])

    def more(self) -> None:
        piece = self.socket.recv(1 << 20)
        if not piece:
            raise ConnectionError("the server closed")
        self.waiting += piece

    def close(self) -> None:
        self.socket.close()


def start(*command: str) -> subprocess.Popen[str]:
    """Start a server and wait for its word."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"cannot start {command}")
    return process


def traffic(tcp4: int, tcp6: int, python: int, unix: str | None) -> list[Expected]:
    """Make the requests; gives what has to be seen, 100 of them (94 without UNIX sockets)."""
    made: list[Expected] = []
    number = iter(range(1000))

    def request(prefix: str, method: str = "GET", body: bytes = b"") -> tuple[str, str, bytes]:
        n = next(number)
        path = f"/{prefix}/{n}" + ("/missing" if n % 7 == 3 else "")
        made.append((method, path, 404 if "missing" in path and not prefix.startswith("python") else 200))
        return method, path, body

    for address, family, count in ((("127.0.0.1", tcp4), socket.AF_INET, 24), (("::1", tcp6), socket.AF_INET6, 10)):
        peers = [Peer(address, family) for _ in range(2)]
        for at in range(count):
            peers[at % 2].ask(request(WAYS[at % len(WAYS)]))
        for peer in peers:
            peer.close()
    for at in range(20):  # a connection each, half of them with a body
        peer = Peer(("127.0.0.1", tcp4))
        peer.ask(request("write", "POST", b"x" * 3000) if at % 2 else request("sendmsg"))
        peer.close()
    for _ in range(4):  # pipelined
        peer = Peer(("127.0.0.1", tcp4))
        peer.ask(*(request("writev") for _ in range(5)))
        peer.close()
    peer = Peer(("127.0.0.1", python))
    for at in range(20):
        peer.ask(
            request("python", "POST", b"y" * 5000)
            if at % 4 == 1
            else request(("python", "python-chunked")[at % 4 == 2])
        )
    peer.close()
    if unix is not None:
        peer = Peer(unix, socket.AF_UNIX)
        for at in range(6):
            peer.ask(request(WAYS[at % 4]))
        peer.close()
    return made


def exchanges(capture: Capture) -> list[tuple[int, Expected]]:
    """Drain: process and (method, path, status) of each request, halves of pipelined ones joined."""
    seen: list[tuple[int, Expected]] = []
    halves: dict[tuple[int, int], list[Any]] = {}
    records = capture.drain()
    for rows in (records.http, records.http_long):
        for row in () if rows is None else rows:
            line = bytes(row["text"][: row["text_length"]])
            target = line[row["target_start"] : row["target_start"] + row["target_length"]].decode()
            method = line[: row["target_start"]].decode().strip()
            key = (int(row["connection_id"]), int(row["sequence"]))
            if row["flags"] & RequestFlags.REQUEST_HALF:
                halves.setdefault(key, [int(row["tgid"]), None, None, None])[1:3] = method, target
            elif row["flags"] & RequestFlags.RESPONSE_HALF:
                halves.setdefault(key, [int(row["tgid"]), None, None, None])[3] = int(row["status"])
            else:
                seen.append((int(row["tgid"]), (method, target, int(row["status"]))))
    return seen + [(pid, (method, target, status)) for pid, method, target, status in halves.values()]


def count_instructions(found: dict[str, int]) -> None:
    """Let every load tell how many instructions the verifier walked, by its own statistics (5.2)."""
    load = _LOAD

    def counted(self: Object) -> None:
        library, buffers = self.library, {}
        library.bpf_program__set_log_level.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.bpf_program__set_log_buf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        for name, program in self.programs.items():
            buffers[name] = ctypes.create_string_buffer(1 << 18)
            library.bpf_program__set_log_level(program, 4)
            library.bpf_program__set_log_buf(program, ctypes.addressof(buffers[name]), len(buffers[name]))
        try:
            load(self)
        finally:
            for name, buffer in buffers.items():
                processed = re.search(rb"processed (\d+) insns", buffer.value)
                if processed and self.loaded:
                    found[name] = int(processed[1])

    Object.load = counted  # type: ignore[method-assign]


def run(hook: str, server: str) -> dict[str, Any]:
    """Everything about one hook."""
    report: dict[str, Any] = {"kernel": os.uname().release, "asked": hook}
    instructions: dict[str, int] = {}
    if "--count" in sys.argv:
        count_instructions(instructions)
    with_unix = f"/tmp/onlooker-test-{os.getpid()}.sock"
    servers = [
        start(server, "tcp4", str(PORT)),
        start(server, "tcp6", str(PORT + 1)),
        start(sys.executable, "-S", "-c", PYTHON_SERVER, str(PORT + 2)),
        start(server, "unix", with_unix),
    ]
    waiting = Peer(("127.0.0.1", PORT))  # its thread waits in a receive while we attach
    waiting.ask(("GET", "/write/before", b""))
    capture = Capture(hook=hook)
    try:
        began = time.monotonic()
        try:
            capture.start()
        except AgentError as err:
            return {**report, "error": str(err)}
        report |= {"hook": capture.hook, "refused": capture.refused, "start_s": round(time.monotonic() - began, 1)}
        for process in servers:
            capture.watch(process.pid)
        waiting.ask(("GET", "/write/blocked", b""))
        time.sleep(0.2)
        report["blocked"] = any(path == "/write/blocked" for _, (_, path, _) in exchanges(capture))
        waiting.ask(("GET", "/write/second", b""))
        time.sleep(0.2)
        report["second"] = any(path == "/write/second" for _, (_, path, _) in exchanges(capture))
        waiting.close()
        made = traffic(PORT, PORT + 1, PORT + 2, None if capture.hook in TCP_ONLY else with_unix)
        time.sleep(0.5)  # the records are made after the response is sent
        pids = {process.pid for process in servers}
        seen = Counter(exchange for pid, exchange in exchanges(capture) if pid in pids)
        wanted = Counter(made)
        report |= {
            "made": len(made),
            "seen": sum((seen & wanted).values()),
            "missing": sorted(map(str, (wanted - seen).elements())),
            "extra": sorted(map(str, (seen - wanted).elements())),
            "losses": {reason: count for reason, count in capture.losses().items() if count},
            "instructions": instructions,
        }
        return report
    finally:
        capture.close()
        for process in servers:
            process.kill()
            process.wait()
        Path(with_unix).unlink(missing_ok=True)


if __name__ == "__main__":
    for asked in sys.argv[1].split(","):
        print(json.dumps(run(asked, sys.argv[2])), flush=True)
