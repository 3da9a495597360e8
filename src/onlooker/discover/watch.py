"""The truth about which processes are watched.

Receives the start-up scan, kernel records about processes and, as a net below both, a slow scan of ``/proc``.  Hands
on the kernel's filter and the `Identities`.  An event about a process costs reading that process, and most executed
programs are decided by their path alone.  Nothing is left out silently: `Watcher.decisions` has a reason for every
process.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from onlooker.batches import Identities
from onlooker.config.selection import Selection
from onlooker.discover._matching import Matcher, Overrides, SurroundingsOf, Verdict
from onlooker.discover.instances import Instances, Member
from onlooker.discover.language import Language, Languages, trusts_thread
from onlooker.discover.naming import Host
from onlooker.discover.proc import Process, ProcFs
from onlooker.errors import AgentError, DescriptorError

log: Final = logging.getLogger("onlooker.discover")

FORK, EXEC, EXIT, LISTEN = 1, 2, 3, 4  # enum process_event of bpf/records.h

RESCAN_S: Final = 10.0
VERIFY_ROUNDS: Final = 6  # a process that is not watched is looked at again once in so many rescans
SETTLE_S: Final = 2.0  # by then a program has loaded its libraries and set its title
SCAN_SHARE: Final = 100  # looking for new processes takes at most one part in so many of the time
SCAN_PAUSE_S: Final = 0.25
HINDERED_S: Final = 1.0
SAY_S: Final = 60.0
MAX_DECISIONS: Final = 65_536
MAX_PARENTS: Final = 64


class Filter(Protocol):
    """The kernel's filter of watched processes."""

    def watch(self, pid: int) -> None:
        """Let records of ``pid`` and of its future children through."""

    def unwatch(self, pid: int) -> None:
        """Hold them back; no error if it was not watched."""

    def set_context(self, pid: int, trust_thread: bool) -> None:
        """Say whether a thread of ``pid`` serves one request at a time."""


@dataclass(slots=True)
class Decision:
    """What was decided about a process, and why.

    Attributes:
        image: See `Stat.image`.
        ports: That a kernel record or a selector made known; not a complete list.
        is_final: Never looked at again: kernel threads and onlooker itself.
        family: What it starts is watched too, whatever program it is.
        member: The instance it belongs to while it is watched.
    """

    pid: int
    start_ticks: int
    parent: int
    image: tuple[int, int]
    exe: str
    watched: bool
    excluded: bool
    reason: str
    ports: frozenset[int] = frozenset()
    is_final: bool = False
    family: bool = False
    trust_thread: bool = False
    member: Member | None = None


@dataclass(slots=True)
class Counters:
    """Of the watcher's own work; exported as metrics of the agent."""

    records: int = 0
    examined: int = 0
    vanished: int = 0
    watched: int = 0
    unwatched: int = 0
    rescans: int = 0
    filter_errors: int = 0
    forgotten: int = 0
    hindered: int = 0


@dataclass(slots=True)
class _News:
    """What the records of one batch say about a process that has to be looked at."""

    executed: bool = False
    kernel_watches: bool = False
    ports: set[int] = field(default_factory=set)


class Watcher:
    """Keeps filter and identities in step with the processes of the host.

    Args:
        proc: Where processes are read.
        selection: Compiled selectors.
        identities: Filled here, read by the later stages.
        kernel_filter: See `Filter`.  Identities are added before a process is let through.
        host: For resource attributes.
        own_pid: Never watched.
        service_name, service_namespace: The deprecated keys of the configuration; empty if not set.
        system_paths: See `Matcher`.
        surroundings: Container and pod of a process, for selectors that ask.
        on_gone: Called with the ids of services that no process refers to any more.
        min_age_s: Processes younger than this wait, unless their parent is watched.
        rescan_s: How often ``/proc`` is read as a whole.
        monotonic_s, unix_ns: Clocks.
    """

    def __init__(
        self,
        proc: ProcFs,
        selection: Selection,
        identities: Identities,
        kernel_filter: Filter,
        host: Host,
        *,
        own_pid: int,
        service_name: str = "",
        service_namespace: str = "",
        system_paths: tuple[str, ...] = (),
        surroundings: SurroundingsOf | None = None,
        on_gone: Callable[[list[int]], None] = lambda services: None,
        min_age_s: float = 0.0,
        rescan_s: float = RESCAN_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.decisions: dict[int, Decision] = {}
        self.counters = Counters()
        self._proc = proc
        self._make_matcher = partial(
            Matcher, languages=Languages(), own_pid=own_pid, system_paths=system_paths, surroundings=surroundings
        )
        self._choose(selection)
        self._filter = kernel_filter
        self._instances = Instances(identities, host, service_name=service_name, service_namespace=service_namespace)
        self._on_gone = on_gone
        self._min_age_s = min_age_s
        self._rescan_s = rescan_s
        self._now = monotonic_s
        self._unix_ns = unix_ns
        self._later: dict[int, float] = {}  # pid to when it is looked at again
        self._scan_wanted = False
        self._scan_allowed_s = 0.0
        self._rescan_due_s = 0.0
        self._look_at_all = False
        self._said_s = -SAY_S
        self._examining: set[int] = set()

    def start(self) -> None:
        """Look at all processes; again at those that were born meanwhile, until there are none."""
        for _ in range(3):
            if not self._scan_new():
                break
        self._rescan_due_s = self._now() + self._rescan_s

    def apply(self, rows: NDArray[Any]) -> None:
        """Take in process records.

        Args:
            rows: ``(n,)`` array of ``struct process_record``, in ring order.  Borrowed.
        """
        with self._if_possible():
            self._apply(rows)

    def _apply(self, rows: NDArray[Any]) -> None:
        news: dict[int, _News] = {}
        columns = (rows[name].tolist() for name in ("event", "watched", "port", "tgid", "parent_tgid", "start_boot_ns"))
        for event, watched, port, pid, parent, start_boot_ns in zip(*columns, strict=True):
            self.counters.records += 1
            start_ticks = self._proc.ticks_of_boot_ns(start_boot_ns)
            if event == FORK:
                if not self._forked(pid, parent, start_ticks):
                    news.setdefault(pid, _News()).kernel_watches |= bool(watched)
            elif event == EXIT:
                news.pop(pid, None)
                self._exited(pid, start_ticks)
            elif event in (EXEC, LISTEN):
                entry = news.setdefault(pid, _News())
                entry.kernel_watches |= bool(watched)
                entry.executed |= event == EXEC
                if event == LISTEN:
                    entry.ports.add(port)
                    self._proc.forget_listening()
        for pid, entry in news.items():
            self._examine(
                pid, ports=frozenset(entry.ports), executed=entry.executed, kernel_watches=entry.kernel_watches
            )
        self._scan_if_wanted()

    def tick(self) -> float:
        """Do what is due; gives the seconds until the next call, less if records come in."""
        now = self._now()
        with self._if_possible():
            if now >= self._rescan_due_s:
                self.rescan(full=self._look_at_all)
                self._look_at_all = False
            self._scan_if_wanted()
            for pid in [pid for pid, due_s in self._later.items() if due_s <= now]:
                del self._later[pid]
                self._examine(pid, settled=True)
        due = [self._rescan_due_s, *self._later.values()]
        if self._scan_wanted:
            due.append(self._scan_allowed_s)
        return max(0.0, min(due) - self._now())

    def rescan(self, *, full: bool = False) -> None:
        """Compare all that is known with ``/proc``.

        Args:
            full: Look at every process again; for when kernel records were lost.
        """
        self.counters.rescans += 1
        self._proc.forget_listening()
        self._scan_new()
        turn = self.counters.rescans % VERIFY_ROUNDS
        for pid, known in list(self.decisions.items()):
            if known.is_final or not (full or known.watched or pid % VERIFY_ROUNDS == turn):
                continue
            if full or not self._is_unchanged(known):
                self._examine(pid)
        self._rescan_due_s = self._now() + self._rescan_s

    def select(self, selection: Selection) -> None:
        """Go by other selectors from now on.  What both select keeps its identity and is not interrupted."""
        self._choose(selection)
        self._proc.forget_listening()
        with self._if_possible():
            for known in sorted(self.decisions.values(), key=lambda known: known.start_ticks):  # parents first
                if known.watched and not self._is_still_wanted(known):
                    known.watched = False
                    self._examine(known.pid, kernel_watches=True)
            for known in list(self.decisions.values()):
                if not known.watched and not known.is_final:
                    self._examine(known.pid)

    def _choose(self, selection: Selection) -> None:
        # Ports open, libraries are loaded and titles are set while a program runs; its path stays.
        self._depends_on_time = any(
            one.ports or one.languages or one.cmd_args or one.needs_metadata for one in selection.selectors
        )
        self._wants_language = selection.wants_language
        self._takes_all = any(selector.source == "discovery.all" for selector in selection.selectors)
        self._matcher = self._make_matcher(selection)

    def _is_still_wanted(self, known: Decision) -> bool:
        process = self._proc.process(known.pid)
        if process is None:
            return True  # its end is another's business
        parent = self._parent_of(process)
        inherits = parent is not None and parent.watched and (parent.family or parent.exe == known.exe != "")
        verdict = self._matcher.judge(process, extra_ports=known.ports, as_child=inherits)
        return verdict.selected or (inherits and not verdict.excluded)

    def stop(self) -> None:
        """Take every process out of the filter."""
        for known in list(self.decisions.values()):
            if known.watched:
                self._tell(known.pid, watch=False)
                known.watched = False

    def watched(self) -> list[Decision]:
        """The processes that are watched now."""
        return [known for known in self.decisions.values() if known.watched]

    # Finding

    @contextlib.contextmanager
    def _if_possible(self) -> Iterator[None]:
        """Without a descriptor to open anything, all stays as it is; soon everything is looked at again."""
        try:
            yield
        except DescriptorError as err:
            self.counters.hindered += 1
            self._look_at_all = True
            self._rescan_due_s = self._now() + HINDERED_S
            if self._now() >= self._said_s + SAY_S:
                self._said_s = self._now()
                log.warning("%s; new processes are found once that is over", err)

    def _scan_new(self) -> int:
        """Look at processes that are not known yet, and forget those that are gone.  Gives the number of new ones."""
        self._scan_wanted = False
        before_s = self._now()
        pids = self._proc.pids()
        alive = set(pids)
        for pid in [pid for pid in self.decisions if pid not in alive]:
            self._forget(self.decisions[pid], tell_filter=True)
        new = [pid for pid in pids if pid not in self.decisions]
        for pid in new:
            if pid not in self.decisions:  # else it was examined as a parent
                self._examine(pid)
        took_s = self._now() - before_s
        self._scan_allowed_s = self._now() + max(SCAN_PAUSE_S, took_s * SCAN_SHARE)
        return len(new)

    def _scan_if_wanted(self) -> None:
        if self._scan_wanted and self._now() >= self._scan_allowed_s:
            self._scan_new()

    def _forked(self, pid: int, parent_pid: int, start_ticks: int) -> bool:
        """Register the child of a watched process without reading it.  False if that cannot be done."""
        parent = self.decisions.get(parent_pid)
        if parent is None or not parent.watched or parent.member is None or pid == parent_pid:
            return False
        known = self.decisions.get(pid)
        if known is not None:
            if known.start_ticks == start_ticks:
                return known.watched
            self._forget(known, tell_filter=False)
        member = self._instances.join_fork(pid, self._proc.start_unix_ns(start_ticks), parent.member)
        self._keep(
            Decision(
                pid, start_ticks, parent_pid, parent.image, parent.exe, True, False, f"child of {parent_pid}",
                parent.ports, family=parent.family, trust_thread=parent.trust_thread, member=member,
            )
        )  # fmt: skip
        self._set_context(pid, parent.trust_thread)
        self._tell(pid, watch=True)  # as the kernel did, unless the pid's last owner was taken out since
        self.counters.watched += 1
        if parent.member.language.runtime == "php":  # the child will say which pool it serves
            self._later[pid] = self._now() + SETTLE_S
        return True

    def _exited(self, pid: int, start_ticks: int) -> None:
        """The kernel lets a dead process through until it is told, so that its last sockets are seen."""
        known = self.decisions.get(pid)
        if known is None or not known.watched:
            self._tell(pid, watch=False)
        elif known.start_ticks == start_ticks:  # else it is a later process with the same pid
            self._forget(known, tell_filter=True)

    # Deciding

    def _examine(
        self,
        pid: int,
        *,
        ports: frozenset[int] = frozenset(),
        executed: bool = False,
        kernel_watches: bool = False,
        settled: bool = False,
    ) -> None:
        self.counters.examined += 1
        process = self._proc.process(pid)
        known = self.decisions.get(pid)
        if process is None:
            self.counters.vanished += 1
            self._scan_wanted |= executed or bool(ports)  # it may have left children behind, as daemons do
            if known is not None:
                self._forget(known, tell_filter=True)
            return
        if known is not None and known.start_ticks != process.stat.start_ticks:
            self._forget(known, tell_filter=True)
            known = None
        if known is not None:
            known.parent = process.stat.parent
            ports |= known.ports if _same_image(known, process) else frozenset()
            hidden = known.image == (0, 0) and executed
            if known.watched and _same_image(known, process) and not hidden:
                if executed:
                    self._tell(pid, watch=True)
                if ports != known.ports or settled:
                    known.ports = ports
                    self._look_again(known, process)
                return
        parent = self._parent_of(process)
        inherits = parent is not None and parent.watched and parent.exe == process.exe and process.exe != ""
        family = (parent is not None and parent.watched and parent.family) or (
            known is not None and known.watched and known.family  # its parent may be gone by now
        )
        verdict = self._matcher.judge(process, extra_ports=ports, as_child=inherits or family)
        wanted = verdict.selected or ((inherits or family) and not verdict.excluded)
        if wanted and not (inherits or family) and self._is_too_young(process):
            verdict, wanted = Verdict(False, False, "younger than discovery.min_process_age"), False
            self._later[pid] = self._now() + min(self._min_age_s, 60.0)
        if not process.still_there():
            self.counters.vanished += 1
            if known is not None:
                self._forget(known, tell_filter=True)
            return
        if known is not None and known.member is not None:
            self._end(known.member)
        decision = Decision(
            pid, process.stat.start_ticks, process.stat.parent, process.stat.image, sys.intern(process.exe),
            wanted, verdict.excluded, verdict.reason, ports,
            is_final=process.stat.is_kernel_thread or verdict.reason == "onlooker itself",
            family=wanted and (family or verdict.descendants),
        )  # fmt: skip
        self._keep(decision)
        if wanted:
            if family and not verdict.selected:
                decision.reason = f"started by {process.stat.parent}"
            self._take(decision, process, verdict, parent if inherits else None)
            return
        if self._wants_language and executed and not verdict.excluded:
            self._later[pid] = self._now() + SETTLE_S
        if kernel_watches or (known is not None and known.watched):
            self.counters.unwatched += 1
            self._tell(pid, watch=False)

    def _take(self, decision: Decision, process: Process, verdict: Verdict, parent: Decision | None) -> None:
        """Watch a process: identity first, so that its first record finds it."""
        language = self._matcher.language(process)
        overrides = verdict.overrides
        if parent is not None and parent.member is not None and not verdict.selected:
            decision.reason, overrides = f"child of {parent.pid}", parent.member.overrides
        decision.member = self._member_of(decision, process, language, parent, overrides)
        self._context(decision, process, language)
        if self._tell(decision.pid, watch=True):
            self.counters.watched += 1
        else:
            decision.watched, decision.reason = False, f"{decision.reason}, but the kernel's filter refused it"
        if language.name in ("python", "ruby", "php", "cpp", "generic"):
            self._later[decision.pid] = self._now() + SETTLE_S
        self._scan_wanted = True  # children that were forked before the filter knew their parent
        if not self._takes_all:
            for other in [known for known in self.decisions.values() if known.parent == decision.pid]:
                if not other.watched and not other.excluded:
                    self._examine(other.pid)

    def _look_again(self, known: Decision, process: Process) -> None:
        """A watched process that listens, or has had time to start: it stays, but may be seen more clearly."""
        member = known.member
        if member is None:
            return
        language = self._matcher.language(process)
        parent = self.decisions.get(known.parent)
        if language != member.language:  # an application host that has loaded its runtime by now
            self._end(member)
            known.member = self._member_of(known, process, language, parent, member.overrides)
        elif language.runtime == "php" and parent is not None and parent.member is not None and member.top != known.pid:
            joined = self._instances.join(process, parent.member, forked=True, language=language)
            if joined is not None:  # its title tells the pool now
                self._end(member)
                known.member = joined
        self._context(known, process, language)

    def _member_of(
        self, decision: Decision, process: Process, language: Language, parent: Decision | None, overrides: Overrides
    ) -> Member:
        """The instance of its parent if it belongs there, else its own."""
        member: Member | None = None
        if parent is not None and parent.member is not None and parent.exe == decision.exe:
            forked = decision.image != (0, 0) and decision.image == parent.image
            member = self._instances.join(process, parent.member, forked=forked, language=language)
        return member or self._instances.found(process, language, overrides)

    def _is_unchanged(self, known: Decision) -> bool:
        """Whether nothing that decides can have changed: a watched process stays, a path says the same as before."""
        process = self._proc.process(known.pid)
        return (
            (known.watched or not self._depends_on_time)
            and process is not None
            and process.stat.start_ticks == known.start_ticks
            and _same_image(known, process)
        )

    def _parent_of(self, process: Process) -> Decision | None:
        pid = process.stat.parent
        if pid > 1 and pid not in self.decisions and pid not in self._examining and len(self._examining) < MAX_PARENTS:
            self._examining.add(process.pid)
            try:
                self._examine(pid)
            finally:
                self._examining.discard(process.pid)
        parent = self.decisions.get(pid)
        return parent if parent is not None and parent.start_ticks <= process.stat.start_ticks else None

    def _is_too_young(self, process: Process) -> bool:
        return self._min_age_s > 0 and self._unix_ns() - process.start_unix_ns < self._min_age_s * 1e9

    def _context(self, decision: Decision, process: Process, language: Language) -> None:
        decision.trust_thread = trusts_thread(process, language)
        self._set_context(decision.pid, decision.trust_thread)

    # Keeping

    def _keep(self, decision: Decision) -> None:
        if len(self.decisions) >= MAX_DECISIONS and decision.pid not in self.decisions:
            # Exited processes that nobody watched are still listed until the next scan: drop the oldest of those.
            for pid, known in self.decisions.items():
                if not known.watched:
                    del self.decisions[pid]
                    self.counters.forgotten += 1
                    break
        self.decisions[decision.pid] = decision

    def _forget(self, known: Decision, *, tell_filter: bool) -> None:
        self.decisions.pop(known.pid, None)
        self._later.pop(known.pid, None)
        if known.watched:
            self.counters.unwatched += 1
            if tell_filter:
                self._tell(known.pid, watch=False)
        if known.member is not None:
            self._end(known.member)
            known.member = None

    def _end(self, member: Member) -> None:
        gone = self._instances.end(member)
        if gone:
            self._on_gone(gone)

    def _tell(self, pid: int, *, watch: bool) -> bool:
        try:
            if watch:
                self._filter.watch(pid)
            else:
                self._filter.unwatch(pid)
        except (AgentError, OSError):  # one process less; the agent's metrics show it
            self.counters.filter_errors += 1
            return False
        return True

    def _set_context(self, pid: int, trust_thread: bool) -> None:
        try:
            self._filter.set_context(pid, trust_thread)
        except (AgentError, OSError):
            self.counters.filter_errors += 1


def _same_image(known: Decision, process: Process) -> bool:
    return known.image == process.stat.image and known.exe == process.exe
