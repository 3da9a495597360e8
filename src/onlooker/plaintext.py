"""The kernel's filter of processes, with the probes on TLS libraries beside it: who is watched is looked into.

Stands where the agent hands `discover` its filter; process records pass by here after `discover` has read them.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from onlooker.attach.prober import Outlook, Prober
from onlooker.capture._records import ProcessEvent
from onlooker.capture.capture import Capture
from onlooker.capture.tls import TlsPrograms


class Plaintext:
    """A `Filter` of `discover.watch` that also has the TLS of watched processes looked into."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.programs = TlsPrograms(capture)
        self.prober = Prober(self.programs.load, capture.mark_tls, sweep=self.programs.forget)

    def start(self) -> None:
        """Begin to look into processes; those that were named before are looked into now."""
        self.prober.start()

    def stop(self) -> None:
        """Detach and unload."""
        self.prober.stop()
        self.programs.close()

    def watch(self, pid: int) -> None:
        """Let its records through, and look into it."""
        self._capture.watch(pid)
        self.prober.look(pid)

    def unwatch(self, pid: int) -> None:
        """Hold its records back, and let go of it."""
        self._capture.unwatch(pid)
        self.prober.forget(pid)

    def set_context(self, pid: int, trust_thread: bool) -> None:
        """See `Capture.set_context`."""
        self._capture.set_context(pid, trust_thread)

    def apply(self, rows: NDArray[Any]) -> None:
        """Take in ``(n,)`` `PROCESS_RECORD`: who listens has loaded its libraries by now, who speaks TLS has one."""
        for event, pid in zip(rows["event"].tolist(), rows["tgid"].tolist(), strict=True):
            if event == ProcessEvent.PROCESS_SPEAKS_TLS:
                self.prober.speaks_tls(pid)
            elif event in (ProcessEvent.PROCESS_LISTEN, ProcessEvent.PROCESS_LOADED):
                self.prober.look_again(pid)

    def outlook(self) -> list[Outlook]:
        """What of the TLS of the watched processes is seen."""
        return self.prober.outlook()
