from __future__ import annotations

import re
from pathlib import Path

import pytest

from onlooker.protocols import Segment
from onlooker.protocols.registry import PROTOCOLS, Options, by_name, dim_names, make_parser, name_of

RECORDS = Path(__file__).parents[3] / "bpf/records.h"


def test_numbers_are_those_of_the_kernel() -> None:
    numbers = {name.lower(): int(n) for name, n in re.findall(r"PROTOCOL_(\w+) = (\d+)", RECORDS.read_text())}
    for info in PROTOCOLS.values():
        assert numbers["other" if info.name == "unknown" else info.name] == info.number


@pytest.mark.parametrize("info", [i for i in PROTOCOLS.values() if i.factory], ids=lambda i: i.name)
def test_every_parser_follows_the_interface(info: object) -> None:
    number = info.number  # type: ignore[attr-defined]
    parser = make_parser(number, 3, options=Options())
    assert parser.feed(Segment(True, True, 1, 0, 4, b"\xff\xfe\xfd\xfc")) == []
    assert parser.expire(2) == []
    assert parser.close(3, "") == []
    assert parser.lost >= 0
    assert parser.lost == 0


def test_what_has_no_parser_says_so() -> None:
    with pytest.raises(KeyError):
        make_parser(by_name("tls").number, 3, options=Options())
    assert name_of(77) == "unknown"
    assert dim_names(77, 3) == ()
