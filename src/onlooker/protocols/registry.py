"""Which protocols there are: number of ``bpf/records.h`` to name, parser, columns and the configuration's word for it.

One line a protocol.  The modules are imported when their first connection is seen, so that a host without SQL Server
does not pay for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from onlooker import semconv
from onlooker.protocols import SegmentParser
from onlooker.protocols._db import SQL_DIMS, STORE_DIMS, Options

__all__ = ["PROTOCOLS", "Options", "ProtocolInfo", "by_name", "dim_names", "make_parser", "name_of"]

_RPC_DIMS: Final = (
    semconv.HTTP_REQUEST_METHOD,
    semconv.HTTP_RESPONSE_STATUS_CODE,
    semconv.HTTP_ROUTE,
    semconv.URL_SCHEME,
    semconv.NETWORK_PROTOCOL_VERSION,
    semconv.RPC_METHOD,
    semconv.RPC_SYSTEM_NAME,
    semconv.RPC_RESPONSE_STATUS_CODE,
    semconv.ERROR_TYPE,
)
_DNS_DIMS: Final = ("onlooker.dns.question.type", semconv.ERROR_TYPE)


@dataclass(frozen=True, slots=True)
class ProtocolInfo:
    """One protocol.

    Attributes:
        number: `enum protocol`.
        name: As `network.protocol.name` and the pages show it.
        factory: ``module:class`` of the parser; "" if there is nothing to parse.
        dims: Attributes that make the series, in this order.
        instrumentation: Its word in the configuration's ``instrumentations`` lists; "" if it has none.
        client_metric, server_metric: Histogram that its operations feed.
    """

    number: int
    name: str
    factory: str
    dims: tuple[str, ...]
    instrumentation: str
    client_metric: str = ""
    server_metric: str = ""


def _database(number: int, name: str, factory: str, dims: tuple[str, ...], instrumentation: str) -> ProtocolInfo:
    return ProtocolInfo(
        number, name, factory, dims, instrumentation,
        semconv.METRIC_DB_CLIENT_OPERATION_DURATION, semconv.METRIC_DB_SERVER_OPERATION_DURATION,
    )  # fmt: skip


PROTOCOLS: Final[dict[int, ProtocolInfo]] = {
    info.number: info
    for info in (
        ProtocolInfo(2, "http2", "onlooker.protocols.http2:Http2", _RPC_DIMS, "grpc"),
        _database(3, "postgres", "onlooker.protocols.postgres:PostgresParser", SQL_DIMS, "sql"),
        _database(4, "mysql", "onlooker.protocols.mysql:MysqlParser", SQL_DIMS, "sql"),
        _database(5, "tds", "onlooker.protocols.tds:TdsParser", SQL_DIMS, "sql"),
        _database(6, "redis", "onlooker.protocols.redis:RedisParser", STORE_DIMS, "redis"),
        _database(7, "memcached", "onlooker.protocols.memcached:MemcachedParser", STORE_DIMS, "memcached"),
        _database(8, "mongodb", "onlooker.protocols.mongodb:MongodbParser", STORE_DIMS, "mongo"),
        ProtocolInfo(
            9, "dns", "onlooker.protocols.dns:DnsParser", _DNS_DIMS, "dns",
            semconv.METRIC_DNS_LOOKUP_DURATION, semconv.METRIC_DNS_LOOKUP_DURATION,
        ),
        ProtocolInfo(10, "tls", "", (), ""),
        ProtocolInfo(11, "unknown", "", (), ""),
    )
}  # fmt: skip

_BY_NAME: Final = {info.name: info for info in PROTOCOLS.values()}
_factories: dict[int, Callable[..., SegmentParser]] = {}


def name_of(number: int) -> str:
    """The name of a protocol number; "unknown" for all others."""
    info = PROTOCOLS.get(number)
    return info.name if info else "unknown"


def by_name(name: str) -> ProtocolInfo:
    """The protocol of that name."""
    return _BY_NAME[name]


def dim_names(protocol: int, role: int) -> tuple[str, ...]:
    """The attributes that make the series of a protocol, in order; the same for client and server so far."""
    info = PROTOCOLS.get(protocol)
    return info.dims if info else ()


def make_parser(protocol: int, role: int, *, options: Options) -> SegmentParser:
    """A parser for one connection.

    Args:
        protocol: `enum protocol` of ``bpf/records.h``.
        role: `enum role` of the watched process.
        options: One object for all connections: it holds the caches that they share.

    Raises:
        KeyError: The protocol has no parser (TLS, unknown).
    """
    factory = _factories.get(protocol)
    if factory is None:
        info = PROTOCOLS[protocol]
        if not info.factory:
            raise KeyError(protocol)
        module, _, name = info.factory.partition(":")
        factory = _factories[protocol] = cast(
            "Callable[..., SegmentParser]", getattr(importlib.import_module(module), name)
        )
    return factory(cache=options.header_cache()) if protocol == 2 else factory(role, options)
