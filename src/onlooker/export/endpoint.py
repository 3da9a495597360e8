"""Where OTLP goes: the endpoint rules of the specification, headers and TLS.

Source: OpenTelemetry specification, "OpenTelemetry Protocol Exporter".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from urllib.parse import urlsplit

from onlooker.errors import ConfigError


class Protocol(Enum):
    """How requests travel."""

    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"
    HTTP_JSON = "http/json"
    DEBUG = "debug"  # to a stream of the agent, as JSON


class Signal(Enum):
    """What is exported; the value is the last part of the HTTP path."""

    TRACES = "traces"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS as a client.

    Attributes:
        ca_file: PEM bundle to trust instead of the system's.
        certificate_file, key_file: PEM, to show to the server.
        insecure_skip_verify: Take any certificate.
    """

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One receiver.

    Attributes:
        secure: Whether TLS is spoken.
        host: Empty with ``unix_path``.
        path: Of the HTTP URL; not for gRPC.
        unix_path: Socket to connect to instead of host and port.
    """

    protocol: Protocol
    signal: Signal
    secure: bool = False
    host: str = ""
    port: int = 0
    path: str = ""
    unix_path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the receiver is on this machine, as far as the name tells."""
        if self.unix_path or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.protocol is Protocol.DEBUG:
            return "debug"
        if self.unix_path:
            return f"unix:{self.unix_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Connection:
    """All that a transport needs to know.

    Attributes:
        headers: Sent with every request.
        timeout_s: Of one request, from connecting to the answer.
        compression: "none", "gzip", or empty: gzip, but none to this machine, where it would only cost.
    """

    endpoint: Endpoint
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    compression: str = "none"
    tls: Tls = Tls()

    @property
    def gzip(self) -> bool:
        """Whether requests are compressed."""
        return self.compression == "gzip" or (not self.compression and not self.endpoint.is_local)


def resolve_endpoint(signal: Signal, *, specific: str = "", common: str = "", protocol: str = "") -> Endpoint | None:
    """The endpoint of a signal, or None if none is set.

    Args:
        signal: What will be sent there.
        specific: Endpoint of this signal alone; its path is used as it is.  Where it has none, not even ``/``, that of
            the signal is appended: the specification would post to ``/``, which no receiver serves.
        common: Endpoint of all signals; ``/v1/traces`` or ``/v1/metrics`` is appended.
        protocol: One of `Protocol`'s values; empty: gRPC for a port that ends in 4317, else HTTP with protobuf.

    Raises:
        ConfigError: The endpoint is no URL, or the protocol is unknown.
    """
    text = (specific or common).strip()
    chosen = _protocol(protocol)
    if chosen is Protocol.DEBUG:
        return Endpoint(Protocol.DEBUG, signal)
    if not text:
        return None
    if text.startswith("unix:"):
        path = re.sub("^//+", "/", text.removeprefix("unix:"))
        if not path.startswith("/"):
            raise ConfigError(f"endpoint {text} needs an absolute path: unix:///run/collector.sock")
        return Endpoint(chosen or Protocol.HTTP_PROTOBUF, signal, path=f"/v1/{signal.value}", unix_path=path)
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as err:
        raise ConfigError(f"endpoint {text} is no URL: {err}") from err
    if url.scheme not in ("http", "https") or not host:
        raise ConfigError(f"endpoint {text} needs a scheme and a host: http://localhost:4318 or https://otlp.example")
    if url.username or url.password:
        raise ConfigError(f"endpoint of {host} holds a user name or password: put them into a header")
    if chosen is None:
        chosen = Protocol.GRPC if port is not None and str(port).endswith("4317") else Protocol.HTTP_PROTOBUF
    secure = url.scheme == "https"
    path = ""
    if chosen is not Protocol.GRPC:
        path = url.path if specific and url.path else f"{url.path.rstrip('/')}/v1/{signal.value}"
        if url.query:
            path += f"?{url.query}"
        default_port = 443 if secure else 80
    else:
        default_port = 443 if secure else 4317
    return Endpoint(chosen, signal, secure, host, default_port if port is None else port, path)


def _protocol(text: str) -> Protocol | None:
    if not text.strip():
        return None
    try:
        return Protocol(text.strip().lower())
    except ValueError as err:
        known = ", ".join(p.value for p in Protocol)
        raise ConfigError(f"no OTLP protocol is called {text!r}; there are {known}") from err


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse at start what would fail with every request.

    Raises:
        ConfigError: A name or value that no header can have.  The message leaves out the value: it may be a secret.
    """
    for key, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", key):
            raise ConfigError(f"{key!r} is not the name of a header")
        if not re.fullmatch(r"[\x20-\x7e]*", value):
            raise ConfigError(f"the value of header {key} has characters that no header may have")
