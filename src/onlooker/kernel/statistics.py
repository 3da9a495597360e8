"""Run times of BPF programs: the kernel measures them while somebody holds a descriptor for it.

Measuring costs each run of each program of the host two readings of the clock, so it is only on while somebody looks.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from onlooker.errors import AgentError
from onlooker.kernel import uprobe

_ENABLE_STATS: Final = 32  # enum bpf_cmd, include/uapi/linux/bpf.h
_RUN_TIME: Final = 0  # enum bpf_stats_type


class RunStatistics:
    """A switch for the kernel's measuring.

    Attributes:
        refused: Why it could not be turned on; "" if it was, or nobody tried.
    """

    def __init__(self) -> None:
        self._fd = -1
        self.refused = ""

    @property
    def on(self) -> bool:
        """Whether this process keeps it on."""
        return self._fd >= 0

    def start(self) -> None:
        """Turn it on; the kernel asks for CAP_SYS_ADMIN."""
        if self._fd >= 0:
            return
        try:
            self._fd = uprobe._Kernel().bpf(_ENABLE_STATS, struct.pack("<I", _RUN_TIME))
            self.refused = ""
        except OSError as err:
            self.refused = err.strerror or str(err)
        except AgentError as err:
            self.refused = str(err)

    def stop(self) -> None:
        """Turn it off; what was measured stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
