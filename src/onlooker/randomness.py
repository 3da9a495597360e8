"""Random numbers of the operating system, for keys of hashes and for ids.

What `numpy.random` brings (seeded, reproducible streams of many distributions) is not wanted here, and importing it
costs 2 MB of memory.  `SystemRandom` takes the place of a ``numpy.random.Generator`` where stages ask for one.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SystemRandom:
    """Uniform 64-bit integers; as much of a ``numpy.random.Generator`` as the stages use."""

    def integers(
        self,
        low: int,
        high: int,
        size: int | tuple[int, ...],
        dtype: type[np.uint64] | type[np.int64],
        endpoint: bool = False,
    ) -> NDArray[Any]:
        """Integers over (nearly) the whole range of ``dtype``.

        Args:
            low: The least that ``dtype`` holds; or 1, which leaves out zero.
            high: One more than the greatest that ``dtype`` holds; the greatest itself with ``endpoint``.
            size: Shape of the result.
            dtype: uint64 or int64.
            endpoint: Whether ``high`` itself may come.

        Raises:
            ValueError: another range is asked for.
        """
        limits = np.iinfo(dtype)
        if low not in (limits.min, 1) or high + endpoint - 1 != limits.max:
            raise ValueError(f"only the whole range of {np.dtype(dtype)}, not {low} to {high}")
        drawn = np.frombuffer(os.urandom(8 * int(np.prod(size))), dtype).reshape(size).copy()
        while low == 1 and not drawn.all():  # once in 2**64
            drawn[drawn == 0] = self.integers(limits.min, limits.max, int((drawn == 0).sum()), dtype, endpoint=True)
        return drawn
