"""Recorded conversations of real clients: whole, cut, with other borders, damaged; and once more, live."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golden.record_databases import SCENARIOS
from onlooker.protocols import Operation
from onlooker.protocols.registry import Options, by_name, make_parser
from support import databases
from support.recorder import Chunk, load, rechunk, replay, segments

HERE = Path(__file__).parent
PROTOCOLS = ("postgres", "mysql", "tds", "redis", "memcached", "mongodb", "dns")
CAPTURES = sorted(path for name in PROTOCOLS for path in (HERE / name).glob("*.jsonl"))
LOADED = {path: load(path) for path in CAPTURES}

capture = pytest.mark.parametrize("path", CAPTURES, ids=[p.stem for p in CAPTURES])


def rows(operations: list[Operation]) -> list[list[Any]]:
    batch = "db.operation.batch.size"
    return [[o.name, o.error, o.dims.get("db.namespace", ""), o.varying.get(batch, 1)] for o in operations]


def size(operations: list[Operation]) -> int:
    return sum(int(o.varying.get("db.operation.batch.size", 1)) for o in operations)  # type: ignore[arg-type]


def expected(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix("").with_suffix(".expected.json").read_text())  # type: ignore[no-any-return]


def run(path: Path, chunks: list[Chunk], role: int = 3, **how: Any) -> Any:
    number = by_name(path.parent.name).number
    options = Options(query_text=True)
    return replay(chunks, lambda: make_parser(number, role, options=options), client_role=role == 3, **how)


def test_every_protocol_has_a_capture() -> None:
    assert {p.parent.name for p in CAPTURES} == set(PROTOCOLS)


@capture
@pytest.mark.parametrize("role", [2, 3])
def test_operations_are_the_expected_ones(path: Path, role: int) -> None:
    result = run(path, LOADED[path], role)
    truth = expected(path)
    assert (rows(result.operations), result.lost, result.notes) == (truth["operations"], truth["lost"], truth["notes"])


@capture
def test_times_are_in_order(path: Path) -> None:
    for operation in run(path, LOADED[path]).operations:
        assert 0 < operation.start_mono_ns <= operation.request_end_mono_ns <= operation.end_mono_ns
        if operation.response_start_mono_ns:
            assert operation.request_end_mono_ns <= operation.response_start_mono_ns <= operation.end_mono_ns


@capture
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_other_borders_give_the_same_operations(path: Path, data: st.DataObject) -> None:
    if "compressed" in path.stem or "inline" in path.stem:
        pytest.skip("what is unreadable is counted by transfers")
    # what one call moves is a burst of a pipeline: batches differ with the borders, their sum does not
    seed = random.Random(data.draw(st.integers(0, 1 << 32)))
    mode = data.draw(st.sampled_from(["single", "small", "mixed"]))
    merge = data.draw(st.booleans())
    sizes = {
        "single": lambda left: 1 if left < 400 else seed.randint(100, 400),
        "small": lambda _left: seed.randint(1, 40),
        "mixed": lambda _left: seed.choice([1, 2, 3, 4, 5, 8, 100, 1000, 10_000]),
    }[mode]
    result = run(path, rechunk(LOADED[path], sizes, merge=merge))
    truth = expected(path)
    assert result.lost == 0
    assert size(result.operations) == sum(row[3] for row in truth["operations"])
    if path.parent.name != "redis":
        assert sorted(rows(result.operations)) == sorted(truth["operations"])


@capture
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.integers(64, 4000),
    server_head=st.sampled_from([64, 200, 320, 3900]),
    tail=st.sampled_from([0, 16, 64]),
    merge=st.booleans(),
)
def test_what_was_cut_off_is_lost_and_never_wrong(
    path: Path, head: int, server_head: int, tail: int, merge: bool
) -> None:
    if "compressed" in path.stem or "inline" in path.stem:
        pytest.skip("see above")
    chunks = rechunk(LOADED[path], lambda left: left, merge=merge)
    result = run(path, chunks, head=head, server_head=server_head, tail=tail)
    truth = expected(path)
    names = {name for name, *_ in truth["operations"]}
    verbs = {name.split()[0] for name in names} | {"PIPELINE", "SQL", "command", "EXEC"}
    errors = {error for _name, error, *_ in truth["operations"]} | {"_OTHER"}
    for operation in result.operations:
        assert operation.name.split()[0] in verbs, operation
        assert operation.error in errors or operation.end_mono_ns >= 1 << 61, operation
    total = sum(row[3] for row in truth["operations"])
    assert size(result.operations) <= total
    if head >= 2000 and server_head >= 2000 and tail == 64 and path.stem not in ("redis_py", "redis_benchmark"):
        assert size(result.operations) + result.lost >= total


@capture
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_raise(path: Path, data: st.DataObject) -> None:
    chunks = LOADED[path][:80]
    damaged = []
    for chunk in chunks:
        payload = bytearray(chunk.data)
        for _ in range(data.draw(st.integers(0, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        damaged.append(Chunk(chunk.connection, chunk.from_client, chunk.mono_ns, bytes(payload)))
    result = run(path, damaged, head=data.draw(st.integers(0, 4000)), tail=data.draw(st.integers(0, 64)))
    assert size(result.operations) <= 5000
    for operation in result.operations:
        assert operation.end_mono_ns >= operation.start_mono_ns


@capture
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 60))
def test_joined_in_the_middle(path: Path, start: int) -> None:
    chunks = LOADED[path][start:]
    result = run(path, chunks)
    assert size(result.operations) <= sum(row[3] for row in expected(path)["operations"]) + 1


@capture
def test_no_literal_in_any_output(path: Path) -> None:
    result = run(path, LOADED[path])
    assert "marker" not in repr([(o.name, o.dims, o.varying, o.error) for o in result.operations]).lower()


@capture
def test_other_parsers_make_nothing_of_it_that_grows(path: Path) -> None:
    for name in PROTOCOLS:
        parser = make_parser(by_name(name).number, 3, options=Options())
        for _connection, segment in segments(LOADED[path], head=3900, tail=64):
            parser.feed(segment)
        parser.close(1 << 60, "")


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_real_clients_and_servers(name: str) -> None:
    """Runs the scenario anew.  MongoDB and SQL Server are scripted peers (`support.scripted`)."""
    protocol = name.split("_")[0]
    path = HERE / protocol / f"{name}.jsonl"
    try:
        chunks = SCENARIOS[name]()
    except (databases.MissingServerError, ImportError) as error:
        pytest.skip(str(error))
    result = run(path, chunks)
    truth = expected(path)
    if name in ("redis_py", "redis_benchmark"):
        assert size(result.operations) == sum(row[3] for row in truth["operations"])
        return
    assert collections.Counter(map(tuple, rows(result.operations))) == collections.Counter(
        map(tuple, truth["operations"])
    )
    assert result.lost == truth["lost"]
