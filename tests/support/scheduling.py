"""Keeps what else a machine does out of a measurement."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path


@contextlib.contextmanager
def undisturbed(pids: Collection[int]) -> Iterator[None]:
    """Lets these processes, and what they start meanwhile, go before all others.

    A server that waits for a busy CPU reads a request later than it was sent, which only the client's clock sees.  Nice
    values would not do: they weigh within a session only (autogroups).
    """
    _schedule(pids, os.SCHED_RR, 1)
    try:
        yield
    finally:
        _schedule(pids, os.SCHED_OTHER, 0)


def _schedule(pids: Collection[int], policy: int, priority: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))
