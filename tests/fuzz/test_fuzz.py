"""Every parser of bytes and files, fuzzed: over five minutes in all on CI, two seconds each elsewhere.

The targets in Python by mutations, whose failures a seed repeats; ``make fuzz`` has atheris choose the bytes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/fuzz.sh"
TARGETS = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout.split()
IN_ALL_S = 320
SECONDS = int(os.environ.get("FUZZ_SECONDS", -(-IN_ALL_S // len(TARGETS)) if os.environ.get("CI") == "true" else 2))


def test_there_is_a_target_for_every_parser() -> None:
    """HTTP and frames in the kernel and in user space, header compression, databases, ELF, ``/proc``, configuration."""
    assert set(TARGETS) == {
        "http1-kernel", "http2-kernel", "resp", "classify", "http2", "hpack", "db", "elf", "proc", "config",
    }  # fmt: skip


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_break_it(name: str) -> None:
    done = subprocess.run(
        [SCRIPT, name], capture_output=True, text=True, check=False, timeout=SECONDS + 200,
        env={**os.environ, "FUZZ_SECONDS": str(SECONDS), "FUZZ_MUTATE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "db"])  # made of tests/golden
def test_its_corpus_is_there_and_small(name: str) -> None:
    files = list((ROOT / "tests/fuzz/corpus" / name).iterdir())
    assert files
    assert sum(file.stat().st_size for file in files) < 64_000
