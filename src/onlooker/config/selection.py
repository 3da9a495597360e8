"""Which processes are meant: the criteria of the configuration as compiled matchers.

`resolve` applies the rules that decide which criteria count; matching a process against them is discovery's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onlooker.config.kinds import Ranges
from onlooker.config.model import Config
from onlooker.config.origins import Note, Origin
from onlooker.config.patterns import Pattern, glob, regexp
from onlooker.config.sections.discovery import METADATA, GlobSelector, RegexpSelector

# onlooker runs as `python3 /usr/bin/onlooker run ...` or `python3 -m onlooker ...`: its executable says nothing.
_SELF_COMMANDS = "{*/onlooker,onlooker,*-m onlooker} {run,top,traces,processes,doctor,config}*"


@dataclass(frozen=True, slots=True)
class Selector:
    """One entry of a selection.  Everything that is set must hold.

    Attributes:
        kind: ``glob`` or ``regexp``.
        source: The key, variable or flag it comes from, such as ``discovery.instrument[0]``.
        exe: Paths of executables; all of them must match.
        ports: Listening TCP ports as inclusive ranges; () for any.
        languages, cmd_args: Patterns; None for any.
        pids: Process ids as inclusive ranges; () for any.
        metadata: Kubernetes and container attributes by key, such as ``k8s_namespace``.
        pod_labels, pod_annotations: Patterns by name.
        name, namespace: Service name and namespace to give; "" for none.
        exports: Signals that the service gives; None for all.
        sampler: Name and argument; None for the global one.
        routes_incoming, routes_outgoing: Route patterns.
        features: Metric features; () for the global ones.
        descendants: Whether all that a chosen process starts is meant too, whatever program it is.
    """

    kind: str
    source: str
    exe: tuple[Pattern, ...] = ()
    ports: Ranges = ()
    languages: Pattern | None = None
    cmd_args: Pattern | None = None
    pids: Ranges = ()
    containers_only: bool = False
    metadata: Mapping[str, Pattern] = field(default_factory=dict)
    pod_labels: Mapping[str, Pattern] = field(default_factory=dict)
    pod_annotations: Mapping[str, Pattern] = field(default_factory=dict)
    name: str = ""
    namespace: str = ""
    exports: frozenset[str] | None = None
    sampler: tuple[str, str] | None = None
    routes_incoming: tuple[str, ...] = ()
    routes_outgoing: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    descendants: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it names no criterion; such a selector chooses nothing."""
        return not (
            self.exe or self.ports or self.languages or self.cmd_args or self.pids
            or self.containers_only or self.needs_metadata
        )  # fmt: skip

    @property
    def needs_metadata(self) -> bool:
        """Whether it asks for what only Kubernetes or a container runtime knows."""
        return bool(self.metadata or self.pod_labels or self.pod_annotations)

    def matches_exe(self, path: str) -> bool:
        """Whether an executable's path is meant; True where none is named."""
        return all(pattern.matches(path) for pattern in self.exe)

    def matches_ports(self, ports: Iterable[int]) -> bool:
        """Whether one of a process's listening ports is meant; True where none is named."""
        return not self.ports or any(within(port, self.ports) for port in ports)

    def matches_language(self, language: str) -> bool:
        """Whether a language is meant; True where none is named."""
        return self.languages is None or self.languages.matches(language)

    def matches_pid(self, pid: int) -> bool:
        """Whether a process id is meant; True where none is named."""
        return not self.pids or within(pid, self.pids)

    def matches_command(self, argv: Sequence[str]) -> bool:
        """Whether a command line is meant, joined by blanks, with or without its first word."""
        if self.cmd_args is None:
            return True
        return self.cmd_args.matches(" ".join(argv)) or self.cmd_args.matches(" ".join(argv[1:]))

    def matches_metadata(
        self, metadata: Mapping[str, str], labels: Mapping[str, str], annotations: Mapping[str, str]
    ) -> bool:
        """Whether what is known of the container and pod is meant; what is not known does not match."""
        return (
            _all_match(self.metadata, metadata)
            and _all_match(self.pod_labels, labels)
            and _all_match(self.pod_annotations, annotations)
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which processes are meant.

    An entry of ``selectors`` is enough; any of the exclusions wins over all of them.  Of several entries that match,
    the last one that sets an override gives it.  Process ids that are named (``target_pids``) are watched whatever the
    default exclusions say.

    Attributes:
        selectors: What to watch.
        exclusions: What the user excluded.
        default_exclusions: What is excluded unless named by process id; onlooker itself is in it at any rate.
        survey: What to report only.
    """

    selectors: tuple[Selector, ...]
    exclusions: tuple[Selector, ...]
    default_exclusions: tuple[Selector, ...]
    survey: tuple[Selector, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be watched."""
        return not self.selectors

    @property
    def wants_ports(self) -> bool:
        """Whether listening ports decide about anything."""
        return any(one.ports for one in (*self.selectors, *self.exclusions, *self.default_exclusions))

    @property
    def wants_language(self) -> bool:
        """Whether languages decide about anything."""
        return any(one.languages for one in (*self.selectors, *self.exclusions, *self.default_exclusions))


def within(number: int, ranges: Ranges) -> bool:
    """Whether a number lies in one of the inclusive ranges."""
    return any(low <= number <= high for low, high in ranges)


def _all_match(patterns: Mapping[str, Pattern], values: Mapping[str, str]) -> bool:
    return all(name in values and pattern.matches(values[name]) for name, pattern in patterns.items())


def resolve(config: Config, origins: Mapping[str, Origin], notes: list[Note]) -> Selection:
    """Apply the rules that decide which criteria count.

    Process ids stand alone; else ``discovery.instrument`` with the top-level criteria as one more entry; else
    ``discovery.services`` likewise; else the top-level criteria; ``discovery.all`` adds everything.
    """
    discovery = config.discovery
    exclusions = (
        *_compile(discovery.exclude_instrument, "discovery.exclude_instrument"),
        *_compile(discovery.exclude_services, "discovery.exclude_services"),
    )
    itself = (
        Selector("glob", "onlooker itself", exe=(glob("*/onlooker"),)),
        Selector("glob", "onlooker itself", cmd_args=glob(_SELF_COMMANDS)),
    )
    survey = _compile(discovery.survey, "discovery.survey")
    if config.target_pids:
        return Selection(
            (Selector("glob", _label(origins, "target_pids"), pids=config.target_pids),), exclusions, itself, survey
        )

    by_regexp = bool(discovery.services) and not discovery.instrument
    if by_regexp:
        selectors = _compile(discovery.services, "discovery.services")
        defaults = _compile(discovery.default_exclude_services, "discovery.default_exclude_services")
    else:
        selectors = _compile(discovery.instrument, "discovery.instrument")
        defaults = _compile(discovery.default_exclude_instrument, "discovery.default_exclude_instrument")
        if discovery.services:
            place = str(origins.get("discovery.services", "discovery.services"))
            notes.append(Note(place, "discovery.services is ignored, because discovery.instrument is set"))
    top = _top_level(config, origins)
    if top is not None:
        selectors = (*selectors, top)
    if discovery.all:
        selectors = (*selectors, Selector("glob", "discovery.all", exe=(glob("*"),)))
    notes += [Note(one.source, "names no criterion, so it chooses nothing") for one in selectors if one.is_empty]
    selectors = tuple(one for one in selectors if not one.is_empty)
    return Selection(selectors, exclusions, (*defaults, *itself), survey)


def _label(origins: Mapping[str, Origin], path: str) -> str:
    """The flag or variable that a top-level criterion comes from, else its key."""
    origin = origins.get(path)
    return origin.place if origin is not None and origin.source in ("flag", "environment") else path


def _top_level(config: Config, origins: Mapping[str, Origin]) -> Selector | None:
    """The one selector that the top-level keys, their variables and flags make together."""
    exe, language, command = config.auto_target_exe, config.auto_target_language, config.auto_target_cmd_args
    legacy = config.executable_name if not (exe or language or command) else ""
    criteria = {
        "open_port": config.open_port,
        "auto_target_exe": exe,
        "auto_target_language": language,
        "auto_target_cmd_args": command,
        "executable_name": legacy,
    }
    named = [_label(origins, path) for path, value in criteria.items() if value]
    if not named:
        return None
    paths = (regexp(legacy),) if legacy else (glob(exe),) if exe else ()
    return Selector(
        "regexp" if legacy else "glob",
        " and ".join(named),
        exe=paths,
        ports=config.open_port,
        languages=glob(language) if language else None,
        cmd_args=glob(command) if command else None,
    )


def _compile(entries: tuple[GlobSelector, ...] | tuple[RegexpSelector, ...], path: str) -> tuple[Selector, ...]:
    listed: list[GlobSelector | RegexpSelector] = [*entries]
    return tuple(_selector(entry, f"{path}[{index}]") for index, entry in enumerate(listed))


def _selector(entry: GlobSelector | RegexpSelector, source: str) -> Selector:
    build: Callable[[str], Pattern] = regexp if isinstance(entry, RegexpSelector) else glob
    exe = [entry.exe_path]
    if isinstance(entry, RegexpSelector):
        exe.append(entry.exe_path_regexp)
    metadata = {key: build(text) for key in METADATA if (text := getattr(entry, key))}
    return Selector(
        kind="regexp" if isinstance(entry, RegexpSelector) else "glob",
        source=source,
        exe=tuple(build(text) for text in exe if text),
        ports=entry.open_ports,
        languages=build(entry.languages) if entry.languages else None,
        cmd_args=build(entry.cmd_args) if entry.cmd_args else None,
        pids=entry.target_pids,
        containers_only=entry.containers_only,
        metadata=metadata,
        pod_labels={name: build(text) for name, text in entry.k8s_pod_labels.items()},
        pod_annotations={name: build(text) for name, text in entry.k8s_pod_annotations.items()},
        name=entry.name,
        namespace=entry.namespace,
        exports=None if entry.exports is None else frozenset(entry.exports),
        sampler=(entry.sampler.name, entry.sampler.arg) if entry.sampler.name else None,
        routes_incoming=entry.routes.incoming,
        routes_outgoing=entry.routes.outgoing,
        features=frozenset(entry.metrics.features),
    )
