"""One old and one new kernel, with the hook that each takes by itself; `make test-kernels` has all of them."""

from __future__ import annotations

import os

import pytest

from kernels import run

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="machines of the kernel lab need root"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    run.build()


@pytest.mark.parametrize("kernel", run.QUICK)
def test_a_kernel_loads_and_shows_each_of_100_requests(kernel: str) -> None:
    (report,) = run.boot(kernel, ("auto",), 600)
    assert run.faults(kernel, report) == []
    walked = {(report["hook"], program, kernel): count for program, count in report["instructions"].items()}
    assert walked
    assert run.grown(walked, run.read_baseline()) == []
