"""What a configuration that is read again changes in a running agent."""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec

from onlooker.config.loader import Loaded

_SECTIONS: Final = (
    "open_port", "auto_target_exe", "auto_target_language", "auto_target_cmd_args", "target_pids", "executable_name",
    "routes",
)  # fmt: skip
_DISCOVERY: Final = (
    "instrument", "exclude_instrument", "default_exclude_instrument", "services", "exclude_services",
    "default_exclude_services", "survey", "all",
)  # fmt: skip


_PATHS: Final = (*_SECTIONS, *(f"discovery.{name}" for name in _DISCOVERY), "otel_traces_export.sampler")


def taken_over(old: Loaded, new: Loaded) -> tuple[Loaded, list[str]]:
    """The old configuration with what can change while requests are under way: selectors, routes and the sampler.

    Returns:
        What is in effect from now on, and the sections that would have needed a restart, by name.
    """
    config = msgspec.structs.replace(
        old.config,
        **{name: getattr(new.config, name) for name in _SECTIONS},
        discovery=msgspec.structs.replace(
            old.config.discovery, **{name: getattr(new.config.discovery, name) for name in _DISCOVERY}
        ),
        otel_traces_export=msgspec.structs.replace(
            old.config.otel_traces_export, sampler=new.config.otel_traces_export.sampler
        ),
    )
    origins = {path: origin for path, origin in old.origins.items() if not _is_taken(path)}
    origins |= {path: origin for path, origin in new.origins.items() if _is_taken(path)}
    names = config.__struct_fields__
    later = sorted(name for name in names if getattr(config, name) != getattr(new.config, name))
    return dataclasses.replace(old, config=config, selection=new.selection, origins=origins), later


def _is_taken(path: str) -> bool:
    return any(path == taken or path.startswith((f"{taken}.", f"{taken}[")) for taken in _PATHS)
