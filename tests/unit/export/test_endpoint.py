"""Endpoint rules of the OTLP exporter specification."""

from __future__ import annotations

import pytest

from onlooker.errors import ConfigError
from onlooker.export.endpoint import Connection, Endpoint, Protocol, Signal, check_headers, resolve_endpoint


def resolve(**changes: str) -> Endpoint:
    found = resolve_endpoint(Signal.TRACES, **changes)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"common": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"common": "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({"common": "http://c:4318/otlp"}, "http://c:4318/otlp/v1/traces"),
        ({"common": "https://c/otlp/"}, "https://c:443/otlp/v1/traces"),
        ({"common": "http://c"}, "http://c:80/v1/traces"),
        ({"specific": "http://c:4318/v1/traces"}, "http://c:4318/v1/traces"),
        ({"specific": "http://c:4318/my/path/"}, "http://c:4318/my/path/"),
        ({"specific": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"specific": "http://c:4318/"}, "http://c:4318/"),
        ({"specific": "http://c:4318/in?tenant=1"}, "http://c:4318/in?tenant=1"),
        ({"specific": "http://a:1/x", "common": "http://b:2"}, "http://a:1/x"),
        ({"common": "http://[::1]:4318"}, "http://[::1]:4318/v1/traces"),
        ({"common": "http://c:4317"}, "http://c:4317"),
        ({"common": "http://c:14317"}, "http://c:14317"),
        ({"common": "http://c:4318", "protocol": "grpc"}, "http://c:4318"),
        ({"common": "http://c", "protocol": "grpc"}, "http://c:4317"),
        ({"common": "https://c", "protocol": "grpc"}, "https://c:443"),
        ({"common": "unix:///run/c.sock"}, "unix:/run/c.sock"),
        ({"common": "unix:/run/c.sock"}, "unix:/run/c.sock"),
        ({"protocol": "debug"}, "debug"),
    ],
)
def test_where_it_goes(given: dict[str, str], expected: str) -> None:
    assert str(resolve(**given)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"common": "http://c:4317"}, Protocol.GRPC),
        ({"common": "http://c:34317"}, Protocol.GRPC),
        ({"common": "http://c:4318"}, Protocol.HTTP_PROTOBUF),
        ({"common": "http://c:9999"}, Protocol.HTTP_PROTOBUF),
        ({"common": "http://c"}, Protocol.HTTP_PROTOBUF),
        ({"common": "http://c:4317", "protocol": "http/protobuf"}, Protocol.HTTP_PROTOBUF),
        ({"common": "http://c:4317", "protocol": "http/json"}, Protocol.HTTP_JSON),
        ({"common": "unix:///run/c.sock", "protocol": "grpc"}, Protocol.GRPC),
    ],
)
def test_the_protocol_is_guessed_by_the_port(given: dict[str, str], expected: Protocol) -> None:
    assert resolve(**given).protocol is expected


def test_metrics_have_their_own_path() -> None:
    found = resolve_endpoint(Signal.METRICS, common="http://c:4318")
    assert str(found) == "http://c:4318/v1/metrics"


def test_no_endpoint_means_no_exporter() -> None:
    assert resolve_endpoint(Signal.TRACES) is None
    assert resolve_endpoint(Signal.TRACES, protocol="grpc") is None


@pytest.mark.parametrize(
    "text",
    [
        "c:4317",
        "ftp://c",
        "http://",
        "http://c:99999",
        "http://c:x",
        "http://[::1",
        "unix:relative",
        "http://u:p@c",
        "://",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ConfigError):
        resolve(common=text)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as failed:
        resolve(common="http://user:geheim@c")
    assert "geheim" not in str(failed.value)


def test_an_unknown_protocol_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="http/protobuf, http/json"):
        resolve(common="http://c", protocol="thrift")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://c:4318", True),
        ("https://10.0.0.1", True),
        ("http://localhost:4318", False),
        ("http://127.0.0.5:4317", False),
        ("http://[::1]:4318", False),
        ("unix:///run/c.sock", False),
    ],
)
def test_compression_left_open_is_gzip_but_not_to_this_machine(url: str, expected: bool) -> None:
    endpoint = resolve(common=url)
    assert Connection(endpoint, compression="").gzip is expected
    assert Connection(endpoint, compression="gzip").gzip
    assert not Connection(endpoint, compression="none").gzip


def test_headers() -> None:
    check_headers({"Authorization": "Basic eDp5=", "x-empty": ""})


@pytest.mark.parametrize("header", [("", "x"), ("a b", "1"), ("a", "\r\nx: y"), ("a", "\u00e9"), ("a\n", "1")])
def test_what_is_no_header(header: tuple[str, str]) -> None:
    with pytest.raises(ConfigError):
        check_headers(dict([header]))


def test_a_bad_header_does_not_show_its_value() -> None:
    with pytest.raises(ConfigError) as failed:
        check_headers({"authorization": "geheim\n"})
    assert "geheim" not in str(failed.value)
