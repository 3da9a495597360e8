import csv
from collections import Counter
from pathlib import Path

import pytest

from onlooker.config.keys import walk
from onlooker.config.model import Config

KEYS = {key.path: key for key in walk(Config)}
with (Path(__file__).parent / "incumbent_keys.csv").open(newline="") as table:
    INCUMBENT = list(csv.DictReader(table))

# Defaults that differ on purpose, or that the table gives only the first word of.
OTHER_DEFAULTS = {
    "discovery.min_process_age": 0.0,
    "discovery.excluded_linux_system_paths": (
        "/lib/systemd/",
        "/usr/lib/systemd/",
        "/usr/libexec/",
        "/sbin/",
        "/usr/sbin/",
    ),
    "injector.enabled_sdks": ("java", "dotnet", "nodejs", "python"),
}
# They set the sampler of otel_traces_export; what they would set beside it changes nothing.
SHARED_VARIABLES = {"injector.trace_sampler.arg", "injector.trace_sampler.name"}


@pytest.mark.parametrize("row", INCUMBENT, ids=lambda row: row["key"])
def test_every_key_of_the_incumbent_is_read_with_its_variables_and_default(row: dict[str, str]) -> None:
    key = KEYS[row["key"]]
    if row["key"] not in SHARED_VARIABLES:
        assert set(filter(None, row["env"].split(";"))) <= set(key.env)
    if row["key"] in OTHER_DEFAULTS:
        assert key.default == OTHER_DEFAULTS[row["key"]]
    elif row["default"] == "unset":
        assert not key.default
    elif row["default"]:
        assert key.key.kind.from_text(row["default"]) == key.default


def test_the_incumbents_table_is_whole() -> None:
    assert len(INCUMBENT) == 279


def test_no_two_keys_share_a_variable_of_ours() -> None:
    counts = Counter(key.own_env for key in KEYS.values() if key.own_env)
    assert [name for name, count in counts.items() if count > 1] == []


def test_every_default_is_a_value_that_its_key_takes() -> None:
    for key in KEYS.values():
        plain = key.key.kind.plain(key.default) if key.default not in (None, (), "", {}) else ""
        if isinstance(plain, bool):
            plain = str(plain).lower()
        if plain != "" and isinstance(plain, str | int | float):
            assert key.key.kind.from_text(str(plain)) == key.default, key.path


def test_every_key_says_what_it_is_for() -> None:
    assert [key.path for key in KEYS.values() if not key.key.help.strip().endswith(".")] == []
