"""What repeats is written once: services, instances, metric keys and span series, each a row with a number.

Only the writer uses it.  Numbers of the running process (series slots) become numbers of the file here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from onlooker import semconv
from onlooker.batches import I8, AttributeValue, Series, Service, SpanKind, StatusCode

_MAX_TEXT: Final = 1024
_KEPT_INSTANCES: Final = 1024
_UNKNOWN: Final = Service(0, "unknown_service", "", "", "generic", ((semconv.SERVICE_NAME, "unknown_service"),))
_SOURCES: Final = (SpanKind.SERVER, SpanKind.CONSUMER)


def text(value: object, limit: int = _MAX_TEXT) -> str:
    """Any value as text that SQLite and JSON take: bounded, and without lone surrogates."""
    return str(value)[:limit].encode("utf-8", "replace").decode("utf-8")


def code_of(attributes: Mapping[str, AttributeValue]) -> str:
    """The status code of whatever protocol it is, "" without one."""
    for name in (
        semconv.HTTP_RESPONSE_STATUS_CODE,
        semconv.RPC_RESPONSE_STATUS_CODE,
        semconv.DB_RESPONSE_STATUS_CODE,
    ):
        if (found := attributes.get(name)) is not None:
            return text(found, 64)
    return ""


def status_of(series: Series) -> str:
    """A class of outcomes, for metrics: ``2xx`` and the like for HTTP, else ``ok`` or ``error``."""
    code = series.attributes.get(semconv.HTTP_RESPONSE_STATUS_CODE)
    if isinstance(code, int) and 100 <= code <= 599:
        return f"{code // 100}xx"
    return "error" if series.status == StatusCode.ERROR else "ok"


def peer_of(series: Series) -> tuple[str, str]:
    """What is at the other end: its type (service, database, queue, dns, external, outside) and its name."""
    attributes = series.attributes
    name = attributes.get(semconv.SERVICE_PEER_NAME)
    if name is not None:
        namespace = attributes.get(semconv.SERVICE_PEER_NAMESPACE)
        return "service", text(f"{namespace}/{name}" if namespace else name)
    if (system := attributes.get(semconv.MESSAGING_SYSTEM)) is not None:
        return "queue", text(f"{system} {attributes.get(semconv.MESSAGING_DESTINATION_NAME, '')}".strip())
    if series.kind in _SOURCES:
        return "outside", ""
    address, port = attributes.get(semconv.SERVER_ADDRESS, ""), attributes.get(semconv.SERVER_PORT)
    host = f"[{address}]" if ":" in str(address) else str(address)
    where = host if port in (None, 0, 80, 443) else f"{host}:{port}"
    if (system := attributes.get(semconv.DB_SYSTEM_NAME)) is not None:
        return "database", text(f"{system} {where}".strip())
    if semconv.DNS_QUESTION_NAME in attributes or series.name.startswith("DNS"):
        return "dns", text(where)
    return "external", text(where or "unknown")


class Catalog:
    """Numbers for slots.

    Attributes:
        series, key, service: By slot; 0 where the slot is not known.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._services: dict[tuple[str, str], int] = {}
        self._instances: dict[tuple[int, str, tuple[tuple[str, AttributeValue], ...]], int] = {}
        self.series: I8 = np.zeros(1024, np.int64)
        self.key: I8 = np.zeros(1024, np.int64)
        self.service: I8 = np.zeros(1024, np.int64)
        self._used: dict[str, set[int]] = {"services": set(), "instances": set(), "keys": set(), "series": set()}

    def add(self, slot: int, series: Series, service: Service | None, now_s: int) -> None:
        """Give a slot its numbers; rows are made where they are missing."""
        if slot >= len(self.series):
            more = np.zeros(max(slot + 1 - len(self.series), len(self.series)), np.int64)
            self.series, self.key, self.service = (
                np.concatenate([column, more]) for column in (self.series, self.key, self.service)
            )
        instance, service_row = self._instance(service or _UNKNOWN, now_s)
        peer_type, peer = peer_of(series)
        key = self._row(
            "keys",
            {
                "service": service_row, "kind": series.kind, "name": text(series.name), "status": status_of(series),
                "peer_type": peer_type, "peer": peer,
            },
            {}, now_s,
        )  # fmt: skip
        attributes = json.dumps(
            {k: text(v) if isinstance(v, str) else v for k, v in series.attributes.items()}, separators=(",", ":")
        )
        row = self._row(
            "series",
            {
                "instance": instance, "kind": series.kind, "protocol": series.protocol, "name": text(series.name),
                "status": series.status, "attributes": attributes,
            },
            {"service": service_row, "key": key, "code": code_of(series.attributes)}, now_s,
        )  # fmt: skip
        self.series[slot], self.key[slot], self.service[slot] = row, key, service_row

    def _instance(self, service: Service, now_s: int) -> tuple[int, int]:
        name = (text(service.namespace), text(service.name))
        row = self._services.get(name)
        if row is None:
            row = self._row(
                "services", {"namespace": name[0], "name": name[1]},
                {"language": text(service.language, 64), "first_s": now_s}, now_s,
            )  # fmt: skip
            self._services[name] = row
        if service.language and service.language != "generic":
            self._db.execute("UPDATE services SET language=? WHERE id=?", (text(service.language, 64), row))
        key = (row, service.instance_id, service.resource)
        found = self._instances.get(key)
        if found is None:
            if len(self._instances) >= _KEPT_INSTANCES:
                self._instances.clear()
            resource = json.dumps([[key, value] for key, value in service.resource], separators=(",", ":"))
            found = self._instances[key] = self._row(
                "instances", {"service": row, "instance": text(service.instance_id), "resource": resource}, {}, now_s
            )
        self._used["services"].add(row)
        self._used["instances"].add(found)
        return found, row

    def _row(self, table: str, same: Mapping[str, Any], more: Mapping[str, Any], now_s: int) -> int:
        """The number of the row with these values, made if it is missing.  Names come from this file only."""
        where = " AND ".join(f"{name}=?" for name in same)
        found = self._db.execute(f"SELECT id FROM {table} WHERE {where}", tuple(same.values())).fetchone()
        if found is None:
            columns = {**same, **more, "last_s": now_s}
            marks = ",".join("?" * len(columns))
            cursor = self._db.execute(
                f"INSERT INTO {table}({','.join(columns)}) VALUES({marks})", tuple(columns.values())
            )
            number = int(cursor.lastrowid or 0)
        else:
            number = int(found[0])
        self._used[table].add(number)
        return number

    def used(self, slots: I8) -> None:
        """Remember that these slots still have traffic."""
        for table, column in (("series", self.series), ("keys", self.key), ("services", self.service)):
            self._used[table].update(np.unique(column[slots]).tolist())

    def write_last(self, now_s: int) -> None:
        """Note when what was used was last used."""
        for table, rows in self._used.items():
            self._db.executemany(f"UPDATE {table} SET last_s=? WHERE id=?", [(now_s, row) for row in rows])
            rows.clear()

    def forget(self) -> None:
        """The tables were emptied under us: look everything up again."""
        self._services.clear()
        self._instances.clear()
