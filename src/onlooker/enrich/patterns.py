"""Routes that a user wrote down: ``/users/{id}``, ``/users/:id``, ``/@:name``, ``/static/*``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from onlooker.errors import ConfigError

_BRACES: Final = re.compile(r"^(?P<prefix>[^{}]*)\{[^{}]*\}$")
_COLON: Final = re.compile(
    r"^(?P<prefix>(?:.*\W)?):\w+$"
)  # items:batch is a literal: no word boundary before the colon


class _Node:
    __slots__ = ("literals", "placeholders", "rest", "route")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.placeholders: list[tuple[str, _Node]] = []
        self.route: str | None = None
        self.rest: str | None = None


class PathPatterns:
    """A set of patterns, asked with a path.

    A segment of a pattern is a literal, a placeholder (``{name}`` or ``:name``, any segment), a literal prefix with a
    placeholder behind it (``@:user``, at least one more character), or ``*``, which takes the whole rest.  Literals
    win over placeholders, those over ``*``; placeholders of the same place are tried in the order they were declared.
    Empty segments do not count, so a slash at the end makes no difference.

    Raises:
        ConfigError: A pattern is empty.
    """

    def __init__(self, patterns: Iterable[str], *, place: str = "routes.patterns") -> None:
        self._root = _Node()
        self._any = False
        for pattern in patterns:
            if not pattern.strip():
                raise ConfigError("a route pattern is empty; write a path such as /users/{id}", place=place)
            self._add(pattern.strip())
            self._any = True

    def __bool__(self) -> bool:
        return self._any

    def _add(self, pattern: str) -> None:
        node = self._root
        for segment in _segments(pattern):
            if segment == "*" or (segment.startswith("{") and segment.endswith("...}")):
                node.rest = node.rest or pattern
                return
            match = _BRACES.match(segment) or _COLON.match(segment)
            if match is None:
                node = node.literals.setdefault(segment, _Node())
                continue
            prefix = match["prefix"]
            known = next((child for p, child in node.placeholders if p == prefix), None)
            if known is None:
                known = _Node()
                node.placeholders.append((prefix, known))
            node = known
        node.route = node.route or pattern

    def match(self, path: str) -> str | None:
        """The pattern that a path follows, as it was written."""
        return _find(self._root, _segments(path), 0) if self._any else None


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _find(node: _Node, segments: list[str], at: int) -> str | None:
    # Depth is bounded by the pattern, not by the path.
    if at == len(segments):
        return node.route
    segment = segments[at]
    child = node.literals.get(segment)
    if child is not None and (found := _find(child, segments, at + 1)) is not None:
        return found
    for prefix, child in node.placeholders:
        if (
            len(segment) > len(prefix)
            and segment.startswith(prefix)
            and (found := _find(child, segments, at + 1)) is not None
        ):
            return found
    return node.rest
