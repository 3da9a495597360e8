"""What every test run shares: a header that tells what it runs on, and what `live` tests need."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from onlooker.capture.capture import Capture
from onlooker.errors import UnsupportedKernelError

# A machine that is busy with other things is no failure.
settings.register_profile("onlooker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onlooker")

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("unit", "native", "golden", "live", "e2e", "verifier", "kernels")
MAIN_HOOKS_SINCE = (6, 3)
"""The first kernel with the tracepoints sock_send_length and sock_recv_length."""


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "none"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _libbpf() -> str:
    try:
        from onlooker.kernel._libbpf import library

        return os.path.basename(library()._name)
    except Exception as err:
        return f"none ({err})"


def pytest_report_header() -> list[str]:
    levels = [level for level in LEVELS if any((ROOT / "tests" / level).rglob("test_*.py"))]
    who = "root" if os.geteuid() == 0 else "not root: live tests cannot run"
    return [
        f"onlooker: kernel {platform.release()} {platform.machine()}, {who}",
        f"onlooker: {_first_line('clang', '--version')}; libbpf {_libbpf()}; levels {', '.join(levels)}",
    ]


@pytest.fixture(scope="session")
def live() -> None:
    """The kernel can do what the main hooks need.

    A kernel that is too old skips the test; one that is new enough and refuses fails it, and so do missing privileges.
    """
    capture = Capture()
    try:
        capture.start()
    except UnsupportedKernelError as err:
        release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
        if release < MAIN_HOOKS_SINCE:
            pytest.skip(str(err))
        pytest.fail(str(err), pytrace=False)
    finally:
        capture.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Live tests hold spans against clocks, on machines that do other work too.

    A live test that fails runs once more; the summary names it, and a second failure counts.
    """
    for item in items:
        if "live" in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=2))
