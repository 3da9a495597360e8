"""The judgement of the suite of services, and the tracer that onlooker is compared with."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[3] / "benchmarks/suite"
sys.path[:0] = [str(SUITE), str(SUITE.parent)]

import count  # noqa: E402 - found by this path alone
import run  # noqa: E402
import workloads  # noqa: E402

FOUND = {
    "go": {"alone": 50_000.0, "syscalls": 62_000.0, "syscalls_programs": 9_000.0, "watched": 54_000.0,
           "programs": 3_900.0, "agent": 3_000.0, "seen": 1.0},
    "lost": {},
}  # fmt: skip


def test_a_figure_within_the_slack_holds() -> None:
    assert count.worse(FOUND, {"go": {"programs": 3_750.0, "agent": 2_900.0}}) == []


def test_a_figure_beyond_it_and_a_service_that_is_not_seen_are_named() -> None:
    told = count.worse({"go": {**FOUND["go"], "seen": 0.98}}, {"go": {"programs": 3_500.0, "agent": 2_900.0}})
    assert [sentence.split(":")[0] for sentence in told] == ["go, programs", "go"]


def test_a_tracer_that_costs_less_than_twice_ours_is_named() -> None:
    assert count.dearer(FOUND) == []
    (sentence,) = count.dearer({"go": {**FOUND["go"], "syscalls_programs": 7_000.0, "syscalls": 61_000.0}, "lost": {}})
    assert sentence.startswith("go: ")


def test_the_table_has_a_line_for_each_service() -> None:
    text = count.table(FOUND, "6.12")
    assert "go" in text
    assert "0.43" in text


def test_a_round_is_compared_with_the_plain_ones_next_to_it() -> None:
    rounds = run.Rounds()
    rounds.take(
        run.Reading(13.0, 900.0, 2.0, 0.0), run.Reading(10.0, 1000.0, 1.0, 0.0), run.Reading(12.0, 1000.0, 1.0, 0.0)
    )
    assert rounds.cpu_us == [2.0]
    assert rounds.rate == [pytest.approx(-10.0)]
    assert rounds.p50 == [pytest.approx(100.0)]
    assert rounds.p99 == []  # pgbench has none


def test_every_service_says_what_it_lacks() -> None:
    assert {one.name for one in workloads.WORKLOADS} == {"nginx", "node", "uvicorn", "go", "postgres"}
    lacking = workloads.Workload("none", workloads.WORKLOADS[0].serve, ("no-such-program",))
    assert workloads.absent(lacking) == ["no-such-program"]


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang builds it")
def test_the_tracer_has_both_ends_of_eight_calls(tmp_path: Path) -> None:
    import syscalls

    from onlooker.kernel.object import Object

    with Object(syscalls.built(tmp_path).read_bytes()) as tracer:
        hooks = {section.removeprefix("tracepoint/syscalls/") for section in tracer.sections.values()}
    calls = ("read", "readv", "recvfrom", "recvmsg", "write", "writev", "sendto", "sendmsg")
    assert hooks == {f"sys_{end}_{name}" for name in calls for end in ("enter", "exit")} | {"sys_enter_close"}
