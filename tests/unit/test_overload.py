"""Detail is shed while a limit is exceeded, comes back when it is calm, and counts are never touched."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from onlooker.batches import SKIP_METRICS, SKIP_TRACES, RequestBatch
from onlooker.overload import CALM_S, LEAST_SHARE, LOOK_S, Overload
from support.span_batches import a_batch


class Machine:
    """Its clock, and what onlooker uses of it."""

    def __init__(self, *, cpu_percent: float = 0.0, memory_bytes: int = 0) -> None:
        self.now = self.used = 0.0
        self.rss = 100
        self.relieved = 0
        self.overload = Overload(
            cpu_percent=cpu_percent, memory_bytes=memory_bytes, rss_bytes=lambda: self.rss,
            monotonic_s=lambda: self.now, cpu_s=lambda: self.used, relieve=self._relieve,
        )  # fmt: skip

    def _relieve(self) -> None:
        self.relieved += 1

    def run(self, seconds: float, cpu: float = 0.0) -> None:
        """Let time pass; the agent looks ten times a second."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.used += 0.1 * cpu
            self.overload.look()


def traces(count: int) -> RequestBatch:
    random = np.random.default_rng(7)
    return a_batch(count, trace_id=random.integers(0, 256, (count, 16), np.uint8))


def test_without_limits_nothing_is_ever_shed() -> None:
    machine = Machine()
    machine.run(60, cpu=1.0)
    batch = traces(10)
    machine.overload.apply(batch)
    assert (machine.overload.share, len(batch.skip), machine.overload.shed) == (1.0, 0, 0)


def test_spans_are_shed_step_by_step_until_it_fits() -> None:
    machine = Machine(cpu_percent=20)
    machine.run(LOOK_S + 0.1, cpu=0.3)
    assert machine.overload.share == 0.5
    machine.run(LOOK_S, cpu=0.3)
    assert machine.overload.share == 0.25
    machine.run(30, cpu=0.19)  # below the limit, and too near to it for twice as many
    assert machine.overload.share == 0.25
    assert machine.overload.sheds == {"cpu": 2, "memory": 0}


def test_all_spans_go_if_counting_alone_is_too_much() -> None:
    machine = Machine(cpu_percent=1)
    machine.run(60, cpu=0.5)
    assert machine.overload.share == 0.0
    assert machine.overload.stretch > 1
    batch = traces(50)
    machine.overload.apply(batch)
    assert (batch.skip == SKIP_TRACES).all()
    assert machine.overload.shed == 50


def test_detail_comes_back_when_it_is_calm() -> None:
    machine = Machine(cpu_percent=20)
    machine.run(60, cpu=0.5)
    machine.run(CALM_S + LOOK_S, cpu=0.05)
    assert machine.overload.share == LEAST_SHARE
    machine.run(8 * (CALM_S + LOOK_S), cpu=0.05)
    assert machine.overload.share == 1.0


def test_what_had_to_go_again_at_once_waits_longer_for_its_next_return() -> None:
    machine = Machine(cpu_percent=20)

    def load() -> float:
        return 0.4 * machine.overload.share  # half of the spans just fit

    raised = 0
    before = machine.overload.share
    for _ in range(1500):
        machine.run(0.2, cpu=load())
        raised += machine.overload.share > before
        before = machine.overload.share
    assert 1 <= raised <= 8  # in 5 minutes; without patience 25


def test_memory_is_given_back_first_and_spans_go_if_that_does_not_help() -> None:
    machine = Machine(memory_bytes=1000)
    machine.run(10)
    machine.rss = 2000
    machine.run(LOOK_S + 0.1)
    assert machine.relieved == 1
    assert machine.overload.share == 0.5
    assert machine.overload.sheds == {"cpu": 0, "memory": 1}


@pytest.mark.parametrize("share", [0.5, 0.125])
def test_whole_traces_go_and_metrics_keep_every_row(share: float) -> None:
    machine = Machine(cpu_percent=20)
    machine.overload.share = share
    batch = traces(4000)
    batch.trace_id[2000:] = batch.trace_id[:2000]  # each trace has two spans
    batch.skip = np.full(4000, SKIP_METRICS, np.uint8)
    machine.overload.apply(batch)
    gone = (batch.skip & SKIP_TRACES) != 0
    assert (gone[:2000] == gone[2000:]).all()
    assert gone.mean() == pytest.approx(1 - share, abs=0.05)
    assert (batch.skip & SKIP_METRICS).all()
    assert machine.overload.shed == gone.sum()


def test_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(cpu_percent=20)
    with caplog.at_level(logging.INFO, "onlooker"):
        machine.run(LOOK_S + 0.1, cpu=0.31)
        assert caplog.messages == [
            "31% of a core is in use, limits.cpu_percent is 20%: 1 of 2 traces is kept from now on, and every request "
            "is still counted"
        ]
        machine.run(CALM_S + LOOK_S, cpu=0.01)
    assert caplog.messages[-1] == "onlooker is within its limits again: every trace is kept"
