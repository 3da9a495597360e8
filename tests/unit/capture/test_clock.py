from __future__ import annotations

from onlooker.capture.clock import UnixClock


class Clocks:
    def __init__(self) -> None:
        self.mono = 5_000
        self.offset = 1_000_000
        self.cost = 10

    def monotonic_ns(self) -> int:
        self.mono += self.cost
        return self.mono

    def unix_ns(self) -> int:
        self.mono += self.cost
        return self.mono + self.offset


def test_the_distance_is_that_of_the_two_clocks() -> None:
    clocks = Clocks()
    clock = UnixClock(clocks.monotonic_ns, clocks.unix_ns)
    assert abs(clock.offset_ns() - clocks.offset) <= clocks.cost


def test_a_step_of_the_system_clock_is_followed_within_a_second() -> None:
    clocks = Clocks()
    clock = UnixClock(clocks.monotonic_ns, clocks.unix_ns)
    clocks.offset += 3_600_000_000_000
    before = clock.offset_ns()
    assert abs(before - 1_000_000) <= clocks.cost
    clocks.mono += 1_000_000_001
    assert abs(clock.offset_ns() - clocks.offset) <= clocks.cost
