from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.enrich.patterns import PathPatterns
from onlooker.errors import ConfigError


@pytest.mark.parametrize(
    ("patterns", "path", "found"),
    [
        (["/users/{id}"], "/users/42", "/users/{id}"),
        (["/users/:id"], "/users/42", "/users/:id"),
        (["/users/{id}"], "/users/42/", "/users/{id}"),
        (["/users/{id}"], "/users", None),
        (["/users/{id}"], "/users/42/orders", None),
        (["/users/{id}", "/users/me"], "/users/me", "/users/me"),
        (["/{a}/x", "/{b}/y"], "/1/y", "/{b}/y"),
        (["/users/{id}/orders", "/users/me"], "/users/me/orders", "/users/{id}/orders"),
        (["/@:user"], "/@anna", "/@:user"),
        (["/@:user"], "/@", None),
        (["/@:user"], "/anna", None),
        (["/@:user", "/:page"], "/anna", "/:page"),
        (["/:page", "/@:user"], "/@anna", "/:page"),
        (["/items:batch"], "/items:batch", "/items:batch"),
        (["/items:batch"], "/items7", None),
        (["/static/*"], "/static/a/b/c", "/static/*"),
        (["/static/*"], "/static", None),
        (["/static/*", "/static/app.js"], "/static/app.js", "/static/app.js"),
        (["/static/*", "/static/{file}"], "/static/a", "/static/{file}"),
        (["/a/*/b"], "/a/x/y", "/a/*/b"),
        (["*"], "/anything/at/all", "*"),
        (["/files/{path...}"], "/files/a/b", "/files/{path...}"),
        (["/"], "/", "/"),
        (["/"], "/x", None),
        ([], "/x", None),
    ],
)
def test_table(patterns, path, found):
    assert PathPatterns(patterns).match(path) == found


def test_an_empty_pattern_is_a_mistake():
    with pytest.raises(ConfigError, match=r"routes\.patterns"):
        PathPatterns([" "])


@given(st.lists(st.text(alphabet="/ab{}:*@", max_size=12), max_size=6), st.text(alphabet="/ab@:*", max_size=30))
def test_any_pattern_and_path_give_a_pattern_or_nothing(patterns, path):
    patterns = [pattern for pattern in patterns if pattern.strip()]
    assert PathPatterns(patterns).match(path) in {None, *(pattern.strip() for pattern in patterns)}
