"""A `/proc` made of ordinary files: builders state only what matters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from onlooker.discover.proc import ProcFs

BOOT_UNIX_NS = 1_700_000_000_000_000_000


class FakeProc:
    def __init__(self, root: Path) -> None:
        self.root = root / "proc"
        self.root.mkdir()
        self.files = root / "files"  # what the processes see as "/"
        self.files.mkdir()
        self._next_inode = 1000

    def open(self) -> ProcFs:
        return ProcFs(str(self.root), boot_unix_ns=BOOT_UNIX_NS)

    def add(
        self,
        pid: int,
        *,
        exe: str = "/usr/bin/app",
        args: list[str | bytes] | None = None,
        parent: int = 1,
        environ: Mapping[str, str] | None = None,
        cwd: str = "/",
        start_ticks: int | None = None,
        image: tuple[int, int] | None = None,
        comm: bytes = b"app",
        state: str = "S",
        flags: int = 0x400000,
        maps: bytes = b"",
        cgroup: str = "0::/\n",
        ports: tuple[int, ...] = (),
        uid: int = 1000,
        netns: str = "net:[1]",
    ) -> Path:
        directory = self.root / str(pid)
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "ns").mkdir(parents=True)
        (directory / "fd").mkdir()
        (directory / "net").mkdir()
        start = pid * 10 if start_ticks is None else start_ticks
        code, stack = image if image is not None else (pid * 4096, pid * 65536 + 16)
        (directory / "stat").write_bytes(
            b"%d (%s) %s %d 1 1 0 -1 %d 0 0 0 0 0 0 0 0 20 0 3 0 %d 1000 100 18446744073709551615 %d %d %d 0 0 0\n"
            % (pid, comm, state.encode(), parent, flags, start, code, code + 1, stack)
        )
        argv = [exe] if args is None else args
        (directory / "cmdline").write_bytes(b"".join((a if isinstance(a, bytes) else a.encode()) + b"\0" for a in argv))
        (directory / "environ").write_bytes(b"".join(f"{k}={v}\0".encode() for k, v in (environ or {}).items()))
        (directory / "status").write_text(
            f"Name:\tapp\nTgid:\t{pid}\nNSpid:\t{pid}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
        )
        (directory / "cgroup").write_text(cgroup)
        (directory / "maps").write_bytes(maps)
        if exe:
            (directory / "exe").symlink_to(exe)
        (directory / "cwd").symlink_to(cwd)
        (directory / "root").symlink_to(self.files)
        (directory / "ns" / "net").symlink_to(netns)
        (directory / "fd" / "0").symlink_to("/dev/null")
        for number, port in enumerate(ports, start=3):
            (directory / "fd" / str(number)).symlink_to(f"socket:[{port + 100_000}]")
        self._tables(netns, ports)
        return directory

    def listen(self, pid: int, port: int) -> None:
        directory = self.root / str(pid)
        (directory / "fd" / str(port)).symlink_to(f"socket:[{port + 100_000}]")
        self._tables("net:[1]", (port,))

    def remove(self, pid: int) -> None:
        shutil.rmtree(self.root / str(pid))

    def file(self, path: str, content: str | bytes) -> None:
        target = self.files / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def _tables(self, netns: str, ports: tuple[int, ...]) -> None:
        """Every process of a namespace sees the same table, whoever listens."""
        table = self.root / ("tcp-" + "".join(c for c in netns if c.isalnum()))
        lines = table.read_text().splitlines() if table.exists() else ["  sl  local_address rem_address   st"]
        head, rows = lines[0], lines[1:]
        listening = [row for row in rows if " 0A " in row]
        other = [row for row in rows if " 0A " not in row]
        for port in ports:
            row = (
                f"   0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000"
                f"     0        0 {port + 100_000} 1 0000000000000000 100 0 0 10 0"
            )
            if row not in listening:
                listening.append(row)
        table.write_text("\n".join([head, *listening, *other]) + "\n")
        for directory in self.root.iterdir():
            link = directory / "ns" / "net"
            target = directory / "net" / "tcp"
            if link.is_symlink() and str(link.readlink()) == netns and not target.exists():
                target.symlink_to(table)
