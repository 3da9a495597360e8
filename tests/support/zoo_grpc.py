"""gRPC servers and clients of many languages, without generated code: messages are bytes, metadata says what to answer.

Every call carries a ``traceparent`` of its own, by which its spans are found, however many run at once::

    with zoo.server(zoo_grpc.SERVERS["go"]) as server:
        calls = zoo_grpc.plan(7, 100)
        with zoo_grpc.client("java", server.port, calls, concurrency=8) as client:
            made = client.run()
        problems = zoo_grpc.compare(calls, made, spans, kind="client")

The service ``zoo.Zoo`` has ``Unary``, ``Collect`` (the client streams), ``Listen`` (the server does) and ``Talk``
(both, one answer for each message); ``Nowhere`` is no method of it.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.protocols.grpc import STATUS
from support import zoo, zoo_tls
from support.zoo import BIN, BUILT, PYTHON, ClientSpec, ServerSpec

SIZES = (0, 10, 1_000, 40_000)
STREAM_SIZES = (10, 10, 1_000, 20_000)
DELAYS_MS = (0, 0, 0, 5, 30)
DEADLINE_MS = 250
CANCEL_MS = 100
NEVER_MS = 900
"""How long a server waits before it answers a call that will not have it."""
JAVA = ("java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
        f"{BUILT / 'grpc-java/classes'}:{BUILT / 'grpc-java/lib'}/*", "GrpcZoo")  # fmt: skip


NODE_NEEDS = ("node", str(BUILT / "node/node_modules/@grpc"))


@dataclass(frozen=True, slots=True)
class Call:
    """One call to be made."""

    n: int
    kind: str
    trace_id: str
    status: int
    requests: int
    responses: int
    bytes: int
    delay_ms: int
    deadline_ms: int = 0
    cancel_ms: int = 0

    @property
    def expected(self) -> str:
        """The status that the caller gets."""
        if self.deadline_ms:
            return "DEADLINE_EXCEEDED"
        if self.cancel_ms:
            return "CANCELLED"
        return "UNIMPLEMENTED" if self.kind == "Nowhere" else STATUS[self.status]

    @property
    def broken_off(self) -> bool:
        """Whether the client does not wait for its end."""
        return bool(self.deadline_ms or self.cancel_ms)

    @property
    def answers(self) -> int:
        """How many messages a correct server sends before it ends."""
        if self.kind in ("Listen", "Talk"):
            return self.responses
        return 0 if self.expected != "OK" and not self.broken_off else 0 if self.broken_off else 1

    def line(self) -> str:
        """The call as the programs of the zoo read it."""
        parent = f"00-{self.trace_id}-{self.n + 1:016x}-01"
        numbers = (
            self.status,
            self.requests,
            self.responses,
            self.bytes,
            self.delay_ms,
            self.deadline_ms,
            self.cancel_ms,
        )
        return f"{self.n} {self.kind} {parent} {' '.join(map(str, numbers))}\n"


@dataclass(frozen=True, slots=True)
class Made:
    """One call as its client knows it; CLOCK_MONOTONIC."""

    n: int
    status: str
    start_ns: int
    end_ns: int
    responses: int


def plan(seed: int, count: int) -> list[Call]:
    """A mix of all kinds, every error code, deadlines and cancels; the same for the same seed."""
    chance = random.Random(seed)
    codes = list(range(1, len(STATUS)))
    calls = []
    for n in range(count):
        kind = chance.choices(("Unary", "Collect", "Listen", "Talk", "Nowhere"), (40, 15, 20, 22, 3))[0]
        one = kind in ("Unary", "Nowhere")
        requests = 1 if one or kind == "Listen" else chance.randint(1, 12)
        responses = requests if kind == "Talk" else chance.randint(0, 12) if kind == "Listen" else 1
        status = codes[n // 3 % len(codes)] if n % 3 == 2 else 0  # each of them in turn
        ends = {}
        delay = chance.choice(DELAYS_MS)
        if n % 24 == 4 and kind != "Nowhere":
            ends, delay, status = {chance.choice(("deadline_ms", "cancel_ms")): 0}, NEVER_MS, 0
            ends = {name: DEADLINE_MS if name == "deadline_ms" else CANCEL_MS for name in ends}
        size = chance.choice(SIZES if one or kind == "Collect" else STREAM_SIZES)
        trace = f"{chance.getrandbits(128) | 1:032x}"
        calls.append(Call(n, kind, trace, status, requests, responses, size, delay, **ends))
    return calls


# ---- programs --------------------------------------------------------------------------------------------------------


def _server(name: str, language: str, command: Sequence[str], needs: Sequence[str]) -> ServerSpec:
    return ServerSpec(f"grpc-{name}", language, zoo._own(*command), tuple(needs))


SERVERS: Mapping[str, ServerSpec] = {
    "grpcio": _server("grpcio", "python", (PYTHON, zoo._script("python/grpc_server.py")), (PYTHON,)),
    "grpc-aio": _server("grpc-aio", "python", (PYTHON, zoo._script("python/grpc_aio_server.py")), (PYTHON,)),
    "go": _server("go", "go", (str(BIN / "go-grpc"), "server"), (str(BIN / "go-grpc"),)),
    "java": _server("java", "java", (*JAVA, "server"), ("java", str(BUILT / "grpc-java/classes/GrpcZoo.class"))),
    "node": _server("node", "nodejs", ("node", zoo._script("node/grpc_server.js")), NODE_NEEDS),
    "tonic": _server("tonic", "rust", (str(BIN / "rust-grpc"), "server"), (str(BIN / "rust-grpc"),)),
}  # fmt: skip

CLIENTS: Mapping[str, ClientSpec] = {
    name: ClientSpec(f"grpc-{name}", language, tuple(command), tuple(needs))
    for name, language, command, needs in (
        ("grpcio", "python", (PYTHON, zoo._script("python/grpc_client.py")), (PYTHON,)),
        ("grpc-aio", "python", (PYTHON, zoo._script("python/grpc_aio_client.py")), (PYTHON,)),
        ("go", "go", (str(BIN / "go-grpc"), "client"), (str(BIN / "go-grpc"),)),
        ("java", "java", (*JAVA, "client"), ("java", str(BUILT / "grpc-java/classes/GrpcZoo.class"))),
        ("node", "nodejs", ("node", zoo._script("node/grpc_client.js")), NODE_NEEDS),
        ("tonic", "rust", (str(BIN / "rust-grpc"), "client"), (str(BIN / "rust-grpc"),)),
    )
}  # fmt: skip


def over_tls(name: str) -> ServerSpec:
    """The same server with the zoo's certificate."""
    spec = SERVERS[name]
    return ServerSpec(f"{spec.name}-tls", spec.language, zoo_tls._told(spec.programs), spec.needs)


class Client:
    """A client that has started and waits for its signal."""

    def __init__(
        self, name: str, port: int, calls: Sequence[Call], directory: Path, *, concurrency: int, tls: bool
    ) -> None:
        spec = CLIENTS[name]
        zoo.require(spec)
        planned = directory / "plan"
        planned.write_text("".join(call.line() for call in calls))
        told = ("env", f"ZOO_TLS_CA={zoo_tls.certificate()[0]}") if tls else ()
        command = [*told, *spec.command, str(port), str(planned), str(concurrency)]
        self._calls = calls
        self._program = zoo.Program(command, directory, name=f"client-{name}", pipes=True)
        self._program.wait_for_exec(time.monotonic() + zoo.READY_TIMEOUT_S)
        if next(self._program.lines(), "").strip() != "ready":
            raise self._program.failure("it did not say that it is ready")

    @property
    def pid(self) -> int:
        return self._program.pid

    def run(self, timeout_s: float = 120.0) -> list[Made]:
        """Gives the signal, and waits for what the client has to tell; in the order of the plan."""
        try:
            output, _ = self._program.process.communicate(b"\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise self._program.failure(f"it did not finish within {timeout_s:.0f} s") from None
        made = sorted(
            (Made(**json.loads(line)) for line in output.decode().splitlines() if line.startswith("{")),
            key=lambda one: one.n,
        )
        if [one.n for one in made] != [call.n for call in self._calls]:
            raise self._program.failure(f"it told of {len(made)} calls, {len(self._calls)} were planned")
        return made

    def stop(self) -> None:
        self._program.stop(grace_s=0.5)


@contextlib.contextmanager
def client(name: str, port: int, calls: Sequence[Call], *, concurrency: int = 1, tls: bool = False) -> Iterator[Client]:
    """Starts a client and lets it wait."""
    with tempfile.TemporaryDirectory(prefix=f"grpc-{name}-", ignore_cleanup_errors=True) as text:
        started = Client(name, port, calls, Path(text), concurrency=concurrency, tls=tls)
        try:
            yield started
        finally:
            started.stop()


# ---- truth -----------------------------------------------------------------------------------------------------------


def wrong_answers(calls: Sequence[Call], made: Sequence[Made]) -> list[str]:
    """Calls that did not end as their plan has it, by their client's account."""
    return [
        f"{call} ended as {one.status} with {one.responses} answers"
        for call, one in zip(calls, made, strict=True)
        if (one.status != call.expected and not (call.deadline_ms and one.status == "CANCELLED"))
        or (call.expected == "OK" and one.responses != call.answers)  # Node drops what came before an error
    ]


SLACK_NS = 100_000_000
"""How much later than the call's end the last frame may move: a client says that it gave up before it tells the server,
a server may lose the CPU right after it has sent an answer."""


def compare(
    calls: Sequence[Call], made: Sequence[Made], spans: Sequence[Mapping[str, Any]], *, kind: str, lenient: bool = False
) -> list[str]:
    """Where the spans of one side differ from what was done; empty if they tell the truth."""
    problems = []
    by_trace: dict[str, list[Mapping[str, Any]]] = {}
    for span in spans:
        by_trace.setdefault(str(span["trace_id"]), []).append(span)
    for call, one in zip(calls, made, strict=True):
        found = by_trace.pop(call.trace_id, [])
        if len(found) != 1:
            problems.append(f"{len(found)} spans of {call}")
            continue
        problems += [
            f"{text}: {call}, span {_shown(found[0])}" for text in _differences(call, one, found[0], kind, lenient)
        ]
    problems += [f"a call that nobody made: {_shown(span)}" for rest in by_trace.values() for span in rest]
    return problems


def _differences(call: Call, made: Made, span: Mapping[str, Any], kind: str, lenient: bool) -> Iterator[str]:
    attributes = span["attributes"]
    for key, value in {
        "rpc.system.name": "grpc", "rpc.method": f"zoo.Zoo/{call.kind}", "rpc.service": "zoo.Zoo",
    }.items():  # fmt: skip
        if attributes.get(key) != value:
            yield f"{key} is {attributes.get(key)!r} and not {value!r}"
    status = attributes.get("rpc.response.status_code")
    # tonic's server answers CANCELLED when the time limit is over; it and the client's own clock race
    if status != call.expected and not (call.deadline_ms and lenient and status == "CANCELLED"):
        yield f"its status is {status} and not {call.expected}"
    if span["kind"] != kind:
        yield f"its kind is {span['kind']}"
    if call.deadline_ms and not 0 < attributes.get("onlooker.rpc.timeout_ns", 0) <= call.deadline_ms * 1_200_000:
        yield "its time limit is not told"
    if not call.broken_off and call.kind != "Nowhere":
        for which, expected in (("request", call.requests), ("response", call.answers)):
            count = attributes.get(f"onlooker.rpc.{which}.messages")
            if count is not None and count != expected:
                yield f"{count} {which} messages and not {expected}"
    start, duration = span["start_ns"], span["duration_ns"]
    if start < made.start_ns - 1_000_000:  # the printed time is a Unix time: the clocks may have moved
        yield f"it begins {(made.start_ns - start) / 1e6:.1f} ms before the call"
    if start + duration > made.end_ns + SLACK_NS:
        yield f"it ends {(start + duration - made.end_ns) / 1e6:.1f} ms after the call"
    # a client's timer runs from before its request is sent: of what it gives up, less is seen
    if not call.broken_off and call.kind != "Nowhere" and duration < (call.delay_ms - 1) * 1_000_000:
        yield f"it lasts {duration / 1e6:.1f} ms, the call {call.delay_ms} at least"
    if call.broken_off and duration >= (NEVER_MS - 1) * 1_000_000:
        yield f"it lasts {duration / 1e6:.1f} ms, and was given up before"


def _shown(span: Mapping[str, Any]) -> str:
    return f"{span['name']} {span['attributes']} {span['duration_ns'] / 1e6:.1f} ms (pid {span['pid']})"
