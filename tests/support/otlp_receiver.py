"""A real OTLP receiver, gRPC and HTTP, that records everything and misbehaves on request.

    with OtlpReceiver(grpc_port=0, http_port=0) as receiver:
        receiver.script(Misbehaviour(status=503), Misbehaviour(delay_s=30))   # for the next two requests
        ...
        receiver.spans()     # flat dicts

Stand-alone: ``python -m support.otlp_receiver --jsonl FILE`` in ``tests/``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

import grpc
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

REQUESTS = {"traces": trace_service.ExportTraceServiceRequest, "metrics": metrics_service.ExportMetricsServiceRequest}
RESPONSES = {
    "traces": trace_service.ExportTraceServiceResponse,
    "metrics": metrics_service.ExportMetricsServiceResponse,
}


@dataclass(frozen=True)
class Misbehaviour:
    """What happens to one request.

    Attributes:
        delay_s: Before the answer.
        status: HTTP status, other than 200.
        code: gRPC code by name, other than OK.
        message: Of an error or a partial success.
        rejected: Partial success: the request is recorded, and this many items are said to be rejected.
        retry_after: HTTP Retry-After field.
        retry_info_s: gRPC RetryInfo in the details.
        body: Sent as it is instead of the real answer (HTTP).
        headers: Further HTTP fields.
        hang_up: The connection ends without an answer (HTTP).
        trickle_s: The body comes byte by byte, with this pause (HTTP).
    """

    delay_s: float = 0.0
    status: int = 200
    code: str = "OK"
    message: str = ""
    rejected: int = 0
    retry_after: str = ""
    retry_info_s: float | None = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    trickle_s: float = 0.0

    @property
    def takes(self) -> bool:
        return self.status == 200 and self.code == "OK" and not self.hang_up


@dataclass(frozen=True)
class Received:
    """One request that was taken, or refused by the script."""

    signal: str
    protocol: str  # "grpc", "http/protobuf", "http/json"
    headers: dict[str, str]
    message: Any
    size: int
    taken: bool
    raw: bytes


def attribute_value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [attribute_value(v) for v in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(pairs: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    pair: KeyValue
    for pair in pairs:
        assert pair.key not in out, f"attribute {pair.key} twice"
        out[pair.key] = attribute_value(pair.value)
    return out


def flat_spans(message: trace_service.ExportTraceServiceRequest) -> Iterator[dict[str, Any]]:
    for resource in message.resource_spans:
        about = attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_span_id": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "start_unix_ns": span.start_time_unix_nano,
                    "end_unix_ns": span.end_time_unix_nano,
                    "status": span.status.code,
                    "flags": span.flags,
                    "attributes": attributes(span.attributes),
                    "resource": about,
                    "service": about.get("service.name", ""),
                    "scope": scope.scope.name,
                }


def flat_metrics(message: metrics_service.ExportMetricsServiceRequest) -> Iterator[dict[str, Any]]:
    for resource in message.resource_metrics:
        about = attributes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data") or ""
                for point in getattr(metric, kind).data_points:
                    flat = {
                        "name": metric.name,
                        "unit": metric.unit,
                        "kind": kind,
                        "attributes": attributes(point.attributes),
                        "resource": about,
                        "service": about.get("service.name", ""),
                        "start_unix_ns": point.start_time_unix_nano,
                        "time_unix_ns": point.time_unix_nano,
                        "exemplars": [(e.as_double, e.trace_id.hex(), e.span_id.hex()) for e in point.exemplars],
                    }
                    if kind in ("sum", "gauge"):
                        flat["value"] = getattr(point, point.WhichOneof("value") or "as_double")
                    else:
                        flat["count"] = point.count
                        flat["sum"] = point.sum
                    if kind == "histogram":
                        flat["bounds"] = list(point.explicit_bounds)
                        flat["buckets"] = list(point.bucket_counts)
                    yield flat


class OtlpReceiver:
    """Context manager around both servers.  A port of None leaves that server out, 0 takes a free one.

    Attributes:
        grpc_port, http_port: Where they listen.
        requests: All that came, in order of arrival.
    """

    def __init__(
        self,
        *,
        grpc_port: int | None = 0,
        http_port: int | None = 0,
        host: str = "127.0.0.1",
        tls: tuple[str, str] | None = None,
        client_ca: str = "",
        unix_grpc: str = "",
        unix_http: str = "",
        sink: IO[str] | None = None,
    ) -> None:
        self.host = host
        self.grpc_port = grpc_port
        self.http_port = http_port
        self.requests: list[Received] = []
        self._tls = tls
        self._client_ca = client_ca
        self._unix_grpc = unix_grpc
        self._unix_http = unix_http
        self._sink = sink
        self._script: deque[Misbehaviour] = deque()
        self._always: Misbehaviour | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self._grpc: grpc.Server | None = None

    # Control

    def __enter__(self) -> OtlpReceiver:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def listen(self) -> None:
        """Start to listen, again on the same ports after `refuse`."""
        self._stopping.clear()
        if self.grpc_port is not None or self._unix_grpc:
            self._start_grpc()
        if self.http_port is not None or self._unix_http:
            self._start_http()

    def refuse(self) -> None:
        """Stop listening: connections are refused from now on, those that exist are cut."""
        self._stopping.set()
        if self._grpc is not None:
            self._grpc.stop(0).wait()
            self._grpc = None
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def script(self, *steps: Misbehaviour) -> None:
        """What happens to the next requests, one each; later ones are answered well."""
        with self._changed:
            self._script.extend(steps)

    def always(self, step: Misbehaviour | None) -> None:
        """What happens to every request that no script is left for."""
        with self._changed:
            self._always = step

    # What was received

    def messages(self, signal: str) -> list[Any]:
        return [r.message for r in self.requests if r.signal == signal and r.taken]

    def spans(self) -> list[dict[str, Any]]:
        """All spans that were taken, as flat dicts."""
        return [span for message in self.messages("traces") for span in flat_spans(message)]

    def metrics(self) -> list[dict[str, Any]]:
        """All metric points that were taken, as flat dicts."""
        return [point for message in self.messages("metrics") for point in flat_metrics(message)]

    def wait_for(self, count: int, signal: str = "traces", timeout_s: float = 20.0) -> None:
        """Wait until so many requests have come, taken or not."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: sum(r.signal == signal for r in self.requests) >= count, timeout=timeout_s
            )
        assert came, f"{count} requests for {signal} expected, {len(self.requests)} came"

    def endpoint(self, protocol: str = "http/protobuf") -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self.host}:{self.grpc_port if protocol == 'grpc' else self.http_port}"

    # Servers

    def _next(self) -> Misbehaviour:
        with self._changed:
            return self._script.popleft() if self._script else self._always or Misbehaviour()

    def _record(self, received: Received) -> None:
        with self._changed:
            self.requests.append(received)
            self._changed.notify_all()
            if self._sink is not None and received.taken:
                flat = flat_spans if received.signal == "traces" else flat_metrics
                for item in flat(received.message):
                    self._sink.write(json.dumps({"signal": received.signal, **item}) + "\n")
                self._sink.flush()

    def _response(self, signal: str, step: Misbehaviour) -> Any:
        response = RESPONSES[signal]()
        if step.rejected or (step.message and step.takes):
            if signal == "traces":
                response.partial_success.rejected_spans = step.rejected
            else:
                response.partial_success.rejected_data_points = step.rejected
            response.partial_success.error_message = step.message
        return response

    def _serve_grpc(self, signal: str, request: Any, context: grpc.ServicerContext) -> Any:
        step = self._next()
        metadata = {k: v if isinstance(v, str) else v.hex() for k, v in context.invocation_metadata()}
        raw = request.SerializeToString()
        self._record(Received(signal, "grpc", metadata, request, len(raw), step.takes, raw))
        if step.delay_s:
            self._stopping.wait(step.delay_s)
        if step.code != "OK":
            if step.retry_info_s is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", _retry_info(step.retry_info_s)),))
            context.abort(getattr(grpc.StatusCode, step.code), step.message)
        return self._response(signal, step)

    def _start_grpc(self) -> None:
        receiver = self

        class Traces(trace_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
                return receiver._serve_grpc("traces", request, context)

        class Metrics(metrics_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
                return receiver._serve_grpc("metrics", request, context)

        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
        server = grpc.server(ThreadPoolExecutor(4), options=options)
        trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]  # generated
        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]  # generated
        if self._unix_grpc:
            server.add_insecure_port(f"unix:{self._unix_grpc}")
        if self.grpc_port is not None:
            address = f"{self.host}:{self.grpc_port}"
            if self._tls:
                chain, key = (_read(path) for path in self._tls)
                roots = _read(self._client_ca) if self._client_ca else None
                credentials = grpc.ssl_server_credentials([(key, chain)], roots, self._client_ca != "")
                self.grpc_port = server.add_secure_port(address, credentials)
            else:
                self.grpc_port = server.add_insecure_port(address)
        server.start()
        self._grpc = server

    def _start_http(self) -> None:
        server: _HttpServer
        if self._unix_http:
            server = _UnixHttpServer(self._unix_http, _Handler)
        else:
            server = _HttpServer((self.host, self.http_port), _Handler)
        server.receiver = self
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            if self._client_ca:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._client_ca)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        if not self._unix_http:
            self.http_port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._http = server


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    receiver: OtlpReceiver

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for request in list(self._connections):
            with contextlib.suppress(OSError):
                request.shutdown(2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _UnixHttpServer(_HttpServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        raw = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        signal = self.path.rpartition("/")[2]
        step = receiver._next()
        if signal not in REQUESTS:
            self._answer(404, b"no such path", {"content-type": "text/plain"}, step)
            return
        as_json = self.headers.get("content-type") == "application/json"
        message = _from_json(raw, signal) if as_json else REQUESTS[signal].FromString(raw)
        headers = {key.lower(): value for key, value in self.headers.items()}
        headers[":path"] = self.path
        protocol = "http/json" if as_json else "http/protobuf"
        receiver._record(Received(signal, protocol, headers, message, len(body), step.takes, raw))
        if step.delay_s:
            receiver._stopping.wait(step.delay_s)
        if step.hang_up:
            self.close_connection = True
            return
        fields = {"content-type": self.headers["content-type"] or "", **step.headers}
        if step.retry_after:
            fields["retry-after"] = step.retry_after
        response = receiver._response(signal, step)
        if as_json:
            partial = {"rejectedSpans": str(step.rejected), "errorMessage": step.message}
            answer = json.dumps({"partialSuccess": partial} if step.rejected else {}).encode()
        elif step.status != 200:
            answer = _field(2, step.message.encode())
        else:
            answer = response.SerializeToString()
        self._answer(step.status, answer if step.body is None else step.body, fields, step)

    def _answer(self, status: int, body: bytes, fields: dict[str, str], step: Misbehaviour) -> None:
        try:
            self.send_response(status)
            for key, value in fields.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if not step.trickle_s:
                self.wfile.write(body)
                return
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                if self.server.receiver._stopping.wait(step.trickle_s):
                    return
        except OSError:
            self.close_connection = True


def _from_json(raw: bytes, signal: str) -> Any:
    """OTLP/JSON has ids in hexadecimal, where the protobuf library expects base64."""
    import base64

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: base64.b64encode(bytes.fromhex(v)).decode()
                if k in ("traceId", "spanId", "parentSpanId")
                else walk(v)
                for k, v in value.items()
            }
        return [walk(v) for v in value] if isinstance(value, list) else value

    return Parse(json.dumps(walk(json.loads(raw))), REQUESTS[signal]())


def _field(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128
    return bytes([number << 3 | 2, len(payload)]) + payload


def _retry_info(seconds: float) -> bytes:
    """A google.rpc.Status with a google.rpc.RetryInfo, which no installed package defines."""
    from google.protobuf.duration_pb2 import Duration

    delay = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)).SerializeToString()
    any_message = _field(1, b"type.googleapis.com/google.rpc.RetryInfo") + _field(2, _field(1, delay))
    return b"\x08\x08" + _field(3, any_message)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description="Receive OTLP and write it down, one span or metric point a line.")
    parser.add_argument("--jsonl", metavar="FILE", default="-", help="where to write; - for standard output")
    parser.add_argument("--grpc-port", type=int, default=4317)
    parser.add_argument("--http-port", type=int, default=4318)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        sink = sys.stdout if arguments.jsonl == "-" else stack.enter_context(open(arguments.jsonl, "a"))
        receiver = OtlpReceiver(grpc_port=arguments.grpc_port, http_port=arguments.http_port, sink=sink)
        stack.enter_context(receiver)
        print(f"gRPC on {receiver.grpc_port}, HTTP on {receiver.http_port}", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
