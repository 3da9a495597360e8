"""How a configuration key is declared: once, as a field of a `Section`.

A field's annotation carries a `Key`; its default is the key's default.  Loading, ``config show``, the JSON schema and
the reference page all read these declarations::

    class Limits(Section):
        series: Annotated[int, Key(COUNT, "How many series are kept.")] = 10_000
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import msgspec

from onlooker.config.kinds import Kind


def both(*names: str) -> tuple[str, ...]:
    """The incumbents' two spellings of each name, the one that wins first."""
    return tuple(prefix + name for name in names for prefix in ("OTEL_EBPF_", "BEYLA_"))


@dataclass(frozen=True)
class Key:
    """What is known about a key besides its name and default.

    Attributes:
        kind: What it takes.
        help: One or two sentences for the reference page.
        env: Environment variables that set it, the one that wins first.  ``ONLOOKER_<PATH>`` comes before them all
            and is not listed here.
        unused: Why setting it changes nothing yet; "" where it is honoured.
        deprecated: What to use instead; "" where it is current.
        secret: Whether its value is never shown.
        name: The key as files spell it, where that is no Python name.
        aliases: Further spellings that files may use.
    """

    kind: Kind
    help: str
    env: tuple[str, ...] = ()
    unused: str = ""
    deprecated: str = ""
    secret: bool = False
    name: str = ""
    aliases: tuple[str, ...] = ()


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of the configuration file.  Instances are never changed: `msgspec.structs.replace` makes new ones.

    Attributes:
        unused: Why nothing of the section is honoured yet; "" otherwise.  Keys may say it for themselves.
        env_prefix: Put before the variables of all its keys, where they belong to another section too.
    """

    unused: ClassVar[str] = ""
    env_prefix: ClassVar[str] = ""


class Items(Kind):
    """A list of mappings, each a `Section`."""

    from_environment = False

    def __init__(self, section: type[Section]) -> None:
        self.section = section
        self.name = f"list of {section.__name__}"

    def plain(self, value: tuple[Section, ...]) -> Any:
        return [plain_section(item) for item in value]


@dataclass(frozen=True)
class Field:
    """One field of a section: a key, or a section below."""

    attribute: str
    name: str
    default: Any
    key: Key | None
    section: type[Section] | None


@dataclass(frozen=True)
class KeyPath:
    """A key of the whole model, with its place."""

    path: str
    attributes: tuple[str, ...]
    key: Key
    default: Any
    unused: str

    @property
    def own_env(self) -> str:
        """The variable that every key has by rule; "" where one line of text cannot hold its value."""
        return f"ONLOOKER_{self.path.upper().replace('.', '_')}" if self.key.kind.from_environment else ""

    @property
    def env(self) -> tuple[str, ...]:
        """Every variable that sets it, the one that wins first."""
        return (*((self.own_env,) if self.own_env else ()), *self.key.env)


@cache
def fields_of(section: type[Section]) -> tuple[Field, ...]:
    """The fields of a section, in the order of their declaration."""
    hints = get_type_hints(section, include_extras=True)
    found = []
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if get_origin(hint) is Annotated:
            (key,) = (extra for extra in get_args(hint)[1:] if isinstance(extra, Key))
            found.append(Field(field.name, key.name or field.name, default, key, None))
        else:
            found.append(Field(field.name, field.name, default, None, hint))
    return tuple(found)


def walk(
    section: type[Section], path: str = "", attributes: tuple[str, ...] = (), unused: str = "", prefix: str = ""
) -> Iterator[KeyPath]:
    """Every key below a section, depth first, in the order of declaration."""
    unused = section.unused or unused
    prefix = section.env_prefix or prefix
    for field in fields_of(section):
        below = f"{path}.{field.name}" if path else field.name
        where = (*attributes, field.attribute)
        if field.key is not None:
            key = replace(field.key, env=tuple(prefix + name for name in field.key.env)) if prefix else field.key
            yield KeyPath(below, where, key, field.default, key.unused or unused)
        else:
            assert field.section is not None
            yield from walk(field.section, below, where, unused, prefix)


def plain_section(section: Section) -> dict[str, Any]:
    """A section as JSON, without the keys that stand at their defaults."""
    found: dict[str, Any] = {}
    for field in fields_of(type(section)):
        value = getattr(section, field.attribute)
        if value == field.default:
            continue
        if field.key is not None:
            found[field.name] = "***" if field.key.secret else field.key.kind.plain(value)
        else:
            found[field.name] = plain_section(value)
    return found
