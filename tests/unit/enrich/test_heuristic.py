from __future__ import annotations

import base64
import datetime
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.enrich.heuristic import MAX_SEGMENTS, RouteTrie, cluster_path, is_word


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/users/42", "/users/*"),
        ("/users/42/", "/users/*/"),
        ("/api/v1/orders", "/api/v1/orders"),
        ("/api/v12/orders", "/api/*/orders"),
        ("/v1beta1/x", "/*/x"),
        ("/orders/8f14e45f-ceea-467f-9575-6a5b1b1b1b1b/items", "/orders/*/items"),
        ("/commit/d670460b4b4aece5915caf5c68d12f560a9fe3e4", "/commit/*"),
        ("/user/bob@mail.example", "/user/*"),
        ("/report/2024-01-31", "/report/*"),
        ("/t/dGhpcyBpcyBhIHRlc3Q=", "/t/*"),
        ("/t/dGhpcyBpcyBh", "/t/*"),
        ("/x/%F0%9F%98%80", "/x/*"),
        ("/static/style.min.css", "/static/style.min.css"),
        ("/img/logo_large.png", "/img/logo_large.png"),
        ("/owners/find-by-name", "/owners/find-by-name"),
        ("/getUserById", "/getUserById"),
        ("/a b/c", "/a b/c"),
        ("/foo-", "/*"),
        ("/.hidden", "/*"),
        ("/orders?id=1", "/orders"),
        ("/orders#top", "/orders"),
        ("/orders&x", "/orders"),
        ("/abc1/x", "/*/x"),
        ("//x", "//x"),
        ("", ""),
        ("/a/b/c/d/e/f/g/h/i/j/k/l", "/a/b/c/d/e/f/g/h/i/j"),
        ("/wp-admin/admin-ajax.php", "/wp-admin/admin-ajax.php"),
        ("/xkqzwvbtr", "/*"),
    ],
)
def test_table(path, route):
    assert cluster_path(path) == route


def test_another_wildcard():
    assert cluster_path("/users/42", "#") == "/users/#"


@given(st.uuids())
def test_uuids_become_wildcards(value):
    assert cluster_path(f"/x/{value}") == "/x/*"


@given(st.integers(0, 10**18))
def test_numbers_become_wildcards(value):
    # A single digit on its own is the first character of its segment, so it is none of the tolerated ones.
    assert cluster_path(f"/x/{value}/y") == "/x/*/y"


@given(st.dates())
def test_dates_become_wildcards(value: datetime.date):
    assert cluster_path(f"/x/{value.isoformat()}") == "/x/*"


@given(st.binary(min_size=16, max_size=32))
def test_hashes_become_wildcards(value):
    text = value.hex()
    if any(c.isdigit() for c in text):
        assert cluster_path(f"/x/{text}") == "/x/*"


def test_most_base64_without_digits_becomes_a_wildcard():
    rng = random.Random(3)
    texts = (base64.urlsafe_b64encode(rng.randbytes(12)).decode() for _ in range(2000))
    letters = [text for text in texts if text.isalpha()]
    assert len(letters) > 20
    assert sum(not is_word(text) for text in letters) / len(letters) > 0.95


def test_most_random_letters_are_no_words_and_most_words_are():
    rng = random.Random(3)
    noise = ["".join(rng.choices(string.ascii_lowercase, k=10)) for _ in range(1000)]
    assert sum(not is_word(text) for text in noise) > 930
    unseen = [
        "elephant",
        "umbrella",
        "strawberry",
        "volcano",
        "philosophy",
        "brochure",
        "mushroom",
        "gazette",
        "syllabus",
        "hypothesis",
        "laundry",
        "sapphire",
        "blueprint",
        "smartphone",
        "sneakers",
        "trousers",
        "jackets",
        "necklace",
        "clearance",
        "screwdriver",
        "petrol",
        "consectetur",
        "michael",
        "jennifer",
        "william",
        "elizabeth",
        "johnson",
        "berlin",
        "munich",
        "london",
        "amsterdam",
        "barcelona",
        "hipsters",
        "rolldice",
    ]
    assert sum(is_word(text) for text in unseen) / len(unseen) > 0.9


@given(st.text(max_size=300))
def test_any_text_gives_a_route_of_bounded_depth(path):
    route = cluster_path(path)
    assert len([s for s in route.split("/") if s]) <= MAX_SEGMENTS
    assert cluster_path(route) == route  # what came out stays as it is


def test_the_eleventh_child_collapses_its_place_for_good():
    trie = RouteTrie(10)
    names = ["anna", "bert", "carl", "dora", "emil", "fritz", "gerda", "hans", "ida", "jonas"]
    assert [trie.add(f"/users/{name}") for name in names] == [f"/users/{name}" for name in names]
    assert trie.collapses == 0
    assert trie.add("/users/konrad") == "/users/*"
    assert trie.collapses == 1
    assert trie.add("/users/anna") == "/users/*"
    assert trie.add("/users/anna/orders") == "/users/*/orders"
    assert trie.add("/health") == "/health"
    assert trie.collapses == 1


def test_a_wildcard_of_the_heuristic_is_one_child_among_others():
    trie = RouteTrie(3)
    assert trie.add("/users/*/orders") == "/users/*/orders"
    assert trie.add("/users/search") == "/users/search"


def test_cardinality_zero_turns_the_trie_off():
    trie = RouteTrie(0)
    assert {trie.add(f"/x{i}") for i in range(100)} == {f"/x{i}" for i in range(100)}


def test_the_trie_stays_small_whatever_comes():
    trie = RouteTrie(10, max_nodes=50)
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=3)) for _ in range(500)]
    routes = {trie.add("/" + "/".join(rng.choices(words, k=6))) for _ in range(5000)}
    assert trie._root.size() <= 50 + 60  # the last path may need new nodes below a place that collapsed
    assert trie.add("/" + "/".join(words[:6])) in routes | {"/*/*/*/*/*/*"}
