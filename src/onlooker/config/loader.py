"""From a file, the environment and flags to a `Loaded` configuration.

Later sources win: defaults, the file, the environment, flags.  Every value keeps its origin.  What is wrong stops the
start with a `ConfigError` that names the place and what would do; what is accepted but changes nothing becomes a
`Note`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.config import settle
from onlooker.config.keys import Field, Items, KeyPath, Section, fields_of, walk
from onlooker.config.kinds import PORT, TEXT, BadValue, Headers, Kind, MapOf, suggest
from onlooker.config.model import Config
from onlooker.config.origins import Note, Origin
from onlooker.config.selection import Selection, resolve
from onlooker.config.yaml_text import Mapping as MappingNode
from onlooker.config.yaml_text import Node, Parsed, Scalar, Sequence, parse
from onlooker.errors import ConfigError

CONFIG_PATH_NAMES = ("ONLOOKER_CONFIG_PATH", "OTEL_EBPF_CONFIG_PATH", "BEYLA_CONFIG_PATH")
_OWN_PREFIXES = ("ONLOOKER_", "OTEL_EBPF_", "BEYLA_")
# What Kubernetes sets in every pod for a service of our name is no setting.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_HINTS = {
    "file_format": "this is a configuration of version 2, which is not read; version 1 is",
    "extensions": "this is a configuration of version 2, which is not read; version 1 is",
    "ebpf.enable_context_propagation": "it is called ebpf.context_propagation",
    "ebpf.http": "it is called ebpf.payload_extraction.http",
}


@dataclass(frozen=True)
class Loaded:
    """A configuration that was read and checked.

    Attributes:
        config: The values, derived ones included.
        selection: Which processes are meant, compiled.
        origins: Where each value that is not a default comes from, by path.
        notes: What is worth telling once: keys that change nothing, deprecated ones, unknown variables.
        path: The file, if there was one.
        resource: Resource attributes of ``OTEL_RESOURCE_ATTRIBUTES``, for every service.
    """

    config: Config
    selection: Selection
    origins: Mapping[str, Origin]
    notes: tuple[Note, ...]
    path: Path | None
    resource: Mapping[str, str]


def load(
    path: str | Path | None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, tuple[str, str]] | None = None,
    euid: int = 0,
) -> Loaded:
    """Read a configuration.

    Args:
        path: The file; None for the one that the environment names, or none at all.
        environ: The environment.
        flags: Key path to the flag's name and its text.
        euid: Effective user id, which decides where state is kept by default.

    Raises:
        ConfigError: Something is wrong.  The first fault is the message; further ones are its ``__notes__``.
    """
    file = _file_of(path, environ)
    text = None
    if file is not None:
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except OSError as err:
            raise ConfigError(f"cannot read the configuration: {err.strerror or err}", place=str(file)) from err
        except UnicodeDecodeError as err:
            raise ConfigError(f"not UTF-8 (byte {err.start})", place=str(file)) from err
    return load_text(text, name=str(file or ""), environ=environ, flags=flags or {}, euid=euid)


def load_text(
    text: str | None,
    *,
    name: str,
    environ: Mapping[str, str],
    flags: Mapping[str, tuple[str, str]],
    euid: int = 0,
) -> Loaded:
    """As `load`, from a text."""
    reader = _Reader(name)
    if text is not None:
        reader.read_file(parse(text, environ, name=name))
    resource = reader.read_environment(environ)
    reader.read_flags(flags)
    reader.raise_problems()
    config = _build(Config, reader.values, ())
    config = settle.settle(config, reader.origins, reader.notes, environ=environ, euid=euid)
    selection = resolve(config, reader.origins, reader.notes)
    return Loaded(
        config, selection, reader.origins, tuple(reader.notes), Path(name) if text is not None else None, resource
    )


def _file_of(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return Path(path)
    named = next((environ[name] for name in CONFIG_PATH_NAMES if environ.get(name)), None)
    return Path(named) if named else None


def _build(section: type[Section], values: Mapping[tuple[str, ...], Any], above: tuple[str, ...]) -> Any:
    found: dict[str, Any] = {}
    for field in fields_of(section):
        where = (*above, field.attribute)
        if field.section is not None:
            found[field.attribute] = _build(field.section, values, where)
        elif where in values:
            found[field.attribute] = values[where]
    return section(**found)


class _Reader:
    """Gathers values, their origins, notes and faults."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[tuple[str, ...], Any] = {}
        self.origins: dict[str, Origin] = {}
        self.notes: list[Note] = []
        self.problems: list[ConfigError] = []
        self.keys = {key.path: key for key in walk(Config)}

    def raise_problems(self) -> None:
        if self.problems:
            first, *others = self.problems
            for other in others:
                first.add_note(str(other))
            raise first

    # --- the file

    def read_file(self, parsed: Parsed) -> None:
        for name, line in parsed.unset_names:
            self.notes.append(Note(f"{self.name}:{line}", f"${{{name}}} is not set and stands for nothing"))
        self._read_section(Config, parsed.root, "", ())

    def _read_section(self, section: type[Section], node: MappingNode, path: str, above: tuple[str, ...]) -> None:
        for field, item, line in self._fields(section, node, path):
            below = f"{path}.{field.name}" if path else field.name
            where = (*above, field.attribute)
            if isinstance(item, Scalar) and (item.text is None or (not item.text and field.section)):
                continue  # nothing stands there: the default holds
            if field.section is not None:
                if isinstance(item, MappingNode):
                    self._read_section(field.section, item, below, where)
                else:
                    self._fault(below, item.line, "takes a mapping of keys to values")
                continue
            key = self.keys[below]
            value = self._value(key.key.kind, item, below)
            if value is not None:
                self._keep(key, value[0], Origin("file", f"{self.name}:{line}"))

    def _fields(self, section: type[Section], node: MappingNode, path: str) -> Iterable[tuple[Field, Node, int]]:
        known = {field.name: field for field in fields_of(section)}
        known |= {alias: f for f in known.values() if f.key is not None for alias in f.key.aliases}
        for name, item in node.entries.items():
            if name in known:
                yield known[name], item, node.lines[name]
            else:
                self._unknown(name, path, node.lines[name], list(known))

    def _unknown(self, name: str, path: str, line: int, known: list[str]) -> None:
        below = f"{path}.{name}" if path else name
        hint = suggest(name, known)
        if below in _HINTS:
            hint = f"; {_HINTS[below]}"
        elif not hint:
            elsewhere = [key for key in self.keys if key.rpartition(".")[2] == name or key.startswith(f"{name}.")]
            hint = f"; there is {elsewhere[0]}" if elsewhere else ""
        if not hint:
            hint = f"; {path or 'the top'} takes {', '.join(sorted(known))}" if len(known) <= 30 else ""
        self._fault(below if len(below) <= 100 else below[:97] + "...", line, f"no such key{hint}")

    def _value(self, kind: Kind, node: Node, path: str) -> tuple[Any] | None:
        """The value in a box, or None if it is faulty (which is kept in `problems`)."""
        try:
            if isinstance(kind, Items):
                return (self._items(kind.section, node, path),)
            return (kind.from_node(node),)
        except BadValue as err:
            self._fault(path, err.line or node.line, str(err))
            return None

    def _items(self, section: type[Section], node: Node, path: str) -> tuple[Section, ...]:
        if isinstance(node, Scalar) and node.text is None:
            return ()
        if not isinstance(node, Sequence):
            raise BadValue("takes a list; begin each entry with a dash")
        found: list[Section] = []
        for index, item in enumerate(node.items):
            below = f"{path}[{index}]"
            if isinstance(item, MappingNode):
                found.append(self._item(section, item, below))
            else:
                self._fault(below, item.line, "takes a mapping of keys to values")
        return tuple(found)

    def _item(self, section: type[Section], node: MappingNode, path: str) -> Section:
        found: dict[str, Any] = {}
        for field, item, line in self._fields(section, node, path):
            below = f"{path}.{field.name}"
            if isinstance(item, Scalar) and item.text is None:
                continue
            if field.section is not None:
                if isinstance(item, MappingNode):
                    found[field.attribute] = self._item(field.section, item, below)
                else:
                    self._fault(below, item.line, "takes a mapping of keys to values")
                continue
            assert field.key is not None
            value = self._value(field.key.kind, item, below)
            if value is not None:
                found[field.attribute] = value[0]
                self._note_use(below, field.key.unused, field.key.deprecated, f"{self.name}:{line}")
        return section(**found)

    def _fault(self, path: str, line: int, message: str) -> None:
        self.problems.append(ConfigError(f"{path}: {message}", place=f"{self.name}:{line}"))

    # --- the environment

    def read_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Read every key's variables; gives the attributes of ``OTEL_RESOURCE_ATTRIBUTES``."""
        known = set(CONFIG_PATH_NAMES)
        for key in self.keys.values():
            known.update(key.env)
            names = [found for name in key.env if (found := _present(name, environ))]
            for name in reversed(names) if isinstance(key.key.kind, Headers) else names[:1]:
                self._read_variable(key, name, environ[name])
        self._note_unknown_variables(environ, known)
        resource: dict[str, str] = {}
        try:
            resource = _ATTRIBUTES.from_text(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        except BadValue as err:
            self.notes.append(Note("OTEL_RESOURCE_ATTRIBUTES", f"left out: {err}"))
        return resource

    def _read_variable(self, key: KeyPath, name: str, text: str) -> None:
        ours = name.startswith(_OWN_PREFIXES)
        if key.key.kind is PORT and _SERVICE_LINK.search(name) and "://" in text:
            self.notes.append(Note(name, "left out: Kubernetes set it for a service of that name"))
            return
        try:
            value = key.key.kind.from_text(text)
        except BadValue as err:
            if ours:
                self.problems.append(ConfigError(f"{key.path}: {err}", place=name))
            else:  # OpenTelemetry's rule for the variables that all its programs share
                self.notes.append(Note(name, f"left out: {err}"))
            return
        if isinstance(key.key.kind, Headers):
            value = {**self.values.get(key.attributes, {}), **value}
        self._keep(key, value, Origin("environment", name))

    def _note_unknown_variables(self, environ: Mapping[str, str], known: set[str]) -> None:
        for name in sorted(environ):
            if not name.startswith(_OWN_PREFIXES) or name in known or _SERVICE_LINK.search(name):
                continue
            if name.startswith("BEYLA_OTEL_") and f"OTEL_EBPF_{name[11:]}" in known:
                continue
            self.notes.append(Note(name, f"no key has this variable{suggest(name, known)}"))

    # --- flags

    def read_flags(self, flags: Mapping[str, tuple[str, str]]) -> None:
        for path, (flag, text) in flags.items():
            key = self.keys[path]
            try:
                self._keep(key, key.key.kind.from_text(text), Origin("flag", flag))
            except BadValue as err:
                self.problems.append(ConfigError(str(err), place=flag))

    # --- all

    def _keep(self, key: KeyPath, value: Any, origin: Origin) -> None:
        self.values[key.attributes] = value
        self.origins[key.path] = origin
        shared = origin.source == "environment" and not origin.place.startswith(_OWN_PREFIXES)
        if value != key.default and not shared:
            self._note_use(key.path, key.unused, key.key.deprecated, origin.place)

    def _note_use(self, path: str, unused: str, deprecated: str, place: str) -> None:
        if unused:
            self.notes.append(Note(place, f"{path} changes nothing: {unused}"))
        if deprecated:
            self.notes.append(Note(place, f"{path} works, but is deprecated: use {deprecated}"))


_ATTRIBUTES = MapOf(TEXT)


def _present(name: str, environ: Mapping[str, str]) -> str:
    """The variable of that name, or of its oldest spelling, that is set; empty ones count as not set."""
    if environ.get(name):
        return name
    oldest = f"BEYLA_OTEL_{name.removeprefix('OTEL_EBPF_')}"
    return oldest if name.startswith("OTEL_EBPF_") and environ.get(oldest) else ""
