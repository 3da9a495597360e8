"""Configuration text to a small tree that knows its lines.

Receives the text of a YAML (or JSON) file and the environment that ``${NAME}`` refers to; hands on `Scalar`, `Sequence`
and `Mapping` nodes.  The text may be hostile: depth, number of nodes and size are bounded, tags other than YAML's own
are refused, nothing is ever constructed from a tag, and every fault is a `ConfigError` with its line.

Scalars keep their text: what ``no``, ``010`` or ``1:30`` mean is decided by the key that they stand for, not by YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from onlooker.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32  # the deepest key of the model lies 7 levels down
MAX_NODES = 50_000  # after aliases are followed

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_IMPLICIT_TAGS = _CORE_TAGS | {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_NULLS = {"", "~", "null", "Null", "NULL"}

# ${NAME}, ${env:NAME}, ${NAME:-default}; a doubled dollar sign keeps the braces as they are.
_REFERENCE = re.compile(r"\$\$(?=\{)|\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}\n]*))?\}")
# A reference travels through the YAML parser as a private-use mark, so that a value can neither add structure nor move
# lines, and so that a reference may stand inside a flow mapping.
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as it is written.  ``text`` is None where the file says null or nothing at all."""

    text: str | None
    line: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping; ``lines`` has the line of each key."""

    entries: MappingType[str, Node]
    lines: MappingType[str, int]
    line: int


Node: TypeAlias = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file's tree, and the names that it refers to and that nothing sets."""

    root: Mapping
    unset_names: tuple[tuple[str, int], ...]


def parse(text: str, environ: MappingType[str, str], *, name: str) -> Parsed:
    """Read a configuration text.

    Args:
        text: The file's text.
        environ: What ``${NAME}`` is looked up in.
        name: The file's name, for messages.

    Raises:
        ConfigError: The text is no YAML, is too large or too deep, repeats a key, or its top is not a mapping.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the file is larger than {MAX_BYTES} bytes", place=name)
    if "\ue000" in text or "\ue001" in text:
        raise ConfigError("the file holds private-use characters (U+E000, U+E001)", place=name)
    values: list[str] = []
    unset: list[tuple[str, int]] = []

    def mark(match: re.Match[str]) -> str:
        if match.group(1) is None:
            values.append("$")
        else:
            name_, default = match.groups()
            if default is None and name_ not in environ:
                unset.append((name_, text.count("\n", 0, match.start()) + 1))
            values.append(environ.get(name_) or default or "")
        return f"\ue000{len(values) - 1}\ue001"

    lines = [line if line.lstrip().startswith("#") else None for line in text.split("\n")]
    marked = "\n".join(
        comment if comment is not None else line
        for comment, line in zip(lines, _REFERENCE.sub(mark, text).split("\n"), strict=True)
    )
    unset = [(key, line) for key, line in unset if lines[line - 1] is None]
    _check_shape(marked, name)
    try:
        root = yaml.compose(marked, Loader=_Loader)
    except yaml.YAMLError as err:
        raise _yaml_error(err, name) from err
    if root is None:
        return Parsed(Mapping({}, {}, 1), ())
    tree = _Builder(name, values).node(root, 0)
    if isinstance(tree, Scalar) and tree.text is None:
        return Parsed(Mapping({}, {}, 1), tuple(unset))
    if not isinstance(tree, Mapping):
        raise ConfigError("the file must be a mapping of keys to values", place=f"{name}:{tree.line}")
    return Parsed(tree, tuple(unset))


def _check_shape(text: str, name: str) -> None:
    """Refuse depth and bulk from the stream of events, before anything recurses over them."""
    depth = nodes = 0
    documents = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise ConfigError("the file holds more than one YAML document", place=f"{name}:{line}")
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", place=f"{name}:{line}")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            nodes += isinstance(event, yaml.NodeEvent)
            if nodes > MAX_NODES:
                raise ConfigError(f"more than {MAX_NODES} values", place=f"{name}:{line}")
    except yaml.YAMLError as err:
        raise _yaml_error(err, name) from err


def _yaml_error(err: yaml.YAMLError, name: str) -> ConfigError:
    if isinstance(err, yaml.MarkedYAMLError):
        line = next((mark.line + 1 for mark in (err.problem_mark, err.context_mark) if mark is not None), 1)
        message = " ".join(part for part in (err.problem, err.context) if part)
        return ConfigError(f"not valid YAML: {message}", place=f"{name}:{line}")
    return ConfigError(f"not valid YAML: {' '.join(str(err).split())}", place=name)


class _Builder:
    """Turns PyYAML's nodes into ours, following aliases within the budget of nodes."""

    def __init__(self, name: str, values: list[str]) -> None:
        self.name = name
        self.values = values
        self.left = MAX_NODES

    def node(self, node: yaml.Node, depth: int) -> Node:
        line = node.start_mark.line + 1
        place = f"{self.name}:{line}"
        self.left -= 1
        if self.left < 0:
            raise ConfigError(f"more than {MAX_NODES} values once its aliases are followed", place=place)
        if depth > MAX_DEPTH:
            raise ConfigError(f"nested deeper than {MAX_DEPTH} levels, or an alias that holds itself", place=place)
        if node.tag not in _IMPLICIT_TAGS:
            raise ConfigError(f"the tag {_short_tag(node.tag)} has no meaning here", place=place)
        if isinstance(node, yaml.ScalarNode):
            return Scalar(self._text(node), line)
        if isinstance(node, yaml.SequenceNode):
            return Sequence(tuple(self.node(item, depth + 1) for item in node.value), line)
        return self._mapping(node, depth, line)

    def _mapping(self, node: yaml.Node, depth: int, line: int) -> Mapping:
        own: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: list[Mapping] = []
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            place = f"{self.name}:{key_line}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be a plain word", place=place)
            if key_node.tag.endswith(":merge"):
                value = self.node(value_node, depth + 1)
                for part in value.items if isinstance(value, Sequence) else (value,):
                    if not isinstance(part, Mapping):
                        raise ConfigError("<< takes a mapping, or a list of them", place=place)
                    merged.append(part)
                continue
            key = self._text(key_node)
            if key is None:
                raise ConfigError("a key must not be empty", place=place)
            if key in own:
                raise ConfigError(f"the key {key!r} stands here twice (first in line {lines[key]})", place=place)
            own[key] = self.node(value_node, depth + 1)
            lines[key] = key_line
        for part in merged:
            for key, value in part.entries.items():
                if key not in own:
                    own[key] = value
                    lines[key] = part.lines[key]
        return Mapping(own, lines, line)

    def _text(self, node: yaml.ScalarNode) -> str | None:
        written: str = node.value
        text = _MARK.sub(lambda match: self.values[int(match.group(1))], written)
        if node.style not in ('"', "'", "|", ">") and text in _NULLS:
            return None
        return text


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")
