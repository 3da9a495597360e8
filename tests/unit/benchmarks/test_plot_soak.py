"""The slope of a soak's memory, on series whose slope is known."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import plot_soak


def samples(kib_per_hour: float, noise_kib: float, seconds: float = 7200) -> list[dict[str, float]]:
    """Grows fast for ten minutes, then by so much."""
    chance = np.random.default_rng(7)
    return [
        {
            "seconds": at, "rss_kib": 80_000 - 20_000 * max(0.0, 1 - at / 600) + kib_per_hour * at / 3600
            + noise_kib * float(chance.standard_normal()),
            "anon_kib": 60_000.0, "map_bytes": 2.8e7, "cpu_s": at * 0.13,
        }
        for at in np.arange(0.0, seconds, 10.0)
    ]  # fmt: skip


def test_a_slope_is_found_behind_the_warm_up() -> None:
    found = plot_soak.slope(samples(3000, 500))
    assert abs(found.kib_per_hour - 3000) <= 2 * found.noise
    assert 0 < found.noise < 1000


def test_noise_alone_is_no_slope() -> None:
    found = plot_soak.slope(samples(0, 2000))
    assert abs(found.kib_per_hour) <= 2 * found.noise


def test_too_short_a_run_has_none() -> None:
    with pytest.raises(ValueError, match="too few"):
        plot_soak.slope(samples(0, 1, seconds=1200))


def test_cpu_is_of_a_core() -> None:
    times, percent = plot_soak.cpu_percent(samples(0, 1))
    assert times[0] == 60
    assert np.allclose(percent, 13)


@pytest.mark.parametrize("seconds", [300, 7200])
def test_the_picture_is_well_formed(seconds: float) -> None:
    text = plot_soak.drawn(samples(100, 300, seconds))
    root = ET.fromstring(text)
    lines = [one for one in root.iter() if one.tag.endswith("polyline")]
    assert len(lines) == 4
    assert ("slope after" in text) == (seconds > 2000)
