"""The systemd unit grants what ``doctor`` lists, and is as closed as it can be."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from onlooker.cli._host import needed_capabilities
from onlooker.config import Config

UNIT = Path(__file__).parents[3] / "deploy/systemd/onlooker.service"
WORST_SCORE = 2.7
"""Of 10.  What is left is what an agent is for: it reads others' processes, loads programs and uses the network."""


def settings(name: str) -> set[str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return set(parser["Service"][name].split())


@pytest.mark.parametrize("name", ["CapabilityBoundingSet", "AmbientCapabilities"])
def test_it_has_the_capabilities_that_doctor_lists_and_no_other(name: str) -> None:
    assert settings(name) == {need.capability for need in needed_capabilities(Config())}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_its_score_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for onlooker.service: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot judge a file: {done.stderr[:200]}")
    assert float(found[1]) <= WORST_SCORE
