"""SQL text: take the literals out, and name what is left.

Receives statements as they stand on the wire, often cut at the end.  Hands on `Statement`: text without literals, verb,
first table, and a summary of low cardinality for the span name.  May drop what lies behind `MAX_CHARS`.

Two passes.  `_strip` is one compiled expression a dialect: strings, numbers and comments go, whatever runs into the end
of a cut text goes with it.  The result is the key of a bounded cache, so statements with inlined literals share one
entry.  Only a new key is tokenized (`_describe`).  Both passes are linear: every alternative consumes a delimiter or
runs to the end of the text, and no alternative can match the same text in two ways.
"""

# ruff: noqa: SIM905  # words in a text read better than a list of a hundred quoted ones
from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_CHARS: Final = 8192
"""Longest text that is looked at, twice what the kernel sends."""
MAX_TEXT_CHARS: Final = 2048
"""Longest obfuscated text that is handed on."""
MAX_SUMMARY_CHARS: Final = 255
"""As the semantic conventions ask for `db.query.summary`."""
MAX_TOKENS: Final = 4096
MAX_STATEMENTS: Final = 64
MAX_TARGETS: Final = 8
MAX_IDENTIFIER_CHARS: Final = 128
EXACT_CHARS: Final = 1024
"""Longest raw text that is cached as it is."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What can be told of one statement without its literals.

    Attributes:
        text: Literals are ``?``, comments are gone, lists are folded.
        operation: The verb in upper case; "" if there is none.
        collection: The first table, as written but without quotes; "" if there is none.
        summary: Verbs and tables in order: the span name.
        procedure: What CALL or EXEC calls; "" otherwise.
    """

    text: str
    operation: str
    collection: str
    summary: str
    procedure: str = ""


NOTHING: Final = Statement("", "", "", "")

# The lookbehind keeps the digits of identifiers and parameters ($1, @p1, :1, t1) from being taken for literals.
_FREE = r"(?<![\w$@:#])"
_NUMBER = _FREE + r"(?:\d\w*(?:\.\w*)*(?:(?<=[eE])[+-]\d+)?|\.\d\w*(?:(?<=[eE])[+-]\d+)?)"
_PLAIN_STRING = r"'[^']*(?:''[^']*)*(?:'|\Z)"
_ESCAPED_STRING = r"'[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\\?\Z)"
_AFTER_E = r"(?<=[eE])(?<![\w$][eE])"
_ESCAPED_DOUBLE = r'"[^"\\]*(?:(?:\\.|"")[^"\\]*)*(?:"|\\?\Z)'
_QUOTED = r'"[^"]*(?:""[^"]*)*(?:"|\Z)'
_BACKTICKS = r"`[^`]*(?:``[^`]*)*(?:`|\Z)"
_BLOCK_COMMENT = r"/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/|\*?\Z)"
_SPACE = r"[\t\n\r\f\v\x00]\s*|  \s*"


def _expression(first: str, comments: str, literals: str, identifiers: str) -> re.Pattern[str]:
    """``first`` are the characters that anything of interest begins with: the others are passed quickly."""
    return re.compile(
        rf"(?=[\s\x00\d.{first}])(?:(?P<literal>{_NUMBER}|{literals})|(?P<space>{_SPACE}|{comments})|(?P<name>{identifiers}))",
        re.DOTALL,
    )


_DOLLAR_STRING = r"(?<![\w$])\$(?P<tag>[^\W\d]\w*)?\$.*?(?:\$(?(tag)(?P=tag))\$|\Z)"
_DASHES = r"--[^\n]*"
# A comment of the form /*! ... */ is executed: only its frame is white space.
_MYSQL_COMMENTS = rf"--(?=\s|\Z)[^\n]*|\#[^\n]*|/\*M?!\d*|\*/|{_BLOCK_COMMENT}"
_STRIP: Final[dict[str, re.Pattern[str]]] = {
    "postgresql": _expression(
        r"""'"$/\-""",
        f"{_DASHES}|{_BLOCK_COMMENT}",
        f"{_AFTER_E}{_ESCAPED_STRING}|{_PLAIN_STRING}|{_DOLLAR_STRING}",
        _QUOTED,
    ),
    # standard_conforming_strings = off
    "postgresql-escapes": _expression(
        r"""'"$/\-""", f"{_DASHES}|{_BLOCK_COMMENT}", f"{_ESCAPED_STRING}|{_DOLLAR_STRING}", _QUOTED
    ),
    "mysql": _expression(r"""'"`/*#\-""", _MYSQL_COMMENTS, f"{_ESCAPED_STRING}|{_ESCAPED_DOUBLE}", _BACKTICKS),
    # sql_mode NO_BACKSLASH_ESCAPES
    "mysql-plain": _expression(r"""'"`/*#\-""", _MYSQL_COMMENTS, f"{_PLAIN_STRING}|{_QUOTED}", _BACKTICKS),
    "mssql": _expression(
        r"""'"\[/\-$\u00a3\u20ac""",
        f"{_DASHES}|{_BLOCK_COMMENT}",
        f"{_PLAIN_STRING}|{_FREE}[$\u00a3\u20ac]\\s?\\d[\\d.]*",
        rf"{_QUOTED}|\[[^\]]*(?:\]\][^\]]*)*(?:\]|\Z)",
    ),
}
_PREFIX: Final = re.compile(r"(?<![\w$])(?:[eEbBxXnN]|[uU]&|_\w{2,16} ?)\?")
"""What stood before the quote of a literal: E'', N'', _utf8''."""
DIALECTS: Final = frozenset(_STRIP)

_NESTING: Final = frozenset({"postgresql", "postgresql-escapes", "mssql"})
"""Dialects in which a block comment may stand inside another."""


def _replace(match: re.Match[str]) -> str:
    kind = match.lastgroup
    return "?" if kind == "literal" else " " if kind == "space" else match[0]


def _replace_nested(text: str, pattern: re.Pattern[str]) -> str:
    """As ``pattern.sub(_replace, text)``, with nested block comments."""
    parts: list[str] = []
    at = 0
    while match := pattern.search(text, at):
        parts.append(text[at : match.start()])
        parts.append(_replace(match))
        at = match.end()
        if match[0].startswith("/*"):
            at = _comment_end(text, match.start())
    parts.append(text[at:])
    return "".join(parts)


_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")


def _comment_end(text: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)


def _strip(text: str, dialect: str) -> str:
    """``text`` without literals, comments and superfluous white space."""
    pattern = _STRIP[dialect]
    if dialect in _NESTING and text.count("/*") > 1:
        return _replace_nested(text, pattern).strip()
    return pattern.sub(_replace, text).strip()


_TOKEN: Final = re.compile(
    r"""(?P<quoted>"[^"]*(?:""[^"]*)*(?:"|\Z)|`[^`]*(?:``[^`]*)*(?:`|\Z))"""
    r"""|(?P<bracket>\[[^\]]*(?:\]\][^\]]*)*(?:\]|\Z))"""
    r"""|(?P<parameter>\?|\$\d+|%\(\w*\)s|%s|:\w+|@\w*)"""
    r"""|(?P<word>[^\W\d][\w$\#]*)"""
    r"""|(?P<punctuation>[(),;.])"""
    r"""|(?P<other>[^\s"`\[?$%:@\w(),;.]+|\S)"""
)

_VERBS: Final = frozenset(
    """ABORT ALTER ANALYZE BACKUP BEGIN CALL CHECK CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE
    DECLARE DELETE DENY DESC DESCRIBE DISCARD DO DROP END EXEC EXECUTE EXPLAIN FETCH FLUSH GRANT HANDLER IF
    IMPORT INSERT INSTALL KILL LISTEN LOAD LOCK MERGE MOVE NOTIFY OPEN OPTIMIZE PRAGMA PREPARE PRINT PURGE
    REASSIGN REFRESH REINDEX RELEASE RENAME REPAIR REPLACE RESET RESTORE REVOKE ROLLBACK SAVE SAVEPOINT SECURITY
    SELECT SET SHOW SHUTDOWN START STOP TABLE TRUNCATE UNLISTEN UNLOCK UPDATE USE VACUUM VALUES WAITFOR WHILE
    WITH XA""".split()
)
_DATA_VERBS: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "VALUES", "TABLE"})
_BEFORE_NESTED_VERB: Final = frozenset({")", "AS", "(", "EXPLAIN", "ANALYZE", "VERBOSE", "FOR", "?", "BEGIN", ""})
_NOT_A_VERB_AFTER: Final = frozenset({"KEY", "ON", "DO", "OR", "BEFORE", "AFTER", "OF"})
_NO_TARGET: Final = frozenset(
    """BEGIN CLOSE COMMIT DEALLOCATE DECLARE DO END EXECUTE FETCH KILL LISTEN MOVE NOTIFY PREPARE RELEASE RESET
    ROLLBACK SAVEPOINT SET SHOW START UNLISTEN USE GRANT REVOKE""".split()
)
"""Verbs whose names are cursors, channels, settings or people."""
_TARGET_WORDS: Final[dict[str, frozenset[str]]] = {
    "SELECT": frozenset({"FROM", "JOIN", "APPLY"}),
    "INSERT": frozenset({"INTO"}),
    "REPLACE": frozenset({"INTO"}),
    "MERGE": frozenset({"INTO", "USING"}),
    "UPDATE": frozenset({"FROM", "JOIN"}),
    "DELETE": frozenset({"FROM", "USING", "JOIN"}),
    "COPY": frozenset(),
    "TRUNCATE": frozenset({"TABLE"}),
    "LOCK": frozenset({"TABLE", "TABLES"}),
    "ALTER": frozenset({"TABLE", "VIEW"}),
    "DROP": frozenset({"TABLE", "VIEW"}),
    "CREATE": frozenset({"TABLE", "VIEW", "ON"}),
    "ANALYZE": frozenset({"TABLE"}),
    "OPTIMIZE": frozenset({"TABLE"}),
    "DESCRIBE": frozenset(),
    "DESC": frozenset(),
    "VACUUM": frozenset(),
    "TABLE": frozenset(),
    "REFRESH": frozenset({"VIEW"}),
    "LOAD": frozenset({"TABLE"}),
}
_TARGET_RIGHT_AWAY: Final = frozenset(
    """UPDATE INSERT REPLACE MERGE DELETE COPY TRUNCATE LOCK ANALYZE VACUUM DESCRIBE DESC TABLE CALL EXEC""".split()
)
"""Verbs that a table (or a procedure) may follow without another word."""
_FILLER: Final = frozenset(
    """ALL CONCURRENTLY DELAYED EXISTS EXTERNAL FOREIGN FULL GLOBAL HIGH_PRIORITY IF IGNORE INTO FROM LATERAL LOCAL
    LOW_PRIORITY MATERIALIZED NOT ONLY OR OVERWRITE QUICK RECURSIVE TABLE TABLES TEMP TEMPORARY TOP UNIQUE
    UNLOGGED VIEW VERBOSE ANALYZE FREEZE""".split()
)
"""Words between the verb and its table."""
_NOT_A_TABLE: Final = frozenset(
    """AS CROSS DUAL EXCEPT FETCH FOR FORCE FULL GROUP HAVING INNER INTERSECT JOIN LEFT LIMIT NATURAL OFFSET ON
    ORDER OUTER RIGHT SELECT SET STRAIGHT_JOIN TABLESAMPLE UNION USING VALUES WHERE WINDOW WITH ROLLUP UNNEST
    DEFAULT OUTPUT RETURNING""".split()
)
_OBJECTS: Final = frozenset(
    """AGGREGATE COLLATION DATABASE DOMAIN EVENT EXTENSION FUNCTION INDEX LANGUAGE LOGIN OPERATOR POLICY PROCEDURE
    PUBLICATION ROLE RULE SCHEMA SEQUENCE SERVER STATISTICS SUBSCRIPTION TABLE TABLESPACE TRIGGER TYPE
    USER VIEW""".split()
)
_ROUTINES: Final = frozenset({"EVENT", "FUNCTION", "PROCEDURE", "TRIGGER"})
_DEFINITIONS: Final = frozenset({"CREATE", "ALTER", "DROP"})


class _Describer:
    """Walks the tokens of one statement."""

    def __init__(self) -> None:
        self.parts: list[str] = []  # summary
        self.pieces: list[str] = []  # text
        self.operation = ""
        self.collection = ""
        self.procedure = ""
        self.targets = 0
        self.common: set[str] = set()  # names of WITH
        # One frame an open parenthesis: the verb, whether a table is due, whether a comma continues a list of tables.
        self.frames: list[tuple[str, bool, bool]] = []
        self.verb = ""
        self.due = False
        self.listing = False
        self.in_with = False
        self.previous = ""
        self.last_name = ""

    def word(self, word: str) -> None:
        upper = word.upper()
        previous = self.previous
        self.previous = upper
        if not self.verb and not self.frames and upper in _VERBS:
            self._begin(upper)
        elif (upper == "SELECT" and self.verb not in ("GRANT", "REVOKE", "DENY")) or (
            upper in _DATA_VERBS
            and upper not in ("TABLE", "VALUES")
            and (previous in _BEFORE_NESTED_VERB or self.in_with)
            and previous not in _NOT_A_VERB_AFTER
            and not (previous == "FOR" and self.verb != "DECLARE" and self.verb != "EXPLAIN")
            and self.verb not in _DEFINITIONS
            and not self.due
        ):
            self._nested(upper)
        elif self.due:
            self._due(word, upper, previous)
        elif upper in _TARGET_WORDS.get(self.verb, ()) and previous != "DISTINCT":
            # ON names a table in CREATE INDEX and CREATE TRIGGER only
            if upper != "ON" or "INDEX" in self.parts or "TRIGGER" in self.parts or self.verb != "CREATE":
                self.due, self.listing = True, True
        elif upper in _NOT_A_TABLE:
            self.listing = False
        if self.verb in _DEFINITIONS and upper in _OBJECTS and len(self.parts) == 1:
            self.parts.append(upper)
            self.due = upper in ("TABLE", "VIEW")
        self.last_name = word

    def _begin(self, upper: str) -> None:
        self.verb = upper
        if upper == "WITH":
            self.in_with = True
            return
        self._open(upper)

    def _open(self, upper: str) -> None:
        self.verb = upper
        if not self.operation:
            self.operation = upper
        if len(self.parts) < 2 * MAX_TARGETS:
            self.parts.append(upper)
        self.due = upper in _TARGET_RIGHT_AWAY
        self.listing = self.due

    def _nested(self, upper: str) -> None:
        if self.in_with and not self.frames:
            self.in_with = False
            self.operation = upper  # of the statement, not of what stands in WITH
        self._open(upper)

    def _due(self, word: str, upper: str, previous: str) -> None:
        if upper in _NOT_A_TABLE:
            self.due = self.listing = False
        elif upper not in _FILLER and previous != "@":
            self.target(word)

    def target(self, name: str) -> None:
        """A table, or the further part of a dotted name."""
        self.due = False
        name = name[:MAX_IDENTIFIER_CHARS]
        if self.verb in ("CALL", "EXEC"):
            self.procedure = name
            self.parts.append(name)
            return
        if name.upper() in self.common or self.verb in _NO_TARGET or self.targets >= MAX_TARGETS:
            return
        if self.parts and self.parts[-1] == name:
            return
        self.targets += 1
        if not self.collection:
            self.collection = name
        self.parts.append(name)

    def quoted(self, token: str) -> None:
        close = "]" if token[0] == "[" else token[0]
        if len(token) < 2 or token[-1] != close:
            return  # half a name
        name = token[1:-1]
        name = name.replace(close + close, close)
        if self.due:
            self.target(name)
        self.previous = "name"
        self.last_name = name

    def dotted(self, name: str) -> None:
        """``name`` follows a dot: it belongs to the target before, if that was one."""
        if self.parts and self.parts[-1] and self.targets and self.parts[-1] == self.last_name:
            joined = f"{self.parts[-1]}.{name}"[:MAX_IDENTIFIER_CHARS]
            if self.collection == self.parts[-1]:
                self.collection = joined
            self.parts[-1] = joined
            self.last_name = joined
        elif self.procedure and self.procedure == self.last_name:
            self.procedure = self.parts[-1] = f"{self.procedure}.{name}"[:MAX_IDENTIFIER_CHARS]
            self.last_name = self.procedure
        else:
            self.last_name = name
        self.previous = "name"

    def open_parenthesis(self) -> None:
        if self.in_with and not self.frames and self.previous == "AS":
            pass
        elif self.parts and self.parts[-1] == self.last_name and self.previous not in ("", ")") and self._is_call():
            # What looked like a table is a function: it is taken back.
            self.parts.pop()
            self.targets -= 1
            if self.collection == self.last_name:
                self.collection = ""
        self.frames.append((self.verb, self.due, self.listing))
        if not (self.due and self.previous in ("FROM", "JOIN", "(", ",", "APPLY", "LATERAL")):
            # inside the parentheses of a call FROM means something else: extract(year FROM t)
            self.verb = "(" if self.verb not in ("",) else self.verb
            self.due = False
            self.listing = False
        self.previous = "("

    def _is_call(self) -> bool:
        return self.verb in ("SELECT", "DELETE") and self.targets > 0

    def close_parenthesis(self) -> None:
        if self.frames:
            self.verb, due, self.listing = self.frames.pop()
            self.due = False
            if due and self.verb in ("UPDATE", "DELETE", "INSERT"):
                self.due = due  # UPDATE TOP (10) t
        self.previous = ")"

    def comma(self) -> None:
        if self.listing and self.verb in (
            "SELECT",
            "TRUNCATE",
            "LOCK",
            "DELETE",
            "UPDATE",
            "DROP",
            "VACUUM",
            "ANALYZE",
        ):
            self.due = True
        self.previous = ","

    def with_name(self, name: str) -> None:
        if len(self.common) < MAX_TARGETS:
            self.common.add(name.upper())


def _fold(text: str) -> str:
    """Lists of literals and rows of VALUES become one."""
    text = _LIST.sub(r"\1?\2", text)
    return _ROWS.sub(r"\1", text)


_LIST: Final = re.compile(
    r"(\bIN ?\( ?|\bVALUES? ?\( ?|(?<=\)) ?, ?\( ?|ARRAY\[ ?|\bANY ?\( ?)[-+]?(?:\?|\$\d+|@\w+|%s|:\w+)"
    r"(?: ?, ?[-+]?(?:\?|\$\d+|@\w+|%s|:\w+))*( ?[)\]])",
    re.IGNORECASE,
)
_ROWS: Final = re.compile(r"(\bVALUES ?\(\?\))(?: ?, ?\(\?\))+", re.IGNORECASE)


def _cut(stripped: str, dialect: str) -> Iterator[list[tuple[str, str]]]:
    """The tokens of each statement."""
    tokens: list[tuple[str, str]] = []
    count = 0
    for match in _TOKEN.finditer(stripped):
        kind, token = match.lastgroup or "", match[0]
        if kind == "bracket" and dialect != "mssql":
            # elsewhere a bracket is a subscript: array[1]
            kind, inner = "other", token
            tokens.append((kind, inner))
            continue
        count += 1
        if count > MAX_TOKENS:
            break
        if token == ";":
            if tokens:
                yield tokens
            tokens = []
        else:
            tokens.append((kind, token))
    if tokens:
        yield tokens


def _walk(tokens: list[tuple[str, str]]) -> _Describer:
    walk = _Describer()
    after_dot = False
    for index, (kind, token) in enumerate(tokens):
        if kind == "word":
            if after_dot:
                walk.dotted(token)
            elif (
                walk.in_with
                and not walk.frames
                and walk.previous in ("WITH", "RECURSIVE", ",")
                and token.upper() != "RECURSIVE"
            ):
                walk.with_name(token)
                walk.previous = "name"
            else:
                walk.word(token)
        elif kind in ("quoted", "bracket"):
            if after_dot:
                walk.dotted(token.strip('"`[]'))
            elif walk.in_with and not walk.frames and walk.previous in ("WITH", "RECURSIVE", ","):
                walk.with_name(token.strip('"`[]'))
                walk.previous = "name"
            else:
                walk.quoted(token)
        elif token == "(":
            walk.open_parenthesis()
        elif token == ")":
            walk.close_parenthesis()
        elif token == ",":
            walk.comma()
        elif kind == "parameter":
            walk.previous = "?" if walk.previous not in ("",) else ""
            if walk.due and walk.verb != "EXEC":
                walk.due = False
        after_dot = token == "."
        if after_dot and index == 0:
            after_dot = False
    return walk


def _describe(stripped: str, dialect: str) -> tuple[Statement, ...]:
    statements: list[Statement] = []
    stripped = _PREFIX.sub("?", stripped)
    texts = _split_text(stripped)
    for number, tokens in enumerate(_cut(stripped, dialect)):
        if number >= MAX_STATEMENTS:
            break
        walk = _walk(tokens)
        if any(part in _ROUTINES for part in walk.parts[1:2]):
            # its body is full of statements that are not executed now
            return (Statement(_fold(stripped)[:MAX_TEXT_CHARS], walk.operation, "", " ".join(walk.parts[:2])),)
        text = _fold(texts[number] if number < len(texts) else "")[:MAX_TEXT_CHARS]
        summary = " ".join(walk.parts)
        if len(summary) > MAX_SUMMARY_CHARS:
            summary = summary[:MAX_SUMMARY_CHARS].rpartition(" ")[0] or summary[:MAX_SUMMARY_CHARS]
        statements.append(Statement(text, walk.operation, walk.collection, summary, walk.procedure))
    return tuple(statements)


_SPLIT: Final = re.compile(r""""[^"]*(?:""[^"]*)*(?:"|\Z)|`[^`]*(?:``[^`]*)*(?:`|\Z)|;""")


def _split_text(stripped: str) -> list[str]:
    """The text between the semicolons that end statements; empty ones are left out."""
    if ";" not in stripped:
        return [stripped]
    parts: list[str] = []
    start = 0
    for match in _SPLIT.finditer(stripped):
        if match[0] == ";":
            parts.append(stripped[start : match.start()].strip())
            start = match.end()
    parts.append(stripped[start:].strip())
    return [part for part in parts if part]


_HALF_WORD: Final = re.compile(r"(?<![^\s(,=])[^\s(,=]{1,256}\Z")


class Statements:
    """A bounded cache of descriptions, shared by all connections of a process that speak one dialect.

    Attributes:
        missed: Texts that had to be tokenized.
    """

    def __init__(self, dialect: str, capacity: int = 1024) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"unknown SQL dialect {dialect!r}; one of {', '.join(sorted(DIALECTS))}")
        self.dialect = dialect
        self.capacity = capacity
        self.missed = 0
        self._exact: OrderedDict[bytes, tuple[Statement, ...]] = OrderedDict()
        self._stripped: OrderedDict[str, tuple[Statement, ...]] = OrderedDict()

    def describe(self, sql: bytes, *, cut: bool = False) -> tuple[Statement, ...]:
        """The statements of ``sql`` (UTF-8), without the empty ones.

        Args:
            sql: As on the wire.
            cut: More of it was not captured: its last word may be half a name, and is not used.
        """
        if cut:
            return self.describe_text(sql.decode("utf-8", "replace"), cut=True)
        exact = self._exact
        found = exact.get(sql)
        if found is not None:
            return found
        found = self.describe_text(sql[: 4 * MAX_CHARS].decode("utf-8", "replace"))
        if len(sql) <= EXACT_CHARS:
            if len(exact) >= self.capacity:
                exact.popitem(last=False)
            exact[sql] = found
        return found

    def describe_text(self, text: str, *, cut: bool = False) -> tuple[Statement, ...]:
        """As `describe`, for text that was decoded."""
        if cut or len(text) > MAX_CHARS:
            text = _HALF_WORD.sub("", text[:MAX_CHARS])
        stripped = _strip(text, self.dialect)
        found = self._stripped.get(stripped)
        if found is not None:
            self._stripped.move_to_end(stripped)
            return found
        self.missed += 1
        found = _describe(stripped, self.dialect)
        if len(self._stripped) >= self.capacity:
            self._stripped.popitem(last=False)
        self._stripped[stripped] = found
        return found
