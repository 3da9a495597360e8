import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.config.yaml_text import MAX_DEPTH, Mapping, Scalar, Sequence, parse
from onlooker.errors import ConfigError


def fault(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, {}, name="f.yml")
    assert caught.value.place.startswith("f.yml")
    return str(caught.value)


def scalar(text: str, **environ: str) -> str | None:
    node = parse(text, environ, name="f.yml").root.entries["k"]
    assert isinstance(node, Scalar)
    return node.text


def test_lines_and_texts_are_kept() -> None:
    root = parse("a: 010\nb:\n  - yes\n  - 1:30\n", {}, name="f.yml").root
    assert root.entries == {"a": Scalar("010", 1), "b": Sequence((Scalar("yes", 3), Scalar("1:30", 4)), 3)}
    assert root.lines == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "null"])
def test_an_empty_file_is_an_empty_mapping(text: str) -> None:
    assert parse(text, {}, name="f.yml").root.entries == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k: ${X}", "v"),
        ("k: ${env:X}", "v"),
        ("k: ${X:-d}", "v"),
        ("k: ${N:-d}", "d"),
        ("k: ${E:-d}", "d"),
        ("k: $${X}", "${X}"),
        ("k: 'a ${X} b'", "a v b"),
        ("k: $X", "$X"),
        ("k: ${N:-a:b c}", "a:b c"),
        ("k: ${E}", None),
    ],
)
def test_references(text: str, value: str | None) -> None:
    assert scalar(text, X="v", E="") == value


@pytest.mark.parametrize("value", ["a: b", "x #y", "[1", "*alias", "two\nlines: 3", "'", "!!python/object:os.system"])
def test_a_reference_adds_no_structure(value: str) -> None:
    assert scalar("k: ${X}", X=value) == value
    assert scalar("{k: ${X}}", X=value) == value


def test_references_to_nothing_are_told_with_their_line() -> None:
    assert parse("a: 1\nb: ${N}\n# ${M}\nc: ${O:-x}\n", {}, name="f.yml").unset_names == (("N", 2),)


def test_merge_keys_and_aliases() -> None:
    root = parse("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n", {}, name="f.yml").root
    merged = root.entries["b"]
    assert isinstance(merged, Mapping)
    assert {key: node.text for key, node in merged.entries.items() if isinstance(node, Scalar)} == {"p": "1", "q": "3"}


def test_duplicate_keys() -> None:
    assert fault("a: 1\nb: 2\na: 3\n") == "f.yml:3: the key 'a' stands here twice (first in line 1)"


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 2000, 100_000])
def test_deep_nesting(opening: str, depth: int) -> None:
    assert "nested deeper" in fault(opening * depth) or "not valid YAML" in fault(opening * depth)


def test_an_alias_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "once its aliases are followed" in fault("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [*a]", "an alias that holds itself"),
        ("a: *nothing", "undefined alias"),
        ("a: !!binary aGVsbG8=", "!!binary"),
        ("a: !!python/object/apply:os.system [id]", "!!python"),
        ("a: !custom 1", "!custom"),
        ("a: !!set {x}", "!!set"),
        ("? [a]\n: b", "plain word"),
        ("- a", "must be a mapping"),
        ("word", "must be a mapping"),
        ("a: 1\n---\nb: 2", "more than one YAML document"),
        ("a: [1, 2", "not valid YAML"),
        ("a:\n\t- b", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: \ue000", "private-use"),
        ("{<<: 3}", "<< takes a mapping"),
        ("~: 3", "must not be empty"),
        ("a: [" + "1, " * 60_000 + "1]", "more than"),
        ("a" * 2_000_000, "larger than"),
    ],
)
def test_hostile_and_broken_texts(text: str, told: str) -> None:
    assert told in fault(text)


@given(st.text(alphabet=st.sampled_from("ab:- []{}&*!|>'\"#%@`,?\n\t ~<$0"), max_size=60))
def test_any_text_gives_a_tree_or_a_config_error(text: str) -> None:
    try:
        parse(text, {}, name="f.yml")
    except ConfigError as err:
        assert str(err).startswith("f.yml")  # noqa: PT017  # a tree is as good
