"""Draws a soak: memory and CPU of the agent over hours, with the slope of its memory and how far chance moves that.

    python benchmarks/plot_soak.py SOAK.jsonl OUT.svg

SOAK.jsonl has a line of JSON every ten seconds, as ``python -m support.soak`` writes it (in ``tests/``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WARM_UP_S = 900.0
"""Until caches, tables and windows have what they hold: left out of the slope."""
BLOCK_S = 300.0
"""Samples that are nearer than that tell of each other: the noise is that of means over so long."""
WIDTH, PANEL, LEFT, TOP, GAP = 860, 190, 56, 30, 44

Samples = Sequence[dict[str, float]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Slope:
    """Of memory, in KiB an hour.

    Attributes:
        noise: Half the width of its 95 % interval.
        level_kib: In the middle of what was fitted.
    """

    kib_per_hour: float
    noise: float
    level_kib: float
    middle_s: float

    @property
    def told(self) -> str:
        return f"{self.kib_per_hour / 1024:+.2f} MB/h, noise ±{self.noise / 1024:.2f}"


# Student's t for 95 %, by degrees of freedom
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 8: 2.31, 10: 2.23, 15: 2.13, 20: 2.09, 30: 2.04}


def slope(samples: Samples, *, warm_up_s: float = WARM_UP_S, block_s: float = BLOCK_S, key: str = "rss_kib") -> Slope:
    """The line through the means of blocks of samples.

    Raises:
        ValueError: fewer than three blocks follow the warm-up.
    """
    seconds = np.array([one["seconds"] for one in samples])
    values = np.array([one[key] for one in samples])
    blocks = ((seconds - warm_up_s) // block_s).astype(np.int64)
    kept = [blocks == number for number in range(int(blocks.max()))]  # the last one is not whole
    kept = [mask for mask in kept if mask.any()]
    if len(kept) < 3:
        raise ValueError(f"{len(kept)} blocks of {block_s:.0f} s after {warm_up_s:.0f} s: too few for a slope")
    hours = np.array([seconds[mask].mean() for mask in kept]) / 3600
    means = np.array([values[mask].mean() for mask in kept])
    away = hours - hours.mean()
    found = float(away @ means / (away @ away))
    left = means - means.mean() - found * away
    freedom = len(kept) - 2
    error = float(np.sqrt(left @ left / freedom / (away @ away)))
    t = _T[max(number for number in _T if number <= freedom)]
    return Slope(found, t * error, float(means.mean()), float(hours.mean() * 3600))


def cpu_percent(samples: Samples, window_s: float = 60.0) -> tuple[Floats, Floats]:
    """Times in s and CPU in % of a core, over a minute each."""
    seconds = np.array([one["seconds"] for one in samples])
    used = np.array([one["cpu_s"] for one in samples])
    ends = np.arange(window_s, seconds[-1], window_s)
    at = np.interp(ends, seconds, used)
    before = np.interp(ends - window_s, seconds, used)
    return ends, 100 * (at - before) / window_s


def _panel(
    top: float, title: str, x: Floats, lines: Sequence[tuple[Floats, str, str]], span_s: float, unit: str
) -> list[str]:
    highest = max(float(values.max()) for values, _, _ in lines)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if highest / step <= 6)
    ceiling = step * (int(highest / step) + 1)
    inner = WIDTH - LEFT - 16

    def at(seconds: float) -> float:
        return LEFT + inner * seconds / span_s

    def up(value: float) -> float:
        return top + PANEL - PANEL * value / ceiling

    out = [f'<text class="title" x="{LEFT}" y="{top - 10}">{title}</text>']
    for number in range(ceiling // step + 1):
        y = up(number * step)
        out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - 16}"/>')
        out.append(f'<text class="axis" text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">{number * step}{unit}</text>')
    minutes = next(m for m in (1, 2, 5, 10, 15, 30, 60) if span_s / 60 / m <= 9)
    for number in range(int(span_s // (60 * minutes)) + 1):
        x_at = at(number * minutes * 60)
        place = f'text-anchor="middle" x="{x_at:.1f}" y="{top + PANEL + 18}"'
        out.append(f'<text class="axis" {place}>{number * minutes} min</text>')
    for values, kind, _ in lines:
        points = " ".join(f"{at(s):.1f},{up(v):.1f}" for s, v in zip(x, values, strict=True))
        out.append(f'<polyline class="{kind}" points="{points}"/>')
    for number, (_, kind, label) in enumerate(lines):
        out.append(f'<path class="{kind}" d="M{WIDTH - 370 + 130 * number} {top - 14}h18"/>')
        out.append(f'<text class="axis" x="{WIDTH - 346 + 130 * number}" y="{top - 10}">{label}</text>')
    return out


STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a } .title { font-weight: 600; font-size: 13px }
.grid { stroke: #8c959f; stroke-opacity: .3; fill: none } polyline, path { fill: none; stroke-width: 1.5 }
.rss { stroke: #0969da } .anon { stroke: #bf8700 } .maps { stroke: #8250df } .cpu { stroke: #1a7f37 }
.fit { stroke: #cf222e; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } .rss { stroke: #58a6ff } .cpu { stroke: #3fb950 } }
"""


def drawn(samples: Samples, warm_up_s: float = WARM_UP_S) -> str:
    """The picture."""
    seconds = np.array([one["seconds"] for one in samples])
    span = float(seconds[-1])
    mb = {key: np.array([one[key] for one in samples]) / 1024 for key in ("rss_kib", "anon_kib")}
    maps = np.array([one["map_bytes"] for one in samples]) / (1 << 20)
    fitted, fit = "", ""
    try:
        found = slope(samples, warm_up_s=warm_up_s)
    except ValueError:
        pass
    else:
        fitted = f", slope after {warm_up_s / 60:.0f} min {found.told}"
        ceiling = max(mb["rss_kib"].max(), maps.max())
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if ceiling / step <= 6)
        top_mb = step * (int(ceiling / step) + 1)
        ends = []
        for at_s in (warm_up_s, span):
            value = (found.level_kib + found.kib_per_hour * (at_s - found.middle_s) / 3600) / 1024
            x = LEFT + (WIDTH - LEFT - 16) * at_s / span
            ends.append(f"{x:.1f} {TOP + PANEL - PANEL * value / top_mb:.1f}")
        fit = f'<path class="fit" d="M{ends[0]}L{ends[1]}"/>'
    times, percent = cpu_percent(samples)
    parts = _panel(
        TOP, f"Memory, MB{fitted}", seconds,
        [(mb["rss_kib"], "rss", "resident"), (mb["anon_kib"], "anon", "anonymous"), (maps, "maps", "kernel maps")],
        span, "",
    )  # fmt: skip
    second = TOP + PANEL + GAP + 24
    parts += _panel(second, "CPU of a core, over a minute", times, [(percent, "cpu", "agent")], span, " %")
    height = second + PANEL + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>Memory and CPU of the agent over {span / 3600:.1f} hours</title><style>{STYLE}</style>"
        + "".join([*parts, fit])
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("soak", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S, help="seconds left out of the slope (default 900)")
    options = parser.parse_args()
    samples = [json.loads(line) for line in options.soak.read_text().splitlines()]
    options.out.write_text(drawn(samples, options.warm_up))
    for key in ("rss_kib", "anon_kib"):
        try:
            print(f"{key}: {slope(samples, warm_up_s=options.warm_up, key=key).told}")
        except ValueError as err:
            print(f"{key}: {err}")
    last, rest = samples[-1], samples[len(samples) // 8 :]
    cpu = 100 * (last["cpu_s"] - rest[0]["cpu_s"]) / (last["seconds"] - rest[0]["seconds"])
    print(f"CPU {cpu:.1f} % of a core; peak {last['peak_kib'] / 1024:.1f} MB; maps {last['map_bytes'] / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
