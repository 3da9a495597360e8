"""The judgement of the benchmarks; what they measure is seen by running them."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench_count  # noqa: E402
import measure  # noqa: E402

FOUND = {
    "alone": {"requests": 1000, "server": 28_000.0},
    "alone_slow": {"requests": 900, "server": 33_000.0},
    "floor": {"requests": 1000, "server": 28_300.0},
    "watched": {"requests": 1000, "server": 31_500.0, "agent": 4_000.0, "seen": 1.0, "lost": 0},
    "watched_slow": {"requests": 900, "server": 37_000.0, "agent": 31_000.0, "seen": 0.999, "lost": 0},
    "idle": {"agent": 600_000.0},
}


def test_figures_are_differences_beside_their_budgets() -> None:
    found = {line.key: line for line in bench_count.figures(FOUND)}
    assert found["server_floor"].value == 300
    assert found["server_added"].value == 3_500
    assert found["server_added"].verdict == "ok"
    assert found["agent_at_150"].verdict == "over"
    assert found["seen_percent"].verdict == "ok"
    assert found["seen_at_150_percent"].verdict == "over"
    assert found["agent_idle"].verdict == ""


def test_the_table_shows_the_incumbent_beside_ours() -> None:
    text = bench_count.table(bench_count.figures(FOUND), "title")
    line = next(line for line in text.splitlines() if "added by onlooker" in line)
    assert line.split()[-1] == "36,000"
    assert "<= 4,000" in line


@pytest.mark.parametrize(("held", "told"), [(4_000, 0), (3_820, 0), (3_800, 1), (10_000, 0)])
def test_a_held_figure_has_a_slack_of_five_percent(held: float, told: int) -> None:
    assert len(bench_count.worse(bench_count.figures(FOUND), {"agent": held})) == told


def test_a_held_share_is_a_floor() -> None:
    found = json.loads(json.dumps(FOUND))
    found["watched"]["seen"] = 0.9
    assert bench_count.worse(bench_count.figures(found), {"seen_percent": 100.0}) == [
        "seen_percent: 90, held at 100 (slack 5%)"
    ]


def test_figures_that_are_not_held_are_not_compared() -> None:
    assert bench_count.worse(bench_count.figures(FOUND), {}) == []


def test_what_is_missing_is_named() -> None:
    with pytest.raises(measure.NotPossible, match="needs no-such-program"):
        measure.need("sh", "no-such-program")


def test_a_started_process_ends_with_its_block(tmp_path: Path) -> None:
    with measure.started(["sleep", "60"], log=tmp_path / "log") as process:
        assert process.poll() is None
        assert measure.memory(process.pid).total > 0
        assert measure.cpu_ns(process.pid) >= 0
    assert process.returncode is not None


def test_what_the_server_and_the_hooks_cost_by_themselves_is_not_held() -> None:
    """The floor is a difference within the noise: -188 held, and -68 found, is not worse."""
    held = {"server_alone": 20_000.0, "server_floor": -188.0, "server_added": 3_400.0}
    assert bench_count.worse(bench_count.figures(FOUND), held) == []
