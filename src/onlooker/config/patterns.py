"""Globs and regular expressions of selectors, compiled for Python.

Globs follow the dialect of gobwas/glob without separators: ``*`` crosses ``/``.  Regular expressions follow Go's RE2
syntax; what Python cannot express, or would read differently, is refused with the reason.  The texts that they are
matched against come from processes, so they are cut to `MAX_TEXT` and a glob never backtracks across a star.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

MAX_TEXT = 4096  # PATH_MAX
_MAX_ALTERNATIVES = 512


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled glob or regular expression.

    Attributes:
        source: As it is written in the configuration.
        kind: ``"glob"`` (the whole text must match) or ``"regexp"`` (anywhere, as Go's ``MatchString``).
    """

    source: str
    kind: str
    _search: Callable[[str], object | None] = field(repr=False, compare=False)

    def matches(self, text: str) -> bool:
        """Whether ``text`` is meant."""
        return self._search(text[:MAX_TEXT]) is not None


def glob(source: str) -> Pattern:
    """Compile a glob.

    Raises:
        ValueError: A bracket or brace is not closed, or there are too many alternatives.
    """
    alternatives = [_glob_expression(one) for one in _expand(source)]
    return Pattern(source, "glob", re.compile(f"(?s:{'|'.join(alternatives)})").fullmatch)


def regexp(source: str) -> Pattern:
    """Compile a regular expression written for Go.

    Raises:
        ValueError: It is no regular expression, or not one that both Go and Python read alike.
    """
    try:
        return Pattern(source, "regexp", re.compile(_from_go(source), re.ASCII).search)
    except (re.error, OverflowError, RecursionError) as err:
        raise ValueError(f"not a regular expression: {err}") from err


def _expand(source: str) -> list[str]:
    """Every pattern that the braces of ``source`` stand for; the innermost parts still hold escapes."""
    start = _find(source, "{", 0)
    if start < 0:
        if _find(source, "}", 0) >= 0:
            raise ValueError("'}' without '{' (write \\} for the character)")
        return [source]
    depth, position, cuts = 1, start + 1, [start]
    while depth:
        if position >= len(source):
            raise ValueError("'{' is not closed")
        char = source[position]
        if char == "\\":
            position += 1
        elif char == "[":
            position = _class_end(source, position)
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
        elif char == "," and depth == 1:
            cuts.append(position)
        position += 1
    cuts.append(position - 1)
    head, rest = source[:start], _expand(source[position:])
    found: list[str] = []
    for left, right in pairwise(cuts):
        for middle in _expand(source[left + 1 : right]):
            found += [head + middle + tail for tail in rest]
            if len(found) > _MAX_ALTERNATIVES:
                raise ValueError(f"its braces stand for more than {_MAX_ALTERNATIVES} patterns")
    return found


def _find(source: str, wanted: str, position: int) -> int:
    while position < len(source):
        char = source[position]
        if char == wanted:
            return position
        if char == "\\":
            position += 1
        elif char == "[":
            position = _class_end(source, position)
        position += 1
    return -1


def _class_end(source: str, start: int) -> int:
    position = start + 1
    if source[position : position + 1] == "!":
        position += 1
    position += 1  # a bracket right at the start is a member
    while position < len(source) and source[position] != "]":
        position += 2 if source[position] == "\\" else 1
    if position >= len(source):
        raise ValueError("'[' is not closed")
    return position


def _glob_expression(source: str) -> str:
    """The expression of a brace-free glob.

    The text between two stars is taken at its first place and never moved again: that is enough for a glob, and keeps
    hostile texts linear.
    """
    parts: list[list[str]] = [[]]
    position = 0
    while position < len(source):
        char = source[position]
        if char == "*":
            if parts[-1] or len(parts) == 1:
                parts.append([])
        elif char == "?":
            parts[-1].append(".")
        elif char == "[":
            end = _class_end(source, position)
            parts[-1].append(_glob_class(source[position + 1 : end]))
            position = end
        elif char == "\\":
            position += 1
            if position >= len(source):
                raise ValueError("'\\' at the end escapes nothing")
            parts[-1].append(re.escape(source[position]))
        else:
            parts[-1].append(re.escape(char))
        position += 1
    texts = ["".join(part) for part in parts]
    if len(texts) == 1:
        return texts[0]
    middle = "".join(f"(?>.*?{text})" for text in texts[1:-1])
    return f"{texts[0]}{middle}.*{texts[-1]}"


def _glob_class(body: str) -> str:
    negated, body = body.startswith("!"), body.removeprefix("!")
    members = re.findall(r"\\?(.)(?:(-)\\?(.))?", body, re.S)
    text = ""
    for low, dash, high in members:
        if dash and low > high:
            raise ValueError(f"the range {low}-{high} is the wrong way round")
        text += f"{re.escape(low)}-{re.escape(high)}" if dash else re.escape(low)
    return f"[{'^' if negated else ''}{text}]"


_POSIX = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": "\\x00-\\x7F", "blank": "\\t ", "cntrl": "\\x00-\\x1F\\x7F",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~",
    "punct": "!-/:-@\\[-`{-~", "space": "\\t\\n\\v\\f\\r ",
    "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip


def _from_go(source: str) -> str:
    """Rewrite RE2 syntax to Python's where they differ."""
    multiline = bool(re.match(r"\(\?[is]*m[is]*\)", source))
    out: list[str] = []
    position = 0
    in_class = False
    while position < len(source):
        char, following = source[position], source[position + 1 : position + 2]
        if char == "\\":
            taken, text = _go_escape(source, position)
            out.append(text)
            position = taken
            continue
        if in_class:
            posix = re.match(r"\[:(\^?)(\w+):\]", source[position:])
            if posix:
                if posix[1] or posix[2] not in _POSIX:
                    raise ValueError(f"the character class {posix[0]} is not supported")
                out.append(_POSIX[posix[2]])
                position += len(posix[0])
                continue
            in_class = char != "]"
            out.append("\\[" if char == "[" else char)
        elif char == "[":
            in_class = True
            opening = re.match(r"\[\^?\]?", source[position:])
            assert opening is not None
            out.append(opening[0].replace("]", "\\]"))
            position += len(opening[0])
            continue
        elif char == "$":
            out.append("$" if multiline else "\\Z")  # Go's $ does not match before a final line break
        elif char == "(" and following == "?":
            taken, text = _go_group(source, position)
            out.append(text)
            position = taken
            continue
        else:
            out.append(char)
        position += 1
    return "".join(out)


def _go_escape(source: str, position: int) -> tuple[int, str]:
    rest = source[position:]
    if rest.startswith("\\z"):
        return position + 2, "\\Z"
    if rest.startswith("\\Q"):
        quoted = rest[2:].split("\\E", 1)[0]
        return min(position + 2 + len(quoted) + 2, len(source)), re.escape(quoted)
    wide = re.match(r"\\x\{([0-9A-Fa-f]{1,6})\}", rest)
    if wide:
        code = int(wide[1], 16)
        if code > 0x10FFFF:
            raise ValueError(f"{wide[0]} is no character")
        return position + len(wide[0]), re.escape(chr(code))
    letter = rest[1:2]
    if letter in ("p", "P"):
        raise ValueError("Unicode classes (\\p, \\P) are not supported; write the characters, as in [a-z]")
    if letter in ("Z", "C", "u", "U", "N") or letter in tuple("123456789"):
        raise ValueError(f"\\{letter} is not part of Go's syntax, which this key takes")
    return position + 2, rest[:2]


def _go_group(source: str, position: int) -> tuple[int, str]:
    rest = source[position:]
    if re.match(r"\(\?(<?[=!]|>|\(|#|P=|P>)", rest):
        raise ValueError("look-around, back references and the like are not part of Go's syntax, which this key takes")
    named = re.match(r"\(\?P?<(\w+)>", rest)
    if named:
        return position + len(named[0]), f"(?P<{named[1]}>"
    flags = re.match(r"\(\?([a-zA-Z-]*)([:)])", rest)
    if flags is None:
        raise ValueError(f"cannot read {rest[:8]!r}")
    if set(flags[1]) - set("ims-"):
        raise ValueError(f"the flags {flags[1]!r} are not supported; use i, m or s")
    if flags[2] == ")" and position:
        raise ValueError(f"write the flags {flags[0]} at the start, or as (?{flags[1]}: ... )")
    return position + len(flags[0]), flags[0]
