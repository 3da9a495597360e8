"""HTTPS: exactly the requests that were made, with path, status and addresses, whatever library encrypts them."""

from __future__ import annotations

import json
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from onlooker.attach.prober import program_chooser
from onlooker.attach.registry import ProbeRegistry, library_attacher
from onlooker.attach.tls import TlsCatalog
from onlooker.capture.capture import Capture
from onlooker.capture.tls import TlsPrograms
from onlooker.kernel import uprobe
from support import agent, truth, zoo, zoo_tls
from support.agent import Agent, wait_until

pytestmark = pytest.mark.live

REQUESTS = 1000
# A server that closes without saying so is asked once more by curl itself: the spans tell of both, the plan of one.
MODES = {"curl": ("keepalive",)}
# They load their library only when they need it: the first request follows at once.
LATE = {"ruby-net-http"}
# What they write is followed when it is sent, as without TLS: a server on a busy host may have answered by then.
JOINED_AT_SEND = {"rust-reqwest"}


def wait_probed(onlooker: Agent, processes: int) -> None:
    """Wait until so many processes have probes on their TLS libraries."""
    wait_until(
        lambda: onlooker.metric("onlooker_tls_processes") >= processes,
        f"{processes} processes with probes; {onlooker.log()[-500:]}",
        timeout_s=40,
    )


def check(made: list[truth.TrueRequest], spans: list[dict[str, object]], *, timed: bool = True) -> truth.Report:
    """One span for each request, as it was.

    A library's clock counts handshakes and its own work: a span may be shorter than what it measured, not longer.
    """
    report = truth.compare(made, spans)
    report.check(min_share=0)
    longer = [f"{true} {span}" for true, span in report.late if span["duration_ns"] > true.duration_ns]
    assert not timed or len(longer) <= len(made) // 100, longer[:3]
    return report


def check_addresses(spans: list[dict[str, object]], port: int) -> None:
    """Every span knows both ends, and that they spoke TLS."""
    for span in spans:
        ours, theirs = ("local", "remote") if span["kind"] == "server" else ("remote", "local")
        assert span[ours] == f"127.0.0.1:{port}", span
        assert str(span[theirs]).startswith("127.0.0.1:"), span
        assert span["attributes"]["url.scheme"] == "https", span  # type: ignore[index]


@pytest.mark.parametrize("name", list(zoo_tls.SERVERS))
def test_a_server_is_seen_through_its_encryption(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_tls.SERVERS[name]) as server:
        tree = server.tree()
        onlooker.wait_watched(tree)
        wait_probed(onlooker, len(server.tree()))
        onlooker.spans()
        for seed, mode in enumerate(("keepalive", "fresh")):
            count = REQUESTS
            plan = truth.plan(seed, count, pages=server.spec.pages, run=f"{mode}-{name}")
            with zoo.client(
                zoo_tls.client("python-requests"), server.port, plan, keep_alive=mode == "keepalive"
            ) as client:
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=server.spec.echoes) == []
            spans = onlooker.spans(expected=count)
            served = truth.select(spans, kind="server", pids={*tree, *server.tree()})
            print(f"{name} {mode}: {check(made, served)}")
            check_addresses(served, server.port)
            assert len(served) == len(truth.select(spans, pids={*tree, *server.tree()}))


@pytest.mark.parametrize("name", zoo_tls.CLIENTS)
def test_a_client_is_seen_before_its_encryption(onlooker: Agent, name: str) -> None:
    onlooker.wait_unwatched()
    with zoo.server(zoo_tls.SERVERS["python-http-server"]) as server:
        onlooker.wait_watched(server.tree())
        for seed, mode in enumerate(MODES.get(name, zoo.CLIENTS[name].modes)):
            count = REQUESTS
            plan = truth.plan(seed + 10, count, pages=server.spec.pages, run=f"{mode}-{name}")
            with zoo.client(zoo_tls.client(name), server.port, plan, keep_alive=mode == "keepalive") as client:
                pids = zoo.process_tree(client.pid)
                onlooker.wait_watched([*server.tree(), *pids])
                wait_probed(onlooker, 1 if name in LATE else 1 + len(pids))
                onlooker.spans()
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=True) == []
            spans = onlooker.spans(expected=2 * count)
            sent = truth.select(spans, kind="client", pids=pids)
            timed = name != "curl"  # its clock starts after the request was sent, whenever it gets to that
            print(f"{name} {mode}: {check(made, sent, timed=timed)}")
            check_addresses(sent, server.port)
            served = truth.select(spans, kind="server", pids=server.tree())
            check(made, served, timed=timed)
            parents = {span["span_id"] for span in sent}
            alone = [span for span in served if span["parent_span_id"] not in parents]
            print(f"{name} {mode}: {count - len(alone)} of {count} requests joined with their server's")
            assert len(alone) <= (count // 100 if name in JOINED_AT_SEND else 0)


@pytest.mark.parametrize("connections", [8, 32])
def test_rustls_connections_at_a_time_are_told_apart(onlooker: Agent, connections: int) -> None:
    """Two threads serve them all, in any order, and so does the client: each request has its own end."""
    onlooker.wait_unwatched()
    with zoo.server(zoo_tls.SERVERS["rust-rustls"]) as server:
        for seed, mode in enumerate(("fresh", "keepalive", "fresh", "keepalive")):
            plan = truth.plan(seed + 30, REQUESTS, pages=server.spec.pages, run=f"{seed}-{mode}-{connections}")
            spec = zoo_tls.client("rust-reqwest")
            keep_alive = mode == "keepalive"
            wait_until(lambda: onlooker.metric("onlooker_tls_processes") <= 1, "the client before is forgotten")
            with zoo.client(spec, server.port, plan, keep_alive=keep_alive, connections=connections) as client:
                pids = zoo.process_tree(client.pid)
                onlooker.wait_watched([*server.tree(), *pids])
                wait_probed(onlooker, 2)
                onlooker.spans()
                made = client.run()
            assert zoo.wrong_answers(plan, made, echoes=True) == []
            spans = onlooker.spans(expected=2 * REQUESTS)
            for kind, of in (("server", server.tree()), ("client", pids)):
                told = truth.select(spans, kind=kind, pids=of)
                print(f"{connections} {mode}, {kind}: {check(made, told, timed=False)}")
                check_addresses(told, server.port)


def read_answer(client: ssl.SSLSocket, pause_s: float) -> int:
    """The status of the next response, read in small pieces with pauses between them."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.recv(1024)
    head, _, body = got.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = int(fields[b"content-length"]) - len(body)
    while left:
        left -= len(client.recv(min(left, 16384)))
        time.sleep(pause_s)
    return int(head.split()[1])


def test_rustls_responses_that_wait_for_their_reader_are_told_apart(onlooker: Agent) -> None:
    """Sends that find no room, after which the runtime does not try before there is; small responses in between."""
    onlooker.wait_unwatched()
    slow, rounds = 6, 12
    with zoo.server(zoo_tls.SERVERS["rust-rustls"]) as server:
        onlooker.wait_watched(server.tree())
        wait_probed(onlooker, 1)
        onlooker.spans()
        context = ssl.create_default_context(cafile=str(zoo_tls.certificate()[0]))

        def converse(number: int) -> list[tuple[str, int]]:
            made = []
            with socket.socket() as plain:
                plain.settimeout(60)
                if number < slow:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)  # keeps the server's buffer small
                plain.connect(("127.0.0.1", server.port))
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                    for step in range(rounds if number < slow else 20 * rounds):
                        big = number < slow and step % 3 != 2
                        page = "big/4194304" if big else ("items", "fail", "missing")[(number + step) % 3]
                        path = f"/{page}/{number}-{step}"
                        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                        made.append((path, read_answer(client, 0.0005 if big else 0)))
            return made

        with ThreadPoolExecutor(2 * slow) as pool:
            made = sorted(row for rows in pool.map(converse, range(2 * slow)) for row in rows)
        spans = truth.select(onlooker.spans(expected=len(made)), kind="server", pids=server.tree())
        assert sorted((str(span["path"]), span["status"]) for span in spans) == made
        check_addresses(spans, server.port)
        waited = [span for span in spans if str(span["path"]).startswith("/big") and span["duration_ns"] > 10_000_000]
        print(f"{len(waited)} of {len(made)} responses waited for their reader")
        assert len(waited) > 20


def test_nss_is_seen_and_what_else_nspr_moves_is_not_mistaken(onlooker: Agent) -> None:
    onlooker.wait_unwatched()
    count = 400
    with zoo.server(zoo_tls.SERVERS["nginx"]) as server, zoo.server("go-net-http") as plain:
        client_path = zoo.BIN / "nss-client"
        if not client_path.exists():
            pytest.skip("nss-client of the zoo is not built: run scripts/setup_zoo.sh")
        file = server.directory / "plain-file"
        arguments = [str(client_path), str(server.port), str(plain.port), str(count), str(file)]
        client = zoo.Program(arguments, server.directory, name="nss", pipes=True)
        try:
            assert next(client.lines()) == "ready\n"
            onlooker.wait_watched([*server.tree(), *plain.tree(), client.pid])
            wait_probed(onlooker, len(server.tree()) + 1)
            onlooker.spans()
            client.tell("go\n")
            lines = [json.loads(line) for line in client.lines()]
        finally:
            client.stop()
        assert len(lines) == count + count // 5, client.log()
        spans = truth.select(onlooker.spans(expected=2 * len(lines)), kind="client", pids=[client.pid])
        told = {str(span["path"]): span for span in spans}
        for line in lines:
            span = told.pop(line["path"])
            port, scheme = (server.port, "https") if line["tls"] else (plain.port, "http")
            assert (span["status"], span["remote"]) == (line["status"], f"127.0.0.1:{port}"), span
            assert span["attributes"]["url.scheme"] == scheme, span
            assert span["duration_ns"] <= line["end_ns"] - line["start_ns"] + 2_000_000, (line, span)
        assert told == {}
        assert len(spans) == len(lines)


@contextmanager
def under_load(name: str, requests: int) -> Iterator[tuple[zoo.Server, list[truth.PlannedRequest], Future]]:
    """A server whose client is in the middle of its requests, over connections that stay open."""
    with zoo.server(zoo_tls.SERVERS[name]) as server, ThreadPoolExecutor(1) as pool:
        plan = truth.plan(77, requests, pages=("items", "fail", "missing", "big"), run=f"busy-{name}")
        spec = zoo_tls.client("python-requests")  # slow enough for an agent to come in between
        with zoo.client(spec, server.port, plan, connections=4) as client:
            made = pool.submit(client.run)
            time.sleep(0.3)
            yield server, plan, made


@pytest.mark.parametrize("name", ["nginx", "node-http", "go-net-http", "fastapi-uvloop", "c-gnutls"])
def test_an_agent_that_comes_late_says_nothing_wrong(name: str, place: object, tmp_path: Path) -> None:
    with under_load(name, 8_000) as (server, plan, running):
        with agent.running(tmp_path, agent.selecting(pids=server.tree())) as late:
            wait_probed(late, 1)
            assert not running.done(), "the load ended before the agent was there"
            made = running.result(240)
            spans = late.spans(timeout_s=30)
        assert zoo.wrong_answers(plan, made, echoes=True) == []
        report = truth.compare(made, truth.select(spans, kind="server"))
        print(f"{name}: {len(made) - len(report.missing)} of {len(made)} seen after a late start")
        assert (report.invented, report.repeated, report.wrong) == ([], [], [])
        first = min(i for i, request in enumerate(made) if request not in report.missing)
        after = [request for request in made[first + 200 :] if request in report.missing]
        print(f"{name}: {len(after)} missing of the {len(made) - first - 200} that came well after it")


def test_a_hundred_attachments_under_load_break_nothing(place: object) -> None:
    capture = Capture()
    capture.start()
    programs = TlsPrograms(capture)
    features = uprobe.detect()
    attach_ms, detach_ms = [], []
    try:
        registry = ProbeRegistry(library_attacher(program_chooser(programs.load(features)), features))
        with under_load("nginx", 15_000) as (server, plan, running):
            libraries = {pid: TlsCatalog().libraries(pid) for pid in server.tree()[1:2]}
            for pid in libraries:
                capture.watch(pid)
                capture.mark_tls(pid, False)
            for _ in range(100):
                for pid, found in libraries.items():
                    began = time.monotonic()
                    assert registry.watch(pid, found) == 1
                    attach_ms.append((time.monotonic() - began) * 1e3)
                    began = time.monotonic()
                    registry.forget(pid)
                    detach_ms.append((time.monotonic() - began) * 1e3)
            print(f"load still under way at the end: {not running.done()}")
            made = running.result(240)
        assert zoo.wrong_answers(plan, made, echoes=True) == []
        assert registry.failures == {}
        print(f"attach {statistics.median(attach_ms):.1f} ms, detach {statistics.median(detach_ms):.1f} ms")
    finally:
        programs.close()
        capture.close()


def test_an_agent_that_is_killed_breaks_nothing(place: object, tmp_path: Path) -> None:
    with under_load("nginx", 15_000) as (server, plan, running):
        for round_ in range(3):
            directory = tmp_path / str(round_)
            directory.mkdir()
            started = Agent(directory, agent.selecting(pids=server.tree()))
            started.wait_ready()
            wait_probed(started, 1)
            objects = agent.kernel_objects(started.pid)
            started.kill()
            assert agent.still_there(objects) == {}
        made = running.result(240)
        assert zoo.wrong_answers(plan, made, echoes=True) == []


# A client whose TLS is its own: no library that anybody knows.  What it sends looks like TLS and is none.
OWN_TLS = """
import socket, sys
port, server = int(sys.argv[1]), sys.argv[2] == "server"
hello = lambda kind: b"\\x16\\x03\\x03\\x00\\x40" + bytes([kind]) + bytes(63)
data = b"\\x17\\x03\\x03\\x00\\x64" + bytes(100)
if server:
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        if connection.recv(4096):
            connection.sendall(hello(2))
            connection.recv(4096)
            connection.sendall(data * 3)
        connection.close()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(hello(1))
    connection.recv(4096)
    connection.sendall(data)
    while connection.recv(4096):
        pass
    connection.close()
print("done", flush=True)
sys.stdin.readline()
"""


def test_what_cannot_be_seen_into_is_named_and_counted(place: object, tmp_path: Path) -> None:
    script = tmp_path / "own_tls.py"
    script.write_text(OWN_TLS)
    port = zoo.free_port()
    server = zoo.Program(["python3", str(script), str(port), "server"], tmp_path, name="server")
    client = zoo.Program(["python3", str(script), str(port), "client"], tmp_path, name="client", pipes=True)
    try:
        assert next(client.lines()) == "ready\n"
        with agent.running(tmp_path, agent.selecting(pids=[client.pid])) as onlooker:
            client.tell("go\n")
            assert next(client.lines()) == "done\n"
            reason = "no TLS library is known in it"
            wait_until(lambda: onlooker.metric("onlooker_tls_invisible", reason=reason) == 1, "it is named")
            told = {
                name: onlooker.metric(f"onlooker_tls_opaque_{name}_total", pid=str(client.pid))
                for name in ("connections", "failed", "sent_bytes", "received_bytes")
            }
            assert told == {"connections": 5, "failed": 0, "sent_bytes": 5 * 174, "received_bytes": 5 * 384}
            assert onlooker.metric("onlooker_tls_opaque_duration_seconds_total", pid=str(client.pid)) > 0
            assert onlooker.spans() == []
    finally:
        client.stop()
        server.stop()


# Answers of many sizes over a socket that seldom has the room: writes are asked for again, as OpenSSL wants it.
SHORT_OF_ROOM = """
import select, socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
print("ready", flush=True)
again = 0
while True:
    accepted, _ = listener.accept()
    connection = context.wrap_socket(accepted, server_side=True)
    connection.setblocking(False)
    asked = b""
    while True:
        try:
            got = connection.recv(65536)
            if not got:
                break
            asked += got
        except ssl.SSLWantReadError:
            select.select([connection], [], [])
            continue
        while b"\\r\\n\\r\\n" in asked:
            head, _, asked = asked.partition(b"\\r\\n\\r\\n")
            number = int(head.split()[1].rpartition(b"/")[2])
            body = b"x" * (number * 7919 % 12000)
            status = b"200 OK" if number % 3 else b"404 Not Found"
            left = memoryview(b"HTTP/1.1 %s\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (status, len(body), body))
            while left:
                try:
                    left = left[connection.send(left):]
                except ssl.SSLWantWriteError:
                    again += 1
                    select.select([], [connection], [])
    print(again, flush=True)
    connection.close()
"""


def body_size(number: int) -> int:
    return number * 7919 % 12000


def answer_head(number: int) -> bytes:
    status = b"200 OK" if number % 3 else b"404 Not Found"
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, body_size(number))


def test_writes_that_are_asked_for_again_count_once(onlooker: Agent, tmp_path: Path) -> None:
    count = 900
    certificate, key = zoo_tls.certificate()
    (tmp_path / "server.py").write_text(SHORT_OF_ROOM)
    port = zoo.free_port()
    command = ["python3", str(tmp_path / "server.py"), str(port), str(certificate), str(key)]
    server = zoo.Program(command, tmp_path, name="server", pipes=True)
    try:
        lines = server.lines()
        assert next(lines) == "ready\n"
        onlooker.wait_watched([server.pid])
        wait_probed(onlooker, 1)
        onlooker.spans()
        context = ssl.create_default_context(cafile=str(certificate))
        with (
            socket.create_connection(("127.0.0.1", port), 30) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            received = due = 0
            for first in range(0, count, 60):
                client.sendall(b"".join(b"GET /n/%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(first, first + 60)))
                time.sleep(0.02)  # so that the server's socket fills up
                due += sum(len(answer_head(n)) + body_size(n) for n in range(first, first + 60))
                while received < due:
                    received += len(client.recv(65536))
                    time.sleep(0.0005)
        again = int(next(lines))
        spans = truth.select(onlooker.spans(expected=count), kind="server", pids=[server.pid])
        told = sorted((int(str(span["path"]).rpartition("/")[2]), span["status"]) for span in spans)
        assert told == [(n, 200 if n % 3 else 404) for n in range(count)]
        for span in spans:
            size = span["attributes"].get("http.response.body.size")  # type: ignore[attr-defined]
            assert size in (None, body_size(int(str(span["path"]).rpartition("/")[2]))), span
        print(f"{again} writes found no room, and were asked for again")
        assert again > 20
    finally:
        server.stop()
