"""The awkward cases of HTTP/1: pairs of a server and a client process, and the truth about what passed between them.

Each case is two functions that run in processes of their own, so that an agent can select them by pid::

    with traffic.pair("pipelining") as pair:
        ...                              # attach to pair.server_pid and pair.client_pid; nothing was asked yet
        outcome = pair.run()             # outcome.server and outcome.client: lists of Exchange

By hand, in ``tests/``: ``python -m support.traffic serve CASE --port P`` and ``python -m support.traffic client CASE
--port P`` (a line on its standard input starts it); ``python -m support.traffic list`` names the cases, ``check`` runs
all of them and holds both sides' truth against each other.  The cases themselves stand in `support.cases`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import truth, zoo
from support.channels import Channel, Message

PATIENCE_S = 30  # a side that hangs is ended by SIGALRM; a case of AMOUNT seconds, twice, gets that more


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as one side of the connection knows it: what the agent must report for that process.

    Attributes:
        role: ``server`` or ``client``.
        pid: The process that read or sent the request.
        target: As in the request line.
        status: 0 where no final response was seen.
        error: Empty, or what ended it: ``reset``, ``peer_closed``, ``local_closed``, ``timed_out``.  With a status: the
            response was not whole.  Several with ``|`` between them: the kernel's order of events decides.
        start_ns, end_ns: CLOCK_MONOTONIC of the first byte of the request and the last byte of the response.
        first_byte_ns: Of the response; 0 where there was none.
        flags: ``stream``, ``upgraded``, ``early`` (answered before the request's body was read), ``before`` (took place
            before the start signal: an agent that came later must not report it).
    """

    role: str
    pid: int
    method: str
    target: str
    status: int
    error: str = ""
    start_ns: int = 0
    first_byte_ns: int = 0
    end_ns: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    traceparent: str = ""
    flags: tuple[str, ...] = ()

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    @property
    def path(self) -> str:
        """Path of the target; the whole of an authority (CONNECT)."""
        rest = self.target
        if "://" in rest:
            rest = "/" + rest.split("://", 1)[1].partition("/")[2]
        return rest.partition("?")[0]

    def as_truth(self, n: int) -> truth.TrueRequest:
        """The same for `truth.compare`."""
        return truth.TrueRequest(
            n, self.method, self.path, self.status, self.duration_ns, self.start_ns, self.response_bytes, self.error
        )


class Side:
    """What a case's function works with: its end of the connection, and its diary."""

    def __init__(self, role: str, case: Case, *, port: int, path: str, amount: int) -> None:
        self.role = role
        self.case = case
        self.port = port
        self.path = path
        self.amount = amount or case.amount
        self._listener: socket.socket | None = None

    # ---- sockets ----

    def listen(self) -> None:
        match self.case.family:
            case "unix":
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(self.path)
            case "ipv6":
                listener = socket.create_server(("::1", self.port), family=socket.AF_INET6)
            case "mapped":  # the client speaks IPv4 to an IPv6 socket
                listener = socket.socket(socket.AF_INET6)
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind(("::ffff:127.0.0.1", self.port))
            case _:
                listener = socket.create_server(("127.0.0.1", self.port))
        listener.listen(64)
        self._listener = listener
        _say(f"listening {self.port or listener.getsockname()[1]}")

    def accept(self) -> socket.socket:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        return connection

    def accept_channel(self) -> Channel:
        return Channel(self.accept(), send=self.case.server_send, receive=self.case.server_receive)

    def connect(self) -> socket.socket:
        match self.case.family:
            case "unix":
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(self.path)
            case "ipv6":
                connection = socket.create_connection(("::1", self.port))
            case _:
                connection = socket.create_connection(("127.0.0.1", self.port))
        return connection

    def connect_channel(self) -> Channel:
        return Channel(self.connect(), send=self.case.client_send, receive=self.case.client_receive)

    # ---- the start signal and the diary ----

    def wait_for_start(self) -> None:
        """Clients call this once, before the first request that an agent is to see."""
        _say("ready")
        sys.stdin.readline()

    def record(
        self,
        method: str,
        target: str,
        status: int,
        start_ns: int,
        *,
        error: str = "",
        first_byte_ns: int = 0,
        end_ns: int = 0,
        request_bytes: int = 0,
        response_bytes: int = 0,
        traceparent: str = "",
        flags: tuple[str, ...] = (),
    ) -> None:
        if target.startswith("/before/"):
            flags = (*flags, "before")
        exchange = Exchange(
            self.role, os.getpid(), method, target, status, error, start_ns, first_byte_ns,
            end_ns or time.monotonic_ns(), request_bytes, response_bytes, traceparent, flags,
        )  # fmt: skip
        _say(json.dumps(dataclasses.asdict(exchange)))

    def record_request(self, request: Message, status: int, **details: Any) -> None:
        """What a server knows after it has answered."""
        self.record(
            request.method,
            request.target,
            status,
            request.first_ns,
            request_bytes=request.body_bytes,
            traceparent=request.headers.get("traceparent", ""),
            **details,
        )

    def exchange(
        self,
        channel: Channel,
        method: str,
        target: str,
        *,
        headers: str = "",
        body: bytes = b"",
        message: bytes | None = None,
        flags: tuple[str, ...] = (),
    ) -> Message:
        """Sends one request, reads its response and records both.  For clients.

        Args:
            headers: Further header lines, each with its CRLF.
            message: The whole request, where it is not made of the other arguments.
        """
        start_ns = time.monotonic_ns()
        channel.send(message if message is not None else request_bytes(method, target, headers, body))
        response = channel.read_response(method)
        assert response is not None, f"{method} {target}: the server closed without an answer"
        self.record_response(method, target, response, start_ns, request_bytes=len(body), flags=flags)
        return response

    def record_response(self, method: str, target: str, response: Message, start_ns: int, **details: Any) -> None:
        self.record(
            method,
            target,
            response.status,
            start_ns,
            first_byte_ns=response.first_ns,
            end_ns=response.end_ns or response.first_ns,
            response_bytes=response.body_bytes,
            **details,
        )


def request_bytes(method: str, target: str, headers: str = "", body: bytes = b"") -> bytes:
    """A request with a Content-Length if there is a body."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: zoo.test\r\n{headers}{length}\r\n".encode() + body


def response_bytes(status: int, body: bytes = b"", headers: str = "", *, length: bool = True) -> bytes:
    """A response; ``length`` says whether it names the size of its body."""
    size = f"Content-Length: {len(body)}\r\n" if length else ""
    return f"HTTP/1.1 {status} Because\r\n{headers}{size}\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Case:
    """Two functions and the sockets between them.

    Attributes:
        family: ``ipv4``, ``ipv6``, ``mapped`` or ``unix``.
        amount: Size of what is moved (MB, seconds, requests: the case says), if nothing else is asked for.
        server_send, server_receive, client_send, client_receive: Styles of `Channel`.
    """

    name: str
    about: str
    serve: Callable[[Side], None]
    client: Callable[[Side], None]
    family: str = "ipv4"
    amount: int = 0
    server_send: str = "send"
    server_receive: str = "recv"
    client_send: str = "send"
    client_receive: str = "recv"


# ---- running a pair --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """The diaries of both sides, in the order in which the requests ended."""

    server: list[Exchange] = field(default_factory=list)
    client: list[Exchange] = field(default_factory=list)


class Pair:
    """A case whose two processes run and wait for the start signal."""

    def __init__(self, case: Case, directory: Path, amount: int) -> None:
        self.case = case
        self.port = 0 if case.family == "unix" else zoo.free_port()
        self._directory = directory
        self._options = [
            case.name,
            "--port",
            str(self.port),
            "--path",
            str(directory / "socket"),
            "--amount",
            str(amount),
        ]
        self._programs: dict[str, zoo.Program] = {}
        self._early: list[str] = []

    def start(self) -> None:
        """Starts the server, then the client, and waits until both are ready."""
        for action, word in (("serve", "listening"), ("client", "ready")):
            command = [sys.executable, "-m", "support.traffic", action, *self._options]
            path = Path(__file__).resolve().parents[1]
            self._programs[action] = zoo.Program(
                ["env", f"PYTHONPATH={path}", *command], self._directory, name=action, pipes=True
            )
            self._await(self._programs[action], word)

    @property
    def server_pid(self) -> int:
        """Root of the server's process tree; `Exchange.pid` says which process of it served a request."""
        return self._programs["serve"].pid

    @property
    def client_pid(self) -> int:
        return self._programs["client"].pid

    def _await(self, program: zoo.Program, word: str) -> None:
        for line in program.lines():
            text = line.strip()
            if text.startswith(word):
                return
            self._early.append(text)
        raise program.failure(f"it ended before it said {word!r}")

    def run(self) -> Outcome:
        """Gives the start signal and waits until both sides are done; they live on until the end of the block.

        Raises:
            ZooError: A side failed.
        """
        outcome = Outcome(client=[_exchange(line) for line in self._early])
        self._programs["client"].tell("go\n")
        for action, exchanges in (("client", outcome.client), ("serve", outcome.server)):
            program = self._programs[action]
            for line in program.lines():
                text = line.strip()
                if text == "done":
                    break
                exchanges.append(_exchange(text))
            else:
                other = self._programs["serve" if action == "client" else "client"]
                raise program.failure(f"it did not come to its end; the other side said:\n{other.log()}")
        return outcome

    def stop(self) -> None:
        for program in reversed(self._programs.values()):
            program.stop(grace_s=0.5)


def _exchange(line: str) -> Exchange:
    values = json.loads(line)
    return Exchange(**{**values, "flags": tuple(values["flags"])})


@contextlib.contextmanager
def pair(name: str, *, amount: int = 0) -> Iterator[Pair]:
    """Starts both sides of a case; ends them, and all their children, afterwards."""
    from support.cases import CASES

    with tempfile.TemporaryDirectory(prefix=f"traffic-{name}-", ignore_cleanup_errors=True) as text:
        started = Pair(CASES[name], Path(text), amount)
        try:
            started.start()
            yield started
        finally:
            started.stop()


def disagreements(outcome: Outcome) -> list[str]:
    """Where the two diaries tell different stories that no error explains."""

    def story(exchange: Exchange) -> tuple[Any, ...]:
        return (exchange.method, exchange.target, exchange.status, exchange.request_bytes, exchange.response_bytes)

    server = [story(exchange) for exchange in outcome.server if not exchange.error]
    client = [story(exchange) for exchange in outcome.client if not exchange.error]
    broken = [exchange for exchange in (*outcome.server, *outcome.client) if exchange.error]
    if not broken and server != client:
        return [f"server {s} but client {c}" for s, c in zip(server, client, strict=False) if s != c] or [
            f"server saw {len(server)}, client {len(client)}"
        ]
    targets = {exchange.target for exchange in outcome.client}
    return [f"only the server knows {exchange.target}" for exchange in outcome.server if exchange.target not in targets]


# ---- command line ----------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    # One write a line: the children of a case share the pipe.
    os.write(1, text.encode() + b"\n")


def _check(only: str) -> int:
    from support.cases import CASES

    failed = 0
    for name in CASES:
        if only not in name:
            continue
        try:
            with pair(name) as running:
                start = time.monotonic()
                outcome = running.run()
                took_s = time.monotonic() - start
            problems = disagreements(outcome)
        except Exception as error:  # a table of all cases must have all rows
            problems, outcome, took_s = [str(error)], Outcome(), 0.0
        failed += bool(problems)
        errors = sorted(
            {f"{e.role}:{e.status or '-'}:{e.error}" for e in (*outcome.server, *outcome.client) if e.error}
        )
        row = f"{name:28}{len(outcome.server):5}{len(outcome.client):5}{took_s:7.2f} s  {' '.join(errors)}"
        print(row + ("  FAILED " + "; ".join(problems[:3]) if problems else ""), flush=True)
    print(f"{failed} failed")
    return failed


def main(arguments: list[str] | None = None) -> int:
    from support.cases import CASES

    parser = argparse.ArgumentParser(prog="python -m support.traffic")
    parser.add_argument("action", choices=("serve", "client", "list", "check"))
    parser.add_argument("case", nargs="?", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--path", default="", help="of the UNIX socket")
    parser.add_argument("--amount", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.action == "list":
        for case in CASES.values():
            print(f"{case.name:28}{case.about}")
        return 0
    if options.action == "check":
        return 1 if _check(options.case) else 0
    case = CASES[options.case]
    side = Side(
        "server" if options.action == "serve" else "client",
        case,
        port=options.port,
        path=options.path,
        amount=options.amount,
    )
    signal.alarm(PATIENCE_S + 2 * side.amount)
    if options.action == "serve":
        side.listen()
        case.serve(side)
    else:
        case.client(side)
    signal.alarm(0)
    _say("done")
    sys.stdin.read()  # a process that ends at once could not be looked at
    return 0


if __name__ == "__main__":
    from support import traffic  # the cases import this module by its name: let there be one of it

    sys.exit(traffic.main())
