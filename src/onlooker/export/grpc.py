"""OTLP over gRPC.  grpcio is imported with the first transport: it costs about 12 MB and is optional.

Requests are bytes already, so no serializer is given; answers come as bytes too.
"""

from __future__ import annotations

import socket
import ssl
from importlib import import_module
from typing import Any

from onlooker.errors import ConfigError, ExportError
from onlooker.export.endpoint import Connection, Signal
from onlooker.export.tls import client_context
from onlooker.export.transport import MAX_RESPONSE_BYTES, Answer, clean, read_answer, retry_delay_s

METHODS = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
# OTLP specification, "Failures" of OTLP/gRPC; RESOURCE_EXHAUSTED only together with a RetryInfo.
RETRYABLE_CODES = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
_STATUS_DETAILS = "grpc-status-details-bin"


class GrpcTransport:
    """Calls ``Export`` on one kept channel.

    Raises:
        ConfigError: grpcio is not installed, or a TLS file cannot be used.
    """

    def __init__(self, connection: Connection, *, version: str) -> None:
        try:
            self._grpc: Any = import_module("grpc")
        except ImportError as err:
            raise ConfigError(
                "protocol grpc needs the package grpcio: pip install 'onlooker[grpc]', or use protocol http/protobuf"
            ) from err
        endpoint = connection.endpoint
        self._connection = connection
        self._metadata = tuple((key.lower(), value) for key, value in connection.headers.items())
        self._options = [
            ("grpc.primary_user_agent", f"onlooker/{version}"),
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            # The exporter has its own backoff: the channel's must not outlast it.
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.min_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.enable_retries", 0),
        ]
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self._target = f"unix:{endpoint.unix_path}" if endpoint.unix_path else f"{host}:{endpoint.port}"
        tls = connection.tls
        self._roots = _read(tls.ca_file)
        self._chain = _read(tls.certificate_file)
        self._key = _read(tls.key_file) or self._chain  # one PEM file may hold both
        self._channel: Any = None
        self._call: Any = None

    def _open(self) -> None:
        grpc, options = self._grpc, list(self._options)
        compression = grpc.Compression.Gzip if self._connection.gzip else None
        if self._connection.endpoint.secure:
            roots = self._roots
            if self._connection.tls.insecure_skip_verify:
                roots, name = _shown_certificate(self._connection)
                options.append(("grpc.ssl_target_name_override", name))
            credentials = grpc.ssl_channel_credentials(roots or None, self._key or None, self._chain or None)
            self._channel = grpc.secure_channel(self._target, credentials, options, compression)
        else:
            self._channel = grpc.insecure_channel(self._target, options, compression)
        self._call = self._channel.unary_unary(METHODS[self._connection.endpoint.signal])

    def send(self, data: bytes) -> Answer:
        """Call Export with one request; see `Transport`."""
        grpc = self._grpc
        if self._channel is None:
            self._open()
        try:
            answer: bytes = self._call(data, timeout=self._connection.timeout_s, metadata=self._metadata)
        except grpc.RpcError as err:
            code = err.code().name
            details = next((v for k, v in err.trailing_metadata() or () if k == _STATUS_DETAILS), b"")
            delay = retry_delay_s(details[:MAX_RESPONSE_BYTES]) if isinstance(details, bytes) else None
            raise ExportError(
                f"{self._connection.endpoint} answered {code}: {clean(err.details() or '')}",
                retryable=code in RETRYABLE_CODES or (code == "RESOURCE_EXHAUSTED" and delay is not None),
                retry_after_s=delay or 0.0,
            ) from err
        except ValueError as err:  # the channel was closed by `close`
            raise ExportError(f"cannot send to {self._connection.endpoint}: {err}", retryable=True) from err
        return read_answer(answer)

    def close(self) -> None:
        """Close the channel; a call under way is cancelled."""
        if self._channel is not None:
            self._channel.close()


def _read(path: str) -> bytes:
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as err:
        raise ConfigError(f"cannot read {path} for the TLS of the exporter: {err.strerror}") from err


def _shown_certificate(connection: Connection) -> tuple[bytes, str]:
    """The certificate that the server shows now, as PEM, and a name it is made out to.

    gRPC cannot switch verification off.  With ``insecure_skip_verify`` this certificate is trusted, whatever it is.

    Raises:
        ExportError: The server does not speak TLS now.
    """
    endpoint = connection.endpoint
    context = client_context(connection.tls)
    try:
        pem = _handshake(context, connection)[0]
        # Once trusted, Python tells what is in it: of an unverified one it gives only the bytes.
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=pem)
        content = _handshake(context, connection)[1]
    except (OSError, ValueError) as err:
        raise ExportError(f"cannot send to {endpoint}: no TLS there: {clean(str(err))}", retryable=True) from err
    names = [str(pair[1]) for pair in content.get("subjectAltName", ()) if pair[0] == "DNS"]
    names += [str(pair[1]) for group in content.get("subject", ()) for pair in group if pair[0] == "commonName"]
    return pem.encode(), names[0].replace("*", "x", 1) if names else endpoint.host


def _handshake(context: ssl.SSLContext, connection: Connection) -> tuple[str, dict[str, Any]]:
    endpoint = connection.endpoint
    with (
        socket.create_connection((endpoint.host, endpoint.port), connection.timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=endpoint.host) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
        return ssl.DER_cert_to_PEM_cert(der or b""), secure.getpeercert() or {}
