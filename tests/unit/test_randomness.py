import numpy as np
import pytest

from onlooker.randomness import SystemRandom


def test_words_differ_and_fill_all_bits() -> None:
    drawn = SystemRandom().integers(0, 1 << 64, 4096, np.uint64)
    assert drawn.dtype == np.uint64
    assert len(np.unique(drawn)) == 4096
    assert np.bitwise_or.reduce(drawn) == np.uint64(0xFFFFFFFFFFFFFFFF)
    assert np.bitwise_and.reduce(drawn) == 0


def test_the_shape_is_the_one_asked_for_and_the_array_can_be_written() -> None:
    drawn = SystemRandom().integers(-(1 << 63), (1 << 63) - 1, (3, 2, 4), np.int64, endpoint=True)
    assert drawn.shape == (3, 2, 4)
    assert drawn.min() < 0 < drawn.max()
    drawn[0] = 1


def test_zero_is_left_out_where_it_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [bytes(8) + b"\1" * 8, bytes(8), b"\2" * 8]
    monkeypatch.setattr("onlooker.randomness.os.urandom", lambda count: answers.pop(0))
    assert SystemRandom().integers(1, 1 << 64, 2, np.uint64).all()
    assert not answers


@pytest.mark.parametrize(("low", "high", "endpoint"), [(0, 10, False), (5, 1 << 64, False), (0, 1 << 64, True)])
def test_another_range_is_refused(low: int, high: int, endpoint: bool) -> None:
    with pytest.raises(ValueError, match="only the whole range"):
        SystemRandom().integers(low, high, 3, np.uint64, endpoint=endpoint)
