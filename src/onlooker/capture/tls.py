"""The kernel's programs for TLS libraries: loaded when the first library is found, into the maps of the others.

Receives a running `Capture`, hands on descriptors of programs for `onlooker.attach.prober`.  A host without TLS pays
nothing for them; loading takes 0.3 to 0.6 s of a thread that waits in the kernel.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Final

from onlooker.capture.capture import Capture
from onlooker.errors import LoadError
from onlooker.kernel.object import Object, built_object
from onlooker.kernel.uprobe import ATTACH_UPROBE_SESSION, Features

TLS_PROGRAMS: Final = ("tls_free", "tls_go_read", "tls_loaded")
CALL_PROGRAM: Final = "tls_call"
SESSION_PROGRAM: Final = "tls_both"
"""Does the work of `CALL_PROGRAM` where the kernel runs one program at both ends of a call, and for less."""
_OPAQUE: Final = struct.Struct("<5Q")  # struct tls_opaque of bpf/lib/tls.h
_KEYS_LIMIT: Final = 1 << 16  # a walk over a map that changes meanwhile may begin again
_KEY: Final = 16  # struct tls_key of bpf/lib/tls.h: address, tgid


@dataclass(frozen=True, slots=True)
class OpaqueTls:
    """TLS connections of a process that ended without anybody seeing into them: numbers, bytes and seconds."""

    connections: int
    failed: int
    sent: int
    received: int
    duration_s: float


class TlsPrograms:
    """Programs of ``bpf/tls.bpf.c``, in the kernel."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._object: Object | None = None

    def load(self, features: Features) -> dict[str, int]:
        """Load them; gives their descriptors by name, which live until `close`.

        Raises:
            LoadError: this kernel or this build has no room for them; the message says which.
        """
        loaded = Object(built_object(old=self._capture.old))
        on_calls = SESSION_PROGRAM if features.session else CALL_PROGRAM
        wanted = (on_calls, *TLS_PROGRAMS)
        try:
            if on_calls not in loaded.programs or not self._capture.object.has_map("tls_sessions"):
                raise LoadError("TLS is looked into on x86-64 and Linux 5.15 or newer only")
            loaded.only_programs(set(wanted))
            loaded.set_attach_type(wanted, features.attach_type)
            if features.session:
                loaded.set_attach_type((SESSION_PROGRAM,), ATTACH_UPROBE_SESSION)
            for name, value in self._capture.object.constants.items():
                loaded.set_constant(name, value)
            loaded.share_maps(self._capture.object)
            loaded.load()
            descriptors = {name: loaded.program_fd(name) for name in wanted}
            loaded.settle()
        except LoadError:
            loaded.close()
            raise
        self._object = loaded
        # the kernel's types, which loading reads, were megabytes
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        return descriptors

    def close(self) -> None:
        """Unload them."""
        if self._object is not None:
            self._object.close()
            self._object = None

    def statistics(self) -> dict[str, dict[str, int]]:
        """Runs, time and missed runs of the loaded programs."""
        return {} if self._object is None else self._object.program_statistics()

    def opaque(self) -> dict[int, OpaqueTls]:
        """By process, TLS connections that ended and that nobody could see into."""
        built, lib = self._capture.object, self._capture.object.library
        if not built.loaded or not built.has_map("tls_opaque_connections"):
            return {}
        found: dict[int, OpaqueTls] = {}
        map_fd, value = built.map_fd("tls_opaque_connections"), ctypes.create_string_buffer(_OPAQUE.size)
        for raw in self._keys(map_fd, 4):
            if lib.bpf_map_lookup_elem(map_fd, ctypes.create_string_buffer(raw, 4), value) == 0:
                connections, failed, sent, received, duration_ns = _OPAQUE.unpack(value.raw)
                pid = int.from_bytes(raw, "little")
                found[pid] = OpaqueTls(connections, failed, sent, received, duration_ns / 1e9)
        return found

    def _keys(self, map_fd: int, size: int) -> list[bytes]:
        following = ctypes.create_string_buffer(size)
        key: ctypes.Array[ctypes.c_char] | None = None
        found: list[bytes] = []
        following_of = self._capture.object.library.bpf_map_get_next_key
        while len(found) < _KEYS_LIMIT and following_of(map_fd, key, following) == 0:
            found.append(following.raw)
            key = ctypes.create_string_buffer(following.raw, size)
        return found

    def forget(self, pid: int) -> int:
        """Delete the sessions that a process left behind: those whose socket never showed.  Gives their number."""
        if self._object is None:
            return 0
        map_fd, lib = self._capture.object.map_fd("tls_sessions"), self._capture.object.library
        found = [raw for raw in self._keys(map_fd, _KEY) if int.from_bytes(raw[8:12], "little") == pid]
        for raw in found:
            lib.bpf_map_delete_elem(map_fd, ctypes.create_string_buffer(raw, _KEY))
        return len(found)
