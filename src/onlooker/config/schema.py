"""The JSON schema of the configuration file, for editors and pipelines."""

from __future__ import annotations

from typing import Any

from onlooker.config.keys import Items, Key, Section, fields_of
from onlooker.config.model import Config


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12).  What it refuses the loader refuses too; the loader also checks combinations."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onlooker configuration",
        **_section(Config, ""),
    }


def _section(section: type[Section], unused: str) -> dict[str, Any]:
    unused = section.unused or unused
    properties: dict[str, Any] = {}
    for field in fields_of(section):
        if field.key is None:
            assert field.section is not None
            properties[field.name] = {"anyOf": [_section(field.section, unused), {"type": "null"}]}
            continue
        one = _key(field.key, unused)
        for name in (field.name, *field.key.aliases):
            properties[name] = one
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _key(key: Key, unused: str) -> dict[str, Any]:
    if isinstance(key.kind, Items):
        value: dict[str, Any] = {"type": "array", "items": _section(key.kind.section, unused)}
    else:
        value = key.kind.schema()
    reason = key.unused or unused
    described: dict[str, Any] = {"description": key.help + (f" (Changes nothing: {reason}.)" if reason else "")}
    if key.deprecated:
        described["deprecated"] = True
    # A key without a value stands for its default, and a reference to the environment for any value.
    reference = {"type": "string", "pattern": r"\$\{"}
    return {**described, "anyOf": [value, {"type": "null"}, reference]}
