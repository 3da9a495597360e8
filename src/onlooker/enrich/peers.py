"""Who is at the other end: receives identified rows, hands on ``service.peer.name`` where a watched service is.

Nobody is asked and no name is looked up.  The two ends of a connection on this host are both seen here, so the requests
themselves tell which service answers at an address and which one calls from a port.  Two services that seem to answer
at one address (loopback addresses of two network namespaces) make it nobody's: no peer is better than a wrong one.
What was learned is forgotten once a minute, so that an address may pass on to another service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I4, U8, RequestBatch, Service, SpanKind, Values
from onlooker.columns import AddressHasher, HashCache, distinct_in_order
from onlooker.enrich.unix_peers import UnixPeers

_AMBIGUOUS: Final = 0
"""In the table of listeners; service ids begin at 1."""

_FORGET_NS: Final = 60_000_000_000
_OWN_ADDRESSES: Final = 256
"""Addresses at which services of this host answer, kept as text."""


class Peers:
    """Names peers and fills addresses that the request itself did not give.

    Adds the columns ``service.peer.name`` and ``service.peer.namespace`` to ``dims`` if the batch lacks them.

    Args:
        cache_len: Addresses that are remembered (``name_resolver.cache_len``, rounded up to a power of two).
    """

    def __init__(self, values: Values, *, rng: np.random.Generator, cache_len: int = 8192) -> None:
        self._values = values
        self._hash = AddressHasher(rng)
        self._listeners = HashCache(cache_len)
        self._callers = HashCache(cache_len)
        self._addresses = HashCache(cache_len)
        self._unix: UnixPeers | None = None
        self._ids: NDArray[np.int32] = np.array([-1], np.int32)
        self._names: NDArray[np.int32] = np.zeros((2, 1), np.int32)
        self._learned_unix_ns = 0
        self._callers_known = False
        self._last_listener: tuple[bytes, int, int] | None = None
        self._address_ids: dict[bytes, int] = {}
        self._named: Mapping[int, Service] | None = None

    def apply(self, batch: RequestBatch, services: Mapping[int, Service]) -> RequestBatch:
        """Fill the columns in place and give the batch back.

        Args:
            batch: ``service`` is set.
            services: `Identities.services`; a new mapping whenever one was added.
        """
        if not len(batch):
            return batch
        self._rename(services)
        if not self._callers_known and self._serves_at_one_address(batch):
            return batch
        peer = self._peers(batch)
        rank = self._rank(peer)
        names, namespaces = self._names[0].take(rank), self._names[1].take(rank)
        at = _column(batch, semconv.SERVICE_PEER_NAME)
        if at is None:
            batch.dims = np.concatenate([batch.dims, names[:, None], namespaces[:, None]], axis=1)
            batch.dim_names = (*batch.dim_names, semconv.SERVICE_PEER_NAME, semconv.SERVICE_PEER_NAMESPACE)
        else:
            batch.dims[:, at] = np.where(batch.dims[:, at] == 0, names, batch.dims[:, at])
            if (at := _column(batch, semconv.SERVICE_PEER_NAMESPACE)) is not None:
                batch.dims[:, at] = np.where(batch.dims[:, at] == 0, namespaces, batch.dims[:, at])
        self._fill_server_address(batch)
        return batch

    def _serves_at_one_address(self, batch: RequestBatch) -> bool:
        """Take the short way where all rows are one service's, served at one address, and no caller is known.

        A lone service is the most common case there is, and numpy's price of a call is paid per batch, not per row.

        Returns:
            False, and nothing is done, if they are not.
        """
        if _column(batch, semconv.SERVICE_PEER_NAME) is not None:
            return False
        service, port = int(batch.service[0]), int(batch.local_port[0])
        words = np.ascontiguousarray(batch.local_address).view(np.uint64)
        same = (batch.kind == SpanKind.SERVER) & (batch.service == service) & (batch.local_port == port)
        if not port or not same.all() or (words != words[0]).any():
            return False
        self._forget(batch)
        address = words[0].tobytes()
        if self._last_listener != (address, port, service):
            self._learn(
                self._listeners,
                self._hash(batch.local_address[:1], batch.local_port[:1]),
                batch.service[:1],
                sticky=True,
            )
            self._last_listener = (address, port, service)
        dims = np.zeros((len(batch), batch.dims.shape[1] + 2), np.int32)
        dims[:, :-2] = batch.dims
        batch.dims = dims
        batch.dim_names = (*batch.dim_names, semconv.SERVICE_PEER_NAME, semconv.SERVICE_PEER_NAMESPACE)
        at, port_at = _column(batch, semconv.SERVER_ADDRESS), _column(batch, semconv.SERVER_PORT)
        if at is None or dims[:, at].any() or (port_at is not None and not dims[:, port_at].all()):
            self._fill_server_address(batch)
        else:
            dims[:, at] = self._address_id(address)
        return True

    def _address_id(self, address: bytes) -> int:
        found = self._address_ids.get(address)
        if found is None:
            if len(self._address_ids) >= _OWN_ADDRESSES:
                self._address_ids.clear()
            found = self._address_ids[address] = self._values.id(_text(address))
        return found

    def _forget(self, batch: RequestBatch) -> None:
        now = int(batch.end_unix_ns.max())
        if now - self._learned_unix_ns > _FORGET_NS:
            self._learned_unix_ns = now
            self._listeners.clear()
            self._last_listener = None

    def _rank(self, services: NDArray[np.int32]) -> NDArray[np.intp]:
        """Columns of the table of names; 0, which has none, for services that are not known (any more)."""
        at = np.minimum(np.searchsorted(self._ids, services), self._ids.size - 1)
        return np.where(self._ids[at] == services, at, 0)

    def _peers(self, batch: RequestBatch) -> NDArray[np.int32]:
        """The service at the other end of each row, -1 where it is not known."""
        local = self._hash(batch.local_address, batch.local_port)
        server = (batch.kind == SpanKind.SERVER) | (batch.kind == SpanKind.CONSUMER)
        routed = batch.local_port != 0  # UNIX sockets have neither address nor port
        peer = np.full(len(batch), -1, np.int32)
        self._forget(batch)
        # First learn from both sides, then ask: the two rows of one request mostly arrive in one batch.
        server_rows, client_rows = np.flatnonzero(server & routed), np.flatnonzero(~server & routed)
        if server_rows.size:
            self._learn(self._listeners, local[server_rows], batch.service[server_rows], sticky=True)
            self._last_listener = None
        self._callers_known |= bool(client_rows.size)
        if not routed.all():
            self._unix = self._unix or UnixPeers()
            self._unix.fill(batch, np.flatnonzero(~routed), server, peer)
        if not self._callers_known:
            return peer
        remote = self._hash(batch.remote_address, batch.remote_port)
        if client_rows.size:
            self._learn(self._callers, local[client_rows], batch.service[client_rows], sticky=False)
            found = self._listeners.lookup(remote[client_rows])
            peer[client_rows] = np.where(found == _AMBIGUOUS, -1, found)
        if server_rows.size:
            peer[server_rows] = self._callers.lookup(remote[server_rows])
        return peer

    def _learn(self, table: HashCache, keys: U8, services: I4, *, sticky: bool) -> None:
        known = table.lookup(keys)
        news = np.flatnonzero((known != services) & (known != _AMBIGUOUS))
        if not news.size:
            return
        keys, services, known = keys[news], services[news], known[news]
        if sticky:
            # Several instances of one service may share an address: names decide.
            conflict = (known > _AMBIGUOUS) & (
                self._names[0][self._rank(known)] != self._names[0][self._rank(services)]
            )
            services = np.where(conflict, np.int32(_AMBIGUOUS), services)
            order = np.argsort(keys, kind="stable")
            keys, services = keys[order], services[order]
            name = self._names[0][self._rank(services)]
            differ = np.flatnonzero((keys[1:] == keys[:-1]) & (name[1:] != name[:-1]))
            if differ.size:  # both within this batch
                services[np.isin(keys, keys[differ])] = _AMBIGUOUS
        table.insert(keys, services)

    def _rename(self, services: Mapping[int, Service]) -> None:
        if services is self._named:
            return
        self._named = services
        known = sorted(services.values(), key=lambda service: service.id)
        self._ids = np.array([-1, *(service.id for service in known)], np.int32)
        self._names = np.array(
            [
                (0, *(self._values.id(service.name) for service in known)),
                (0, *(self._values.id(service.namespace or None) for service in known)),
            ],
            np.int32,
        )

    def _fill_server_address(self, batch: RequestBatch) -> None:
        """``server.address`` of rows without one: the address of the side that serves; the port likewise."""
        at = _column(batch, semconv.SERVER_ADDRESS)
        if at is None:
            return
        rows = np.flatnonzero((batch.dims[:, at] == 0) & (batch.local_port != 0))
        if not rows.size:
            return
        server = (batch.kind[rows] == SpanKind.SERVER)[:, None]
        address = np.where(server, batch.local_address[rows], batch.remote_address[rows])
        keys = self._hash(address)
        ids = self._addresses.lookup(keys)
        missing = np.flatnonzero(ids < 0)
        if missing.size:
            distinct, first, inverse = distinct_in_order(keys[missing])
            made = np.array([self._values.id(_text(address[row].tobytes())) for row in missing[first]], np.int32)
            self._addresses.insert(distinct, made)
            ids[missing] = made[inverse]
        batch.dims[rows, at] = ids
        port_at = _column(batch, semconv.SERVER_PORT)
        if port_at is None:
            return
        ports = np.where(server[:, 0], batch.local_port[rows], batch.remote_port[rows])
        numbers, inverse = np.unique(ports, return_inverse=True)
        port_ids = np.array([self._values.id(int(port)) for port in numbers], np.int32)[inverse]
        batch.dims[rows, port_at] = np.where(batch.dims[rows, port_at] == 0, port_ids, batch.dims[rows, port_at])


def _column(batch: RequestBatch, name: str) -> int | None:
    return batch.dim_names.index(name) if name in batch.dim_names else None


def _text(address: bytes) -> str:
    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)
