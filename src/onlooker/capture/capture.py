"""The kernel side, run: loads and attaches the programs, hands on their records, keeps the filter of processes.

Receives nothing; hands on structured arrays of records, one per kind, in ring order.  What the kernel could not hand
over is counted by reason in `losses`.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onlooker.capture import _records, hooks
from onlooker.capture._records import LossReason, ProcessFlags, RecordKind
from onlooker.errors import AttachError, LoadError, RecordLayoutError, UnsupportedKernelError
from onlooker.kernel.object import Cells, Object, built_object
from onlooker.kernel.restrictions import refuse_hopeless, refuse_unprivileged
from onlooker.kernel.ringbuf import Ring

LAYOUTS: Final[dict[int, np.dtype[Any]]] = {
    RecordKind.RECORD_PROCESS: _records.PROCESS_RECORD,
    RecordKind.RECORD_HTTP: _records.HTTP_RECORD,
    RecordKind.RECORD_HTTP_LONG: _records.HTTP_LONG_RECORD,
    RecordKind.RECORD_HTTP_TEXT: _records.HTTP_TEXT_RECORD,
    RecordKind.RECORD_SEGMENT: _records.SEGMENT_RECORD,
    RecordKind.RECORD_SEGMENT_LONG: _records.SEGMENT_LONG_RECORD,
    RecordKind.RECORD_REDIS: _records.REDIS_RECORD,
}

PROCESS_PROGRAMS: Final = ("tp_fork", "tp_exec", "tp_exit", "tp_listen")
STATE_PROGRAMS: Final = ("tp_sock_state", "tp_sock_gone")

_RINGS: Final = {128: 256 << 10, 256: 8 << 20, 512: 8 << 20, 4096: 4 << 20}
_OLD_RINGS: Final = {512: 4 << 20}
"""Bytes of each ring by the size of its records, and what the old object has less of; the defaults of
``bpf/settings.h``."""

_WAKEUP_BYTES: Final = 1 << 20
"""A burst that comes while the reader sleeps long wakes it here: 4,096 requests, and most of the ring still free."""

_ROWS_MAX: Final = 4096
"""Requests that one round takes, so that a stall costs no more memory than a busy second; the rest comes after it."""


def check_layouts(built: Object) -> None:
    """Compare the generated dtypes with the BTF of the object that is about to be loaded.

    Raises:
        RecordLayoutError: they differ; the object belongs to another version.
    """
    for dtype, name in (
        (_records.PROCESS_RECORD, "process_record"),
        (_records.HTTP_RECORD, "http_record"),
        (_records.HTTP_LONG_RECORD, "http_long_record"),
        (_records.HTTP_TEXT_RECORD, "http_text_record"),
        (_records.SEGMENT_RECORD, "segment_record"),
        (_records.SEGMENT_LONG_RECORD, "segment_long_record"),
        (_records.REDIS_RECORD, "redis_record"),
    ):
        fields, size = built.btf.numpy_fields(name)
        described = np.dtype(
            {
                "names": [f[0] for f in fields],
                "formats": [(f[1], f[2]) if f[2] else f[1] for f in fields],
                "offsets": [f[3] for f in fields],
                "itemsize": size,
            }
        )
        if described != dtype:
            raise RecordLayoutError(
                f"struct {name} of the BPF object differs from the generated dtype; run `make bpf generate`"
            )


@dataclass(slots=True)
class Records:
    """What one round of draining found; each array is ``(n,)`` of the dtype named after its struct.

    Attributes:
        is_part: The ring of `http` and `redis` holds more, older than some of `segments`.
    """

    http: NDArray[Any] | None = None
    http_long: NDArray[Any] | None = None
    http_text: NDArray[Any] | None = None
    process: NDArray[Any] | None = None
    redis: NDArray[Any] | None = None
    segments: list[NDArray[Any]] = field(default_factory=list)
    is_part: bool = False

    def __bool__(self) -> bool:
        return bool(self.segments) or any(
            part is not None for part in (self.http, self.http_long, self.http_text, self.redis, self.process)
        )


class Capture:
    """The loaded and attached programs.

    Args:
        ring_bytes: Other sizes of rings, by record size.
        hook: One of `onlooker.capture.hooks.CHOICES`.

    Attributes:
        hook: Name of the rung that was taken; "" before the start.
        old: Whether the object for older kernels is in use.
        degraded: What is not seen because of it, a sentence each.
        refused: Why the rungs before it were not taken.
    """

    def __init__(self, *, ring_bytes: dict[int, int] | None = None, hook: str = hooks.AUTO) -> None:
        self._object: Object | None = None
        self._sizes = ring_bytes or {}
        self._choice = hook
        self.hook = ""
        self.old = False
        self._namespace = (0, 0)
        self.degraded: tuple[str, ...] = ()
        self.refused: dict[str, str] = {}
        self._rings: dict[int, Ring] = {}
        self._epoll: select.epoll | None = None
        self._flags: Cells | None = None
        self._flags_lock = threading.Lock()  # the thread that looks into TLS tells, too

    @property
    def object(self) -> Object:
        """The loaded object."""
        if self._object is None:
            raise LoadError("nothing is loaded")
        return self._object

    def start(self) -> None:
        """Load and attach the first rung of the ladder that this kernel takes.  Nothing is watched yet.

        Raises:
            UnsupportedKernelError: this kernel lacks what is needed, or the privileges do.
        """
        refuse_hopeless()
        refuse_unprivileged()
        self.refused.clear()
        try:
            self._namespace = hooks.namespace()
        except (LoadError, AttachError) as err:
            raise UnsupportedKernelError(
                f"cannot tell the numbers of processes in this pid namespace from the host's: {err}; run in the host's "
                "(hostPID: true, --pid=host)"
            ) from err
        for rung in hooks.rungs(self._choice):
            try:
                self._start(rung)
            except (LoadError, AttachError) as err:
                self.close()
                self.refused[rung.name] = str(err)
                continue
            self.hook, self.old, self.degraded = rung.name, rung.old, rung.degraded
            return
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
        raise UnsupportedKernelError(
            f"this kernel ({os.uname().release}) takes none of the hooks that show socket traffic, and onlooker sees "
            f"nothing without one: {reasons}. Linux 5.10 or newer with BTF has one; `onlooker doctor` tells more"
        )

    def _start(self, rung: hooks.Rung) -> None:
        built = self._object = Object(built_object(old=rung.old))
        check_layouts(built)
        sizes = {**_RINGS, **(_OLD_RINGS if rung.old else {}), **self._sizes}
        for stride, size in sizes.items():
            built.set_max_entries(f"ring_{stride}", size)
        built.set_constant("secret", int.from_bytes(os.urandom(8), "little"))
        built.set_constant("wakeup_bytes", min(_WAKEUP_BYTES, sizes[256] // 4))
        programs = (*PROCESS_PROGRAMS, *STATE_PROGRAMS, *hooks.programs_of(rung))
        for constant, value in zip(("pid_level", "pid_namespace"), self._namespace, strict=True):
            built.set_constant(constant, value)
        word = hooks.calibration_word()
        if rung.old:
            built.set_constant("calibration_word", word)
        built.only_programs({*programs, *(("calibrate",) if rung.old else ())})
        built.load()
        if rung.old:
            hooks.calibrate(built, word)
        # The rings first: a program that is attached writes into them at once.
        self._epoll = select.epoll()
        for stride, size in sizes.items():
            ring = self._rings[stride] = Ring(built.map_fd(f"ring_{stride}"), size, stride)
            # edge-triggered: a ring that merely holds records is no event, only a wake-up is
            self._epoll.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        self._flags = built.cells("process_flags")
        for name in programs:
            built.attach(name)
        built.settle()

    def close(self) -> None:
        """Detach everything and free it."""
        self._flags = None
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._object is not None:
            self._object.close()
            self._object = None

    # ---- records ----

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the timeout, or until a ring asks to be read; False if only process records wait."""
        if self._epoll is None:
            return True
        with contextlib.suppress(InterruptedError):
            woken = {fd for fd, _ in self._epoll.poll(max(timeout_s, 0.0))}
            # A ring that was drained since it asked has no more to say: a small batch costs as much as a large one.
            return not woken or any(
                ring.fill >= min(_WAKEUP_BYTES, ring.size // 4)
                for stride, ring in self._rings.items()
                if stride != 128 and ring.fd in woken
            )
        return True

    def drain_processes(self) -> NDArray[Any] | None:
        """Take the process records alone: ``(n,)`` `PROCESS_RECORD`."""
        raw = self._rings[128].drain()
        return None if raw is None else raw.view(_records.PROCESS_RECORD)[:, 0]

    def drain(self) -> Records:
        """Take what is in the rings.

        The order matters: a record refers to others that were written before it, and those are read after it.
        """
        found = Records()
        if not self._rings:
            return found
        count = 0
        for raw in self._of_kind(256, _ROWS_MAX):
            count += len(raw)
            if raw[0, 0] == RecordKind.RECORD_HTTP:
                found.http = raw.view(_records.HTTP_RECORD)[:, 0]
            else:
                found.redis = raw.view(_records.REDIS_RECORD)[:, 0]
        found.is_part = count >= _ROWS_MAX
        for raw in self._of_kind(512):
            if raw[0, 0] == RecordKind.RECORD_HTTP_LONG:
                found.http_long = raw.view(_records.HTTP_LONG_RECORD)[:, 0]
            else:
                found.segments.append(raw.view(_records.SEGMENT_RECORD)[:, 0])
        for raw in self._of_kind(4096):
            if raw[0, 0] == RecordKind.RECORD_HTTP_TEXT:
                found.http_text = raw.view(_records.HTTP_TEXT_RECORD)[:, 0]
            else:
                found.segments.append(raw.view(_records.SEGMENT_LONG_RECORD)[:, 0])
        found.process = self.drain_processes()
        return found

    def _of_kind(self, stride: int, limit: int = 1 << 20) -> Iterator[NDArray[np.uint8]]:
        raw = self._rings[stride].drain(limit)
        if raw is None:
            return
        kinds = raw[:, 0]
        if (kinds == kinds[0]).all():
            yield raw
            return
        for kind in np.unique(kinds):
            yield raw[kinds == kind]

    @property
    def is_behind(self) -> bool:
        """Whether a round left so much that the next should follow at once."""
        return 256 in self._rings and self._rings[256].fill >= _WAKEUP_BYTES

    def fill(self) -> dict[int, float]:
        """How full each ring is, 0 to 1, by the size of its records."""
        return {stride: ring.fill / ring.size for stride, ring in self._rings.items()}

    def losses(self) -> dict[str, int]:
        """What the kernel side lost since the start, by reason."""
        if self._object is None:
            return {}
        counts = self.object.percpu_sum("losses")
        named = {
            reason.name.removeprefix("LOSS_").lower(): int(counts[reason])
            for reason in LossReason
            if reason != LossReason.LOSS_REASONS
        }
        named["missed_run"] = sum(s["missed"] for s in self.object.program_statistics().values())
        return named

    # ---- the filter of processes (discover.watch.Filter) ----

    def watch(self, pid: int) -> None:
        """Let records of this process, and of its future children, through."""
        self._change(pid, ~0, ProcessFlags.PROCESS_WATCHED)

    def unwatch(self, pid: int) -> None:
        """Hold its records back."""
        self._change(pid, 0, 0)

    def set_context(self, pid: int, trust_thread: bool) -> None:
        """Say whether one thread of the process serves one request at a time."""
        uncertain = ProcessFlags.PROCESS_THREAD_UNCERTAIN
        self._change(pid, ~uncertain, 0 if trust_thread else uncertain)

    def mark_tls(self, pid: int, rustls: bool) -> None:
        """Say that probes are on the TLS libraries of the process, and whether rustls is one of them."""
        rust = ProcessFlags.PROCESS_RUSTLS
        self._change(pid, ~rust, ProcessFlags.PROCESS_TLS | (rust if rustls else 0))

    def _change(self, pid: int, keep: int, add: int) -> None:
        with self._flags_lock:
            if self._flags is not None:
                self._flags[pid] = self._flags[pid] & keep | add
