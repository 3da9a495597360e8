"""What the gRPC programs in Python share: a client's PORT PLAN CONCURRENCY, what a call asks for, its line of truth."""

import json
import os
import sys
import time

import grpc

PORT = int(sys.argv[1])
SERVICE = "zoo.Zoo"
STATUS = {code.value[0]: code for code in grpc.StatusCode}
CA = os.environ.get("ZOO_TLS_CA", "")


class Call:
    """One line of the plan: N KIND TRACEPARENT STATUS REQUESTS RESPONSES BYTES DELAY_MS DEADLINE_MS CANCEL_MS."""

    def __init__(self, line):
        n, self.kind, traceparent, status, *numbers = line.split()
        self.n = int(n)
        self.requests, responses, size, delay, deadline_ms, cancel_ms = map(int, numbers)
        self.timeout = deadline_ms / 1e3 if deadline_ms else None
        self.cancel_s = cancel_ms / 1e3
        self.metadata = (
            ("traceparent", traceparent), ("zoo-status", status), ("zoo-responses", str(responses)),
            ("zoo-bytes", str(size)), ("zoo-delay-ms", str(delay)),
        )  # fmt: skip
        self.message = b"q" * size
        self.messages = [self.message] * self.requests
        self.start_ns = 0

    def start(self):
        self.start_ns = time.monotonic_ns()

    def truth(self, code, responses):
        return json.dumps(
            {"n": self.n, "status": code.name, "start_ns": self.start_ns, "end_ns": time.monotonic_ns(),
             "responses": responses}
        )  # fmt: skip


def plan():
    with open(sys.argv[2]) as lines:
        return [Call(line) for line in lines]


class Wish:
    """What the metadata of a call asks the server for."""

    def __init__(self, metadata):
        said = dict(metadata)
        self.status = STATUS[int(said.get("zoo-status", 0))]
        self.responses = int(said.get("zoo-responses", 1))
        self.message = b"a" * int(said.get("zoo-bytes", 10))
        self.delay_s = int(said.get("zoo-delay-ms", 0)) / 1e3


def methods(channel):
    """The four kinds of calls, by name; messages are bytes."""
    return {
        "Unary": channel.unary_unary(f"/{SERVICE}/Unary"),
        "Collect": channel.stream_unary(f"/{SERVICE}/Collect"),
        "Listen": channel.unary_stream(f"/{SERVICE}/Listen"),
        "Talk": channel.stream_stream(f"/{SERVICE}/Talk"),
        "Nowhere": channel.unary_unary(f"/{SERVICE}/Nowhere"),
    }


def server_credentials():
    certificate, key = os.environ.get("ZOO_TLS_CERTIFICATE"), os.environ.get("ZOO_TLS_KEY")
    if not certificate:
        return None
    with open(certificate, "rb") as made, open(key, "rb") as secret:
        return grpc.ssl_server_credentials([(secret.read(), made.read())])
