"""Routes without anybody's help: which segments of a path are words, and which are values that stand for one thing.

Two steps.  `cluster_path` replaces what looks like an identifier by ``*``, by its characters and by a model of letter
pairs.  `RouteTrie` then watches how many different words follow one place, and replaces them all by ``*`` once they
are too many: names of users pass for words, and only their number gives them away.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from onlooker.enrich._letter_pairs import KNOWN, PAIRS, THRESHOLD

MAX_SEGMENTS: Final = 10
SHORTEST_JUDGED: Final = 4
"""Fewer letters say nothing about a word: css, img, eu."""
LONGEST_WORD: Final = 32

_SCORES: Final = {
    a + b: ord(PAIRS[27 * i + j]) - ord("A")
    for i, a in enumerate("abcdefghijklmnopqrstuvwxyz^")
    for j, b in enumerate("abcdefghijklmnopqrstuvwxyz^")
}
_STOP: Final = re.compile(r"[?&#]")
_PLAIN: Final = re.compile(r"[A-Za-z\-_. ]")
_OTHER: Final = re.compile(r"[^A-Za-z\-_. ]")
_SEPARATORS: Final = re.compile(r"[-_. ]")
_CAMEL: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@lru_cache(maxsize=2048)
def is_word(part: str) -> bool:
    """Whether letters look like a word, or like words written together (``getUserById``)."""
    letters = _OTHER.sub("", part)
    if len(letters) < SHORTEST_JUDGED:
        return True
    if len(letters) > LONGEST_WORD:
        return False
    lower = letters.lower()
    if lower in KNOWN:
        return True
    humps = _CAMEL.findall(letters)
    if len(humps) > 2 and len(letters) < 2.5 * len(humps):  # dGVzdA: capitals in no order, as base64 has them
        return False
    framed = f"^{lower}^"
    return sum(_SCORES[framed[i : i + 2]] for i in range(len(framed) - 1)) <= THRESHOLD * (len(framed) - 1)


def _is_name(segment: str) -> bool:
    """Whether a whole segment stays as it is."""
    other = _OTHER.search(segment)
    if other is not None and (other.start() != 1 or _OTHER.search(segment, 2) is not None):
        return False  # v1 stays, and no other mixture of letters with something else
    return all(part and is_word(part) for part in _SEPARATORS.split(segment))


@lru_cache(maxsize=2048)
def _cluster_segment(segment: str, wildcard: str) -> str:
    return segment if not segment or _is_name(segment) else wildcard


def cluster_path(path: str, wildcard: str = "*") -> str:
    """The path with a wildcard for each segment that is no word; at most `MAX_SEGMENTS` segments, the rest is dropped.

    >>> cluster_path("/api/v1/orders/8f14e45f-ceea-467f-9575-6a5b1b1b1b1b/items.json?x=1")
    '/api/v1/orders/*/items.json'
    """
    stop = _STOP.search(path)
    if stop is not None:
        path = path[: stop.start()]
    rooted = path.startswith("/")
    segments = path.split("/", MAX_SEGMENTS + rooted)[: MAX_SEGMENTS + rooted]
    return "/".join([_cluster_segment(segment, wildcard) if len(segment) <= 128 else wildcard for segment in segments])


class _Node:
    __slots__ = ("children", "collapsed")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.collapsed = False

    def size(self) -> int:
        """How many nodes stand below this one."""
        count, stack = 0, [self]
        while stack:
            below = stack.pop().children.values()
            count += len(below)
            stack.extend(below)
        return count


class RouteTrie:
    """The segments seen so far at each place of one service's paths.  At most ``max_nodes`` of them.

    Attributes:
        collapses: How often a place became ``*`` for good: what was answered before may be out of date.
    """

    def __init__(self, max_cardinality: int = 10, wildcard: str = "*", max_nodes: int = 4096) -> None:
        self.collapses = 0
        self._max = max_cardinality
        self._wildcard = wildcard
        self._left = max_nodes
        self._root = _Node()

    def add(self, route: str) -> str:
        """The route with ``*`` where too many different segments were seen."""
        if self._max <= 0:
            return route
        node = self._root
        out = []
        for segment in route.split("/"):
            child = None if node.collapsed else node.children.get(segment)
            if child is None:
                if not node.collapsed and (len(node.children) >= self._max or self._left <= 0):
                    self._collapse(node)
                if node.collapsed:
                    segment = self._wildcard
                child = node.children.get(segment)
                if child is None:
                    child = node.children[segment] = _Node()
                    self._left -= 1
            out.append(segment)
            node = child
        return "/".join(out)

    def _collapse(self, node: _Node) -> None:
        kept = node.children.get(self._wildcard)
        self._left += node.size()
        node.children.clear()
        if kept is not None:
            node.children[self._wildcard] = kept
            self._left -= 1 + kept.size()
        node.collapsed = True
        self.collapses += 1
