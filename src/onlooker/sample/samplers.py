"""The six samplers of the OpenTelemetry specification, over columns.

A ratio is compared with the trace id, so every agent on the way of a request decides alike, and so do the spans of
one trace on one host.  Parent-based samplers follow the flag that a parent sent; a parent on the same host that
sent none shares the trace id, hence the decision of the root sampler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onlooker.batches import SKIP_TRACES, RequestBatch, Service

log = logging.getLogger(__name__)

DEFAULT_SAMPLER = "parentbased_always_on"
DEFAULT_RATIO = 1.0  # of the specification, where OTEL_TRACES_SAMPLER_ARG is missing

_SAMPLED = 1
# enum parent_source of bpf/records.h
_PARENT_HEADER = 1
_PARENT_THREAD = 2
_PARENT_PEER = 3

Mask = NDArray[np.bool_]


class Sampler(Protocol):
    """Decides for each row on its own."""

    @property
    def description(self) -> str:
        """As the specification writes it, to show to people."""

    def keep(self, batch: RequestBatch) -> Mask:
        """``(n,)`` bool: which rows become spans."""


class AlwaysOn:
    """Keeps everything."""

    description = "AlwaysOnSampler"

    def keep(self, batch: RequestBatch) -> Mask:
        return np.ones(len(batch), np.bool_)


class AlwaysOff:
    """Keeps nothing."""

    description = "AlwaysOffSampler"

    def keep(self, batch: RequestBatch) -> Mask:
        return np.zeros(len(batch), np.bool_)


class TraceIdRatio:
    """Keeps a share of the traces, chosen by the lower 8 bytes of the trace id.

    The comparison is that of the Go SDK: 63 bits of the id against ``ratio * 2**63``.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.description = f"TraceIdRatioBased{{{ratio:g}}}"
        self._bound = np.uint64(min(int(ratio * (1 << 63)), 1 << 63))

    def keep(self, batch: RequestBatch) -> Mask:
        low = np.ascontiguousarray(batch.trace_id[:, 8:]).view(">u8")[:, 0]
        kept: Mask = low.astype(np.uint64) >> np.uint64(1) < self._bound
        return kept


class ParentBased:
    """Follows the sampled flag of the parent, and asks another sampler about roots.

    The flag of a parent that came in a header is the caller's decision.  Between spans of this host no flag travels:
    ``trace_flags`` of the child are those that its root began with.  An unset flag still means that a header said no;
    a set one is what every trace begins with, so the root's sampler decides, by the same trace id.
    """

    def __init__(self, root: Sampler) -> None:
        self.root = root
        self.description = f"ParentBased{{root:{root.description}}}"

    def keep(self, batch: RequestBatch) -> Mask:
        sampled: Mask = (batch.trace_flags & _SAMPLED) != 0
        if isinstance(self.root, AlwaysOn) and np.count_nonzero(sampled) == len(batch):
            return sampled  # the common case: nobody said no
        source = batch.parent_source
        remote = source == _PARENT_HEADER
        if remote.all():
            return sampled
        local = (source == _PARENT_THREAD) | (source == _PARENT_PEER)
        root = self.root.keep(batch)
        kept: Mask = np.where(remote, sampled, root & (sampled | ~local))
        return kept


def _ratio(argument: str) -> float:
    """The ratio that a sampler's argument names.

    Raises:
        ValueError: It is no number between 0 and 1.
    """
    ratio = float(argument) if argument.strip() else DEFAULT_RATIO
    if not 0.0 <= ratio <= 1.0:  # also refuses NaN
        raise ValueError(f"{argument} is not between 0 and 1")
    return ratio


_MAKERS: dict[str, Callable[[str], Sampler]] = {
    "always_on": lambda argument: AlwaysOn(),
    "always_off": lambda argument: AlwaysOff(),
    "traceidratio": lambda argument: TraceIdRatio(_ratio(argument)),
    "parentbased_always_on": lambda argument: ParentBased(AlwaysOn()),
    "parentbased_always_off": lambda argument: ParentBased(AlwaysOff()),
    "parentbased_traceidratio": lambda argument: ParentBased(TraceIdRatio(_ratio(argument))),
}
SAMPLERS = tuple(_MAKERS)


def make_sampler(name: str = "", argument: str = "") -> Sampler:
    """The sampler of that name; the default one, with a warning, if name or argument make no sense.

    Args:
        name: As in ``OTEL_TRACES_SAMPLER``; empty for the default.
        argument: As in ``OTEL_TRACES_SAMPLER_ARG``; only the ratio samplers have one.
    """
    maker = _MAKERS.get(name.strip().lower() or DEFAULT_SAMPLER)
    if maker is None:
        log.warning("no sampler is called %r; using %s. Known: %s", name, DEFAULT_SAMPLER, ", ".join(SAMPLERS))
        maker = _MAKERS[DEFAULT_SAMPLER]
    try:
        return maker(argument)
    except ValueError as err:
        log.warning("sampler %s cannot use its argument: %s; using %s", name, err, DEFAULT_SAMPLER)
        return _MAKERS[DEFAULT_SAMPLER](argument)


class Samplers:
    """The sampler of the configuration, and those of single services (`Service.sampler`).

    Attributes:
        default: For every service that names none.
        kept, seen: Rows so far.
    """

    def __init__(self, default: Sampler) -> None:
        self.default = default
        self.kept = 0
        self.seen = 0
        self._made: dict[tuple[str, str], Sampler] = {}
        self._services: Mapping[int, Service] | None = None
        self._overrides: dict[int, Sampler] = {}

    def keep(self, batch: RequestBatch, services: Mapping[int, Service]) -> Mask:
        """``(n,)`` bool: which rows become spans; the caller stores it in ``batch.keep``.

        Rows of ignored routes (`SKIP_TRACES`) are never among them.
        """
        if services is not self._services:  # replaced as a whole when it changes, see `Identities`
            self._services = services
            self._overrides = {s.id: self._make(s.sampler) for s in services.values() if s.sampler is not None}
        kept = self.default.keep(batch)
        if self._overrides and len(batch.service) == len(batch):
            for service_id in np.flatnonzero(np.bincount(batch.service + 1)) - 1:
                sampler = self._overrides.get(int(service_id))
                if sampler is not None:
                    kept = np.where(batch.service == service_id, sampler.keep(batch), kept)
        if len(batch.skip) == len(batch):
            kept = kept & ((batch.skip & SKIP_TRACES) == 0)
        self.seen += len(batch)
        self.kept += int(np.count_nonzero(kept))
        return kept

    def _make(self, spec: tuple[str, str]) -> Sampler:
        """One object for each spelling, so that a bad one warns once."""
        sampler = self._made.get(spec)
        if sampler is None:
            if len(self._made) >= 1024:
                self._made.clear()
            sampler = self._made[spec] = make_sampler(*spec)
        return sampler
