"""Whether a process is selected, and by which entry of the configuration.

Within a selector all that is set must hold; one matching selector is enough; an exclusion always wins.  Criteria are
tried by price: pid, path, command line, container, ports, language; the first that fails ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from onlooker.config.selection import Selection, Selector
from onlooker.discover.language import Language, Languages
from onlooker.discover.proc import Process


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What Kubernetes or a container runtime knows about a process.

    Attributes:
        metadata: By the keys of a selector: ``k8s_namespace``, ``container_name`` ...
        labels, annotations: Of the pod.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


SurroundingsOf: TypeAlias = Callable[[Process], Surroundings | None]
"""Looks a process up; None when nothing is known (yet)."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the matching selectors change for the service.  Empty or None: nothing."""

    name: str = ""
    namespace: str = ""
    exports: frozenset[str] | None = None
    sampler: tuple[str, str] | None = None
    routes_incoming: tuple[str, ...] = ()
    routes_outgoing: tuple[str, ...] = ()
    features: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer about one process.

    Attributes:
        selected: Whether the process is chosen by itself.
        excluded: Whether an exclusion forbids it, also as a child of a chosen process.
        reason: For people: by which selector, or why not.
        descendants: What it starts is chosen with it, whatever program it is.
    """

    selected: bool
    excluded: bool
    reason: str
    overrides: Overrides = Overrides()
    descendants: bool = False


class Matcher:
    """Applies a selection.  Holds no state of processes.

    Args:
        selection: From the configuration.
        languages: Shared with the caller, for its cache.
        own_pid: Never watched, whatever is selected.
        system_paths: Executables below these are not examined for their language alone.
        surroundings: For criteria on containers and pods; without it such a selector matches nothing.
    """

    def __init__(
        self,
        selection: Selection,
        languages: Languages,
        *,
        own_pid: int,
        system_paths: tuple[str, ...] = (),
        surroundings: SurroundingsOf | None = None,
    ) -> None:
        self._selectors = selection.selectors
        self._exclusions = (*selection.exclusions, *selection.default_exclusions)
        self._languages = languages
        self._own_pid = own_pid
        self._system_paths = system_paths
        self._surroundings = surroundings

    def judge(self, process: Process, *, extra_ports: frozenset[int] = frozenset(), as_child: bool = False) -> Verdict:
        """Decide about a process.

        Args:
            process: Reads from ``/proc`` what the selectors ask for and nothing else.
            extra_ports: Ports that the kernel said it listens on, whether ``/proc`` shows them already or not.
            as_child: It comes in by its parent if nothing excludes it.
        """
        if process.pid == self._own_pid:
            return Verdict(False, True, "onlooker itself")
        if process.stat.is_kernel_thread:
            return Verdict(False, True, "a kernel thread")
        if not process.exe:
            return Verdict(False, False, "its executable cannot be read")
        subject = _Subject(process, extra_ports, self)
        failures = [subject.first_failure(selector) for selector in self._selectors]
        matching = [one for one, failure in zip(self._selectors, failures, strict=True) if not failure]
        if matching or as_child:
            for selector in self._exclusions:
                if not subject.first_failure(selector):
                    return Verdict(False, True, f"excluded by {selector.source}")
        if matching:
            family = any(one.descendants for one in matching)
            return Verdict(True, False, f"selected by {matching[-1].source}", _merge(matching), family)
        return Verdict(False, False, failures[0] if len(failures) == 1 else "matches no selector")

    def language(self, process: Process) -> Language:
        """As `Languages.detect`."""
        return self._languages.detect(process)

    def surroundings(self, process: Process) -> Surroundings | None:
        """What is known around a process."""
        return self._surroundings(process) if self._surroundings else None

    def is_system_path(self, path: str) -> bool:
        """Whether an executable belongs to the system rather than to a service."""
        return path.startswith(self._system_paths)


class _Subject:
    """A process under examination; costly facts are looked up once for all selectors."""

    def __init__(self, process: Process, extra_ports: frozenset[int], matcher: Matcher) -> None:
        self._process = process
        self._extra_ports = extra_ports
        self._matcher = matcher
        self._language: str | None = None
        self._around: tuple[Surroundings | None] | None = None

    def first_failure(self, selector: Selector) -> str:
        """Why the selector does not match; empty if it does.  A selector that sets nothing matches nothing."""
        process = self._process
        if selector.is_empty:
            return "the selector names no criterion"
        if not selector.matches_pid(process.pid):
            return "another pid is selected"
        if not selector.matches_exe(process.exe):
            return "the path of its executable does not match"
        if selector.cmd_args is not None and not selector.matches_command(process.args):
            return "its command line does not match"
        if selector.containers_only and not process.container_id:
            return "it runs in no container"
        if selector.needs_metadata:
            around = self._surrounding()
            if around is None:
                return "its container and pod are not known"
            if not selector.matches_metadata(around.metadata, around.labels, around.annotations):
                return "its container or pod does not match"
        if selector.ports and not (selector.matches_ports(self._extra_ports) or selector.matches_ports(process.ports)):
            return "it listens on none of the ports"
        if selector.languages is not None:
            alone = not (selector.exe or selector.cmd_args or selector.ports or selector.needs_metadata)
            if alone and self._matcher.is_system_path(process.exe):
                return "programs of the system are not selected by language alone"
            if not selector.matches_language(self._language_name()):
                return f"its language is {self._language_name()}"
        return ""

    def _language_name(self) -> str:
        if self._language is None:
            self._language = self._matcher.language(self._process).name
        return self._language

    def _surrounding(self) -> Surroundings | None:
        if self._around is None:
            self._around = (self._matcher.surroundings(self._process),)
        return self._around[0]


def _merge(matching: Sequence[Selector]) -> Overrides:
    """The last entry that sets an override wins; features come from the last entry alone."""
    name = namespace = ""
    exports: frozenset[str] | None = None
    sampler: tuple[str, str] | None = None
    incoming: tuple[str, ...] = ()
    outgoing: tuple[str, ...] = ()
    for selector in matching:
        name = selector.name or name
        namespace = selector.namespace or namespace
        exports = exports if selector.exports is None else selector.exports
        sampler = selector.sampler or sampler
        if selector.routes_incoming or selector.routes_outgoing:
            incoming, outgoing = selector.routes_incoming, selector.routes_outgoing
    return Overrides(name, namespace, exports, sampler, incoming, outgoing, matching[-1].features or None)
