"""Hostile ``/proc``: a process chooses its name, command line, environment, cgroup path and what it maps.

The input is a list of files, each a number and two bytes of length before it; see `FILES`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    import driver

    driver.begin()

from onlooker.attach.maps import parse_maps
from onlooker.discover import naming
from onlooker.discover.language import Languages
from onlooker.discover.proc import ProcFs, parse_stat

FILES = ("stat", "cmdline", "environ", "cgroup", "maps", "status", "net/tcp", "net/tcp6", "comm")
LONGEST_NAME = 10_000
STAT = (
    b"7 (app) S 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 3 0 70 1000 100 18446744073709551615 4096 8192 458768 0 0 0 0\n"
)
_ROOT = Path(tempfile.mkdtemp(prefix="fuzz-proc-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def prepare() -> Path:
    """One process, whose files are written over and over."""
    one = _ROOT / "7"
    for directory in ("ns", "fd", "net"):
        (one / directory).mkdir(parents=True, exist_ok=True)
    for link, target in (("exe", "/usr/bin/app"), ("cwd", "/"), ("root", "/nonexistent"), ("ns/net", "net:[1]")):
        if not (one / link).is_symlink():
            (one / link).symlink_to(target)
    if not (one / "fd/3").is_symlink():
        (one / "fd/3").symlink_to("socket:[108080]")
    return one


def one_input(data: bytes) -> None:
    """Reads all that is known of the process."""
    one = prepare()
    for name in FILES:
        (one / name).write_bytes(STAT if name == "stat" else b"")
    at = 0
    while at + 3 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        (one / FILES[data[at] % len(FILES)]).write_bytes(data[at + 3 : at + 3 + length])
        at += 3 + length
    for file in parse_maps((one / "maps").read_bytes()):  # addresses are the kernel's word, paths the process's
        assert file.path or file.inode
    parse_stat((one / "stat").read_bytes())
    proc = ProcFs(str(_ROOT), boot_unix_ns=1_700_000_000_000_000_000)
    process = proc.process(7)
    if process is None:
        return
    language = Languages().detect(process)
    name = naming.name_service(process, language)
    assert name.name
    assert len(name.name) < LONGEST_NAME
    assert len(name.namespace) < LONGEST_NAME
    naming.parse_resource_attributes(process.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    naming.command_of(process)
    assert all(0 <= port <= 65_535 for port in process.ports)
    for text in (process.exe, process.container_id, process.cwd, *process.args, *process.environ.values()):
        text.encode()  # no lone surrogates: it goes into protobuf and JSON
    for _ in process.mapped_files():
        pass
    assert process.start_unix_ns >= 0
    assert process.uid >= -1
    process.still_there()


if __name__ == "__main__":
    try:
        driver.main("proc", one_input, sys.argv[1:])
    finally:
        shutil.rmtree(_ROOT, ignore_errors=True)
