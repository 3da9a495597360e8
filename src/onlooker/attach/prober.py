"""Keeps probes on the TLS libraries of watched processes: looks when they start, fork, load one and first speak TLS.

Receives process ids, hands on nothing: probes are attached to programs of the kernel side, which are loaded when the
first library is found.  All work is done by one thread of its own: examining a library takes up to 0.3 s, attaching
8 ms.  Detaching takes 42 ms, in which the kernel waits for its readers: that is left to a few threads, so that the end
of many processes does not keep the beginning of others waiting, nor the end of the agent.

May drop: processes beyond the registry's limit, and what the kernel refuses; `Prober.outlook` says of each process what
of its TLS is seen and why the rest is not.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import queue
import re
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from onlooker.attach.elf import ElfFile
from onlooker.attach.maps import mapped_files, open_paths
from onlooker.attach.registry import Closeable, ProbeRegistry, ProgramFds, Programs, close_all, library_attacher
from onlooker.attach.tls import Abi, TlsCatalog, TlsFunction, TlsKind, TlsLibrary
from onlooker.errors import AgentError
from onlooker.kernel import uprobe

log: Final = logging.getLogger("onlooker")

DETACHING_THREADS: Final = 16
"""They only wait."""

SETTLING_S: Final = (0.0, 0.03, 0.2, 1.0, 5.0)
"""When a process is looked at after it began to run a program: its loader maps libraries meanwhile."""
RESCAN_S: Final = 60.0
AGAIN_S: Final = 0.5
ASKED_PAUSE_S: Final = 2.0
"""A process whose TLS is nowhere to be found is not searched more often."""
OPEN_FILES: Final = 65536
NO_LIBRARY: Final = "no TLS library is known in it"

_LOADER: Final = re.compile(r"ld-(linux|musl|\d)|ld\.so|ld64")

ENDS_SESSION: Final = frozenset({"SSL_free", "gnutls_deinit", "PR_Close"})


@dataclass(frozen=True, slots=True)
class Outlook:
    """What of a process's TLS is seen.

    Attributes:
        pid: The process.
        library: Name of the implementation and its version; empty if none was found.
        path: Of its file, as the process sees it.
        visible: Whether plaintext is seen.
        reason: Why not, or what of it stays unseen; empty if all is well.
    """

    pid: int
    library: str
    path: str
    visible: bool
    reason: str


@dataclass(slots=True)
class _Process:
    speaks: bool = False  # the kernel side saw a TLS connection that nobody looks into
    libraries: tuple[TlsLibrary, ...] = ()
    probed: bool = False
    asked_s: float = 0.0
    loader: uprobe.UprobeLink | None = None  # tells when it loads something
    failed: bool = False  # to be looked at, the last time


def outlook_of(pid: int, libraries: Sequence[TlsLibrary]) -> list[Outlook]:
    """What of the TLS of a process would be seen, by its libraries; empty if it has none."""
    return [
        Outlook(
            pid,
            f"{library.kind.value} {library.version}".strip(),
            library.path,
            library.visible,
            library.reason or ("" if library.visible else "not all of its functions were found"),
        )
        for library in libraries
    ]


def sentences(pid: int, catalog: TlsCatalog) -> list[str]:
    """What of the TLS of a process would be seen, a sentence a library; for people."""
    found = []
    for row in outlook_of(pid, catalog.libraries(pid)):
        said = "its plaintext is seen" if row.visible else "not seen into"
        found.append(f"{row.library} ({row.path}): {said}{': ' if row.reason else ''}{row.reason}")
    return found


def program_chooser(fds: Mapping[str, int]) -> Programs:
    """Which programs of ``bpf/tls.bpf.c`` a function gets."""
    both = fds.get("tls_both")
    call = ProgramFds(session=both) if both is not None else ProgramFds(fds["tls_call"], fds["tls_call"])

    def choose(function: TlsFunction) -> ProgramFds | None:
        match function.abi:
            case Abi.EVENT:
                if function.name in ENDS_SESSION:
                    return ProgramFds(fds["tls_free"])
                return call if function.returns is not None else None
            case Abi.GO_SLICE if function.name.endswith("Read"):
                return ProgramFds(fds["tls_go_read"])
            case _:
                return call

    return choose


class Prober:
    """The thread that looks into processes.

    Attributes:
        registry: The probes; only its thread changes it.
        busy_s: CPU time spent.
        load_error: Why nothing of TLS can be seen at all; empty if it can.
    """

    def __init__(
        self,
        load: Callable[[uprobe.Features], Mapping[str, int]],
        mark: Callable[[int, bool], None],
        *,
        sweep: Callable[[int], object] = lambda pid: None,
        catalog: TlsCatalog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make one that does nothing yet.

        Args:
            load: Loads the kernel's programs for TLS, gives their descriptors by name; called at most once.
            mark: Tells the kernel side that a process has probes, and whether they are on rustls.
            sweep: Tells the kernel side that a process with probes is gone.
            catalog: Examines files.
            clock: Seconds, monotonic.
        """
        self._load = load
        self._mark = mark
        self._sweep = sweep
        self._catalog = catalog or TlsCatalog()
        self._clock = clock
        self._queue: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._processes: dict[int, _Process] = {}
        self._due: list[tuple[float, int]] = []
        self._thread: threading.Thread | None = None
        self._rescan_s = 0.0
        self._features: uprobe.Features | None = None
        self._fds: Mapping[str, int] = {}
        self._loaders: dict[tuple[int, int], int] = {}
        self._detaching = ThreadPoolExecutor(DETACHING_THREADS, thread_name_prefix="detach")
        self.registry: ProbeRegistry | None = None
        self.load_error = ""
        self.busy_s = 0.0

    # ---- from any thread ----

    def start(self) -> None:
        """Start the thread."""
        _allow_many_files()
        self._thread = threading.Thread(target=self._run, name="tls", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Detach everything and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(10.0)
            self._thread = None

    def look(self, pid: int) -> None:
        """Look into a process: it is watched from now on, or runs another program."""
        self._queue.put(("look", pid))

    def look_again(self, pid: int) -> None:
        """Look into it if it is known: it may have loaded a library."""
        self._queue.put(("again", pid))

    def speaks_tls(self, pid: int) -> None:
        """The kernel side saw TLS of a process without probes."""
        self._queue.put(("speaks", pid))

    def forget(self, pid: int) -> None:
        """It ended, or is not watched any more."""
        self._queue.put(("forget", pid))

    def outlook(self) -> list[Outlook]:
        """What of the TLS of the watched processes is seen; those that neither have a library nor speak it left out."""
        found: list[Outlook] = []
        for pid, process in sorted(self._processes.copy().items()):
            rows = outlook_of(pid, process.libraries)
            if self.load_error:
                rows = [Outlook(pid, row.library, row.path, False, self.load_error) for row in rows]
            if not rows and process.speaks:
                rows = [Outlook(pid, "", "", False, NO_LIBRARY)]
            found += rows
        return found

    def invisible(self) -> dict[str, float]:
        """Processes whose TLS is not seen, by reason."""
        reasons: dict[str, float] = {}
        seen = {row.pid for row in self.outlook() if row.visible}
        for row in self.outlook():
            if not row.visible and row.pid not in seen:
                reasons[row.reason] = reasons.get(row.reason, 0.0) + 1.0
        return reasons

    def probed(self) -> int:
        """How many processes have probes."""
        return sum(process.probed for process in self._processes.copy().values())

    def failures(self) -> dict[str, float]:
        """Attachments that failed, by reason."""
        if self.registry is None:
            return {}
        failed = {reason: float(count) for reason, count in self.registry.failures.items()}
        if self.registry.refused:
            failed["too many attachments"] = float(self.registry.refused)
        return failed

    # ---- its own thread ----

    def _run(self) -> None:
        self._rescan_s = self._clock() + RESCAN_S
        running = True
        while running:
            running = self._wait()
            self._look_at_due()
            self.busy_s = time.thread_time()
        if self.registry is not None:
            self.registry.close()
        for process in self._processes.values():
            if process.loader is not None:
                self._dispose([process.loader])
        self._detaching.shutdown()

    def _dispose(self, links: Sequence[Closeable]) -> None:
        self._detaching.submit(close_all, links)

    def _wait(self) -> bool:
        """Take in what was asked for, until something is due.  False: it is time to end."""
        until_s = min(self._rescan_s, self._due[0][0] if self._due else self._rescan_s)
        try:
            asked = self._queue.get(timeout=max(until_s - self._clock(), 0.0))
            while asked is not None:
                self._take_in(*asked)
                asked = self._queue.get_nowait()
        except queue.Empty:
            return True
        return False

    def _take_in(self, what: str, pid: int) -> None:
        now_s = self._clock()
        if what == "forget":
            gone = self._processes.pop(pid, None)
            if gone is not None and gone.loader is not None:
                self._dispose([gone.loader])
            if gone is not None and gone.probed and self.registry is not None:
                self.registry.forget(pid)
                self._sweep(pid)
            return
        process = self._processes.get(pid)
        if what == "look":
            if process is None:
                process = self._processes[pid] = _Process()
            process.speaks = False
            self._plan(pid, process, *(now_s + delay_s for delay_s in SETTLING_S))
        elif process is None:
            return
        elif what == "speaks":
            process.speaks = True
            self._plan(pid, process, max(now_s, process.asked_s))
            process.asked_s = now_s + ASKED_PAUSE_S
        else:
            self._plan(pid, process, now_s)

    def _plan(self, pid: int, process: _Process, *due_s: float) -> None:
        for at_s in due_s:
            heapq.heappush(self._due, (at_s, pid))

    def _look_at_due(self) -> None:
        now_s = self._clock()
        pids: list[int] = []
        while self._due and self._due[0][0] <= now_s:
            pids.append(heapq.heappop(self._due)[1])
        if now_s >= self._rescan_s:
            self._rescan_s = now_s + RESCAN_S
            pids += self._processes
        for pid in dict.fromkeys(pids):
            process = self._processes.get(pid)
            if process is not None:
                self._look(pid, process)

    def _look(self, pid: int, process: _Process) -> None:
        try:
            libraries = tuple(self._catalog.libraries(pid))
            process.libraries = libraries
            wanted = [library for library in libraries if library.functions]
            if (wanted or process.probed) and self._ready():
                assert self.registry is not None
                self.registry.watch(pid, wanted)
                process.probed = bool(wanted)
                if wanted:
                    self._mark(pid, any(library.kind is TlsKind.RUSTLS for library in wanted))
            elif process.loader is None:
                self._watch_loader(pid, process)
            process.failed = False
        except (AgentError, OSError) as err:
            if not process.failed:  # it ends, or becomes another program just now: once more
                process.failed = True
                self._plan(pid, process, self._clock() + AGAIN_S)
                return
            log.warning("cannot look into the TLS of process %d: %s", pid, err)

    def _watch_loader(self, pid: int, process: _Process) -> None:
        """Be told when a process without a TLS library loads one: interpreters do when a script first needs it."""
        for file in mapped_files(pid):
            if not _LOADER.match(os.path.basename(file.path)):
                continue
            for path in open_paths(pid, file):
                offset = self._loader_offset(path)
                if offset is None:
                    continue
                if offset and self._ready():
                    assert self._features is not None
                    process.loader = uprobe.attach(
                        self._fds["tls_loaded"], path, [offset], pid=pid, features=self._features
                    )
                    # it may have loaded one meanwhile
                    heapq.heappush(self._due, (self._clock(), pid))
                return

    def _loader_offset(self, path: str) -> int | None:
        """Where a loader tells debuggers of libraries; 0 if nowhere, None if it is not the file that is mapped."""
        try:
            status = os.stat(path)
            key = (status.st_dev, status.st_ino)
            if key not in self._loaders:
                with ElfFile(path) as elf:
                    found = elf.find_functions(("_dl_debug_state",)).get("_dl_debug_state")
                    self._loaders[key] = (elf.offset_of(found.address) or 0) if found is not None else 0
            return self._loaders[key]
        except (OSError, AgentError):
            return None

    def _ready(self) -> bool:
        """Load the programs, once."""
        if self.registry is None and not self.load_error:
            try:
                features = uprobe.detect()
                if not features.cookies:
                    self.load_error = "this kernel's uprobes carry no cookies (5.15 has them)"
                    return False
                self._features, self._fds = features, self._load(features)
                attacher = library_attacher(program_chooser(self._fds), features)
                self.registry = ProbeRegistry(attacher, dispose=self._dispose)
            except AgentError as err:
                self.load_error = str(err)
                log.warning("TLS is not looked into: %s", err)
        return self.registry is not None


def _allow_many_files() -> None:
    """Each attachment is a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
