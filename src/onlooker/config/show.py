"""The effective configuration, for people and for programs."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from onlooker.config.keys import KeyPath, walk
from onlooker.config.loader import Loaded
from onlooker.config.model import Config

_HIDDEN = "***"


def effective(loaded: Loaded, *, everything: bool = False) -> dict[str, dict[str, Any]]:
    """Path to value and source.  Secrets are hidden.

    Args:
        loaded: The configuration.
        everything: Whether to give the keys that stand at their defaults too.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in walk(Config):
        value = _value(loaded.config, key)
        if everything or key.path in loaded.origins:
            source = str(loaded.origins.get(key.path, "default"))
            found[key.path] = {"value": _shown(key, value), "source": source}
    return found


def as_yaml(loaded: Loaded, *, everything: bool = False) -> str:
    """The same as a file that can be read again, with the source of each value as a comment."""
    lines: list[str] = []
    above: list[str] = []
    for path, entry in effective(loaded, everything=everything).items():
        *sections, name = path.split(".")
        common = next(
            (i for i, (a, b) in enumerate(zip(above, sections, strict=False)) if a != b), min(len(above), len(sections))
        )
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(common, len(sections))]
        above = sections
        text = yaml.safe_dump(
            entry["value"], default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=False
        )
        text = text.removesuffix("...\n").strip()
        lines.append(f"{'  ' * len(sections)}{name}: {text}  # {entry['source']}")
    return "\n".join(lines) + "\n" if lines else ""


def _value(config: Config, key: KeyPath) -> Any:
    value: Any = config
    for attribute in key.attributes:
        value = getattr(value, attribute)
    return value


def _shown(key: KeyPath, value: Any) -> Any:
    if key.key.secret:
        if isinstance(value, dict):
            return dict.fromkeys(value, _HIDDEN)
        return _HIDDEN if value else ""
    if value is None:
        return None
    if key.path.endswith(".endpoint") and "@" in value:
        url = urlsplit(value)
        return urlunsplit(url._replace(netloc=f"{_HIDDEN}@{url.netloc.rpartition('@')[2]}"))
    return key.key.kind.plain(value)
