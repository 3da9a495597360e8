"""The file of the store: its tables, how it is opened, and what happens to a file that is no store."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from onlooker.errors import StoreError

log: Final = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x6F6E6C6B
VERSION: Final = 1
_MAGIC: Final = b"SQLite format 3\x00"

MEMORY: Final = ":memory:"

_TABLES: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE services(
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, name TEXT NOT NULL, language TEXT NOT NULL,
    first_s INTEGER NOT NULL, last_s INTEGER NOT NULL, UNIQUE(namespace, name));
CREATE TABLE instances(
    id INTEGER PRIMARY KEY, service INTEGER NOT NULL, instance TEXT NOT NULL, resource TEXT NOT NULL,
    last_s INTEGER NOT NULL, UNIQUE(service, instance, resource));
CREATE TABLE keys(
    id INTEGER PRIMARY KEY, service INTEGER NOT NULL, kind INTEGER NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL, peer_type TEXT NOT NULL, peer TEXT NOT NULL, last_s INTEGER NOT NULL,
    UNIQUE(service, kind, name, status, peer_type, peer));
CREATE TABLE series(
    id INTEGER PRIMARY KEY, instance INTEGER NOT NULL, service INTEGER NOT NULL, key INTEGER NOT NULL,
    kind INTEGER NOT NULL, protocol INTEGER NOT NULL, name TEXT NOT NULL, status INTEGER NOT NULL,
    code TEXT NOT NULL, attributes TEXT NOT NULL, last_s INTEGER NOT NULL);
CREATE UNIQUE INDEX series_same ON series(instance, kind, protocol, name, status, attributes);
CREATE INDEX series_service ON series(service);
CREATE TABLE blocks(
    tier INTEGER NOT NULL, service INTEGER NOT NULL, t INTEGER NOT NULL, part INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY(tier, service, t, part)) WITHOUT ROWID;
CREATE TABLE spans(
    id INTEGER PRIMARY KEY, trace BLOB NOT NULL, start_us INTEGER NOT NULL, duration_us INTEGER NOT NULL,
    service INTEGER NOT NULL, series INTEGER NOT NULL, class INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX spans_trace ON spans(trace);
CREATE INDEX spans_service ON spans(service, class);
CREATE INDEX spans_class ON spans(class);
"""


def connect(path: str, *, cache_kb: int, read_only: bool = False) -> sqlite3.Connection:
    """A connection with the settings of the store; any thread may use it, one at a time."""
    if path == MEMORY:
        connection = sqlite3.connect(MEMORY, isolation_level=None, check_same_thread=False)
    elif read_only:
        uri = f"{Path(path).absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=2.0)
    else:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute(f"PRAGMA cache_size=-{cache_kb}")
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def open_file(path: str) -> sqlite3.Connection:
    """The store at ``path``, made if there is none; what is no store, or is broken, is set aside first.

    Raises:
        StoreError: it can be neither used nor replaced.
    """
    if path == MEMORY:
        return _prepare(connect(MEMORY, cache_kb=512), memory=True)
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StoreError(f"cannot make the directory of {path}: {err.strerror or err}") from err
    why = _unusable(file)
    if why:
        set_aside(path, why)
    try:
        return _open(path)
    except sqlite3.DatabaseError as err:
        set_aside(path, str(err))
    except OSError as err:
        raise StoreError(f"cannot open {path}: {err.strerror or err}") from err
    try:
        return _open(path)
    except (sqlite3.Error, OSError) as err:
        raise StoreError(f"cannot make the store {path}: {err}") from err


def _open(path: str) -> sqlite3.Connection:
    # what it holds is for the owner's eyes only; SQLite gives its side files the same mode
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = connect(path, cache_kb=512)
    try:
        return _prepare(connection, memory=False)
    except BaseException:
        connection.close()
        raise


def _unusable(file: Path) -> str:
    """Why a file cannot be a store; "" if it may be one."""
    try:
        with file.open("rb") as opened:
            head = opened.read(100)
    except FileNotFoundError:
        return ""
    except IsADirectoryError:
        raise StoreError(f"{file} is a directory; store.path names a file") from None
    except OSError as err:
        raise StoreError(f"cannot read {file}: {err.strerror or err}") from err
    if not head:
        return ""
    if head[:16] != _MAGIC or len(head) < 100:
        return "it is no SQLite file"
    if int.from_bytes(head[68:72], "big") not in (0, APPLICATION_ID):
        return "it belongs to another program"
    return ""


def set_aside(path: str, why: str) -> None:
    """Rename a file, with its side files, so that nothing is lost and a new store can begin.

    Raises:
        StoreError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    target = f"{path}.set-aside-{stamp}"
    n = 1
    while os.path.exists(target):
        n += 1
        target = f"{path}.set-aside-{stamp}-{n}"
    try:
        os.rename(path, target)
        for side in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path + side, target + side)
    except OSError as err:
        raise StoreError(f"{path} cannot be used ({why}) nor set aside: {err.strerror or err}") from err
    log.warning("%s cannot be used as the store: %s; it was renamed to %s and a new one begins", path, why, target)


def _prepare(connection: sqlite3.Connection, *, memory: bool) -> sqlite3.Connection:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it belongs to another program")
    if tables and version != VERSION:
        raise sqlite3.DatabaseError(f"it has the layout {version}, this onlooker reads {VERSION}")
    if not tables:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        if not memory:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(
            f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; {_TABLES} COMMIT;"
        )
    if not memory:
        connection.execute("PRAGMA journal_mode=WAL")
        # A crash of onlooker loses nothing that was committed; one of the machine may lose the last commits.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=500")
        connection.execute("PRAGMA journal_size_limit=4194304")
    # A broken file mostly shows here, and quickly: each table is entered at both ends.
    for table in ("meta", "services", "instances", "keys", "series", "blocks", "spans"):
        connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    connection.execute("SELECT max(id) FROM spans").fetchone()
    return connection


class FileLock:
    """One agent a store: a lock that the kernel frees when the process ends, however it ends."""

    def __init__(self, path: str) -> None:
        self._fd = -1
        if path != MEMORY:
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                os.close(self._fd)
                self._fd = -1
                raise StoreError(f"another onlooker uses {path}") from err

    def release(self) -> None:
        """Let others have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
