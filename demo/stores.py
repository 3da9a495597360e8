"""The demo's own PostgreSQL and Redis: private directories, ports of their own, and an account without privileges.

    demo/stores.py        makes build/demo/postgres, the database as every run of the demo begins with it

Each run works on a copy in a directory that goes with it, so that it neither finds nor leaves anything.  Both servers
listen on loopback only, and neither gives its superuser to who connects.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent / "build" / "demo" / "postgres"
PASSWORD = "shop"  # what there is to be had with it goes with the demo; its role may do no more than the shop needs
ACCESS = "host shop shop 127.0.0.1/32 scram-sha-256\n"
SETTINGS = {
    "fsync": "off",
    "shared_buffers": "8MB",
    "max_connections": "20",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}


def account() -> pwd.struct_passwd | None:
    """Who runs the servers: PostgreSQL refuses root; None if that is not who we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise SystemExit("demo: PostgreSQL must not run as root, and there is neither an account postgres nor nobody")


def as_account(who: pwd.struct_passwd | None) -> dict[str, object]:
    """For subprocess."""
    return {} if who is None else {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}


def private_directory(who: pwd.struct_passwd | None) -> Path:
    """A new directory that only the account may enter; below /tmp, where it may always get to."""
    path = Path(tempfile.mkdtemp(prefix="onlooker-demo-"))
    if who is not None:
        os.chown(path, who.pw_uid, who.pw_gid)
    return path


def postgres_programs() -> Path:
    """The folder of the newest PostgreSQL; Debian keeps the server's programs out of the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = folders[-1] if folders else shutil.which("initdb")
    if found is None:
        raise SystemExit("demo: PostgreSQL is missing; `make demo-setup` installs it")
    return Path(found).parent


def make_template() -> None:
    """Create the database cluster with the shop's tables and rows."""
    who, programs = account(), postgres_programs()
    work = private_directory(who)
    data = work / "data"

    def run(*command: str | Path, text: str | None = None) -> None:
        done = subprocess.run(
            [str(word) for word in command], input=text, text=True, cwd=work, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C"}, **as_account(who),
        )  # fmt: skip
        if done.returncode or "ERROR:" in done.stdout:
            raise SystemExit(f"demo: {Path(command[0]).name} failed:\n{done.stdout[-2000:]}")

    try:
        run(
            programs / "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync",
            "--auth=reject", "--wal-segsize=1",
        )  # fmt: skip
        single = (programs / "postgres", "--single", "-F", "-D", data)
        run(*single, "postgres", text="CREATE DATABASE shop\n")
        run(*single, "-j", "shop", text=(HERE / "data/schema.sql").read_text())
        (data / "pg_hba.conf").write_text(ACCESS)
        shutil.rmtree(TEMPLATE, ignore_errors=True)
        TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(data, TEMPLATE)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def postgres_command(directory: Path, port: int, who: pwd.struct_passwd | None) -> list[str]:
    """A fresh copy of the database in ``directory``, and the command that serves it."""
    data = directory / "postgres"
    if not (TEMPLATE / "PG_VERSION").exists():
        raise SystemExit("demo: its database is missing; `make demo-setup` makes it")
    shutil.copytree(TEMPLATE, data)
    data.chmod(0o700)
    if who is not None:
        for folder, _, files in os.walk(data):
            for path in (folder, *(os.path.join(folder, file) for file in files)):
                os.chown(path, who.pw_uid, who.pw_gid)
    settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    return [str(postgres_programs() / "postgres"), "-D", str(data), "-p", str(port), *settings]


def redis_settings(directory: Path, port: int, who: pwd.struct_passwd | None) -> tuple[Path, str]:
    """A configuration of Redis, and the URL that opens it; nothing is ever written to the disk."""
    password = secrets.token_urlsafe(16)
    path = directory / "redis.conf"
    path.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\ndir {directory}\n'
        "maxmemory 16mb\nmaxmemory-policy allkeys-lru\nloglevel warning\n"
    )
    path.chmod(0o600)
    if who is not None:
        os.chown(path, who.pw_uid, who.pw_gid)
    return path, f"redis://:{password}@127.0.0.1:{port}/0"


if __name__ == "__main__":
    make_template()
