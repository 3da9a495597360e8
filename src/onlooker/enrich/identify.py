"""Whose requests these are: receives pids, hands on processes and services; drops rows of processes not known."""

from __future__ import annotations

import numpy as np

from onlooker.batches import I4, Identities, RequestBatch


class Identifier:
    """Looks pids up for whole columns; the table is made anew only when the identities changed.

    Attributes:
        dropped: Rows that were dropped, by reason: ``unknown_process`` (no such pid is watched), ``no_exports`` (its
            selector exports nothing).
    """

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {"unknown_process": 0, "no_exports": 0}
        self._version = -1
        self._pids: I4 = np.empty(0, np.int32)
        self._processes: I4 = np.empty(0, np.int32)
        self._services: I4 = np.empty(0, np.int32)

    def identify(self, batch: RequestBatch, identities: Identities) -> RequestBatch:
        """Set ``process`` and ``service``.

        Returns:
            The same batch, or one without the rows whose process is unknown.
        """
        if identities.version != self._version:
            self._rebuild(identities)
        if not len(batch):
            batch.process = batch.service = np.empty(0, np.int32)
            return batch
        if not self._pids.size:
            self.dropped["unknown_process"] += len(batch)
            return batch.take(np.zeros(len(batch), np.bool_))
        at = np.searchsorted(self._pids, batch.pid)
        np.minimum(at, self._pids.size - 1, out=at)
        batch.process = self._processes[at]
        batch.service = self._services[at]
        known = self._pids[at] == batch.pid
        unwanted = batch.service < 0
        if known.all() and not unwanted.any():
            return batch
        self.dropped["unknown_process"] += int((~known).sum())
        self.dropped["no_exports"] += int((unwanted & known).sum())
        return batch.take(known & ~unwanted)

    def _rebuild(self, identities: Identities) -> None:
        # Another thread may add a process meanwhile: `version` is read first, so the next batch looks again.
        version = identities.version
        services = identities.services
        rows = []
        for pid, process_id in sorted(identities.by_pid.copy().items()):
            process = identities.processes.get(process_id)
            service = services.get(process.service_id) if process is not None else None
            if process is not None and service is not None:
                rows.append((pid, process_id, service.id if service.exports else -1))
        table = np.array(rows, np.int32).reshape(-1, 3)
        self._pids, self._processes, self._services = (np.ascontiguousarray(column) for column in table.T)
        self._version = version
