import fnmatch
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.config.patterns import glob, regexp


@pytest.mark.parametrize(
    ("source", "yes", "no"),
    [
        ("*/nginx", ["/usr/sbin/nginx", "/nginx"], ["nginx", "/usr/sbin/nginx-debug"]),
        ("/opt/*/bin/*", ["/opt/a/b/bin/x/y"], ["/opt/bin/x"]),
        ("?at", ["cat", "/at"], ["at", "chat"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x"]),
        ("[!a-c]x", ["dx"], ["ax"]),
        ("{go,java}", ["go", "java"], ["golang", "{go,java}"]),
        ("{*beyla,*obi}", ["/x/obi"], ["/x/obit"]),
        ("a{b,c{d,e}}f", ["abf", "acdf", "acef"], ["acf", "af"]),
        ("*otelcol-contrib[!/]*", ["/otelcol-contrib-1.2"], ["/otelcol-contrib", "/otelcol-contrib/x"]),
        (r"\*\{x", ["*{x"], ["a{x"]),
        ("a.b+c", ["a.b+c"], ["axb+c", "a.bbc"]),
        ("", [""], ["x"]),
        ("{a,}b", ["ab", "b"], ["a"]),
        ("[]]", ["]"], ["["]),
        ("a\nb*", ["a\nb\nc"], ["a"]),
    ],
)
def test_globs(source: str, yes: list[str], no: list[str]) -> None:
    pattern = glob(source)
    assert [text for text in yes if not pattern.matches(text)] == []
    assert [text for text in no if pattern.matches(text)] == []


@pytest.mark.parametrize("source", ["{a", "a}", "[a", "[z-a]", "a\\", "{a,b}" * 10])
def test_globs_that_are_none(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        glob(source)


@given(st.text(alphabet="ab*?/", max_size=12), st.text(alphabet="ab/", max_size=20))
def test_stars_and_question_marks_agree_with_the_standard_library(source: str, text: str) -> None:
    assert glob(source).matches(text) == bool(re.match(fnmatch.translate(source), text))


def test_a_hostile_text_costs_a_glob_nothing() -> None:
    # With backtracking this is 4096 to the seventh power: the test would never end.
    started = time.process_time()
    assert not glob("*a*a*a*a*a*a*b").matches("a" * 100_000)
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    ("source", "yes", "no"),
    [
        (".*/my-api", ["/srv/my-api", "/srv/my-api-2"], ["my-api"]),
        ("^/usr/bin/python3$", ["/usr/bin/python3"], ["/usr/bin/python3.11", "/usr/bin/python3\n"]),
        (r"a\z", ["a"], ["ab"]),
        ("[[:alpha:]_]+9", ["a_9"], ["99"]),
        (r"\Qa.b\E+", ["a.bb"], ["axb"]),
        (r"\x{41}", ["A"], ["a"]),
        ("(?i)NGINX", ["nginx"], ["ngin"]),
        ("(?P<x>a)(?<y>b)", ["ab"], ["ba"]),
        (r"^\d$", ["7"], ["\u0667"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("(?:^|/)(obi$|otelcol[^/]*$)", ["/x/otelcol-contrib", "obi"], ["/x/obi/y"]),
        ("[$]", ["$"], ["a"]),
    ],
)
def test_regular_expressions_read_as_in_go(source: str, yes: list[str], no: list[str]) -> None:
    pattern = regexp(source)
    assert [text for text in yes if not pattern.matches(text)] == []
    assert [text for text in no if pattern.matches(text)] == []


@pytest.mark.parametrize(
    "source",
    [
        "(",
        "a**",
        r"\pL",
        r"(?=a)",
        r"(a)\1",
        "(?U)a",
        "a(?i)b",
        "[[:nope:]]",
        r"\x{110000}",
        r"\Z",
        "(?P=x)",
        "x{2,1}",
        "(?",
    ],
)
def test_regular_expressions_that_are_not_portable_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        regexp(source)


@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_a_value_error(source: str) -> None:
    for build in (glob, regexp):
        try:
            build(source).matches("some/text")
        except ValueError as err:
            assert str(err)  # noqa: PT017  # a pattern is as good
