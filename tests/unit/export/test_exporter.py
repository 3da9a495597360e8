"""Exporters against a real receiver that misbehaves: what is put is sent or counted as lost, and memory is bounded."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onlooker.batches import Values
from onlooker.errors import ConfigError, ExportError
from onlooker.export.endpoint import Connection, Endpoint, Protocol, Signal, Tls, resolve_endpoint
from onlooker.export.exporter import ExporterStats, Limits, SpanExporter, make_transport
from onlooker.export.otlp_traces import SpanEncoder
from onlooker.export.queue import Chunk
from onlooker.export.retry import RetryPolicy
from onlooker.export.transport import MAX_MESSAGE_CHARACTERS
from support.otlp_receiver import Misbehaviour, OtlpReceiver
from support.span_batches import a_batch, a_service, a_table

QUICK = RetryPolicy(initial_interval_s=0.05, max_interval_s=0.2, max_elapsed_s=20.0)
EAGER = Limits(batch_age_s=0.0)
NETWORK = ["grpc", "http/protobuf", "http/json"]


def chunks(spans: int = 3, path: bytes = b"/cart") -> list[Chunk]:
    batch = a_batch(spans, varying={"url.path": [path] * spans})
    return SpanEncoder(version="1").encode(batch, a_table(), {1: a_service(1)}, Values())


def endpoint_of(receiver: OtlpReceiver, protocol: str) -> Endpoint:
    endpoint = resolve_endpoint(Signal.TRACES, common=receiver.endpoint(protocol), protocol=protocol)
    assert endpoint is not None
    return endpoint


def connection_to(receiver: OtlpReceiver, protocol: str, **changes: object) -> Connection:
    return Connection(endpoint_of(receiver, protocol), **{"timeout_s": 5.0, **changes})  # type: ignore[arg-type]


def an_exporter(
    connection: Connection, *, retry: RetryPolicy = QUICK, limits: Limits = EAGER, started: bool = True
) -> SpanExporter:
    exporter = SpanExporter("traces", make_transport(connection, version="1.0"), limits=limits, retry=retry)
    if started:
        exporter.start()
    return exporter


def balanced(stats: ExporterStats) -> bool:
    return stats.put == stats.sent + sum(stats.dropped.values()) + stats.queued + stats.in_flight


def wait_until(claim: object, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():  # type: ignore[operator]  # a callable
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(server: OtlpReceiver) -> OtlpReceiver:
    """The same servers for all tests, with an empty memory."""
    server.requests.clear()
    server._script.clear()
    server.always(None)
    return server


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", NETWORK)
def test_spans_arrive(receiver: OtlpReceiver, protocol: str, compression: str) -> None:
    exporter = an_exporter(connection_to(receiver, protocol, headers={"x-scope": "team a"}, compression=compression))
    exporter.put(chunks(3))
    assert exporter.drain(10)
    exporter.stop()
    spans = receiver.spans()
    assert [s["span_id"][-2:] for s in spans] == ["01", "02", "03"]
    assert spans[0]["attributes"] == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.path": "/cart",
    }
    assert spans[0]["trace_id"] == "a0" + "00" * 11 + "00000001"
    assert (receiver.requests[0].protocol, receiver.requests[0].headers["x-scope"]) == (protocol, "team a")
    assert "onlooker/1.0" in receiver.requests[0].headers["user-agent"]
    stats = exporter.stats()
    assert (stats.put, stats.sent, stats.requests, stats.failures) == (3, 3, 1, 0)
    assert stats.last_success_unix_ns > 0
    assert balanced(stats)


def test_gzip_really_compresses(receiver: OtlpReceiver) -> None:
    exporter = an_exporter(connection_to(receiver, "http/protobuf", compression="gzip"))
    exporter.put(chunks(100))
    assert exporter.drain(10)
    exporter.stop()
    assert receiver.requests[0].headers["content-encoding"] == "gzip"
    assert receiver.requests[0].size < len(receiver.requests[0].raw) / 3


def test_json_follows_otlp(receiver: OtlpReceiver) -> None:
    exporter = an_exporter(connection_to(receiver, "http/json"))
    exporter.put(chunks(1))
    assert exporter.drain(10)
    exporter.stop()
    text = receiver.requests[0].raw.decode()
    assert '"traceId":"a0000000000000000000000000000001"' in text
    assert '"kind":2' in text
    assert '"intValue":"200"' in text
    assert '"startTimeUnixNano":"1700000000000000001"' in text
    assert "trace_id" not in text


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_http_errors_that_pass_are_retried(receiver: OtlpReceiver, status: int) -> None:
    receiver.script(Misbehaviour(status=status, message="later"), Misbehaviour(status=status))
    exporter = an_exporter(connection_to(receiver, "http/protobuf"))
    exporter.put(chunks(2))
    receiver.wait_for(3)
    assert exporter.drain(10)
    exporter.stop()
    stats = exporter.stats()
    assert (stats.sent, stats.failures, stats.retries) == (2, 2, 2)
    assert len(receiver.spans()) == 2
    assert str(status) in stats.last_error


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 500, 501])
def test_http_errors_that_stay_are_not(receiver: OtlpReceiver, status: int) -> None:
    receiver.script(Misbehaviour(status=status, message="no way", headers={"location": receiver.endpoint() + "/x"}))
    exporter = an_exporter(connection_to(receiver, "http/protobuf"))
    exporter.put(chunks(2))
    assert exporter.drain(10)
    exporter.put(chunks(1))  # the next one goes through
    assert exporter.drain(10)
    exporter.stop()
    stats = exporter.stats()
    assert (stats.sent, stats.dropped["permanent"], stats.retries) == (1, 2, 0)
    assert len(receiver.requests) == 2  # a redirect was not followed
    assert balanced(stats)


@pytest.mark.parametrize(
    "code", ["CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"]
)
def test_grpc_errors_that_pass_are_retried(receiver: OtlpReceiver, code: str) -> None:
    receiver.script(Misbehaviour(code=code, message="later"))
    exporter = an_exporter(connection_to(receiver, "grpc"))
    exporter.put(chunks(2))
    assert receiver.wait_for(2) is None
    assert exporter.drain(10)
    exporter.stop()
    stats = exporter.stats()
    assert (stats.sent, stats.retries) == (2, 1)
    assert code in stats.last_error


@pytest.mark.parametrize(
    "code",
    ["INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INTERNAL", "RESOURCE_EXHAUSTED"],
)
def test_grpc_errors_that_stay_are_not(receiver: OtlpReceiver, code: str) -> None:
    receiver.script(Misbehaviour(code=code))
    exporter = an_exporter(connection_to(receiver, "grpc"))
    exporter.put(chunks(2))
    assert exporter.drain(10)
    exporter.stop()
    assert exporter.stats().dropped["permanent"] == 2
    assert len(receiver.requests) == 1


def test_grpc_exhausted_with_retry_info_is_retried_after_that_time(receiver: OtlpReceiver) -> None:
    receiver.script(Misbehaviour(code="RESOURCE_EXHAUSTED", retry_info_s=0.6))
    exporter = an_exporter(connection_to(receiver, "grpc"))
    began = time.monotonic()
    exporter.put(chunks(2))
    receiver.wait_for(2)
    assert time.monotonic() - began >= 0.6
    assert exporter.drain(10)
    exporter.stop()
    assert exporter.stats().sent == 2


def test_retry_after_is_obeyed(receiver: OtlpReceiver) -> None:
    receiver.script(Misbehaviour(status=429, retry_after="1"))
    exporter = an_exporter(connection_to(receiver, "http/protobuf"))
    began = time.monotonic()
    exporter.put(chunks(1))
    receiver.wait_for(2)
    assert time.monotonic() - began >= 1.0
    exporter.stop()


@pytest.mark.parametrize("protocol", NETWORK)
def test_a_partial_success_is_counted_and_said_once(
    receiver: OtlpReceiver, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.always(Misbehaviour(rejected=2, message="too\nlong"))
    exporter = an_exporter(connection_to(receiver, protocol))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            exporter.put(chunks(5))
            assert exporter.drain(10)
    exporter.stop()
    stats = exporter.stats()
    assert (stats.sent, stats.dropped["rejected"], stats.retries) == (9, 6, 0)
    assert len([r for r in caplog.records if "rejected 2 of 5" in r.message]) == 1
    assert "too long" in stats.last_error


@pytest.mark.parametrize(
    "step",
    [
        Misbehaviour(body=b"\xff" * 1000),
        Misbehaviour(body=b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        Misbehaviour(body=b"x" * 10_000_000),
        Misbehaviour(body=b"{" * 1000, headers={"content-type": "application/json"}),
        Misbehaviour(body=b'{"partialSuccess": [1]}', headers={"content-type": "application/json"}),
        Misbehaviour(body=b"\x00" * 10, headers={"content-encoding": "gzip"}),
    ],
    ids=["garbage", "bad lengths", "10 MB", "bad json", "other json", "false gzip"],
)
def test_a_strange_answer_to_a_taken_request_is_harmless(receiver: OtlpReceiver, step: Misbehaviour) -> None:
    receiver.script(step)
    exporter = an_exporter(connection_to(receiver, "http/protobuf"))
    exporter.put(chunks(2))
    assert exporter.drain(10)
    exporter.put(chunks(2))
    assert exporter.drain(10)
    exporter.stop()
    assert exporter.stats().sent == 4


def test_a_huge_error_body_is_harmless(receiver: OtlpReceiver) -> None:
    receiver.script(Misbehaviour(status=400, body=b"<html>\x1b[31m" + b"e" * 10_000_000))
    exporter = an_exporter(connection_to(receiver, "http/protobuf"))
    exporter.put(chunks(2))
    assert exporter.drain(10)
    exporter.stop()
    stats = exporter.stats()
    assert stats.dropped["permanent"] == 2
    assert len(stats.last_error) < 2 * MAX_MESSAGE_CHARACTERS
    assert "\x1b" not in stats.last_error


def test_a_trickling_answer_is_cut_by_the_timeout(receiver: OtlpReceiver) -> None:
    receiver.script(Misbehaviour(body=b"t" * 1000, trickle_s=0.1))
    exporter = an_exporter(connection_to(receiver, "http/protobuf", timeout_s=0.5))
    exporter.put(chunks(2))
    assert exporter.drain(10)
    exporter.stop()
    assert exporter.stats().sent == 2  # the status had come


def test_a_connection_that_ends_without_an_answer_is_retried(receiver: OtlpReceiver) -> None:
    receiver.script(Misbehaviour(hang_up=True))
    exporter = an_exporter(connection_to(receiver, "http/protobuf"))
    exporter.put(chunks(2))
    receiver.wait_for(2)
    assert exporter.drain(10)
    exporter.stop()
    assert exporter.stats().sent == 2


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_slow_receiver_costs_spans_but_neither_memory_nor_time(receiver: OtlpReceiver, protocol: str) -> None:
    receiver.always(Misbehaviour(delay_s=30))
    size = len(chunks(100)[0].data)
    limits = Limits(queue_items=1000, queue_bytes=8 * size, batch_items=100, batch_age_s=0.0)
    exporter = an_exporter(connection_to(receiver, protocol, timeout_s=60.0), limits=limits)
    exporter.put(chunks(100))
    receiver.wait_for(1)
    for _ in range(100):
        exporter.put(chunks(100))
        stats = exporter.stats()
        assert stats.queued_bytes <= 8 * size
        assert balanced(stats)
    stats = exporter.stats()
    assert (stats.in_flight, stats.queued, stats.dropped["queue_full"]) == (100, 800, 9200)
    assert not exporter.drain(0.1)
    receiver.always(None)
    exporter.stop(0.1)
    stats = exporter.stats()
    assert stats.dropped["shutdown"] >= 800
    assert balanced(stats)
    receiver._stopping.set()  # ends the delay
    receiver._stopping.clear()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_dead_receiver_that_comes_back(protocol: str) -> None:
    with OtlpReceiver() as receiver:
        exporter = an_exporter(connection_to(receiver, protocol))
        exporter.put(chunks(1))
        assert exporter.drain(10)
        receiver.refuse()
        exporter.put(chunks(2))
        wait_until(lambda: exporter.stats().retries >= 1)
        exporter.put(chunks(3))
        assert exporter.stats().sent == 1
        receiver.listen()
        wait_until(lambda: exporter.stats().sent == 6)
        exporter.stop()
        assert len(receiver.spans()) == 6
        assert exporter.stats().dropped == dict.fromkeys(exporter.stats().dropped, 0)


def test_what_cannot_be_sent_for_too_long_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpReceiver(grpc_port=None) as receiver:
        connection = connection_to(receiver, "http/protobuf")
    policy = RetryPolicy(initial_interval_s=0.02, max_interval_s=0.05, max_elapsed_s=0.2)
    with caplog.at_level(logging.WARNING):
        exporter = an_exporter(connection, retry=policy)
        exporter.put(chunks(4))
        wait_until(lambda: exporter.stats().dropped["retries_exhausted"] == 4)
    exporter.stop()
    stats = exporter.stats()
    assert stats.retries >= 2
    assert balanced(stats)
    assert len(caplog.records) == 1  # not one for each attempt


def test_the_end_of_the_agent_is_not_held_up_and_loses_nothing_uncounted() -> None:
    with OtlpReceiver(grpc_port=None) as receiver:
        connection = connection_to(receiver, "http/protobuf")
    exporter = an_exporter(connection, retry=RetryPolicy())
    exporter.put(chunks(4))
    exporter.put(chunks(5))
    began = time.monotonic()
    exporter.stop(0.3)
    assert time.monotonic() - began < 5
    exporter.put(chunks(6))
    wait_until(lambda: exporter.stats().in_flight == 0)
    assert exporter.stats().dropped["shutdown"] == 15


def test_chunks_of_many_batches_join_into_one_request(receiver: OtlpReceiver) -> None:
    limits = Limits(batch_items=10, batch_age_s=30.0)
    exporter = an_exporter(connection_to(receiver, "http/protobuf"), limits=limits, started=False)
    for _ in range(6):
        exporter.put(chunks(3))
    exporter.start()
    assert exporter.drain(10)
    exporter.stop()
    assert [sum(1 for _ in r.message.resource_spans) for r in receiver.requests] == [3, 3]
    assert len(receiver.spans()) == 18


def test_a_timeout_is_retried(receiver: OtlpReceiver) -> None:
    for protocol in ("grpc", "http/protobuf"):
        receiver.script(Misbehaviour(delay_s=3))
        exporter = an_exporter(connection_to(receiver, protocol, timeout_s=0.3))
        exporter.put(chunks(1))
        wait_until(lambda exporter=exporter: exporter.stats().sent == 1)
        exporter.stop()
        assert exporter.stats().retries >= 1


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_unix_socket(tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "collector.sock"
    unix = {"unix_grpc" if protocol == "grpc" else "unix_http": str(path)}
    with OtlpReceiver(grpc_port=None, http_port=None, **unix) as receiver:  # type: ignore[arg-type]  # one name
        endpoint = resolve_endpoint(Signal.TRACES, specific=f"unix://{path}", protocol=protocol)
        assert endpoint is not None
        exporter = an_exporter(Connection(endpoint))
        exporter.put(chunks(2))
        assert exporter.drain(10)
        exporter.stop()
        assert len(receiver.spans()) == 2


@pytest.mark.parametrize("protocol", NETWORK)
def test_whatever_the_receiver_does_every_span_is_sent_or_counted(receiver: OtlpReceiver, protocol: str) -> None:
    chance = random.Random(protocol)
    over_http = [Misbehaviour(status=503), Misbehaviour(status=400), Misbehaviour(hang_up=True)]
    over_grpc = [Misbehaviour(code="UNAVAILABLE"), Misbehaviour(code="INTERNAL"), Misbehaviour(code="ABORTED")]
    bad = [*(over_grpc if protocol == "grpc" else over_http), Misbehaviour(rejected=1, message="no")]
    receiver.script(*(chance.choice([*bad, Misbehaviour(), Misbehaviour(delay_s=0.02)]) for _ in range(60)))
    limits = Limits(queue_items=60, batch_items=20, batch_age_s=0.0)
    policy = RetryPolicy(initial_interval_s=0.001, max_interval_s=0.004, max_elapsed_s=0.02)
    exporter = an_exporter(connection_to(receiver, protocol), limits=limits, retry=policy)
    put = 0
    for _ in range(120):
        count = chance.randint(1, 15)
        exporter.put(chunks(count))
        put += count
        assert balanced(exporter.stats())
        time.sleep(chance.random() * 0.004)
    assert exporter.drain(20)
    exporter.stop()
    stats = exporter.stats()
    assert stats.put == put == stats.sent + sum(stats.dropped.values())
    assert len(receiver.spans()) == stats.sent + stats.dropped["rejected"]
    assert stats.dropped["permanent"] > 0
    assert stats.dropped["rejected"] > 0


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A CA, a server certificate for another name than the address in use, one that fits, and one of a client."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=a CA")
    for name, alternative in (
        ("fits", "IP:127.0.0.1,DNS:localhost"),
        ("other", "DNS:collector.example"),
        ("client", "DNS:agent"),
    ):
        (directory / f"{name}.ext").write_text(f"subjectAltName={alternative}\n")
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=x"
        )
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-extfile", f"{name}.ext",
        )  # fmt: skip
    return {file.name: str(file) for file in directory.iterdir()}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_tls_with_a_ca_and_a_client_certificate(certificates: dict[str, str], protocol: str) -> None:
    tls = Tls(certificates["ca.pem"], certificates["client.pem"], certificates["client.key"])
    with OtlpReceiver(
        tls=(certificates["fits.pem"], certificates["fits.key"]), client_ca=certificates["ca.pem"]
    ) as receiver:
        exporter = an_exporter(connection_to(receiver, protocol, tls=tls))
        exporter.put(chunks(2))
        assert exporter.drain(10), exporter.stats().last_error
        exporter.stop()
        assert len(receiver.spans()) == 2

        without = make_transport(connection_to(receiver, protocol, tls=Tls(certificates["ca.pem"])), version="1")
        with pytest.raises(ExportError):
            without.send(chunks(1)[0].data)
        without.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("certificate", ["fits", "other"])
def test_an_unknown_certificate_is_refused_unless_told_otherwise(
    certificates: dict[str, str], protocol: str, certificate: str
) -> None:
    with OtlpReceiver(tls=(certificates[f"{certificate}.pem"], certificates[f"{certificate}.key"])) as receiver:
        ca = certificates["ca.pem"] if certificate == "other" else ""
        careful = make_transport(connection_to(receiver, protocol, tls=Tls(ca)), version="1")
        with pytest.raises(ExportError) as failed:
            careful.send(chunks(1)[0].data)
        assert failed.value.retryable  # the receiver may get a better certificate
        careful.close()
        careless = make_transport(connection_to(receiver, protocol, tls=Tls(insecure_skip_verify=True)), version="1")
        careless.send(chunks(1)[0].data)
        careless.close()
        assert len(receiver.spans()) == 1


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_tls_file_that_is_missing_is_a_mistake_of_configuration(protocol: str) -> None:
    endpoint = Endpoint(Protocol(protocol), Signal.TRACES, secure=True, host="127.0.0.1", port=1)
    with pytest.raises(ConfigError, match=r"/no/such\.pem"):
        make_transport(Connection(endpoint, tls=Tls(ca_file="/no/such.pem")), version="1")


def test_without_grpcio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ConfigError, match=r"onlooker\[grpc\]"):
        make_transport(Connection(Endpoint(Protocol.GRPC, Signal.TRACES, host="h", port=4317)), version="1")


def test_http_export_imports_neither_grpc_nor_protobuf() -> None:
    code = (
        "import sys; from onlooker.export.exporter import *; from onlooker.export.endpoint import *;"
        "make_transport(Connection(resolve_endpoint(Signal.TRACES, common='http://h:4318')), version='1');"
        "print([m for m in ('grpc', 'google.protobuf', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )
    assert done.stdout.strip() == "[]"


def test_a_404_at_the_root_says_what_was_probably_meant(receiver: OtlpReceiver) -> None:
    endpoint = resolve_endpoint(Signal.TRACES, specific=receiver.endpoint() + "/")
    assert endpoint is not None
    transport = make_transport(Connection(endpoint), version="1")
    with pytest.raises(ExportError, match="/v1/traces meant"):
        transport.send(b"")
    transport.close()


def test_requests_are_the_bytes_of_the_encoder(receiver: OtlpReceiver) -> None:
    made = chunks(2)
    transport = make_transport(connection_to(receiver, "http/protobuf"), version="1")
    transport.send(made[0].data)
    transport.close()
    assert receiver.requests[0].raw == made[0].data
