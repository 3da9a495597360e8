"""The kinds of values that keys take: how each is read, checked, shown, and described by a JSON schema.

A kind reads the text of an environment variable, a flag or a YAML scalar, and, where it allows them, YAML lists and
mappings.  It raises `BadValue`; the loader adds the place.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from onlooker.config import patterns
from onlooker.config.yaml_text import Mapping, Node, Scalar, Sequence

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Numbers as inclusive ranges, sorted and disjoint."""

Cidr: TypeAlias = tuple[str, str]
"""A network in its canonical form, and the name given to it ("" if none)."""

INT64 = (1 << 63) - 1


class BadValue(ValueError):
    """A value that its key does not take.

    Attributes:
        line: Where in the file, if the value is part of a larger one.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def suggest(word: str, choices: Iterable[str]) -> str:
    """The choices closest to ``word``, as the end of a sentence; "" if none is close."""
    from difflib import get_close_matches

    names = list(choices)
    folded = {name.lower(): name for name in names}
    close = [folded[name] for name in get_close_matches(word.lower(), list(folded), n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def shorten(text: str) -> str:
    """A value for a message: quoted, control characters escaped, not longer than a line."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


class Kind:
    """What a key takes.  Subclasses give at least `from_text`."""

    name = "string"
    from_environment = True  # whether one line of text can hold it

    def from_text(self, text: str) -> Any:
        """The value that a line of text means."""
        raise NotImplementedError

    def from_node(self, node: Node) -> Any:
        """The value that a YAML node means."""
        if not isinstance(node, Scalar):
            raise BadValue(
                f"takes one value ({self.name}), not a {'list' if isinstance(node, Sequence) else 'mapping'}"
            )
        return self.from_text(node.text or "")

    def plain(self, value: Any) -> Any:
        """The value as JSON, in a form that the key takes."""
        return value

    def schema(self) -> dict[str, Any]:
        """JSON schema of what the key takes."""
        return {"type": ["string", "number", "boolean", "null"]}


class Text(Kind):
    """Any text."""

    def from_text(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class OneCharacter(Text):
    """Text of exactly one character."""

    name = "one character"

    def from_text(self, text: str) -> str:
        if len(text) != 1:
            raise BadValue(f"{shorten(text)} must be one character")
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": 1}


@dataclass(frozen=True)
class Bool(Kind):
    """true or false."""

    name = "bool"

    def from_text(self, text: str) -> bool:
        word = text.strip().lower()
        if word in ("true", "yes", "on", "1", "t", "y"):
            return True
        if word in ("false", "no", "off", "0", "f", "n"):
            return False
        raise BadValue(f"{shorten(text)} is neither true nor false")

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "boolean"}, {"enum": ["yes", "no", "on", "off", "true", "false"]}]}


@dataclass(frozen=True)
class Int(Kind):
    """A whole number within bounds."""

    low: int = -INT64
    high: int = INT64
    name = "int"

    def from_text(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text.strip()):
            raise BadValue(f"{shorten(text)} is not a whole number")
        value = int(text)
        if value < self.low or value > self.high:
            raise BadValue(f"{value} is out of range: {self._range()}")
        return value

    def _range(self) -> str:
        if self.high == INT64:
            return f"at least {self.low}"
        return f"{self.low} to {self.high}"

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


PORT = Int(0, 65535)


@dataclass(frozen=True)
class Number(Kind):
    """A finite number, not below ``low``."""

    low: float = 0.0
    name = "number"

    def from_text(self, text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?", text.strip()):
            raise BadValue(f"{shorten(text)} is not a number")
        value = float(text.strip())
        if not self.low <= value < float("inf"):
            raise BadValue(f"{text} is out of range: at least {self.low:g}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low}


class Choice(Kind):
    """One word of a list, in any case."""

    def __init__(self, *words: str, empty: bool = False) -> None:
        self.words = words
        self.empty = empty
        self.name = "one of " + ", ".join(f"`{word}`" for word in words)

    def from_text(self, text: str) -> str:
        word = text.strip().lower()
        if not word and self.empty:
            return ""
        for known in self.words:
            if known.lower() == word:
                return known
        raise BadValue(f"{shorten(text)} is not one of {', '.join(self.words)}{suggest(text, self.words)}")

    def schema(self) -> dict[str, Any]:
        # Words such as `true` are written without quotes in YAML, and letters in any case.
        bools: list[object] = [word == "true" for word in self.words if word in ("true", "false")]
        pattern = "|".join(
            "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c) for c in w) for w in self.words
        )
        options: list[dict[str, Any]] = [
            {"enum": [*self.words, *bools]},
            {"type": "string", "pattern": f"^({pattern})$"},
        ]
        return {"anyOf": [*options, *([{"enum": ["", None]}] if self.empty else [])]}


_GO_DURATION = re.compile(r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(ns|us|µs|μs|ms|s|m|h)")
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Duration(Kind):
    """A length of time in Go's syntax; a float of seconds inside.

    Attributes:
        positive: Whether 0 is refused.
        bare_ms: Whether a bare number is milliseconds, as OpenTelemetry's variables have it.
    """

    positive: bool = False
    bare_ms: bool = False
    name = "duration"

    def from_text(self, text: str) -> float:
        word = text.strip()
        if self.bare_ms and re.fullmatch("[0-9]{1,15}", word):
            value = int(word) / 1000
        elif word == "0":
            value = 0.0
        else:
            parts = _GO_DURATION.findall(word)
            if not parts or "".join(number + unit for number, unit in parts) != word:
                hint = f"; say {word}s, {word}ms or {word}m" if word.isdecimal() else ""
                raise BadValue(f"{shorten(text)} is not a duration such as 500ms, 5s or 1m30s{hint}")
            value = round(sum(float(number) * _GO_UNITS[unit] for number, unit in parts), 9)
        if value > INT64 / 1e9:
            raise BadValue(f"{shorten(text)} is longer than 292 years")
        if self.positive and not value:
            raise BadValue("must be longer than 0")
        return value

    def plain(self, value: float) -> str:
        if value and value < 1:
            return f"{value * 1000:.6f}".rstrip("0").rstrip(".") + "ms"
        for unit, seconds in (("h", 3600), ("m", 60)):
            if value and value % seconds == 0:
                return f"{int(value // seconds)}{unit}"
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"^(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$"}
        return {"anyOf": [text, {"type": "integer", "minimum": 0} if self.bare_ms else {"enum": [0, "0"]}]}


_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*((?:[KMGT]i?)?B?)", re.IGNORECASE | re.ASCII)


class Size(Kind):
    """A number of bytes: ``512MB``, ``64MiB``, or a bare number."""

    name = "size"

    def from_text(self, text: str) -> int:
        found = _SIZE.fullmatch(text.strip())
        if found is None:
            raise BadValue(f"{shorten(text)} is not a size such as 512MB, 64MiB or 1000000")
        unit = found[2].upper().removesuffix("B")
        base = 1024 if unit.endswith("I") else 1000
        value = int(float(found[1]) * base ** " KMGT".index(unit[:1] or " "))
        if value > INT64:
            raise BadValue(f"{shorten(text)} is too large")
        return value

    def plain(self, value: int) -> str | int:
        for base, suffix in ((1000, "B"), (1024, "iB")):
            for power, letter in ((3, "G"), (2, "M"), (1, "K")):
                if value and value % base**power == 0:
                    return f"{value // base**power}{letter}{suffix}"
        return value

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([KMGTkmgt][iI]?)?[bB]?$"}
        return {"anyOf": [{"type": "integer", "minimum": 0}, text]}


@dataclass(frozen=True)
class IntEnum(Kind):
    """Numbers and ranges: ``80``, ``80,443``, ``8000-8999``, or a YAML list of such."""

    high: int = 65535
    name = "numbers and ranges"

    def from_text(self, text: str) -> Ranges:
        return _join(self._range(part) for part in text.split(",") if part.strip())

    def from_node(self, node: Node) -> Ranges:
        if not isinstance(node, Sequence):
            return super().from_node(node)  # type: ignore[no-any-return]  # this class's own from_text
        found: list[tuple[int, int]] = []
        for item in node.items:
            if not isinstance(item, Scalar) or item.text is None:
                raise BadValue("takes numbers and ranges", item.line)
            found += self.from_text(item.text)
        return _join(found)

    def _range(self, text: str) -> tuple[int, int]:
        match = re.fullmatch(r"\s*([0-9]{1,10})\s*(?:-\s*([0-9]{1,10})\s*)?", text)
        if match is None:
            raise BadValue(f"{shorten(text)} is not a number or a range; write 80, 80,443 or 8000-8999")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise BadValue(f"the range {low}-{high} is the wrong way round")
        if high > self.high:
            raise BadValue(f"{high} is out of range: at most {self.high}")
        return low, high

    def plain(self, value: Ranges) -> str:
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in value)

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"^[0-9,\s-]*$"}
        one = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": self.high}, text]}
        return {"anyOf": [*one["anyOf"], {"type": "array", "items": one}]}


def _join(ranges: Iterable[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


class Glob(Text):
    """A glob; `patterns.glob` compiles it."""

    name = "glob"

    def from_text(self, text: str) -> str:
        try:
            patterns.glob(text)
        except ValueError as err:
            raise BadValue(f"{shorten(text)} is not a glob: {err}") from err
        return text


class Regexp(Text):
    """A regular expression in Go's syntax; `patterns.regexp` compiles it."""

    name = "regexp"

    def from_text(self, text: str) -> str:
        try:
            patterns.regexp(text)
        except ValueError as err:
            raise BadValue(f"{shorten(text)}: {err}") from err
        return text


class ListOf(Kind):
    """A list of one kind; commas separate in text."""

    def __init__(self, item: Kind) -> None:
        self.item = item
        self.name = f"list of {item.name}"

    def from_text(self, text: str) -> tuple[Any, ...]:
        return tuple(self.item.from_text(part.strip()) for part in text.split(",") if part.strip())

    def from_node(self, node: Node) -> tuple[Any, ...]:
        if isinstance(node, Scalar):
            return self.from_text(node.text or "")
        if isinstance(node, Mapping):
            raise BadValue(f"takes a {self.name}, not a mapping")
        found = []
        for item in node.items:
            try:
                found.append(self.item.from_node(item))
            except BadValue as err:
                raise BadValue(str(err), err.line or item.line) from err
        return tuple(found)

    def plain(self, value: SequenceType[Any]) -> Any:
        return [self.item.plain(item) for item in value]

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "array", "items": self.item.schema()}, {"type": ["string", "number"]}]}


class MapOf(Kind):
    """A mapping of any names to one kind; ``a=1,b=2`` in text."""

    def __init__(self, item: Kind) -> None:
        self.item = item
        self.name = f"map of name to {item.name}"
        self.from_environment = isinstance(item, Text)

    def from_text(self, text: str) -> dict[str, Any]:
        found = {}
        for part in text.split(","):
            if not part.strip():
                continue
            name, equals, value = part.partition("=")
            if not equals or not name.strip():
                raise BadValue(f"{shorten(part)} is not of the form name=value")
            found[name.strip()] = self.item.from_text(unquote(value.strip()))
        return found

    def from_node(self, node: Node) -> dict[str, Any]:
        if isinstance(node, Scalar):
            return self.from_text(node.text or "")
        if isinstance(node, Sequence):
            raise BadValue(f"takes a {self.name}, not a list")
        found = {}
        for name, item in node.entries.items():
            try:
                found[name] = self.item.from_node(item)
            except BadValue as err:
                raise BadValue(f"{name}: {err}", err.line or node.lines[name]) from err
        return found

    def plain(self, value: dict[str, Any]) -> Any:
        return {name: self.item.plain(item) for name, item in value.items()}

    def schema(self) -> dict[str, Any]:
        mapping = {"type": "object", "additionalProperties": self.item.schema()}
        return {"anyOf": [mapping, {"type": "string"}]} if self.from_environment else mapping


class Headers(MapOf):
    """HTTP headers: a mapping, or ``name=value,name=value`` with percent-encoding, as OTLP exporters take them."""

    def __init__(self) -> None:
        super().__init__(Text())
        self.name = "headers"

    def from_text(self, text: str) -> dict[str, Any]:
        return self._checked(super().from_text(text))

    def from_node(self, node: Node) -> dict[str, Any]:
        return self._checked(super().from_node(node))

    def _checked(self, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise BadValue(f"{shorten(name)} is not the name of a header")
            if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
                raise BadValue(f"the header {name} holds a control character")
        return headers


class CidrItem(Kind):
    """A network, or ``{cidr: network, name: text}``."""

    name = "network"

    def from_text(self, text: str) -> Cidr:
        try:
            return str(ipaddress.ip_network(text.strip(), strict=False)), ""
        except ValueError as err:
            raise BadValue(f"{shorten(text)} is not a network such as 10.0.0.0/8") from err

    def from_node(self, node: Node) -> Cidr:
        if not isinstance(node, Mapping):
            return super().from_node(node)  # type: ignore[no-any-return]  # this class's own from_text
        parts: dict[str, str] = {}
        for key, item in node.entries.items():
            if key not in ("cidr", "name") or not isinstance(item, Scalar):
                raise BadValue(f"{shorten(key)} is not a key of a network, which takes cidr and name", node.lines[key])
            parts[key] = item.text or ""
        return self.from_text(parts.get("cidr", ""))[0], parts.get("name", "")

    def plain(self, value: Cidr) -> Any:
        return {"cidr": value[0], "name": value[1]} if value[1] else value[0]

    def schema(self) -> dict[str, Any]:
        one = {"type": "object", "properties": {"cidr": {"type": "string"}, "name": {"type": "string"}}}
        return {"anyOf": [{"type": "string"}, {**one, "required": ["cidr"], "additionalProperties": False}]}


class Switch(Kind):
    """on, off or auto, as ``instrument_cuda`` takes them; true and false are read too."""

    name = "one of `on`, `off`, `auto`"

    def from_text(self, text: str) -> str:
        word = text.strip().lower()
        meaning = {"true": "on", "1": "on", "2": "auto", "false": "off", "0": "off"}.get(word, word)
        if meaning not in ("on", "off", "auto"):
            raise BadValue(f"{shorten(text)} is not one of on, off, auto")
        return meaning

    def schema(self) -> dict[str, Any]:
        return {"enum": ["on", "off", "auto", True, False, 0, 1, 2]}


TEXT = Text()
BOOL = Bool()
COUNT = Int(0)
DURATION = Duration()
SIZE = Size()
TEXTS = ListOf(TEXT)
NUMBERS = ListOf(Number())
PORTS = IntEnum()
PIDS = IntEnum(4_194_304)  # the kernel's PID_MAX_LIMIT on 64 bits
