"""Which attributes a metric has: ``attributes.select`` of the configuration over the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_SAMPLE_SUFFIXES: Final = (".ratio", ".bucket", ".sum", ".count", ".total")
_UNIT_SUFFIXES: Final = (".bytes", ".seconds")


@dataclass(frozen=True, slots=True)
class Selection:
    """One section of ``attributes.select``: globs over attribute names, in OpenTelemetry's or Prometheus' spelling."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class AttributeSelection:
    """All sections of ``attributes.select``.

    Sections that match a metric apply in turn, general before exact.  Includes replace the defaults and add up; if the
    first section includes nothing, the defaults are the base.  Each exclude then takes away.
    """

    def __init__(self, sections: Mapping[str, Selection] | None = None) -> None:
        normal = [(_metric_name(name), selection) for name, selection in (sections or {}).items()]
        # A pattern with more literal characters is the more exact one; a name without a wildcard is the most exact.
        self._sections = sorted(normal, key=lambda item: ("*" not in item[0] and "?" not in item[0], len(item[0])))

    def attributes(self, metric: str, defaults: Sequence[str], optional: Sequence[str]) -> tuple[str, ...]:
        """The names that ``metric`` has, in the order of ``defaults`` and ``optional``."""
        name = _metric_name(metric)
        matching = [selection for pattern, selection in self._sections if fnmatchcase(name, pattern)]
        if not matching:
            return tuple(defaults)
        available = (*defaults, *optional)
        chosen = set() if matching[0].include else set(defaults)
        for selection in matching:
            chosen |= {key for key in available if _matches(key, selection.include)}
            chosen -= {key for key in available if _matches(key, selection.exclude)}
        return tuple(key for key in available if key in chosen)


def _matches(key: str, globs: tuple[str, ...]) -> bool:
    key = key.replace("_", ".")
    return any(fnmatchcase(key, glob.replace("_", ".")) for glob in globs)


def _metric_name(name: str) -> str:
    name = name.replace("_", ".")
    for suffixes in (_SAMPLE_SUFFIXES, _UNIT_SUFFIXES):
        for suffix in suffixes:
            if name.endswith(suffix):
                name = name.removesuffix(suffix)
                break
    return name
