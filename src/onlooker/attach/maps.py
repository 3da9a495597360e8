"""The files that a process runs code from, and ways to open exactly those.

Receives a process id, hands on `MappedFile` rows. What a maps file says counts only as far as the opened file agrees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_MAPS_LIMIT = 8 * 1024 * 1024  # bytes of one maps file
_FILES_LIMIT = 1024  # files of one process that are looked at


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file that a process has mapped executable."""

    path: str
    inode: int
    device: str  # as in the maps: hexadecimal major:minor
    begin: int
    end: int
    deleted: bool


def mapped_files(pid: int, proc: str = "/proc") -> list[MappedFile]:
    """Files that a process has mapped executable, each once; empty if the process is gone or may not be looked at."""
    try:
        with open(f"{proc}/{pid}/maps", "rb") as maps:
            text = maps.read(_MAPS_LIMIT)
    except OSError:
        return []
    return parse_maps(text)


def parse_maps(text: bytes) -> list[MappedFile]:
    """Read the lines of a maps file (``proc_pid_maps(5)``); lines of another form are passed over."""
    found: dict[tuple[str, int], MappedFile] = {}
    for line in text.split(b"\n"):  # the kernel escapes this one in paths, and a carriage return not
        words = line.split(None, 5)
        if len(words) < 6 or len(words[1]) < 3 or words[1][2:3] != b"x" or not words[4].isdigit() or words[4] == b"0":
            continue
        begin, _, end = words[0].partition(b"-")
        path = words[5]
        deleted = path.endswith(b" (deleted)")
        if deleted:
            path = path[: -len(b" (deleted)")]
        try:
            place = int(begin, 16), int(end, 16)
        except ValueError:
            continue
        name = os.fsdecode(path.replace(b"\\012", b"\n"))
        key = (words[3].decode("ascii", "replace"), int(words[4]))
        if len(found) < _FILES_LIMIT:
            found.setdefault(key, MappedFile(name, key[1], key[0], *place, deleted))
    return list(found.values())


def open_paths(pid: int, file: MappedFile, proc: str = "/proc") -> Iterator[str]:
    """Paths by which the mapped file may be reached, the most exact first.

    ``map_files`` is the mapping itself: right for containers, deleted and replaced files; it asks for
    CAP_CHECKPOINT_RESTORE (CAP_SYS_ADMIN before 5.9). The path through the root of the process is right as long as
    nobody replaced the file, which the inode shows.
    """
    yield f"{proc}/{pid}/map_files/{file.begin:x}-{file.end:x}"
    if not file.deleted:
        yield f"{proc}/{pid}/root{file.path}"
