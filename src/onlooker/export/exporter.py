"""Queue, retry and transport of one signal, tied together.

Receives chunks from the capture thread, or snapshots of the metrics; one worker thread delivers them.  Everything that
was put is at any moment sent, dropped (counted by reason) or waiting: `ExporterStats` adds up.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO

from onlooker.errors import AgentError, ExportError
from onlooker.export.endpoint import Connection, Protocol, Signal, check_headers
from onlooker.export.queue import Chunk, ChunkQueue, DropPolicy
from onlooker.export.retry import Backoff, RetryPolicy
from onlooker.export.transport import Answer, Transport
from onlooker.snapshot import MetricSnapshot

log = logging.getLogger(__name__)

DROP_REASONS = ("queue_full", "rejected", "permanent", "retries_exhausted", "shutdown")


@dataclass(frozen=True, slots=True)
class ExporterStats:
    """What became of everything that was put.  Items are spans or metric points.

    Attributes:
        put: Items handed to the exporter: ``sent + sum(dropped) + queued + in_flight``.
        sent: Items that the receiver took.
        dropped: Items by reason: ``queue_full``, ``rejected`` (by a partial success), ``permanent`` (refused for good),
            ``retries_exhausted``, ``shutdown``.
        queued, queued_bytes: Waiting in the queue.
        in_flight: In the request under way, or waiting for its retry.
        requests: Requests that were taken.
        failures: Attempts that failed.
        retries: Attempts that were not the first of their request.
        last_error: Of the last failed attempt or partial success; empty if there was none.
        last_error_unix_ns, last_success_unix_ns: 0: never.
    """

    put: int
    sent: int
    dropped: dict[str, int]
    queued: int
    queued_bytes: int
    in_flight: int
    requests: int
    failures: int
    retries: int
    last_error: str
    last_error_unix_ns: int
    last_success_unix_ns: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an exporter's queue and of its requests.

    Attributes:
        queue_items, queue_bytes: What may wait.
        batch_items, batch_bytes: What makes a full request.
        batch_age_s: How long the first chunk waits for company.
    """

    queue_items: int = 16_384
    queue_bytes: int = 16 << 20
    batch_items: int = 4096
    batch_bytes: int = 4 << 20
    batch_age_s: float = 1.0
    policy: DropPolicy = DropPolicy.OLDEST


@dataclass(slots=True)
class _Counts:
    put: int = 0
    sent: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    retries: int = 0
    last_error: str = ""
    last_error_unix_ns: int = 0
    last_success_unix_ns: int = 0

    @property
    def outstanding(self) -> int:
        """Items whose fate is open: in the queue or with the worker."""
        return self.put - self.sent - sum(self.dropped.values())


class Exporter:
    """One signal on its way to one receiver.  `put` may be called from any thread and never waits for the network."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        limits: Limits | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = name
        self._transport = transport
        self._limits = limits or Limits()
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._queue = ChunkQueue(
            max_items=self._limits.queue_items,
            max_bytes=self._limits.queue_bytes,
            policy=self._limits.policy,
            clock=clock,
        )
        self._counts = _Counts()
        self._lock = threading.Lock()  # guards the counts: put and worker both write them
        self._idle = threading.Condition(self._lock)
        self._hurry = threading.Event()  # ends a wait between retries
        self._stopping = False
        self._abandoned = threading.Event()
        self._warned: set[str] = set()
        self._failing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to deliver.  What was put before is delivered first."""
        if self._thread is None:
            # A daemon: a receiver that never answers must not keep the agent from ending.
            self._thread = threading.Thread(target=self._run, name=f"export-{self.name}"[:15], daemon=True)
            self._thread.start()

    def put(self, chunks: Iterable[Chunk]) -> None:
        """Hand over chunks; what does not fit is dropped and counted."""
        for chunk in chunks:
            with self._lock:
                self._counts.put += chunk.items
            dropped = self._queue.put(chunk)
            with self._lock:
                self._counts.dropped["shutdown" if self._stopping else "queue_full"] += dropped
                self._idle.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Deliver what is there without waiting for more; True once nothing waits and nothing is under way."""
        deadline = self._clock() + timeout_s
        self._queue.flush()
        self._hurry.set()
        with self._idle:
            while self._counts.outstanding:
                left = deadline - self._clock()
                if left <= 0 or self._thread is None:
                    return False
                self._idle.wait(min(left, 0.2))
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """Deliver what can be delivered in that time, then drop the rest, counted, and end the worker."""
        if self._thread is not None:
            self.drain(timeout_s)
        with self._lock:
            self._stopping = True
        self._abandoned.set()
        self._queue.close()
        left = self._queue.clear()
        with self._lock:
            self._counts.dropped["shutdown"] += left
        self._hurry.set()
        self._transport.close()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None

    def stats(self) -> ExporterStats:
        """A consistent picture of the moment."""
        with self._lock:
            counts = self._counts
            return ExporterStats(
                put=counts.put,
                sent=counts.sent,
                dropped=dict(counts.dropped),
                queued=counts.outstanding - counts.in_flight,
                queued_bytes=self._queue.bytes,
                in_flight=counts.in_flight,
                requests=counts.requests,
                failures=counts.failures,
                retries=counts.retries,
                last_error=counts.last_error,
                last_error_unix_ns=counts.last_error_unix_ns,
                last_success_unix_ns=counts.last_success_unix_ns,
            )

    def _run(self) -> None:
        limits = self._limits
        while True:
            chunk = self._queue.take(
                batch_items=limits.batch_items, batch_bytes=limits.batch_bytes, max_age_s=limits.batch_age_s
            )
            if chunk is None:
                return
            with self._lock:
                self._counts.in_flight += chunk.items
            try:
                self._deliver(chunk)
            except Exception:  # the edge of the loop: an exporter that dies silently would lose all that follows
                log.exception("%s: a request could not be sent; %d items are lost", self.name, chunk.items)
                self._drop(chunk, "permanent")
            with self._lock:
                self._counts.in_flight -= chunk.items
                self._idle.notify_all()

    def _deliver(self, chunk: Chunk) -> None:
        """Send one request, as often as it takes and the policy allows."""
        backoff = Backoff(self._retry, started_s=self._clock())
        while True:
            try:
                answer = self._transport.send(chunk.data)
            except AgentError as err:
                if self._abandoned.is_set():
                    self._failed(err, chunk, "shutdown")
                    return
                if not isinstance(err, ExportError) or not err.retryable:
                    self._failed(err, chunk, "permanent")
                    return
                wait = backoff.wait_s(self._clock(), err.retry_after_s)
                self._failed(err, chunk, "retries_exhausted" if wait is None else None)
                if wait is None:
                    return
                self._hurry.wait(wait)
                self._hurry.clear()
                if self._abandoned.is_set():
                    self._drop(chunk, "shutdown")
                    return
                with self._lock:
                    self._counts.retries += 1
            else:
                self._succeeded(chunk, answer)
                return

    def _succeeded(self, chunk: Chunk, answer: Answer) -> None:
        rejected = min(answer.rejected, chunk.items)
        with self._lock:
            counts = self._counts
            counts.requests += 1
            counts.sent += chunk.items - rejected
            counts.dropped["rejected"] += rejected
            counts.last_success_unix_ns = self._wall_clock_ns()
            if rejected or answer.message:
                counts.last_error = f"the receiver rejected {rejected} of {chunk.items} items: {answer.message}"
                counts.last_error_unix_ns = counts.last_success_unix_ns
        if self._failing:
            self._failing = False
            log.info("%s: the receiver takes requests again", self.name)
        if (rejected or answer.message) and "partial" not in self._warned:
            self._warned.add("partial")
            log.warning(
                "%s: the receiver took a request but rejected %d of %d items: %s (said once, counted always)",
                self.name, rejected, chunk.items, answer.message or "no reason given",
            )  # fmt: skip

    def _failed(self, err: AgentError, chunk: Chunk, reason: str | None) -> None:
        with self._lock:
            self._counts.failures += 1
            self._counts.last_error = str(err)
            self._counts.last_error_unix_ns = self._wall_clock_ns()
        if reason is not None:
            self._drop(chunk, reason)
        if not self._failing:
            self._failing = True
            log.warning("%s: %s; %s", self.name, err, "will try again" if reason is None else f"lost: {reason}")

    def _drop(self, chunk: Chunk, reason: str) -> None:
        with self._lock:
            self._counts.dropped[reason] += chunk.items


class SpanExporter(Exporter):
    """Delivers chunks of `onlooker.export.otlp_traces.SpanEncoder`."""


class MetricExporter(Exporter):
    """Delivers snapshots of all metrics."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        version: str,
        limits: Limits | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(
            name,
            transport,
            # A snapshot is whole: nothing comes to join it.
            limits=limits or Limits(queue_items=1_000_000, batch_items=1_000_000, batch_age_s=0.0),
            retry=retry,
            clock=clock,
            wall_clock_ns=wall_clock_ns,
        )
        self._version = version

    def export(self, snapshot: MetricSnapshot) -> None:
        """Encode a snapshot and hand it over.  Costs about 10 µs a point: not for the capture thread."""
        from onlooker.export.otlp_metrics import encode_metrics  # imported late: it brings protobuf

        self.put(encode_metrics(snapshot, version=self._version, max_bytes=self._limits.batch_bytes))


class DebugTransport:
    """Writes requests to a stream as OTLP/JSON, one a line: ``protocol: debug``."""

    def __init__(self, signal: Signal, stream: IO[str]) -> None:
        self._signal = signal
        self._stream = stream

    def send(self, data: bytes) -> Answer:
        """Write one request; see `Transport`."""
        from onlooker.export.otlp_json import to_json

        try:
            self._stream.write(to_json(data, self._signal).decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError) as err:  # ValueError: the stream is closed
            raise ExportError(f"cannot write to the debug stream: {err}", retryable=False) from err
        return Answer()

    def close(self) -> None:
        """The stream belongs to somebody else."""


def make_transport(connection: Connection, *, version: str, stream: IO[str] | None = None) -> Transport:
    """The transport for the protocol of the connection's endpoint.

    Args:
        connection: Where to and how.
        version: Of onlooker, for the user agent.
        stream: For `Protocol.DEBUG`; standard output if missing.

    Raises:
        ConfigError: grpcio is missing, a TLS file cannot be used, or a header is none.
    """
    check_headers(connection.headers)
    match connection.endpoint.protocol:
        case Protocol.GRPC:
            from onlooker.export.grpc import GrpcTransport

            return GrpcTransport(connection, version=version)
        case Protocol.DEBUG:
            return DebugTransport(connection.endpoint.signal, stream or sys.stdout)
        case _:
            from onlooker.export.http import HttpTransport

            return HttpTransport(connection, version=version)
